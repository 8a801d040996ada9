"""`NeuronSelectivity` against its formula, at equal and unequal sizes."""

import numpy as np
import pytest
import reference_baselines
from gradients import assert_central, gradients, normal

from tfkd.losses import NeuronSelectivity

SHAPES = [
    ((3, 4, 4, 3), (3, 4, 4, 5)),  # fewer channels than positions
    ((3, 2, 2, 6), (3, 2, 2, 5)),  # fewer positions than channels
    ((2, 8, 6, 4), (2, 4, 2, 3)),  # a larger teacher
    ((2, 4, 2, 9), (2, 8, 6, 12)),  # a larger student
    ((2, 3, 1, 2), (2, 3, 1, 4)),  # between the two numbers of channels
]


def test_value_by_hand():
    """Channel (1, 0) against (0, 1): 1 + 1 - 0; against (1, 1): 1 + 1 - 1."""
    teacher = np.float64([[[[1], [0]]]] * 2)
    student = np.float64([[[[0], [3]]], [[[2], [2]]]])
    values = NeuronSelectivity().call(teacher, student)
    np.testing.assert_allclose(values, [2.0, 1.0])


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(shapes, dtype):
    teacher, student = normal(*shapes, dtype=dtype)
    expected = reference_baselines.neuron_selectivity(teacher, student)
    actual = NeuronSelectivity().call(teacher, student)
    assert actual.shape == shapes[0][:1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
def test_gradients_equal_central_differences(shapes):
    assert_central(NeuronSelectivity().call, *normal(*shapes))


def test_knows_neither_scale_nor_order_of_channels():
    teacher, student = normal((3, 4, 4, 3), (3, 4, 4, 5))
    scales = np.array([1e-6, 1.0, 3.0, -2.0, 1e6])
    np.testing.assert_allclose(
        NeuronSelectivity().call(teacher, scales * student[..., ::-1]),
        NeuronSelectivity().call(teacher, student),
        rtol=1e-9,
    )


@pytest.mark.parametrize("size", [2, 4])
def test_dead_channels_have_no_direction(size):
    """As relus leave them; the others count as before."""
    teacher, student = normal((3, size, size, 5), (3, size, size, 6))
    student[..., 2] = 0.0
    teacher[0] = 0.0
    np.testing.assert_allclose(
        NeuronSelectivity().call(teacher, student),
        reference_baselines.neuron_selectivity(teacher, student),
        rtol=1e-10,
    )
    for slope in gradients(NeuronSelectivity().call, teacher, student):
        assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[..., 2], 0.0)


def test_nan_comes_out():
    teacher, student = normal((1, 4, 4, 3), (1, 4, 4, 3))
    student[0, 1, 1, 1] = np.nan
    assert np.isnan(NeuronSelectivity()(teacher, student))


def test_signals_without_positions_are_refused():
    with pytest.raises(ValueError, match=r"needs maps \[batch, height"):
        NeuronSelectivity()(np.ones([2, 3]), np.ones([2, 3]))
