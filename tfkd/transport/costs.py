"""What it costs to carry one point to another."""

import numpy as np
import tensorflow as tf

from tfkd.precision import at_least_float32

# Squares that differ by fewer roundings of their size are taken for equal.
_ROUNDINGS = 16.0


def pairwise_cost(*, x, y, metric="cosine"):
    """Cost of carrying each point of one set to each point of another.

    Formula:

    - "cosine": `1 - n(x_i) . n(y_j)`, see `unit_vectors` for n
    - "squared_euclidean": `|x_i - y_j|^2`
    - "euclidean": `|x_i - y_j|`, and 0 with zero gradient where the rounding
      of the squares leaves no distance: below about 0.2 % of the points'
      distance from their mean in float32

    All are symmetrical in their points, never negative, and have a finite
    gradient everywhere, also where points coincide.

    Args:
        x: Points, `[..., n, d]`.
        y: Points, `[..., m, d]`, of the same leading axes as `x`.
        metric: "cosine", "squared_euclidean" or "euclidean".

    Returns:
        Tensor `[..., n, m]`, in float32, or float64 where a point set came
        so; without unit (in [0, 2]), in squared units of the points or in
        theirs.

    Raises:
        ValueError: If the metric is unknown, a set has fewer than two axes,
            or the sets differ in dimension or leading axes.

    Example:

    >>> pairwise_cost(x=[[1.0, 0.0]], y=[[0.0, 5.0], [2.0, 0.0]]).numpy()
    array([[1., 0.]], dtype=float32)

    Reference: Lohit & Jones 2020, equation 3 (cosine).
    """
    check_metric(metric, "metric")
    x, y = same_precision(x, y)
    check_points(x.shape, y.shape)
    return _METRICS[metric](x, y)


def unit_vectors(x):
    """Vectors divided by their length, safe for vectors without one.

    Formula: `n(x) = x / |x|`, and 0 with zero gradient where `|x| < 1e-12`

    Args:
        x: Vectors, `[..., d]`, floating.

    Returns:
        Tensor of the shape and type of `x`, of length one or zero.
    """
    # A direction does not depend on the length, so a length of the order of
    # one keeps its square in range and needs no gradient.
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), -1, keepdims=True))
    scaled = tf.math.divide_no_nan(x, largest)
    squared = tf.reduce_sum(scaled * scaled, axis=-1, keepdims=True)
    # "Is short" rather than "is long": NaN must come out as NaN, not as 0.
    short = tf.sqrt(tf.stop_gradient(squared)) * largest < 1e-12
    # The root never sees 0, whose infinite slope `where` would turn to NaN.
    inverse = tf.math.rsqrt(tf.where(short, tf.ones_like(squared), squared))
    return tf.where(short, tf.zeros_like(x), scaled * inverse)


def same_precision(x, y):
    """Two tensors in the wider of their types, and in float32 at least.

    Args:
        x: Anything that TensorFlow can make a tensor of.
        y: The same.

    Returns:
        Both as float64 if either is, else both as float32.
    """
    x, y = at_least_float32(x), at_least_float32(y)
    dtype = x.dtype if x.dtype == y.dtype else tf.float64
    return tf.cast(x, dtype), tf.cast(y, dtype)


def check_metric(metric, argument):
    """Raises a `ValueError` that names `argument` if `metric` is unknown."""
    if not isinstance(metric, str) or metric not in _METRICS:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected one of "
            f"{sorted(_METRICS)}. Received: {argument}={metric!r}"
        )


def _cosine(x, y):
    similarity = tf.matmul(unit_vectors(x), unit_vectors(y), transpose_b=True)
    # Rounding puts the product of equal vectors on either side of 1.
    return tf.nn.relu(1.0 - similarity)


def _squared_euclidean(x, y):
    squares, product = _expanded_square(*_centred(x, y))
    return tf.nn.relu(squares - 2.0 * product)


def _euclidean(x, y):
    x, y = _centred(x, y)
    # In units of the largest coordinate no square leaves the range of floats.
    unit = tf.stop_gradient(tf.maximum(_largest(x), _largest(y)))
    unit = tf.where(unit == 0, tf.ones_like(unit), unit)  # [..., 1, 1]
    squares, product = _expanded_square(x / unit, y / unit)
    squared = squares - 2.0 * product
    # What is left of a difference below this is rounding, whose root would
    # have a large gradient in a random direction. "Is near" rather than "is
    # far": NaN must come out as NaN, not as 0.
    floor = _ROUNDINGS * np.finfo(x.dtype.as_numpy_dtype).eps * squares
    near = squared <= tf.stop_gradient(floor)
    root = tf.sqrt(tf.where(near, tf.ones_like(squared), squared))
    return unit * tf.where(near, tf.zeros_like(root), root)


def _centred(x, y):
    """Both sets around the mean of the first.

    Distances do not depend on the origin, the rounding of the expanded square
    does: far from the points it would drown their differences.
    """
    origin = tf.stop_gradient(tf.reduce_mean(x, axis=-2, keepdims=True))
    return x - origin, y - origin


def _expanded_square(x, y):
    """`|x_i|^2 + |y_j|^2` and `x_i . y_j`, `[..., n, m]` each."""
    x_squared = tf.reduce_sum(x * x, axis=-1)[..., :, None]  # [..., n, 1]
    y_squared = tf.reduce_sum(y * y, axis=-1)[..., None, :]  # [..., 1, m]
    return x_squared + y_squared, tf.matmul(x, y, transpose_b=True)


def _largest(x):
    return tf.reduce_max(tf.abs(x), axis=[-2, -1], keepdims=True)


_METRICS = {
    "cosine": _cosine,
    "squared_euclidean": _squared_euclidean,
    "euclidean": _euclidean,
}


def check_points(x, y):
    """Raises a `ValueError` unless shapes are `[..., n, d]`, `[..., m, d]`."""
    agree = x.rank is None or y.rank is None
    if not agree and min(x.rank, y.rank) >= 2:
        agree = x[:-2].is_compatible_with(y[:-2])
        agree = agree and x[-1:].is_compatible_with(y[-1:])
    if not agree:
        raise ValueError(
            "Invalid value for arguments `x` and `y`. Expected points "
            "[..., n, d] and [..., m, d] with the same number of coordinates "
            f"and the same leading axes. Received: x.shape={x}, y.shape={y}"
        )
