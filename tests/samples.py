"""Samples that several tests draw."""

import numpy as np


def points(n, m, d, *, seed=0):
    """Two samples in float64, of spectra that decay differently."""
    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(1 + np.arange(d))
    x = rng.normal(size=(n, d)) + 1
    y = rng.normal(size=(m, d)) * scale @ rng.normal(size=(d, d))
    return x, y / np.sqrt(d)


def random_masses(n, *, seed=0):
    """Positive masses `[n]` with sum one."""
    masses = np.random.default_rng(seed).uniform(0.1, 1.0, size=n)
    return masses / masses.sum()
