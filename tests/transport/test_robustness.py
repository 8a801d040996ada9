"""`tfkd.transport` on hard problems: crowds, outliers, clusters, rest."""

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf

from tfkd.transport import ipot, pairwise_cost, relaxed_emd

# Relative error that the documentation grants each family of features.
FAMILIES = {
    "independent": 1e-3,
    "noisy copy": 1e-5,
    "rectified": 2e-3,
    "decaying spectrum": 3e-3,
}


def features(family, n, d=64, *, seed=0):
    """Teacher's and student's features, `[n, d]` each."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n, d))
    if family == "rectified":
        x, y = np.maximum(x, 0), np.maximum(y, 0)
    elif family == "noisy copy":
        y = x[rng.permutation(n)] + y
    elif family == "decaying spectrum":
        scale = 1 / np.sqrt(1 + np.arange(d))
        x, y = x * scale, y * scale
    return x.astype("float32"), y.astype("float32")


def problem(family="independent", n=64):
    """A cosine cost in float32, `[n, n]`."""
    x, y = features(family, n)
    return pairwise_cost(x=x, y=y).numpy()


def clusters(n=64):
    """A cost with tight clusters, for which the solver is least exact."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 64))[rng.integers(0, 10, n)]
    x, y = centres + 0.05 * rng.normal(size=(2, n, 64))
    return pairwise_cost(x=x, y=y).numpy().astype("float32")


def random_masses(n, *, seed=0):
    masses = np.random.default_rng(seed).random(n)
    return (masses / masses.sum()).astype("float32")


def exact(cost, a=None):
    """Optimal cost in float64 by POT's network simplex."""
    a = np.ones(len(cost)) if a is None else np.float64(a)
    b = np.full(cost.shape[1], 1 / cost.shape[1])
    return ot.emd2(a / a.sum(), b, np.float64(cost))


def assert_certified(transport, optimum, scale):
    """lower_bound <= optimum <= cost, to the rounding of float32."""
    assert transport.lower_bound <= optimum + 1e-6 * scale
    assert transport.cost >= optimum - 1e-6 * scale


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("family", FAMILIES)
def test_error_is_what_the_documentation_says(family, n):
    cost = problem(family, n)
    optimum, transport = exact(cost), ipot(cost)
    assert_certified(transport, optimum, scale=1)
    error = transport.cost - optimum
    assert error <= FAMILIES[family] * optimum
    # The gap that a user sees is not much larger than the true error.
    assert transport.gap <= 2 * error + 1e-6


def test_gap_tells_that_tight_clusters_are_too_dear():
    cost = clusters()
    optimum, transport = exact(cost), ipot(cost)
    assert_certified(transport, optimum, scale=cost.max())
    assert transport.cost > 1.02 * optimum
    assert transport.gap >= transport.cost - optimum


@pytest.mark.parametrize("crowd", [2, 6, 10, 32])
def test_crowd_with_one_near_point(crowd):
    """Of `crowd` rows near column 0 only, all but one must pay 1.

    Each has mass 1/64, the column takes 1/64: the optimum is (crowd - 1)/64.
    The rows' other entries underflow before the potentials have grown; left
    at 0, they make a crowd of six NaN.
    """
    cost = np.zeros((64, 64), "float32")
    cost[:crowd, 1:] = 1.0
    transport = ipot(cost)
    optimum = (crowd - 1) / 64
    assert_certified(transport, optimum, scale=1)
    np.testing.assert_allclose(transport.cost, optimum, rtol=1e-3)


@pytest.mark.parametrize("exponent", range(-4, 5, 2))
def test_outliers_leave_everything_finite(exponent):
    """Student's t of one degree of freedom has no mean, let alone tails."""
    rng = np.random.default_rng(exponent + 4)
    x, y = rng.standard_t(1, size=(2, 32, 3)) * 10.0**exponent
    cost = pairwise_cost(x=x, y=y, metric="squared_euclidean").numpy()
    cost, a = cost.astype("float32"), random_masses(32)
    transport = ipot(cost, a=a)
    assert_certified(transport, exact(cost, a), scale=cost.max())
    assert transport.marginal_error <= 1e-6


