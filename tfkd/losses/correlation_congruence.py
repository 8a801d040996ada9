"""How the errors of a batch's embeddings go together."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import DistributionLoss, flatten


@keras.saving.register_keras_serializable("tfkd")
class CorrelationCongruence(DistributionLoss):
    """Product of the embedding errors of each example and the next.

    Formula: `1/(B - 1) sum_i sum_k d_ik d_(i+1)k` over a batch of B
    examples, with `d = |y_true - y_pred|`.

    The form that the common benchmark runs, in place of the difference of
    two correlation matrices. It depends on the order of the batch, which
    shuffling makes random; a batch of one has no pair and the value 0. The
    embeddings are a match's projectors, "dense" layers of 128 units trained
    on either side.

    With sample weights, each pair has the product of its masses, over the
    sum of these; examples of weight zero are skipped.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> loss = CorrelationCongruence()
    >>> float(loss([[1.0], [2.0], [3.0]], [[0.0], [0.0], [0.0]]))  # (2+6)/2
    4.0

    Reference: Peng et al. 2019, as run by Tian et al. 2020.
    """

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in squared units of the signal."""
        # Those without mass go last, the others keep their order.
        order = tf.argsort(tf.cast(masses <= 0, tf.int32), stable=True)
        errors = tf.gather(tf.abs(flatten(y_true - y_pred)), order)
        masses = tf.gather(masses, order)
        pairs = masses[:-1] * masses[1:]
        products = tf.reduce_sum(errors[:-1] * errors[1:], axis=-1)
        return tf.math.divide_no_nan(
            tf.tensordot(pairs, products, 1), tf.reduce_sum(pairs)
        )
