"""`L2SP` and `L2`: their formulas, and whose kernels they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.trace import outline


def _bound(match, student, reference=None):
    """The match, bound as a trainer binds it."""
    references = [] if reference is None else [reference]
    match.claim(student, *references)
    match.bind(
        student=outline(student), teacher=reference and outline(reference)
    )
    return match


def _value(match):
    """The value of a bound match, which looks at no pass."""
    return match.value(None, None)


@pytest.fixture
def networks(make_network):
    """A network and how it began: every variable differs."""
    return make_network(seed=1, name="now"), make_network(seed=2, name="then")


def _kernels(model):
    return {
        layer.name: layer.kernel.numpy().astype(np.float64)
        for layer in model.layers
        if hasattr(layer, "kernel")
    }


def _squares(kernels):
    return sum(np.sum(kernel**2) for kernel in kernels)


def test_l2sp_equals_its_formula(float64, networks):
    """0.3 / 2 |w - w0|^2 over the convolutions, 0.7 / 2 |w|^2 at the head."""
    student, start = networks
    now, then = _kernels(student), _kernels(start)
    moved = _squares(now[name] - then[name] for name in ("conv1", "conv2"))
    expected = 0.15 * moved + 0.35 * _squares([now["logits"]])
    match = _bound(tfkd.L2SP(0.3, 0.7), student, start)
    np.testing.assert_allclose(_value(match), expected, rtol=1e-12)
    assert match.where == "kernels, new: logits"


def test_l2_equals_its_formula(float64, networks):
    student, _ = networks
    now = _kernels(student)
    old = _squares([now["conv1"], now["conv2"]])
    expected = 0.15 * old + 0.35 * _squares([now["logits"]])
    match = _bound(tfkd.L2(0.3, 0.7), student)
    np.testing.assert_allclose(_value(match), expected, rtol=1e-12)
    assert not match.needs_teacher


def test_the_published_strengths():
    assert (tfkd.L2SP().kernel, tfkd.L2SP().new) == (0.1, 0.01)
    assert tfkd.L2SP().weight == 1.0


def test_only_kernels_are_pulled(networks):
    """By kernel (w - w0) and new w; biases and norms feel nothing."""
    student, start = networks
    match = _bound(tfkd.L2SP(0.3, 0.7), student, start)
    variables = student.trainable_variables
    with tf.GradientTape() as tape:
        value = _value(match)
    pulled = set()
    for variable, gradient in zip(
        variables, tape.gradient(value, variables), strict=True
    ):
        layer = next(
            x for x in student.layers if any(variable is v for v in x.variables)
        )
        if gradient is None:
            continue
        pulled.add(variable.path.split("/")[-2:][0] + "/" + variable.name)
        expected = 0.7 * variable.numpy()
        if layer.name != "logits":
            there = start.get_layer(layer.name).kernel.numpy()
            expected = 0.3 * (variable.numpy() - there)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    assert pulled == {"conv1/kernel", "conv2/kernel", "logits/kernel"}


def test_is_zero_at_the_start_without_new_layers(networks):
    student, start = networks
    start.set_weights(student.get_weights())
    match = _bound(tfkd.L2SP(new_layers=[]), student, start)
    assert float(_value(match)) == 0.0
    assert match.where == "kernels"


def test_kernels_of_every_kind_count():
    """Depthwise, recurrent and attention's; not embeddings, not biases."""
    words = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 4, name="embedding")(words)
    x = keras.layers.SeparableConv1D(4, 2, name="separable")(x)
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.LSTM(3, name="recurrent")(x)
    model = keras.Model(words, keras.layers.Dense(2, name="logits")(x))
    expected = [
        variable
        for variable in model.trainable_variables
        if variable.path.endswith("kernel")
    ]
    assert len(expected) == 2 + 4 + 2 + 1
    match = _bound(tfkd.L2(2.0, 2.0), model)
    np.testing.assert_allclose(
        _value(match), _squares(v.numpy() for v in expected), rtol=1e-5
    )


def test_frozen_kernels_have_no_part(networks):
    student, start = networks
    student.get_layer("conv1").trainable = False
    now, then = _kernels(student), _kernels(start)
    match = _bound(tfkd.L2SP(2.0, 0.0), student, start)
    expected = _squares([now["conv2"] - then["conv2"]])
    np.testing.assert_allclose(_value(match), expected, rtol=1e-5)


def test_new_layers_are_named_by_path_with_what_they_hold(networks):
    base, _ = networks
    inputs = keras.Input((8, 8, 2))
    student = keras.Model(inputs, base(inputs), name="outer")
    match = _bound(tfkd.L2(0.0, 2.0), student)
    assert match.where == "kernels, new: now/logits"
    for names, kernels in (
        (["conv1", "now/conv2"], ("conv1", "conv2")),
        (["now"], ("conv1", "conv2", "logits")),
    ):
        match = _bound(tfkd.L2(0.0, 2.0, names), student)
        expected = _squares(_kernels(base)[name] for name in kernels)
        np.testing.assert_allclose(_value(match), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"no layer 'head'.*Nearest"):
        _bound(tfkd.L2(new_layers=["head"]), student)


def test_kernels_without_counterpart_are_new(make_network):
    """A reference with other classes, and one that has no second block."""
    student = make_network(seed=1, name="now")
    start = make_network(seed=2, name="then", classes=5)
    now, then = _kernels(student), _kernels(start)
    moved = _squares(now[name] - then[name] for name in ("conv1", "conv2"))
    for names in (None, []):
        match = _bound(tfkd.L2SP(2.0, 1.0, names), student, start)
        expected = moved + 0.5 * _squares([now["logits"]])
        np.testing.assert_allclose(_value(match), expected, rtol=1e-5)
    short = keras.Model(start.input, start.get_layer("stage1").output)
    match = _bound(tfkd.L2SP(2.0, 0.0), student, short)
    expected = _squares([now["conv1"] - then["conv1"]])
    np.testing.assert_allclose(_value(match), expected, rtol=1e-5)


def test_nothing_in_common_is_refused_with_what_to_do(make_network):
    student, teacher = make_network(4), make_network(6, classes=5)
    with pytest.raises(ValueError, match='none in common.*reference="start"'):
        _bound(tfkd.L2SP(), student, teacher)


def test_is_divided_by_the_number_of_replicas(networks, monkeypatch):
    student, start = networks
    match = _bound(tfkd.L2SP(), student, start)
    alone = float(_value(match))

    class Two:
        num_replicas_in_sync = 2

    monkeypatch.setattr(tf.distribute, "get_strategy", Two)
    np.testing.assert_allclose(_value(match), alone / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", [tfkd.L2SP, tfkd.L2])
def test_returns_from_its_configuration(kind):
    match = kind(0.5, 0.25, ["logits"], weight=3.0, name="near")
    again = kind.from_config(match.get_config())
    assert again.get_config() == match.get_config()
    assert (again.kernel, again.new, again.weight) == (0.5, 0.25, 3.0)
    assert again.new_layers == ["logits"]


@pytest.mark.parametrize("value", [-1.0, float("nan"), None, "0.1", True])
def test_strengths_are_finite_and_not_negative(value):
    for argument in ("kernel", "new"):
        with pytest.raises(ValueError, match=f"`{argument}`.*finite number >="):
            tfkd.L2SP(**{argument: value})


@pytest.mark.parametrize("value", ["logits", [1], 3])
def test_new_layers_are_a_list_of_names(value):
    with pytest.raises(ValueError, match="`new_layers`.*list"):
        tfkd.L2SP(new_layers=value)
