"""A distance between distributions, class by class."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import DistributionLoss, same_class


@keras.saving.register_keras_serializable("tfkd")
class ClassConditional(DistributionLoss):
    """Mean over the classes present of a distance within each class.

    Formula: `1/K sum_c loss(examples of class c)`, over the K classes that
    both sides have among their examples of positive weight.

    Every class counts the same, however many examples it has; within one,
    sample weights are masses. A class that only one side has is left out,
    with no gradient to its examples; where no class is on both sides the
    value is zero. A class of one example is a distribution in one point.

    All classes are one problem, in which examples of different classes never
    meet: it costs what the loss itself does, whatever the number of classes.

    Args:
        loss: A `DistributionLoss` that has `conditional_distance`, such as
            `OptimalTransport`.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `loss` cannot be taken class by class.

    Example:

    >>> loss = ClassConditional(OptimalTransport("squared_euclidean"))
    >>> teacher = {"features": [[0.0], [5.0]], "labels": [0, 1]}
    >>> student = {"features": [[5.0], [1.0]], "labels": [0, 1]}
    >>> round(float(loss(teacher, student)), 4)  # (25 + 16) / 2
    20.5

    Reference: Fernandes Montesuma 2025, equation 3.
    """

    signals = ("features", "labels")

    def __init__(
        self,
        loss,
        *,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        own = getattr(type(loss), "conditional_distance", None)
        if own in (None, DistributionLoss.conditional_distance):
            raise ValueError(
                "Invalid value for argument `loss`. Expected a "
                "DistributionLoss with a method `conditional_distance`, such "
                f"as OptimalTransport(). Received: loss={loss!r}"
            )
        self.loss = loss
        self.same_shape = loss.same_shape
        self.supports_jit = getattr(loss, "supports_jit", True)

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in units of the wrapped loss."""
        labels = y_true["labels"], y_pred["labels"]
        return self.loss.conditional_distance(
            y_true["features"],
            y_pred["features"],
            (
                _class_masses(masses, labels[0], labels[1]),
                _class_masses(masses, labels[1], labels[0]),
            ),
            labels,
        )

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
        }

    @classmethod
    def from_config(cls, config):
        """As `keras.losses.Loss.from_config`."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


def _class_masses(masses, own, other):
    """Masses that give every class on both sides `1 / K`, `[batch]`.

    Args:
        masses: Of the examples on either side, `[batch]`.
        own: Their class numbers on this side, `[batch]`.
        other: Those on the other.
    """
    total = tf.linalg.matvec(same_class(own, own, masses.dtype), masses)
    opposite = tf.linalg.matvec(same_class(own, other, masses.dtype), masses)
    shared = tf.where(opposite > 0, masses, tf.zeros_like(masses))
    shares = tf.math.divide_no_nan(shared, total)  # sum to 1 in each class
    return tf.math.divide_no_nan(shares, tf.reduce_sum(shares))
