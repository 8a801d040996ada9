"""Transferer: two heads on one student, and the student's own start."""

import io
import pathlib
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.analysis import transport_trace

CLASSES = 5  # of the teacher; the students' are 3


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def pair(make_network):
    student = make_network(seed=1, name="student")
    teacher = make_network(6, seed=2, name="teacher", classes=CLASSES)
    return student, teacher


def _compiled(transferer, loss="labels", **kwargs):
    kwargs.setdefault("optimizer", keras.optimizers.SGD(0.1))
    transferer.compile(loss=_loss() if loss == "labels" else loss, **kwargs)
    return transferer


def _forgetless(pair, matches=None, **kwargs):
    """A compiled Transferer with a source head."""
    student, teacher = pair
    options = {
        key: kwargs.pop(key)
        for key in ("label_weight", "source_head")
        if key in kwargs
    }
    options.setdefault("source_head", True)
    if matches is None:
        matches = [tfkd.Match(tfkd.losses.SquaredError(), weight=0.01)]
    return _compiled(
        tfkd.Transferer(
            student=student, teacher=teacher, matches=matches, **options
        ),
        **kwargs,
    )


def _everything():
    """One match of each kind, with a source head."""
    return [
        tfkd.Match(tfkd.losses.SquaredError(), weight=0.01),
        tfkd.Match(tfkd.losses.AttentionTransfer(), at="stage1"),
        tfkd.AttentionJacobianMatch("stage1"),
        tfkd.JacobianMatch(of="top"),
    ]


def _finetuned(student, matches=None, **kwargs):
    """A compiled Transferer that compares with the start."""
    if matches is None:
        matches = [
            tfkd.L2SP(),
            tfkd.Match(
                tfkd.losses.NeuronTransport(), at=["stage1", "features"]
            ),
        ]
    return _compiled(
        tfkd.Transferer(student=student, reference="start", matches=matches),
        **kwargs,
    )


def _step(transferer, images, **kwargs):
    history = transferer.fit(
        *images, batch_size=8, shuffle=False, verbose=0, **kwargs
    )
    return {key: values[-1] for key, values in history.history.items()}


def _weights(model):
    return [variable.numpy() for variable in model.variables]


def _assert_all_close(actual, expected, **kwargs):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, **kwargs)


def _of_layer(model, layer):
    return keras.Model(model.input, model.get_layer(layer).output)


# === The source head ===


def test_one_sgd_step_equals_a_hand_written_one(make_network, images):
    """Labels at 3 on the target head, proposition 1 at 0.2 on the source's."""
    teacher = make_network(6, seed=2, name="teacher", classes=CLASSES)

    def fresh():
        return make_network(seed=1, name="student")

    transferer = _forgetless(
        (fresh(), teacher),
        [tfkd.Match(tfkd.losses.SquaredError(), weight=0.2, name="lwf")],
        label_weight=3.0,
    )
    start = [v.numpy() for v in transferer.source_head.variables]
    logs = _step(transferer, images)

    x, labels = tf.constant(images[0]), images[1]
    student = fresh()
    both = keras.Model(
        student.input, [student.output, student.get_layer("features").output]
    )
    kernel, bias = (tf.Variable(value) for value in start)
    with tf.GradientTape() as tape:
        logits, features = both(x, training=True)
        label_loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        )
        source = features @ kernel + bias  # [8, 5]
        error = tf.reduce_mean(
            tf.reduce_sum((teacher(x, training=False) - source) ** 2, axis=-1)
        )
        total = 3.0 * label_loss + 0.2 * error
    variables = [*student.trainable_variables, kernel, bias]
    for variable, gradient in zip(
        variables, tape.gradient(total, variables), strict=True
    ):
        variable.assign(variable - 0.1 * gradient)
    for key, expected in (
        ("loss", total),
        ("label_loss", label_loss),
        ("lwf", error),
    ):
        np.testing.assert_allclose(logs[key], expected, rtol=1e-5)
    _assert_all_close(
        _weights(transferer.student), _weights(student), rtol=1e-5, atol=1e-6
    )
    _assert_all_close(
        _weights(transferer.source_head), [kernel, bias], rtol=1e-5, atol=1e-6
    )


def _nothing(step):
    return 0.0 * tf.cast(step, tf.float32)


