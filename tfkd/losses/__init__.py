"""How two signals are compared: losses of teacher and student tensors."""

from tfkd.losses.activation_boundary import ActivationBoundary
from tfkd.losses.attention_transfer import AttentionTransfer
from tfkd.losses.class_conditional import ClassConditional
from tfkd.losses.correlation_congruence import CorrelationCongruence
from tfkd.losses.correlation_targets import CorrelationTargets
from tfkd.losses.decoupled_targets import DecoupledTargets
from tfkd.losses.distribution import DistributionLoss
from tfkd.losses.gaussian_kl import GaussianKL
from tfkd.losses.gaussian_wasserstein import GaussianWasserstein
from tfkd.losses.jacobian_cross_entropy import JacobianCrossEntropy
from tfkd.losses.joint_transport import JointTransport
from tfkd.losses.maximum_mean_discrepancy import MaximumMeanDiscrepancy
from tfkd.losses.neuron_selectivity import NeuronSelectivity
from tfkd.losses.neuron_transport import NeuronTransport
from tfkd.losses.optimal_transport import OptimalTransport
from tfkd.losses.probabilistic_transfer import ProbabilisticTransfer
from tfkd.losses.relational import RelationalAngle, RelationalDistance
from tfkd.losses.relaxed_earth_mover import RelaxedEarthMover
from tfkd.losses.similarity_preserving import SimilarityPreserving
from tfkd.losses.sinkhorn_divergence import SinkhornDivergence
from tfkd.losses.soft_targets import SoftTargets
from tfkd.losses.solution_flow import SolutionFlow
from tfkd.losses.squared_error import NormalizedSquaredError, SquaredError
from tfkd.losses.standardized_targets import StandardizedTargets

__all__ = [
    "ActivationBoundary",
    "AttentionTransfer",
    "ClassConditional",
    "CorrelationCongruence",
    "CorrelationTargets",
    "DecoupledTargets",
    "DistributionLoss",
    "GaussianKL",
    "GaussianWasserstein",
    "JacobianCrossEntropy",
    "JointTransport",
    "MaximumMeanDiscrepancy",
    "NeuronSelectivity",
    "NeuronTransport",
    "NormalizedSquaredError",
    "OptimalTransport",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "RelaxedEarthMover",
    "SimilarityPreserving",
    "SinkhornDivergence",
    "SoftTargets",
    "SolutionFlow",
    "SquaredError",
    "StandardizedTargets",
]
