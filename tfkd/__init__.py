"""Knowledge distillation and transfer for Keras models on TensorFlow."""

from tfkd import (
    analysis,
    artefacts,
    caching,
    callbacks,
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
    L2,
    L2SP,
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
from tfkd.transferer import Transferer

__version__ = "0.1.0"

__all__ = [
    "L2",
    "L2SP",
    "AttentionJacobianMatch",
    "ContrastiveMatch",
    "Distiller",
    "FactorMatch",
    "InputNoiseMatch",
    "JacobianMatch",
    "JacobianPenalty",
    "Match",
    "ParaphraserMatch",
    "Transferer",
    "VariationalMatch",
    "analysis",
    "artefacts",
    "caching",
    "callbacks",
    "data",
    "export",
    "losses",
    "matches",
    "methods",
    "models",
    "transport",
]
