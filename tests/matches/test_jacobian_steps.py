"""Each form in a training step: gradients, ways to run, precision, teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from protocol import run

import tfkd

_CROSS_ENTROPY = tfkd.losses.JacobianCrossEntropy
_FORMS = {
    "label": lambda: tfkd.JacobianMatch(),
    "top": lambda: tfkd.JacobianMatch(of="top"),
    "all": lambda: tfkd.JacobianMatch(of="all"),
    "normalized": lambda: tfkd.JacobianMatch(
        tfkd.losses.NormalizedSquaredError()
    ),
    "completed": lambda: tfkd.JacobianMatch(_CROSS_ENTROPY(2.0), of="all"),
    "printed": lambda: tfkd.JacobianMatch(_CROSS_ENTROPY(printed=True)),
    "outputs": lambda: tfkd.JacobianMatch(num_projections=2),
    "inputs": lambda: tfkd.JacobianMatch(num_projections=2, directions="input"),
    "completed outputs": lambda: tfkd.JacobianMatch(
        _CROSS_ENTROPY(), num_projections=1
    ),
    "part": lambda: tfkd.JacobianMatch(of="all", fraction=0.5),
    "moving": lambda: tfkd.JacobianMatch(batch_statistics="moving"),
    "batch": lambda: tfkd.JacobianMatch(batch_statistics="batch"),
    "penalty": lambda: tfkd.JacobianPenalty(),
    "penalty of top": lambda: tfkd.JacobianPenalty(of="top"),
    "penalty of all": lambda: tfkd.JacobianPenalty(of="all"),
    "cross-entropy": lambda: tfkd.JacobianPenalty("cross_entropy"),
    "printed cross-entropy": lambda: tfkd.JacobianPenalty(
        "printed_cross_entropy"
    ),
    "penalty outputs": lambda: tfkd.JacobianPenalty(num_projections=1),
    "penalty inputs": lambda: tfkd.JacobianPenalty(
        "cross_entropy", num_projections=1, directions="input"
    ),
    "moving penalty": lambda: tfkd.JacobianPenalty(
        "cross_entropy", batch_statistics="moving"
    ),
    "batch penalty": lambda: tfkd.JacobianPenalty(
        "cross_entropy", batch_statistics="batch"
    ),
    "part penalty": lambda: tfkd.JacobianPenalty("cross_entropy", fraction=0.5),
    "noise": lambda: tfkd.InputNoiseMatch(0.1),
    "attention jacobian": lambda: tfkd.AttentionJacobianMatch(
        ["act1", ("stage2", "act1")]
    ),
    "moving attention": lambda: tfkd.AttentionJacobianMatch(
        "stage1", window="full", batch_statistics="moving"
    ),
    "attention": lambda: tfkd.Match(
        tfkd.losses.AttentionTransfer(), at=["act1", ("stage1", "act1")]
    ),
    "squared attention": lambda: tfkd.Match(
        tfkd.losses.AttentionTransfer(squared=True), at="stage2"
    ),
}


# === Gradients ===


@pytest.mark.parametrize("normalization", ["batch", "layer", "group"])
def test_gradients_by_weights_are_exact(
    float64, make_network, images, normalization
):
    """Along a random direction, against a central difference.

    With max pooling, whose kinks are further away than the step. Where a
    form reads the training pass, BatchNormalization is in training mode, and
    so it is in the difference.
    """
    student = make_network(
        4, seed=1, name="student", normalization=normalization, pool="max"
    )
    teacher = make_network(3, seed=2, name="teacher", pool="max")
    x, labels = images[0][:4], images[1][:4]
    variables = student.trainable_variables
    start = [variable.numpy() for variable in variables]
    kept = [variable.numpy() for variable in student.non_trainable_variables]
    rng = np.random.default_rng(3)
    direction = [rng.normal(size=value.shape) for value in start]

    def value(match, step):
        for variable, point, along in zip(
            variables, start, direction, strict=True
        ):
            variable.assign(point + step * along)
        for variable, state in zip(
            student.non_trainable_variables, kept, strict=True
        ):
            variable.assign(state)
        return run(match, student, teacher, x, labels, training=False)

    for name, make in _FORMS.items():
        match = make()
        with tf.GradientTape() as tape:
            total = value(match, 0.0)
        gradients = tape.gradient(total, variables)
        slope = sum(
            np.sum(gradient.numpy() * along)
            for gradient, along in zip(gradients, direction, strict=True)
            if gradient is not None
        )
        step = 1e-6
        ahead, behind = value(match, step), value(match, -step)
        expected = float(ahead - behind) / (2 * step)
        rounding = 16 * np.finfo(float).eps * abs(float(total)) / step
        assert rounding < 1e-4 * abs(expected), name
        np.testing.assert_allclose(
            slope, expected, rtol=3e-7, atol=rounding, err_msg=name
        )


# === Ways to run ===


def _kinds(names):
    """Groups of forms that can share one training pass."""
    batch = [name for name in names if name.startswith("batch")]
    return [[name for name in names if name not in batch], batch]


def _make(names):
    matches = []
    for name in names:
        match = _FORMS[name]()
        config = {**match.get_config(), "name": name.replace(" ", "_")}
        matches.append(type(match).from_config(config))
    return matches


def _tiny(width, *, seed, name):
    """A network that XLA compiles quickly, with the layers of `_FORMS`."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(9 * width),
            layers.BatchNormalization(),
            layers.Reshape((3, 3, width)),
            layers.Activation("softplus", name="act1"),
            layers.Cropping2D(((0, 1), (0, 1)), name="stage1"),
            layers.Dense(width, "tanh", name="stage2"),
            layers.Flatten(),
            layers.Dense(2),
        ],
        name=name,
    )


