"""Costs of moving mass between two sets of points."""

import tensorflow as tf

from tfkd.precision import at_least_float32

# A vector shorter than this has no direction.
_SHORTEST = 1e-12


def pairwise_cost(*, x, y, metric="cosine"):
    """The cost between each point of one set and each of another.

    Formulas, with n(v) = v / |v|, and 0 where |v| < 1e-12:
    cosine `1 - n(x_i) . n(y_j)`, squared_euclidean `|x_i - y_j|^2`.

    Args:
        x: `[..., n, d]`.
        y: `[..., m, d]`.
        metric: "cosine" (no unit, 0 to 2) or "squared_euclidean" (squared
            feature units).

    Returns:
        `[..., n, m]`, >= 0, at least float32, with finite gradients
        everywhere.

    Raises:
        ValueError: If `metric` is unknown or the widths differ.

    Example:

    >>> pairwise_cost(x=[[1.0, 0.0]], y=[[0.0, 2.0], [3.0, 0.0]]).numpy()
    array([[1., 0.]], dtype=float32)

    Reference: Lohit & Jones 2020, equation 3.
    """
    check_metric(metric, "metric")
    x, y = at_least_float32(x), at_least_float32(y)
    if not x.shape[-1:].is_compatible_with(y.shape[-1:]):
        raise ValueError(
            "Points of both sets need the same number of coordinates. "
            f"Received: x of shape {x.shape}, y of shape {y.shape}"
        )
    return _METRICS[metric](x, y)


def check_metric(metric, argument):
    """`metric` if it is known.

    Args:
        metric: Its name.
        argument: The argument's name, for the error.

    Returns:
        The name.

    Raises:
        ValueError: If it is unknown.
    """
    if metric not in _METRICS:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected one of "
            f"{tuple(_METRICS)}. Received: {argument}={metric!r}"
        )
    return metric


def unit_vectors(x):
    """Directions along the last axis, safe at 0.

    Formula: `x / |x|`, and 0 with zero gradient where |x| < 1e-12.

    Args:
        x: `[..., d]`, at least float32.

    Returns:
        `[..., d]`.
    """
    # Scaled by its largest entry first, lest the square underflow.
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    largest = tf.stop_gradient(tf.where(largest < _SHORTEST, 1.0, largest))
    scaled = x / largest
    squared = tf.reduce_sum(tf.square(scaled), axis=-1, keepdims=True)
    long = tf.stop_gradient(tf.sqrt(squared) * largest >= _SHORTEST)
    safe = tf.where(long, squared, tf.ones_like(squared))
    return tf.where(long, scaled * tf.math.rsqrt(safe), tf.zeros_like(x))


def _cosine(x, y):
    similarity = tf.matmul(unit_vectors(x), unit_vectors(y), transpose_b=True)
    return tf.nn.relu(1.0 - similarity)


def _squared_euclidean(x, y):
    # Distances do not change with the origin; near it they lose least to the
    # cancellation in |x|^2 + |y|^2 - 2 x.y.
    origin = tf.stop_gradient(tf.reduce_mean(x, axis=-2, keepdims=True))
    x, y = x - origin, y - origin
    squared_x = tf.reduce_sum(tf.square(x), axis=-1)[..., :, None]
    squared_y = tf.reduce_sum(tf.square(y), axis=-1)[..., None, :]
    return tf.nn.relu(
        squared_x + squared_y - 2.0 * tf.matmul(x, y, transpose_b=True)
    )


_METRICS = {"cosine": _cosine, "squared_euclidean": _squared_euclidean}
