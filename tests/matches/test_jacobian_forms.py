"""Forms of Jacobian losses against their definitions, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.trace import Trace, outline


def _run(match, student, teacher, x, labels=None, **kwargs):
    """The value of a match, with the trainer's protocol."""
    known = None if teacher is None else outline(teacher)
    match.bind(student=outline(student), teacher=known)
    x = tf.constant(x)
    labels = None if labels is None else tf.constant(labels)
    observed = None
    if match.needs_teacher:
        trace = Trace(teacher, x, labels=labels, differentiable=True)
        observed = match.observe(trace, training=True)
    if match.has_own_pass:
        trace = match.trace_student(student, x, labels, observed)
    else:
        trace = Trace(
            student,
            x,
            labels=labels,
            training=match.student_pass == "training",
            differentiable=True,
            freeze_statistics=match.freezes_statistics,
        )
    return match.value(trace, observed, training=True, **kwargs)


def _jacobian(fn, x):
    """[batch, outputs, inputs] of fn by TensorFlow's batch Jacobian."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = fn(x)
    rows = tape.batch_jacobian(outputs, x)
    return rows.numpy().reshape(*outputs.shape, -1)


def _log_softmax(model):
    return lambda x: tf.nn.log_softmax(model(x, training=False))


@pytest.fixture
def networks(float64, make_network):
    student = make_network(seed=1, name="student")
    return student, make_network(6, seed=2, name="teacher")


def _relu_network(seed):
    """One hidden layer: linear in regions."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(16, "relu", name="hidden")]
    )
    model.add(keras.layers.Dense(3))
    return model


def _axis_noise(fn, x, rho):
    """Mean of fn over x +- rho e_d, all d: noise of variance rho^2 / D.

    Exact for functions of second order in the noise.
    """
    values = [
        fn(x + sign * rho * direction)
        for direction in np.eye(x.shape[-1])
        for sign in (1, -1)
    ]
    return np.mean(values, axis=0)


def _in_one_region(models, x, rho):
    """The examples of x whose neighbourhoods cross no kink."""
    keep = np.ones(len(x), bool)
    for model in models:
        hidden = model.get_layer("hidden")
        kernel, bias = hidden.kernel.numpy(), hidden.bias.numpy()
        margin = np.abs(x @ kernel + bias) - rho * np.abs(kernel).max(axis=0)
        keep &= np.all(margin > 0, axis=-1)
    return x[keep]


def test_cross_entropy_form_is_its_definition(networks, images):
    student, teacher = networks
    x, labels = images
    p = tf.nn.softmax(teacher(x)).numpy()
    theirs = _jacobian(_log_softmax(teacher), x)
    ours = _jacobian(_log_softmax(student), x)
    terms = 0.5 * p * np.sum((theirs - ours) ** 2, axis=-1)  # [batch, classes]
    loss = tfkd.losses.JacobianCrossEntropy()
    value = _run(tfkd.JacobianMatch(loss, of="all"), student, teacher, x)
    np.testing.assert_allclose(value, terms.sum(-1).mean(), rtol=1e-10)
    value = _run(tfkd.JacobianMatch(loss), student, teacher, x, labels)
    expected = terms[np.arange(8), labels].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_the_printed_cross_entropy_is_unbounded(networks, images):
    """- sum dT . dS / S: a student ten times as steep has ten times that."""
    student, teacher = networks
    x, _ = images
    probabilities = [
        lambda x, m=m: tf.nn.softmax(m(x, training=False)) for m in networks
    ]
    ours, theirs = (_jacobian(fn, x) for fn in probabilities)
    s = probabilities[0](x).numpy()
    expected = np.mean(np.sum(-np.sum(theirs * ours, -1) / s, axis=-1))
    loss = tfkd.losses.JacobianCrossEntropy(printed=True)
    value = _run(tfkd.JacobianMatch(loss, of="all"), student, teacher, x)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    signal = tf.constant([[[1.0, 2.0]]])
    steep = float(loss(signal, 10 * signal))
    assert steep == 10 * float(loss(signal, signal)) < 0


def test_cross_entropy_form_is_what_noise_adds_at_the_teacher(float64):
    """Noise in one linear region, at S = T: KL / s^2 tends to the term."""
    teacher = _relu_network(1)
    student = _relu_network(2)
    x = np.random.default_rng(0).normal(size=(64, 5))
    # A student with the teacher's outputs at x and its own slopes.
    rho = 1e-3
    x = _in_one_region([student, teacher], x, rho)[:4]
    offset = teacher(x) - student(x)

    def divergence(noisy):
        log_p = tf.nn.log_softmax(teacher(noisy))
        log_q = tf.nn.log_softmax(student(noisy) + offset)
        return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1).numpy()

    added = np.mean(_axis_noise(divergence, x, rho)) / (rho**2 / 5)
    p = tf.nn.softmax(teacher(x)).numpy()
    theirs = _jacobian(_log_softmax(teacher), x)
    ours = _jacobian(lambda x: tf.nn.log_softmax(student(x) + offset), x)
    term = np.mean(np.sum(0.5 * p * np.sum((theirs - ours) ** 2, -1), -1))
    np.testing.assert_allclose(added, term, rtol=1e-3)


