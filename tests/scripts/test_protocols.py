"""Protocols train as the papers say."""

import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

from protocols import PROTOCOLS, CoupledSGD


def test_decay_is_a_part_of_the_gradient():
    """Three steps, by hand: decay goes through the momentum."""
    gradients = np.array([[1.0, -2.0], [0.5, 0.5], [-1.0, 3.0]])
    weights, momentum = np.array([2.0, -1.0]), np.zeros(2)
    variable = keras.Variable(weights, dtype="float32")
    optimizer = CoupledSGD(0.1, decay=0.01, momentum=0.9)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        momentum = 0.9 * momentum - 0.1 * (gradient + 0.01 * weights)
        weights = weights + momentum
        np.testing.assert_allclose(variable, weights, rtol=1e-6)


def test_every_variable_decays():
    """Biases and scales of normalisation, too."""
    model = keras.Sequential(
        [
            keras.Input([3]),
            keras.layers.Dense(2, bias_initializer="ones"),
            keras.layers.BatchNormalization(),
        ]
    )
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = CoupledSGD(0.1, decay=0.01)
    optimizer.apply(
        [tf.zeros_like(v) for v in before], model.trainable_variables
    )
    for variable, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_allclose(variable, 0.999 * old, rtol=1e-6)


def test_optimizer_is_made_again_from_its_config():
    optimizer = CoupledSGD(0.1, decay=0.01, momentum=0.9)
    again = CoupledSGD.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.decay == 0.01


def test_crd_drops_the_rate_after_150_180_and_210_epochs():
    steps = 782  # of CIFAR-100 in batches of 64
    optimizer = PROTOCOLS["crd"].optimizer(0.05, 240 * steps, stage=False)
    assert (optimizer.momentum, optimizer.decay) == (0.9, 5e-4)
    assert not optimizer.nesterov
    for epoch, expected in (
        (0, 0.05),
        (149, 0.05),
        (150, 5e-3),
        (179, 5e-3),
        (180, 5e-4),
        (209, 5e-4),
        (210, 5e-5),
        (239, 5e-5),
    ):
        for step in (epoch * steps, (epoch + 1) * steps - 1):
            optimizer.iterations.assign(step)
            np.testing.assert_allclose(
                optimizer.learning_rate, expected, rtol=1e-5
            )


def test_crd_keeps_the_rate_in_a_stage_before():
    optimizer = PROTOCOLS["crd"].optimizer(0.05, 100, stage=True)
    optimizer.iterations.assign(99)
    np.testing.assert_allclose(optimizer.learning_rate, 0.05)


@pytest.mark.parametrize(
    ("network", "expected"), [("shufflenet-v2", 0.01), ("resnet8x4", 0.05)]
)
def test_crd_starts_a_shufflenet_lower(network, expected):
    assert PROTOCOLS["crd"].rate_of(network) == expected
