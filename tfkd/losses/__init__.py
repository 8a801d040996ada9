"""How two tensors are compared: plain Keras losses.

`y_true` is the teacher's signal, `y_pred` the student's.
"""

from tfkd.losses.distribution import DistributionLoss
from tfkd.losses.optimal_transport import OptimalTransport
from tfkd.losses.relaxed_earth_mover import RelaxedEarthMover
from tfkd.losses.soft_targets import SoftTargets
from tfkd.losses.squared_error import NormalizedSquaredError, SquaredError

__all__ = [
    "DistributionLoss",
    "NormalizedSquaredError",
    "OptimalTransport",
    "RelaxedEarthMover",
    "SoftTargets",
    "SquaredError",
]
