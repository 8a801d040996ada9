"""Knowledge distillation by class probabilities of standardised logits."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import comparable
from tfkd.losses.soft_targets import SoftTargets
from tfkd.transport.costs import unit_vectors


@keras.saving.register_keras_serializable("tfkd")
class StandardizedTargets(SoftTargets):
    """Divergence of class probabilities whose logits have variance one.

    Formula: `T^2 KL(softmax(z(y_true) / T) || softmax(z(y_pred) / T))`, with
    `z(v) = (v - mean v) / std v` over the classes of each prediction.

    The student takes on the order and relative gaps of the teacher's logits
    and keeps a scale of its own. Constant logits become 0, without gradient.
    All logits must be finite.

    Args:
        temperature: T; larger is softer. Finite and > 0.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `temperature` is out of range.

    Example:

    >>> loss = StandardizedTargets()
    >>> round(float(loss([[0.0, 1.0, 5.0]], [[7.0, 9.0, 17.0]])), 4)
    0.0

    Reference: Sun et al. 2024, algorithm 1.
    """

    def __init__(
        self,
        temperature=2.0,
        *,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(
            temperature, name=name, reduction=reduction, dtype=dtype
        )

    def call(self, y_true, y_pred):
        """As `SoftTargets.call`, of the standardised logits."""
        y_true, y_pred = comparable(y_true, y_pred)
        return super().call(_standard(y_true), _standard(y_pred))

    def ensemble(self, logits):
        """As `SoftTargets.ensemble`, but the mean of standardised logits.

        So each teacher counts alike, whatever the scale of its logits. The
        mean is standardised again with the student's.
        """
        return tf.reduce_mean(_standard(logits), axis=0)


def _standard(logits):
    """Logits of mean 0 and variance 1 over the classes."""
    # Exact where logits are constant, where their mean would be rounded.
    logits -= tf.stop_gradient(logits[..., :1])
    centred = logits - tf.reduce_mean(logits, axis=-1, keepdims=True)
    classes = tf.cast(tf.shape(logits)[-1], logits.dtype)
    return unit_vectors(centred) * tf.sqrt(classes)
