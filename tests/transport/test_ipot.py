"""The proximal solver: against exact solvers, its bounds, its gradient."""

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.transport import ipot, pairwise_cost

METRICS = ("cosine", "squared_euclidean")


def _uniform(n):
    return np.full(n, 1 / n)


def _masses(n, zeros=0, seed=0):
    masses = np.random.default_rng(seed).uniform(0.1, 1.0, size=n)
    masses[:zeros] = 0.0
    return masses / masses.sum()


def _cost(n, m, d, metric="cosine", seed=0):
    """Cost between Gaussian features, in float64."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    return reference.pairwise_cost(x, y, metric)


def _exact(cost, a=None, b=None):
    a = _uniform(cost.shape[0]) if a is None else a
    b = _uniform(cost.shape[1]) if b is None else b
    return ot.emd2(a, b, cost)


def test_two_points_keep_their_places():
    """The diagonal costs 0, any other plan more: P = I / 2."""
    transport = ipot([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(transport.plan, np.eye(2) / 2, atol=1e-6)
    np.testing.assert_allclose(transport.cost, 0.0, atol=1e-6)


def test_one_heavy_point_is_split():
    """One row, so the plan is b itself: 0.25 * 3 + 0.75 * 1 = 1.5."""
    transport = ipot([[3.0, 1.0]], b=[0.25, 0.75])
    np.testing.assert_allclose(transport.plan, [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(transport.cost, 1.5, rtol=1e-6)
    np.testing.assert_allclose(transport.lower_bound, 1.5, rtol=1e-6)


def test_unequal_masses_move_the_least():
    """0.6 at 0 and 0.4 at 1 against 0.1 and 0.9: 0.5 moves by 1."""
    transport = ipot([[0.0, 1.0], [1.0, 0.0]], a=[0.6, 0.4], b=[0.1, 0.9])
    np.testing.assert_allclose(
        transport.plan, [[0.1, 0.5], [0.0, 0.4]], atol=1e-6
    )
    np.testing.assert_allclose(transport.cost, 0.5, atol=1e-6)


def test_a_constant_cost_is_paid_whatever_the_plan():
    transport = ipot(np.full([3, 4], 7.0, "float32"))
    np.testing.assert_allclose(transport.cost, 7.0, rtol=1e-6)
    np.testing.assert_allclose(transport.lower_bound, 7.0, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_agrees_with_the_best_permutation(n, seed):
    """Noise of 0.1 on permuted points: the best permutation is clear."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 16))
    y = x[rng.permutation(n)] + 0.1 * rng.normal(size=(n, 16))
    cost = reference.pairwise_cost(x, y, "squared_euclidean")
    np.testing.assert_allclose(
        ipot(np.float32(cost)).cost,
        reference.exact_transport_cost(cost),
        rtol=1e-5,
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [64, 256])
def test_default_is_within_a_thousandth_of_the_exact_cost(d, metric, seed):
    cost = _cost(64, 64, d, metric, seed)
    np.testing.assert_allclose(
        ipot(np.float32(cost)).cost, _exact(cost), rtol=1e-3
    )


@pytest.mark.parametrize("zeros", [0, 5])
@pytest.mark.parametrize(("n", "m"), [(20, 33), (33, 20)])
def test_unequal_sizes_and_masses_agree_with_the_exact_cost(n, m, zeros):
    cost = _cost(n, m, 64, "squared_euclidean")
    a, b = _masses(n, zeros), _masses(m, zeros, seed=1)
    transport = ipot(np.float32(cost), a=a, b=b)
    np.testing.assert_allclose(transport.cost, _exact(cost, a, b), rtol=2e-3)
    np.testing.assert_array_equal(transport.plan[:zeros], 0.0)
    np.testing.assert_array_equal(transport.plan[:, :zeros], 0.0)


