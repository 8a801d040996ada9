"""`CorrelationTargets` against its formula, weights and limits."""

import numpy as np
import pytest
import reference_baselines
from gradients import assert_central, gradients, normal

from tfkd.losses import CorrelationTargets

SHAPES = [(5, 4), (16, 10), (3, 2, 2, 5), (64, 100)]


def _logits(*probabilities):
    return np.log(np.float64(probabilities))


def test_value_by_hand():
    """P = (3, 1, 0) / 4 twice over, q = (1, 3, 0) / 4 in the second row.

    Around 1/3 they are (5, -1, -4) / 12 and (-1, 5, -4) / 12: correlation
    (-5 - 5 + 16) / 42 = 1/7 in the second row, 1 in the first. The teacher's
    classes are constant over the batch: 0 in each.
    """
    tiny = 1e-30
    teacher = _logits([3, 1, tiny], [3, 1, tiny])
    student = _logits([3, 1, tiny], [1, 3, tiny])
    value = CorrelationTargets(temperature=1.0)(teacher, student)
    np.testing.assert_allclose(value, 2 - (1 + 1 / 7) / 2, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(shape, dtype, temperature):
    teacher, student = normal(shape, shape, dtype=dtype)
    expected = reference_baselines.correlation_targets(
        teacher, student, temperature
    )
    actual = CorrelationTargets(temperature).call(teacher, student)
    assert actual.shape == shape[:1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradients_equal_central_differences(shape):
    assert_central(CorrelationTargets().call, *normal(shape, shape))


def test_knows_no_confidence():
    """Between two classes, any student of the teacher's order will do.

    Its p - 1/2 is then a multiple of the teacher's, in rows and columns.
    """
    teacher = np.float64([[1, 0], [0, 1], [1, 0]])
    value = CorrelationTargets(1.0).call(teacher, 3 * teacher)
    np.testing.assert_allclose(value, 0.0, atol=1e-12)


def test_weights_are_masses_of_correlations():
    """An example of weight two is the example twice."""
    teacher, student = normal((4, 5), (4, 5))
    twice = [0, 0, 1, 2, 3]
    expected = reference_baselines.correlation_targets(
        teacher[twice], student[twice], 4.0
    )
    np.testing.assert_allclose(
        CorrelationTargets().call(teacher, student, np.array([2.0, 1, 1, 1])),
        1.25 * expected,
        rtol=1e-10,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_student_is_uncorrelated_without_gradient(dtype):
    """The same logits everywhere, whose mean is not exact: 2 T^2."""
    teacher = normal((7, 10), dtype=dtype)[0]
    student = np.full((7, 10), 0.1, dtype)
    np.testing.assert_allclose(
        CorrelationTargets(2.0).call(teacher, student), 8.0, rtol=1e-6
    )
    for slope in gradients(CorrelationTargets(2.0).call, teacher, student):
        np.testing.assert_array_equal(slope, 0.0)


def test_batch_of_one_has_no_correlation_within_classes():
    teacher, student = normal((1, 5), (1, 5))
    expected = reference_baselines.correlation_targets(teacher, student, 4.0)
    np.testing.assert_allclose(
        CorrelationTargets().call(teacher, student), [expected], rtol=1e-10
    )
    assert expected > 16.0


def test_confident_networks_stay_finite():
    teacher, student = normal((8, 10), (8, 10), dtype="float32")
    for slope in gradients(
        CorrelationTargets().call, 1e4 * teacher, 1e4 * student
    ):
        assert np.all(np.isfinite(slope))


def test_asks_for_logits():
    assert CorrelationTargets.needs_logits
    with pytest.raises(ValueError, match=r"logits \[batch, ..., classes\]"):
        CorrelationTargets()(np.ones(3), np.ones(3))


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, True, "4"])
def test_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ValueError, match="argument `temperature`. Expected"):
        CorrelationTargets(temperature)
