"""The Kullback-Leibler divergence between Gaussians, in Gram form."""

import numpy as np
import tensorflow as tf

from tfkd.arguments import check_choice, check_positive
from tfkd.transport.moments import centre, check_covariance, check_moments
from tfkd.transport.polar import is_flat

_DIRECTIONS = ("x||y", "y||x")
# The variance below which features count as constant, in squared units.
_LEAST_VARIANCE = 1e-12


def gaussian_kl(
    *,
    x,
    y,
    a=None,
    b=None,
    covariance="full",
    direction="x||y",
    ridge=0.1,
    per_dimension=True,
    x_labels=None,
    y_labels=None,
):
    """Kullback-Leibler divergence between the Gaussians of two samples.

    Formula, with means m, covariances S (of maximum likelihood, divided by
    n) and `S~ = S + e I`, for the direction "x||y":

        1/2 [ tr(S~_y^-1 S~_x) + dm^T S~_y^-1 dm - d + log(|S~_y| / |S~_x|) ]

    divided by d. Fewer points than dimensions leave S without inverse, so
    that e decides; it is relative to the variance of y, the reference:
    `e = ridge max(tr S_y / d, 1e-12)`, and no less than what a Cholesky
    factorisation needs in floating point, 2e-6 of the larger trace in
    float32.

    With n < d or m < d only matrices of n x n and m x m are factorised: for
    `L L^T = I + Y Y^T / e`, Y the weighted centred points,
    `S~_y^-1 = (I - Y^T (L L^T)^-1 Y / e) / e` and `|S~_y| = e^d |L|^2`.

    "diagonal" ignores all covariances between dimensions. Fernandes Montesuma
    2025 prints that form without the factor 1/2, twice the full form where
    both hold; here it has the factor.

    With labels, the mean over the classes that both sides have, each with a
    Gaussian of its own and all with the ridge of y as a whole; 0 if there
    are none. A class of one point has covariance 0, hence `e I`.

    Args:
        x: Points, `[..., n, d]`.
        y: Points, `[..., m, d]`.
        a: Masses of x, `[n]` or `[..., n]`, non-negative, with sum one; or
            all zero, on both sides, for a value of zero. None: `1 / n` each.
        b: Masses of y, `[m]` or `[..., m]`, likewise.
        covariance: "full" or "diagonal".
        direction: "x||y" for the divergence of x from y, the expectation
            being over x; "y||x" for the other. The ridge is y's in both.
        ridge: Added to the variances, in units of y's mean variance. > 0.
        per_dimension: Whether to divide by d, without which the value grows
            with `d / ridge`.
        x_labels: Classes of x, integers `[n]` or `[..., n]`; None: one class.
        y_labels: Classes of y, `[m]` or `[..., m]`.

    Returns:
        Non-negative tensor `[...]`, in nats (per dimension), float32 or
        float64; NaN where a point is. None of its gradient goes to masses.

    Raises:
        ValueError: If an argument is invalid, shapes do not fit, or one side
            alone has labels.

    Reference: Fernandes Montesuma 2025, equation 6.
    """
    check_covariance(covariance)
    check_choice(direction, _DIRECTIONS, "direction")
    ridge = check_positive(ridge, "ridge")
    if direction == "x||y":
        points = centre(x, y, a, b, x_labels, y_labels)
        variance = points.y_variance
    else:
        points = centre(y, x, b, a, y_labels, x_labels)
        variance = points.x_variance
    ridge *= tf.maximum(variance, _LEAST_VARIANCE)  # [...]
    if covariance == "full":
        value = _full(points, ridge)
    else:
        value = _diagonal(points, ridge)
    if per_dimension:
        value /= tf.cast(tf.shape(points.x)[-1], value.dtype)
    # Rounding puts equal Gaussians on either side of 0; their gradient is
    # right on both.
    return value + tf.stop_gradient(tf.nn.relu(value) - value)


def gaussian_kl_of_moments(*, mean_x, covariance_x, mean_y, covariance_y):
    """Kullback-Leibler divergence of one Gaussian from another.

    Formula: `1/2 [ tr(S_y^-1 S_x) + dm^T S_y^-1 dm - d + log(|S_y| / |S_x|) ]`
    with `dm = m_x - m_y`

    Args:
        mean_x: `[..., d]`.
        covariance_x: Symmetric positive definite, `[..., d, d]`.
        mean_y: `[..., d]`.
        covariance_y: As `covariance_x`.

    Returns:
        Tensor `[...]`, in nats, float64 if a moment is; NaN where a
        covariance is not positive definite.

    Raises:
        ValueError: If shapes do not fit.

    Example:

    >>> standard = {"mean_y": [0.0], "covariance_y": [[1.0]]}
    >>> float(gaussian_kl_of_moments(
    ...     mean_x=[3.0], covariance_x=[[1.0]], **standard))
    4.5

    Reference: Fernandes Montesuma 2025, equation 6.
    """
    mean_x, covariance_x, mean_y, covariance_y = check_moments(
        mean_x, covariance_x, mean_y, covariance_y
    )
    difference = (mean_x - mean_y)[..., None, :]
    return _dense(covariance_x, covariance_y, difference)


