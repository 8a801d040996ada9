"""The trace counts the neurons that kept their role."""

import keras
import matplotlib.image
import numpy as np
import ot
import pytest
import tensorflow as tf

import tfkd
from tfkd.analysis import (
    TransportTraceLogger,
    plot_transport_trace,
    transport_trace,
)


@pytest.fixture
def data():
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 2)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, np.zeros(40))).batch(16)


def _permuted(network, permutation):
    """A copy whose neurons of `conv1` stand in another order."""
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    conv = copy.get_layer("conv1")
    conv.set_weights([w[..., permutation] for w in conv.get_weights()])
    return copy


def test_a_network_keeps_the_roles_of_itself(make_network, data):
    network = make_network(4)
    result = transport_trace(network, network, data, ["conv1", "features"])
    np.testing.assert_allclose(result.traces, 1.0, rtol=1e-6)
    assert result.layers == ("conv1", "features")
    np.testing.assert_array_equal(result.partners[0], range(4))
    assert np.all(result.entropies < 0.01)


def test_neurons_that_nearly_agree_keep_their_roles_too(data):
    """As in wide layers, where distances are of all magnitudes."""
    flat = keras.layers.Flatten()
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), flat, keras.layers.Dense(60, name="dense")]
    )
    scales = np.logspace(-6, 0, 60)
    noise = np.random.default_rng(1).normal(size=[128, 60])
    model.layers[-1].kernel.assign(1.0 + scales * noise)
    result = transport_trace(model, model, data, ["dense"])
    np.testing.assert_allclose(result.traces, 1.0, rtol=1e-12)
    np.testing.assert_array_equal(result.partners[0], range(60))


def test_a_permutation_is_found(make_network, data):
    network = make_network(6)
    permutation = np.array([1, 0, 2, 4, 5, 3])
    result = transport_trace(
        _permuted(network, permutation), network, data, ["conv1"]
    )
    np.testing.assert_array_equal(result.partners[0], permutation)
    assert result.traces[0] == pytest.approx(1 / 6, abs=1e-3)


def test_neurons_that_never_act_count_as_kept(make_network, data):
    """Dead neurons are alike; no plan can tell one from the other."""
    network = make_network(6)
    conv = network.get_layer("conv1")
    kernel, bias = conv.get_weights()
    kernel[..., 1:4] = 0.0
    bias[1:4] = 0.0
    conv.set_weights([kernel, bias])
    other = _permuted(network, [0, 3, 1, 2, 4, 5])
    result = transport_trace(other, network, data, ["conv1"])
    assert result.traces[0] == pytest.approx(1.0, abs=1e-6)
    swapped = _permuted(network, [4, 3, 1, 2, 0, 5])
    result = transport_trace(swapped, network, data, ["conv1"])
    assert result.traces[0] == pytest.approx(4 / 6, abs=1e-3)


def test_traces_are_those_of_exact_plans(make_network, data):
    """Of two unlike networks, against an exact solver."""
    one, other = make_network(8, seed=1), make_network(8, seed=2)
    result = transport_trace(one, other, data, ["conv1", "conv2"])
    for layer, trace in zip(result.layers, result.traces, strict=True):
        neurons = [
            keras.Model(model.inputs, model.get_layer(layer).output)
            .predict(data.map(lambda x, y: x), verbose=0)
            .reshape(-1, model.get_layer(layer).filters)
            .T.astype("float64")
            for model in (one, other)
        ]
        cost = np.linalg.norm(neurons[0][:, None] - neurons[1][None], axis=-1)
        plan = ot.emd([], [], cost)
        assert trace == pytest.approx(np.trace(plan), abs=1e-6)


def test_the_logger_begins_at_one_and_follows_training(
    make_network, images, data
):
    student = make_network(4, seed=1)
    start = keras.models.clone_model(student)
    start.set_weights(student.get_weights())
    distiller = tfkd.Distiller(student=student)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    logger = TransportTraceLogger(start, data, ["conv1"])
    history = distiller.fit(*images, epochs=2, verbose=0, callbacks=[logger])
    assert history.history["trace_conv1"] == pytest.approx([1.0, 1.0])
    permutation = [1, 2, 3, 0]
    student.set_weights(_permuted(student, permutation).get_weights())
    history = distiller.fit(*images, verbose=0, callbacks=[logger])
    assert history.history["trace_conv1"] == pytest.approx([0.0], abs=1e-3)


def test_wrong_arguments_are_refused(make_network, data):
    network = make_network(4)
    for layers in ([], "conv1", [None]):
        with pytest.raises(ValueError, match="`layers`"):
            transport_trace(network, network, data, layers)
        with pytest.raises(ValueError, match="`layers`"):
            TransportTraceLogger(network, data, layers)
    with pytest.raises(ValueError, match="no layer 'conv3'"):
        transport_trace(network, network, data, ["conv3"])
    with pytest.raises(ValueError, match="differ at layer 'conv1'"):
        transport_trace(network, make_network(5), data, ["conv1"])
    with pytest.raises(ValueError, match="data are empty"):
        transport_trace(network, network, data.take(0), ["conv1"])
    with pytest.raises(ValueError, match="`model_b`"):
        transport_trace(network, None, data, ["conv1"])


def test_the_picture_shows_a_line_a_pair(make_network, data, tmp_path):
    one, other = make_network(4, seed=1), make_network(4, seed=2)
    layers = ["conv1", "conv2", "features"]
    results = {
        "itself": transport_trace(one, one, data, layers),
        "another": transport_trace(one, other, data, layers),
    }
    path = tmp_path / "trace.png"
    plot_transport_trace(results, path)
    assert matplotlib.image.imread(path).std() > 0.05
    fewer = transport_trace(one, one, data, ["conv1"])
    with pytest.raises(ValueError, match="different layers"):
        plot_transport_trace({**results, "fewer": fewer}, path)