def test_cheap_point_without_mass_does_no_harm():
    """It is 100 cheaper than the column minimum: its exp would overflow."""
    cost = problem(n=8)
    cost[:, 0] += 100.0
    expected = ipot(cost).plan
    cost, mass = np.pad(cost, ((0, 1), (0, 0))), [1 / 8] * 8 + [0]
    np.testing.assert_allclose(ipot(cost, a=mass).plan[:8], expected, atol=1e-6)


def test_squared_distance_is_accurate_far_from_the_origin():
    """Near 1e4 the expanded square, 5e8 in float32, is off by tens."""
    x, y = (points[:6, :5] + 1e4 for points in features("independent", 64))
    np.testing.assert_allclose(
        pairwise_cost(x=x, y=y, metric="squared_euclidean"),
        reference.pairwise_cost(x, y, "squared_euclidean"),
        rtol=1e-4,
    )


@pytest.mark.parametrize("beta", [None, "paper"])
def test_twice_the_point_is_twice_the_mass(beta):
    cost = problem(n=12)
    twice = np.repeat(cost, [2] + [1] * 11, axis=0)
    mass = np.float32([2] + [1] * 11) / 13
    doubled = ipot(twice, b=random_masses(12), beta=beta)
    weighted = ipot(cost, a=mass, b=random_masses(12), beta=beta)
    for value, same in zip(doubled[1:3], weighted[1:3], strict=True):
        np.testing.assert_allclose(value, same, rtol=1e-4)
    np.testing.assert_allclose(
        doubled.plan[0] + doubled.plan[1], weighted.plan[0], atol=1e-6
    )


@pytest.mark.parametrize("exponent", [-40, 40])
def test_units_change_no_digit(exponent):
    """A power of two does not, in floating point."""
    cost, unit = problem(n=16), np.float32(2.0**exponent)
    plain, scaled = ipot(cost), ipot(unit * cost)
    np.testing.assert_array_equal(scaled.plan, plain.plan)
    np.testing.assert_array_equal(scaled.cost, unit * plain.cost)
    np.testing.assert_array_equal(scaled.lower_bound, unit * plain.lower_bound)


def test_either_side_may_come_first():
    """The steps treat sides differently; the certificates must agree."""
    cost = clusters()
    one, other = ipot(cost), ipot(cost.T)
    assert one.lower_bound <= other.cost
    assert other.lower_bound <= one.cost