def _stepped(names, **kwargs):
    """Values of all matches in one step, and the weights that it leaves."""
    student = _tiny(2, seed=1, name="student")
    teacher = _tiny(3, seed=2, name="teacher")
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=_make(names)
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **kwargs,
    )
    x = np.random.default_rng(0).normal(size=(4, 5))
    logs = distiller.train_on_batch(x, np.arange(4) % 2, return_dict=True)
    return logs, [variable.numpy() for variable in student.variables]


@pytest.mark.parametrize("names", _kinds(_FORMS), ids=["own", "batch"])
def test_eager_graph_and_xla_agree(float64, names):
    """In float64, so that each form's part of the weights' step is seen."""
    logs, weights = _stepped(names, jit_compile=False)
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        others, other_weights = _stepped(names, **options)
        assert others.keys() == logs.keys()
        for key in logs:
            np.testing.assert_allclose(
                others[key], logs[key], rtol=1e-9, err_msg=key
            )
        for one, other in zip(weights, other_weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_xla_is_refused_where_it_would_approximate(make_network):
    """Max pooling, for every form that differentiates the student twice."""
    student = make_network(2, seed=1, name="student", pool="max")
    teacher = make_network(3, seed=2, name="teacher")
    for name in ("label", "inputs", "part", "penalty", "moving attention"):
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=_make([name])
        )
        assert not distiller.supports_jit
        with pytest.raises(ValueError, match=r"XLA only approximates.*stage1"):
            distiller.compile("sgd", jit_compile=True)
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=_make(["noise", "attention"])
    )
    assert distiller.supports_jit
    distiller.compile("sgd", jit_compile=True)


def test_xla_is_refused_where_it_would_approximate_the_teacher(make_network):
    """Derivatives along the input differentiate the teacher twice, too."""
    student = make_network(2, seed=1, name="student")
    teacher = make_network(3, seed=2, name="teacher", pool="max")
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=_make(["inputs"])
    )
    assert not distiller.supports_jit
    with pytest.raises(ValueError, match="Jacobian of 'teacher'.*stage1"):
        distiller.compile("sgd", jit_compile=True)
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=_make(["label", "penalty"])
    )
    assert distiller.supports_jit


# === Precision ===


def _mixed_step(make_network, images, names, policy, weights):
    """Values of all matches, and the step of plain gradient descent."""
    keras.config.set_dtype_policy(policy)
    try:
        student = make_network(4, seed=1, name="student")
        teacher = make_network(6, seed=2, name="teacher")
    finally:
        keras.config.set_dtype_policy("float32")
    matches = _make(names)
    for match in matches:
        match.weight = weights.get(match.name, 1.0)
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=matches
    )
    # From the usual first scale, 2^15, it takes some steps to come down.
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=2.0**6
    )
    distiller.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    variables = student.trainable_variables
    before = [variable.numpy().ravel() for variable in variables]
    logs = distiller.train_on_batch(*images, return_dict=True)
    after = [variable.numpy().ravel() for variable in variables]
    del logs["loss"]
    return logs, np.concatenate(after) - np.concatenate(before)


