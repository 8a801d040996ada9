"""`SolutionFlow` against its formula, at equal and unequal sizes."""

import numpy as np
import pytest
import reference_baselines
import tensorflow as tf
from gradients import assert_central, normal

from tfkd.losses import SolutionFlow

# Shapes of the teacher's and the student's maps.
CASES = {
    "equal sizes": ([(3, 4, 4, 2), (3, 4, 4, 3)],) * 2,
    "shrinking maps": ([(2, 8, 4, 2), (2, 4, 4, 3), (2, 2, 1, 4)],) * 2,
    "growing maps": ([(2, 2, 2, 2), (2, 4, 4, 3)],) * 2,
    "a larger teacher": (
        [(2, 8, 8, 2), (2, 4, 4, 3)],
        [(2, 4, 4, 2), (2, 2, 2, 3)],
    ),
}


def _maps(case, dtype="float64"):
    teacher, student = CASES[case]
    maps = normal(*teacher, *student, dtype=dtype)
    return maps[: len(teacher)], maps[len(teacher) :]


def test_value_by_hand():
    """Products (3 + 8) / 2 against 1 / 2, of one channel each: 5^2."""
    teacher = [[[[[1.0], [2.0]]]], [[[[3.0], [4.0]]]]]
    student = [[[[[1.0], [1.0]]]], [[[[1.0], [0.0]]]]]
    assert SolutionFlow()(teacher, student) == 25.0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_formula(case, dtype):
    teacher, student = _maps(case, dtype)
    expected = reference_baselines.solution_flow(teacher, student)
    actual = SolutionFlow().call(teacher, student)
    assert actual.shape == (len(teacher[0]),)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_central_differences(case):
    teacher, student = _maps(case)
    split = len(teacher)

    def call(*maps):
        return SolutionFlow().call(list(maps[:split]), list(maps[split:]))

    assert_central(call, *teacher, *student)


def test_tuples_serve_as_lists():
    teacher, student = _maps("equal sizes")
    np.testing.assert_array_equal(
        SolutionFlow()(tuple(teacher), tuple(student)),
        SolutionFlow()(teacher, student),
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_serves_in_a_graph_of_unknown_batch(jit_compile):
    teacher, student = _maps("shrinking maps", "float32")
    signature = [
        [tf.TensorSpec([None, *m.shape[1:]], tf.float32) for m in maps]
        for maps in (teacher, student)
    ]
    loss = SolutionFlow()
    compiled = tf.function(
        loss.call, input_signature=signature, jit_compile=jit_compile
    )
    np.testing.assert_allclose(
        compiled(teacher, student), loss.call(teacher, student), rtol=1e-5
    )


def test_equal_maps_of_another_order_of_positions_do_not_matter():
    """Only the mean over positions counts, if it is the same in all maps."""
    teacher, student = _maps("equal sizes")
    turned = [m[:, ::-1] for m in student]
    np.testing.assert_allclose(
        SolutionFlow().call(teacher, turned),
        SolutionFlow().call(teacher, student),
        rtol=1e-10,
    )


def test_says_what_it_needs():
    teacher, student = _maps("equal sizes")
    assert SolutionFlow.joint
    for pair in (
        (teacher[0], student[0]),
        (teacher[:1], student[:1]),
        (teacher, [*student, student[0]]),
    ):
        with pytest.raises(ValueError, match=r"at=\[...\], joint=True"):
            SolutionFlow().call(*pair)
    with pytest.raises(ValueError, match="equal widths; pass a projector"):
        SolutionFlow()(teacher, student[::-1])
    with pytest.raises(ValueError, match=r"need maps \[batch, height"):
        SolutionFlow()([np.ones([2, 3])] * 2, [np.ones([2, 3])] * 2)