def test_paper_preset_stays_finite_where_its_kernel_underflows():
    """exp(-3000 / 20) is 0 in float32; in float64 it is 7e-66."""
    cost, uniform = 3000 + problem(n=16), np.full(16, 1 / 16)
    plan = reference.ipot_plan(cost, uniform, uniform, 20.0, 50)
    np.testing.assert_allclose(ipot(cost, beta="paper").plan, plan, rtol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
def test_nan_is_not_hidden(metric):
    """Not by the guards for points without length, nor by the masses."""
    x = np.ones((4, 3), "float32")
    x[1, 2] = np.nan
    cost = pairwise_cost(x=x, y=np.eye(3), metric=metric)
    assert np.all(np.isnan(cost[1]))
    assert np.isnan(ipot(cost).cost)


@pytest.mark.parametrize("nothing", [np.nan, np.inf])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.1}, {"tolerance": 1e-3}])
def test_nan_and_infinity_of_forbidden_pairs_do_not_matter(settings, nothing):
    """Of points without mass, or of another block."""
    cost = tf.constant(np.random.default_rng(0).uniform(size=(6, 6)))
    blocks = np.kron(np.eye(2), np.ones((3, 3))) > 0
    there = np.array([0.2, 0.2, 0.0, 0.2, 0.2, 0.2])
    for keep, problem in (
        (blocks, {"mask": blocks}),
        (np.outer(there, there) > 0, {"a": there, "b": there}),
    ):
        expected = ipot(cost, **problem, **settings)
        spoilt = tf.where(keep, cost, tf.cast(nothing, cost.dtype))
        with tf.GradientTape() as tape:
            tape.watch(spoilt)
            received = ipot(spoilt, **problem, **settings)
        assert received.cost == expected.cost
        assert received.lower_bound == expected.lower_bound
        np.testing.assert_array_equal(
            tape.gradient(received.cost, spoilt), expected.plan
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_cast_up_before_the_solve(dtype):
    low = tf.cast(problem(n=8), dtype)
    transport, same = ipot(low), ipot(tf.cast(low, tf.float32))
    for value, expected in zip(transport, same, strict=True):
        assert value.dtype == tf.float32
        np.testing.assert_array_equal(value, expected)


def test_float64_has_the_marginals_of_float64():
    transport = ipot(np.float64(problem(n=8)), a=np.arange(8) / 28)
    assert {value.dtype for value in transport} == {tf.float64}
    assert transport.marginal_error < 1e-14


def test_float64_on_either_side_of_a_cost_stays():
    x = np.eye(3)
    for y in (x, x.astype("float32")):
        assert pairwise_cost(x=x, y=y).dtype == tf.float64
        assert pairwise_cost(x=y, y=x).dtype == tf.float64


def test_masses_have_no_gradient():
    cost, a = tf.constant(problem(n=8)), tf.constant(random_masses(8))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([cost, a])
        values = ipot(cost, a=a).cost, relaxed_emd(cost, a=a)
    for value in values:
        assert tape.gradient(value, cost) is not None
        assert tape.gradient(value, a) is None


def test_loop_stores_nothing_for_a_gradient():
    """A taped loop would push each step's tensors on lists."""

    def slope(cost):
        with tf.GradientTape() as tape:
            tape.watch(cost)
            value = ipot(cost).cost
        return tape.gradient(value, cost)

    concrete = tf.function(slope).get_concrete_function(
        tf.TensorSpec([8, 8], tf.float32)
    )
    graph = str(concrete.graph.as_graph_def())
    assert "While" in graph
    assert "TensorList" not in graph


def test_paper_preset_pulls_elsewhere_than_transport():
    """Its plan is nearly uniform: towards the mean of the batch."""
    x, y = features("independent", 64)
    y = tf.constant(y)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(y)
        cost = pairwise_cost(x=x, y=y)
        plan = ot.emd([], [], np.float64(cost)).astype("float32")
        values = {
            "exact": tf.reduce_sum(plan * cost),
            "default": ipot(cost).cost,
            "paper": ipot(cost, beta="paper").cost,
        }
    slopes = {
        name: reference.unit(tape.gradient(value, y))
        for name, value in values.items()
    }
    assert np.sum(slopes["exact"] * slopes["default"]) > 0.95
    assert np.sum(slopes["exact"] * slopes["paper"]) < 0.5


@pytest.mark.parametrize("solve", [relaxed_emd, ipot])
@pytest.mark.parametrize(
    ("shape", "a", "b", "argument"),
    [
        ((4, 5), 5, None, "a"),
        ((4, 5), None, 4, "b"),
        ((4, 5), 1, None, "a"),
        ((2, 4, 5), (3, 4), None, "a"),
        ((4, 5), (2, 4), None, "a"),
        ((5,), None, None, "cost"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(solve, shape, a, b, argument):
    a, b = (None if size is None else tf.zeros(size) for size in (a, b))
    with pytest.raises(ValueError, match=f"`{argument}`"):
        solve(tf.zeros(shape), a=a, b=b)


@pytest.mark.parametrize(
    "shapes",
    [((3, 4), (3, 5)), ((4,), (4,)), ((2, 3, 4), (3, 3, 4)), ((3, 4), (4,))],
)
def test_points_that_do_not_fit_are_refused(shapes):
    x, y = (tf.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="`x` and `y`"):
        pairwise_cost(x=x, y=y)
