"""The relaxed earth mover's distance: values, bound and masses."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfkd.transport import relaxed_emd


def _cost(n, m, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, m))


def _masses(n, seed=0, zeros=0):
    masses = np.random.default_rng(seed).uniform(0.1, 1.0, size=n)
    masses[:zeros] = 0.0
    return masses / masses.sum()


def test_larger_of_both_sides():
    """Rows (0 + 3) / 2 = 1.5; columns (0 + 3 + 5) / 3 = 8/3."""
    cost = [[0.0, 4.0, 5.0], [7.0, 3.0, 6.0]]
    np.testing.assert_allclose(relaxed_emd(cost), 8 / 3, rtol=1e-6)
    np.testing.assert_allclose(
        relaxed_emd(np.transpose(cost)), 8 / 3, rtol=1e-6
    )


def test_masses_weigh_the_points():
    """Rows 0.75 * 1 + 0.25 * 2 = 1.25; columns 0.5 * 1 + 0.5 * 2 = 1.5."""
    cost = [[1.0, 2.0], [5.0, 2.0]]
    value = relaxed_emd(cost, a=[0.75, 0.25], b=[0.5, 0.5])
    np.testing.assert_allclose(value, 1.5, rtol=1e-6)


def test_points_without_mass_are_nobodys_nearest():
    """Without column 0 rows pay 4 and 3, column 1 its nearest: 3."""
    value = relaxed_emd([[0.0, 4.0], [1.0, 3.0]], b=[0.0, 1.0])
    assert float(value) == 3.5


def test_is_zero_without_mass():
    cost = np.float32(_cost(3, 2))
    assert float(relaxed_emd(cost, a=np.zeros(3), b=np.zeros(2))) == 0.0
    assert float(relaxed_emd(cost, a=np.zeros(3))) == 0.0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (3, 7), (9, 2)])
@pytest.mark.parametrize("zeros", [0, 1])
def test_agrees_with_the_formula(n, m, zeros):
    cost = _cost(n, m)
    a = _masses(n, seed=1, zeros=min(zeros, n - 1))
    b = _masses(m, seed=2, zeros=min(zeros, m - 1))
    np.testing.assert_allclose(
        relaxed_emd(cost, a=a, b=b),
        reference.relaxed_emd(cost, a, b),
        rtol=1e-12,
    )
    uniform = np.full(n, 1 / n), np.full(m, 1 / m)
    np.testing.assert_allclose(
        relaxed_emd(np.float32(cost)),
        reference.relaxed_emd(cost, *uniform),
        rtol=1e-6,
    )


@pytest.mark.parametrize("seed", range(5))
def test_is_below_exact_transport(seed):
    cost = _cost(6, 6, seed)
    exact = reference.exact_transport_cost(cost)
    value = float(relaxed_emd(cost))
    assert 0.0 < value <= exact + 1e-12


def test_is_exact_where_nearest_points_are_distinct():
    """The nearest are one permutation then, and no plan is cheaper."""
    cost = 1.0 + _cost(5, 5)
    permutation = [3, 0, 4, 1, 2]
    cost[range(5), permutation] = 0.1 * _cost(5, 1)[:, 0]
    np.testing.assert_allclose(
        relaxed_emd(cost), reference.exact_transport_cost(cost), rtol=1e-12
    )


def test_leading_axes_are_separate_problems():
    costs = np.stack([_cost(4, 3, seed) for seed in range(6)])
    values = relaxed_emd(costs.reshape(2, 3, 4, 3))
    assert values.shape == (2, 3)
    expected = [float(relaxed_emd(cost)) for cost in costs]
    np.testing.assert_allclose(tf.reshape(values, [-1]), expected)


@pytest.mark.parametrize("masses", [{"a": [1.0]}, {"b": [0.5, 0.25, 0.25]}])
def test_masses_of_another_number_of_points_are_refused(masses):
    with pytest.raises(ValueError, match="Expected one mass for each"):
        relaxed_emd([[0.0, 1.0], [1.0, 0.0]], **masses)


def test_gradient_agrees_with_central_differences():
    cost, a, b = _cost(4, 3), _masses(4, seed=1, zeros=1), _masses(3, seed=2)
    variable = tf.constant(cost)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = relaxed_emd(variable, a=a, b=b)
    expected = reference.central_difference(
        lambda c: reference.relaxed_emd(c, a, b), cost
    )
    assert np.count_nonzero(expected) in (3, 4)
    np.testing.assert_allclose(tape.gradient(value, variable), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nan_is_not_hidden(jit_compile):
    """Not by XLA's minimum, which passes it over."""
    solve = tf.function(relaxed_emd, jit_compile=jit_compile)
    cost = np.random.default_rng(0).uniform(size=(2, 3, 4))
    cost[1, 2, 0] = np.nan
    np.testing.assert_array_equal(np.isnan(solve(cost)), [False, True])
