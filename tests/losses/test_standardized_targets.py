"""`StandardizedTargets` against its formula and limits."""

import numpy as np
import pytest
import reference_baselines
from gradients import assert_central, gradients, normal

from tfkd.losses import SoftTargets, StandardizedTargets

SHAPES = [(5, 4), (16, 10), (1, 100)]


def test_value_by_hand():
    """Two classes become (-1, 1) and (1, -1): p = (1, e^2) / (1 + e^2).

    At T = 1 the divergence is the difference of log-odds, 2, times
    tanh 1 = (e^2 - 1) / (e^2 + 1).
    """
    value = StandardizedTargets(temperature=1.0)([[0.0, 3.0]], [[5.0, 4.0]])
    np.testing.assert_allclose(value, 2 * np.tanh(1.0), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape, temperature):
    teacher, student = normal(shape, shape)
    actual = StandardizedTargets(temperature).call(teacher, student)
    assert actual.shape == shape[:1]
    np.testing.assert_allclose(
        actual,
        reference_baselines.standardized_targets(teacher, student, temperature),
        rtol=1e-10,
    )
    low = [teacher.astype("float32"), student.astype("float32")]
    np.testing.assert_allclose(
        StandardizedTargets(temperature).call(*low),
        reference_baselines.standardized_targets(*low, temperature),
        rtol=1e-5,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_central_differences(shape):
    assert_central(StandardizedTargets().call, *normal(shape, shape))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_knows_neither_scale_nor_origin(scale):
    teacher, student = normal((5, 4), (5, 4))
    np.testing.assert_allclose(
        StandardizedTargets()(teacher, scale * (student + 3.0)),
        StandardizedTargets()(teacher, student),
        rtol=1e-5,
    )


def test_is_soft_targets_of_standard_logits():
    teacher, student = (
        (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
        for z in normal((5, 4), (5, 4))
    )
    np.testing.assert_allclose(
        StandardizedTargets(3.0).call(teacher, student),
        SoftTargets(3.0).call(teacher, student),
        rtol=1e-10,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_logits_are_undecided_without_gradient(dtype):
    """T^2 (log classes - entropy of the teacher), 0 slope."""
    teacher = normal((3, 7), dtype=dtype)[0]
    student = np.full((3, 7), 0.1, dtype)
    np.testing.assert_allclose(
        StandardizedTargets().call(teacher, student),
        StandardizedTargets().call(teacher, 0 * student),
    )
    _, slope = gradients(StandardizedTargets().call, teacher, student)
    np.testing.assert_array_equal(slope, 0.0)


def test_has_a_temperature_of_its_own():
    assert StandardizedTargets().temperature == 2.0
    assert StandardizedTargets.needs_logits
    with pytest.raises(ValueError, match="argument `temperature`. Expected"):
        StandardizedTargets(0.0)
