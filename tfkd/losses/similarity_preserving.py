"""Which examples of a batch look alike to a network."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import DistributionLoss, count_examples, flatten
from tfkd.transport.costs import unit_vectors


@keras.saving.register_keras_serializable("tfkd")
class SimilarityPreserving(DistributionLoss):
    """Squared difference of the similarities between examples.

    Formula: `1/B^2 sum_ij (G_T - G_S)_ij^2` over a batch of B examples, with
    `G = X X^T` of the flattened signals X, each row divided by its length.

    Signals may differ in width and size: only similarities meet. As
    published, the value falls with the batch, like `1 / B`, for the entries
    of a row of unit length are the smaller the more there are.

    With sample weights, row lengths and sums are weighted by mass; B counts
    the examples of positive weight.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> loss = SimilarityPreserving()
    >>> teacher, student = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> round(float(loss(teacher, student)), 4)
    0.2929

    Reference: Tung & Mori 2019, equations 2 to 4.
    """

    same_shape = False

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, without unit."""
        difference = _similarities(y_true, masses) - _similarities(
            y_pred, masses
        )
        rows = tf.reduce_sum(difference * difference, axis=-1)
        return tf.tensordot(masses, rows, 1) / count_examples(masses)


def _similarities(signal, masses):
    """Products of all pairs, in rows of unit length, `[batch, batch]`."""
    signal = flatten(signal)
    # Rows do not depend on the scale; at scale one their squares are in
    # range.
    scale = tf.stop_gradient(tf.reduce_max(tf.abs(signal)))
    signal = tf.math.divide_no_nan(signal, scale)
    products = tf.matmul(signal, signal, transpose_b=True)
    # A row's squares now sum to its squared length weighted by mass.
    return unit_vectors(products * tf.sqrt(masses))
