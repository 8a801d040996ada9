"""One forward pass of one network, seen from outside."""

import contextlib
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.precision import at_least_float32
from tfkd.trace import (
    Trace,
    classifier,
    find_layer,
    outline,
    twice_differentiable,
)


class Subclassed(keras.Model):
    """A model with a nested block and a layer that is called twice."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.backbone = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(4, name="hidden")],
            name="backbone",
        )
        self.twice = keras.layers.Dense(4, name="twice")
        self.idle = keras.layers.Dense(4, name="idle")
        self.head = keras.layers.Dense(3, name="head")

    def build(self, input_shape):
        for layer in (self.twice, self.idle, self.head):
            layer.build((None, 4))

    def call(self, x):
        x = self.backbone(x)
        return self.head(self.twice(self.twice(x)))


@pytest.fixture
def subclassed():
    model = Subclassed()
    model(tf.ones([2, 5]))
    return model


def _dense(layer, x):
    return x @ layer.kernel.numpy() + layer.bias.numpy()


def test_keeps_the_outputs_and_the_features_of_a_functional_model(
    make_network, images
):
    model = make_network()
    trace = Trace(model, images[0], layers=["stage1", "features"])
    expected = keras.Model(
        model.input,
        [model.get_layer("stage1").output, model.get_layer("features").output],
    )(images[0])
    np.testing.assert_array_equal(trace["stage1"], expected[0])
    np.testing.assert_array_equal(trace["features"], expected[1])
    np.testing.assert_array_equal(trace[None], model(images[0]))


def test_keeps_features_of_a_sequential_model():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, name="a"),
            keras.layers.Dense(3, name="b"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(2, 5)).astype("float32")
    trace = Trace(model, x, layers=["a"])
    np.testing.assert_allclose(
        trace["a"], _dense(model.get_layer("a"), x), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["hidden", "backbone/hidden", "backbone"])
def test_keeps_features_of_a_nested_block_of_a_subclassed_model(
    subclassed, name
):
    x = np.random.default_rng(0).normal(size=(2, 5)).astype("float32")
    hidden = subclassed.backbone.layers[-1]
    trace = Trace(subclassed, x, layers=[name])
    np.testing.assert_allclose(trace[name], _dense(hidden, x), rtol=1e-6)


def test_keeps_features_of_a_nested_functional_model(make_network, images):
    backbone = make_network(name="backbone")
    inputs = keras.Input((8, 8, 2))
    model = keras.Model(inputs, keras.layers.ReLU()(backbone(inputs)))
    direct = Trace(backbone, images[0], layers=["stage1"])
    nested = Trace(model, images[0], layers=["backbone/stage1"])
    np.testing.assert_array_equal(nested["backbone/stage1"], direct["stage1"])


def test_leaves_no_mark_on_the_layers(subclassed):
    Trace(subclassed, tf.ones([2, 5]), layers=["hidden", "backbone"])
    with pytest.raises(ValueError, match="twice"):
        Trace(subclassed, tf.ones([2, 5]), layers=["twice"])
    for layer in subclassed._flatten_layers():
        assert "call" not in layer.__dict__


def test_a_call_that_the_user_replaced_is_put_back():
    layer = keras.layers.Dense(3, name="a")
    model = keras.Sequential([keras.Input((2,)), layer])
    mine = tf.function(layer.call)
    layer.call = mine
    Trace(model, tf.ones([1, 2]), layers=["a"])
    assert layer.call is mine


def test_threads_that_interleave_hear_only_their_own_calls():
    """A mirrored strategy traces the replicas in threads that take turns."""
    inside, barrier = {}, threading.Barrier(2)

    class Waits(keras.layers.Layer):
        def call(self, x):
            if tf.is_tensor(x) and not tf.is_symbolic_tensor(x):
                barrier.wait(timeout=20)
            return x + 0.0

    inputs = keras.Input((1,))
    outputs = keras.layers.ReLU(name="relu")(Waits(name="waits")(inputs))
    model = keras.Model(inputs, outputs)

    def run(value):
        x = tf.fill([1, 1], value)
        trace = Trace(model, x, layers=["waits", "relu"])
        inside[value] = tuple(float(trace[n][0, 0]) for n in ("waits", "relu"))

    threads = [
        threading.Thread(target=run, args=(value,)) for value in (1.0, 2.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == {1.0: (1.0, 1.0), 2.0: (2.0, 2.0)}
    assert "call" not in model.get_layer("waits").__dict__


def test_an_unknown_layer_names_the_nearest(make_network):
    with pytest.raises(ValueError, match=r"no layer 'stge2'.*'stage2'"):
        find_layer(make_network(), "stge2")


def test_an_ambiguous_name_lists_the_paths():
    def block(name):
        return keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(2, name="same")], name=name
        )

    model = keras.Sequential([keras.Input((2,)), block("a"), block("b")])
    with pytest.raises(ValueError, match=r"'a/same', 'b/same'"):
        find_layer(model, "same")
    assert find_layer(model, "b/same") is model.layers[1].layers[0]


def test_a_layer_called_twice_or_never_is_refused(subclassed):
    with pytest.raises(ValueError, match="'twice'.*called 2 times"):
        outline(subclassed, ["twice"])
    with pytest.raises(ValueError, match="'idle'.*called 0 times"):
        outline(subclassed, ["idle"])


def test_outline_knows_shapes_and_what_computed_them(make_network):
    known = outline(make_network(), ["stage1", "features"])
    assert known.inputs.shape.as_list() == [None, 8, 8, 2]
    assert known.signals["stage1"].shape == (None, 4, 4, 4)
    assert known.signals["features"].shape == (None, 8)
    assert known.signals[None].shape == (None, 3)
    assert known.signals[None].op == "BiasAdd"
    assert "Conv2D" in known.ops
    softmax = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, activation="softmax")]
    )
    assert outline(softmax).signals[None].op == "Softmax"


def test_outline_knows_which_models_act_differently_in_training(make_network):
    assert outline(make_network(normalization="batch")).mixes_modes
    assert not outline(make_network(normalization="layer")).mixes_modes
    dropout = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5)])
    assert outline(dropout).mixes_modes


def test_outline_reads_models_with_several_inputs_and_outputs():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    outputs = {
        "sum": keras.layers.Dense(4)(a),
        "rest": keras.layers.Dense(5)(b),
    }
    known = outline(keras.Model({"a": a, "b": b}, outputs))
    assert known.inputs["b"].shape.as_list() == [None, 3]
    assert known.signals[None]["rest"].shape == (None, 5)


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="is not built"):
        outline(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="Expected a Keras model"):
        outline("resnet")


def test_input_gradients_are_each_examples_own(make_network, images):
    """Rows of a tape's batch Jacobian, one output an example."""
    model = make_network()
    x, labels = tf.constant(images[0]), images[1]
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = model(x, training=False)
    rows = tape.batch_jacobian(logits, x).numpy()
    expected = rows[np.arange(8), labels]
    trace = Trace(model, x, differentiable=True)
    actual = trace.input_gradient(
        lambda trace: tf.gather(trace.outputs, labels, axis=1, batch_dims=1)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


def test_one_trace_gives_several_gradients(make_network, images):
    model = make_network()
    trace = Trace(model, images[0], differentiable=True, layers=["features"])
    parts = [
        trace.input_gradient(lambda trace, i=i: trace["features"][:, i])
        for i in range(8)
    ]
    whole = trace.input_gradient(
        lambda trace: tf.reduce_sum(trace["features"], axis=-1)
    )
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-4, atol=1e-7)


