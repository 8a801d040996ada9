"""`RelationalDistance` and `RelationalAngle` against their formulas."""

import numpy as np
import pytest
import reference_baselines
from gradients import assert_central, gradients, normal

from tfkd.losses import RelationalAngle, RelationalDistance

ORACLES = {
    RelationalDistance: reference_baselines.relational_distance,
    RelationalAngle: reference_baselines.relational_angle,
}
SHAPES = [
    ((5, 4), (5, 4)),
    ((7, 30), (7, 3)),
    ((4, 6, 6, 2), (4, 3, 3, 5)),
    ((2, 3), (2, 3)),
]


@pytest.fixture(params=ORACLES, ids=lambda cls: cls.__name__)
def loss_class(request):
    return request.param


def test_distances_by_hand():
    """Over their means: 3/4, 3/2, 3/4 against 0, 1, 1.

    Differences 3/4, 1/2 and -1/4, each twice among nine pairs.
    """
    value = RelationalDistance()([[0.0], [1.0], [2.0]], [[0.0], [0.0], [5.0]])
    np.testing.assert_allclose(value, (9 + 4 + 1) / 16 / 9, rtol=1e-6)


def test_far_distances_count_linearly():
    """Four pairs are 27/16 of the mean in the teacher, 0 in the student.

    Teacher's pairs at positive distances: four at 9, four at 1, one at 8,
    with mean 48/9. Student's: five at 1.
    """
    teacher = np.float64([[0], [0], [0], [0], [9], [1]])
    student = np.float64([[0], [0], [0], [0], [0], [1]])
    value = RelationalDistance().call(teacher, student)
    unit = 9 / 48
    across, one, other = 9 * unit, unit - 1, 8 * unit - 1
    total = 4 * (across - 0.5) + 4 * one**2 / 2 + other**2 / 2
    np.testing.assert_allclose(value, 2 * total / 36, rtol=1e-12)


def test_angles_by_hand():
    """A right angle at the middle against a straight one.

    Cosines at the middle: 0 against -1, twice; at the ends: 1/sqrt 2 against
    1, twice each. Those of a direction with itself are 1 on both sides.
    """
    value = RelationalAngle()(
        [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], [[1.0], [0.0], [-1.0]]
    )
    ends = (1 - np.sqrt(0.5)) ** 2
    np.testing.assert_allclose(value, (2 + 4 * ends) / 2 / 27, rtol=1e-6)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(loss_class, shapes, dtype):
    teacher, student = normal(*shapes, dtype=dtype)
    expected = ORACLES[loss_class](teacher, student)
    actual = loss_class().call(teacher, student)
    assert actual.shape == (shapes[0][0],)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-13)


@pytest.mark.parametrize("shapes", SHAPES[:3])
def test_gradients_equal_central_differences(loss_class, shapes):
    assert_central(loss_class().call, *normal(*shapes))


def test_far_from_the_origin_nothing_is_lost(loss_class):
    """Only differences count, also where they are 1e-4 of the points."""
    teacher, student = normal((6, 4), (6, 4), dtype="float32")
    student += np.float32(1e4)
    np.testing.assert_allclose(
        loss_class()(teacher, student),
        ORACLES[loss_class](teacher, student),
        rtol=1e-5,
    )


def test_near_neighbours_are_seen(loss_class):
    """Two examples a thousand times nearer than the others."""
    teacher, student = normal((6, 4), (6, 4), dtype="float32")
    student[1] = student[0] + np.float32(1e-3) * student[1]
    np.testing.assert_allclose(
        loss_class()(teacher, student),
        ORACLES[loss_class](teacher, student),
        rtol=1e-4,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_examples_have_no_direction(loss_class, dtype):
    teacher, student = normal((6, 40), (6, 40), dtype=dtype)
    student[3] = student[1] = student[5]
    teacher[2] = teacher[4]
    np.testing.assert_allclose(
        loss_class().call(teacher, student),
        ORACLES[loss_class](teacher, student),
        rtol=1e-5,
    )
    for slope in gradients(loss_class().call, teacher, student):
        assert np.all(np.isfinite(slope))
        assert np.max(np.abs(slope)) < 10


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_batch_of_equal_examples_is_finite(loss_class, value):
    teacher, student = normal((6, 7), (6, 7), dtype="float32")
    student[:] = np.float32(value) * np.arange(7, dtype="float32")
    _, slope = gradients(loss_class().call, teacher, student)
    np.testing.assert_array_equal(slope, 0.0)
    assert np.isfinite(loss_class()(teacher, student))


def test_batch_of_one_has_nothing_to_compare(loss_class):
    teacher, student = normal((1, 4), (1, 4))
    assert loss_class()(teacher, student) == 0.0
    _, slope = gradients(loss_class().call, teacher, student)
    np.testing.assert_array_equal(slope, 0.0)


def test_nan_comes_out(loss_class):
    teacher, student = normal((4, 3), (4, 3))
    student[2, 1] = np.nan
    assert np.isnan(loss_class()(teacher, student))
