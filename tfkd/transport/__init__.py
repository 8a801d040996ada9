"""Optimal transport on plain tensors: costs, solvers, certificates."""

from tfkd.transport.costs import pairwise_cost
from tfkd.transport.ipot import ipot, mean_reduced_cost
from tfkd.transport.plan import Transport
from tfkd.transport.relaxed import relaxed_emd

__all__ = [
    "Transport",
    "ipot",
    "mean_reduced_cost",
    "pairwise_cost",
    "relaxed_emd",
]
