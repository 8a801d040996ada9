"""Several teachers: the mean of what they signal, against NumPy."""

import keras
import numpy as np
import ot
import pytest
import reference
import reference_baselines
import tensorflow as tf

import tfkd
from tfkd import losses
from tfkd.teachers import trace_of

BATCH, INPUTS, HIDDEN, CLASSES = 5, 4, 6, 3


def network(seed, name="net", classes=CLASSES, hidden=HIDDEN, layer="features"):
    """Two dense layers: `W_2 tanh(W_1 x)`."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((INPUTS,)),
            keras.layers.Dense(hidden, "tanh", use_bias=False, name=layer),
            keras.layers.Dense(classes, use_bias=False, name="logits"),
        ],
        name=name,
    )


def signals(model, x):
    """Features, logits and Jacobians in NumPy.

    Returns:
        `[batch, hidden]`, `[batch, classes]`, `[batch, classes, inputs]`.
    """
    first, second = (np.float64(w) for w in model.get_weights())
    features = np.tanh(x @ first)
    slope = 1 - features**2
    jacobian = np.einsum("hc,bh,ih->bci", second, slope, first)
    return features, features @ second, jacobian


def softmax(logits):
    return np.array([reference_baselines.softmax(row) for row in logits])


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, INPUTS)).astype(keras.config.floatx())
    return x, rng.integers(0, CLASSES, size=BATCH)


@pytest.fixture
def networks(float64):
    """A student and three teachers whose logits have several scales."""
    student, *teachers = (network(seed, f"net{seed}") for seed in range(4))
    for factor, teacher in enumerate(teachers, start=1):
        kernel = teacher.get_layer("logits").kernel
        kernel.assign(2.0 * factor * kernel)
    return student, teachers


def value(networks, data, match, **kwargs):
    """The match's value on one batch, as `evaluate` tells it."""
    student, teachers = networks
    distiller = tfkd.Distiller(
        student=student, teacher=teachers, matches=[match]
    )
    distiller.compile(loss=None, **kwargs)
    logs = distiller.evaluate(*data, batch_size=BATCH, verbose=0)
    return logs[-1]


def means(teachers, x):
    """Means over the teachers of features, logits and Jacobians."""
    return [
        np.mean(parts, axis=0)
        for parts in zip(*(signals(t, x) for t in teachers), strict=True)
    ]


# === Values ===


def test_probabilities_are_averaged_at_the_temperature(networks, data):
    student, teachers = networks
    x, _ = data
    for temperature in (1.0, 4.0):
        mean = np.mean(
            [softmax(signals(t, x)[1] / temperature) for t in teachers], axis=0
        )
        log_q = np.log(softmax(signals(student, x)[1] / temperature))
        expected = temperature**2 * np.mean(
            np.sum(mean * (np.log(mean) - log_q), axis=-1)
        )
        match = tfkd.Match(losses.SoftTargets(temperature))
        np.testing.assert_allclose(
            value(networks, data, match), expected, rtol=1e-10
        )


def test_decoupled_and_correlated_probabilities_are_averaged(networks, data):
    """As if one teacher had the logits T log(mean probability)."""
    student, teachers = networks
    x, y = data
    ours = signals(student, x)[1]
    theirs = 2 * np.log(
        np.mean([softmax(signals(t, x)[1] / 2) for t in teachers], axis=0)
    )
    cases = {
        losses.DecoupledTargets(2.0): np.mean(
            reference_baselines.decoupled_targets(theirs, ours, y, 2, (1, 8))
        ),
        losses.CorrelationTargets(2.0): np.mean(
            reference_baselines.correlation_targets(theirs, ours, 2)
        ),
    }
    for loss, expected in cases.items():
        np.testing.assert_allclose(
            value(networks, data, tfkd.Match(loss)), expected, rtol=1e-9
        )


def test_standardised_logits_are_averaged(networks, data):
    """A teacher of logits a hundred times as large counts no more."""
    student, teachers = networks
    x, _ = data
    logits = np.stack([signals(t, x)[1] for t in teachers])
    standard = logits - logits.mean(-1, keepdims=True)
    standard /= standard.std(-1, keepdims=True)
    expected = np.mean(
        reference_baselines.standardized_targets(
            standard.mean(0), signals(student, x)[1], 2
        )
    )
    match = tfkd.Match(losses.StandardizedTargets(2.0))
    actual = value(networks, data, match)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    kernel = teachers[0].get_layer("logits").kernel
    kernel.assign(100 * kernel)
    again = tfkd.Match(losses.StandardizedTargets(2.0))
    np.testing.assert_allclose(value(networks, data, again), actual, rtol=1e-9)


