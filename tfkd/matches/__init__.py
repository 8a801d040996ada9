"""Where two networks are compared, through what, and how much it counts."""

from tfkd.matches.base import BaseMatch
from tfkd.matches.jacobian import JacobianMatch
from tfkd.matches.match import Match

__all__ = ["BaseMatch", "JacobianMatch", "Match"]
