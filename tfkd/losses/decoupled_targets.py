"""Softened class probabilities, the true class apart from the others."""

import keras
import tensorflow as tf

from tfkd.arguments import check_positive
from tfkd.losses.distribution import Reduction, class_numbers, comparable
from tfkd.losses.soft_targets import divergence, mean_probabilities


@keras.saving.register_keras_serializable("tfkd")
class DecoupledTargets(keras.losses.Loss):
    """Divergence in the true class, and apart from it among the others.

    Formula: `T^2 (target_weight KL(b_T || b_S) + others_weight KL(r_T ||
    r_S))` of the class probabilities at temperature T, with b the two
    probabilities of the true class and of all others together, and r those
    of the others over their sum.

    `SoftTargets` is this with `others_weight` the teacher's probability of
    the others, so that a confident teacher tells little of them.

    Args:
        temperature: T; larger is softer. Finite and > 0.
        target_weight: Of the true class. Finite and > 0.
        others_weight: Of the other classes. Finite and > 0.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> loss = DecoupledTargets(temperature=1.0, others_weight=8.0)
    >>> teacher = {"outputs": [[0.0, 0.0, 0.0]], "labels": [0]}
    >>> student = {"outputs": [[0.0, 1.0, 0.0]], "labels": [0]}
    >>> round(float(loss(teacher, student)), 4)
    1.0003

    Reference: Zhao et al. 2022, equation 7.
    """

    same_shape = True
    needs_logits = True
    signals = ("outputs", "labels")

    def __init__(
        self,
        temperature=4.0,
        *,
        target_weight=1.0,
        others_weight=8.0,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = check_positive(temperature, "temperature")
        self.target_weight = check_positive(target_weight, "target_weight")
        self.others_weight = check_positive(others_weight, "others_weight")

    def call(self, y_true, y_pred):
        """Divergence of each prediction.

        Args:
            y_true: Dict of the teacher's logits "outputs",
                `[batch, classes]`, two classes or more, and the true
                "labels": class numbers `[batch]` or `[batch, 1]`, or one-hot
                `[batch, classes]`.
            y_pred: Dict of the student's "outputs", of the same shape. The
                labels are those of `y_true`.

        Returns:
            Tensor `[batch]`, in nats times T^2.

        Raises:
            ValueError: If a side is no such dict, or shapes do not fit.
        """
        for side, keys in ((y_true, self.signals), (y_pred, ("outputs",))):
            if not isinstance(side, dict) or not set(keys) <= set(side):
                raise ValueError(
                    f"Loss '{self.name}' compares dicts with the keys "
                    f"{self.signals}, as tfkd.Match makes them. Received: "
                    f"{list(side) if isinstance(side, dict) else type(side)}"
                )
        teacher, student = comparable(y_true["outputs"], y_pred["outputs"])
        if student.shape.rank != 2 or (student.shape[-1] or 2) < 2:
            raise ValueError(
                "The other classes need logits [batch, classes] of two "
                f"classes or more. Received: y_pred.shape={student.shape}"
            )
        true = tf.one_hot(
            class_numbers(y_true["labels"]), tf.shape(student)[-1], True, False
        )
        teacher, student = (
            teacher / self.temperature,
            student / self.temperature,
        )
        target = divergence(_whether(teacher, true), _whether(student, true))
        others = divergence(_others(teacher, true), _others(student, true))
        return self.temperature**2 * (
            self.target_weight * target + self.others_weight * others
        )

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The reduced value. Arguments and errors as of `call`."""
        # Keras would cast the labels to the loss's `dtype`.
        with keras.name_scope(self.name):
            values = self.call(y_true, y_pred)
            reduce = Reduction(self.name, self.reduction, self.dtype)
            return reduce(values, values, sample_weight=sample_weight)

    def ensemble(self, logits):
        """As `SoftTargets.ensemble`."""
        return mean_probabilities(logits, self.temperature)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "target_weight": self.target_weight,
            "others_weight": self.others_weight,
            "dtype": self.dtype,
        }


def _others(logits, true):
    """Logits without the true class, which has no part: -inf."""
    return tf.where(true, tf.constant(-float("inf"), logits.dtype), logits)


def _whether(logits, true):
    """Logits of the true class and of the others together, `[batch, 2]`."""
    target = tf.reduce_sum(tf.where(true, logits, tf.zeros_like(logits)), -1)
    others = tf.reduce_logsumexp(_others(logits, true), axis=-1)
    return tf.stack([target, others], axis=-1)
