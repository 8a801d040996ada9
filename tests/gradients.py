"""Gradients against central differences, for every test of a loss."""

import keras
import numpy as np
import reference
import tensorflow as tf


def gradients(function, *arguments):
    """Gradients of a function's sum with respect to nested arguments."""
    arguments = keras.tree.map_structure(tf.convert_to_tensor, arguments)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = tf.reduce_sum(function(*arguments))
    return tape.gradient(value, arguments)


def assert_central(function, *arguments, rtol=1e-6, atol=1e-9):
    """Asserts the gradients with respect to each of some float64 arrays."""
    total = tf.function(lambda *args: tf.reduce_sum(function(*args)))
    tensors = [tf.constant(argument) for argument in arguments]
    for i, actual in enumerate(gradients(function, *arguments)):

        def alone(x, i=i):
            return total(*tensors[:i], tf.constant(x), *tensors[i + 1 :])

        expected = reference.central_difference(alone, arguments[i])
        assert np.max(np.abs(expected)) > 100 * atol
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def normal(*shapes, seed=0, dtype="float64"):
    """Random arrays, one of each shape."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]
