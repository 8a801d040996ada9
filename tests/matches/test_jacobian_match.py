"""Jacobian matching against batch Jacobians, closed forms and limits."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.trace import Trace, outline


def _linear(matrix, name=None):
    """The network x -> x @ matrix, whose Jacobian is matrix^T everywhere."""
    matrix = np.asarray(matrix, "float32")
    layer = keras.layers.Dense(matrix.shape[1], use_bias=False)
    model = keras.Sequential([keras.Input(matrix.shape[:1]), layer], name=name)
    layer.set_weights([matrix])
    return model


def _bind(match, student, teacher):
    match.bind(student=outline(student), teacher=outline(teacher))
    return match


def _value(match, student, teacher, x, labels=None, **kwargs):
    _bind(match, student, teacher)
    x = tf.constant(x)
    labels = None if labels is None else tf.constant(labels)
    observed = match.observe(
        Trace(teacher, x, labels=labels, differentiable=True)
    )
    trace = Trace(
        student,
        x,
        labels=labels,
        differentiable=True,
        training=match.student_pass == "training",
        freeze_statistics=match.freezes_statistics,
    )
    return match.value(trace, observed, **kwargs)


def _jacobian(model, x, training=False):
    """[batch, classes, inputs] by TensorFlow's own batch Jacobian."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = model(x, training=training)
    rows = tape.batch_jacobian(outputs, x)
    return rows.numpy().reshape(*outputs.shape, -1).astype("float64")


def test_linear_networks_by_hand():
    """Columns are outputs: dS - dT is (1, 1) for output 0, (0, 2) for 1."""
    student = _linear([[1.0, 0.0], [1.0, 2.0]], "student")
    teacher = _linear([[0.0, 0.0], [0.0, 0.0]], "teacher")
    x, labels = np.ones([2, 2], "float32"), [0, 1]
    for of, expected in (("label", (2 + 4) / 2), ("all", 2 + 4)):
        match = tfkd.JacobianMatch(of=of)
        assert float(_value(match, student, teacher, x, labels)) == expected


def test_top_is_the_teachers_largest_output():
    """The teacher prefers output 1 at (1, 0) and output 0 at (-1, 0)."""
    teacher = _linear([[0.0, 1.0], [0.0, 0.0]], "teacher")
    student = _linear([[5.0, 1.0], [0.0, 3.0]], "student")
    x = np.array([[1.0, 0.0], [-1.0, 0.0]], "float32")
    match = tfkd.JacobianMatch(of="top")
    value = _value(match, student, teacher, x)
    assert float(value) == ((0 + 9) + (25 + 0)) / 2


def test_normalized_loss_ignores_scale():
    """Unit vectors (0.6, 0.8) and (1, 0): 0.16 + 0.64."""
    student = _linear([[3.0], [4.0]], "student")
    teacher = _linear([[10.0], [0.0]], "teacher")
    match = tfkd.JacobianMatch(tfkd.losses.NormalizedSquaredError(), of="all")
    value = _value(match, student, teacher, np.ones([3, 2], "float32"))
    np.testing.assert_allclose(value, 0.8, rtol=1e-6)


