"""Knowledge distillation by softened class probabilities."""

import keras
import tensorflow as tf

from tfkd.arguments import check_positive
from tfkd.losses.distribution import comparable


@keras.saving.register_keras_serializable("tfkd")
class SoftTargets(keras.losses.Loss):
    """Divergence of the student's softened class probabilities.

    Formula: `T^2 KL(softmax(y_true / T) || softmax(y_pred / T))`

    T^2 keeps the gradient's size as T changes: it tends to the squared error
    of centred logits, `sum_i (y_true_i - y_pred_i)^2 / (2 classes)`, as T
    grows. A class that the teacher excludes (logit -inf) has no part in the
    value.

    Args:
        temperature: T; larger is softer. Finite and > 0.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `temperature` is out of range.

    Example:

    >>> loss = SoftTargets(temperature=2.0)
    >>> round(float(loss([[0.0, 0.0]], [[0.0, 2.0]])), 4)
    0.4805

    Reference: Hinton et al. 2015, section 2.
    """

    same_shape = True
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

    def call(self, y_true, y_pred):
        """Divergence of each prediction.

        Args:
            y_true: Teacher's logits, `[batch, ..., classes]`.
            y_pred: Student's logits, of the same shape.

        Returns:
            Tensor `[batch, ...]`, in nats times T^2.

        Raises:
            ValueError: If the shapes differ.
        """
        y_true, y_pred = comparable(y_true, y_pred)
        values = divergence(
            y_true / self.temperature, y_pred / self.temperature
        )
        return self.temperature**2 * values

    def ensemble(self, logits):
        """Logits that stand for several teachers.

        Args:
            logits: Of each teacher, `[teachers, batch, ..., classes]`.

        Returns:
            `[batch, ..., classes]`, whose probabilities at the loss's
            temperature are the mean of the teachers'.
        """
        return mean_probabilities(logits, self.temperature)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "dtype": self.dtype,
        }


def mean_probabilities(logits, temperature):
    """Logits whose softened class probabilities are the mean of several.

    Formula: `T log(mean_k softmax(logits_k / T))`

    Args:
        logits: `[teachers, ..., classes]`, float32 or float64. -inf excludes
            a class.
        temperature: T.

    Returns:
        `[..., classes]`.
    """
    logs = tf.nn.log_softmax(logits / temperature)
    count = tf.cast(tf.shape(logits)[0], logits.dtype)
    total = tf.reduce_logsumexp(logs, axis=0)
    return temperature * (total - tf.math.log(count))


def divergence(y_true, y_pred):
    """Kullback-Leibler divergence of class probabilities.

    Formula: `KL(softmax(y_true) || softmax(y_pred))`

    Args:
        y_true: Teacher's logits, `[..., classes]`, float32 or float64. A
            class of logit -inf has no part in the value.
        y_pred: Student's logits, of the same shape and type.

    Returns:
        Non-negative tensor `[...]`, in nats.
    """
    log_teacher = tf.nn.log_softmax(y_true)
    log_student = tf.nn.log_softmax(y_pred)
    teacher, student = tf.exp(log_teacher), tf.exp(log_student)
    # Where the teacher excludes a class there is no log to compare; if
    # the student does too, the difference is not a number.
    possible = teacher > 0.0
    excess = tf.where(possible, log_teacher - log_student, 0.0)
    # Both probabilities sum to 1, so p d and p d + q - p have one sum.
    # The terms of the second are >= 0 and, near the teacher, of second
    # order in d, where those of the first would cancel out.
    near = possible & (tf.abs(excess) < 1.0)
    small = tf.where(near, excess, 0.0)
    terms = tf.where(
        near,
        teacher * (small + tf.math.expm1(-small)),
        teacher * excess + student - teacher,
    )
    return tf.reduce_sum(terms, axis=-1)
