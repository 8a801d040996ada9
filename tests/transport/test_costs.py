"""Costs between points: values, extremes and gradients."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfkd.transport import pairwise_cost

METRICS = ("cosine", "squared_euclidean", "euclidean")


def _points(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def _gradients(x, y, metric, weights=1.0):
    """Gradients of `sum weights * cost` with respect to both sets."""
    x, y = tf.constant(x), tf.constant(y)
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        value = tf.reduce_sum(weights * pairwise_cost(x=x, y=y, metric=metric))
    return tape.gradient(value, [x, y])


def test_cosine_of_right_and_opposite_angles():
    """1 - cos of 0, 90, 180 and 45 degrees: 0, 1, 2, 1 - 1/sqrt 2."""
    cost = pairwise_cost(
        x=[[2.0, 0.0]], y=[[1.0, 0.0], [0.0, 3.0], [-4.0, 0.0], [1.0, 1.0]]
    )
    np.testing.assert_allclose(cost, [[0, 1, 2, 1 - 0.5**0.5]], atol=1e-6)


def test_squared_euclidean_of_a_right_triangle():
    """From (0, 0) to (3, 4): 9 + 16; from (3, 0) to (3, 4): 16."""
    cost = pairwise_cost(
        x=[[0.0, 0.0], [3.0, 0.0]],
        y=[[3.0, 4.0]],
        metric="squared_euclidean",
    )
    np.testing.assert_allclose(cost, [[25.0], [16.0]], rtol=1e-6)


def test_euclidean_of_a_right_triangle():
    cost = pairwise_cost(x=[[0.0, 0.0]], y=[[3.0, 4.0]], metric="euclidean")
    np.testing.assert_allclose(cost, [[5.0]], rtol=1e-6)


def test_cosine_of_a_zero_vector_is_one():
    """n(0) = 0, so 1 - 0 towards every point, itself a zero or not."""
    cost = pairwise_cost(x=[[0.0, 0.0]], y=[[0.0, 0.0], [5.0, 1.0]])
    np.testing.assert_array_equal(cost, [[1.0, 1.0]])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (5, 3, 2), (4, 6, 70)])
def test_agrees_with_the_formula(metric, n, m, d):
    x, y = _points(n, d), _points(m, d, seed=1)
    expected = reference.pairwise_cost(x, y, metric)
    cost = pairwise_cost(x=np.float32(x), y=np.float32(y), metric=metric)
    assert cost.dtype == tf.float32
    np.testing.assert_allclose(cost, expected, rtol=1e-4, atol=1e-5)
    cost = pairwise_cost(x=x, y=y, metric=metric)
    assert cost.dtype == tf.float64
    np.testing.assert_allclose(cost, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_is_computed_in_float32(metric):
    x, y = np.float16(_points(4, 64)), np.float16(_points(5, 64, seed=1))
    cost = pairwise_cost(x=x, y=y, metric=metric)
    expected = reference.pairwise_cost(x, y, metric)
    assert cost.dtype == tf.float32
    np.testing.assert_allclose(cost, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_leading_axes_are_separate_problems(metric):
    x = _points(24, 7).reshape(2, 3, 4, 7)
    y = _points(30, 7, seed=1).reshape(2, 3, 5, 7)
    cost = pairwise_cost(x=x, y=y, metric=metric)
    assert cost.shape == (2, 3, 4, 5)
    for i, j in np.ndindex(2, 3):
        expected = reference.pairwise_cost(x[i, j], y[i, j], metric)
        np.testing.assert_allclose(cost[i, j], expected, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_swapping_the_sets_transposes_the_cost(metric):
    x, y = _points(4, 6), _points(5, 6, seed=1)
    np.testing.assert_allclose(
        pairwise_cost(x=x, y=y, metric=metric),
        tf.transpose(pairwise_cost(x=y, y=x, metric=metric)),
        atol=1e-13,
    )


@pytest.mark.parametrize("metric", METRICS)
def test_equal_points_cost_nothing(metric):
    x = np.float32(_points(8, 300))
    cost = pairwise_cost(x=x, y=x, metric=metric)
    scale = np.max(cost)
    assert np.min(cost) >= 0.0
    np.testing.assert_allclose(np.diag(cost), 0.0, atol=1e-6 * scale)


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1e18, 1e30])
def test_cosine_ignores_length(scale):
    """Also where the square of a length is no float32: below 1e-45."""
    x, y = _points(4, 9), _points(5, 9, seed=1)
    cost = pairwise_cost(x=np.float32(scale * x), y=np.float32(y))
    expected = reference.pairwise_cost(x, y, "cosine")
    np.testing.assert_allclose(cost, expected, atol=1e-6)


def test_vectors_shorter_than_a_trillionth_have_no_direction():
    x = np.float32(1e-20 * _points(4, 9))
    y = np.float32(_points(5, 9))
    np.testing.assert_array_equal(pairwise_cost(x=x, y=y), np.ones((4, 5)))
    np.testing.assert_array_equal(_gradients(x, y, "cosine")[0], 0.0 * x)


def test_many_short_coordinates_make_a_direction():
    """Each is 5e-13, but |v| = sqrt(64) 5e-13 = 4e-12 is above 1e-12."""
    x = np.full([1, 64], 5e-13, "float32")
    np.testing.assert_allclose(
        pairwise_cost(x=x, y=np.ones([1, 64], "float32")), [[0.0]], atol=1e-6
    )


def test_squared_euclidean_survives_a_far_origin():
    """1000 + (0, 1, 2): distances 0, 1, 4, though squares are 1e6."""
    x = np.float32([[1000.0], [1001.0], [1002.0]])
    cost = pairwise_cost(x=x, y=x, metric="squared_euclidean")
    np.testing.assert_allclose(cost, [[0, 1, 4], [1, 0, 1], [4, 1, 0]])


@pytest.mark.parametrize("scale", [1e-8, 1e15])
def test_squared_euclidean_scales_with_the_square(scale):
    x, y = _points(4, 9), _points(5, 9, seed=1)
    cost = pairwise_cost(
        x=np.float32(scale * x),
        y=np.float32(scale * y),
        metric="squared_euclidean",
    )
    expected = reference.pairwise_cost(x, y, "squared_euclidean")
    np.testing.assert_allclose(np.float64(cost) / scale**2, expected, rtol=1e-5)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="Invalid value for argument `metric`"):
        pairwise_cost(x=[[1.0]], y=[[1.0]], metric="manhattan")


def test_widths_that_differ_are_refused():
    with pytest.raises(ValueError, match="same number of coordinates"):
        pairwise_cost(x=[[1.0, 2.0]], y=[[1.0]])


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_agrees_with_central_differences(metric):
    x, y = _points(4, 3), _points(5, 3, seed=1)
    weights = _points(4, 5, seed=2)
    gradients = _gradients(x, y, metric, weights)
    expected = (
        reference.central_difference(
            lambda x: np.sum(weights * reference.pairwise_cost(x, y, metric)), x
        ),
        reference.central_difference(
            lambda y: np.sum(weights * reference.pairwise_cost(x, y, metric)), y
        ),
    )
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("d", [2, 64, 4096])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_euclidean_has_no_gradient_at_equal_points(d, jit_compile):
    """The root's is infinite there; sums in another order hide equality."""
    x = np.float32(np.maximum(_points(64, d), 0) + 1)
    order = np.random.default_rng(1).permutation(64)
    pairs = np.eye(64, dtype="float32")[order]

    @tf.function(jit_compile=jit_compile)
    def evaluate(x, y):
        cost = pairwise_cost(x=x, y=y, metric="euclidean")
        own = tf.reduce_sum(pairs * cost)
        return own, *tf.gradients(own, [x, y])

    for tensor in evaluate(tf.constant(x[order]), tf.constant(x)):
        np.testing.assert_array_equal(tensor, 0.0 * tensor)


