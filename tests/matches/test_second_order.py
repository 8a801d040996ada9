"""Which layers a Jacobian can be matched through, and what is said of others.

TensorFlow has no second-order gradient of some operations, and of a few a
wrong one; a student with these is refused. A teacher may have them.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from protocol import jacobian, run

import tfkd
from tfkd.trace import Trace, outline


class Apply(keras.layers.Layer):
    """A user's layer around a function of TensorFlow."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def _crop_and_resize(x):
    boxes = tf.tile([[0.0, 0.0, 0.8, 0.8]], [tf.shape(x)[0], 1])
    return tf.image.crop_and_resize(x, boxes, tf.range(tf.shape(x)[0]), (4, 4))


def _turned(x):
    transform = tf.constant([[1.0, 0.1, 0.0, 0.1, 1.0, 0.0, 0.0, 0.0]])
    return keras.ops.image.affine_transform(x, transform)


_REFUSED = {
    "bilinear upsampling": (
        lambda **k: keras.layers.UpSampling2D(2, interpolation="bilinear", **k),
        "ResizeBilinear",
        "Conv2DTranspose",
    ),
    "bicubic upsampling": (
        lambda **k: keras.layers.UpSampling2D(2, interpolation="bicubic", **k),
        "ResizeBicubic",
        "Conv2DTranspose",
    ),
    "bilinear": (
        lambda **k: keras.layers.Resizing(9, 9, **k),
        "ResizeBilinear",
        "Conv2DTranspose",
    ),
    "nearest": (
        lambda **k: keras.layers.Resizing(9, 9, interpolation="nearest", **k),
        "ResizeNearestNeighbor",
        r'UpSampling2D\(interpolation="nearest"\)',
    ),
    "antialias": (
        lambda **k: keras.layers.Resizing(3, 3, antialias=True, **k),
        "ScaleAndTranslate",
        "average pooling",
    ),
    "area": (
        lambda **k: Apply(lambda x: tf.image.resize(x, (3, 3), "area"), **k),
        "ResizeArea",
        "average pooling",
    ),
    "crop": (
        lambda **k: Apply(_crop_and_resize, **k),
        "CropAndResize",
        "crop by slicing",
    ),
    "argmax": (
        lambda **k: Apply(
            lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "VALID")[0], **k
        ),
        "MaxPoolWithArgmax",
        "MaxPooling2D",
    ),
    "response": (
        lambda **k: Apply(tf.nn.local_response_normalization, **k),
        "LRN",
        "GroupNormalization",
    ),
    "softsign": (
        lambda **k: keras.layers.Activation("softsign", **k),
        "Softsign",
        "tanh",
    ),
    "softsign of a layer": (
        lambda **k: keras.layers.Dense(4, "softsign", **k),
        "Softsign",
        "tanh",
    ),
    "fractional": (
        lambda **k: Apply(
            lambda x: tf.nn.fractional_max_pool(x, [1, 1.4, 1.4, 1], seed=1)[0],
            **k,
        ),
        "FractionalMaxPool",
        "MaxPooling2D",
    ),
    "dilation": (
        lambda **k: Apply(
            lambda x: tf.nn.dilation2d(
                x, tf.zeros([2, 2, 4]), [1] * 4, "VALID", "NHWC", [1] * 4
            ),
            **k,
        ),
        "Dilation2D",
        "MaxPooling2D",
    ),
    "quantised": (
        lambda **k: Apply(
            lambda x: tf.quantization.fake_quant_with_min_max_args(x), **k
        ),
        "FakeQuantWithMinMaxArgs",
        "quantise after training",
    ),
    "turned": (
        lambda **k: Apply(_turned, **k),
        "ImageProjectiveTransformV3",
        "input pipeline",
    ),
}


