"""Two sets of points, by class or as a whole, about their means."""

from typing import NamedTuple

import tensorflow as tf

from tfkd.arguments import check_choice
from tfkd.precision import at_least_float32
from tfkd.transport.costs import check_points, same_precision

_COVARIANCES = ("full", "diagonal")


class Centred(NamedTuple):
    """Two sets of points about their means, each class about its own.

    With K classes on both sides (K = 1 where classes are not told apart), a
    class has mass `1 / K`. Classes on one side only have none.

    Attributes:
        x: `sqrt(a_i) (x_i - mean)`, `[..., n, d]`: `x^T x` is the mean over
            the classes of the covariance.
        y: The same of the other side, `[..., m, d]`.
        difference: Mean of x less mean of y, `[..., 1, d]`, or of each y's
            class, `[..., m, d]`.
        x_variance: Of x as a whole, all classes together, mean over
            dimensions, `[...]`.
        y_variance: The same of y.
        share: Of each y in its class, `[..., m]`; sum K.
        classes: K, `[...]`, at least one.
        x_same: Which x are of one class, zeros and ones, `[..., n, n]`; or
            None, for all.
        y_same: The same for y, `[..., m, m]`.
        both_same: The same for y and x, `[..., m, n]`.
    """

    x: tf.Tensor
    y: tf.Tensor
    difference: tf.Tensor
    x_variance: tf.Tensor
    y_variance: tf.Tensor
    share: tf.Tensor
    classes: tf.Tensor
    x_same: tf.Tensor | None = None
    y_same: tf.Tensor | None = None
    both_same: tf.Tensor | None = None

    def squared_mean_difference(self):
        """`|mean of x - mean of y|^2`, mean over the classes, `[...]`."""
        return self.mean_over_classes(
            tf.reduce_sum(tf.square(self.difference), axis=-1)
        )

    def variances(self):
        """Variances of x and of y, of each y's class.

        Returns:
            Two tensors, `[..., m, d]`; `[..., 1, d]` where classes are not
            told apart.
        """
        x, y = tf.square(self.x), tf.square(self.y)
        if self.x_same is None:
            x = tf.reduce_sum(x, axis=-2, keepdims=True)
            return x, tf.reduce_sum(y, axis=-2, keepdims=True)
        classes = self.classes[..., None, None]
        x = classes * tf.matmul(self.both_same, x)
        return x, classes * tf.matmul(self.y_same, y)

    def mean_over_classes(self, values):
        """Mean over the classes of what each y says of its own.

        Args:
            values: `[..., m]`, or `[..., 1]` for one class.

        Returns:
            Tensor `[...]`; 0 without any class.
        """
        return tf.reduce_sum(self.share * values, axis=-1) / self.classes


def centre(x, y, a, b, x_labels, y_labels):
    """Points about their means.

    Args:
        x: Points, `[..., n, d]`.
        y: Points, `[..., m, d]`.
        a: Masses of x, `[n]` or `[..., n]`, or None for `1 / n` each.
        b: Masses of y, likewise.
        x_labels: Classes of x, integers `[n]` or `[..., n]`, or None.
        y_labels: Classes of y; given if `x_labels` are.

    Returns:
        A `Centred`, in float32 at least; no gradient goes to the masses.

    Raises:
        ValueError: If shapes do not fit or one set of labels is missing.
    """
    x, y = same_precision(x, y)
    check_points(x.shape, y.shape)
    a, b = _of_points(a, x, "a"), _of_points(b, y, "b")
    # Nothing depends on the origin but the rounding of the means.
    origin = tf.stop_gradient(tf.reduce_mean(x, axis=-2, keepdims=True))
    x, y = x - origin, y - origin
    if (x_labels is None) != (y_labels is None):
        raise ValueError(
            "Invalid value for arguments `x_labels` and `y_labels`. Expected "
            "both or neither. Received: "
            f"x_labels={x_labels!r}, y_labels={y_labels!r}"
        )
    if x_labels is None:
        x_rows, x_mean = _about_mean(x, a)
        y_rows, y_mean = _about_mean(y, b)
        return Centred(
            x=x_rows,
            y=y_rows,
            difference=x_mean - y_mean,
            x_variance=_mean_square(x_rows),
            y_variance=_mean_square(y_rows),
            share=b,
            classes=tf.ones_like(b[..., 0]),
        )
    x_labels = _of_points(x_labels, x, "x_labels")
    y_labels = _of_points(y_labels, y, "y_labels")
    x_same = _same(x_labels, x_labels, x.dtype)
    y_same = _same(y_labels, y_labels, x.dtype)
    both_same = _same(y_labels, x_labels, x.dtype)
    # A class without mass on one side has none on the other.
    x_there = tf.linalg.matvec(both_same, b, transpose_a=True) > 0
    y_there = tf.linalg.matvec(both_same, a) > 0
    a = tf.where(x_there, a, tf.zeros_like(a))
    b = tf.where(y_there, b, tf.zeros_like(b))
    x_share, y_share = _share(a, x_same), _share(b, y_same)
    x_mean = tf.matmul(x_same * x_share[..., None, :], x)
    y_mean = tf.matmul(y_same * y_share[..., None, :], y)
    x_mean_at_y = tf.matmul(both_same * x_share[..., None, :], x)
    classes = tf.maximum(tf.round(tf.reduce_sum(y_share, axis=-1)), 1.0)
    x_mass = x_share / classes[..., None]
    y_mass = y_share / classes[..., None]
    return Centred(
        x=tf.sqrt(x_mass)[..., None] * (x - x_mean),
        y=tf.sqrt(y_mass)[..., None] * (y - y_mean),
        difference=x_mean_at_y - y_mean,
        x_variance=_mean_square(_about_mean(x, x_mass)[0]),
        y_variance=_mean_square(_about_mean(y, y_mass)[0]),
        share=y_share,
        classes=classes,
        x_same=x_same,
        y_same=y_same,
        both_same=both_same,
    )


