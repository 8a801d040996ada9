"""What all tests share: quiet imports, seeds and small networks."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import keras
import numpy as np
import pytest
import tensorflow as tf

# Whose graphs TensorFlow optimizes, as it does for users.
OPTIMIZED = ("test_distiller", "test_transferer", "test_distill")


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _graphs_as_traced(request):
    """Of graphs that run once or twice, optimizing takes most of the time."""
    name = request.module.__name__.rpartition(".")[2]
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": name not in OPTIMIZED}
    )


@pytest.fixture
def float64():
    """Everything in float64, for central differences."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def make_network():
    """A function that makes a small convolutional network."""
    return _make_network


@pytest.fixture
def images():
    """Eight images of 8x8x2 and their labels among 3 classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 8, 8, 2)).astype(keras.config.floatx())
    return x, rng.integers(0, 3, size=8)


def _make_network(
    width=4,
    *,
    seed=0,
    name="net",
    normalization="batch",
    regularizer=None,
    pool="average",
    classes=3,
):
    """Two convolution blocks, `features` and `logits`.

    Args:
        width: Channels of the first block; twice as many in the second.
        seed: Of the weights, and of random scales and moving statistics.
        name: Of the model.
        normalization: "batch", "layer", "group" or None.
        regularizer: Of the kernels.
        pool: "average" or "max".
        classes: Number of logits.
    """
    keras.utils.set_random_seed(seed)
    pools = {
        "average": keras.layers.AveragePooling2D,
        "max": keras.layers.MaxPooling2D,
    }
    inputs = x = keras.Input((8, 8, 2))
    for i in (1, 2):
        x = keras.layers.Conv2D(
            i * width,
            3,
            padding="same",
            kernel_regularizer=regularizer,
            name=f"conv{i}",
        )(x)
        if normalization == "batch":
            x = keras.layers.BatchNormalization(name=f"norm{i}")(x)
        elif normalization == "layer":
            x = keras.layers.LayerNormalization(name=f"norm{i}")(x)
        elif normalization == "group":
            x = keras.layers.GroupNormalization(2, name=f"norm{i}")(x)
        x = keras.layers.Activation("softplus", name=f"act{i}")(x)
        x = pools[pool](2, name=f"stage{i}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    outputs = keras.layers.Dense(
        classes, kernel_regularizer=regularizer, name="logits"
    )(x)
    model = keras.Model(inputs, outputs, name=name)
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.path.endswith(("beta", "bias", "moving_mean")):
            variable.assign(0.3 * rng.normal(size=variable.shape))
    return model
