"""`ProbabilisticTransfer` against its formula, weights and limits."""

import numpy as np
import pytest
import reference_baselines
from gradients import assert_central, gradients, normal

from tfkd.losses import ProbabilisticTransfer

SHAPES = [
    ((5, 4), (5, 4)),
    ((7, 30), (7, 3)),
    ((4, 6, 6, 2), (4, 3, 3, 5)),
    ((64, 64), (64, 32)),
]


def test_value_by_hand():
    """P = (1, 1) / 2 in both rows, Q = (1, 0) and (0, 1).

    1/4 of twice 1/2 log((1/2 + e) / (1 + e)) + 1/2 log((1/2 + e) / e), with
    e = 1e-7.
    """
    value = ProbabilisticTransfer()([[1.0], [2.0]], [[1.0], [-3.0]])
    half, one, none = 0.5 + 1e-7, 1 + 1e-7, 1e-7
    expected = (np.log(half / one) + np.log(half / none)) / 4
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(shapes, dtype):
    teacher, student = normal(*shapes, dtype=dtype)
    expected = reference_baselines.probabilistic_transfer(teacher, student)
    actual = ProbabilisticTransfer().call(teacher, student)
    assert actual.shape == (shapes[0][0],)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES[:3])
def test_gradients_equal_central_differences(shapes):
    assert_central(ProbabilisticTransfer().call, *normal(*shapes))


def test_is_accurate_near_the_teacher():
    """At 1e-3 from it the terms of p log(p / q) cancel to 1e-3 of them."""
    teacher, noise = normal((16, 8), (16, 8), dtype="float32")
    student = teacher + np.float32(1e-3) * noise
    np.testing.assert_allclose(
        ProbabilisticTransfer()(teacher, student),
        reference_baselines.probabilistic_transfer(teacher, student),
        rtol=5e-3,
    )


def test_batch_of_one_has_nothing_to_compare():
    teacher, student = normal((1, 4), (1, 4))
    assert ProbabilisticTransfer()(teacher, student) == 0.0
    _, slope = gradients(ProbabilisticTransfer().call, teacher, student)
    np.testing.assert_array_equal(slope, 0.0)


def test_example_without_features_is_a_neighbour_to_all():
    """Its cosine is 0 with all, itself too."""
    teacher, student = normal((4, 3), (4, 3))
    student[2] = 0.0
    np.testing.assert_allclose(
        ProbabilisticTransfer().call(teacher, student),
        reference_baselines.probabilistic_transfer(teacher, student),
        rtol=1e-10,
    )
    _, slope = gradients(ProbabilisticTransfer().call, teacher, student)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[2], 0.0)


def test_nan_comes_out():
    teacher, student = normal((4, 3), (4, 3))
    student[2, 1] = np.nan
    assert np.isnan(ProbabilisticTransfer()(teacher, student))