def test_labels_do_not_reach_the_source_head(pair, images):
    """With a match whose weight is 0 at each step the head rests."""
    match = tfkd.Match(tfkd.losses.SquaredError(), weight=_nothing)
    transferer = _forgetless(pair, [match])
    before = _weights(transferer.source_head)
    target = _weights(pair[0].get_layer("logits"))
    _step(transferer, images, epochs=2)
    _assert_all_close(_weights(transferer.source_head), before, rtol=0)
    now = _weights(pair[0].get_layer("logits"))
    assert all(
        np.any(a != b) for a, b in zip(now, target, strict=True)
    )  # those labels do reach
    with tf.GradientTape() as tape:
        value = transferer.compute_loss(
            *images, transferer(images[0], training=True)
        )
    assert tape.gradient(value, transferer.source_head.trainable_variables) == [
        None,
        None,
    ]


def test_the_teacher_does_not_reach_the_target_head(pair, images):
    """Without labels the target head rests; the features below learn."""
    transferer = _forgetless(pair, loss=None)
    head, features = pair[0].get_layer("logits"), pair[0].get_layer("conv2")
    before = _weights(head), _weights(features)
    _step(transferer, images)
    _assert_all_close(_weights(head), before[0], rtol=0)
    assert np.any(_weights(features)[0] != before[1][0])


def test_every_match_with_a_teacher_sees_the_source_head(pair, images):
    """As a Distiller of a student whose only outputs are that head's.

    Among them those with passes of their own: on noisy inputs, on a part of
    the batch.
    """

    def matches():
        return [
            tfkd.Match(tfkd.losses.SquaredError()),
            tfkd.Match(tfkd.losses.SoftTargets(temperature=2.0)),
            tfkd.Match("mse", at=("features", None), projector="dense"),
            tfkd.JacobianMatch(of="top", name="top"),
            tfkd.JacobianMatch(of="all", fraction=0.5, name="part"),
            tfkd.JacobianMatch(num_projections=2, name="random"),
            tfkd.InputNoiseMatch(0.1),
            tfkd.Match(
                tfkd.losses.JointTransport(1.0), at="stage1", projector="conv"
            ),
        ]

    transferer = _forgetless(pair, matches())
    student, teacher = pair
    features = student.get_layer("features").output
    alone = keras.Model(student.input, transferer.source_head(features))
    distiller = tfkd.Distiller(
        student=alone, teacher=teacher, matches=matches()
    )
    for one, other in zip(transferer.matches, distiller.matches, strict=True):
        other.set_weights(one.get_weights())
    distiller.compile("sgd")
    values = transferer.evaluate(*images, verbose=0, return_dict=True)
    expected = distiller.evaluate(images[0], verbose=0, return_dict=True)
    for match in transferer.matches:
        assert expected[match.name] > 0
        np.testing.assert_allclose(
            values[match.name], expected[match.name], rtol=1e-5
        )


