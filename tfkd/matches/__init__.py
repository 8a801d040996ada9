"""Where two networks are compared, through what, and how much it counts."""

from tfkd.matches.attention import AttentionJacobianMatch
from tfkd.matches.base import BaseMatch
from tfkd.matches.contrastive import ContrastiveMatch
from tfkd.matches.factor import FactorMatch, Paraphraser, ParaphraserMatch
from tfkd.matches.jacobian import (
    InputNoiseMatch,
    JacobianMatch,
    JacobianPenalty,
)
from tfkd.matches.match import Match
from tfkd.matches.variational import VariationalMatch
from tfkd.matches.weights import L2, L2SP

__all__ = [
    "L2",
    "L2SP",
    "AttentionJacobianMatch",
    "BaseMatch",
    "ContrastiveMatch",
    "FactorMatch",
    "InputNoiseMatch",
    "JacobianMatch",
    "JacobianPenalty",
    "Match",
    "Paraphraser",
    "ParaphraserMatch",
    "VariationalMatch",
]
