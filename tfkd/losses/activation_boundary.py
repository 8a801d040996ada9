"""On which side of zero each neuron is."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import comparable, flatten


@keras.saving.register_keras_serializable("tfkd")
class ActivationBoundary(keras.losses.Loss):
    """Squared hinge of the student's pre-activations at the teacher's signs.

    Formula: `sum 1{T <= 0, S > -1} (S + 1)^2 + 1{T > 0, S <= 1} (S - 1)^2`
    over all axes but the batch, of pre-activations T and S: the student is
    to have the teacher's sign, with a margin of 1, whatever the size.

    No gradient reaches the teacher, of whom only signs count. The value is
    not zero at a teacher whose own pre-activations are within the margin.

    The published term is `sum_l 2^(l - L + 1) 3/1000` of these over the
    layers l = 0, ..., L - 1: one match for each layer, with that weight.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> float(ActivationBoundary()([[-3.0, 2.0]], [[-2.0, -1.0]]))
    4.0

    Reference: Heo et al. 2019, equation 4.
    """

    same_shape = True

    def call(self, y_true, y_pred):
        """The term of each example.

        Args:
            y_true: Teacher's pre-activations, `[batch, ...]`.
            y_pred: Student's, of the same shape.

        Returns:
            Tensor `[batch]`, in squared units of the signal.

        Raises:
            ValueError: If the shapes differ.
        """
        y_true, y_pred = comparable(y_true, y_pred)
        side = tf.where(y_true > 0, 1.0, -1.0)
        side = tf.cast(side, y_pred.dtype)
        missing = tf.nn.relu(1.0 - side * y_pred)
        return tf.reduce_sum(flatten(missing * missing), axis=-1)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "dtype": self.dtype}