def test_matches_without_a_teacher_see_the_students_own_outputs(pair, images):
    matches = [
        tfkd.Match(tfkd.losses.SquaredError()),
        tfkd.JacobianPenalty(name="penalty"),
    ]
    transferer = _forgetless(pair, matches)
    distiller = tfkd.Distiller(
        student=pair[0], matches=[tfkd.JacobianPenalty(name="penalty")]
    )
    distiller.compile("sgd", _loss())
    value, expected = (
        model.evaluate(*images, verbose=0, return_dict=True)["penalty"]
        for model in (transferer, distiller)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_one_pass_of_each_network_a_step(pair, images):
    """The source head stands on the pass that the labels see."""
    passes = []

    class Counts(keras.layers.Layer):
        def call(self, inputs, training=False):
            passes.append((self.name, bool(training)))
            return inputs

    def counted(network, name):
        inputs = keras.Input((8, 8, 2))
        return keras.Model(inputs, network(Counts(name=name)(inputs)))

    student, teacher = (
        counted(network, name)
        for network, name in zip(pair, ("ours", "theirs"), strict=True)
    )
    transferer = _forgetless((student, teacher), run_eagerly=True)
    passes.clear()
    _step(transferer, images)
    assert passes == [("theirs", False), ("ours", True)]


def test_the_source_head_learns_the_mean_of_several_teachers(
    pair, images, make_network
):
    student, teacher = pair
    other = make_network(6, seed=3, name="other", classes=CLASSES)
    transferer = _forgetless((student, [teacher, other]))
    values = transferer.evaluate(*images, verbose=0, return_dict=True)
    _, source = transferer.student_with_source_head(images[0])
    mean = (teacher(images[0]) + other(images[0])).numpy() / 2
    expected = np.mean(np.sum((mean - source.numpy()) ** 2, axis=-1))
    np.testing.assert_allclose(values["squared_error"], expected, rtol=1e-5)
    third = make_network(6, seed=3, name="third", classes=CLASSES + 1)
    with pytest.raises(ValueError, match="third"):
        _forgetless((student, [teacher, third]))


def test_both_heads_on_request(pair, images, tmp_path):
    transferer = _forgetless(pair)
    _step(transferer, images)
    student = pair[0]
    target, source = transferer.student_with_source_head(images[0])
    assert transferer.student is student
    assert student.output_shape == (None, 3)
    np.testing.assert_allclose(target, student(images[0]), rtol=1e-6)
    kernel, bias = transferer.source_head.get_weights()
    features = _of_layer(student, "features")(images[0])
    np.testing.assert_allclose(source, features @ kernel + bias, rtol=1e-5)
    transferer.student_with_source_head.save(tmp_path / "both.keras")
    again = keras.saving.load_model(tmp_path / "both.keras")
    _assert_all_close(again(images[0]), (target, source), rtol=1e-6)
    transferer.student_with_source_head.export(tmp_path / "both", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "both")
    served = loaded.serve(images[0])
    _assert_all_close(served, (target, source), rtol=1e-4, atol=1e-6)


def test_the_source_head_stands_on_any_layer(pair, images):
    student, teacher = pair
    narrow = keras.Model(
        student.input,
        keras.layers.Dense(3, name="scores")(
            keras.layers.Dropout(0.5, name="drop")(
                student.get_layer("features").output
            )
        ),
        name="narrow",
    )
    inputs = keras.Input((8, 8, 2))
    nested = keras.Model(inputs, narrow(inputs), name="nested")
    for model, option, at, width in (
        (narrow, True, "drop", 8),
        (nested, True, "narrow/drop", 8),
        (narrow, "scores", "scores", 3),
    ):
        transferer = _forgetless((model, teacher), source_head=option)
        assert transferer.source_head.kernel.shape == (width, CLASSES)
        rows = []
        transferer.summary(print_fn=rows.append)
        assert f"source head: 5 outputs on '{at}'" in rows[0]
        _step(transferer, images)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Its layers' order is not known."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flat = keras.layers.Flatten(name="flat")
        self.hidden = keras.layers.Dense(6, "tanh", name="hidden")
        self.scores = keras.layers.Dense(3, name="scores")

    def call(self, inputs):
        return self.scores(self.hidden(self.flat(inputs)))


def test_subclassed_students(pair, images):
    student = Subclassed(name="own")
    student(images[0])
    with pytest.raises(ValueError, match="is unknown. Name it.*source_head="):
        _forgetless((student, pair[1]))
    transferer = _forgetless((student, pair[1]), source_head="hidden")
    _step(transferer, images)
    _, source = transferer.student_with_source_head(images[0])
    assert source.shape == (8, CLASSES)
    finetuned = _finetuned(student, [tfkd.L2SP()])
    _assert_all_close(
        finetuned.reference(images[0]), student(images[0]), rtol=0
    )
    assert finetuned.matches[0].where == "kernels, new: scores"
    _step(finetuned, images)


@keras.saving.register_keras_serializable("tests")
class Unnamed(keras.Model):
    """Its layers have the names that Keras counts up."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flat = keras.layers.Flatten()
        self.first = keras.layers.Dense(8)
        self.second = keras.layers.Dense(8)
        self.third = keras.layers.Dense(8)
        self.scores = keras.layers.Dense(3)

    def call(self, inputs):
        features = self.second(self.first(self.flat(inputs)))
        return self.scores(self.third(features))


def test_layers_without_a_name_are_compared_with_themselves(images):
    student = Unnamed()
    student(images[0])
    keras.backend.clear_session()  # which counts from the beginning again
    keras.layers.Dense(1)
    matches = [
        tfkd.L2SP(1.0, 0.0),
        tfkd.Match(tfkd.losses.SquaredError(), at=student.third.name),
    ]
    finetuned = _finetuned(student, matches)
    values = finetuned.evaluate(*images, verbose=0, return_dict=True)
    assert values["l2sp"] == values["squared_error"] == 0.0
    student.second.kernel.assign_add(tf.ones([8, 8]))
    values = finetuned.evaluate(*images, verbose=0, return_dict=True)
    np.testing.assert_allclose(values["l2sp"], 32.0, rtol=1e-5)


def test_what_matches_observe_of_the_teacher_can_be_kept(
    pair, images, tmp_path
):
    matches = [tfkd.Match(tfkd.losses.SquaredError()), tfkd.L2()]
    data = tf.data.Dataset.from_tensor_slices(images).batch(4)
    kept = tfkd.caching.with_teacher(
        data, teacher=pair[1], matches=matches, cache_dir=tmp_path, verbose=0
    )
    transferer = _forgetless(pair, matches)
    plain = transferer.evaluate(data, verbose=0, return_dict=True)
    cached = transferer.evaluate(kept, verbose=0, return_dict=True)
    np.testing.assert_allclose(
        cached["squared_error"], plain["squared_error"], rtol=1e-3
    )


# === The start ===


def test_the_reference_is_bit_identical_after_training(make_network, images):
    """Though the optimizer decays weights and all is set to be trained."""
    student = make_network(seed=1, name="student")
    before = _weights(student)
    transferer = _finetuned(
        student, optimizer=keras.optimizers.AdamW(0.1, weight_decay=0.5)
    )
    transferer.trainable = True
    _compiled(transferer, optimizer=keras.optimizers.AdamW(0.1))
    _step(transferer, images, epochs=3, validation_data=images)
    _assert_all_close(_weights(transferer.reference), before, rtol=0)
    assert transferer.reference.trainable_variables == []
    assert not {id(v) for v in transferer.trainable_variables} & {
        id(v) for v in transferer.reference.variables
    }
    kernel = student.get_layer("conv1").kernel.numpy()
    assert np.any(kernel != before[0])


def test_the_reference_normalises_inputs_as_the_student(images):
    """Whose constants are no weights."""
    scale = keras.layers.Normalization()
    scale.adapt(5.0 * images[0] + 7.0)
    student = keras.Sequential(
        [
            keras.Input(images[0].shape[1:]),
            scale,
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    reference = _finetuned(student, []).reference
    np.testing.assert_array_equal(reference(images[0]), student(images[0]))


def test_the_reference_is_what_matches_compare_with(make_network, images):
    """In inference mode, as `evaluate` sees the student too."""
    student = make_network(seed=1, name="student")
    matches = [tfkd.Match(tfkd.losses.SquaredError(), at="features")]
    transferer = _finetuned(student, [*matches, tfkd.L2SP(2.0, 0.0)])
    values = transferer.evaluate(*images, verbose=0, return_dict=True)
    assert values["squared_error"] == 0.0
    assert values["l2sp"] == 0.0
    start = _of_layer(student, "features")(images[0], training=False).numpy()
    kernels = [student.get_layer(f"conv{i}").kernel.numpy() for i in (1, 2)]
    _step(transferer, images)
    values = transferer.evaluate(*images, verbose=0, return_dict=True)
    now = _of_layer(student, "features")(images[0], training=False).numpy()
    expected = np.mean(np.sum((now - start) ** 2, axis=-1))
    np.testing.assert_allclose(values["squared_error"], expected, rtol=1e-4)
    expected = sum(
        np.sum((student.get_layer(f"conv{i}").kernel.numpy() - kernel) ** 2)
        for i, kernel in enumerate(kernels, start=1)
    )
    np.testing.assert_allclose(values["l2sp"], expected, rtol=1e-4)


def test_all_neurons_have_their_role_at_the_start(make_network, images):
    """Also dead ones, which are all alike; not after two have changed."""
    student = make_network(8, seed=1, name="student")
    norm = student.get_layer("norm2")
    gamma, beta = norm.gamma.numpy(), norm.beta.numpy()
    gamma[:3], beta[:3] = 0.0, 0.0
    norm.gamma.assign(gamma)
    norm.beta.assign(beta)
    transferer = _finetuned(student)
    data = tf.data.Dataset.from_tensors(images)
    layers = ["stage1", "stage2", "features"]

    def traces():
        result = transport_trace(student, transferer.reference, data, layers)
        return result.traces

    np.testing.assert_allclose(traces(), np.ones(3), atol=1e-6)
    norm.gamma.assign(gamma[[*range(14), 15, 14]])
    norm.beta.assign(beta[[*range(14), 15, 14]])
    conv = student.get_layer("conv2")
    conv.kernel.assign(conv.kernel.numpy()[..., [*range(14), 15, 14]])
    conv.bias.assign(conv.bias.numpy()[[*range(14), 15, 14]])
    for statistic in (norm.moving_mean, norm.moving_variance):
        statistic.assign(statistic.numpy()[[*range(14), 15, 14]])
    np.testing.assert_allclose(traces(), [1.0, 14 / 16, 14 / 16], atol=1e-3)


def test_penalties_of_weights_run_no_reference(make_network, images):
    passes = []

    class Counts(keras.layers.Layer):
        def call(self, inputs):
            passes.append(self)
            return inputs

    network = make_network(seed=1, name="student")
    inputs = keras.Input((8, 8, 2))
    with keras.saving.custom_object_scope({"Counts": Counts}):
        student = keras.Model(inputs, network(Counts()(inputs)))
        transferer = _finetuned(student, [tfkd.L2SP()], run_eagerly=True)
    passes.clear()
    _step(transferer, images)
    assert len(passes) == 1


def test_a_new_head_on_a_network_of_keras_applications():
    """`with_head`, L2SP with the head apart, neurons at layers by path."""
    shape = (32, 32, 3)
    backbone = keras.applications.MobileNetV2(
        shape, alpha=0.35, weights=None, include_top=False
    )
    student = tfkd.models.with_head(backbone, num_classes=3)
    match = tfkd.Match(
        tfkd.losses.NeuronTransport(), at=["block_12_add", "features"]
    )
    transferer = _finetuned(student, [tfkd.L2SP(0.5, 2.0), match])
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    logs = transferer.evaluate(x, np.arange(4) % 3, verbose=0, return_dict=True)
    # Nothing has moved: what is left is the head, with 2 / 2 |w|^2.
    head = student.get_layer("logits").kernel.numpy()
    np.testing.assert_allclose(logs["l2sp"], np.sum(head**2), rtol=1e-5)
    assert transferer.matches[0].where == "kernels, new: logits"


# === Both ===


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}],
    ids=["eager", "xla", "steps"],
)
@pytest.mark.parametrize("kind", ["source head", "start"])
def test_every_way_to_run_gives_the_same_weights(
    make_network, images, kind, options
):
    def trained(**kwargs):
        student = make_network(seed=1, name="student")
        teacher = make_network(6, seed=2, name="teacher", classes=CLASSES)
        keras.utils.set_random_seed(7)
        if kind == "start":
            transferer = _finetuned(student, **kwargs)
        else:
            transferer = _forgetless(
                (student, teacher), _everything(), **kwargs
            )
        transferer.fit(*images, batch_size=4, shuffle=False, verbose=0)
        return _weights(transferer)

    _assert_all_close(trained(**options), trained(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["source head", "start"])
def test_mixed_precision(make_network, images, kind, policy):
    """Values within the precision of the halves; a float32 source head."""

    def evaluated(dtype):
        keras.config.set_dtype_policy(dtype)
        try:
            student = make_network(seed=1, name="student")
            teacher = make_network(6, seed=2, name="teacher", classes=CLASSES)
            keras.utils.set_random_seed(7)
            if kind == "start":
                transferer = _finetuned(student)
                conv = student.get_layer("conv1")
                conv.kernel.assign(1.5 * conv.kernel)
            else:
                transferer = _forgetless((student, teacher), _everything())
                assert transferer.source_head.compute_dtype == "float32"
            values = transferer.evaluate(*images, verbose=0, return_dict=True)
            before = _weights(transferer.student)
            _step(transferer, images)
            moved = _weights(transferer.student)
            assert all(np.all(np.isfinite(value)) for value in moved)
            assert np.any(moved[0] != before[0])
        finally:
            keras.config.set_dtype_policy("float32")
        return values

    half, full = evaluated(policy), evaluated("float32")
    assert half.keys() == full.keys()
    for key, value in full.items():
        np.testing.assert_allclose(half[key], value, rtol=0.03, atol=2e-3)


@pytest.mark.parametrize("kind", ["source head", "start"])
def test_save_and_load_continue_where_training_stopped(
    pair, images, tmp_path, kind
):
    """With the start that it had, which the loaded student has left."""
    student, teacher = pair
    given = {}
    if kind == "start":
        transferer = _finetuned(student, optimizer="adam")
    else:
        given = {"teacher": teacher}
        transferer = _forgetless(pair, _everything(), optimizer="adam")
    _step(transferer, images)
    transferer.save(tmp_path / "transferer.keras")
    loaded = tfkd.Transferer.load(tmp_path / "transferer.keras", **given)
    _assert_all_close(_weights(loaded), _weights(transferer), rtol=0)
    if kind == "start":
        start = loaded.reference.get_weights()
        _assert_all_close(start, transferer.reference.get_weights(), rtol=0)
        assert np.any(start[0] != loaded.student.get_weights()[0])
        assert not loaded.reference.trainable_variables
    logs = [_step(model, images) for model in (transferer, loaded)]
    assert logs[0].keys() == logs[1].keys()
    for key, value in logs[0].items():
        np.testing.assert_allclose(logs[1][key], value, rtol=1e-5)
    _assert_all_close(
        _weights(loaded), _weights(transferer), rtol=1e-5, atol=1e-6
    )


def _stored(path):
    """Number of weights in a file."""
    with zipfile.ZipFile(path) as archive:
        file = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    sizes = []
    file.visititems(
        lambda _, item: (
            sizes.append(item.size) if isinstance(item, h5py.Dataset) else None
        )
    )
    return sum(sizes)


def test_files_hold_the_start_but_no_teacher(pair, tmp_path):
    student, _ = pair
    size, optimizer = student.count_params(), 2  # iterations, learning rate
    transferer = _forgetless(pair)
    transferer.student_with_source_head(np.zeros([1, 8, 8, 2]))
    transferer.save(tmp_path / "forgetless.keras")
    head = (8 + 1) * CLASSES
    assert _stored(tmp_path / "forgetless.keras") == size + head + optimizer
    finetuned = _finetuned(student)
    finetuned.save(tmp_path / "finetuned.keras")
    assert _stored(tmp_path / "finetuned.keras") == 2 * size + optimizer


def test_the_export_is_the_student(pair, images, tmp_path):
    """Without source head, teacher or reference."""
    for transferer in (_forgetless(pair), _finetuned(pair[0])):
        path = tmp_path / transferer.name
        transferer.export(path, verbose=False)
        loaded = tf.saved_model.load(path)
        expected = pair[0](images[0])
        np.testing.assert_allclose(
            loaded.serve(images[0]), expected, rtol=1e-5, atol=1e-6
        )
        count = sum(int(np.prod(v.shape)) for v in loaded.variables)
        assert count == pair[0].count_params()
        np.testing.assert_allclose(
            transferer.predict(images[0], verbose=0), expected, rtol=1e-5
        )


def test_summary_names_heads_and_start(pair):
    rows = []
    _forgetless(pair, _everything()).summary(print_fn=rows.append)
    _finetuned(pair[0]).summary(print_fn=rows.append)
    forgetless, finetuned = rows
    assert "source head: 5 outputs on 'features', 45 parameters" in forgetless
    assert "teacher: teacher, 911 parameters" in forgetless
    assert "input gradient of top output" in forgetless
    assert "reference: a frozen copy of the student's start" in finetuned
    assert "kernels, new: logits" in finetuned
    assert "teacher:" not in finetuned


# === What is refused ===


def test_outputs_are_not_compared_across_label_spaces(pair, make_network):
    student, teacher = pair
    for match in (
        tfkd.Match(tfkd.losses.SquaredError()),
        tfkd.JacobianMatch(of="top"),
        tfkd.InputNoiseMatch(0.1),
    ):
        with pytest.raises(
            ValueError, match="knows other classes.*source_head=True.*Distill"
        ):
            tfkd.Transferer(student=student, teacher=teacher, matches=[match])
    # As many classes need not be the same ones.
    twin = make_network(6, seed=2, name="teacher", classes=3)
    with pytest.raises(ValueError, match="source_head=True"):
        tfkd.Transferer(
            student=student, teacher=twin, matches=[tfkd.Match("mse")]
        )


def test_target_labels_are_no_classes_of_the_source(pair):
    for match in (
        tfkd.JacobianMatch(),
        tfkd.Match(tfkd.losses.DecoupledTargets()),
    ):
        with pytest.raises(ValueError, match='target task.*of="top"'):
            _forgetless(pair, [match])


def test_a_source_head_that_learns_nothing_is_refused(pair):
    matches = [tfkd.Match(tfkd.losses.AttentionTransfer(), at="stage1")]
    for chosen in (matches, [], [*matches, tfkd.JacobianPenalty()]):
        with pytest.raises(ValueError, match="would learn nothing.*Add"):
            _forgetless(pair, chosen)


def test_a_teacher_of_probabilities_is_refused(pair):
    student, teacher = pair
    squashed = keras.Model(
        teacher.input, keras.layers.Softmax()(teacher.output), name="squashed"
    )
    with pytest.raises(ValueError, match="'squashed' ends in softmax"):
        _forgetless((student, squashed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "end"}, "`reference`.*\"start\" or None.*'end'"),
        ({"source_head": 1}, "`source_head`.*bool or the name"),
        ({"source_head": True}, "Pass teacher="),
        ({"matches": [tfkd.L2SP()]}, 'needs a teacher.*reference="start"'),
        ({"label_weight": -1.0}, "`label_weight`"),
    ],
)
def test_bad_arguments_are_refused(pair, options, message):
    with pytest.raises(ValueError, match=message):
        tfkd.Transferer(student=pair[0], **options)


def test_a_teacher_beside_the_own_start_is_refused(pair):
    with pytest.raises(ValueError, match="not with both"):
        tfkd.Transferer(student=pair[0], teacher=pair[1], reference="start")


def test_a_source_head_needs_a_vector_to_stand_on(pair):
    with pytest.raises(ValueError, match=r"\[batch, dim\].*'stage2'"):
        _forgetless(pair, source_head="stage2")
    with pytest.raises(ValueError, match=r"no layer 'feature'.*'features'"):
        _forgetless(pair, source_head="feature")


def test_a_student_that_cannot_be_copied_is_refused(images):
    class Closed(keras.Model):
        def __init__(self, width):
            super().__init__(name="closed")
            self.dense = keras.layers.Dense(width)

        def call(self, inputs):
            return self.dense(inputs)

        def get_config(self):
            raise NotImplementedError("no configuration")

    student = Closed(3)
    student(np.zeros([1, 4]))
    with pytest.raises(ValueError, match="'closed'.*no configuration"):
        tfkd.Transferer(student=student, reference="start")


def test_without_a_source_head_there_are_no_two_heads(pair):
    transferer = _finetuned(pair[0])
    assert transferer.source_head is None
    with pytest.raises(AttributeError, match="no source head.*=True"):
        _ = transferer.student_with_source_head


# === Replicas ===

_REPLICAS = """
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
import keras
import numpy as np
import tfkd

rng = np.random.default_rng(0)
x = rng.normal(size=(8, 6)).astype("float32")
labels = rng.integers(0, 3, size=8)
batches = tf.data.Dataset.from_tensor_slices((x, labels))
batches = batches.batch(8, drop_remainder=True)

def network(name, classes):
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "softplus", name="hidden"),
            keras.layers.Dense(classes, name="logits"),
        ],
        name=name,
    )

def steps(strategy, start):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        student, teacher = network("student", 3), network("teacher", 5)
        if start:
            matches = [
                tfkd.L2SP(),
                tfkd.Match(tfkd.losses.NeuronTransport(), at="hidden"),
            ]
            given = {"reference": "start"}
        else:
            matches = [
                tfkd.Match(tfkd.losses.SquaredError()),
                tfkd.JacobianMatch(of="top"),
            ]
            given = {"teacher": teacher, "source_head": True}
        transferer = tfkd.Transferer(student=student, matches=matches, **given)
        transferer.compile(
            keras.optimizers.SGD(0.05),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    logs = transferer.fit(batches, verbose=0, epochs=3).history
    return np.hstack([
        *(value for value in logs.values()),
        *(v.numpy().ravel() for v in transferer.variables),
    ])

one = tf.distribute.get_strategy()
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
for start in (True, False):
    np.testing.assert_allclose(
        steps(two, start), steps(one, start), rtol=1e-5, atol=1e-5
    )
print("equal")
"""


def test_two_replicas_equal_one_device():
    """Values of three steps, and all weights after them."""
    done = subprocess.run(
        [sys.executable, "-c", _REPLICAS],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