@pytest.mark.parametrize("num_iters", [1, 50])
@pytest.mark.parametrize("beta", [20.0, 0.7])
def test_paper_preset_is_the_printed_algorithm(beta, num_iters):
    """Only C / beta enters it: beta 0.7 is beta 20 on costs 20 / 0.7 C."""
    cost = _cost(12, 9, 16)
    a, b = _masses(12), _masses(9, seed=1)
    expected = reference.ipot_plan(cost, a, b, beta, num_iters)
    transport = ipot(
        np.float32(20.0 / beta * cost),
        a=a,
        b=b,
        beta="paper",
        num_iters=num_iters,
    )
    np.testing.assert_allclose(transport.plan, expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(
        transport.cost, 20.0 / beta * np.sum(expected * cost), rtol=1e-4
    )


def test_paper_preset_solves_entropic_transport_of_strength_0_4():
    """Each step divides exp(-C / 20) in once more: exp(-C / (20 / 50))."""
    cost = _cost(24, 24, 64)
    plan = ipot(np.float32(cost), beta="paper").plan
    expected = ot.sinkhorn(
        _uniform(24), _uniform(24), cost, reg=0.4, stopThr=1e-12
    )
    np.testing.assert_allclose(plan, expected, rtol=1e-3)


def test_paper_preset_lies_far_above_the_optimum():
    """Nearer to the uniform plan's cost than to the exact one."""
    cost = _cost(64, 64, 64)
    exact = _exact(cost)
    transport = ipot(np.float32(cost), beta="paper")
    assert exact + 0.5 * (cost.mean() - exact) < float(transport.cost)
    assert float(transport.cost) < cost.mean()
    assert float(transport.lower_bound) <= exact
    assert float(transport.marginal_error) < 1e-5


@pytest.mark.parametrize("num_iters", [1, 5, 50])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [2, 64])
def test_bounds_enclose_the_exact_cost(d, metric, num_iters):
    """However few the steps; 1e-6 of the cost is float32's own."""
    cost = _cost(40, 48, d, metric)
    exact = _exact(cost)
    slack = 1e-6 * cost.max()
    transport = ipot(np.float32(cost), num_iters=num_iters)
    assert float(transport.lower_bound) <= exact + slack
    assert float(transport.cost) >= exact - slack


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("metric", METRICS)
def test_gap_tells_the_error(metric, seed):
    """In two dimensions the error is some percent of the cost."""
    cost = _cost(64, 64, 2, metric, seed)
    transport = ipot(np.float32(cost))
    error = float(transport.cost) - _exact(cost)
    assert error > 0.01 * _exact(cost)
    assert error <= float(transport.gap) <= 1.5 * error


@pytest.mark.parametrize("num_iters", [1, 50])
@pytest.mark.parametrize("d", [2, 64])
def test_marginals_are_exact(d, num_iters):
    a, b = _masses(40, zeros=3), _masses(30, seed=1)
    transport = ipot(
        np.float32(_cost(40, 30, d)), a=a, b=b, num_iters=num_iters
    )
    assert np.min(transport.plan) >= 0.0
    np.testing.assert_allclose(np.sum(transport.plan, 1), a, atol=1e-6)
    np.testing.assert_allclose(np.sum(transport.plan, 0), b, atol=1e-6)
    assert float(transport.marginal_error) <= 1e-6


