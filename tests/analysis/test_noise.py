"""Accuracy under noise: closed forms, the same noise for all, errors."""

import statistics

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.analysis import (
    NoiseRobustness,
    noise_robustness,
    plot_noise_robustness,
)

phi = np.vectorize(statistics.NormalDist().cdf)


def threshold(inputs=1, *, scale=1.0, softmax=False):
    """Says class 1 where the inputs' sum is positive."""
    x = keras.Input([inputs])
    y = keras.layers.Dense(
        2, use_bias=False, activation="softmax" if softmax else None
    )(x)
    model = keras.Model(x, y)
    model.set_weights([np.tile(np.float32([0, scale]), [inputs, 1])])
    return model


def ones(examples, inputs=1, value=1.0):
    """Inputs that are all `value`, of class 1."""
    return (
        np.full([examples, inputs], value, np.float32),
        np.ones(examples, np.int64),
    )


def test_accuracy_of_a_threshold_is_the_normal_distribution_function():
    """With d inputs of 1/d, P(1 + stddev sum z > 0) = Phi(1/(stddev sqrt d)).

    Noise shared by the d inputs would give Phi(1 / (stddev d)). The mean
    over n = 2000 examples and 20 draws has the binomial standard error
    sqrt(p (1 - p) / 40000), at most 0.0025; four of them are allowed.
    """
    for d in (1, 9):
        stddevs = np.array([0.5, 1.0, 2.0]) / np.sqrt(d)
        result = noise_robustness(
            threshold(d), ones(2000, d, 1 / d), stddevs=stddevs, draws=20
        )
        p = phi([2.0, 1.0, 0.5])
        errors = np.abs(result.mean - p) / np.sqrt(p * (1 - p) / 40000)
        assert errors.max() < 4


def test_draws_spread_as_independent_examples_do():
    """The accuracy of one draw has variance p (1 - p) / n.

    Of 200 draws, the sample standard deviation has the relative error
    1 / sqrt(2 * 199) = 5 %; four of them are allowed. Noise shared by the
    examples would spread sqrt(n) = 10 times as much, shared draws not at
    all.
    """
    result = noise_robustness(threshold(), ones(100), stddevs=[1.0], draws=200)
    p = phi(1.0)
    expected = np.sqrt(p * (1 - p) / 100)
    np.testing.assert_allclose(result.std, [expected], rtol=0.2)


def test_mean_and_std_are_those_of_the_sample():
    """Of 0.5 and 0.7: mean 0.6, std sqrt(2 * 0.1^2 / (2 - 1)) = 0.1414."""
    result = NoiseRobustness(np.array([0.1]), np.array([[0.5, 0.7]]))
    np.testing.assert_allclose(result.mean, [0.6])
    np.testing.assert_allclose(result.std, [np.sqrt(0.02)])


def test_one_draw_has_no_standard_deviation():
    result = noise_robustness(threshold(), ones(3), draws=1)
    assert result.accuracies.shape == (5, 1)
    assert np.all(np.isnan(result.std))


def test_without_noise_it_is_the_plain_accuracy(make_network, images):
    x, y = images
    network = make_network()
    expected = np.mean(network.predict(x, verbose=0).argmax(-1) == y)
    result = noise_robustness(network, (x, y), stddevs=[0.0], draws=3)
    np.testing.assert_array_equal(result.accuracies, [[expected] * 3])
    assert result.std == 0.0


def test_noise_is_in_input_units_and_not_clipped():
    """Class 1 above 5, inputs 0: right with P(z > 5 / 10) = 0.309.

    The binomial standard error is sqrt(0.309 * 0.691 / 20000) = 0.0033.
    """
    x, y = ones(2000, value=0.0)
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(2)])
    model.set_weights([np.float32([[0, 1]]), np.float32([0, -5])])
    result = noise_robustness(model, (x, y), stddevs=[10.0])
    assert result.mean[0] == pytest.approx(phi(-0.5), abs=4 * 0.0033)


