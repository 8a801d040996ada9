"""Knowledge distillation and transfer for Keras models on TensorFlow."""

from tfkd import data, export, losses, matches, methods, models, transport
from tfkd.distiller import Distiller
from tfkd.matches import (
    InputNoiseMatch,
    JacobianMatch,
    JacobianPenalty,
    Match,
)

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "InputNoiseMatch",
    "JacobianMatch",
    "JacobianPenalty",
    "Match",
    "data",
    "export",
    "losses",
    "matches",
    "methods",
    "models",
    "transport",
]
