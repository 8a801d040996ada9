"""Softened class probabilities."""

import keras
import tensorflow as tf

from tfkd.losses.shapes import as_signals, check_positive


@keras.saving.register_keras_serializable("tfkd")
class SoftTargets(keras.losses.Loss):
    """Knowledge distillation: the divergence between softened outputs.

    Formula: `T^2 sum_i p_i (log p_i - log q_i)` with `p = softmax(y_true /
    T)`, `q = softmax(y_pred / T)`, for each position. T^2 keeps the gradient
    of one size over temperatures.

    Logits `[batch, ..., classes]` give values `[batch, ...]`, so sequences
    and dense prediction work as single labels do, with Keras' masks. A class
    that both networks rule out (logit -inf) adds nothing.

    Args:
        temperature: T > 0; larger is softer.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`.

    Raises:
        ValueError: If `temperature` is not a finite number > 0.

    Example:

    >>> loss = tfkd.losses.SoftTargets(temperature=1.0)
    >>> round(float(loss([[0.0, 100.0]], [[0.0, 0.0]])), 4)
    0.6931

    Reference: Hinton, Vinyals & Dean 2015.
    """

    from_logits = True

    def __init__(
        self,
        temperature=4.0,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = check_positive(temperature, "temperature")

    def call(self, y_true, y_pred):
        """Values `[batch, ...]` of logits `[batch, ..., classes]`, in nats."""
        y_true, y_pred = as_signals(y_true, y_pred)
        log_p = tf.nn.log_softmax(y_true / self.temperature)
        log_q = tf.nn.log_softmax(y_pred / self.temperature)
        # Where both are -inf their difference is not a number.
        possible = tf.math.is_finite(log_p) | tf.math.is_finite(log_q)
        zero = tf.zeros_like(log_p)
        log_p, log_q = (tf.where(possible, log, zero) for log in (log_p, log_q))
        p = tf.where(possible, tf.exp(log_p), zero)
        divergence = tf.reduce_sum(p * (log_p - log_q), axis=-1)
        return self.temperature**2 * divergence

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "temperature": self.temperature}
