"""The divergence between Gaussians: values, gradients, limits."""

import numpy as np
import pytest
import reference
import tensorflow as tf
from samples import points, random_masses

from tfkd.transport import gaussian_kl, gaussian_kl_of_moments

# Fewer points than dimensions, more, and numbers that differ.
SIZES = [
    (64, 64, 512),
    (64, 64, 8),
    (20, 30, 50),
    (30, 20, 50),
    (9, 5, 7),
    (5, 9, 7),
    (40, 30, 10),
]
SMALL = [(4, 4, 6), (6, 6, 3), (3, 5, 6), (5, 3, 4)]
COVARIANCES = ("full", "diagonal")
DIRECTIONS = ("x||y", "y||x")


def expected_divergence(
    x, y, a=None, b=None, *, covariance="full", direction="x||y", ridge=0.1
):
    """Per dimension, by dense matrices."""
    mean_x, cov_x = reference.moments(x, a)
    mean_y, cov_y = reference.moments(y, b)
    if covariance == "diagonal":
        cov_x, cov_y = np.diag(np.diag(cov_x)), np.diag(np.diag(cov_y))
    d = len(mean_x)
    load = ridge * np.trace(cov_y) / d * np.eye(d)
    moments = [(mean_x, cov_x + load), (mean_y, cov_y + load)]
    if direction == "y||x":
        moments.reverse()
    return reference.gaussian_kl(*moments[0], *moments[1]) / d


def value_and_gradients(function, x, y, **arguments):
    x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        value = function(x=x, y=y, **arguments)
    return value, *tape.gradient(value, [x, y])


def assert_gradients(x, y, **arguments):
    """Both sides' gradients are central differences of the value.

    Of y also through the ridge, which is relative to its variance.
    """
    _, of_x, of_y = value_and_gradients(gaussian_kl, x, y, **arguments)
    evaluate = tf.function(lambda x, y: gaussian_kl(x=x, y=y, **arguments))
    for gradient, function, at in (
        (of_x, lambda z: evaluate(tf.constant(z), tf.constant(y)), x),
        (of_y, lambda z: evaluate(tf.constant(x), tf.constant(z)), y),
    ):
        expected = reference.central_difference(function, at)
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(
            gradient, expected, rtol=1e-5, atol=1e-7 * scale
        )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_of_two_normals_on_a_line(covariance):
    """N(0, 1) from N(10, 9), both with 0.1 * 9 on the variance.

    1/2 (1.9 / 9.9 + 100 / 9.9 - 1 + log(9.9 / 1.9)).
    """
    value = gaussian_kl(
        x=[[-1.0], [1.0]], y=[[7.0], [13.0]], covariance=covariance
    )
    expected = (101.9 / 9.9 - 1 + np.log(9.9 / 1.9)) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_agrees_with_dense_matrices(sizes, weighted, covariance, direction):
    n, m, _ = sizes
    x, y = points(*sizes)
    a = random_masses(n) if weighted else None
    b = random_masses(m, seed=1) if weighted else None
    options = {"covariance": covariance, "direction": direction}
    expected = expected_divergence(x, y, a, b, **options)
    for dtype, tolerance in (("float64", 1e-10), ("float32", 3e-5)):
        value = gaussian_kl(
            x=x.astype(dtype), y=y.astype(dtype), a=a, b=b, **options
        )
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance)


@pytest.mark.parametrize("ridge", [1e-2, 1.0])
def test_ridge_is_in_units_of_the_variance_of_y(ridge):
    x, y = points(8, 8, 12)
    expected = expected_divergence(x, y, ridge=ridge)
    for unit in (1e-3, 1.0, 1e3):
        value = gaussian_kl(x=unit * x, y=unit * y, ridge=ridge)
        np.testing.assert_allclose(value, expected, rtol=1e-8)


def test_of_one_dimension_or_of_all():
    x, y = points(8, 8, 12)
    np.testing.assert_allclose(
        gaussian_kl(x=x, y=y, per_dimension=False),
        12 * gaussian_kl(x=x, y=y),
        rtol=1e-12,
    )


def test_printed_diagonal_form_is_twice_the_divergence():
    """The paper lost the 1/2 between equation 6 and its special case."""
    rng = np.random.default_rng(0)
    mean_x, mean_y = rng.normal(size=(2, 5))
    std_x, std_y = rng.uniform(0.5, 2.0, size=(2, 5))
    printed = (
        np.sum((std_x / std_y) ** 2)
        + np.sum(((mean_y - mean_x) / std_y) ** 2)
        - 5
        + 2 * np.sum(np.log(std_y / std_x))
    )
    full = gaussian_kl_of_moments(
        mean_x=mean_x,
        covariance_x=np.diag(std_x**2),
        mean_y=mean_y,
        covariance_y=np.diag(std_y**2),
    )
    np.testing.assert_allclose(printed, 2 * full, rtol=1e-12)
    # Samples of these moments: points at one standard deviation, either way.
    signs = np.array(list(np.ndindex(2, 2, 2, 2, 2))) * 2.0 - 1
    for covariance in COVARIANCES:
        value = gaussian_kl(
            x=mean_x + signs * std_x,
            y=mean_y + signs * std_y,
            covariance=covariance,
            ridge=1e-12,
            per_dimension=False,
        )
        np.testing.assert_allclose(value, printed / 2, rtol=1e-9)