def _network(*layers, name=None):
    """A convolution, some layers, and three outputs."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(
                4, 3, padding="same", activation="softplus", name="conv"
            ),
            *layers,
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="logits"),
        ],
        name=name,
    )


@pytest.mark.parametrize("kind", _REFUSED)
def test_a_student_without_second_order_is_refused(kind):
    """On construction, with the layer's name and what to take instead."""
    make, op, instead = _REFUSED[kind]
    student = _network(make(name="culprit"))
    message = f"uses {op} .layer 'culprit'.*Replace that layer: .*{instead}"
    for match in (tfkd.JacobianMatch(), tfkd.AttentionJacobianMatch("conv")):
        with pytest.raises(ValueError, match=message):
            tfkd.Distiller(student=student, teacher=_network(), matches=[match])
    with pytest.raises(ValueError, match=message):
        tfkd.Distiller(student=student, matches=[tfkd.JacobianPenalty()])
    tfkd.Distiller(
        student=student, teacher=_network(), matches=[tfkd.Match("mse")]
    )


def _penalty_gradient(model, x):
    """Gradient of |dS_0/dx|^2 by the last kernel, or None."""
    with tf.GradientTape() as tape:
        trace = Trace(model, x, differentiable=True)
        rows = trace.input_gradient(lambda trace: trace.outputs[:, 0])
        total = tf.reduce_sum(tf.square(rows))
    return tape.gradient(total, model.get_layer("logits").kernel.value)


@pytest.mark.parametrize("kind", _REFUSED)
def test_tensorflow_fails_without_the_refusal(kind):
    """It raises in the step, drops the second order, or has it wrong."""
    make, op, _ = _REFUSED[kind]
    x = tf.constant(
        np.random.default_rng(0).normal(size=(2, 6, 6, 2)), "float32"
    )
    model = _network(make())
    if op in ("ResizeBilinear", "FakeQuantWithMinMaxArgs"):
        # The Jacobian is linear in that kernel.
        assert _penalty_gradient(model, x) is None
    elif op == "ImageProjectiveTransformV3":
        image = tf.reshape(x[0, :, :, 0], [1, 6, 6, 1])
        slopes = jacobian(lambda x: tf.reshape(_turned(x), [1, -1]), image)[0]
        units = tf.reshape(tf.eye(36), [36, 6, 6, 1])
        columns = [np.ravel(_turned(unit[None])) for unit in units]
        assert np.abs(slopes - np.transpose(columns)).max() > 0.01
    else:
        with pytest.raises((LookupError, tf.errors.InvalidArgumentError)):
            _penalty_gradient(model, x)


# === Where a layer is ===


class Block(keras.layers.Layer):
    """Holds layers, and calls them as such or in a graph of their own."""

    def __init__(self, how="plain", **kwargs):
        super().__init__(**kwargs)
        self.larger = keras.layers.Resizing(9, 9, name="larger")
        self.how = how

    def call(self, inputs):
        if self.how == "function":
            return tf.function(self.larger)(inputs)
        if self.how == "map":
            return tf.map_fn(lambda x: self.larger(x[None])[0], inputs)
        return self.larger(inputs)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 9, 9, input_shape[-1])


class Subclassed(keras.Model):
    """A model that Keras knows no graph of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = Block(name="block")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        return self.dense(self.pool(self.block(inputs)))


def _subclassed():
    model = Subclassed(name="student")
    model(tf.ones([1, 6, 6, 2]))
    return model


def _nested():
    inputs = keras.Input((6, 6, 2))
    inner = keras.Model(
        inputs, keras.layers.Resizing(9, 9, name="larger")(inputs), name="block"
    )
    outputs = keras.layers.GlobalAveragePooling2D()(inner(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(outputs), name="student")


@pytest.mark.parametrize(
    "make",
    [
        _nested,
        _subclassed,
        lambda: _network(Block(name="block"), name="student"),
        lambda: _network(Block("function", name="block"), name="student"),
        lambda: _network(Block("map", name="block"), name="student"),
    ],
    ids=["nested", "subclassed", "layer", "function", "map"],
)
def test_paths_lead_to_the_layer(make):
    with pytest.raises(ValueError, match="'student' uses.*'block/larger'"):
        tfkd.Distiller(student=make(), matches=[tfkd.JacobianPenalty()])


def test_names_that_look_alike_are_told_apart():
    """Keras' scopes call the second run of `resize` `resize_1`."""
    resize = keras.layers.Resizing(9, 9, name="resize")
    other = keras.layers.Activation("relu", name="resize_1")
    inputs = keras.Input((6, 6, 2))
    twice = keras.layers.Add()([resize(inputs), resize(other(inputs))])
    model = keras.Model(inputs, twice)
    assert outline(model).ops["ResizeBilinear"] == "resize"
    assert outline(model).ops["Relu"] == "resize_1"


