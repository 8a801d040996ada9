"""The Wasserstein distance between Gaussians, without a matrix root."""

import tensorflow as tf

from tfkd.transport.moments import (
    centre,
    check_covariance,
    check_moments,
    safe_sqrt,
)
from tfkd.transport.polar import polar_factor


def gaussian_squared_wasserstein(
    *,
    x,
    y,
    a=None,
    b=None,
    covariance="full",
    x_labels=None,
    y_labels=None,
):
    """Squared 2-Wasserstein distance between the Gaussians of two samples.

    Formula, with means m and covariances S (of maximum likelihood, divided
    by n):

    - "full": `|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^1/2 S_y S_x^1/2)^1/2)`
    - "diagonal": `|m_x - m_y|^2 + |s_x - s_y|^2`, `s^2` the diagonal of S

    The full form is computed as what is left of the centred points after the
    best rotation of one set onto the other (Procrustes): with
    `X = a^1/2 (x - m_x)`, Y likewise and P the orthogonal factor of `X Y^T`,

        |m_x - m_y|^2 + |X - P Y|^2 + |Y|^2 - |P Y|^2

    No covariance is formed. With P a constant, which it may be as it is
    optimal, this has the gradient of the distance, also for fewer points
    than dimensions. The value is never negative; between equal samples it is
    of the order of rounding, some 1e-6 of the covariances' traces in float32.

    With labels, the mean over the classes that both sides have, each with a
    Gaussian of its own; 0 if there are none. A class of one point has no
    covariance.

    Args:
        x: Points, `[..., n, d]`.
        y: Points, `[..., m, d]`.
        a: Masses of x, `[n]` or `[..., n]`, non-negative, with sum one; or
            all zero, on both sides, for a value of zero. None: `1 / n` each.
        b: Masses of y, `[m]` or `[..., m]`, likewise.
        covariance: "full" or "diagonal".
        x_labels: Classes of x, integers `[n]` or `[..., n]`; None: one class.
        y_labels: Classes of y, `[m]` or `[..., m]`.

    Returns:
        Non-negative tensor `[...]`, in squared units of the points, float32
        or float64; NaN where a point is. Where a standard deviation is 0 its
        gradient is taken as 0. None goes to the masses.

    Raises:
        ValueError: If `covariance` is unknown, shapes do not fit, or one side
            alone has labels.

    Example:

    >>> x = [[-1.0], [1.0]]  # mean 0, standard deviation 1
    >>> y = [[7.0], [13.0]]  # mean 10, standard deviation 3
    >>> float(gaussian_squared_wasserstein(x=x, y=y))
    104.0

    Reference: Peyré & Cuturi 2019, remark 2.31; Fernandes Montesuma 2025,
    equation 5 (and 3, of classes).
    """
    check_covariance(covariance)
    points = centre(x, y, a, b, x_labels, y_labels)
    spread = _full(points) if covariance == "full" else _diagonal(points)
    return points.squared_mean_difference() + spread


def gaussian_squared_wasserstein_of_moments(
    *, mean_x, covariance_x, mean_y, covariance_y
):
    """Squared 2-Wasserstein distance between Gaussians of given moments.

    Formula: `|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^1/2 S_y S_x^1/2)^1/2)`

    For analysis: no gradient goes to the covariances.

    Args:
        mean_x: `[..., d]`.
        covariance_x: Symmetric positive semi-definite, `[..., d, d]`.
        mean_y: `[..., d]`.
        covariance_y: As `covariance_x`.

    Returns:
        Non-negative tensor `[...]`, float64 if a moment is.

    Raises:
        ValueError: If shapes do not fit.

    Example:

    >>> standard = {"mean_x": [0.0], "covariance_x": [[1.0]]}
    >>> float(gaussian_squared_wasserstein_of_moments(
    ...     mean_y=[10.0], covariance_y=[[9.0]], **standard))
    104.0

    Reference: Peyré & Cuturi 2019, remark 2.31.
    """
    mean_x, covariance_x, mean_y, covariance_y = check_moments(
        mean_x, covariance_x, mean_y, covariance_y
    )
    means = tf.reduce_sum(tf.math.squared_difference(mean_x, mean_y), -1)
    return means + _residual(_root(covariance_x), _root(covariance_y))


# Operation by operation from Python, it takes several times as long.
@tf.function(autograph=False)
def _full(points):
    return _residual(points.x, points.y, mask=points.both_same)


def _residual(x, y, *, mask=None):
    """What is left of x after the best rotation of y, `[...]`.

    Args:
        x: `[..., n, d]`, with `x^T x` the covariance.
        y: `[..., m, d]`, likewise.
        mask: None, or blocks to rotate within, `[..., m, n]`.
    """
    rotation = polar_factor(y, x, mask=mask)  # [..., m, n]
    moved = tf.matmul(rotation, x)
    axes = [-2, -1]
    # The part of x that m points are too few to hold, if m < n.
    lost = tf.reduce_sum(x * x, axes) - tf.reduce_sum(moved * moved, axes)
    return tf.reduce_sum(tf.square(y - moved), axes) + tf.nn.relu(lost)


def _diagonal(points):
    """Squared difference of the standard deviations, `[...]`."""
    x, y = points.variances()
    squared = tf.math.squared_difference(safe_sqrt(x), safe_sqrt(y))
    return points.mean_over_classes(tf.reduce_sum(squared, axis=-1))


def _root(covariance):
    """R with `R^T R = S`, rounding's negative eigenvalues taken as 0."""
    values, vectors = tf.linalg.eigh(tf.stop_gradient(covariance))
    scaled = vectors * tf.sqrt(tf.nn.relu(values))[..., None, :]
    return tf.linalg.matrix_transpose(scaled)
