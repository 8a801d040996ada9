"""Squared differences, as they are and between directions."""

import keras
import tensorflow as tf

from tfkd.losses.shapes import as_signals, flatten_examples
from tfkd.transport.costs import unit_vectors


@keras.saving.register_keras_serializable("tfkd")
class SquaredError(keras.losses.Loss):
    """The squared error, summed over an example's entries.

    Formula: `sum (y_true - y_pred)^2` over all axes but the batch. Keras'
    "mse" takes the mean instead.

    Between logits this is activation matching, between Jacobians their
    matching: input noise of standard deviation s adds s^2 of the second to
    the first.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`.

    Example:

    >>> float(tfkd.losses.SquaredError()([[0.0, 0.0]], [[3.0, 4.0]]))
    25.0

    Reference: Srinivas & Fleuret 2018, proposition 1.
    """

    def call(self, y_true, y_pred):
        """Values `[batch]`, in squared signal units, of `[batch, ...]`."""
        y_true, y_pred = as_signals(y_true, y_pred)
        squared = tf.square(y_true - y_pred)
        return tf.reduce_sum(flatten_examples(squared), axis=-1)


@keras.saving.register_keras_serializable("tfkd")
class NormalizedSquaredError(keras.losses.Loss):
    """The squared error between directions.

    Formula: `|n(y_true) - n(y_pred)|^2` with n(v) = v / |v| over all entries
    of an example, and 0 with zero gradient where |v| < 1e-12.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`.

    Example:

    >>> float(tfkd.losses.NormalizedSquaredError()([[5.0, 0]], [[0, 2.0]]))
    2.0

    Reference: Srinivas & Fleuret 2018, equation 10.
    """

    def call(self, y_true, y_pred):
        """Values `[batch]`, from 0 to 4, of signals `[batch, ...]`."""
        y_true, y_pred = as_signals(y_true, y_pred)
        y_true = unit_vectors(flatten_examples(y_true))
        y_pred = unit_vectors(flatten_examples(y_pred))
        return tf.reduce_sum(tf.square(y_true - y_pred), axis=-1)