@pytest.mark.parametrize("distance", [0.003, 0.1])
def test_euclidean_keeps_small_distances(distance):
    """Those above 0.2 % of the spread, to the rounding of the squares."""
    x = np.float32(_points(6, 20))
    step = np.float32(_points(6, 20, seed=1))
    spread = np.linalg.norm(x, axis=1, keepdims=True)
    step *= distance * spread / np.linalg.norm(step, axis=1, keepdims=True)
    cost = pairwise_cost(x=x, y=x + step, metric="euclidean")
    np.testing.assert_allclose(
        np.diag(cost), distance * spread[:, 0], rtol=2e-6 / distance**2
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_euclidean_scales(scale):
    """Though the squares of these are no float32."""
    x, y = _points(4, 9), _points(5, 9, seed=1)
    cost = pairwise_cost(
        x=np.float32(scale * x), y=np.float32(scale * y), metric="euclidean"
    )
    expected = reference.pairwise_cost(x, y, "euclidean")
    np.testing.assert_allclose(np.float64(cost) / scale, expected, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_gradient_of_the_cost_vanishes_at_equal_points(metric):
    """All costs have their minimum, 0, there; rounding stays below 1e-5."""
    x = np.float32(_points(6, 20))
    gradients = _gradients(x, x, metric, np.eye(6, dtype="float32"))
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0.0 * x, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1e15])
def test_gradient_is_finite_at_any_scale(metric, scale):
    x, y = np.float32(scale * _points(4, 9)), np.float32(_points(5, 9, seed=1))
    for gradient in _gradients(x, y, metric):
        assert np.all(np.isfinite(gradient))
