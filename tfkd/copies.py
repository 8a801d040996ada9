"""Weights from one network to another of the same layers."""

import keras


def copy_weights(*, source, target):
    """Gives a network the weights of another, and what follows from them.

    `set_weights` alone leaves a `keras.layers.Normalization` with the
    constants that it computed when it was made.

    Args:
        source: A built Keras model.
        target: One of the same weights, in the same order.

    Raises:
        ValueError: If the weights differ in number or shape.
    """
    target.set_weights(source.get_weights())
    for layer in target._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