def test_all_layers_and_the_model_itself_are_named():
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Activation("softsign", name="first")(inputs)
    x = keras.layers.Activation("softsign", name="second")(x)
    model = keras.Model(inputs, keras.ops.softsign(x), name="whole")
    assert outline(model).ops["Softsign"] == "first, second, whole"


def test_outlines_leave_no_mark_on_the_layers():
    model = _nested()
    outline(model)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


class Turning(keras.layers.Layer):
    """Warps images in training only."""

    def call(self, inputs, training=False):
        return _turned(inputs) if training else inputs


def test_only_the_pass_that_is_differentiated_counts():
    student = _network(Turning(name="turning"))
    match = tfkd.JacobianPenalty(batch_statistics="moving")
    tfkd.Distiller(student=student, matches=[match])
    message = "'turning'.*first-order.*or take batch_statistics=\"moving\""
    for statistics in (None, "frozen", "batch"):
        match = tfkd.JacobianPenalty(batch_statistics=statistics)
        with pytest.raises(ValueError, match=message):
            tfkd.Distiller(student=student, matches=[match])


# === Layers that serve ===


_ACTIVATIONS = [
    *("celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu"),
    *("hard_tanh", "leaky_relu", "log_sigmoid", "mish", "relu", "relu6"),
    *("selu", "sigmoid", "silu", "soft_shrink", "softmax", "softplus"),
    *("squareplus", "tanh", "tanh_shrink"),
]


def _attention(x):
    return keras.layers.MultiHeadAttention(2, 3)(x, x)


def _recurrent(x):
    x = keras.layers.Reshape((3, 48))(x)
    x = keras.layers.LSTM(3, return_sequences=True)(x)
    return keras.layers.Bidirectional(keras.layers.GRU(2))(x)


_LAYERS = [
    lambda: keras.layers.UpSampling2D(2),
    lambda: keras.layers.AveragePooling2D(2),
    lambda: keras.layers.MaxPooling2D(2),
    lambda: keras.layers.GlobalMaxPooling2D(),
    lambda: keras.layers.AdaptiveAveragePooling2D(4),
    lambda: keras.layers.AdaptiveMaxPooling2D(4),
    lambda: keras.layers.Conv2D(4, 3, groups=2),
    lambda: keras.layers.Conv2D(4, 3, dilation_rate=2),
    lambda: keras.layers.Conv2DTranspose(3, 3, strides=2),
    lambda: keras.layers.DepthwiseConv2D(3),
    lambda: keras.layers.SeparableConv2D(4, 3),
    lambda: keras.layers.PReLU(),
    lambda: keras.layers.BatchNormalization(),
    lambda: keras.layers.LayerNormalization(),
    lambda: keras.layers.GroupNormalization(2),
    lambda: keras.layers.RMSNormalization(),
    lambda: keras.layers.UnitNormalization(),
    lambda: keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 3)),
    lambda: _recurrent,
    lambda: _attention,
]