@pytest.mark.parametrize("of", ["label", "top", "all"])
def test_agrees_with_batch_jacobians(make_network, images, of):
    student, teacher = make_network(seed=1), make_network(6, seed=2)
    x, labels = images
    rows = _jacobian(student, x) - _jacobian(teacher, x)
    if of == "label":
        rows = rows[np.arange(8), labels]
    elif of == "top":
        rows = rows[np.arange(8), np.argmax(teacher(x), axis=-1)]
    expected = np.sum(rows**2) / 8
    match = tfkd.JacobianMatch(of=of, batch_statistics="moving")
    actual = _value(match, student, teacher, x, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_weights_weigh_each_example(make_network, images):
    student, teacher = make_network(seed=1), make_network(6, seed=2)
    x, labels = images
    rows = (_jacobian(student, x) - _jacobian(teacher, x))[np.arange(8), labels]
    weights = np.arange(8.0)
    expected = np.sum(weights * np.sum(rows**2, axis=-1)) / 8
    actual = _value(
        tfkd.JacobianMatch(batch_statistics="moving"),
        student,
        teacher,
        x,
        labels,
        sample_weight=tf.constant(weights, tf.float32),
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sparse", "column", "one-hot"])
def test_every_form_of_labels(make_network, images, kind):
    student, teacher = make_network(seed=1), make_network(6, seed=2)
    x, labels = images
    forms = {
        "sparse": labels,
        "column": labels[:, None],
        "one-hot": np.eye(3, dtype="float32")[labels],
    }
    expected = _value(tfkd.JacobianMatch(), student, teacher, x, labels)
    actual = _value(tfkd.JacobianMatch(), student, teacher, x, forms[kind])
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_is_zero_at_the_teacher(make_network, images):
    network = make_network(normalization="layer")
    twin = keras.models.clone_model(network)
    twin.set_weights(network.get_weights())
    value = _value(tfkd.JacobianMatch(of="all"), network, twin, images[0])
    assert float(value) == 0.0


def test_batch_statistics_give_the_gradient_of_the_batch_sum(
    make_network, images
):
    """Each input's effect on the whole batch's scalars, not only its own."""
    student, teacher = make_network(seed=1), make_network(6, seed=2)
    x, labels = tf.constant(images[0]), images[1]
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = student(x, training=True)
        picked = tf.gather(outputs, labels, axis=1, batch_dims=1)
    ours = tape.gradient(picked, x).numpy().reshape(8, -1)
    theirs = _jacobian(teacher, x)[np.arange(8), labels]
    expected = np.sum((ours - theirs).astype("float64") ** 2) / 8
    match = tfkd.JacobianMatch(batch_statistics="batch")
    actual = _value(match, student, teacher, images[0], labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_a_pass_of_its_own_only_where_modes_differ(make_network):
    teacher = make_network()
    for statistics, normalization, expected in (
        (None, "batch", "training"),
        ("frozen", "batch", "training"),
        ("moving", "batch", "inference"),
        ("moving", "layer", "training"),
        ("batch", "batch", "training"),
    ):
        match = tfkd.JacobianMatch(batch_statistics=statistics)
        _bind(match, make_network(normalization=normalization), teacher)
        assert match.student_pass == expected


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_evaluation_is_by_moving_statistics(make_network, images, run_eagerly):
    """Whatever training does: that of the network that is used."""
    student, teacher = make_network(seed=1), make_network(6, seed=2)
    x, labels = images
    kinds = ("frozen", "moving", "batch")
    for kind in kinds:
        match = tfkd.JacobianMatch(batch_statistics=kind, name="match")
        penalty = tfkd.JacobianPenalty(batch_statistics=kind, name="penalty")
        distiller = tfkd.Distiller(
            student=student, teacher=teacher, matches=[match, penalty]
        )
        distiller.compile(
            keras.optimizers.SGD(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=run_eagerly,
        )
        history = distiller.fit(
            x, labels, validation_data=(x, labels), batch_size=8, verbose=0
        ).history
        ours, theirs = (
            _jacobian(model, x)[np.arange(8), labels]
            for model in (student, teacher)
        )
        logs = distiller.evaluate(x, labels, verbose=0, return_dict=True)
        for name, rows in (("match", ours - theirs), ("penalty", ours)):
            expected = np.sum(rows**2) / 8
            np.testing.assert_allclose(logs[name], expected, rtol=1e-4)
            np.testing.assert_allclose(
                history[f"val_{name}"], [expected], rtol=1e-4
            )


def test_several_inputs_make_one_long_row():
    """Rows (1, 2) for a and (3) for b: 1 + 4 + 9 against zeros."""

    def network(a_row, b_row):
        a, b = keras.Input((2,), name="a"), keras.Input((1,), name="b")
        parts = [_linear(np.transpose([row])) for row in (a_row, b_row)]
        outputs = keras.layers.Add()([parts[0](a), parts[1](b)])
        return keras.Model({"a": a, "b": b}, outputs)

    student = network([1, 2], [3])
    teacher = network([0, 0], [0])
    match = _bind(tfkd.JacobianMatch(of="all"), student, teacher)
    x = {"a": tf.ones([2, 2]), "b": tf.ones([2, 1])}
    observed = match.observe(Trace(teacher, x, differentiable=True))
    value = match.value(Trace(student, x, differentiable=True), observed)
    assert float(value) == 14.0


def test_labels_out_of_range_are_named():
    network = _linear([[1.0, 0.0]], "net")
    for labels in ([0, 2], [-1, 0]):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="Labels out of range"
        ):
            _value(
                tfkd.JacobianMatch(),
                network,
                _linear([[1.0, 0.0]], "teacher"),
                np.ones([2, 1], "float32"),
                labels,
            )


def test_missing_labels_are_refused():
    network = _linear([[1.0, 0.0]], "net")
    with pytest.raises(ValueError, match='Use of="top"'):
        _value(
            tfkd.JacobianMatch(), network, network, np.ones([2, 1], "float32")
        )


def test_what_cannot_be_compared_is_refused_when_bound():
    two, three = _linear([[1.0] * 2], "two"), _linear([[1.0] * 3], "three")
    with pytest.raises(ValueError, match="as many outputs"):
        _bind(tfkd.JacobianMatch(), two, three)
    tokens = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(5, 4),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    with pytest.raises(ValueError, match="needs a floating input"):
        _bind(tfkd.JacobianMatch(), tokens, tokens)
    maps = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match=r"shape \[batch, classes\]"):
        _bind(tfkd.JacobianMatch(), maps, maps)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_layer_without_second_order_is_named(interpolation):
    def network(layers):
        return keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                *layers,
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )

    upsampling = keras.layers.Resizing(
        8, 8, interpolation=interpolation, name="larger"
    )
    with pytest.raises(ValueError, match="Resize.*larger.*second-order"):
        _bind(tfkd.JacobianMatch(), network([upsampling]), network([]))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`of`.*'top'"):
        tfkd.JacobianMatch(of="first")
    with pytest.raises(ValueError, match="`batch_statistics`"):
        tfkd.JacobianMatch(batch_statistics="none")


_GIVEN = [
    ({}, "frozen"),
    ({"batch_statistics": None}, "frozen"),
    *(({"batch_statistics": s}, s) for s in ("frozen", "moving", "batch")),
]
_GIVEN_A_PART = [
    ({"fraction": 1.0}, "frozen"),
    ({"fraction": 0.5}, "moving"),
    ({"fraction": 0.5, "batch_statistics": None}, "moving"),
    ({"fraction": 0.5, "batch_statistics": "moving"}, "moving"),
    ({"fraction": 1, "batch_statistics": "batch"}, "batch"),
]


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (tfkd.JacobianMatch, _GIVEN + _GIVEN_A_PART),
        (tfkd.JacobianPenalty, _GIVEN + _GIVEN_A_PART),
        (functools.partial(tfkd.AttentionJacobianMatch, "stage1"), _GIVEN),
    ],
    ids=["match", "penalty", "attention"],
)
def test_statistics_are_frozen_unless_told_otherwise(make, given):
    """A part of the batch has a pass of its own, by moving statistics."""
    for kwargs, expected in given:
        match = make(**kwargs)
        assert match.batch_statistics == expected, kwargs
        config = match.get_config()
        assert config["batch_statistics"] == expected, kwargs
        again = type(match).from_config(config)
        assert again.batch_statistics == expected, kwargs
        assert again.get_config() == config, kwargs


def test_configuration_round_trip():
    match = tfkd.JacobianMatch(
        tfkd.losses.NormalizedSquaredError(),
        of="top",
        weight=0.5,
        batch_statistics="batch",
        name="mine",
    )
    config = keras.saving.serialize_keras_object(match)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again.loss) is tfkd.losses.NormalizedSquaredError
    assert (again.of, again.weight, again.batch_statistics, again.name) == (
        "top",
        0.5,
        "batch",
        "mine",
    )
