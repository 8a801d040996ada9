"""The base of losses that compare distributions over the batch."""

import keras
import tensorflow as tf

from tfkd.losses.shapes import as_signals
from tfkd.precision import at_least_float32


class DistributionLoss(keras.losses.Loss):
    """Compares two batches as distributions, not example by example.

    Sample weights are masses: with weights w each example has the mass
    `w / sum w` on both sides, and the value is multiplied by the mean of w.
    An example of weight 0 might as well not be there.

    Subclasses define `distance`. The value is returned once per example, so
    that Keras' reductions and the division by replicas hold as elsewhere.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`.

    Attributes:
        same_shape: Whether both signals must have one shape.
    """

    same_shape = True

    def distance(self, y_true, y_pred, masses):
        """The distance between two weighted batches.

        Args:
            y_true: The teacher's signals, `[batch, ...]`, float32 or more.
            y_pred: The student's signals, likewise.
            masses: `[batch]`, >= 0, with sum 1, or all 0.

        Returns:
            Scalar.
        """
        raise NotImplementedError

    def call(self, y_true, y_pred, sample_weight=None):
        """The distance, once per example.

        Args:
            y_true: The teacher's signals, `[batch, ...]`.
            y_pred: The student's signals, `[batch, ...]`.
            sample_weight: `[batch]` or `[batch, 1]`, >= 0, or None.

        Returns:
            `[batch]`, all entries equal, at least float32.
        """
        if self.same_shape:
            y_true, y_pred = as_signals(y_true, y_pred)
        else:
            y_true = at_least_float32(y_true)
            y_pred = at_least_float32(y_pred)
        batch = tf.shape(y_pred)[0]
        weights = tf.ones([batch], y_pred.dtype)
        if sample_weight is not None:
            weights = tf.cast(tf.reshape(sample_weight, [-1]), y_pred.dtype)
        total = tf.reduce_sum(weights)
        masses = tf.math.divide_no_nan(weights, total)
        value = self.distance(y_true, y_pred, masses)
        mean = tf.math.divide_no_nan(total, tf.cast(batch, total.dtype))
        return tf.fill([batch], value * mean)

    def __call__(self, y_true, y_pred, sample_weight=None):
        """As `keras.losses.Loss.__call__`; weights are masses."""
        dtype = tf.as_dtype(self.dtype)
        y_true, y_pred = (
            tf.cast(tf.convert_to_tensor(y), dtype) for y in (y_true, y_pred)
        )
        values = self.call(y_true, y_pred, sample_weight)
        reduce = Reduction(self.name, self.reduction, values.dtype.name)
        return reduce(values, values)


class Reduction(keras.losses.Loss):
    """A loss whose values are its predictions: nothing but the reduction."""

    def call(self, y_true, y_pred):
        """The predictions."""
        return y_pred
