"""`CorrelationCongruence` against its formula, weights and limits."""

import numpy as np
import pytest
import reference_baselines
from gradients import assert_central, gradients, normal

from tfkd.losses import CorrelationCongruence

SHAPES = [(5, 4), (2, 9), (4, 3, 3, 2), (64, 128)]


def test_value_by_hand():
    """Errors (1, 2), (3, 0), (1, 1): (3 + 0 + 3 + 0) / 2."""
    value = CorrelationCongruence()(
        [[1, 2], [3, 0], [1, 1]], [[0, 0], [0, 0], [2, 0]]
    )
    np.testing.assert_allclose(value, 3.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(shape, dtype):
    teacher, student = normal(shape, shape, dtype=dtype)
    expected = reference_baselines.correlation_congruence(teacher, student)
    actual = CorrelationCongruence().call(teacher, student)
    assert actual.shape == shape[:1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradients_equal_central_differences(shape):
    assert_central(CorrelationCongruence().call, *normal(shape, shape))


def test_examples_of_weight_zero_are_skipped():
    """The first and the third of four become neighbours.

    The value is then multiplied by the mean weight, 3/4.
    """
    teacher, student = normal((4, 5), (4, 5))
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    kept = [0, 2, 3]
    expected = reference_baselines.correlation_congruence(
        teacher[kept], student[kept]
    )
    np.testing.assert_allclose(
        CorrelationCongruence().call(teacher, student, sample_weight=weights),
        0.75 * expected,
        rtol=1e-12,
    )


def test_pairs_weigh_the_product_of_their_weights():
    """Errors 1, 2, 3: products 2 and 6 with weights 2 and 6, mean 2."""
    value = CorrelationCongruence()(
        [[1.0], [2.0], [3.0]],
        [[0.0], [0.0], [0.0]],
        sample_weight=np.float32([1, 2, 3]),
    )
    np.testing.assert_allclose(value, 2 * (2 * 2 + 6 * 6) / 8, rtol=1e-6)


def test_a_batch_of_one_has_no_pair():
    teacher, student = normal((1, 4), (1, 4))
    assert CorrelationCongruence()(teacher, student) == 0.0
    _, slope = gradients(CorrelationCongruence().call, teacher, student)
    np.testing.assert_array_equal(slope, 0.0)


def test_an_embedding_that_agrees_adds_nothing():
    teacher, student = normal((3, 4), (3, 4))
    student[1] = teacher[1]
    assert CorrelationCongruence()(teacher, student) == 0.0
    for slope in gradients(CorrelationCongruence().call, teacher, student):
        assert np.all(np.isfinite(slope))