@pytest.mark.parametrize("d", [1, 6])
def test_form_of_moments_agrees_and_has_a_gradient(d):
    x, y = points(20, 30, d)
    moments = [*reference.moments(x), *reference.moments(y)]
    names = ("mean_x", "covariance_x", "mean_y", "covariance_y")
    value = gaussian_kl_of_moments(**dict(zip(names, moments, strict=True)))
    np.testing.assert_allclose(
        value, reference.gaussian_kl(*moments), rtol=1e-10
    )

    def of_factor(factor):
        """Steps in a factor keep the covariance symmetrical."""
        return gaussian_kl_of_moments(
            mean_x=moments[0],
            covariance_x=factor @ tf.transpose(factor),
            mean_y=moments[2],
            covariance_y=moments[3],
        )

    factor = tf.constant(np.linalg.cholesky(moments[1]))
    with tf.GradientTape() as tape:
        tape.watch(factor)
        value = of_factor(factor)
    np.testing.assert_allclose(
        tape.gradient(value, factor),
        reference.central_difference(of_factor, factor),
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize("sizes", SMALL)
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_agree_with_central_differences(sizes, covariance, direction):
    n, m, _ = sizes
    assert_gradients(
        *points(*sizes),
        a=random_masses(n),
        b=random_masses(m, seed=1),
        covariance=covariance,
        direction=direction,
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_labels_give_the_mean_over_common_classes(covariance, direction):
    """Class 3 has one x, class 5 is on one side, class 7 has no mass."""
    d = 4
    x, y = points(10, 8, d)
    x_labels = np.int32([0, 0, 0, 1, 1, 1, 3, 5, 7, 7])
    y_labels = np.int32([0, 1, 0, 1, 3, 7, 3, 0])
    a, b = random_masses(10), random_masses(8, seed=1)
    a[8:] = 0.0
    # The classes of y, equal in mass, taken together.
    balanced = np.zeros(8)
    for label in (0, 1, 3):
        own = y_labels == label
        balanced[own] = b[own] / np.sum(b[own]) / 3
    _, together = reference.moments(y, balanced)
    load = 0.1 * np.trace(together) / d * np.eye(d)
    values = []
    for label in (0, 1, 3):
        sides = []
        for side, masses, labels in ((x, a, x_labels), (y, b, y_labels)):
            own = masses[labels == label]
            mean, cov = reference.moments(
                side[labels == label], own / own.sum()
            )
            if covariance == "diagonal":
                cov = np.diag(np.diag(cov))
            sides.append((mean, cov + load))
        if direction == "y||x":
            sides.reverse()
        values.append(reference.gaussian_kl(*sides[0], *sides[1]) / d)
    arguments = {
        "a": a,
        "b": b,
        "covariance": covariance,
        "direction": direction,
        "x_labels": x_labels,
        "y_labels": y_labels,
    }
    value = gaussian_kl(x=x, y=y, **arguments)
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-9)
    assert_gradients(x, y, **arguments)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(
    "nothing",
    [
        {"x_labels": [0, 0, 1, 1], "y_labels": [2, 2, 2, 3, 3]},
        {"a": np.zeros(4), "b": np.zeros(5)},
    ],
)
@pytest.mark.parametrize("d", [3, 8])
def test_nothing_in_common_gives_zero(covariance, nothing, d):
    value, of_x, of_y = value_and_gradients(
        gaussian_kl, *points(4, 5, d), covariance=covariance, **nothing
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
        value = gaussian_kl(
            x=np.float32(unit * x),
            y=np.float32(unit * y),
            covariance=covariance,
        )
        assert 0 <= value < np.inf


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("sizes", [(16, 64), (64, 16)])
def test_of_equal_samples_is_rounding(covariance, sizes):
    x = np.float32(np.random.default_rng(0).normal(size=sizes))
    value, of_x, _ = value_and_gradients(
        gaussian_kl, x, x, covariance=covariance
    )
    assert value <= 1e-6
    assert np.max(np.abs(of_x)) <= 1e-6


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("d", [3, 12])
def test_hard_samples_have_finite_gradients(covariance, direction, classes, d):
    x, y = np.float32(points(8, 8, d))
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
        (x, 1e4 * y),
        (1e-6 * x, 1e-6 * y),
    ):
        for tensor in value_and_gradients(
            gaussian_kl,
            *case,
            covariance=covariance,
            direction=direction,
            x_labels=labels,
            y_labels=labels,
        ):
            assert np.all(np.isfinite(tensor))


@pytest.mark.parametrize("d", [8, 64])
def test_large_samples_raise_the_ridge_to_rounding(d):
    """In float32, where 0.1 of y's variance would be lost beside x's.

    With the ridge written out, the divergence is the formula's; and its
    gradient still shrinks x.
    """
    x, y = points(32, 32, d)
    x = 1e5 * (x - np.mean(x, axis=0))
    _, cov_x = reference.moments(x)
    ridge = 16 * np.finfo("float32").eps * np.trace(cov_x)
    assert ridge > 100 * 0.1 * np.trace(reference.moments(y)[1]) / d
    relative = ridge * d / np.trace(reference.moments(y)[1])
    value, of_x, _ = value_and_gradients(
        gaussian_kl, np.float32(x), np.float32(y)
    )
    expected = expected_divergence(x, y, ridge=relative)
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    assert np.sum(of_x * x) > 0.1 * value


def test_tiny_ridge_is_raised_to_rounding():
    x, y = np.float32(points(32, 32, 512))
    for tensor in value_and_gradients(gaussian_kl, x, y, ridge=1e-12):
        assert np.all(np.isfinite(tensor))


def test_single_points_compare_by_distance_alone():
    """Both covariances are the ridge: dm^2 / 2e per dimension.

    e = 0.1 * 1e-12, as one point has no variance to take it from.
    """
    value = gaussian_kl(x=[[1.0, 0.0]], y=[[1.0, 1e-7]])
    np.testing.assert_allclose(value, 1e-14 / 1e-13 / 2 / 2, rtol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("d", [4, 12])
def test_nan_is_not_hidden(covariance, d):
    x, y = np.float32(points(8, 8, d))
    x[2, 1] = np.nan
    for pair in ((x, y), (y, x)):
        for labels in (None, np.arange(8) % 2):
            value = gaussian_kl(
                x=pair[0],
                y=pair[1],
                covariance=covariance,
                x_labels=labels,
                y_labels=labels,
            )
            assert np.isnan(value)


def test_moving_and_turning_the_space_changes_nothing():
    for d in (6, 16):
        x, y = points(10, 10, d)
        turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))
        np.testing.assert_allclose(
            gaussian_kl(x=x @ turn + 7, y=y @ turn + 7),
            gaussian_kl(x=x, y=y),
            rtol=1e-9,
        )


