"""The Wasserstein distance between Gaussians: values, gradients, limits."""

import numpy as np
import ot
import pytest
import reference
import tensorflow as tf
from samples import points, random_masses

from tfkd.transport import (
    gaussian_squared_wasserstein,
    gaussian_squared_wasserstein_of_moments,
)
from tfkd.transport.polar import polar_factor

# Fewer points than dimensions, more, and numbers that differ.
SIZES = [
    (64, 64, 128),
    (64, 64, 8),
    (20, 30, 50),
    (30, 20, 50),
    (9, 5, 7),
    (5, 9, 7),
    (40, 30, 10),
]
SMALL = [(4, 4, 6), (6, 6, 3), (3, 5, 6), (5, 3, 4)]
COVARIANCES = ("full", "diagonal")


def expected_distance(x, y, a=None, b=None, *, covariance="full"):
    moments = [*reference.moments(x, a), *reference.moments(y, b)]
    if covariance == "diagonal":
        moments[1::2] = [np.diag(np.diag(s)) for s in moments[1::2]]
    return reference.gaussian_squared_wasserstein(*moments)


def by_class(distance, x, y, a, b, x_labels, y_labels):
    """Mean of a distance of moments over the classes on both sides."""
    values = []
    for label in sorted({*x_labels[a > 0]} & {*y_labels[b > 0]}):
        sides = []
        for side, masses, labels in ((x, a, x_labels), (y, b, y_labels)):
            own = masses[labels == label]
            sides += reference.moments(side[labels == label], own / own.sum())
        values.append(distance(*sides))
    return np.mean(values)


def value_and_gradients(function, x, y, **arguments):
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        value = function(x=x, y=y, **arguments)
    return value, *tape.gradient(value, [x, y])


def assert_gradients(x, y, **arguments):
    """Both sides' gradients are central differences of the value."""
    _, of_x, of_y = value_and_gradients(
        gaussian_squared_wasserstein, x, y, **arguments
    )
    evaluate = tf.function(
        lambda x, y: gaussian_squared_wasserstein(x=x, y=y, **arguments)
    )
    for gradient, function, at in (
        (of_x, lambda z: evaluate(tf.constant(z), tf.constant(y)), x),
        (of_y, lambda z: evaluate(tf.constant(x), tf.constant(z)), y),
    ):
        np.testing.assert_allclose(
            gradient,
            reference.central_difference(function, at),
            rtol=1e-5,
            atol=1e-7,
        )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_of_two_normals_on_a_line(covariance):
    """N(0, 1) and N(10, 9): 10^2 + (3 - 1)^2."""
    value = gaussian_squared_wasserstein(
        x=[[-1.0], [1.0]], y=[[7.0], [13.0]], covariance=covariance
    )
    np.testing.assert_allclose(value, 104.0, rtol=1e-6)


def test_of_crossed_ellipses():
    """Standard deviations (3, 0) and (0, 4): nothing in common, 9 + 16.

    The diagonal of both covariances says the same.
    """
    x = [[-3.0, 0.0], [3.0, 0.0]]
    y = [[0.0, -4.0], [0.0, 4.0]]
    for covariance in COVARIANCES:
        value = gaussian_squared_wasserstein(x=x, y=y, covariance=covariance)
        np.testing.assert_allclose(value, 25.0, rtol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_agrees_with_the_eigenvalue_form(sizes, weighted, covariance):
    n, m, _ = sizes
    x, y = points(*sizes)
    a = random_masses(n) if weighted else None
    b = random_masses(m, seed=1) if weighted else None
    expected = expected_distance(x, y, a, b, covariance=covariance)
    for dtype, tolerance in (("float64", 1e-7), ("float32", 1e-6)):
        value = gaussian_squared_wasserstein(
            x=x.astype(dtype), y=y.astype(dtype), a=a, b=b,
            covariance=covariance,
        )  # fmt: skip
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance)