def test_an_input_without_influence_has_gradient_zero():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(a))
    trace = Trace(
        model, {"a": tf.ones([4, 2]), "b": tf.ones([4, 3])}, differentiable=True
    )
    gradient = trace.input_gradient(lambda trace: trace.outputs[:, 0])
    np.testing.assert_array_equal(gradient["b"], np.zeros([4, 3]))
    kernel = model.layers[-1].kernel.numpy()[:, 0]
    np.testing.assert_allclose(gradient["a"], [kernel] * 4, rtol=1e-6)


def test_gradients_with_respect_to_integers_are_refused():
    model = keras.Sequential(
        [keras.Input((2,), dtype="int32"), keras.layers.Embedding(3, 2)]
    )
    with pytest.raises(ValueError, match="needs a floating input"):
        Trace(model, tf.ones([1, 2], tf.int32), differentiable=True)


def test_small_gradients_do_not_vanish_in_float16():
    """A slope of 2^-26 is below half of float16's smallest number, 2^-24."""
    layer = keras.layers.Dense(1, use_bias=False, dtype="mixed_float16")
    model = keras.Sequential(
        [keras.Input((1,)), layer, keras.layers.Dense(1, use_bias=False)]
    )
    model.layers[1].dtype_policy = keras.DTypePolicy("mixed_float16")
    for dense in model.layers:
        dense.kernel.assign([[2.0**-13]])
    trace = Trace(model, tf.ones([3, 1]), differentiable=True)
    gradient = trace.input_gradient(lambda trace: trace.outputs[:, 0])
    np.testing.assert_array_equal(gradient, np.full([3, 1], 2.0**-26))