def test_penalties_are_their_definitions(networks, images):
    student, _ = networks
    x, labels = images
    rows = _jacobian(lambda x: student(x, training=False), x)
    logs = _jacobian(_log_softmax(student), x)
    p = tf.nn.softmax(student(x)).numpy()
    squares = np.sum(rows**2, axis=-1)
    mean_row = np.einsum("bk,bkd->bd", p, rows)
    variance = np.sum(p * squares, -1) - np.sum(mean_row**2, -1)
    of_label = np.sum(logs**2, axis=-1)[np.arange(8), labels]
    top = np.argmax(p, axis=-1)
    for match, expected in (
        (tfkd.JacobianPenalty(), squares[np.arange(8), labels]),
        (tfkd.JacobianPenalty(of="top"), squares[np.arange(8), top]),
        (tfkd.JacobianPenalty(of="all"), squares.sum(-1)),
        (tfkd.JacobianPenalty("cross_entropy"), 0.5 * variance),
        (tfkd.JacobianPenalty("printed_cross_entropy"), of_label),
    ):
        value = _run(match, student, None, x, labels)
        np.testing.assert_allclose(value, expected.mean(), rtol=1e-9)


def test_the_squared_penalty_is_what_noise_adds(float64):
    """Proposition 2 in one linear region: exact to rounding."""
    student = _relu_network(1)
    x, rho = np.random.default_rng(0).normal(size=(256, 5)), 0.02
    x = _in_one_region([student], x, rho)
    assert len(x) > 20
    y = np.random.default_rng(1).normal(size=(len(x), 3))

    def error(x):
        return np.sum((y - student(x).numpy()) ** 2, axis=-1)

    added = np.mean(_axis_noise(error, x, rho) - error(x)) / (rho**2 / 5)
    value = _run(tfkd.JacobianPenalty(of="all"), student, None, x)
    np.testing.assert_allclose(added, value, rtol=1e-9)


def test_the_matched_jacobian_is_what_noise_adds(float64):
    """Proposition 1 in one linear region of both: exact to rounding."""
    student, teacher = _relu_network(1), _relu_network(2)
    x, rho = np.random.default_rng(0).normal(size=(256, 5)), 0.02
    x = _in_one_region([student, teacher], x, rho)
    assert len(x) > 10

    def error(x):
        return np.sum((teacher(x) - student(x)).numpy() ** 2, axis=-1)

    added = np.mean(_axis_noise(error, x, rho) - error(x)) / (rho**2 / 5)
    value = _run(tfkd.JacobianMatch(of="all"), student, teacher, x)
    np.testing.assert_allclose(added, value, rtol=1e-9)


def test_only_the_exact_cross_entropy_penalty_is_what_noise_adds(float64):
    """For any label; the printed form is another number."""
    student = _relu_network(1)
    x, rho = np.random.default_rng(0).normal(size=(256, 5)), 1e-3
    x = _in_one_region([student], x, rho)
    labels = np.random.default_rng(1).integers(0, 3, size=len(x))

    def loss(x):
        return keras.losses.sparse_categorical_crossentropy(
            labels, student(x), from_logits=True
        ).numpy()

    added = np.mean(_axis_noise(loss, x, rho) - loss(x)) / (rho**2 / 5)
    exact = _run(tfkd.JacobianPenalty("cross_entropy"), student, None, x)
    np.testing.assert_allclose(added, exact, rtol=1e-5)
    match = tfkd.JacobianPenalty("printed_cross_entropy")
    printed = float(_run(match, student, None, x, labels))
    assert abs(printed - added) > 0.5 * added


