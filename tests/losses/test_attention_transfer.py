"""Attention maps against their definition, at equal and unequal sizes."""

import numpy as np
import pytest
import tensorflow as tf
from gradients import assert_central, normal

from tfkd.losses import AttentionTransfer
from tfkd.losses.attention_transfer import attention_map, same_size


def _unit(maps):
    flat = maps.reshape(len(maps), -1)
    return flat / np.linalg.norm(flat, axis=-1, keepdims=True)


def _features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_maps_by_hand():
    """Channels (1, 2) and (3, 0): 5 and 9."""
    feature = tf.constant([[[[1.0, 2.0], [3.0, 0.0]]]])
    np.testing.assert_array_equal(attention_map(feature), [[[5.0, 9.0]]])


def test_distance_by_hand():
    """Maps (1, 0) and (0.6, 0.8): |(0.4, -0.8)| = sqrt(0.8); mean 0.4."""
    teacher = np.array([[[[1.0], [0.0]]]])
    student = np.sqrt([[[[0.6], [0.8]]]])
    np.testing.assert_allclose(
        AttentionTransfer()(teacher, student), np.sqrt(0.8), rtol=1e-6
    )
    np.testing.assert_allclose(
        AttentionTransfer(squared=True)(teacher, student), 0.4, rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(4, 4), (1, 7), (6, 3)])
def test_agrees_with_the_definition_at_equal_sizes(shape):
    teacher = _features(5, *shape, 6, seed=1)
    student = _features(5, *shape, 3, seed=2)
    difference = _unit((teacher**2).sum(-1)) - _unit((student**2).sum(-1))
    actual = AttentionTransfer().call(teacher, student)
    expected = np.linalg.norm(difference, axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    actual = AttentionTransfer(squared=True).call(teacher, student)
    expected = np.mean(difference**2, axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("teacher_is_larger", [True, False])
def test_larger_maps_are_average_pooled(teacher_is_larger):
    large, small = _features(5, 8, 6, 4, seed=1), _features(5, 4, 2, 3, seed=2)
    pooled = (large**2).sum(-1).reshape(5, 4, 2, 2, 3).mean(axis=(2, 4))
    difference = _unit(pooled) - _unit((small**2).sum(-1))
    pair = (large, small) if teacher_is_larger else (small, large)
    actual = AttentionTransfer().call(*pair)
    expected = np.linalg.norm(difference, axis=-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_other_sizes_are_interpolated_and_constants_stay():
    """5 to 3: linear in the middle, and a constant map stays constant."""
    ramp = np.tile(np.arange(5.0), (1, 5, 1))
    x, y = same_size(tf.constant(ramp), tf.zeros([1, 3, 3], tf.float64))
    np.testing.assert_allclose(
        x[0], np.tile([1 / 3, 2.0, 11 / 3], (3, 1)), rtol=1e-12
    )
    assert y.shape == (1, 3, 3)
    x, _ = same_size(tf.ones([1, 5, 7]), tf.ones([1, 3, 2]))
    np.testing.assert_allclose(x, np.ones([1, 3, 2]), rtol=1e-6)


def test_is_zero_at_the_teacher_without_gradient():
    feature = tf.Variable(_features(2, 3, 3, 4))
    with tf.GradientTape() as tape:
        value = AttentionTransfer()(tf.constant(feature), feature)
    assert float(value) == 0.0
    np.testing.assert_array_equal(tape.gradient(value, feature), 0.0 * feature)


def test_scale_does_not_matter():
    teacher, student = _features(5, 4, 4, 3), _features(5, 4, 4, 3, seed=1)
    np.testing.assert_allclose(
        AttentionTransfer()(teacher, student),
        AttentionTransfer()(100 * teacher, 0.01 * student),
        rtol=1e-5,
    )


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (2, 2), (8, 4), (3, 5)])
def test_gradients_equal_central_differences(squared, size):
    """Of either side, at equal, smaller, larger and interpolated sizes."""
    loss = AttentionTransfer(squared)
    teacher, student = normal((3, 4, 4, 2), (3, *size, 5))
    assert_central(loss.call, teacher, student)


def test_signals_without_positions_are_refused():
    with pytest.raises(ValueError, match=r"need features \[batch, height"):
        AttentionTransfer()(np.ones([2, 3]), np.ones([2, 3]))