def test_repeats_itself_bit_for_bit():
    first, second = (
        noise_robustness(threshold(), ones(200)).accuracies for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_seed_level_and_draw_each_change_the_noise():
    """500 answers, of which 84 % are right, rarely give one number twice."""
    settings = {"stddevs": [1.0, 1.0], "draws": 3}
    rows = [
        row
        for seed in (0, 1, 2**32 - 1)
        for row in noise_robustness(
            threshold(), ones(500), seed=seed, **settings
        ).accuracies.tolist()
    ]
    assert len(set(map(tuple, rows))) == 6
    assert all(len(set(row)) > 1 for row in rows)


def test_models_meet_the_same_noise():
    """The opposite model is right exactly where the model is wrong.

    A scale and a softmax change no decision.
    """
    data = ones(150)
    result = noise_robustness(threshold(), data, stddevs=[0.7, 1.0])
    opposite = noise_robustness(threshold(scale=-1.0), data, stddevs=[0.7, 1.0])
    other = noise_robustness(
        threshold(scale=3.0, softmax=True), data, stddevs=[0.7, 1.0]
    )
    assert 0.5 < result.mean.min() < result.mean.max() < 1.0
    np.testing.assert_allclose(
        opposite.accuracies, 1 - result.accuracies, rtol=1e-12
    )
    np.testing.assert_array_equal(other.accuracies, result.accuracies)


def test_batches_do_not_matter(make_network):
    """Seven does not divide 64, the size of a block of noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=[150, 8, 8, 2]).astype("float32")
    y = rng.integers(0, 3, size=150)
    network = make_network()
    expected = noise_robustness(network, (x, y), stddevs=[0, 1.0], draws=3)
    assert expected.std[1] > 0
    data = tf.data.Dataset.from_tensor_slices((x, y))
    for size in (1, 7, 64, 150):
        result = noise_robustness(
            network, data.batch(size), stddevs=[0, 1.0], draws=3
        )
        np.testing.assert_array_equal(result.accuracies, expected.accuracies)


def test_noise_of_an_example_ignores_those_after_it():
    """100 examples that no noise turns, after 50 that some does."""
    x, y = ones(50)
    sure, _ = ones(100, value=1e6)
    alone = noise_robustness(threshold(), (x, y), stddevs=[1.0])
    longer = noise_robustness(
        threshold(), (np.concatenate([x, sure]), np.ones(150)), stddevs=[1.0]
    )
    np.testing.assert_array_equal(
        np.round(150 * longer.accuracies), np.round(50 * alone.accuracies) + 100
    )


def test_labels_may_be_sparse_a_column_or_one_hot():
    x, _ = ones(100)
    y = np.arange(100) % 2
    expected = noise_robustness(threshold(), (x, y), stddevs=[1.0])
    for labels in (y[:, None], np.float32(y), np.eye(2)[y]):
        result = noise_robustness(threshold(), (x, labels), stddevs=[1.0])
        np.testing.assert_array_equal(result.accuracies, expected.accuracies)


def test_precision_of_the_inputs_does_not_change_the_noise():
    x, y = ones(100)
    expected = noise_robustness(threshold(), (x, y), stddevs=[1.0])
    result = noise_robustness(
        threshold(), (x.astype(np.float64), y), stddevs=[1.0]
    )
    np.testing.assert_array_equal(result.accuracies, expected.accuracies)


class Counting(keras.layers.Layer):
    """Counts its traces and its calls."""

    traces = 0

    def build(self, shape):
        self.calls = self.add_weight(trainable=False, initializer="zeros")

    def call(self, inputs):
        self.traces += 1
        self.calls.assign_add(1.0)
        return inputs


def test_is_traced_once_and_runs_the_noiseless_level_once():
    """130 examples are 3 blocks: 3 (1 + 4) calls for levels 0 and 1."""
    layer = Counting()
    inputs = keras.Input([2])
    model = keras.Model(inputs, layer(inputs))
    layer.traces = 0
    noise_robustness(model, ones(130, 2), stddevs=[0.0, 1.0], draws=4)
    assert layer.traces == 1
    assert layer.calls.numpy() == 15


def test_model_runs_in_inference_mode_and_stays_as_it_is():
    """Dropout of nearly all would turn answers; statistics would move."""
    inputs = keras.Input([1])
    x = keras.layers.Dropout(0.99)(inputs)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, threshold()(x))
    before = model.get_weights()
    result = noise_robustness(model, ones(100), stddevs=[1e-3])
    assert result.mean == 1.0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stddevs": [0.1, -0.1]}, "`stddevs`. Expected .* >= 0"),
        ({"stddevs": [np.nan]}, "`stddevs`.*finite"),
        ({"stddevs": [np.inf]}, "`stddevs`.*finite"),
        ({"stddevs": []}, "`stddevs`. Expected one or more"),
        ({"stddevs": 0.1}, "`stddevs`. .*Received: stddevs=0.1"),
        ({"draws": 0}, "`draws`. Expected an integer >= 1"),
        ({"draws": 1.5}, "`draws`.*Received: draws=1.5"),
        ({"draws": True}, "`draws`.*Received: draws=True"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        noise_robustness(threshold(), ones(3), **settings)


def batches(x, y, size=2):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ones(0), "at least one example"),
        (batches(*ones(4)).filter(lambda x, y: False), "at least one example"),
        (batches(*ones(4)).repeat(), "an endless dataset"),
        (batches(*ones(4)).unbatch(), "of batches"),
        (batches(*ones(4)).map(lambda x, y: x), "elements TensorSpec"),
        (batches(*ones(4)).map(lambda x, y: (x, {"label": y})), "'label'"),
        (batches(*ones(4)).map(lambda x, y: (x, y, y)), "batches \\(x, y\\)"),
        ((np.ones([4, 1], np.uint8), np.ones(4)), "floating x"),
        ((np.ones([4, 1]), np.ones([4, 3])), "one-hot \\[batch, 2\\]"),
        ([1, 2], "Received: list"),
    ],
)
def test_refuses_data_of_another_kind(data, message):
    with pytest.raises(ValueError, match=message):
        noise_robustness(threshold(), data)


def test_refuses_models_of_another_kind():
    x = keras.Input([4])
    logits = keras.layers.Dense(2)(x)
    for outputs in (
        keras.layers.Reshape([2, 2])(x),
        keras.layers.Dense(1)(x),
        [logits, logits],
        {"logits": logits},
    ):
        with pytest.raises(ValueError, match="`model`. Expected one output"):
            noise_robustness(keras.Model(x, outputs), ones(3, 4))
    with pytest.raises(ValueError, match="a built Keras model"):
        noise_robustness(keras.Sequential(), ones(3))
    with pytest.raises(ValueError, match="a built Keras model"):
        noise_robustness(lambda x: x, ones(3))


def test_draws_a_picture_of_several_models(tmp_path):
    """Also of one draw, and of levels that do not rise."""
    results = {
        "plain": noise_robustness(threshold(), ones(20)),
        "other levels": noise_robustness(
            threshold(), ones(20), stddevs=[1.0, 0.5], draws=1
        ),
    }
    file = tmp_path / "noise.png"
    plot_noise_robustness(results, file)
    picture = tf.io.decode_png(file.read_bytes())
    assert picture.shape == (644, 980, 4)
    assert len(np.unique(picture.numpy().reshape(-1, 4), axis=0)) > 50


def test_refuses_a_picture_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="of at least one"):
        plot_noise_robustness({}, tmp_path / "noise.png")
    assert not list(tmp_path.iterdir())
