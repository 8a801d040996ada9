"""Squared distances between the signals of each example."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import comparable, flatten
from tfkd.transport.costs import unit_vectors


@keras.saving.register_keras_serializable("tfkd")
class SquaredError(keras.losses.Loss):
    """Squared Euclidean distance between the signals of each example.

    Formula: `sum_i (y_true_i - y_pred_i)^2`, over all axes but the batch

    A sum, where "mse" is a mean: matching Jacobians or logits as the papers
    do needs the sum.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> float(SquaredError()([[1.0, 2.0]], [[0.0, 0.0]]))
    5.0

    Reference: Srinivas & Fleuret 2018, proposition 1.
    """

    same_shape = True

    def call(self, y_true, y_pred):
        """Squared distance of each example.

        Args:
            y_true: Teacher's signal, `[batch, ...]`.
            y_pred: Student's signal, of the same shape.

        Returns:
            Tensor `[batch]`, in squared units of the signal.

        Raises:
            ValueError: If the shapes differ.
        """
        y_true, y_pred = comparable(y_true, y_pred)
        difference = flatten(y_true - y_pred)
        return tf.reduce_sum(difference * difference, axis=-1)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "dtype": self.dtype}


@keras.saving.register_keras_serializable("tfkd")
class NormalizedSquaredError(keras.losses.Loss):
    """Squared distance between the directions of each example's signals.

    Formula: `| n(y_true) - n(y_pred) |^2` with `n(v) = v / |v|` over all axes
    but the batch; `n(v) = 0`, without gradient, where `|v| < 1e-12`.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> float(NormalizedSquaredError()([[1.0, 0.0]], [[-7.0, 0.0]]))
    4.0

    Reference: Srinivas & Fleuret 2018, equation 10.
    """

    same_shape = True

    def call(self, y_true, y_pred):
        """Squared distance of each example's directions.

        Args:
            y_true: Teacher's signal, `[batch, ...]`.
            y_pred: Student's signal, of the same shape.

        Returns:
            Tensor `[batch]`, in [0, 4].

        Raises:
            ValueError: If the shapes differ.
        """
        y_true, y_pred = comparable(y_true, y_pred)
        difference = unit_vectors(flatten(y_true)) - unit_vectors(
            flatten(y_pred)
        )
        return tf.reduce_sum(difference * difference, axis=-1)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "dtype": self.dtype}