def test_marginal_error_is_the_mass_that_misses():
    """One unrounded step meets the columns; rows miss by |P 1 - a|."""
    cost, a, b = _cost(6, 5, 2), _masses(6), _masses(5, seed=1)
    cost = np.float32(200.0 * cost)
    transport = ipot(cost, a=a, b=b, beta="paper", num_iters=1)
    plan = np.float64(transport.plan)
    expected = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    assert expected > 0.01
    np.testing.assert_allclose(transport.marginal_error, expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_cost_leaves_the_plan(scale):
    cost = _cost(32, 24, 64)
    one, other = ipot(np.float32(cost)), ipot(np.float32(scale * cost))
    np.testing.assert_allclose(other.plan, one.plan, atol=1e-6)
    np.testing.assert_allclose(other.cost / scale, one.cost, rtol=1e-5)
    np.testing.assert_allclose(
        other.lower_bound / scale, one.lower_bound, rtol=1e-5
    )


def test_shifts_of_rows_leave_the_plan():
    """Each plan's cost rises by a.r, so the best stays the best."""
    cost = _cost(16, 12, 64)
    rows = np.arange(16.0)[:, None]
    one, other = ipot(cost), ipot(cost + rows)
    np.testing.assert_allclose(other.plan, one.plan, atol=1e-9)
    np.testing.assert_allclose(
        other.cost, float(one.cost) + rows.mean(), rtol=1e-9
    )


def test_shifts_of_columns_leave_the_optimum():
    """The step is another one, the optimum rises by b.c."""
    cost = _cost(16, 12, 64)
    columns = np.arange(12.0)
    exact = _exact(cost) + columns.mean()
    transport = ipot(cost + columns)
    assert float(transport.lower_bound) <= exact <= float(transport.cost)
    np.testing.assert_allclose(transport.cost, exact, rtol=1e-3)


def test_order_of_the_points_orders_the_plan():
    cost = _cost(10, 12, 64)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(10), rng.permutation(12)
    np.testing.assert_allclose(
        ipot(cost[rows][:, columns]).plan,
        np.array(ipot(cost).plan)[rows][:, columns],
        atol=1e-9,
    )


def test_more_steps_come_nearer():
    cost = _cost(32, 32, 16)
    exact = _exact(cost)
    errors = [
        float(ipot(cost, num_iters=n).cost) - exact for n in (1, 5, 25, 125)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * errors[0]


@pytest.mark.parametrize("beta", [None, "paper"])
def test_points_without_mass_might_as_well_not_be_there(beta):
    cost = np.float32(_cost(12, 10, 16))
    cost[:4], cost[:, :3] = 0.0, 1e3  # Must not matter.
    a, b = _masses(12, zeros=4), _masses(10, zeros=3, seed=1)
    whole = ipot(cost, a=a, b=b, beta=beta)
    part = ipot(cost[4:, 3:], a=a[4:], b=b[3:], beta=beta)
    np.testing.assert_allclose(whole.plan[4:, 3:], part.plan, atol=1e-6)
    np.testing.assert_allclose(whole.cost, part.cost, rtol=1e-5)
    np.testing.assert_allclose(
        whole.lower_bound, part.lower_bound, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("beta", [None, "paper"])
def test_no_mass_at_all_costs_nothing(beta):
    transport = ipot(
        np.float32(_cost(4, 3, 8)), a=np.zeros(4), b=np.zeros(3), beta=beta
    )
    np.testing.assert_array_equal(transport.plan, np.zeros((4, 3)))
    assert float(transport.cost) == 0.0
    assert float(transport.lower_bound) == 0.0
    assert float(transport.marginal_error) == 0.0


@pytest.mark.parametrize("beta", [None, "paper"])
def test_leading_axes_are_separate_problems(beta):
    costs = [np.float32(_cost(8, 6, 16, seed=seed)) for seed in range(6)]
    masses = np.float32([_masses(8, zeros=s % 2, seed=s) for s in range(6)])
    together = ipot(
        np.reshape(costs, (2, 3, 8, 6)),
        a=masses.reshape(2, 3, 8),
        b=_masses(6),
        beta=beta,
    )
    assert together.plan.shape == (2, 3, 8, 6)
    assert together.cost.shape == together.gap.shape == (2, 3)
    for i, (cost, a) in enumerate(zip(costs, masses, strict=True)):
        alone = ipot(cost, a=a, b=_masses(6), beta=beta)
        for many, one in zip(together, alone, strict=True):
            many = np.reshape(many, (6, *one.shape))[i]
            np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [None, "paper"])
def test_eager_graph_and_xla_agree(beta):
    cost = tf.constant(np.float32(_cost(16, 12, 32)))
    a = tf.constant(np.float32(_masses(16, zeros=2)))
    eager = ipot(cost, a=a, beta=beta)
    for jit_compile in (False, True):

        @tf.function(jit_compile=jit_compile)
        def compiled(cost, a):
            return ipot(cost, a=a, beta=beta)

        for got, expected in zip(compiled(cost, a), eager, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_sizes_may_be_unknown():
    cost = np.float32(_cost(7, 5, 16))

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def compiled(cost):
        return ipot(cost)

    np.testing.assert_allclose(compiled(cost).plan, ipot(cost).plan, atol=1e-6)


@pytest.mark.parametrize("beta", [0, -1.0, np.inf, True, "Paper", "auto"])
def test_an_unknown_beta_is_refused(beta):
    with pytest.raises(ValueError, match="Invalid value for argument `beta`"):
        ipot([[0.0]], beta=beta)


@pytest.mark.parametrize("num_iters", [0, -1, 2.0, True])
def test_a_bad_number_of_steps_is_refused(num_iters):
    with pytest.raises(
        ValueError, match="Invalid value for argument `num_iters`"
    ):
        ipot([[0.0]], num_iters=num_iters)


@pytest.mark.parametrize("masses", [{"a": [1.0]}, {"b": [0.5, 0.25, 0.25]}])
def test_masses_of_another_number_of_points_are_refused(masses):
    with pytest.raises(ValueError, match="Expected one mass for each"):
        ipot([[0.0, 1.0], [1.0, 0.0]], **masses)


@pytest.mark.parametrize("beta", [None, "paper"])
def test_gradient_of_the_cost_is_the_plan(beta):
    cost = tf.constant(np.float32(_cost(8, 6, 16)))
    with tf.GradientTape() as tape:
        tape.watch(cost)
        transport = ipot(cost, beta=beta)
    gradient = tape.gradient(transport.cost, cost)
    np.testing.assert_array_equal(gradient, transport.plan)


def test_plan_and_bound_are_constant():
    cost = tf.constant(np.float32(_cost(8, 6, 16)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(cost)
        transport = ipot(cost)
    for tensor in (
        transport.plan,
        transport.lower_bound,
        transport.marginal_error,
    ):
        assert tape.gradient(tensor, cost) is None


def test_gradient_agrees_with_central_differences_of_the_exact_cost():
    """The best permutation is clear, so the exact cost is linear nearby."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 16))
    cost = reference.pairwise_cost(
        x, x[[2, 0, 1, 4, 3]] + 0.1 * rng.normal(size=(5, 16)), "cosine"
    )
    expected = reference.central_difference(
        reference.exact_transport_cost, cost
    )
    variable = tf.constant(cost)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = ipot(variable).cost
    np.testing.assert_allclose(
        tape.gradient(value, variable), expected, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [64, 256])
def test_gradient_points_near_the_exact_one(d, metric, seed):
    """Less near than the cost: plans of almost one cost share their mass.

    The uniform plan's gradient, which is the least that a solver would give,
    is at a cosine of 0.7 or less.
    """
    x, y = np.float32(np.random.default_rng(seed).normal(size=(2, 64, d)))
    x = tf.constant(x)
    exact = np.float32(
        ot.emd(
            _uniform(64), _uniform(64), reference.pairwise_cost(x, y, metric)
        )
    )
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        cost = pairwise_cost(x=x, y=y, metric=metric)
        values = {
            "exact": tf.reduce_sum(exact * cost),
            "default": ipot(cost).cost,
            "uniform": tf.reduce_mean(cost),
        }
    slopes = {
        name: reference.unit(tape.gradient(value, x))
        for name, value in values.items()
    }
    assert np.sum(slopes["exact"] * slopes["default"]) > 0.85
    assert np.sum(slopes["exact"] * slopes["uniform"]) < 0.7
