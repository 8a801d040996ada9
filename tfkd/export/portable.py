"""Students as they are to be converted: in float32, on pixels."""

import keras
import numpy as np
import tensorflow as tf

from tfkd.copies import copy_weights
from tfkd.trace import input_specs

_HALF_PRECISION = ("float16", "bfloat16")


def in_float32(model):
    """`model`, or an equal one in float32 where it computes in 16 bits.

    Args:
        model: A built Keras model. One of 16 bits must have a `get_config`.

    Returns:
        `model` itself, or a new model with copies of its weights.

    Raises:
        ValueError: If its config does not govern its precision.
    """
    if not _computes_in_half(model):
        return model
    clone = type(model).from_config(_without_half(model.get_config()))
    if _computes_in_half(clone):
        raise ValueError(
            f"Model '{model.name}' computes in 16 bits whatever its config "
            "says, so no float32 copy can be made. Build it under the "
            "float32 policy and give it these weights with set_weights."
        )
    if not clone.built:
        # Keras exports a subclassed model only after a call.
        shapes = model.get_build_config()["input_shape"]
        clone(keras.tree.map_shape_structure(_zeros, shapes))
    copy_weights(source=model, target=clone)
    return clone


def _computes_in_half(model):
    return any(
        layer.compute_dtype in _HALF_PRECISION
        for layer in model._flatten_layers()
    )


def _zeros(shape):
    """One example of a shape `(batch, ...)`, unknown sizes taken as 1."""
    return tf.zeros([1, *(size or 1 for size in shape[1:])])


def _without_half(config):
    """A copy of a nested configuration, its 16-bit policies made float32."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            name = config["config"]["name"]
            if any(half in name for half in _HALF_PRECISION):
                return {**config, "config": {"name": "float32"}}
        return {key: _without_half(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        kind = list if isinstance(config, list) else tuple
        return kind(_without_half(value) for value in config)
    return config


def with_normalization(model, mean, std):
    """`model` behind a layer that standardises its inputs.

    Args:
        model: A built Keras model of one input, `[batch, ..., channels]`.
        mean: Float or `[channels]`, in the units of the pixels.
        std: Likewise, > 0.

    Returns:
        A Keras model that takes pixels x and returns
        `model((x - mean) / std)`.
    """
    spec = input_specs(model)
    inputs = keras.Input(spec.shape[1:], dtype=spec.dtype.name, name="pixels")
    scale = keras.layers.Normalization(
        mean=np.asarray(mean, np.float64).tolist(),
        variance=np.square(np.asarray(std, np.float64)).tolist(),
        dtype="float32",
    )
    return keras.Model(inputs, model(scale(inputs)), name=model.name)
