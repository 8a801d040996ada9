"""`average_views`: the mean probabilities of several views."""

import keras
import numpy as np
import pytest

import tfkd


def expected(network, views):
    """The mean of softmax over the views, view by view."""
    logits = np.stack(
        [network(views[:, k], training=False) for k in range(views.shape[1])]
    ).astype(np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return (odds / odds.sum(-1, keepdims=True)).mean(0)


@pytest.mark.parametrize("number", [1, 3, 10])
def test_softmax_is_the_mean_of_the_probabilities(make_network, number):
    network = make_network()
    views = np.random.default_rng(0).normal(size=(5, number, 8, 8, 2))
    views = views.astype("float32")
    averaged = tfkd.models.average_views(network)
    logits = averaged.predict(views, verbose=0)
    assert logits.dtype == np.float32
    assert averaged.output_shape == (None, 3)
    np.testing.assert_allclose(
        np.exp(logits), expected(network, views), rtol=1e-5
    )


def test_two_certain_views_that_disagree_are_even():
    """Probabilities (1, 0) and (0, 1) at logits of 200: log 1/2 each."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
    views = np.array([[[200.0, 0.0], [0.0, 200.0]]], "float32")
    logits = tfkd.models.average_views(network)(views)
    np.testing.assert_allclose(logits, np.log([[0.5, 0.5]]), rtol=1e-6)


def test_nothing_of_the_network_changes(make_network):
    """No moving statistics either, even when called for training."""
    network = make_network()
    before = [weight.copy() for weight in network.get_weights()]
    averaged = tfkd.models.average_views(network)
    averaged(np.ones([4, 10, 8, 8, 2], "float32"), training=True)
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert network.name == "net"


def test_takes_mixed_precision(make_network):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = make_network()
    finally:
        keras.config.set_dtype_policy("float32")
    views = np.random.default_rng(0).normal(size=(5, 4, 8, 8, 2))
    logits = tfkd.models.average_views(network).predict(views, verbose=0)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(
        np.exp(logits), expected(network, views), rtol=1e-2
    )


@pytest.mark.parametrize("kind", ["text", "unbuilt", "maps", "two inputs"])
def test_other_networks_are_refused(kind):
    image, other = keras.Input((4, 4, 2)), keras.Input((4, 4, 2))
    network = {
        "text": "resnet20",
        "unbuilt": keras.Sequential([keras.layers.Dense(2)]),
        "maps": keras.Model(image, keras.layers.Conv2D(3, 1)(image)),
        "two inputs": keras.Model(
            [image, other], keras.layers.Flatten()(image + other)
        ),
    }[kind]
    with pytest.raises(ValueError, match="`network`"):
        tfkd.models.average_views(network)