def test_logits_of_other_losses_and_features_are_averaged(networks, data):
    student, teachers = networks
    x, _ = data
    features, logits, _ = means(teachers, x)
    ours = signals(student, x)
    for match, expected in (
        (
            tfkd.Match(losses.SquaredError()),
            np.mean(reference.squared_error(logits, ours[1])),
        ),
        (
            tfkd.Match("mse", at="features"),
            np.mean((features - ours[0]) ** 2),
        ),
        (
            tfkd.Match(losses.SimilarityPreserving(), at="features"),
            reference_baselines.similarity_preserving(features, ours[0]),
        ),
    ):
        np.testing.assert_allclose(
            value(networks, data, match), expected, rtol=1e-10
        )


def test_transport_is_to_the_mean_features(networks, data):
    student, teachers = networks
    x, _ = data
    cost = reference.pairwise_cost(
        means(teachers, x)[0], signals(student, x)[0], "squared_euclidean"
    )
    loss = losses.OptimalTransport("squared_euclidean", tolerance=1e-8)
    match = tfkd.Match(loss, at="features")
    np.testing.assert_allclose(
        value(networks, data, match), ot.emd2([], [], cost), rtol=1e-6
    )


def test_joint_transport_is_to_the_mean_probabilities(networks, data):
    student, teachers = networks
    x, _ = data
    p = np.mean([softmax(signals(t, x)[1]) for t in teachers], axis=0)
    q = softmax(signals(student, x)[1])
    metric = "squared_euclidean"
    cost = reference.pairwise_cost(
        means(teachers, x)[0], signals(student, x)[0], metric
    ) + 3 * reference.pairwise_cost(p, q, metric)
    match = tfkd.Match(
        losses.JointTransport(3.0, tolerance=1e-8), at="features"
    )
    np.testing.assert_allclose(
        value(networks, data, match), ot.emd2([], [], cost), rtol=1e-6
    )


def test_jacobians_are_averaged(networks, data):
    student, teachers = networks
    x, y = data
    _, logits, jacobian = means(teachers, x)
    squares = np.sum((jacobian - signals(student, x)[2]) ** 2, axis=-1)
    rows = np.arange(BATCH)
    for of, expected in (
        ("label", squares[rows, y]),
        ("top", squares[rows, logits.argmax(-1)]),
        ("all", squares.sum(-1)),
    ):
        match = tfkd.JacobianMatch(of=of)
        np.testing.assert_allclose(
            value(networks, data, match), expected.mean(), rtol=1e-10
        )


def test_jacobians_of_log_probabilities_are_averaged(networks, data):
    """1/2 sum_i p_i |mean_k d log p_ki - d log q_i|^2, p_i = mean_k p_ki."""
    student, teachers = networks
    x, _ = data

    def log_jacobian(model):
        _, logits, jacobian = signals(model, x)
        p = softmax(logits / 2)
        centre = np.einsum("bc,bci->bi", p, jacobian)
        return p, (jacobian - centre[:, None]) / 2

    pairs = [log_jacobian(teacher) for teacher in teachers]
    p, theirs = (np.mean(part, axis=0) for part in zip(*pairs, strict=True))
    squares = np.sum((theirs - log_jacobian(student)[1]) ** 2, axis=-1)
    expected = np.mean(0.5 * np.sum(p * squares, axis=-1))
    match = tfkd.JacobianMatch(losses.JacobianCrossEntropy(2.0), of="all")
    np.testing.assert_allclose(
        value(networks, data, match), expected, rtol=1e-10
    )