@pytest.mark.parametrize("names", _kinds(_FORMS), ids=["own", "batch"])
def test_mixed_precision_is_near_float32(make_network, images, names):
    """Every form's value, and the step of all, each with the same share.

    Measured: 0.2 % of the values and 0.4 % of the step in float16, 0.6 %
    and 1.5 % in bfloat16.
    """
    args = make_network, images, names
    values, _ = _mixed_step(*args, "float32", {})
    weights = {name: 1.0 / float(value) for name, value in values.items()}
    _, step = _mixed_step(*args, "float32", weights)
    for policy, near, nearby in (
        ("mixed_float16", 3e-3, 6e-3),
        ("mixed_bfloat16", 8e-3, 2e-2),
    ):
        mixed, mixed_step = _mixed_step(*args, policy, weights)
        for key, value in values.items():
            np.testing.assert_allclose(mixed[key], value, near, err_msg=key)
        error = np.linalg.norm(mixed_step - step) / np.linalg.norm(step)
        assert error < nearby


# === The teacher ===


@tf.custom_gradient
def _cubic(x):
    """x^3, whose derivative must not be differentiated."""

    @tf.custom_gradient
    def derivative(x):
        def refuse(upstream):
            raise AssertionError("The teacher was differentiated twice.")

        return 3.0 * x**2, refuse

    return x**3, lambda upstream: upstream * derivative(x)


class Cubic(keras.layers.Layer):
    """Has a first and no second derivative."""

    def call(self, inputs):
        return _cubic(inputs)


def test_the_layer_without_second_order_raises():
    """What the tests below rely on."""
    x = tf.constant([[2.0]])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = _cubic(x)
        slope = inner.gradient(y, x)
    assert float(slope[0, 0]) == 12.0
    with pytest.raises(AssertionError, match="differentiated twice"):
        outer.gradient(slope, x)


def _with_cubic(model):
    """Cubes what goes in and what comes out."""
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, Cubic()(model(Cubic()(inputs))), name="teacher")


class CountedTape(tf.GradientTape):
    """A tape that says what is recording."""

    recording = 0

    def __enter__(self):
        CountedTape.recording += 1
        return super().__enter__()

    def __exit__(self, *args):
        CountedTape.recording -= 1
        return super().__exit__(*args)


class Watched(keras.layers.Layer):
    """Notes how many tapes record in its forward and backward passes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.forward, self.backward = set(), set()

    def call(self, inputs):
        @tf.custom_gradient
        def noted(x):
            self.forward.add(CountedTape.recording)

            def backward(upstream):
                self.backward.add(CountedTape.recording)
                return tf.identity(upstream)

            return tf.identity(x), backward

        return noted(inputs)


def _watched(model, name):
    inputs = keras.Input(model.input_shape[1:])
    layer = Watched()
    return keras.Model(inputs, model(layer(inputs)), name=name), layer


_OF_TEACHER = [
    name
    for name, make in _FORMS.items()
    if make().needs_teacher and make().needs_input_gradient
]


def test_teachers_need_no_second_derivative(images, make_network):
    """A teacher that would raise serves all forms but input directions.

    Those are derivatives of gradients, of the teacher, too.
    """
    student = make_network(2, seed=1, name="student")
    teacher = _with_cubic(make_network(3, seed=2, normalization=None))
    x, labels = images
    for names in _kinds([name for name in _OF_TEACHER if name != "inputs"]):
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=_make(names)
        )
        distiller.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
        logs = distiller.train_on_batch(x, labels, return_dict=True)
        assert all(np.isfinite(value) for value in logs.values())


def test_no_tape_over_weights_records_the_teacher(
    images, make_network, monkeypatch
):
    """One tape in its forward pass, that over inputs; none going back.

    The student's backward pass is recorded, by the tape over weights.
    """
    monkeypatch.setattr(tf, "GradientTape", CountedTape)
    student, ours = _watched(make_network(2, seed=1), "student")
    teacher, theirs = _watched(make_network(3, seed=2), "teacher")
    names = [n for n in _OF_TEACHER if n != "inputs" and n[:5] != "batch"]
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=_make([*names, "noise"])
    )
    distiller.compile("sgd", run_eagerly=True)
    for layer in (ours, theirs):
        layer.forward.clear()
    distiller.train_on_batch(*images)
    assert theirs.forward == {0, 1}  # no tape at all for noisy inputs
    assert theirs.backward == {0}
    assert 2 in ours.forward
    assert 1 in ours.backward
