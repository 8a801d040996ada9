"""Correlation of class probabilities, within examples and within classes."""

import keras
import tensorflow as tf

from tfkd.arguments import check_positive
from tfkd.losses.distribution import DistributionLoss
from tfkd.losses.soft_targets import mean_probabilities
from tfkd.transport.costs import unit_vectors


@keras.saving.register_keras_serializable("tfkd")
class CorrelationTargets(DistributionLoss):
    """Lack of correlation between softened class probabilities.

    Formula: `T^2 (1 - mean_i r(p_i, q_i) + 1 - mean_c r(p_c, q_c))`, with r
    Pearson's correlation, over the classes for each example i and over the
    batch for each class c, of `p = softmax(y_true / T)` and
    `q = softmax(y_pred / T)`.

    It asks for the same order and relative gaps, not for equal
    probabilities: a student need not be as confident as its teacher. Where
    probabilities are constant (a batch of one, say) r is 0, without
    gradient.

    Signals are `[batch, ..., classes]`; positions are further examples.
    Sample weights are masses of all means and correlations.

    Args:
        temperature: T; larger is softer. Finite and > 0.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `temperature` is out of range.

    Example:

    >>> teacher, student = [[0.0, 1.0], [1.0, 0.0]], [[0.0, 3.0], [3.0, 0.0]]
    >>> round(abs(float(CorrelationTargets()(teacher, student))), 4)
    0.0

    Reference: Huang et al. 2022, equations 8 to 10.
    """

    needs_logits = True

    def __init__(
        self,
        temperature=4.0,
        *,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = check_positive(temperature, "temperature")

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in units of T^2."""
        if y_pred.shape.rank < 2:
            raise ValueError(
                "Correlations need logits [batch, ..., classes]. "
                f"Received: y_pred.shape={y_pred.shape}"
            )
        teacher, student = (
            tf.nn.softmax(
                tf.reshape(y, [-1, tf.shape(y)[-1]]) / self.temperature
            )
            for y in (y_true, y_pred)
        )  # [batch positions, classes]
        positions = tf.shape(student)[0] // tf.shape(masses)[0]
        masses = tf.repeat(masses, positions)
        masses /= tf.cast(positions, masses.dtype)
        classes = tf.ones_like(teacher[0])
        classes /= tf.reduce_sum(classes)
        within_examples = tf.tensordot(
            masses, _correlation(teacher, student, classes), 1
        )
        within_classes = tf.reduce_mean(
            _correlation(tf.transpose(teacher), tf.transpose(student), masses)
        )
        return self.temperature**2 * (2.0 - within_examples - within_classes)

    def ensemble(self, logits):
        """As `SoftTargets.ensemble`."""
        return mean_probabilities(logits, self.temperature)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "temperature": self.temperature}


def _correlation(x, y, masses):
    """Pearson's correlation of rows, `[n]`, of columns weighted by mass."""
    return tf.reduce_sum(_standard(x, masses) * _standard(y, masses), axis=-1)


def _standard(x, masses):
    """Rows around their mean, their weighted length one or zero."""
    # Exact where a row is constant, where its mean would be rounded.
    x -= tf.stop_gradient(x[:, :1])
    mean = tf.linalg.matvec(x, masses)[:, None]
    return unit_vectors((x - mean) * tf.sqrt(masses))
