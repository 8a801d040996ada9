"""`SoftTargets`: value, gradient, forbidden classes, masks."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfkd.losses import SoftTargets


def logits(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(dtype)


def gradients(loss, y_true, y_pred):
    y_true, y_pred = tf.constant(y_true), tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch([y_true, y_pred])
        value = tf.reduce_sum(loss.call(y_true, y_pred))
    return tape.gradient(value, [y_true, y_pred])


def test_value_of_even_odds():
    """T = 2: p = (1, 1) / 2 and q = (1, e) / (1 + e).

    KL = -1/2 log(4 q_0 q_1) = log((1 + e) / 2) - 1/2 = 0.120115, times 4.
    """
    value = SoftTargets(temperature=2.0)([[0.0, 0.0]], [[0.0, 2.0]])
    np.testing.assert_allclose(
        value, 4 * (np.log((1 + np.e) / 2) - 0.5), rtol=1e-5
    )


def test_certain_teacher_gives_the_cross_entropy():
    """P = (1, 0): KL = -log q_0 = log(1 + e^3)."""
    value = SoftTargets(temperature=1.0)([[1e4, 0.0]], [[0.0, 3.0]])
    np.testing.assert_allclose(value, np.log1p(np.exp(3.0)), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(6, 10), (4, 3, 10), (2, 3, 3, 5)])
def test_equals_the_formula(shape, temperature):
    y_true, y_pred = 3 * logits(*shape)
    values = SoftTargets(temperature).call(y_true, y_pred)
    assert values.shape == shape[:-1]
    np.testing.assert_allclose(
        values,
        reference.soft_targets(y_true, y_pred, temperature),
        rtol=1e-4,
    )


def test_is_accurate_near_the_teacher():
    """At 1e-3 from it, the terms of p log(p / q) cancel to 1e-7 of them."""
    y_true, noise = logits(6, 10)
    y_pred = y_true + np.float32(1e-3) * noise
    np.testing.assert_allclose(
        SoftTargets(1.0).call(y_true, y_pred),
        reference.soft_targets(y_true, y_pred, 1.0),
        rtol=1e-2,
    )


def test_tends_to_the_squared_error_of_centred_logits():
    """T^2 KL -> sum (d - mean d)^2 / (2 classes) as T grows."""
    y_true, y_pred = logits(6, 10, dtype="float64")
    difference = y_true - y_pred
    centred = difference - difference.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        SoftTargets(1e4).call(y_true, y_pred),
        np.sum(centred**2, axis=1) / 20,
        rtol=1e-3,
    )


def test_knows_no_constant_in_the_logits():
    y_true, y_pred = logits(6, 10)
    np.testing.assert_allclose(
        SoftTargets()(y_true + 5, y_pred - 3),
        SoftTargets()(y_true, y_pred),
        rtol=1e-4,
    )


def test_is_never_negative():
    y_true, noise = logits(256, 10)
    values = SoftTargets().call(y_true, y_true + np.float32(1e-4) * noise)
    assert np.min(values) >= 0


def test_extreme_logits_stay_finite():
    y_true, y_pred = 1e4 * logits(6, 10)
    for tensor in (
        SoftTargets(1.0).call(y_true, y_pred),
        *gradients(SoftTargets(1.0), y_true, y_pred),
    ):
        assert np.all(np.isfinite(tensor))


def test_gradient_is_the_difference_of_probabilities():
    """T^2 (q - p) / T, which is 1/2 - 1 and 1/2 - 0 here, times T = 2."""
    _, by_student = gradients(
        SoftTargets(2.0), np.float32([[1e4, 0]]), np.float32([[0, 0]])
    )
    np.testing.assert_allclose(by_student, [[-1.0, 1.0]], rtol=1e-6)


def test_gradients_equal_central_differences():
    loss = SoftTargets(3.0)
    y_true, y_pred = logits(2, 3, 4, dtype="float64")
    by_teacher, by_student = gradients(loss, y_true, y_pred)
    np.testing.assert_allclose(
        by_teacher,
        reference.central_difference(
            lambda y: tf.reduce_sum(loss.call(y, y_pred)), y_true
        ),
        rtol=1e-5,
        atol=1e-9,
    )
    np.testing.assert_allclose(
        by_student,
        reference.central_difference(
            lambda y: tf.reduce_sum(loss.call(y_true, y)), y_pred
        ),
        rtol=1e-5,
        atol=1e-9,
    )


def test_class_that_both_exclude_might_as_well_not_be_there():
    y_true, y_pred = logits(6, 10)
    expected = SoftTargets().call(y_true[:, 1:], y_pred[:, 1:])
    _, slope = gradients(SoftTargets(), y_true[:, 1:], y_pred[:, 1:])
    y_true[:, 0] = y_pred[:, 0] = -np.inf
    np.testing.assert_allclose(
        SoftTargets().call(y_true, y_pred), expected, rtol=1e-5
    )
    by_teacher, by_student = gradients(SoftTargets(), y_true, y_pred)
    assert np.all(np.isfinite(by_teacher))
    np.testing.assert_array_equal(by_student[:, 0], 0.0)
    np.testing.assert_allclose(by_student[:, 1:], slope, atol=1e-6)


def test_class_that_the_teacher_excludes_is_pushed_down():
    """P = (1/2, 1/2, 0), q = 1/3 each: KL = log(3 / 2), slope q - p."""
    y_true, y_pred = np.float32([[0, 0, -np.inf]]), np.zeros((1, 3), "f4")
    value = SoftTargets(1.0)(y_true, y_pred)
    np.testing.assert_allclose(value, np.log(1.5), rtol=1e-6)
    _, by_student = gradients(SoftTargets(1.0), y_true, y_pred)
    np.testing.assert_allclose(by_student, [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-5)


@pytest.mark.parametrize("teacher", [-1e9, -np.inf])
@pytest.mark.parametrize("student", [-1e9, -np.inf])
def test_either_way_to_exclude_a_class_will_do(teacher, student):
    """P = (1/2, 1/2, 0), q = (1, 3, 0) / 4: KL = log(4 / 3) / 2."""
    y_true = np.float32([[0, 0, teacher]])
    y_pred = np.float32([[0, np.log(3), student]])
    value = SoftTargets(1.0)(y_true, y_pred)
    np.testing.assert_allclose(value, np.log(4 / 3) / 2, rtol=1e-6)
    by_teacher, by_student = gradients(SoftTargets(1.0), y_true, y_pred)
    assert np.all(np.isfinite(by_teacher))
    np.testing.assert_allclose(by_student, [[-0.25, 0.25, 0.0]], rtol=1e-6)


def test_masked_positions_are_left_out():
    """Keras takes the mean over the positions that count."""
    y_true, y_pred = logits(2, 5, 10)
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
    masked = tf.constant(y_pred)
    masked._keras_mask = tf.constant(mask)
    values = reference.soft_targets(y_true, y_pred, 4.0)
    np.testing.assert_allclose(
        SoftTargets()(y_true, masked), values[mask].mean(), rtol=1e-4
    )


def test_asks_for_logits():
    assert SoftTargets.needs_logits


@pytest.mark.parametrize(
    "temperature", [0, -1.0, np.nan, np.inf, True, None, "4"]
)
def test_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(
        ValueError,
        match="Invalid value for argument `temperature`. Expected a finite",
    ):
        SoftTargets(temperature)


def test_configuration_keeps_the_temperature():
    """As a Python number, also if it came as another."""
    loss = SoftTargets(np.float32(2.5))
    assert SoftTargets.from_config(loss.get_config()).temperature == 2.5
    assert type(loss.get_config()["temperature"]) is float