def test_random_projections_are_the_same_for_all_teachers(networks, data):
    """Of squared errors: |v^T (mean J_T - J_S)|^2 for one v of signs."""
    student, teachers = networks
    x, _ = data
    difference = means(teachers, x)[2] - signals(student, x)[2]
    for directions, axis in (("output", 1), ("input", 2)):
        match = tfkd.JacobianMatch(num_projections=1, directions=directions)
        actual = value(networks, data, match)
        signs = np.array(
            np.meshgrid(*[[-1, 1]] * difference.shape[axis])
        ).reshape(difference.shape[axis], -1)
        # Each example has signs of its own; all sums of one choice each.
        products = np.moveaxis(difference, axis, -1) @ signs
        choices = np.sum(products**2, axis=1)  # [batch, choices]
        sums = np.zeros(1)
        for row in choices:
            sums = np.unique(np.round(np.add.outer(sums, row).ravel(), 10))
        assert np.min(np.abs(sums / BATCH - actual)) < 1e-9


def test_noisy_inputs_are_the_same_for_all_teachers(networks, data):
    """The mean of values with each teacher, less the teachers' variance."""
    student, teachers = networks
    single = [
        value((student, [t]), data, tfkd.InputNoiseMatch(0.1)) for t in teachers
    ]
    pairs = [
        value((a, [b]), data, tfkd.InputNoiseMatch(0.1))
        for a in teachers
        for b in teachers
        if a is not b
    ]
    # |s - mean t|^2 = mean |s - t_k|^2 - 1/2 mean_kl |t_k - t_l|^2
    expected = np.mean(single) - 0.5 * np.sum(pairs) / len(teachers) ** 2
    np.testing.assert_allclose(
        value(networks, data, tfkd.InputNoiseMatch(0.1)), expected, rtol=1e-9
    )


def test_the_attention_jacobian_is_of_the_mean_map(float64, make_network):
    student, *teachers = (
        make_network(seed=seed, name=f"net{seed}") for seed in range(3)
    )
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 8, 8, 2)))

    def pooled(trace):
        maps = tf.reduce_sum(tf.square(trace["stage1"]), axis=-1)
        return tf.reshape(maps, [2, -1])

    # d sum_c (mean_k Z_kc)^2 of one network is not it: the map is of each.
    traces = [
        tfkd.trace.Trace(t, x, layers=["stage1"], differentiable=True)
        for t in teachers
    ]
    mean = sum(t["stage1"] for t in traces) / 2
    place = tf.argmax(
        tf.reshape(tf.reduce_sum(mean**2, axis=-1), [2, -1]), axis=-1
    )
    expected = sum(
        tf.reshape(
            t.input_gradient(
                lambda t: tf.gather(pooled(t), place, batch_dims=1)
            ),
            [2, -1],
        )
        for t in traces
    )
    match = tfkd.AttentionJacobianMatch("stage1", window=None)
    tfkd.Distiller(student=student, teacher=teachers, matches=[match])
    observed = match.observe(
        trace_of(teachers, x, layers=["stage1"], differentiable=True)
    )
    np.testing.assert_array_equal(tf.argmax(observed[0][0], axis=-1), place)
    np.testing.assert_allclose(observed[0][1], expected / 2, rtol=1e-10)


def test_an_excluded_class_counts_as_probability_zero():
    """(1/2, 1/2, 0) and (0, 1/2, 1/2): mean (1/4, 1/2, 1/4)."""
    never = -np.inf
    logits = tf.constant([[[0.0, 0.0, never]], [[never, 0.0, 0.0]]])
    mean = losses.SoftTargets(1.0).ensemble(logits)
    np.testing.assert_allclose(tf.exp(mean), [[0.25, 0.5, 0.25]], rtol=1e-6)
    nobody = tf.constant([[[0.0, never]], [[0.0, never]]])
    np.testing.assert_array_equal(
        losses.SoftTargets(1.0).ensemble(nobody), [[0.0, never]]
    )


# === The trainer ===


