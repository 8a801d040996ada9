"""What `ipot` solves beside the plain problem, and how else it solves."""

import builtins

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.transport import ipot, mean_reduced_cost


def _cost(n, m, d=64, *, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    return np.float32(reference.pairwise_cost(x, y, "squared_euclidean"))


def _classes(rows, columns, cost):
    """Mask and masses of a problem in blocks, one per class; its optimum."""
    mask = rows[:, None] == columns[None, :]
    kinds = np.unique(rows)
    a = 1 / (len(kinds) * np.sum(rows[:, None] == rows, axis=1))
    b = 1 / (len(kinds) * np.sum(columns[:, None] == columns, axis=1))
    exact = np.mean(
        [
            ot.emd2([], [], np.float64(cost[rows == k][:, columns == k]))
            for k in kinds
        ]
    )
    return mask, a, b, exact


def _blocks():
    rows = np.array([0] * 9 + [1] * 6 + [2] * 12 + [3])
    columns = np.array([3, 3] + [2] * 8 + [0] * 10 + [1] * 4)
    cost = _cost(28, 24)
    return cost, *_classes(rows, columns, cost)


# Masks.


def test_blocks_are_problems_of_their_own():
    cost, mask, a, b, exact = _blocks()
    transport = ipot(cost, a=a, b=b, mask=mask)
    assert float(transport.lower_bound) <= exact * (1 + 1e-6)
    np.testing.assert_allclose(transport.cost, exact, rtol=2e-3)
    assert float(transport.marginal_error) <= 1e-6
    np.testing.assert_array_equal(transport.plan[~mask], 0.0)
    sharp = ipot(cost, a=a, b=b, mask=mask, tolerance=1e-4)
    np.testing.assert_allclose(sharp.cost, exact, rtol=1.01e-4)
    assert float(sharp.gap) <= 1.01e-4 * exact


def test_costs_of_forbidden_pairs_do_not_matter():
    cost, mask, a, b, _ = _blocks()
    expected = ipot(cost, a=a, b=b, mask=mask)
    other = np.where(mask, cost, -1e4).astype("float32")
    for got, value in zip(
        ipot(other, a=a, b=b, mask=mask), expected, strict=True
    ):
        np.testing.assert_array_equal(got, value)


def test_a_mask_that_allows_all_is_none():
    cost = _cost(10, 12)
    for got, value in zip(
        ipot(cost, mask=np.ones_like(cost)), ipot(cost), strict=True
    ):
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6)


def test_a_band_is_solved_without_rounding():
    """Rows may go to the next two columns: no blocks, but a plan exists.

    The diagonal is one, so the marginals converge; and no plan costs less
    than the bound, by a linear programme on the allowed pairs.
    """
    cost, n = _cost(12, 12), 12
    steps = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
    mask = steps < 3
    exact = ot.emd2([], [], np.where(mask, np.float64(cost), 1e6))
    transport = ipot(cost, mask=mask, num_iters=200)
    assert 0.0 < float(transport.marginal_error) < 1e-3
    assert float(transport.lower_bound) <= exact * (1 + 1e-6)
    np.testing.assert_allclose(transport.cost, exact, rtol=1e-2)
    np.testing.assert_array_equal(transport.plan[~mask], 0.0)


