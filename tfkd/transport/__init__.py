"""Optimal transport on plain tensors: costs, solvers, certificates."""

from tfkd.transport.costs import pairwise_cost
from tfkd.transport.gaussian import (
    gaussian_squared_wasserstein,
    gaussian_squared_wasserstein_of_moments,
)
from tfkd.transport.gaussian_kl import gaussian_kl, gaussian_kl_of_moments
from tfkd.transport.ipot import ipot, mean_reduced_cost
from tfkd.transport.plan import Transport
from tfkd.transport.relaxed import relaxed_emd

__all__ = [
    "Transport",
    "gaussian_kl",
    "gaussian_kl_of_moments",
    "gaussian_squared_wasserstein",
    "gaussian_squared_wasserstein_of_moments",
    "ipot",
    "mean_reduced_cost",
    "pairwise_cost",
    "relaxed_emd",
]