def test_one_teacher_in_a_list_is_that_teacher(networks, data):
    student, (teacher, *_) = networks
    weights = []
    for given in (teacher, [teacher]):
        student = network(0, "student")
        distiller = tfkd.Distiller(
            student=student,
            teacher=given,
            matches=[tfkd.Match(losses.SoftTargets(4.0)), tfkd.JacobianMatch()],
        )
        distiller.compile("sgd", _label_loss())
        distiller.fit(*data, epochs=3, verbose=0)
        weights.append(student.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def _label_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _trained(data, teachers, **kwargs):
    """Loss and student after a step of several matches, and the trainer."""
    student = network(9, "student")
    distiller = tfkd.Distiller(
        student=student,
        teacher=teachers,
        matches=[
            tfkd.Match(losses.SoftTargets(4.0)),
            tfkd.Match("mse", at="features"),
            tfkd.JacobianMatch(),
            tfkd.VariationalMatch("features"),
            tfkd.ContrastiveMatch(data[1], negatives=2, dimensions=2),
        ],
    )
    distiller.compile(keras.optimizers.SGD(0.1), _label_loss(), **kwargs)
    x, y = data
    batch = tf.data.Dataset.from_tensor_slices(
        (x, {"label": y, "index": np.arange(BATCH)})
    ).batch(BATCH)
    history = distiller.fit(batch, epochs=2, verbose=0).history
    return np.hstack([history["loss"], *map(np.ravel, student.get_weights())])


def test_eager_graph_and_xla_agree_and_no_teacher_changes(data):
    teachers = [network(1), network(2)]
    before = [weight for t in teachers for weight in t.get_weights()]
    eager, graph, xla = (
        _trained(data, teachers, **kwargs)
        for kwargs in (
            {"run_eagerly": True},
            {"jit_compile": False},
            {"jit_compile": True},
        )
    )
    np.testing.assert_allclose(graph, eager, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(xla, eager, rtol=1e-4, atol=1e-5)
    after = [weight for t in teachers for weight in t.get_weights()]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_precision_averages_in_float32(data):
    """In float16, 2049 would be 2048."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        teachers = [network(1), network(2)]
        student = network(0)
    finally:
        keras.config.set_dtype_policy("float32")
    for teacher, value in zip(teachers, (2048.0, 2050.0), strict=True):
        ones = [np.ones_like(w) * 9 for w in teacher.get_weights()]
        teacher.set_weights([ones[0], ones[1] / 9 / HIDDEN * value])
    x = np.ones((1, INPUTS), "float32")
    trace = trace_of(teachers, tf.constant(x), layers=["features"])
    assert trace.traces[0].outputs.dtype == tf.float16
    assert trace.outputs.dtype == trace["features"].dtype == tf.float32
    np.testing.assert_array_equal(trace.outputs, [[2049.0] * CLASSES])
    distiller = tfkd.Distiller(
        student=student,
        teacher=teachers,
        matches=[tfkd.Match(losses.SoftTargets())],
    )
    distiller.compile("sgd", _label_loss())
    assert np.isfinite(distiller.evaluate(*data, verbose=0)).all()


def test_masks_of_all_teachers_hide_padding():
    """Position 2 is padding for both, 1 for the first alone."""

    def sequence(padding):
        inputs = keras.Input((3, 1))
        x = keras.layers.Masking(padding)(inputs)
        return keras.Model(inputs, keras.layers.Activation("linear")(x))

    x = tf.constant([[[5.0], [7.0], [7.0]]])
    masked, unmasked = sequence(7.0), sequence(0.5)
    mean = trace_of([masked, unmasked], x).outputs
    np.testing.assert_array_equal(mean._keras_mask, [[True, True, True]])
    mean = trace_of([masked, masked], x).outputs
    np.testing.assert_array_equal(mean._keras_mask, [[True, False, False]])


def test_saves_none_and_continues_with_all(tmp_path, data, networks):
    student, teachers = networks
    distiller = tfkd.Distiller(
        student=student,
        teacher=teachers,
        matches=[tfkd.Match(losses.SoftTargets()), tfkd.JacobianMatch()],
    )
    distiller.compile("adam", _label_loss())
    distiller.fit(*data, verbose=0)
    path = tmp_path / "distiller.keras"
    distiller.save(path)
    loaded = tfkd.Distiller.load(path, teacher=teachers)
    assert len(loaded.variables) == len(distiller.variables)
    expected = distiller.evaluate(*data, verbose=0)
    assert loaded.evaluate(*data, verbose=0) == expected
    with pytest.raises(ValueError, match="needs a teacher"):
        tfkd.Distiller.load(path)


def test_summary_names_all_teachers():
    lines = []
    tfkd.Distiller(
        student=network(0, "small"),
        teacher=[network(1, "first"), network(2, "second")],
        matches=[tfkd.Match("mse")],
    ).summary(lines.append)
    assert "teacher: first, 42 parameters (1.0 times" in lines[0]
    assert "teacher: second, 42 parameters (1.0 times" in lines[0]
    assert "each of 2 teachers 1 inference pass" in lines[0]


@pytest.mark.parametrize("name", ["kd", "jacobian", "activations", "dist"])
def test_methods_take_several_teachers(name, networks, data):
    student, teachers = networks
    method = tfkd.methods.build(name, student=student, teacher=teachers)
    assert np.isfinite(value(networks, data, method.matches[0]))


def test_kept_on_disk_they_are_the_same(tmp_path, networks, data, monkeypatch):
    """Off by the 2^-11 of float16; the teachers run no more."""
    student, teachers = networks
    matches = [
        tfkd.Match(losses.SoftTargets(4.0), name="four"),
        tfkd.Match(losses.SoftTargets(1.0), name="one"),
        tfkd.Match("mse", at="features"),
        tfkd.JacobianMatch(),
    ]
    distiller = tfkd.Distiller(
        student=student, teacher=teachers, matches=matches
    )
    distiller.compile(loss=None)
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(BATCH)
    expected = distiller.evaluate(dataset, verbose=0)

    def kept(teachers):
        return tfkd.caching.with_teacher(
            dataset,
            teacher=teachers,
            matches=matches,
            cache_dir=tmp_path,
            verbose=0,
        )

    with_both = kept(teachers)
    monkeypatch.setattr(tfkd.training, "trace_of", None)
    np.testing.assert_allclose(
        distiller.evaluate(with_both, verbose=0), expected, rtol=1e-3
    )
    monkeypatch.undo()
    kept(teachers[::-1])  # another order is the same mean
    assert len(list(tmp_path.glob("*/*"))) == len(matches)
    with pytest.raises(ValueError, match="another teacher than 'net1', 'net2'"):
        distiller.evaluate(kept(teachers[:1]), verbose=0)


# === What is refused ===


@pytest.mark.parametrize(
    ("others", "at", "message"),
    [
        (
            {"hidden": 7},
            "features",
            "the layer 'features' of teacher 1, 'first', and of teacher 2, "
            r"'second', have shapes \(None, 6\) and \(None, 7\)",
        ),
        (
            {"layer": "other"},
            "features",
            "Teacher 2 of 2: Model 'second' has no layer 'features'",
        ),
        (
            {"classes": 4},
            None,
            "the outputs of teacher 1, 'first', and of teacher 2, 'second'",
        ),
    ],
)
def test_teachers_that_differ_are_refused(others, at, message):
    with pytest.raises(ValueError, match=message):
        tfkd.Distiller(
            student=network(0),
            teacher=[network(1, "first"), network(2, "second", **others)],
            matches=[tfkd.Match("mse", at=at)],
        )


def test_another_label_space_is_refused():
    with pytest.raises(ValueError, match="one label space.*teacher 'first'"):
        tfkd.Distiller(
            student=network(0),
            teacher=[
                network(1, "first", classes=4),
                network(2, "second", classes=4),
            ],
            matches=[tfkd.Match("mse", at="features")],
        )


def test_a_paraphraser_of_several_teachers_is_refused(make_network):
    networks = [make_network(seed=seed) for seed in range(3)]
    student, *teachers = networks
    factor = tfkd.FactorMatch("stage1")
    for match in (
        factor,
        tfkd.ParaphraserMatch("stage1", paraphraser=factor.paraphraser),
    ):
        with pytest.raises(ValueError, match="Give it one teacher"):
            tfkd.Distiller(student=student, teacher=teachers, matches=[match])


@pytest.mark.parametrize("teacher", [[], [None], "teacher", [[1]]])
def test_what_is_no_teacher_is_refused(teacher):
    with pytest.raises(ValueError, match="argument `teacher`"):
        tfkd.Distiller(student=network(0), teacher=teacher, matches=[])


def test_a_match_of_one_teacher_is_not_that_of_two():
    student, first, second = (network(seed) for seed in range(3))
    match = tfkd.Match("mse")
    one = tfkd.Distiller(student=student, teacher=first, matches=[match])
    with pytest.raises(ValueError, match="belongs to student"):
        tfkd.Distiller(
            student=student, teacher=[first, second], matches=one.matches
        )
