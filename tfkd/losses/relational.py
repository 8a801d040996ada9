"""How the examples of a batch lie to each other: distances and angles."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import DistributionLoss, flatten

# Squared distances below this part of the points' squared lengths are
# rounding of float64: the points are one.
_NOTHING = 1e-13


@keras.saving.register_keras_serializable("tfkd")
class RelationalDistance(DistributionLoss):
    """Difference of the relative distances between examples.

    Formula: `1/B^2 sum_ij h(D_ij / mean D (teacher) - D_ij / mean D
    (student))` over a batch of B examples, with `D_ij = |x_i - x_j|` of the
    flattened signals, its mean over the positive entries, which takes part
    in the gradient, and h the Huber function: `d^2 / 2` up to 1, then
    `|d| - 1/2`.

    Signals may differ in width, size and scale: only distances meet. Sample
    weights are masses of the sums. Examples nearer to each other than 3e-7
    of their distance from the batch's mean count as equal.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> loss = RelationalDistance()
    >>> teacher, student = [[0.0], [1.0], [2.0]], [[0.0], [0.0], [5.0]]
    >>> round(float(loss(teacher, student)), 4)  # (9 + 4 + 1) / 16 / 9
    0.0972

    Reference: Park et al. 2019, equations 4 to 6.
    """

    same_shape = False

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, without unit."""
        difference = _relative(y_true, masses) - _relative(y_pred, masses)
        return _mean(_huber(difference), masses)


@keras.saving.register_keras_serializable("tfkd")
class RelationalAngle(DistributionLoss):
    """Difference of the angles that examples make with each other.

    Formula: `1/B^3 sum_ijk h(c_ijk (teacher) - c_ijk (student))` over a
    batch of B examples, with `c_ijk = n(x_i - x_j) . n(x_k - x_j)` the cosine
    at example j, `n(v) = v / |v|`, and h the Huber function: `d^2 / 2` up to
    1, then `|d| - 1/2`.

    Signals may differ in width, size and scale: only angles meet. Sample
    weights are masses of the sums. Where two of the three are equal, as
    `RelationalDistance` says, the cosine of their direction is 0.

    Cosines come from distances, so memory grows like B^3 whatever the width,
    and not like B^2 times the width as well: value and gradient take about
    20 MiB at B = 64, 0.7 GiB at 256.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> teacher, student = [[0.0], [1.0], [2.0]], [[0.0], [0.0], [5.0]]
    >>> round(float(RelationalAngle()(teacher, student)), 4)
    0.1111

    Reference: Park et al. 2019, equations 7 to 9.
    """

    same_shape = False

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, without unit."""
        difference = _cosines(y_true) - _cosines(y_pred)
        return _mean(_huber(difference), masses)


def _relative(signal, masses):
    """Distances over the mean of those that are positive, `[n, n]`."""
    squared, apart = _squared_distances(signal)
    distances = _root(squared, apart)
    pairs = tf.cast(apart, masses.dtype)
    mean = tf.math.divide_no_nan(_mean(distances, masses), _mean(pairs, masses))
    return tf.math.divide_no_nan(distances, mean)


def _cosines(signal):
    """Cosines at j of the directions to i and k, `[n (j), n (i), n (k)]`."""
    squared, apart = _squared_distances(signal)
    distances = _root(squared, apart)
    inverse = tf.where(
        apart, 1.0 / tf.where(apart, distances, 1.0), tf.zeros_like(distances)
    )
    # The law of cosines, with the two sides at j divided out.
    ratio = distances[:, :, None] * inverse[:, None, :]  # D_ji / D_jk
    opposite = squared[None, :, :] * inverse[:, :, None] * inverse[:, None, :]
    return 0.5 * (ratio + tf.transpose(ratio, [0, 2, 1]) - opposite)


def _squared_distances(signal):
    """Squared distances, `[n, n]`, and where they are not 0.

    The product that needs no difference of all pairs, in float64, where its
    cancellation does not matter.
    """
    points = tf.cast(flatten(signal), tf.float64)
    points -= tf.stop_gradient(tf.reduce_mean(points, axis=0))
    products = tf.matmul(points, points, transpose_b=True)
    lengths = tf.linalg.diag_part(products)
    lengths = lengths[:, None] + lengths[None, :]
    squared = lengths - 2.0 * products
    # "Is together" rather than "is apart": NaN must come out as NaN.
    together = squared <= _NOTHING * lengths
    squared = tf.where(together, tf.zeros_like(squared), squared)
    return tf.cast(squared, signal.dtype), tf.logical_not(together)


def _root(squared, apart):
    """Square root where there is one, else 0 without gradient."""
    root = tf.sqrt(tf.where(apart, squared, tf.ones_like(squared)))
    return tf.where(apart, root, tf.zeros_like(root))


def _huber(difference):
    size = tf.abs(difference)
    return tf.where(size <= 1.0, 0.5 * difference * difference, size - 0.5)


def _mean(values, masses):
    """Mean over all axes, each of them `[batch]`, weighted by mass."""
    while values.shape.rank:
        values = tf.tensordot(values, masses, 1)
    return values
