"""Shapes and numbers that losses insist on."""

import math
import numbers

import tensorflow as tf

from tfkd.precision import at_least_float32


def as_signals(y_true, y_pred):
    """Both signals, at least float32, of one shape.

    Args:
        y_true: The teacher's signal.
        y_pred: The student's signal.

    Returns:
        The two tensors.

    Raises:
        ValueError: If their shapes differ; nothing is broadcast.
    """
    y_true, y_pred = at_least_float32(y_true), at_least_float32(y_pred)
    if not y_true.shape.is_compatible_with(y_pred.shape):
        raise ValueError(
            "Teacher's and student's signal need the same shape. Received: "
            f"y_true of shape {y_true.shape}, y_pred of shape {y_pred.shape}"
        )
    return y_true, y_pred


def flatten_examples(tensor):
    """`[batch, ...]` as `[batch, entries]`."""
    size = tensor.shape[1:].num_elements()
    if size is None:
        size = tf.reduce_prod(tf.shape(tensor)[1:])
    return tf.reshape(tensor, [tf.shape(tensor)[0], size])


def check_positive(value, argument):
    """`value` if it is a finite number > 0.

    Args:
        value: Anything.
        argument: The argument's name, for the error.

    Returns:
        The value.

    Raises:
        ValueError: If it is anything else.
    """
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a finite "
            f"number > 0. Received: {argument}={value!r}"
        )
    return value