def _gradient_error(branches, batch_statistics=None):
    """Relative error of a gradient through some layers.

    They are branches of one network, with weights before and behind, of
    which each has its share in the random direction of the difference.
    """
    match = tfkd.JacobianPenalty(batch_statistics=batch_statistics)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="tanh")(inputs)
    ends = []
    for branch in branches:
        end = keras.layers.Flatten()(branch(x))
        ends.append(keras.layers.Dense(2, "tanh")(end))
    x = keras.layers.Concatenate()(ends)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(3, 6, 6, 2)), np.array([0, 1, 1])
    variables = model.trainable_variables
    start = [variable.numpy() for variable in variables]
    direction = [rng.normal(size=value.shape) for value in start]

    def value(step):
        for variable, point, along in zip(
            variables, start, direction, strict=True
        ):
            variable.assign(point + step * along)
        return run(match, model, None, x, labels)

    with tf.GradientTape() as tape:
        total = value(0.0)
    slope = sum(
        np.sum(tf.convert_to_tensor(gradient).numpy() * along)
        for gradient, along in zip(
            tape.gradient(total, variables), direction, strict=True
        )
        if gradient is not None
    )
    difference = float(value(1e-6) - value(-1e-6)) / 2e-6
    return abs(slope / difference - 1)


def test_activations_of_keras_serve(float64):
    layers = [keras.layers.Activation(name) for name in _ACTIVATIONS]
    assert _gradient_error(layers) < 1e-7


def test_layers_of_keras_serve(float64):
    """With upsampling by repetition, unlike resizing to the nearest.

    In a training pass SpectralNormalization changes its kernel, so that
    there are no differences.
    """
    layers = [make() for make in _LAYERS]
    assert _gradient_error(layers, "moving") < 1e-7
    layers = [make() for make in _LAYERS]
    spectral = keras.layers.SpectralNormalization
    others = [layer for layer in layers if not isinstance(layer, spectral)]
    assert len(others) == len(layers) - 1
    assert _gradient_error(others, "frozen") < 1e-7


# === The teacher ===


@pytest.fixture
def wrapped(float64, make_network):
    """As `_wrapped`, in float64."""
    return _wrapped(make_network)


def _wrapped(make_network):
    """A student of 6 x 6 images, and a teacher of 8 x 8 in another scale.

    Without an explicit `training=False`, Keras' Resizing puts all layers
    behind it into training mode.
    """
    keras.utils.set_random_seed(1)
    layers = keras.layers
    student = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(2, 3, activation="tanh", name="stage1"),
            layers.Flatten(),
            layers.Dense(3),
        ],
        name="student",
    )
    base = make_network(3, seed=2, name="base")
    prepare = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Rescaling(0.5, offset=0.1),
            layers.Resizing(8, 8, name="resizing"),
        ]
    )
    inputs = keras.Input((6, 6, 2))
    teacher = keras.Model(inputs, base(prepare(inputs)), name="teacher")
    return student, teacher, base, prepare


def _by_the_chain_rule(outer, prepare, x):
    """[batch, outputs, inputs], with the slopes of `prepare` as differences.

    It is affine, so differences of any size are exact.
    """
    units = np.eye(72).reshape(72, 6, 6, 2)
    matrix = (prepare(units) - prepare(np.zeros([1, 6, 6, 2]))).numpy()
    return jacobian(outer, prepare(x)) @ matrix.reshape(72, -1).T


def test_a_teacher_may_prepare_the_students_input(wrapped):
    """Both Jacobians are by the student's input.

    TensorFlow interpolates in float32.
    """
    student, teacher, base, prepare = wrapped
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2))
    labels = np.array([0, 2, 1, 1])
    theirs = _by_the_chain_rule(lambda z: base(z, training=False), prepare, x)
    whole = jacobian(lambda x: teacher(x, training=False), x)
    np.testing.assert_allclose(theirs, whole, rtol=1e-4, atol=1e-7)
    errors = np.sum((theirs - jacobian(student, x)) ** 2, axis=-1)
    top = np.argmax(teacher(x, training=False), axis=-1)
    for of, expected in (
        ("label", errors[np.arange(4), labels]),
        ("top", errors[np.arange(4), top]),
        ("all", errors.sum(axis=-1)),
    ):
        match = tfkd.JacobianMatch(of=of)
        value = run(match, student, teacher, x, labels)
        np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)


