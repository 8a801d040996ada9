"""Forms of Jacobian losses against their definitions, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from protocol import jacobian, run

import tfkd
from tfkd.trace import Trace, outline


@pytest.fixture
def networks(float64, make_network):
    student = make_network(seed=1, name="student")
    return student, make_network(6, seed=2, name="teacher")


def test_the_printed_cross_entropy_is_unbounded(networks, images):
    """- sum dT . dS / S: a student ten times as steep has ten times that."""
    student, teacher = networks
    x, _ = images
    probabilities = [
        lambda x, m=m: tf.nn.softmax(m(x, training=False)) for m in networks
    ]
    ours, theirs = (jacobian(fn, x) for fn in probabilities)
    s = probabilities[0](x).numpy()
    expected = np.mean(np.sum(-np.sum(theirs * ours, -1) / s, axis=-1))
    loss = tfkd.losses.JacobianCrossEntropy(printed=True)
    match = tfkd.JacobianMatch(loss, of="all", batch_statistics="moving")
    value = run(match, student, teacher, x)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    signal = tf.constant([[[1.0, 2.0]]])
    steep = float(loss(signal, 10 * signal))
    assert steep == 10 * float(loss(signal, signal)) < 0


def test_several_projections_are_averaged(networks, images):
    student, teacher = networks
    x, _ = images
    a = jacobian(lambda x: student(x, training=False), x) - jacobian(
        lambda x: teacher(x, training=False), x
    )
    match = tfkd.JacobianMatch(num_projections=4)
    match.bind(student=outline(student), teacher=outline(teacher))
    x = tf.constant(x)
    observed = match.observe(Trace(teacher, x, differentiable=True))
    signs = 2 * observed["combinations"].numpy()  # 4 directions: / sqrt(4)
    expected = np.mean(np.mean(np.sum((signs @ a) ** 2, axis=-1), axis=-1))
    value = match.value(Trace(student, x, differentiable=True), observed)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_input_directions_are_columns_of_the_jacobian(
    float64, make_network, images, pool
):
    """Each direction u gives J u; the signs u have E u u^T = 1."""
    student = make_network(seed=1, name="student", pool=pool)
    teacher = make_network(6, seed=2, name="teacher", pool=pool)
    x = tf.constant(images[0])
    a = jacobian(lambda x: student(x, training=False), x) - jacobian(
        lambda x: teacher(x, training=False), x
    )
    match = tfkd.JacobianMatch(num_projections=3, directions="input")
    match.bind(student=outline(student), teacher=outline(teacher))
    observed = match.observe(Trace(teacher, x, differentiable=True))
    signs = observed["directions"].numpy().reshape(8, 3, -1)
    np.testing.assert_allclose(np.unique(signs), [-(3**-0.5), 3**-0.5])
    columns = np.einsum("bkd,bmd->bmk", a, signs)
    value = match.value(Trace(student, x, differentiable=True), observed)
    expected = np.mean(np.sum(columns**2, axis=(1, 2)))
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_directions_change_in_training_and_stand_still_in_evaluation(networks):
    student, teacher = networks
    match = tfkd.JacobianMatch(num_projections=2, seed=5)
    match.bind(student=outline(student), teacher=outline(teacher))
    x = tf.ones([4, 8, 8, 2], tf.float64)
    trace = Trace(teacher, x, differentiable=True)

    def drawn(training):
        return match.observe(trace, training=training)["combinations"].numpy()

    assert np.any(drawn(True) != drawn(True))
    np.testing.assert_array_equal(drawn(False), drawn(False))
    again = tfkd.JacobianMatch(num_projections=2, seed=5)
    again.bind(student=outline(student), teacher=outline(teacher))
    first = again.observe(trace, training=True)["combinations"]
    fresh = tfkd.JacobianMatch(num_projections=2, seed=5)
    fresh.bind(student=outline(student), teacher=outline(teacher))
    np.testing.assert_array_equal(
        first, fresh.observe(trace, training=True)["combinations"]
    )


def test_a_fraction_is_the_first_examples(networks, images):
    """ceil(0.3 * 8) = 3 examples, with their own weights."""
    student, teacher = networks
    x, labels = images
    weights = tf.constant(np.arange(1.0, 9.0))
    rows = jacobian(lambda x: student(x, training=False), x)
    rows -= jacobian(lambda x: teacher(x, training=False), x)
    errors = np.sum(rows[np.arange(8), labels] ** 2, axis=-1)
    match = tfkd.JacobianMatch(fraction=0.3)
    value = run(match, student, teacher, x, labels, sample_weight=weights)
    expected = np.mean(errors[:3] * [1, 2, 3])
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_input_noise_is_outputs_plus_jacobians(float64):
    """Linear networks: the mean over draws is |dy|^2 + s^2 |dJ|^2.

    20000 draws; within five standard errors, taken from the draws.
    """
    rng = np.random.default_rng(0)
    models = []
    for name in ("student", "teacher"):
        layer = keras.layers.Dense(3)
        model = keras.Sequential([keras.Input((5,)), layer], name=name)
        layer.set_weights([rng.normal(size=(5, 3)), rng.normal(size=3)])
        models.append(model)
    student, teacher = models
    x = np.repeat(rng.normal(size=(1, 5)), 20000, axis=0)
    match = tfkd.InputNoiseMatch(0.3)
    match.bind(student=outline(student), teacher=outline(teacher))
    observed = match.observe(Trace(teacher, tf.constant(x)), training=True)
    noise = observed["inputs"].numpy() - x
    np.testing.assert_allclose(noise.std(), 0.3, rtol=0.02)
    draws = np.sum(
        (student(observed["inputs"]) - observed["outputs"]).numpy() ** 2, -1
    )
    clean = np.sum((student(x[:1]) - teacher(x[:1])).numpy() ** 2)
    kernels = [m.layers[0].kernel.numpy() for m in models]
    expected = clean + 0.3**2 * np.sum((kernels[0] - kernels[1]) ** 2)
    error = draws.std() / np.sqrt(len(draws))
    assert abs(draws.mean() - expected) < 5 * error
    trace = match.trace_student(student, None, None, observed)
    np.testing.assert_allclose(
        match.value(trace, observed), draws.mean(), rtol=1e-9
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: tfkd.JacobianMatch(tfkd.losses.JacobianCrossEntropy()),
        lambda: tfkd.JacobianMatch(
            tfkd.losses.NormalizedSquaredError(), of="top"
        ),
        lambda: tfkd.JacobianMatch(num_projections=2),
        lambda: tfkd.JacobianMatch(num_projections=2, directions="input"),
        lambda: tfkd.JacobianMatch(batch_statistics="moving"),
        lambda: tfkd.JacobianMatch(fraction=0.5),
        lambda: tfkd.JacobianPenalty("cross_entropy"),
        lambda: tfkd.JacobianPenalty("printed_cross_entropy"),
        lambda: tfkd.JacobianPenalty(of="all"),
        lambda: tfkd.InputNoiseMatch(0.1),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_gradients_of_the_step_are_exact(
    float64, make_network, images, make, normalization
):
    """One step of SGD against central differences, in training mode."""
    student = make_network(seed=1, name="student", normalization=normalization)
    teacher = make_network(6, seed=2, name="teacher")
    match = make()
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher if match.needs_teacher else None,
        matches=[match],
    )
    distiller.compile(
        keras.optimizers.SGD(1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, labels = tf.constant(images[0]), tf.constant(images[1])
    variables = student.trainable_variables
    states = [*student.non_trainable_variables]
    states += [v for m in distiller.matches for v in _seeds(m)]
    start = [v.numpy() for v in variables]
    kept = [v.numpy() for v in states]
    rng = np.random.default_rng(3)
    direction = [rng.normal(size=value.shape) for value in start]

    def move_to(step):
        for variable, value, along in zip(
            variables, start, direction, strict=True
        ):
            variable.assign(value + step * along)
        for state, value in zip(states, kept, strict=True):
            state.assign(value)

    def loss_at(step):
        move_to(step)
        observed = distiller._observe_teacher(x, labels, True)
        return distiller._step_loss(x, labels, None, observed, True)[0].numpy()

    def difference(step):
        return (loss_at(step) - loss_at(-step)) / (2 * step)

    expected = (4 * difference(1e-4) - difference(2e-4)) / 3
    move_to(0.0)
    distiller.train_on_batch(x, labels)
    slope = sum(
        np.sum((value - variable.numpy()) * along)
        for variable, value, along in zip(
            variables, start, direction, strict=True
        )
    )
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def _seeds(match):
    generator = getattr(match, "_seeds", None)
    return [] if generator is None else [generator.state]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tfkd.JacobianMatch(of="first"),
        lambda: tfkd.JacobianMatch(num_projections=0),
        lambda: tfkd.JacobianMatch(num_projections=True),
        lambda: tfkd.JacobianMatch(directions="input"),
        lambda: tfkd.JacobianMatch(fraction=0.0),
        lambda: tfkd.JacobianMatch(fraction=1.5),
        lambda: tfkd.JacobianMatch(fraction=0.5, batch_statistics="batch"),
        lambda: tfkd.JacobianMatch(fraction=0.5, batch_statistics="frozen"),
        lambda: tfkd.JacobianPenalty("absolute"),
        lambda: tfkd.JacobianPenalty("cross_entropy", of="label"),
        lambda: tfkd.JacobianPenalty(
            "printed_cross_entropy", num_projections=2
        ),
        lambda: tfkd.InputNoiseMatch(0.0),
        lambda: tfkd.InputNoiseMatch(float("nan")),
        lambda: tfkd.losses.JacobianCrossEntropy(0.0),
        lambda: tfkd.JacobianMatch(num_projections=1, seed=None),
        lambda: tfkd.InputNoiseMatch(0.1, seed=None),
    ],
    ids=range(16),
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="Received|no random projections"):
        make()


def test_kinds_of_statistics_do_not_mix(make_network):
    for other in ("frozen", None):
        matches = [
            tfkd.JacobianMatch(batch_statistics=kind)
            for kind in ("batch", other)
        ]
        with pytest.raises(ValueError, match="cannot share one training pass"):
            tfkd.Distiller(
                student=make_network(seed=1),
                teacher=make_network(seed=2),
                matches=matches,
            )


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_moving_statistics_go_beside_all_others(make_network, normalization):
    """Where modes agree, all read the training pass."""
    for kind in ("batch", "frozen", None):
        matches = [
            tfkd.JacobianMatch(batch_statistics="moving"),
            tfkd.JacobianPenalty(batch_statistics=kind),
        ]
        tfkd.Distiller(
            student=make_network(seed=1, normalization=normalization),
            teacher=make_network(seed=2),
            matches=matches,
        )
        expected = "inference" if normalization == "batch" else "training"
        assert matches[0].student_pass == expected
        assert matches[1].student_pass == "training"


class OwnNormalization(keras.layers.Layer):
    """Normalises over the batch in training.

    Args:
        moments: Function of a tensor `[..., channels]` and of axes that
            returns the mean and the variance.
    """

    def __init__(self, moments, **kwargs):
        super().__init__(**kwargs)
        self.moments = moments

    def call(self, inputs, training=False):
        axes = [*range(len(inputs.shape) - 1)]
        if not training:
            return inputs
        mean, variance = self.moments(inputs, axes)
        return (inputs - mean) / tf.sqrt(tf.cast(variance, inputs.dtype) + 1e-3)


def _fused(x, axes):
    """From an operation that normalises, too."""
    ones = tf.ones(x.shape[-1], tf.float32)
    normal, _, _ = tf.compat.v1.nn.fused_batch_norm(
        tf.cast(x, tf.float32)[:, None], ones, 0 * ones, is_training=True
    )
    return x - tf.cast(normal[:, 0], x.dtype), tf.ones_like(x)


class Unmasked(keras.layers.Layer):
    """Ends a mask, of which Keras warns where a layer ignores it."""

    supports_masking = True

    def call(self, inputs):
        return tf.identity(inputs)  # the mask is an attribute of the tensor

    def compute_mask(self, inputs, mask=None):
        return None


def _second_moments(x, axes):
    """Of pairs of channels, of which the mean is taken."""
    rows = tf.reshape(x, [-1, x.shape[-1]])
    size = tf.cast(tf.shape(rows)[0], x.dtype)
    products = tf.matmul(rows, rows, transpose_a=True) / size
    return tf.reduce_mean(products, axis=-1), 1.0


def _normalized(*layers):
    return keras.Sequential(
        [
            keras.Input((5, 4)),
            *layers,
            keras.layers.Dense(6, "tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ],
        name="student",
    )


# What takes its statistics over the batch in a way that can be frozen.
_FREEZABLE = {
    "keras": lambda: [keras.layers.BatchNormalization()],
    "synchronised": lambda: [
        keras.layers.BatchNormalization(synchronized=True)
    ],
    "renormalised": lambda: [keras.layers.BatchNormalization(renorm=True)],
    "masked": lambda: [
        keras.layers.Masking(),
        keras.layers.BatchNormalization(),
        Unmasked(),
    ],
    "tf.nn.moments": lambda: [
        OwnNormalization(lambda x, axes: tf.nn.moments(x, axes))
    ],
    "keras.ops.moments": lambda: [OwnNormalization(keras.ops.moments)],
    "statistics of the example": lambda: [
        OwnNormalization(
            lambda x, _: (tf.reduce_mean(x, 1, keepdims=True), 1.0)
        )
    ],
    "no gradient": lambda: [
        OwnNormalization(
            lambda x, axes: (tf.stop_gradient(tf.reduce_mean(x, axes)), 1.0)
        )
    ],
}
# What mixes examples; how to take the statistics otherwise.
_MIXING = {
    "mean": lambda x, axes: (tf.reduce_mean(x, axes), 1.0),
    "variance": lambda x, axes: (0.0, tf.math.reduce_variance(x, axes)),
    "ops": lambda x, axes: (keras.ops.mean(x, axes), keras.ops.var(x, axes)),
    "largest": lambda x, axes: (keras.ops.max(x, 0), 1.0),
    "flat": lambda x, _: (tf.reduce_mean(tf.reshape(x, [-1, 4]), -2), 1.0),
    "weighted": lambda x, axes: tf.nn.weighted_moments(
        x, axes, tf.ones_like(x)
    ),
    "fused": _fused,
    "products": _second_moments,
    "moments by another name": tf.nn.moments,
}


def _largest_gradients(model):
    """Of the first example's output by its own input and by the others'."""
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 5, 4)))
    trace = Trace(
        model, x, training=True, differentiable=True, freeze_statistics=True
    )
    first = tf.constant([1.0, 0.0, 0.0, 0.0], tf.float64)
    gradient = trace.input_gradient(lambda trace: first * trace.outputs[:, 0])
    sizes = np.abs(gradient.numpy())
    return sizes[0].max(), sizes[1:].max()


@pytest.mark.parametrize("kind", _FREEZABLE)
def test_frozen_statistics_do_not_mix_examples(float64, kind):
    keras.utils.set_random_seed(0)
    student = _normalized(*_FREEZABLE[kind]())
    tfkd.Distiller(student=student, matches=[tfkd.JacobianPenalty()])
    own, others = _largest_gradients(student)
    assert own > 0.1
    assert others == 0.0


@pytest.mark.parametrize("kind", _MIXING)
def test_what_mixes_examples_all_the_same_is_refused(float64, kind):
    """By name, whether "frozen" is given or the default."""
    keras.utils.set_random_seed(0)
    student = _normalized(OwnNormalization(_MIXING[kind], name="mine"))
    own, others = _largest_gradients(student)
    assert own > 0.1
    assert others > 1e-3
    message = (
        "'student' takes statistics over the batch .*'mine'.*tf.nn.moments.*"
        "'jacobian_penalty'.*batch_statistics=\"moving\""
    )
    for given in ({}, {"batch_statistics": "frozen"}):
        match = tfkd.JacobianPenalty(**given)
        with pytest.raises(ValueError, match=message):
            tfkd.Distiller(student=student, matches=[match])
    for other in ("moving", "batch"):
        match = tfkd.JacobianPenalty(batch_statistics=other)
        tfkd.Distiller(student=student, matches=[match])


def test_a_reduction_beside_the_outputs_is_no_mixing(float64):
    """A loss over the batch, and axes that only look like the batch's."""

    class Balanced(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(tf.reduce_mean(inputs))
            stacked = tf.stack([inputs, 2 * inputs])
            return tf.reduce_sum(stacked, axis=0)

    student = _normalized(Balanced())
    tfkd.Distiller(student=student, matches=[tfkd.JacobianPenalty()])
    assert _largest_gradients(student)[1] == 0.0


@pytest.mark.parametrize(
    "match",
    [
        tfkd.JacobianMatch(
            tfkd.losses.JacobianCrossEntropy(2.0, printed=True),
            num_projections=3,
            seed=4,
            weight=0.5,
        ),
        tfkd.JacobianMatch(of="top", fraction=0.25),
        tfkd.JacobianPenalty("cross_entropy", batch_statistics="moving"),
        tfkd.InputNoiseMatch(0.2, seed=9),
    ],
    ids=range(4),
)
def test_configuration_round_trip(match):
    config = keras.saving.serialize_keras_object(match)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(match)
    assert keras.saving.serialize_keras_object(again) == config