def test_agrees_with_pot_where_pot_can():
    """POT's matrix root needs covariances of full rank."""
    x, y = points(40, 30, 6)
    moments = [*reference.moments(x), *reference.moments(y)]
    expected = ot.gaussian.bures_wasserstein_distance(
        moments[0], moments[2], moments[1], moments[3]
    )
    value = gaussian_squared_wasserstein(x=x, y=y)
    np.testing.assert_allclose(value, expected**2, rtol=1e-10)


@pytest.mark.parametrize("sizes", SIZES)
def test_form_of_moments_agrees(sizes):
    """Also where covariances are singular; eigh puts sqrt(1e-16) there."""
    x, y = points(*sizes)
    moments = [*reference.moments(x), *reference.moments(y)]
    names = ("mean_x", "covariance_x", "mean_y", "covariance_y")
    for dtype, tolerance in (("float64", 1e-6), ("float32", 1e-3)):
        arguments = [moment.astype(dtype) for moment in moments]
        value = gaussian_squared_wasserstein_of_moments(
            **dict(zip(names, arguments, strict=True))
        )
        assert value.dtype == dtype
        np.testing.assert_allclose(
            value, expected_distance(x, y), rtol=tolerance
        )


@pytest.mark.parametrize("sizes", SMALL)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gradients_agree_with_central_differences(sizes, covariance):
    n, m, _ = sizes
    assert_gradients(
        *points(*sizes),
        a=random_masses(n),
        b=random_masses(m, seed=1),
        covariance=covariance,
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_labels_give_the_mean_over_common_classes(covariance):
    """Class 3 has one x, class 5 is on one side, class 7 has no mass."""
    x, y = points(10, 8, 4)
    x_labels = np.int32([0, 0, 0, 1, 1, 1, 3, 5, 7, 7])
    y_labels = np.int32([0, 1, 0, 1, 3, 7, 3, 0])
    a, b = random_masses(10), random_masses(8, seed=1)
    a[8:] = 0.0

    def distance(mean_x, cov_x, mean_y, cov_y):
        if covariance == "diagonal":
            cov_x, cov_y = np.diag(np.diag(cov_x)), np.diag(np.diag(cov_y))
        return reference.gaussian_squared_wasserstein(
            mean_x, cov_x, mean_y, cov_y
        )

    arguments = {
        "a": a,
        "b": b,
        "covariance": covariance,
        "x_labels": x_labels,
        "y_labels": y_labels,
    }
    value = gaussian_squared_wasserstein(x=x, y=y, **arguments)
    expected = by_class(distance, x, y, a, b, x_labels, y_labels)
    np.testing.assert_allclose(value, expected, rtol=1e-7)
    assert_gradients(x, y, **arguments)


def test_classes_of_one_point_compare_points():
    """(5 - 0)^2 and (1 - 5)^2, whatever the masses."""
    value = gaussian_squared_wasserstein(
        x=[[0.0], [5.0]],
        y=[[1.0], [5.0]],
        a=[0.9, 0.1],
        x_labels=[4, 2],
        y_labels=[2, 4],
    )
    np.testing.assert_allclose(value, (25 + 16) / 2, rtol=1e-6)


def test_one_class_is_no_class():
    x, y = points(8, 6, 4)
    value = gaussian_squared_wasserstein(
        x=x, y=y, x_labels=np.full(8, 3), y_labels=np.full(6, 3)
    )
    np.testing.assert_allclose(
        value, gaussian_squared_wasserstein(x=x, y=y), rtol=1e-10
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(
    "nothing",
    [
        {"x_labels": [0, 0, 1, 1], "y_labels": [2, 2, 2, 3, 3]},
        {"a": np.zeros(4), "b": np.zeros(5)},
    ],
)
def test_nothing_in_common_gives_zero(covariance, nothing):
    value, of_x, of_y = value_and_gradients(
        gaussian_squared_wasserstein,
        *points(4, 5, 3),
        covariance=covariance,
        **nothing,
    )
    assert value == 0
    np.testing.assert_array_equal(of_x, 0.0)
    np.testing.assert_array_equal(of_y, 0.0)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("sizes", [(12, 12, 20), (12, 12, 4), (5, 9, 7)])
def test_is_never_negative(covariance, sizes):
    """Not between near-equal samples either, in float32."""
    for seed in range(20):
        x, y = points(*sizes, seed=seed)
        if seed % 2 and len(x) == len(y):
            y = x + 10.0 ** -(seed // 2) * y
        unit = 10.0 ** (seed % 5 - 2)
        value = gaussian_squared_wasserstein(
            x=np.float32(unit * x),
            y=np.float32(unit * y),
            covariance=covariance,
        )
        assert 0 <= value < np.inf


@pytest.mark.parametrize("sizes", [(64, 256), (16, 64), (64, 16)])
@pytest.mark.parametrize("decay", [0, 2])
def test_of_equal_samples_is_rounding(sizes, decay):
    """Also where most dimensions hardly vary; so is the gradient."""
    x = np.random.default_rng(0).normal(size=sizes)
    x = np.float32(x / (1.0 + np.arange(sizes[1])) ** decay)
    trace = np.sum(np.var(x, axis=0))
    value, of_x, _ = value_and_gradients(gaussian_squared_wasserstein, x, x)
    assert value <= 1e-6 * trace
    assert np.max(np.abs(of_x)) * len(x) <= 2e-3 * np.sqrt(trace)


def test_small_differences_are_not_lost_in_rounding():
    """Neither by a distant origin, nor as differences of traces."""
    x, _ = points(64, 64, 8)
    y = x + 1e-2 * np.random.default_rng(1).normal(size=x.shape)
    x, y = np.float32(x + 100.0), np.float32(y + 100.0)
    value = gaussian_squared_wasserstein(x=x, y=y)
    np.testing.assert_allclose(value, expected_distance(x, y), rtol=1e-2)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("classes", [None, 3])
def test_hard_samples_have_finite_gradients(covariance, classes):
    x, y = np.float32(points(8, 8, 12))
    labels = None if classes is None else np.arange(8) % classes
    for case in (
        (x, x),
        (np.ones_like(x), y),
        (x, np.ones_like(y)),
        (np.ones_like(x), np.ones_like(y)),
        (np.zeros_like(x), np.zeros_like(y)),
        (np.zeros_like(x), y),
        (np.outer(x[:, 0], x[0]), y),
        (1e4 * x, y),
        (1e-6 * x, 1e-6 * y),
        (1e-15 * x, y),
    ):
        for tensor in value_and_gradients(
            gaussian_squared_wasserstein,
            *case,
            covariance=covariance,
            x_labels=labels,
            y_labels=labels,
        ):
            assert np.all(np.isfinite(tensor))


def test_single_points_have_their_distance():
    for covariance in COVARIANCES:
        value, of_x, of_y = value_and_gradients(
            gaussian_squared_wasserstein,
            np.float32([[1.0, 5.0]]),
            np.float32([[4.0, 1.0]]),
            covariance=covariance,
        )
        assert value == 25.0
        np.testing.assert_array_equal(of_x, [[-6.0, 8.0]])
        np.testing.assert_array_equal(of_y, [[6.0, -8.0]])


def test_collapsed_side_pays_the_other_sides_variance():
    """And is drawn to its mean; it has no direction to spread in."""
    _, y = np.float32(points(8, 8, 5))
    x = np.ones_like(y)
    value, of_x, _ = value_and_gradients(gaussian_squared_wasserstein, x, y)
    mean, covariance = reference.moments(y)
    np.testing.assert_allclose(
        value, np.sum((1 - mean) ** 2) + np.trace(covariance), rtol=1e-5
    )
    np.testing.assert_allclose(
        of_x, np.tile(2 * (1 - mean) / 8, (8, 1)), rtol=1e-4
    )


def test_missing_directions_are_drawn_out():
    """Points on a line, against a ball, are not left on it.

    Their rounding is enough to turn the other directions of the ball to.
    """
    rng = np.random.default_rng(0)
    line = rng.normal(size=6)
    x = np.float32(np.outer(rng.normal(size=16), line))
    y = np.float32(rng.normal(size=(16, 6)))
    _, of_x, _ = value_and_gradients(gaussian_squared_wasserstein, x, y)
    of_x = of_x.numpy()
    along = np.outer(of_x @ line, line) / (line @ line)
    spread = (of_x - along) - np.mean(of_x - along, axis=0)
    # 2/n |spread of y| in each of five directions, of variance one.
    assert np.linalg.norm(spread) > 0.5 * 2 / 16 * np.sqrt(5 * 16)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_nan_is_not_hidden(covariance):
    x, y = np.float32(points(8, 8, 4))
    x[2, 1] = np.nan
    for pair in ((x, y), (y, x)):
        for labels in (None, np.arange(8) % 2):
            value = gaussian_squared_wasserstein(
                x=pair[0],
                y=pair[1],
                covariance=covariance,
                x_labels=labels,
                y_labels=labels,
            )
            assert np.isnan(value)


@pytest.mark.parametrize("sizes", [(8, 8, 12), (12, 12, 5), (5, 9, 7)])
def test_sides_and_leading_axes(sizes):
    """Symmetrical; each entry of the leading axes is a problem of its own."""
    x, y = np.stack([points(*sizes, seed=s)[0] for s in range(3)]), None
    y = np.stack([points(*sizes, seed=s)[1] for s in range(3)])
    labels = {
        "x_labels": np.arange(sizes[0]) % 2,
        "y_labels": np.arange(sizes[1]) % 2,
    }
    for options in ({}, {"covariance": "diagonal"}, labels):
        values = gaussian_squared_wasserstein(x=x, y=y, **options)
        assert values.shape == (3,)
        each = [
            gaussian_squared_wasserstein(x=p, y=q, **options)
            for p, q in zip(x, y, strict=True)
        ]
        np.testing.assert_allclose(values, each, rtol=1e-10)
    np.testing.assert_allclose(
        gaussian_squared_wasserstein(x=x, y=y),
        gaussian_squared_wasserstein(x=y, y=x),
        rtol=1e-10,
    )


def test_moving_and_turning_the_space_changes_nothing():
    x, y = points(10, 10, 6)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    value = gaussian_squared_wasserstein(x=x, y=y)
    np.testing.assert_allclose(
        gaussian_squared_wasserstein(x=x @ turn + 7, y=y @ turn + 7),
        value,
        rtol=1e-10,
    )
    diagonal = gaussian_squared_wasserstein(x=x, y=y, covariance="diagonal")
    turned = gaussian_squared_wasserstein(
        x=x @ turn, y=y @ turn, covariance="diagonal"
    )
    assert abs(turned - diagonal) > 0.01 * diagonal


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_moving_one_side_adds_the_square(covariance):
    """|m + t|^2 - |m|^2 = 2 m t + |t|^2."""
    x, y = points(10, 10, 6)
    step = np.arange(6.0)
    before, after = (
        gaussian_squared_wasserstein(x=x + t, y=y, covariance=covariance)
        for t in (0 * step, step)
    )
    mean = np.mean(x, axis=0) - np.mean(y, axis=0)
    np.testing.assert_allclose(
        after - before, 2 * mean @ step + step @ step, rtol=1e-10
    )


@pytest.mark.parametrize("exponent", [-10, 10])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_units_change_no_digit(exponent, covariance):
    """A power of two does not, in floating point."""
    x, y = np.float32(points(8, 8, 12))
    unit = np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        gaussian_squared_wasserstein(
            x=unit * x, y=unit * y, covariance=covariance
        ),
        unit**2 * gaussian_squared_wasserstein(x=x, y=y, covariance=covariance),
    )


def test_diagonal_is_full_for_independent_dimensions():
    """All sign patterns, scaled: no covariance between dimensions at all."""
    signs = np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1
    x, y = signs * [1.0, 2.0, 3.0], signs[::-1] * [3.0, 0.5, 3.0] + 1
    for covariance in COVARIANCES:
        value = gaussian_squared_wasserstein(x=x, y=y, covariance=covariance)
        np.testing.assert_allclose(value, 3 + 4 + 2.25 + 0, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_is_below_the_distance_of_matched_points(seed, covariance):
    """W2(g_S P, g_T P) <= |g_S - g_T| in L2(P): the paper's theorem 1.

    Below exact transport of the points, too: moments are less than points.
    """
    x, y = points(6, 6, 3, seed=seed)
    value = gaussian_squared_wasserstein(x=x, y=y, covariance=covariance)
    cost = reference.pairwise_cost(x, y, "squared_euclidean")
    transport = reference.exact_transport_cost(cost)
    assert value <= transport + 1e-12
    assert transport <= np.trace(cost) / 6 + 1e-12


def test_twice_the_point_is_twice_the_mass():
    x, y = points(6, 6, 9)
    twice = [0, 0, 1, 2, 3, 4, 5]
    for covariance in COVARIANCES:
        np.testing.assert_allclose(
            gaussian_squared_wasserstein(
                x=x, y=y, a=np.array([2, 1, 1, 1, 1, 1]) / 7,
                covariance=covariance,
            ),
            gaussian_squared_wasserstein(
                x=x[twice], y=y, covariance=covariance
            ),
            rtol=1e-8,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((5, 9, 12), {}),
        ((12, 12, 5), {}),
        ((12, 12, 5), {"covariance": "diagonal", "classes": 2}),
        ((8, 8, 12), {"classes": 2}),
    ],
)
def test_eager_graph_and_xla_agree(sizes, options):
    x, y = (tf.constant(np.float32(side)) for side in points(*sizes))

    def evaluate(x, y):
        arguments = dict(options)
        if classes := arguments.pop("classes", None):
            arguments["x_labels"] = tf.range(tf.shape(x)[0]) % classes
            arguments["y_labels"] = tf.range(tf.shape(y)[0]) % classes
        return value_and_gradients(
            gaussian_squared_wasserstein, x, y, **arguments
        )

    expected = evaluate(x, y)
    unknown = [tf.TensorSpec([None, sizes[2]], tf.float32)] * 2
    for compiled in (
        tf.function(evaluate),
        tf.function(evaluate, input_signature=unknown),
        tf.function(evaluate, input_signature=unknown, jit_compile=True),
        tf.function(evaluate, jit_compile=True),
    ):
        for tensor, same in zip(compiled(x, y), expected, strict=True):
            np.testing.assert_allclose(tensor, same, rtol=1e-4, atol=1e-5)


def test_masses_have_no_gradient():
    x, y = points(5, 5, 3)
    masses = tf.constant(random_masses(5))
    with tf.GradientTape() as tape:
        tape.watch(masses)
        value = gaussian_squared_wasserstein(x=x, y=y, a=masses, b=masses)
    assert tape.gradient(value, masses) is None


@pytest.mark.parametrize("d", [4, 12])
def test_steps_store_nothing_for_a_gradient(d):
    concrete = tf.function(
        lambda x, y: value_and_gradients(gaussian_squared_wasserstein, x, y)
    ).get_concrete_function(*[tf.TensorSpec([8, d], tf.float32)] * 2)
    graph = str(concrete.graph.as_graph_def())
    assert "While" in graph
    assert "TensorList" not in graph


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_cast_up(dtype):
    low = [tf.cast(side, dtype) for side in points(8, 8, 12)]
    value = gaussian_squared_wasserstein(x=low[0], y=low[1])
    assert value.dtype == tf.float32
    high = [tf.cast(side, tf.float32) for side in low]
    assert value == gaussian_squared_wasserstein(x=high[0], y=high[1])


@pytest.mark.parametrize("sizes", [(6, 6, 20), (12, 12, 4), (4, 7, 9)])
def test_polar_factor_is_the_best_rotation(sizes):
    """`<P, K>` is the sum of K's singular values, and none of P's is above 1.

    Against NumPy's decomposition, where no singular value is zero.
    """
    x, y = points(*sizes)
    factor = polar_factor(tf.constant(x), tf.constant(y)).numpy()
    u, s, v = np.linalg.svd(x @ y.T, full_matrices=False)
    rank = min(sizes)
    expected = u[:, :rank] @ v[:rank]
    np.testing.assert_allclose(factor, expected, atol=1e-9)
    np.testing.assert_allclose(np.sum(factor * (x @ y.T)), np.sum(s[:rank]))


def test_polar_factor_reaches_small_singular_values():
    """Down to rounding, of which float32 has 1e-7 and float64 2e-16."""
    for dtype, least in (("float32", 1e-6), ("float64", 1e-15)):
        x = np.diag(np.geomspace(1.0, least, 9)).astype(dtype)
        factor = polar_factor(tf.constant(x), tf.eye(9, dtype=dtype))
        np.testing.assert_allclose(factor, np.eye(9), atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("units", [(1e-15, 1e-15), (1e-25, 1.0), (1e15, 1.0)])
@pytest.mark.parametrize("sizes", [(12, 12, 20), (30, 30, 5)])
def test_tiny_and_huge_signals_have_a_rotation(sizes, units, jit_compile):
    """Squares of their products are below the least number of float32."""
    sides = points(*sizes)
    rotation = tf.function(polar_factor, jit_compile=jit_compile)
    scaled = [
        tf.constant(unit * side, "float32")
        for unit, side in zip(units, sides, strict=True)
    ]
    np.testing.assert_allclose(
        rotation(*scaled), polar_factor(*map(tf.constant, sides)), atol=1e-3
    )
    nothing = rotation(scaled[0], 0.0 * scaled[1])
    assert np.all(np.isfinite(nothing))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.zeros([3, 5])}, "`x` and `y`"),
        ({"y": np.zeros([2, 3, 4])}, "`x` and `y`"),
        ({"x": np.zeros(4), "y": np.zeros(4)}, "`x` and `y`"),
        ({"a": np.ones(4)}, "`a`.*a.shape="),
        ({"b": np.ones([2, 3])}, "`b`.*b.shape="),
        ({"x_labels": [0, 1, 1]}, "`x_labels` and `y_labels`"),
        ({"x_labels": [0, 1], "y_labels": [0, 1, 1]}, "`x_labels`"),
        ({"covariance": "scalar"}, "`covariance`.*'full', 'diagonal'"),
        ({"covariance": None}, "`covariance`"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    x, y = points(3, 3, 4)
    with pytest.raises(ValueError, match=message):
        gaussian_squared_wasserstein(**{"x": x, "y": y, **arguments})


@pytest.mark.parametrize(
    "shapes",
    [
        ((2,), (2, 2), (3,), (2, 2)),
        ((2,), (2, 3), (2,), (2, 2)),
        ((2,), (2,), (2,), (2,)),
        ((), (1, 1), (), (1, 1)),
    ],
)
def test_moments_that_do_not_fit_are_refused(shapes):
    names = ("mean_x", "covariance_x", "mean_y", "covariance_y")
    moments = {
        name: np.zeros(shape) for name, shape in zip(names, shapes, strict=True)
    }
    with pytest.raises(ValueError, match="moments.*mean_x=.*covariance_y="):
        gaussian_squared_wasserstein_of_moments(**moments)