def check_covariance(covariance):
    """Raises a `ValueError` unless it is "full" or "diagonal"."""
    check_choice(covariance, _COVARIANCES, "covariance")


def check_moments(mean_x, covariance_x, mean_y, covariance_y):
    """The moments of two Gaussians, in the widest of their types.

    Args:
        mean_x: `[..., d]`.
        covariance_x: `[..., d, d]`.
        mean_y: `[..., d]`.
        covariance_y: `[..., d, d]`.

    Returns:
        List of the four, all in float32 or all in float64.

    Raises:
        ValueError: If shapes do not fit.
    """
    moments = [
        at_least_float32(moment)
        for moment in (mean_x, covariance_x, mean_y, covariance_y)
    ]
    wide = any(moment.dtype == tf.float64 for moment in moments)
    dtype = tf.float64 if wide else tf.float32
    moments = [tf.cast(moment, dtype) for moment in moments]
    mean_x, covariance_x, mean_y, covariance_y = moments
    shape = mean_x.shape
    square = shape.concatenate(shape[-1:]) if shape.rank else None
    if (
        square is None
        or not mean_y.shape.is_compatible_with(shape)
        or not covariance_x.shape.is_compatible_with(square)
        or not covariance_y.shape.is_compatible_with(square)
    ):
        raise ValueError(
            "Invalid value for the moments. Expected means [..., d] and "
            "covariances [..., d, d]. Received shapes: "
            f"mean_x={mean_x.shape}, covariance_x={covariance_x.shape}, "
            f"mean_y={mean_y.shape}, covariance_y={covariance_y.shape}"
        )
    return moments


def safe_sqrt(x):
    """Root with a gradient of 0 at 0; NaN stays NaN."""
    nothing = x <= 0
    root = tf.sqrt(tf.where(nothing, tf.ones_like(x), x))
    return tf.where(nothing, tf.zeros_like(x), root)


def _of_points(values, points, argument):
    """One value for each point, `[..., n]`; None gives masses `1 / n`."""
    shape = tf.shape(points)[:-1]
    if values is None:
        return tf.fill(shape, 1 / tf.cast(shape[-1], points.dtype))
    values = tf.stop_gradient(tf.convert_to_tensor(values))
    if not argument.endswith("labels"):
        values = tf.cast(values, points.dtype)
    full = points.shape[:-1]
    if not any(values.shape.is_compatible_with(s) for s in (full, full[-1:])):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected one value for "
            f"each point, of shape {full} or {full[-1:]}. "
            f"Received: {argument}.shape={values.shape}"
        )
    return tf.broadcast_to(values, shape)


def _same(rows, columns, dtype):
    """1 where labels agree, else 0, `[..., n, m]`."""
    return tf.cast(rows[..., :, None] == columns[..., None, :], dtype)


def _share(masses, same):
    """Masses by what their class has, `[..., n]`; 0 where it has none."""
    return tf.math.divide_no_nan(masses, tf.linalg.matvec(same, masses))


def _about_mean(points, masses):
    """`sqrt(mass) (point - mean)`, and the mean, `[..., 1, d]`."""
    masses = masses[..., None]
    mean = tf.reduce_sum(masses * points, axis=-2, keepdims=True)
    return tf.sqrt(masses) * (points - mean), mean


def _mean_square(rows):
    """Sum over points of the mean over dimensions, `[...]`."""
    return tf.reduce_sum(tf.reduce_mean(tf.square(rows), axis=-1), axis=-1)
