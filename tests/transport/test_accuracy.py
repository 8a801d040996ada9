"""The default solver against exact costs, over sizes, scales and masses."""

import functools
import itertools

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.transport import ipot, mean_reduced_cost

SIZES = (1, 7, 64, 200, 512)
METRICS = ("cosine", "euclidean", "squared_euclidean")


def _points(n, m, d=64):
    rng = np.random.default_rng(n + 1000 * m)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.1


def _cost(x, y, metric):
    """As `reference.pairwise_cost`, by broadcasting: sizes are large."""
    if metric == "cosine":
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        return 1 - x @ y.T
    squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return squared if metric == "squared_euclidean" else np.sqrt(squared)


def _masses(n, equal):
    if equal:
        return np.full(n, 1 / n)
    masses = np.random.default_rng(n).uniform(0.05, 1.0, size=n)
    masses[: n // 5] = 0.0
    return masses / masses.sum()


@functools.cache
def _compiled():
    return tf.function(ipot, jit_compile=True)


@pytest.mark.parametrize(("n", "m"), [*itertools.product(SIZES, SIZES)])
def test_error_and_marginals_over_scales_and_masses(n, m):
    """1e-3 of the exact cost, or 2e-3 of the scale where that is more.

    Units of 1e-3 to 1e4 make no difference.
    """
    x, y = _points(n, m)
    cases = zip(
        METRICS * 2,
        (1e-3, 1.0, 1e4, 1e4, 1e-3, 30.0),
        [True] * 3 + [False] * 3,
        strict=True,
    )
    for metric, unit, equal in cases:
        cost = unit * _cost(x, y, metric)
        a, b = _masses(n, equal), _masses(m, equal)
        exact = ot.emd2(a, b, cost, numItermax=10**6)
        transport = _compiled()(
            tf.constant(cost, tf.float32),
            a=tf.constant(a, tf.float32),
            b=tf.constant(b, tf.float32),
        )
        error = float(transport.cost) - exact
        slack = 2e-6 * exact
        scale = mean_reduced_cost(np.float64(cost), a=a, b=b).numpy()
        assert -slack <= error <= max(1e-3 * exact, 2e-3 * scale) + slack
        assert error <= 1.2 * float(transport.gap) + slack
        plan = np.float64(transport.plan)
        np.testing.assert_allclose(plan.sum(1), a, atol=1e-6)
        np.testing.assert_allclose(plan.sum(0), b, atol=1e-6)


def _hard(family, n, seed):
    """Points in the plane, or tight clusters that both sides share."""
    rng = np.random.default_rng(seed)
    if family == "plane":
        return rng.normal(size=(2, n, 2))
    if family == "heavy tails":
        return rng.standard_t(1, size=(2, n, 3))
    centres = rng.normal(size=(10, 64))[rng.integers(0, 10, n)]
    return centres + 0.05 * rng.normal(size=(2, n, 64))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", ["plane", "clusters", "heavy tails"])
def test_gap_bounds_the_error_of_hard_problems(family, metric, n, seed):
    """`tolerance` may not be met; then the gap, which is true, says so."""
    x, y = _hard(family, n, seed)
    cost = np.float32(reference.pairwise_cost(x, y, metric))
    exact = ot.emd2([], [], np.float64(cost), numItermax=10**6)
    rounding = 1e-6 * cost.mean()
    plain, sharp = ipot(cost), ipot(cost, tolerance=1e-3)
    for transport in (plain, sharp):
        error = float(transport.cost) - exact
        assert -rounding <= error <= float(transport.gap) + rounding
        assert float(transport.marginal_error) <= 1e-6
    # Where it is not met, in the plane or between outliers, it comes near.
    assert float(sharp.gap) <= 0.05 * float(sharp.cost)
    assert float(sharp.gap) <= float(plain.gap) + rounding


def test_tolerance_helps_where_the_default_is_blurred():
    """Clusters of 0.05: 15 percent off by default, a thousandth here."""
    x, y = _hard("clusters", 64, 0)
    cost = np.float32(reference.pairwise_cost(x, y, "squared_euclidean"))
    exact = ot.emd2([], [], np.float64(cost))
    assert float(ipot(cost).cost) > 1.1 * exact
    sharp = ipot(cost, tolerance=1e-3)
    assert float(sharp.gap) <= 1e-3 * float(sharp.cost)
    np.testing.assert_allclose(sharp.cost, exact, rtol=1e-3)
