"""Knowledge distillation and transfer for Keras models on TensorFlow."""

from tfkd import (
    analysis,
    caching,
    data,
    export,
    losses,
    matches,
    methods,
    models,
    transport,
)
from tfkd.distiller import Distiller
from tfkd.matches import (
    AttentionJacobianMatch,
    InputNoiseMatch,
    JacobianMatch,
    JacobianPenalty,
    Match,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionJacobianMatch",
    "Distiller",
    "InputNoiseMatch",
    "JacobianMatch",
    "JacobianPenalty",
    "Match",
    "analysis",
    "caching",
    "data",
    "export",
    "losses",
    "matches",
    "methods",
    "models",
    "transport",
]
