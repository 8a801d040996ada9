"""How probable each example is as a neighbour of each other."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import DistributionLoss, count_examples, flatten
from tfkd.transport.costs import unit_vectors

# Keeps the logarithm of improbable neighbours finite.
_SHIFT = 1e-7


@keras.saving.register_keras_serializable("tfkd")
class ProbabilisticTransfer(DistributionLoss):
    """Divergence between the probabilities of neighbours.

    Formula: `1/B^2 sum_ij P_ij log((P_ij + 1e-7) / (Q_ij + 1e-7))` over a
    batch of B examples, with P the teacher's and Q the student's
    `K = (cos(x_i, x_j) + 1) / 2`, each row divided by its sum.

    Signals may differ in width and size: only similarities meet. As
    published, the value falls with the batch, like `1 / B`: the sum over a
    row is a divergence, but its mean is taken.

    With sample weights, sums are weighted by mass; B counts the examples of
    positive weight.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> loss = ProbabilisticTransfer()
    >>> round(float(loss([[1.0], [1.0]], [[1.0], [-1.0]])), 4)
    3.683

    Reference: Passalis & Tefas 2018, section 3.
    """

    same_shape = False

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in nats."""
        teacher = _neighbours(y_true, masses)
        student = _neighbours(y_pred, masses)
        excess = tf.math.log1p((teacher - student) / (student + _SHIFT))
        # Rows have one sum, so p d and p d + q - p do too. The terms of the
        # second are >= 0 and do not cancel out near the teacher.
        terms = (teacher + _SHIFT) * (
            excess + tf.math.expm1(-excess)
        ) - _SHIFT * excess
        rows = tf.linalg.matvec(terms, masses)
        return tf.tensordot(masses, rows, 1)


def _neighbours(signal, masses):
    """Probabilities, `[batch, batch]`; rows of those that exist sum to 1."""
    directions = unit_vectors(flatten(signal))
    cosine = tf.matmul(directions, directions, transpose_b=True)
    kernel = tf.nn.relu(cosine + 1.0)  # rounding may put it below 0
    mean = tf.linalg.matvec(kernel, masses)[:, None]
    return kernel / (mean * count_examples(masses))
