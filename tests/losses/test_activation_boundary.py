"""`ActivationBoundary` against its formula and limits."""

import numpy as np
import pytest
import reference_baselines
import tensorflow as tf
from gradients import assert_central, gradients, normal

from tfkd.losses import ActivationBoundary

SHAPES = [(5, 4), (3, 4, 4, 2), (2, 1, 7, 3)]


def test_value_by_hand():
    """(-0.5 + 1)^2 + 0 where off, (0.5 - 1)^2 + 0 + (-2 - 1)^2 where on.

    A teacher at 0 is off.
    """
    value = ActivationBoundary().call(
        [[0.0, -5.0, 1.0, 1e-9, 3.0]], [[-0.5, -1.0, 0.5, 1.5, -2.0]]
    )
    np.testing.assert_allclose(value, [0.25 + 0.25 + 9.0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(shape, dtype):
    teacher, student = normal(shape, shape, dtype=dtype)
    expected = reference_baselines.activation_boundary(teacher, student)
    actual = ActivationBoundary().call(teacher, student)
    assert actual.shape == shape[:1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_equals_central_differences(shape):
    teacher, student = normal(shape, shape)
    assert_central(lambda y: ActivationBoundary().call(teacher, y), student)


def test_gradient_vanishes_beyond_the_margin_and_at_it():
    """2 (S + 1) where the teacher is off, 2 (S - 1) where it is on."""
    student = np.float64([[-2.0, -1.0, -0.5, 0.5, 1.0, 2.0]])
    for sign, expected in (
        (-1.0, [0.0, 0.0, 1.0, 3.0, 4.0, 6.0]),
        (1.0, [-6.0, -4.0, -3.0, -1.0, 0.0, 0.0]),
    ):
        teacher = np.full_like(student, sign)
        (slope,) = gradients(
            lambda y, t=teacher: ActivationBoundary().call(t, y), student
        )
        np.testing.assert_allclose(slope, [expected])


def test_only_signs_of_the_teacher_count():
    teacher, student = normal((5, 4), (5, 4))
    np.testing.assert_array_equal(
        ActivationBoundary().call(np.sign(teacher), student),
        ActivationBoundary().call(1e3 * teacher, student),
    )
    teacher = tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        value = ActivationBoundary()(teacher, student)
    assert tape.gradient(value, teacher) is None


def test_nan_comes_out():
    assert np.isnan(ActivationBoundary()([[1.0, 2.0]], [[np.nan, 3.0]]))
