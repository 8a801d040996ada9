"""The cross-entropy form of Jacobian matching."""

import keras
import tensorflow as tf

from tfkd.arguments import check_positive
from tfkd.losses.distribution import comparable, flatten
from tfkd.losses.soft_targets import mean_probabilities


@keras.saving.register_keras_serializable("tfkd")
class JacobianCrossEntropy(keras.losses.Loss):
    """What input noise adds to the cross-entropy between softened outputs.

    Formula: `1/2 sum_i T_i |d log T_i - d log S_i|^2` over the classes i,
    with T and S the softmax outputs and d the derivative with respect to the
    input. `JacobianMatch` sees that this loss wants log-probabilities and
    hands it `sqrt(T_i) d log T_i` and `sqrt(T_i) d log S_i`.

    At S = T this is exactly what Gaussian input noise of variance s^2 adds,
    divided by s^2, up to terms of order s^2 (for networks that are linear
    around the input).

    The paper prints `- sum_i dT_i . dS_i / S_i` instead. That is this
    square without its squares: linear in the student's Jacobian, hence
    unbounded below. A student that scales its Jacobian by ten scales the
    printed term by ten. `printed=True` gives it, to compare.

    Args:
        temperature: Of both softmaxes. Finite and > 0.
        printed: Whether to take the printed form.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `temperature` is out of range.

    Example:

    >>> float(JacobianCrossEntropy()([[[1.0, 0.0]]], [[[0.0, 1.0]]]))
    1.0

    Reference: Srinivas & Fleuret 2018, equation 2, its square completed.
    """

    same_shape = True
    needs_logits = True
    log_probabilities = True

    def __init__(
        self,
        temperature=1.0,
        *,
        printed=False,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = check_positive(temperature, "temperature")
        self.printed = bool(printed)

    def call(self, y_true, y_pred):
        """The term of each example.

        Args:
            y_true: `sqrt(T_i) d log T_i`, `[batch, outputs, inputs]` or
                `[batch, inputs]`, in nats per input unit.
            y_pred: `sqrt(T_i) d log S_i`, likewise.

        Returns:
            Tensor `[batch]`, in squared nats per squared input unit.

        Raises:
            ValueError: If the shapes differ.
        """
        y_true, y_pred = comparable(y_true, y_pred)
        if self.printed:
            terms = -y_true * y_pred
        else:
            terms = 0.5 * tf.square(y_true - y_pred)
        return tf.reduce_sum(flatten(terms), axis=-1)

    def ensemble(self, logits):
        """As `SoftTargets.ensemble`."""
        return mean_probabilities(logits, self.temperature)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "printed": self.printed,
            "dtype": self.dtype,
        }