def test_cross_entropies_through_a_prepared_input(wrapped):
    student, teacher, base, prepare = wrapped
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2))
    theirs = _by_the_chain_rule(
        lambda z: tf.nn.log_softmax(base(z, training=False)), prepare, x
    )
    ours = jacobian(lambda x: tf.nn.log_softmax(student(x)), x)
    p = tf.nn.softmax(teacher(x, training=False)).numpy()
    expected = 0.5 * np.sum(p * np.sum((theirs - ours) ** 2, -1), axis=-1)
    loss = tfkd.losses.JacobianCrossEntropy()
    value = run(tfkd.JacobianMatch(loss, of="all"), student, teacher, x)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)


def test_attention_through_a_prepared_input(wrapped):
    """The teacher's map of 4 x 4, inside the nested model, at its window."""
    student, teacher, base, prepare = wrapped
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2))
    inner = keras.Model(base.inputs[0], base.get_layer("stage1").output)
    maps = keras.Model(student.inputs[0], student.get_layer("stage1").output)

    def places(model):
        return lambda x: tf.reshape(
            tf.reduce_sum(model(x, training=False) ** 2, axis=-1), [-1, 16]
        )

    place = np.argmax(places(inner)(prepare(x)), axis=-1)
    theirs = _by_the_chain_rule(places(inner), prepare, x)
    rows = [r[np.arange(4), place] for r in (theirs, jacobian(places(maps), x))]
    units = [r / np.linalg.norm(r, axis=-1, keepdims=True) for r in rows]
    expected = np.sum((units[0] - units[1]) ** 2, axis=-1).mean()
    match = tfkd.AttentionJacobianMatch("stage1", window=None)
    value = run(match, student, teacher, x)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_a_prepared_input_trains_everywhere(make_network):
    """Eager, graph and XLA leave the same weights, in float32."""
    student, teacher, _, _ = _wrapped(make_network)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2))
    start = student.get_weights()
    left = []
    for options in ({"run_eagerly": True}, {}, {"jit_compile": True}):
        student.set_weights(start)
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=[tfkd.JacobianMatch()]
        )
        distiller.compile(
            keras.optimizers.SGD(1.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            **options,
        )
        distiller.train_on_batch(x, np.array([0, 2, 1, 1]))
        left.append(np.concatenate([w.ravel() for w in student.get_weights()]))
    np.testing.assert_allclose(left[1], left[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(left[2], left[0], rtol=1e-5, atol=1e-6)


def test_input_directions_need_the_teachers_second_order(wrapped):
    """They would be zero through its resizing, without a word."""
    student, teacher, _, _ = wrapped
    match = tfkd.JacobianMatch(num_projections=2, directions="input")
    with pytest.raises(
        ValueError,
        match="'teacher' uses ResizeBilinear.*/resizing'.*or take "
        'directions="output"',
    ):
        tfkd.Distiller(student=student, teacher=teacher, matches=[match])
    x = tf.ones([1, 6, 6, 2], tf.float64)
    trace = Trace(teacher, x, differentiable=True)
    along = trace.input_derivative(lambda trace: trace.outputs, tf.ones_like(x))
    np.testing.assert_array_equal(along, np.zeros([1, 3]))
    match = tfkd.JacobianMatch(num_projections=2)
    tfkd.Distiller(student=student, teacher=teacher, matches=[match])


def test_a_teacher_whose_gradient_is_not_its_own_is_refused():
    teacher = _network(Apply(_turned, name="turned"), name="teacher")
    with pytest.raises(ValueError, match="'teacher' uses.*'turned'.*first"):
        tfkd.Distiller(
            student=_network(), teacher=teacher, matches=[tfkd.JacobianMatch()]
        )
