"""The precision in which everything is computed: float32 at least."""

import tensorflow as tf


def at_least_float32(tensor):
    """A tensor in float32, or in float64 where it came so; keeps its mask.

    Args:
        tensor: Tensor, array or nested list of any real dtype.

    Returns:
        The tensor, with its `_keras_mask` if it had one.
    """
    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype in (tf.float32, tf.float64):
        return tensor
    cast = tf.cast(tensor, tf.float32)
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None:
        cast._keras_mask = mask
    return cast