@pytest.mark.parametrize("sizes", [(8, 8, 12), (12, 12, 5), (5, 9, 7)])
def test_leading_axes_are_separate_problems(sizes):
    pairs = [points(*sizes, seed=seed) for seed in range(3)]
    x, y = (np.stack(side) for side in zip(*pairs, strict=True))
    labels = {
        "x_labels": np.arange(sizes[0]) % 2,
        "y_labels": np.arange(sizes[1]) % 2,
    }
    for options in ({}, {"covariance": "diagonal"}, labels):
        values = gaussian_kl(x=x, y=y, **options)
        assert values.shape == (3,)
        each = [gaussian_kl(x=p, y=q, **options) for p, q in pairs]
        np.testing.assert_allclose(values, each, rtol=1e-10)


def test_twice_the_point_is_twice_the_mass():
    x, y = points(6, 6, 9)
    twice = [0, 0, 1, 2, 3, 4, 5]
    for covariance in COVARIANCES:
        np.testing.assert_allclose(
            gaussian_kl(
                x=x,
                y=y,
                a=np.array([2, 1, 1, 1, 1, 1]) / 7,
                covariance=covariance,
            ),
            gaussian_kl(x=x[twice], y=y, covariance=covariance),
            rtol=1e-10,
        )


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((5, 9, 12), {}),
        ((12, 12, 5), {"direction": "y||x"}),
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
        return value_and_gradients(gaussian_kl, x, y, **arguments)

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.zeros([3, 5])}, "`x` and `y`"),
        ({"a": np.ones(4)}, "`a`.*a.shape="),
        ({"y_labels": [0, 1, 1]}, "`x_labels` and `y_labels`"),
        ({"covariance": "scalar"}, "`covariance`.*'full', 'diagonal'"),
        ({"direction": "x to y"}, r"`direction`.*'x\|\|y', 'y\|\|x'"),
        ({"ridge": 0.0}, "`ridge`.*> 0"),
        ({"ridge": -0.1}, "`ridge`"),
        ({"ridge": np.inf}, "`ridge`"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    x, y = points(3, 3, 4)
    with pytest.raises(ValueError, match=message):
        gaussian_kl(**{"x": x, "y": y, **arguments})


def test_moments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="moments.*covariance_y="):
        gaussian_kl_of_moments(
            mean_x=np.zeros(2),
            covariance_x=np.eye(2),
            mean_y=np.zeros(2),
            covariance_y=np.eye(3),
        )


def test_moments_that_are_no_covariance_give_nan():
    value = gaussian_kl_of_moments(
        mean_x=np.zeros(2),
        covariance_x=np.diag([1.0, -1.0]),
        mean_y=np.zeros(2),
        covariance_y=np.eye(2),
    )
    assert np.isnan(value)
