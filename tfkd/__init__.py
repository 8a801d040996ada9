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
    ContrastiveMatch,
    FactorMatch,
    InputNoiseMatch,
    JacobianMatch,
    JacobianPenalty,
    Match,
    ParaphraserMatch,
    VariationalMatch,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionJacobianMatch",
    "ContrastiveMatch",
    "Distiller",
    "FactorMatch",
    "InputNoiseMatch",
    "JacobianMatch",
    "JacobianPenalty",
    "Match",
    "ParaphraserMatch",
    "VariationalMatch",
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