# Operation by operation from Python, it takes several times as long.
@tf.function(autograph=False)
def _full(points, ridge):
    x, y = points.x, points.y
    # Of one class: the covariances of `points` are K times smaller.
    ridge /= points.classes
    traces = tf.maximum(
        tf.reduce_sum(x * x, axis=[-2, -1]), tf.reduce_sum(y * y, axis=[-2, -1])
    )
    # A constant of the gradient, so that a large trace is still brought down.
    rounding = 16 * np.finfo(x.dtype.as_numpy_dtype).eps
    ridge = tf.maximum(ridge, tf.stop_gradient(rounding * traces))
    ridge = ridge[..., None, None]

    if points.x_same is not None or not is_flat(x, y):
        return _gram(points, ridge)
    load = ridge * tf.eye(tf.shape(x)[-1], dtype=x.dtype)
    return _dense(
        tf.matmul(x, x, transpose_a=True) + load,
        tf.matmul(y, y, transpose_a=True) + load,
        points.difference,
    )


def _gram(points, ridge):
    """The divergence by matrices of points.

    Args:
        points: A `Centred`.
        ridge: Added to the variances, by K, `[..., 1, 1]`.
    """
    x, y = points.x, points.y
    x_factor = _gram_factor(x, points.x_same, ridge)  # [..., n, n]
    y_factor = _gram_factor(y, points.y_same, ridge)  # [..., m, m]
    cross = tf.matmul(y, x, transpose_b=True)
    if points.both_same is not None:
        cross *= points.both_same
    # y^T times the difference of its own class, [..., m, 1]
    means = tf.reduce_sum(y * points.difference, axis=-1, keepdims=True)
    means /= tf.sqrt(points.classes)[..., None, None]
    products = tf.concat([cross, means], axis=-1)  # [..., m, n + 1]
    unit = tf.eye(tf.shape(y)[-2], batch_shape=tf.shape(y)[:-2], dtype=y.dtype)
    solved = tf.linalg.triangular_solve(
        y_factor, tf.concat([products / tf.sqrt(ridge), unit], axis=-1)
    )
    explained, inverse = tf.split(
        solved, [tf.shape(products)[-1], tf.shape(y)[-2]], axis=-1
    )
    axes = [-2, -1]
    squared = tf.reduce_sum(x * x, axes) + points.squared_mean_difference()
    squared -= tf.reduce_sum(explained * explained, axes)
    trace = tf.reduce_sum(inverse * inverse, axes)
    trace -= tf.cast(tf.shape(y)[-2], y.dtype)
    value = squared / ridge[..., 0, 0] + trace
    value += _log_determinant(y_factor) - _log_determinant(x_factor)
    return value / (2 * points.classes)


def _gram_factor(x, same, ridge):
    """Cholesky factor of `I + x x^T / ridge`, `[..., n, n]`."""
    gram = tf.matmul(x, x, transpose_b=True) / ridge
    if same is not None:
        gram *= same
    return tf.linalg.cholesky(gram + tf.eye(tf.shape(x)[-2], dtype=x.dtype))


def _dense(covariance_x, covariance_y, difference):
    """The divergence by matrices of dimensions; `difference` `[..., 1, d]`."""
    x_factor = tf.linalg.cholesky(covariance_x)
    y_factor = tf.linalg.cholesky(covariance_y)
    means = tf.linalg.matrix_transpose(difference)
    products = tf.concat([x_factor, means], axis=-1)  # [..., d, d + 1]
    solved = tf.linalg.triangular_solve(y_factor, products)
    value = tf.reduce_sum(solved * solved, axis=[-2, -1])
    value -= tf.cast(tf.shape(difference)[-1], value.dtype)
    value += _log_determinant(y_factor) - _log_determinant(x_factor)
    return value / 2


def _log_determinant(factor):
    """Of the matrix with this Cholesky factor, `[...]`."""
    diagonal = tf.linalg.diag_part(factor)
    return 2 * tf.reduce_sum(tf.math.log(diagonal), axis=-1)


def _diagonal(points, ridge):
    x, y = points.variances()
    ridge = ridge[..., None, None]
    x, y = x + ridge, y + ridge
    terms = x / y - 1.0 - tf.math.log(x / y)
    terms += tf.square(points.difference) / y
    return points.mean_over_classes(tf.reduce_sum(terms, axis=-1)) / 2