def test_casting_keeps_float64_and_the_mask():
    assert at_least_float32(tf.ones([1], tf.float64)).dtype == tf.float64
    half = tf.ones([1, 2], tf.float16)
    half._keras_mask = tf.constant([[True, False]])
    cast = at_least_float32(half)
    assert cast.dtype == tf.float32
    np.testing.assert_array_equal(cast._keras_mask, [[True, False]])


def _second_order_error(model, x, exact):
    """Relative error of d/dw of mean |dS/dx|^2 against central differences.

    Batch statistics are in play: the pass is in training mode.
    """
    variables = model.trainable_variables
    start = [variable.numpy() for variable in variables]
    rng = np.random.default_rng(1)
    direction = [rng.normal(size=value.shape) for value in start]

    def penalty():
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(x)
            total = tf.reduce_sum(model(x, training=True)[:, 0])
        return tf.reduce_sum(inner.gradient(total, x) ** 2)

    def shifted(step):
        for variable, value, along in zip(
            variables, start, direction, strict=True
        ):
            variable.assign(value + step * along)
        return penalty().numpy()

    def difference(step):
        return (shifted(step) - shifted(-step)) / (2 * step)

    with twice_differentiable() if exact else tf.name_scope("as_is"):
        with tf.GradientTape() as tape:
            value = penalty()
        gradients = tape.gradient(value, variables)
    slope = sum(
        np.sum(g.numpy() * along)
        for g, along in zip(gradients, direction, strict=True)
        if g is not None
    )
    # Richardson's step takes the error of the differences to order 4.
    central = (4 * difference(1e-4) - difference(2e-4)) / 3
    shifted(0.0)
    return abs(slope - central) / abs(central)


@pytest.mark.parametrize("normalization", ["batch", "layer", "group"])
def test_second_order_gradients_through_normalization_are_exact(
    float64, make_network, images, normalization
):
    """Keras alone stops the gradient of the mean inside the variance."""
    model = make_network(normalization=normalization)
    x = tf.constant(images[0], tf.float64)
    assert _second_order_error(model, x, exact=False) > 1e-4
    assert _second_order_error(model, x, exact=True) < 1e-8


def test_second_order_changes_no_value(make_network, images):
    model = make_network()
    plain = model(images[0], training=True)
    with twice_differentiable():
        exact = model(images[0], training=True)
    np.testing.assert_allclose(plain, exact, rtol=1e-5, atol=1e-6)


def test_what_stands_in_is_put_away_when_all_have_left():
    original = tf.nn.moments
    with twice_differentiable():
        with twice_differentiable():
            assert tf.nn.moments is not original
        assert tf.nn.moments is not original
    assert tf.nn.moments is original


class OwnNormalization(keras.layers.Layer):
    """A user's layer, without Keras' help."""

    def call(self, inputs):
        mean, variance = tf.nn.moments(inputs, [-1], keepdims=True)
        return (inputs - mean) * tf.math.rsqrt(variance + 1e-3)


def test_a_users_own_moments_are_exact_too(float64):
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4), OwnNormalization()]
    )
    model.add(keras.layers.Dense(3, "softplus"))
    x = tf.constant(np.random.default_rng(0).normal(size=(6, 5)))
    assert _second_order_error(model, x, exact=False) > 1e-4
    assert _second_order_error(model, x, exact=True) < 1e-8


