"""`SquaredError` and `NormalizedSquaredError`."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from tfkd.losses import NormalizedSquaredError, SquaredError


def signals(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(dtype)


def gradient(loss, y_true, y_pred):
    y_pred = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = tf.reduce_sum(loss.call(y_true, y_pred))
    return tape.gradient(value, y_pred)


def test_squared_error_is_a_sum():
    """1 + 4 and 0 + 9, with mean 7."""
    y_true, y_pred = [[1.0, 2.0], [0.0, 3.0]], np.zeros((2, 2))
    np.testing.assert_array_equal(
        SquaredError().call(y_true, y_pred), [5.0, 9.0]
    )
    assert SquaredError()(y_true, y_pred) == 7.0


def test_squared_error_of_numbers_is_per_example():
    values = SquaredError().call([1.0, 2.0], [0.0, 5.0])
    np.testing.assert_array_equal(values, [1.0, 9.0])


@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 3, 3, 2)])
def test_squared_error_equals_the_formula(shape):
    y_true, y_pred = signals(*shape)
    values = SquaredError().call(y_true, y_pred)
    assert values.shape == (5,)
    np.testing.assert_allclose(
        values, reference.squared_error(y_true, y_pred), rtol=1e-5
    )


def test_squared_error_is_the_mean_times_the_size():
    y_true, y_pred = signals(5, 12)
    np.testing.assert_allclose(
        SquaredError()(y_true, y_pred),
        12 * keras.losses.MeanSquaredError()(y_true, y_pred),
        rtol=1e-5,
    )


def test_normalized_error_of_equal_orthogonal_and_opposite():
    """|n - n'|^2 = 2 - 2 cos: 0, 2 and 4."""
    values = NormalizedSquaredError().call(
        [[3.0, 0.0]] * 3, [[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]
    )
    np.testing.assert_array_equal(values, [0.0, 2.0, 4.0])


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 3, 2)])
def test_normalized_error_equals_the_formula(shape):
    y_true, y_pred = signals(*shape)
    values = NormalizedSquaredError().call(y_true, y_pred)
    assert values.shape == (5,)
    np.testing.assert_allclose(
        values, reference.normalized_squared_error(y_true, y_pred), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e12, 1e30])
def test_normalized_error_knows_no_lengths(scale):
    y_true, y_pred = signals(5, 12)
    np.testing.assert_allclose(
        NormalizedSquaredError()(y_true, np.float32(scale) * y_pred),
        NormalizedSquaredError()(y_true, y_pred),
        rtol=1e-5,
    )


@pytest.mark.parametrize("length", [0.0, 1e-13])
def test_normalized_error_of_nothing_is_one_without_gradient(length):
    """|n(y_true) - 0|^2 = 1; without a length there is no direction."""
    y_true, y_pred = signals(5, 4)[0], np.float32([[length, 0, 0, 0]] * 5)
    np.testing.assert_allclose(
        NormalizedSquaredError().call(y_true, y_pred), 1.0, rtol=1e-6
    )
    slope = gradient(NormalizedSquaredError(), y_true, y_pred)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("loss_class", [SquaredError, NormalizedSquaredError])
def test_gradient_equals_central_differences(loss_class):
    loss = loss_class()
    y_true, y_pred = signals(3, 2, 2, dtype="float64")
    np.testing.assert_allclose(
        gradient(loss, y_true, y_pred),
        reference.central_difference(
            lambda y: tf.reduce_sum(loss.call(y_true, y)), y_pred
        ),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("loss_class", [SquaredError, NormalizedSquaredError])
def test_second_derivative_equals_central_differences(loss_class):
    """Matching Jacobians differentiates the loss's gradient again."""
    loss = loss_class()
    y_true, y_pred = signals(2, 3, dtype="float64")
    direction = signals(2, 3, seed=1, dtype="float64")[0]

    def slope(y):
        return tf.reduce_sum(direction * gradient(loss, y_true, y))

    variable = tf.constant(y_pred)
    with tf.GradientTape() as outer:
        outer.watch(variable)
        with tf.GradientTape() as inner:
            inner.watch(variable)
            value = tf.reduce_sum(loss.call(y_true, variable))
        value = tf.reduce_sum(direction * inner.gradient(value, variable))
    np.testing.assert_allclose(
        outer.gradient(value, variable),
        reference.central_difference(slope, y_pred),
        rtol=1e-5,
        atol=1e-8,
    )


@pytest.mark.parametrize("loss_class", [SquaredError, NormalizedSquaredError])
def test_does_not_hide_nan(loss_class):
    assert np.isnan(loss_class()([[1.0, 2.0]], [[np.nan, 0.0]]))
