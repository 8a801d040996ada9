"""How two signals are compared: losses of teacher and student tensors."""

from tfkd.losses.attention_transfer import AttentionTransfer
from tfkd.losses.class_conditional import ClassConditional
from tfkd.losses.distribution import DistributionLoss
from tfkd.losses.gaussian_kl import GaussianKL
from tfkd.losses.gaussian_wasserstein import GaussianWasserstein
from tfkd.losses.jacobian_cross_entropy import JacobianCrossEntropy
from tfkd.losses.joint_transport import JointTransport
from tfkd.losses.maximum_mean_discrepancy import MaximumMeanDiscrepancy
from tfkd.losses.neuron_transport import NeuronTransport
from tfkd.losses.optimal_transport import OptimalTransport
from tfkd.losses.relaxed_earth_mover import RelaxedEarthMover
from tfkd.losses.sinkhorn_divergence import SinkhornDivergence
from tfkd.losses.soft_targets import SoftTargets
from tfkd.losses.squared_error import NormalizedSquaredError, SquaredError

__all__ = [
    "AttentionTransfer",
    "ClassConditional",
    "DistributionLoss",
    "GaussianKL",
    "GaussianWasserstein",
    "JacobianCrossEntropy",
    "JointTransport",
    "MaximumMeanDiscrepancy",
    "NeuronTransport",
    "NormalizedSquaredError",
    "OptimalTransport",
    "RelaxedEarthMover",
    "SinkhornDivergence",
    "SoftTargets",
    "SquaredError",
]