def _kinked(activation):
    """Two convolutions of 8x8x2, whose pools and `activation` have kinks."""
    layers = [keras.Input((8, 8, 2))]
    for name in ("conv1", "conv2"):
        layers += [
            keras.layers.Conv2D(4, 3, padding="same", name=name),
            keras.layers.Activation(activation),
            keras.layers.MaxPooling2D(2),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential(layers)


def _second_order(model, x, prepared):
    """Function that returns d sum |dy_0/dx|^2 / d kernel of "conv1"."""

    @tf.function
    def gradient():
        with tf.GradientTape() as outer:
            inner = tf.GradientTape(watch_accessed_variables=False)
            with inner, prepared():
                inner.watch(x)
                total = tf.reduce_sum(model(x)[:, 0])
            penalty = tf.reduce_sum(inner.gradient(total, x) ** 2)
        return outer.gradient(penalty, model.trainable_variables[0])

    return gradient


def _kinds_of_operations(function):
    """Types of the operations that a function without arguments runs."""
    found, waiting = {}, [tensor.op for tensor in function.graph.outputs]
    while waiting:
        op = waiting.pop()
        if op.name not in found:
            found[op.name] = op.type
            waiting += [tensor.op for tensor in op.inputs]
    return list(found.values())


@pytest.mark.parametrize(
    "activation", ["relu", "relu6", "leaky_relu", tf.nn.relu]
)
def test_nothing_goes_back_through_a_forward_pass_without_curvature(
    float64, images, activation
):
    """One convolution gives a kernel's gradient; TensorFlow takes two."""
    model = _kinked(activation)
    x = tf.constant(images[0])
    values, counts = [], []
    for prepared in (contextlib.nullcontext, twice_differentiable):
        function = _second_order(model, x, prepared)
        values.append(function())
        kinds = _kinds_of_operations(function.get_concrete_function())
        counts.append(kinds.count("Conv2DBackpropFilter"))
    assert np.any(values[0])
    np.testing.assert_allclose(*values, rtol=1e-12)
    if activation is tf.nn.relu:  # taken before anything could stand in
        assert counts == [2, 2]
    else:
        assert counts == [2, 1]


def test_curvature_beside_kinks_is_kept(float64, images):
    """Softplus, which the kinks of pooling and ReLU follow."""
    model = _kinked("relu")
    model.layers[1].activation = keras.activations.softplus
    x = tf.constant(images[0])
    plain = _second_order(model, x, contextlib.nullcontext)()
    exact = _second_order(model, x, twice_differentiable)()
    np.testing.assert_allclose(plain, exact, rtol=1e-10)


def test_kinked_functions_take_their_input_by_name_too():
    x = tf.constant([[-1.0, 2.0]])
    with twice_differentiable():
        np.testing.assert_array_equal(tf.nn.relu(features=x), [[0.0, 2.0]])
        np.testing.assert_allclose(
            tf.nn.leaky_relu(features=x, alpha=0.5), [[-0.5, 2.0]]
        )


@pytest.mark.parametrize("run", ["eager", "graph"])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: x * tf.square(tf.nn.relu(w)),
        lambda x, w: x * tf.square(tf.nn.relu(w.value)),
        lambda x, w: tf.vectorized_map(
            lambda row: tf.square(tf.nn.relu(row * w)), x
        ),
        lambda x, w: tf.map_fn(lambda row: tf.square(tf.nn.relu(row * w)), x),
        lambda x, w: tf.square(x * w) * tf.cast(tf.nn.relu([2, -1]), x.dtype),
        lambda x, w: tf.square(
            x * w - tf.nn.moments(x * w, tf.constant([1]), keepdims=True)[0]
        ),
    ],
)
def test_users_layers_are_exact_whatever_they_call_it_on(float64, call, run):
    """Variables, loops, integers and axes that are tensors."""

    class Scaled(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=shape[-1:], initializer="ones")
            self.built = True

        def call(self, x):
            return call(x, self.w)

    model = keras.Sequential([keras.Input((2,)), Scaled()])
    x = tf.constant([[1.0, -2.0], [0.5, 3.0]], tf.float64)
    weights = model.layers[0].w.value

    def gradient(forward):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.square(forward()))
        return tape.gradient(value, weights)

    def traced():
        trace = Trace(model, x, differentiable=True)
        return trace.input_gradient(lambda t: tf.reduce_sum(t.outputs, -1))

    def plain():
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = tf.reduce_sum(model(x), -1)
        return tape.gradient(outputs, x)

    step = tf.function(gradient) if run == "graph" else gradient
    actual, expected = step(traced), gradient(plain)
    assert np.any(expected.numpy() != 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_other_outputs_are_differentiated_by_the_input(make_network, images):
    """A head on the features, as if the network ended in it."""
    network = make_network(seed=1)
    head = keras.layers.Dense(2)
    features = network.get_layer("features").output
    other = keras.Model(network.input, head(features))
    trace = Trace(network, images[0], layers=["features"], differentiable=True)
    seen = trace.with_outputs(lambda trace: head(trace["features"]))
    expected = Trace(other, images[0], differentiable=True)
    np.testing.assert_allclose(seen.outputs, expected.outputs, rtol=1e-5)
    np.testing.assert_allclose(
        seen.input_gradient(lambda trace: trace.outputs[:, 1]),
        expected.input_gradient(lambda trace: trace.outputs[:, 1]),
        rtol=1e-4,
        atol=1e-6,
    )
    assert trace.outputs.shape == (8, 3)


def test_the_classifier_is_the_last_layer_with_a_kernel(make_network):
    network = make_network(seed=1, name="net")
    assert classifier(network) == "logits"
    inputs = keras.Input((8, 8, 2))
    nested = keras.Model(inputs, keras.layers.Softmax()(network(inputs)))
    assert classifier(nested) == "net/logits"
    maps = keras.Model(network.input, network.get_layer("stage2").output)
    assert classifier(maps) == "conv2"
    bare = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])
    assert classifier(bare) is None