def test_random_projections_have_the_mean_and_variance_of_the_whole(networks):
    """Rademacher: mean |A|^2, variance 2 (|G|^2 - sum G_ii^2), G = A A^T.

    Over 4000 draws of one projection the mean has a standard error of
    sqrt(variance / 4000); five of them are allowed, and a tenth for the
    variance.
    """
    student, teacher = networks
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 2))
    a = (
        _jacobian(lambda x: student(x, training=False), x)
        - _jacobian(lambda x: teacher(x, training=False), x)
    )[0]
    gram = a @ a.T
    mean = np.trace(gram)
    variance = 2 * (np.sum(gram**2) - np.sum(np.diag(gram) ** 2))
    match = tfkd.JacobianMatch(num_projections=1, seed=3)
    many = np.repeat(x, 4000, axis=0)
    match.bind(student=outline(student), teacher=outline(teacher))
    observed = match.observe(
        Trace(teacher, tf.constant(many), differentiable=True), training=True
    )
    signs = observed["combinations"].numpy()[:, 0]  # [draws, classes]
    assert set(np.unique(signs)) == {-1.0, 1.0}
    draws = np.sum((signs @ a) ** 2, axis=-1)
    assert abs(draws.mean() - mean) < 5 * np.sqrt(variance / 4000)
    np.testing.assert_allclose(draws.var(), variance, rtol=0.1)
    trace = Trace(student, tf.constant(many), differentiable=True)
    value = match.value(trace, observed, training=True)
    np.testing.assert_allclose(value, draws.mean(), rtol=1e-6)


def test_several_projections_are_averaged(networks, images):
    student, teacher = networks
    x, _ = images
    a = _jacobian(lambda x: student(x, training=False), x) - _jacobian(
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
    a = _jacobian(lambda x: student(x, training=False), x) - _jacobian(
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


def test_input_directions_have_the_mean_of_the_whole(networks):
    """2000 draws; within five standard errors, taken from the draws."""
    student, _ = networks
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 2))
    rows = _jacobian(lambda x: student(x, training=False), x)
    many = np.repeat(x, 2000, axis=0)
    match = tfkd.JacobianPenalty(num_projections=1, directions="input")
    value = float(_run(match, student, None, many))
    signs = np.random.default_rng(1).choice([-1, 1], size=(2000, 128))
    draws = np.sum((signs @ rows[0].T) ** 2, axis=-1)
    error = draws.std() / np.sqrt(2000)
    assert abs(value - np.sum(rows**2)) < 5 * error


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


def test_frozen_statistics_give_each_examples_own_jacobian(networks, images):
    """Of the network whose moving statistics are this batch's."""
    student, teacher = networks
    x, labels = images
    match = tfkd.JacobianMatch(batch_statistics="frozen")
    value = _run(match, student, teacher, x, labels)
    twin = keras.models.clone_model(student)
    twin.set_weights(student.get_weights())
    for name in ("norm1", "norm2"):
        layer = twin.get_layer(name)
        before = keras.Model(twin.input, layer.input)
        inputs = before(x, training=False).numpy()
        layer.moving_mean.assign(inputs.mean(axis=(0, 1, 2)))
        layer.moving_variance.assign(inputs.var(axis=(0, 1, 2)))
    rows = _jacobian(lambda x: twin(x, training=False), x)
    rows -= _jacobian(lambda x: teacher(x, training=False), x)
    expected = np.sum(rows[np.arange(8), labels] ** 2) / 8
    np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_a_fraction_is_the_first_examples(networks, images):
    """ceil(0.3 * 8) = 3 examples, with their own weights."""
    student, teacher = networks
    x, labels = images
    weights = tf.constant(np.arange(1.0, 9.0))
    rows = _jacobian(lambda x: student(x, training=False), x)
    rows -= _jacobian(lambda x: teacher(x, training=False), x)
    errors = np.sum(rows[np.arange(8), labels] ** 2, axis=-1)
    match = tfkd.JacobianMatch(fraction=0.3)
    value = _run(match, student, teacher, x, labels, sample_weight=weights)
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
        lambda: tfkd.JacobianMatch(batch_statistics="frozen"),
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
    ids=range(15),
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="Received|no random projections"):
        make()


def test_synchronised_statistics_are_not_frozen(make_network):
    """Keras computes them past tf.nn.moments."""
    student = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.BatchNormalization(synchronized=True, name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    teacher = make_network()
    with pytest.raises(ValueError, match="'norm'.*synchronised"):
        tfkd.Distiller(
            student=student,
            teacher=teacher,
            matches=[tfkd.JacobianMatch(batch_statistics="frozen")],
        )
    tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=[tfkd.JacobianMatch(batch_statistics="batch")],
    )


def test_kinds_of_statistics_do_not_mix(make_network):
    matches = [
        tfkd.JacobianMatch(batch_statistics=kind)
        for kind in ("batch", "frozen")
    ]
    with pytest.raises(ValueError, match="cannot share one training pass"):
        tfkd.Distiller(
            student=make_network(seed=1),
            teacher=make_network(seed=2),
            matches=matches,
        )


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
        tfkd.JacobianPenalty("cross_entropy", batch_statistics="frozen"),
        tfkd.InputNoiseMatch(0.2, seed=9),
    ],
    ids=range(4),
)
def test_configuration_round_trip(match):
    config = keras.saving.serialize_keras_object(match)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(match)
    assert keras.saving.serialize_keras_object(again) == config