def test_a_problem_without_a_plan_says_so():
    """Row 0 (mass 1/2) has no pair: on either side 1/2 stays where it is."""
    transport = ipot(
        [[0.0, 1.0], [2.0, 3.0]], mask=[[False, False], [False, True]]
    )
    np.testing.assert_allclose(transport.plan, [[0, 0], [0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(transport.cost, 1.5, rtol=1e-6)
    np.testing.assert_allclose(transport.marginal_error, 1.0, rtol=1e-6)


def test_masks_per_problem():
    cost, mask, a, b, _ = _blocks()
    free = np.ones_like(mask)
    together = ipot(
        np.stack([cost, cost]), a=a, b=b, mask=np.stack([mask, free])
    )
    for i, one in enumerate((mask, free)):
        alone = ipot(cost, a=a, b=b, mask=one)
        np.testing.assert_allclose(together.cost[i], alone.cost, rtol=1e-4)
        np.testing.assert_allclose(together.plan[i], alone.plan, atol=1e-6)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="`mask`"):
        ipot(tf.zeros([3, 4]), mask=tf.ones([4, 3]))


# An absolute beta, in the log domain.


@pytest.mark.parametrize("beta", [0.7, 20.0])
def test_a_number_is_the_beta_of_the_printed_algorithm(beta):
    cost = _cost(12, 9) / 100
    a = np.arange(1, 13) / 78
    expected = reference.ipot_plan(cost, a, np.full(9, 1 / 9), beta, 200)
    transport = ipot(cost, a=a, beta=beta, num_iters=200)
    np.testing.assert_allclose(transport.plan, expected, atol=2e-6)


@pytest.mark.parametrize("exponent", [-30, -3, 0, 3, 30])
def test_any_beta_is_finite(exponent):
    """The kernel exp(-C / beta) itself is 0 or 1 at the ends."""
    cost = _cost(12, 9)
    exact = ot.emd2([], [], np.float64(cost))
    transport = ipot(cost, beta=10.0**exponent)
    for tensor in transport:
        assert np.all(np.isfinite(tensor))
    assert float(transport.marginal_error) <= 1e-6
    assert float(transport.lower_bound) <= exact * (1 + 1e-6)
    assert float(transport.cost) >= exact * (1 - 1e-6)


def test_log_domain_and_kernel_agree():
    cost, mask, a, b, _ = _blocks()
    beta = 0.5 * mean_reduced_cost(cost, a=a, b=b, mask=mask)
    steps = {"a": a, "b": b, "mask": mask, "num_iters": 200}
    np.testing.assert_allclose(
        ipot(cost, beta=beta, **steps).cost,
        ipot(cost, **steps).cost,
        rtol=1e-3,
    )


# A scale from elsewhere.


def test_the_mean_reduced_cost_is_the_default_scale():
    cost = _cost(8, 12)
    reduced = np.float64(cost) - cost.min(1, keepdims=True)
    reduced -= reduced.min(0)
    scale = mean_reduced_cost(cost)
    np.testing.assert_allclose(scale, reduced.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        ipot(cost, scale=scale).plan, ipot(cost).plan, atol=1e-6
    )


def test_a_scale_keeps_a_large_part_from_blurring_the_rest():
    """Pairs of different labels cost 1e3 more; none of them is in the plan.

    By default the errors are in units of that; with the scale of the
    features they are in theirs.
    """
    features, labels = _cost(40, 40) / 100, np.arange(40) % 4
    cost = features + 1e3 * (labels[:, None] != labels[None, :])
    exact = ot.emd2([], [], np.float64(cost))
    scaled = ipot(cost, scale=mean_reduced_cost(features))
    np.testing.assert_allclose(scaled.cost, exact, rtol=0.015)
    assert float(ipot(cost).cost) > 1.05 * exact


# To a tolerance.


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
def test_tolerance_is_met_by_problems_together(tolerance):
    costs = np.stack([_cost(20, 30, seed=seed) for seed in range(3)])
    transport = ipot(costs, tolerance=tolerance)
    for cost, value, gap in zip(
        costs, transport.cost, transport.gap, strict=True
    ):
        assert float(gap) <= 1.01 * tolerance * float(value)
        exact = ot.emd2([], [], np.float64(cost))
        np.testing.assert_allclose(value, exact, rtol=tolerance)


def test_twenty_blocks_are_the_most():
    """One step a block, twenty blocks: the gap stays, and says so."""
    transport = ipot(_cost(40, 48), tolerance=1e-6, num_iters=1)
    assert float(transport.gap) > 1e-3 * float(transport.cost)
    assert float(transport.marginal_error) < 1e-6


def test_tolerance_ends_where_rounding_begins():
    """Equal points: cost zero, of which nothing is a thousandth."""
    x = np.random.default_rng(0).normal(size=(16, 8))
    cost = np.float32(reference.pairwise_cost(x, x, "squared_euclidean"))
    transport = ipot(cost, tolerance=1e-3)
    assert float(transport.cost) <= 1e-6 * cost.mean()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_options_compile(jit_compile):
    cost, mask, a, b, exact = _blocks()
    for options in ({"tolerance": 1e-3}, {"beta": 5.0}, {"scale": 3.0}):

        @tf.function(jit_compile=jit_compile)
        def compiled(cost, options=options):
            return ipot(cost, a=a, b=b, mask=mask, **options)

        expected = ipot(cost, a=a, b=b, mask=mask, **options)
        for got, value in zip(
            compiled(tf.constant(cost)), expected, strict=True
        ):
            np.testing.assert_allclose(got, value, rtol=1e-3, atol=1e-5)


# Exactly, by assignment.


def test_exact_is_exact():
    cost = _cost(40, 40)
    transport = ipot(cost, solver="exact")
    exact = ot.emd2([], [], np.float64(cost))
    np.testing.assert_allclose(transport.cost, exact, rtol=1e-6)
    assert float(transport.gap) == 0.0
    assert float(transport.marginal_error) == 0.0
    np.testing.assert_array_equal(np.sum(np.array(transport.plan) > 0, 1), 1)


def test_exact_in_a_graph_with_leading_axes_and_points_without_mass():
    costs = np.stack([_cost(8, 8, seed=seed) for seed in range(2)])
    a, b = np.full(8, 1 / 6), np.full(8, 1 / 6)
    a[[0, 3]] = b[[1, 2]] = 0.0

    @tf.function
    def compiled(cost):
        with tf.GradientTape() as tape:
            tape.watch(cost)
            transport = ipot(cost, a=a, b=b, solver="exact")
        return transport, tape.gradient(transport.cost, cost)

    transport, gradient = compiled(tf.constant(costs))
    np.testing.assert_array_equal(gradient, transport.plan)
    assert transport.plan.shape == (2, 8, 8)
    for cost, value in zip(costs, transport.cost, strict=True):
        exact = ot.emd2(a, b, np.float64(cost))
        np.testing.assert_allclose(value, exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "a"), [((3, 4), None), ((2, 2), [0.3, 0.7]), ((2, 2), [1, 0])]
)
def test_exact_refuses_what_is_no_assignment(shape, a):
    with pytest.raises(ValueError, match=r"solver='exact'.*solver='ipot'"):
        ipot(tf.zeros(shape), a=a, solver="exact")


def test_exact_refuses_masses_in_a_graph():
    cost = tf.zeros([2, 2])
    compiled = tf.function(lambda a: ipot(cost, a=a, solver="exact"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="solver='exact'"):
        compiled(tf.constant([0.3, 0.7]))


def test_exact_refuses_xla():
    compiled = tf.function(
        lambda cost: ipot(cost, solver="exact").cost, jit_compile=True
    )
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="exact_runs_on_the_CPU_and_not"
    ):
        compiled(tf.zeros([2, 2]))


def test_exact_without_scipy_says_what_to_install(monkeypatch):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scipy"):
        ipot(tf.zeros([2, 2]), solver="exact")


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "simplex"},
        {"solver": "exact", "beta": 1.0},
        {"solver": "exact", "tolerance": 1e-3},
        {"solver": "exact", "mask": np.ones((2, 2))},
        {"solver": "exact", "scale": 1.0},
        {"tolerance": 0.0},
        {"tolerance": 1e-3, "beta": 1.0},
        {"scale": 1.0, "beta": "paper"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(options):
    with pytest.raises(ValueError, match="Invalid value for argument"):
        ipot(tf.zeros([2, 2]), **options)


# What a degenerate problem gives.


@pytest.mark.parametrize(
    "options",
    [{}, {"beta": "paper"}, {"beta": 1.0}, {"tolerance": 1e-3}],
    ids=str,
)
def test_degenerate_problems(options):
    """Equal points pay nothing; one point moves as a whole; NaN stays NaN."""
    transport = ipot(np.zeros([5, 7], "float32"), **options)
    np.testing.assert_array_equal(transport.cost, 0.0)
    np.testing.assert_allclose(transport.gap, 0.0, atol=1e-6)
    np.testing.assert_allclose(transport.marginal_error, 0.0, atol=1e-5)
    transport = ipot([[3.0]], **options)
    np.testing.assert_allclose(transport.plan, [[1.0]], rtol=1e-6)
    np.testing.assert_allclose(transport.cost, 3.0, rtol=1e-6)
    cost = _cost(4, 4) / 100
    cost[1, 2] = np.nan
    assert np.isnan(ipot(cost, **options).cost)


def test_nan_stays_nan_with_an_exact_solver():
    assert np.isnan(ipot([[np.nan, 0.0], [1.0, 0.0]], solver="exact").cost)
