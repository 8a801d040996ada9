"""The training step and its promises, on one device."""

import io
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd


@keras.saving.register_keras_serializable("tests")
class Counter(keras.layers.Layer):
    """Passes its input on and counts its runs, in training mode and not."""

    def build(self, input_shape):
        self.runs = self.add_weight(
            shape=(2,), initializer="zeros", trainable=False, name="runs"
        )

    def call(self, inputs, training=False):
        run = [1.0, 0.0] if training else [0.0, 1.0]
        self.runs.assign_add(tf.constant(run, self.runs.dtype))
        return inputs


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _counted(network, name):
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, network(Counter()(inputs)), name=name)


def _runs(model):
    """Numbers of training and of inference passes."""
    counter = next(x for x in model.layers if isinstance(x, Counter))
    return counter.runs.numpy().tolist()


@pytest.fixture
def pair(make_network):
    student = make_network(seed=1, name="student")
    return student, make_network(6, seed=2, name="teacher")


def _everything(weight=0.5):
    """One match of each kind."""
    return [
        tfkd.Match(tfkd.losses.SoftTargets(), weight=weight),
        tfkd.Match("mse", at="features", projector="dense", weight=weight),
        tfkd.Match(
            tfkd.losses.OptimalTransport(),
            at="stage1",
            teacher_projector="conv",
            weight=weight,
        ),
        tfkd.JacobianMatch(weight=weight),
    ]


def _distiller(pair, matches=None, loss="labels", **kwargs):
    student, teacher = pair
    options = {
        key: kwargs.pop(key)
        for key in ("label_weight", "name")
        if key in kwargs
    }
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=_everything() if matches is None else matches,
        **options,
    )
    kwargs.setdefault("optimizer", keras.optimizers.SGD(0.1))
    distiller.compile(loss=_loss() if loss == "labels" else loss, **kwargs)
    return distiller


def _step(distiller, images, **kwargs):
    """One training step; returns its logs."""
    history = distiller.fit(
        *images, batch_size=8, shuffle=False, verbose=0, **kwargs
    )
    return {key: values[-1] for key, values in history.history.items()}


def _weights(model):
    return [variable.numpy() for variable in model.variables]


def _assert_all_close(actual, expected, **kwargs):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, **kwargs)


# === The step ===


def test_one_sgd_step_equals_a_hand_written_one(make_network, images):
    """Labels at 0.3, KD at 0.7, projected features at 2, kernels at 0.01."""
    teacher = make_network(6, seed=2, name="teacher")

    def fresh():
        keras.utils.set_random_seed(5)
        return make_network(
            seed=1, name="student", regularizer=keras.regularizers.L2(0.01)
        )

    projector = keras.layers.Dense(12, kernel_initializer="ones")
    distiller = _distiller(
        (fresh(), teacher),
        [
            tfkd.Match(tfkd.losses.SoftTargets(temperature=2.0), weight=0.7),
            tfkd.Match("mse", at="features", projector=projector, weight=2.0),
        ],
        label_weight=0.3,
    )
    logs = _step(distiller, images)

    x, labels = tf.constant(images[0]), images[1]
    student = fresh()
    theirs = keras.Model(
        teacher.input, [teacher.output, teacher.get_layer("features").output]
    )(x)
    both = keras.Model(
        student.input, [student.output, student.get_layer("features").output]
    )
    kernel, bias = tf.Variable(tf.ones([8, 12])), tf.Variable(tf.zeros([12]))
    with tf.GradientTape() as tape:
        logits, features = both(x, training=True)
        label_loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        )
        p, q = tf.nn.softmax(theirs[0] / 2), tf.nn.softmax(logits / 2)
        soft = 4 * tf.reduce_mean(
            tf.reduce_sum(p * tf.math.log(p / q), axis=-1)
        )
        error = tf.reduce_mean((features @ kernel + bias - theirs[1]) ** 2)
        decay = 0.01 * tf.add_n(
            [
                tf.reduce_sum(variable**2)
                for variable in student.trainable_variables
                if variable.path.endswith("kernel")
            ]
        )
        total = 0.3 * label_loss + 0.7 * soft + 2.0 * error + decay
    variables = [*student.trainable_variables, kernel, bias]
    for variable, gradient in zip(
        variables, tape.gradient(total, variables), strict=True
    ):
        variable.assign(variable - 0.1 * gradient)

    for key, expected in (
        ("loss", total),
        ("label_loss", label_loss),
        ("soft_targets", soft),
        ("mean_squared_error", error),
    ):
        np.testing.assert_allclose(logs[key], expected, rtol=1e-5)
    _assert_all_close(
        _weights(distiller.student), _weights(student), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(projector.kernel, kernel, rtol=1e-5)


@pytest.mark.parametrize(
    ("matches", "student_runs", "teacher_runs"),
    [
        ([], [1, 0], [0, 0]),
        ([tfkd.Match("mse"), tfkd.Match("mae")], [1, 0], [0, 1]),
        (
            [
                tfkd.JacobianMatch(),
                tfkd.JacobianMatch(of="all"),
                tfkd.Match("mse"),
            ],
            [1, 0],
            [0, 1],
        ),
        (
            [
                tfkd.JacobianMatch(batch_statistics="moving"),
                tfkd.JacobianMatch(of="all", batch_statistics="moving"),
                tfkd.JacobianMatch(),
            ],
            [1, 1],
            [0, 1],
        ),
        ([tfkd.JacobianMatch(batch_statistics="batch")], [1, 0], [0, 1]),
    ],
    ids=["labels", "outputs", "jacobians", "moving", "batch-jacobian"],
)
def test_passes_per_step(
    make_network, images, matches, student_runs, teacher_runs
):
    """Counted where they run: training and inference passes of each."""
    student = _counted(make_network(seed=1), "student")
    teacher = _counted(make_network(seed=2), "teacher")
    distiller = _distiller((student, teacher), matches)
    _step(distiller, images)
    assert _runs(student) == student_runs
    assert _runs(teacher) == teacher_runs
    distiller.evaluate(*images, verbose=0)
    assert _runs(student) == [student_runs[0], student_runs[1] + 1]


def test_a_jacobian_needs_no_second_pass_where_modes_agree(
    make_network, images
):
    network = make_network(seed=1, normalization="layer")
    runs = []

    class Counts(keras.layers.Layer):
        def call(self, inputs):
            runs.append(1)
            return inputs

    inputs = keras.Input((8, 8, 2))
    student = keras.Model(inputs, network(Counts()(inputs)), name="student")
    distiller = _distiller(
        (student, make_network(seed=2)),
        [tfkd.JacobianMatch(batch_statistics="moving")],
        run_eagerly=True,
    )
    runs.clear()
    _step(distiller, images)
    assert len(runs) == 1


def test_the_whole_step_has_exact_second_order_gradients(
    float64, make_network, images
):
    """Against central differences, BatchNormalization in training mode."""
    x, labels = tf.constant(images[0], tf.float64), tf.constant(images[1])
    student = make_network(seed=1, name="student")
    teacher = make_network(6, seed=2, name="teacher")
    distiller = _distiller(
        (student, teacher),
        [
            tfkd.Match(tfkd.losses.SoftTargets()),
            tfkd.JacobianMatch(batch_statistics="batch", name="batch"),
            tfkd.JacobianMatch(
                of="all", batch_statistics="moving", name="moving"
            ),
        ],
        optimizer=keras.optimizers.SGD(1.0),
    )
    variables = student.trainable_variables
    start = [variable.numpy() for variable in variables]
    statistics = [v.numpy() for v in student.non_trainable_variables]
    rng = np.random.default_rng(3)
    direction = [rng.normal(size=value.shape) for value in start]

    def move_to(step):
        for variable, value, along in zip(
            variables, start, direction, strict=True
        ):
            variable.assign(value + step * along)
        for variable, value in zip(
            student.non_trainable_variables, statistics, strict=True
        ):
            variable.assign(value)

    def loss_at(step):
        move_to(step)
        observed = distiller._observe_teacher(x, labels, True)
        value, _ = distiller._step_loss(x, labels, None, observed, True)
        return value.numpy()

    def difference(step):
        return (loss_at(step) - loss_at(-step)) / (2 * step)

    expected = (4 * difference(1e-4) - difference(2e-4)) / 3
    move_to(0.0)
    distiller.train_on_batch(x, labels)
    # A step of SGD at rate 1 is the negative gradient.
    slope = sum(
        np.sum((value - variable.numpy()) * along)
        for variable, value, along in zip(
            variables, start, direction, strict=True
        )
    )
    np.testing.assert_allclose(slope, expected, rtol=1e-7)


# === The teacher is a constant ===


def test_the_teacher_is_untouched(pair, images):
    student, teacher = pair
    teacher.get_layer("conv1").trainable = False
    before = _weights(teacher)
    flags = [layer.trainable for layer in teacher.layers]
    distiller = _distiller(pair)
    _step(distiller, images, epochs=2, validation_data=images)
    _assert_all_close(_weights(teacher), before, rtol=0)
    assert [layer.trainable for layer in teacher.layers] == flags
    assert teacher.trainable
    ours = {id(variable) for variable in distiller.variables}
    assert not ours & {id(variable) for variable in teacher.variables}


def test_files_hold_no_teacher(pair, images, tmp_path):
    """Neither its name, nor its number of parameters."""
    student, teacher = pair
    distiller = _distiller(pair, optimizer=keras.optimizers.SGD(0.1))
    _step(distiller, images)
    distiller.save(tmp_path / "distiller.keras")
    with zipfile.ZipFile(tmp_path / "distiller.keras") as archive:
        config = archive.read("config.json").decode()
        weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    assert "student" in config
    assert '"teacher"' not in config
    sizes = []
    weights.visititems(
        lambda _, item: (
            sizes.append(item.size) if isinstance(item, h5py.Dataset) else None
        )
    )
    optimizer = 2  # iterations and learning rate
    assert sum(sizes) == distiller.count_params() + optimizer
    projectors = (8 + 1) * 12 + 6 * 4
    assert distiller.count_params() == student.count_params() + projectors

    checkpoint = tf.train.Checkpoint(distiller)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    stored = [shape for _, shape in tf.train.list_variables(path)]
    ours = {tuple(variable.shape) for variable in distiller.variables}
    theirs = {tuple(variable.shape) for variable in pair[1].variables} - ours
    assert {(3, 3, 2, 6), (3, 3, 6, 12)} <= theirs
    assert not theirs & {tuple(shape) for shape in stored}


def test_the_export_is_the_student(pair, images, tmp_path):
    distiller = _distiller(pair)
    _step(distiller, images)
    distiller.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    student = pair[0]
    np.testing.assert_allclose(
        loaded.serve(images[0]), student(images[0]), rtol=1e-5, atol=1e-6
    )
    count = sum(int(np.prod(v.shape)) for v in loaded.variables)
    assert count == student.count_params()
    np.testing.assert_allclose(
        distiller.predict(images[0], verbose=0),
        student.predict(images[0], verbose=0),
        rtol=1e-6,
    )


def test_a_student_that_shares_variables_is_refused(make_network):
    teacher = make_network()
    head = keras.layers.Dense(3)(teacher.get_layer("features").output)
    student = keras.Model(teacher.input, head, name="student")
    with pytest.raises(ValueError, match="share variables.*clone_model"):
        tfkd.Distiller(
            student=student, teacher=teacher, matches=[tfkd.Match("mse")]
        )


# === Keras' own options ===


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}],
    ids=["eager", "xla", "steps"],
)
def test_every_way_to_run_gives_the_same_weights(make_network, images, options):
    def trained(**kwargs):
        keras.utils.set_random_seed(7)
        student = make_network(seed=1, name="student")
        teacher = make_network(6, seed=2, name="teacher")
        distiller = _distiller((student, teacher), **kwargs)
        distiller.fit(*images, batch_size=4, shuffle=False, verbose=0)
        return _weights(distiller)

    _assert_all_close(trained(**options), trained(), rtol=1e-4, atol=1e-5)


def test_gradient_accumulation_equals_the_larger_batch(make_network, images):
    """Without batch statistics, two halves make the whole."""

    def trained(batch_size, steps):
        student = make_network(seed=1, normalization="layer", name="student")
        teacher = make_network(seed=2, name="teacher")
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
        matches = [
            tfkd.Match(tfkd.losses.SoftTargets()),
            tfkd.JacobianMatch(),
        ]
        distiller = _distiller((student, teacher), matches, optimizer=optimizer)
        distiller.fit(*images, batch_size=batch_size, shuffle=False, verbose=0)
        return _weights(student)

    _assert_all_close(trained(4, 2), trained(8, None), rtol=1e-4, atol=1e-6)


def test_xla_is_refused_where_it_would_approximate(make_network, images):
    """Its second derivative of max pooling compares rounded values."""
    student = make_network(seed=1, name="student", pool="max")
    teacher = make_network(seed=2, name="teacher", pool="max")
    with pytest.raises(ValueError, match=r"XLA only approximates.*MaxPool"):
        _distiller((student, teacher), [tfkd.JacobianMatch()], jit_compile=True)
    distiller = _distiller((student, teacher), [tfkd.JacobianMatch()])
    assert not distiller.supports_jit
    assert not distiller.jit_compile
    _step(distiller, images)
    plain = _distiller(
        (student, teacher), [tfkd.Match("mse")], jit_compile=True
    )
    assert plain.supports_jit
    _step(plain, images)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(make_network, images, policy):
    """Values within the precision of the halves; float32 losses."""

    def evaluated(dtype):
        keras.config.set_dtype_policy(dtype)
        try:
            student = make_network(seed=1, name="student")
            teacher = make_network(6, seed=2, name="teacher")
        finally:
            keras.config.set_dtype_policy("float32")
        keras.utils.set_random_seed(3)
        distiller = _distiller((student, teacher))
        before = _weights(student)
        values = distiller.evaluate(*images, verbose=0, return_dict=True)
        _step(distiller, images)
        moved = [
            not np.array_equal(one, other)
            for one, other in zip(before, _weights(student), strict=True)
        ]
        assert all(np.all(np.isfinite(w)) for w in _weights(student))
        assert all(moved)
        return distiller, values

    distiller, mixed = evaluated(policy)
    scaled = isinstance(
        distiller.optimizer, keras.mixed_precision.LossScaleOptimizer
    )
    assert scaled == (policy == "mixed_float16")
    _, full = evaluated("float32")
    tolerance = {"mixed_float16": 0.01, "mixed_bfloat16": 0.1}[policy]
    for key in full:
        np.testing.assert_allclose(mixed[key], full[key], rtol=tolerance)


def test_evaluate_changes_nothing(pair, images):
    student, _ = pair
    distiller = _distiller(pair)
    _step(distiller, images)
    before = _weights(distiller), _weights(distiller.optimizer)
    distiller.evaluate(*images, verbose=0)
    _assert_all_close(_weights(distiller), before[0], rtol=0)
    _assert_all_close(_weights(distiller.optimizer), before[1], rtol=0)


def test_save_and_load_continue_where_training_stopped(pair, images, tmp_path):
    distiller = _distiller(
        pair, optimizer="adam", label_weight=0.5, metrics=["accuracy"]
    )
    _step(distiller, images)
    distiller.save(tmp_path / "distiller.keras")
    again = tfkd.Distiller.load(tmp_path / "distiller.keras", teacher=pair[1])
    assert again.label_weight == 0.5
    first, second = _step(distiller, images), _step(again, images)
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_allclose(first[key], second[key], rtol=1e-6)
    _assert_all_close(_weights(again), _weights(distiller), rtol=1e-5)


def test_loading_without_the_teacher_says_how(pair, images, tmp_path):
    _distiller(pair).save(tmp_path / "distiller.keras")
    with pytest.raises(ValueError, match=r"Distiller\.load\(path, teacher"):
        keras.saving.load_model(tmp_path / "distiller.keras")
    pair[0].save(tmp_path / "student.keras")
    with pytest.raises(ValueError, match="does not hold a Distiller"):
        tfkd.Distiller.load(tmp_path / "student.keras")


# === What reaches the loss ===


def test_an_example_of_weight_zero_does_not_exist(make_network, images):
    """Weights of 1 and 0, without batch statistics: half the value."""
    teacher = make_network(6, seed=2, name="teacher")

    def evaluated(x, y, weights):
        student = make_network(seed=1, name="student")
        keras.utils.set_random_seed(3)
        distiller = _distiller((student, teacher))
        return distiller.evaluate(
            x,
            y,
            sample_weight=weights,
            batch_size=8,
            verbose=0,
            return_dict=True,
        )

    x, y = images
    weights = np.array([1, 1, 1, 1, 0, 0, 0, 0], "float32")
    weighed = evaluated(x, y, weights)
    half = evaluated(x[:4], y[:4], None)
    for key in half:
        np.testing.assert_allclose(weighed[key], half[key] / 2, rtol=1e-4)


def test_class_weights_are_weights_of_examples(make_network, images):
    x, y = images
    class_weight = {0: 1.0, 1: 3.0, 2: 0.5}

    def trained(**kwargs):
        keras.utils.set_random_seed(3)
        student = make_network(seed=1, name="student")
        teacher = make_network(6, seed=2, name="teacher")
        distiller = _distiller((student, teacher))
        return _step(distiller, images, **kwargs), _weights(student)

    by_class = trained(class_weight=class_weight)
    by_example = trained(
        sample_weight=np.array([class_weight[label] for label in y])
    )
    unweighted = trained()
    for key in by_class[0]:
        np.testing.assert_allclose(
            by_class[0][key], by_example[0][key], rtol=1e-6
        )
        assert abs(by_class[0][key] - unweighted[0][key]) > 1e-6
    _assert_all_close(by_class[1], by_example[1], rtol=1e-6)


def test_unlabelled_distillation(pair, images):
    distiller = _distiller(
        pair, [tfkd.Match(tfkd.losses.SoftTargets())], loss=None
    )
    before = _weights(pair[0])
    history = distiller.fit(images[0], batch_size=8, verbose=0)
    assert set(history.history) == {"loss", "soft_targets"}
    assert history.history["loss"] == history.history["soft_targets"]
    assert not np.array_equal(before[0], _weights(pair[0])[0])
    top = [tfkd.JacobianMatch(of="top"), tfkd.Match("mse")]
    _distiller(pair, top, loss=None).fit(images[0], verbose=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_without_labels_layers_behind_the_last_match_stay(
    pair, images, optimizer
):
    """Keras would warn of a gradient that there cannot be."""
    student, teacher = pair
    match = tfkd.Match("mse", at="features", projector="dense")
    distiller = tfkd.Distiller(
        student=student, teacher=teacher, matches=[match], label_weight=0.0
    )
    distiller.compile(optimizer, _loss())
    head = [w.numpy() for w in student.get_layer("logits").weights]
    body = student.get_layer("conv1").kernel.numpy()
    distiller.fit(*images, batch_size=4, epochs=2, verbose=0)
    for weight, value in zip(
        student.get_layer("logits").weights, head, strict=True
    ):
        np.testing.assert_array_equal(weight, value)
    assert np.any(student.get_layer("conv1").kernel.numpy() != body)


def test_regularisers_count_once_beside_a_second_pass(make_network, images):
    """Kernel and activity regularisers, with a Jacobian's own pass."""
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.BatchNormalization()(inputs)
    x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(
        3,
        kernel_regularizer=keras.regularizers.L2(0.1),
        activity_regularizer=keras.regularizers.L2(0.01),
        name="logits",
    )(x)
    student = keras.Model(inputs, outputs, name="student")
    projector = keras.layers.Dense(
        3, activity_regularizer=keras.regularizers.L1(1.0), name="projector"
    )
    matches = [
        tfkd.JacobianMatch(weight=0.0, batch_statistics="moving"),
        tfkd.Match("mse", projector=projector, weight=0.0),
    ]
    distiller = _distiller((student, make_network(seed=2)), matches)
    x = images[0]
    logits = student(x, training=True)
    expected = (
        0.1 * np.sum(student.get_layer("logits").kernel.numpy() ** 2)
        + 0.01 * np.sum(logits.numpy() ** 2) / 8
        + np.sum(np.abs(projector(logits))) / 8
    )
    for _ in range(2):  # the second trace must not see the first one's
        distiller.make_train_function(force=True)
        weights = student.get_weights(), projector.get_weights()
        logs = distiller.train_on_batch(*images, return_dict=True)
        distiller.reset_metrics()
        student.set_weights(weights[0])
        projector.set_weights(weights[1])
        np.testing.assert_allclose(
            logs["loss"] - logs["label_loss"], expected, rtol=1e-4
        )


def test_a_teachers_own_losses_stay_out(make_network, images):
    teacher = make_network(
        seed=2, name="teacher", regularizer=keras.regularizers.L2(10.0)
    )
    student = make_network(seed=1, name="student")
    distiller = _distiller((student, teacher), [tfkd.Match("mse")])
    logs = _step(distiller, images)
    np.testing.assert_allclose(
        logs["loss"],
        logs["label_loss"] + logs["mean_squared_error"],
        rtol=1e-6,
    )


def test_weights_may_be_functions_of_the_step(pair, images):
    """Weights 0, 1, 2 at steps 0, 1, 2; labels at 1 / (1 + step)."""
    match = tfkd.Match(
        "mse", weight=lambda step: tf.cast(step, "float32"), name="m"
    )
    distiller = _distiller(
        pair,
        [match],
        label_weight=lambda step: 1.0 / (1.0 + tf.cast(step, "float32")),
    )
    for step in range(3):
        logs = _step(distiller, images)
        np.testing.assert_allclose(
            logs["loss"],
            logs["label_loss"] / (1 + step) + step * logs["m"],
            rtol=1e-5,
        )


def test_metrics_are_the_means_over_examples(pair, images):
    """Batches of 5 and 3: the unweighted values, weighed 5 to 3."""
    distiller = _distiller(pair, [tfkd.Match("mse", weight=7.0, name="m")])
    student, teacher = pair
    error = np.mean((student(images[0]) - teacher(images[0])) ** 2, axis=-1)
    logs = distiller.evaluate(
        *images, batch_size=5, verbose=0, return_dict=True
    )
    np.testing.assert_allclose(logs["m"], np.mean(error), rtol=1e-5)
    np.testing.assert_allclose(
        logs["loss"], logs["label_loss"] + 7 * logs["m"], rtol=1e-6
    )


def test_equal_names_are_counted_up(pair):
    distiller = _distiller(
        pair,
        [tfkd.Match("mse"), tfkd.Match("mse"), tfkd.Match("mse", name="loss")],
    )
    names = [metric.name for metric in distiller.metrics]
    assert names[:1] == ["loss"]
    assert {"mean_squared_error", "mean_squared_error_2", "loss_2"} <= {*names}


@pytest.mark.parametrize("statistics", ["frozen", "moving"])
def test_dropout_masks_of_the_training_pass_are_the_students(
    make_network, images, statistics
):
    """Two passes would draw twice: a second call is in inference mode."""
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Dropout(0.5, seed=3, name="drop")(inputs)
    x = keras.layers.Flatten()(x)
    student = keras.Model(inputs, keras.layers.Dense(3)(x), name="student")
    distiller = _distiller(
        (student, make_network(seed=2)),
        [tfkd.JacobianMatch(batch_statistics=statistics)],
    )
    state = student.get_layer("drop").seed_generator.state
    before = state.numpy()
    _step(distiller, images)
    assert np.array_equal(state.numpy() - before, [0, 1])


def test_several_outputs_with_a_match_on_features(images):
    def network(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((8, 8, 2))
        x = keras.layers.Flatten()(inputs)
        x = keras.layers.Dense(5, name="features")(x)
        heads = {
            "a": keras.layers.Dense(3, name="a")(x),
            "b": keras.layers.Dense(1, name="b")(x),
        }
        return keras.Model(inputs, heads)

    distiller = _distiller(
        (network(1), network(2)),
        [tfkd.Match("mse", at="features")],
        loss={"a": _loss(), "b": "mse"},
    )
    x, y = images
    logs = distiller.evaluate(
        x,
        {"a": y, "b": y.astype("float32")},
        verbose=0,
        return_dict=True,
    )
    assert logs["mean_squared_error"] > 0
    np.testing.assert_allclose(
        logs["loss"],
        logs["label_loss"] + logs["mean_squared_error"],
        rtol=1e-5,
    )


def _kl(teacher, student):
    """KL(softmax(t / 4) || softmax(s / 4)) times 16, in float64."""
    logs = []
    for logits in (teacher, student):
        logits = np.asarray(logits, "float64") / 4
        logits = logits - logits.max(-1, keepdims=True)
        logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return 16 * np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)


def test_sequences_are_distilled_over_their_valid_positions():
    """Token 0 is padding: 3 of 4, 1 of 4 and 2 of 4 positions count."""

    def network(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,), dtype="int32")
        x = keras.layers.Embedding(
            6, 5, keras.initializers.RandomNormal(0, 1), mask_zero=True
        )(inputs)
        outputs = keras.layers.Dense(3, name="logits")(x)
        return keras.Model(inputs, outputs, name=f"net{seed}")

    student, teacher = network(1), network(2)
    tokens = np.array([[3, 1, 5, 0], [2, 0, 0, 0], [4, 4, 0, 0]])
    labels = np.array([[0, 1, 2, 0], [2, 0, 0, 0], [1, 1, 0, 0]])
    match = tfkd.Match(tfkd.losses.SoftTargets(), name="kd")
    distiller = _distiller((student, teacher), [match])
    logs = distiller.evaluate(tokens, labels, verbose=0, return_dict=True)
    valid = tokens > 0
    expected = _kl(teacher(tokens), student(tokens))[valid].mean()
    np.testing.assert_allclose(logs["kd"], expected, rtol=1e-4)
    weights = np.where(np.arange(3)[:, None] == 1, 6.0, 0.0) * valid
    logs = distiller.evaluate(
        tokens, labels, sample_weight=weights, verbose=0, return_dict=True
    )
    only = _kl(teacher(tokens), student(tokens))[1, 0]
    np.testing.assert_allclose(logs["kd"], only, rtol=1e-4)
    logs = distiller.train_on_batch(tokens, labels, return_dict=True)
    assert np.isfinite(logs["loss"])


def test_dense_predictions_are_distilled_over_all_positions(images):
    def network(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((8, 8, 2))
        outputs = keras.layers.Conv2D(3, 3, padding="same")(inputs)
        return keras.Model(inputs, outputs, name=f"net{seed}")

    student, teacher = network(1), network(2)
    x = images[0]
    labels = np.random.default_rng(0).integers(0, 3, size=(8, 8, 8))
    match = tfkd.Match(tfkd.losses.SoftTargets(), name="kd")
    distiller = _distiller((student, teacher), [match])
    logs = distiller.evaluate(x, labels, verbose=0, return_dict=True)
    expected = _kl(teacher(x), student(x)).mean()
    np.testing.assert_allclose(logs["kd"], expected, rtol=1e-4)


class Subclassed(keras.Model):
    """A backbone in a block, and a head."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.backbone = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                keras.layers.Flatten(),
                keras.layers.Dense(8, name="hidden"),
                keras.layers.BatchNormalization(),
            ],
            name="backbone",
        )
        self.head = keras.layers.Dense(3)

    def build(self, input_shape):
        self.head.build((None, 8))

    def call(self, inputs):
        return self.head(self.backbone(inputs))


def test_subclassed_students_and_nested_teachers(make_network, images):
    inputs = keras.Input((8, 8, 2))
    teacher = keras.Model(inputs, make_network(name="inner")(inputs))
    student = Subclassed()
    student(images[0])
    match = tfkd.Match(
        "mse", at=("backbone/hidden", "inner/features"), name="m"
    )
    distiller = _distiller((student, teacher), [match, tfkd.JacobianMatch()])
    dense = student.backbone.get_layer("hidden")
    hidden = dense(images[0].reshape(8, -1))
    features = keras.Model(
        teacher.layers[1].input, teacher.layers[1].get_layer("features").output
    )
    expected = np.mean((hidden - features(images[0])) ** 2)
    logs = distiller.evaluate(*images, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["m"], expected, rtol=1e-4)
    before = _weights(student)
    _step(distiller, images)
    moved = [
        np.any(one != other)
        for one, other in zip(_weights(student), before, strict=True)
    ]
    assert all(moved)


def test_a_frozen_student_is_named(pair, images):
    student, _ = pair
    student.trainable = False
    distiller = _distiller(pair, [tfkd.Match("mse")])
    with pytest.raises(ValueError, match="no trainable variables"):
        distiller.train_on_batch(*images)


@pytest.mark.parametrize(
    ("statistics", "own", "shared"),
    [(None, "", ""), ("moving", "1 forward, ", "student 1 inference pass, ")],
)
def test_summary_names_terms_places_weights_and_passes(
    pair, statistics, own, shared
):
    lines = []
    distiller = _distiller(
        pair,
        [
            tfkd.Match(tfkd.losses.SoftTargets(temperature=3.0), weight=0.9),
            tfkd.JacobianMatch(of="all", batch_statistics=statistics),
        ],
        label_weight=0.1,
    )
    distiller.summary(print_fn=lines.append)
    text = "\n".join(lines)
    for pattern in (
        r"student: student, 447 parameters",
        r"teacher: teacher, 885 parameters",
        r"label_loss +outputs +see compile +0\.1 +-",
        r"soft_targets +outputs +SoftTargets\(temperature=3\.0\) +0\.9 +-",
        r"jacobian_match +input gradient of all outputs .* "
        rf"{statistics or 'frozen'} statistics +1 +"
        rf"student {own}3 backward; teacher 3 backward",
        rf"student 1 training pass, {shared}teacher 1 inference pass",
    ):
        assert re.search(pattern, text), f"{pattern}\n{text}"


def test_summary_counts_the_passes_of_matches_own(pair):
    lines = []
    distiller = _distiller(pair, [tfkd.InputNoiseMatch(0.1)])
    distiller.summary(print_fn=lines.append)
    assert re.search(r"inference pass, 1 of matches' own", lines[0])
    assert re.search(
        r"outputs, inputs \+ 0\.1 noise .* 1 forward; teacher 1", lines[0]
    )


# === Bad input ===


def test_label_spaces_that_differ_are_refused(make_network):
    with pytest.raises(ValueError, match=r"one label space.*3\).*7\)"):
        tfkd.Distiller(
            student=make_network(),
            teacher=make_network(classes=7),
            matches=[tfkd.Match("mse", at="stage1")],
        )


def test_a_missing_teacher_names_the_match(make_network):
    with pytest.raises(ValueError, match="'soft_targets' needs a teacher"):
        tfkd.Distiller(
            student=make_network(),
            matches=[tfkd.Match(tfkd.losses.SoftTargets())],
        )


def test_no_teacher_is_needed_where_none_is_asked_for(make_network, images):
    distiller = tfkd.Distiller(student=make_network())
    distiller.compile("sgd", _loss())
    assert set(_step(distiller, images)) == {"loss", "label_loss"}
    with pytest.raises(ValueError, match="nothing to learn from"):
        distiller.compile("sgd")


def test_losses_among_matches_are_refused(pair):
    with pytest.raises(ValueError, match="`matches`"):
        _distiller(pair, [tfkd.losses.SoftTargets()])


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_bad_label_weights_are_refused(pair, value):
    with pytest.raises(ValueError, match="`label_weight`"):
        _distiller(pair, label_weight=value)


def test_label_losses_that_mistake_the_outputs_are_refused(pair):
    with pytest.raises(ValueError, match="Pass from_logits=True"):
        _distiller(pair, loss="sparse_categorical_crossentropy")
    student, teacher = pair
    softmax = keras.Sequential([student, keras.layers.Softmax()])
    with pytest.raises(ValueError, match="needs logits.*softmax"):
        _distiller((softmax, teacher), [tfkd.Match("mse")])


def test_bad_data_are_refused_before_any_training(pair, images):
    student, _ = pair
    distiller = _distiller(pair)
    before = _weights(student)
    x, y = images
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    for data, message in (
        ((x[:0], y[:0]), "empty"),
        ((dataset.take(0).batch(4),), "empty"),
        ((dataset,), "not batched"),
        ((x[..., :1], y), r"takes inputs of shape \(None, 8, 8, 2\)"),
        ((dataset.batch(4).map(lambda x, y: (x[:, :4], y)),), "takes inputs"),
        ((x, y + 1), "Labels out of range: expected 0 to 2"),
        ((x, y - 1), "Labels out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            distiller.fit(*data, verbose=0)
    with pytest.raises(ValueError, match="Labels out of range"):
        distiller.fit(x, y, validation_data=(x, y + 1), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        distiller.fit(dataset.map(lambda x, y: (x, y + 1)).batch(8), verbose=0)
    _assert_all_close(_weights(student), before, rtol=0)


def test_missing_labels_are_named(pair, images):
    distiller = _distiller(pair, [tfkd.Match("mse")])
    with pytest.raises(ValueError, match="needs labels.*loss=None"):
        distiller.fit(images[0], verbose=0)


def test_an_ignored_class_is_no_label_out_of_range(pair, images):
    x, y = images
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=-1
    )
    distiller = _distiller(pair, [tfkd.Match("mse")], loss=loss)
    logs = distiller.evaluate(
        x, np.full_like(y, -1), verbose=0, return_dict=True
    )
    assert logs["label_loss"] == 0.0


def test_a_sample_weight_for_each_output_is_refused(pair, images):
    distiller = _distiller(pair, [tfkd.Match("mse")], loss=None)
    with pytest.raises(ValueError, match="one weight per example"):
        distiller.train_step(
            (
                tf.constant(images[0]),
                None,
                {"a": tf.ones([8]), "b": tf.ones([8])},
            )
        )


# === Found by review ===


def test_a_mask_is_read_behind_the_projector():
    """Time 4 and width 4 agree in size, but pooling has taken time away."""

    def network(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,), dtype="int32")
        x = keras.layers.Embedding(
            6, 4, keras.initializers.RandomNormal(0, 1), mask_zero=True
        )(inputs)
        outputs = keras.layers.Dense(4, name="out")(x)
        return keras.Model(inputs, outputs, name=f"net{seed}")

    student, teacher = network(1), network(2)
    tokens = np.array([[3, 1, 5, 0], [2, 0, 0, 0], [4, 4, 0, 0]])
    pool = keras.layers.GlobalAveragePooling1D
    match = tfkd.Match(
        "mse", projector=pool(), teacher_projector=pool(), name="m"
    )
    distiller = _distiller((student, teacher), [match], loss=None)
    logs = distiller.evaluate(tokens, verbose=0, return_dict=True)
    valid = (tokens > 0)[..., None]
    means = [
        np.sum(model(tokens) * valid, axis=1) / valid.sum(axis=1)
        for model in (student, teacher)
    ]
    expected = np.mean((means[0] - means[1]) ** 2)
    np.testing.assert_allclose(logs["m"], expected, rtol=1e-5)


def test_a_student_that_is_unfrozen_gets_a_pass_of_its_own(
    make_network, images
):
    student = make_network(seed=1, name="student")
    student.trainable = False
    match = tfkd.JacobianMatch(batch_statistics="moving")
    distiller = _distiller((student, make_network(seed=2)), [match])
    assert match.student_pass == "training"
    student.trainable = True
    distiller.compile("sgd", _loss())
    assert match.student_pass == "inference"


def test_a_match_belongs_to_one_pair(pair, make_network):
    match = tfkd.Match("mse", at="features", projector="dense")
    first = _distiller(pair, [match])
    other = make_network(seed=3, name="other")
    with pytest.raises(ValueError, match="belongs to student 'student'"):
        _distiller((other, pair[1]), [match])
    again = tfkd.Match.from_config(match.get_config())
    _distiller((other, pair[1]), [again])
    assert first.matches[0] is match
    _distiller(pair, [match])  # the same pair may share it


def _labelled(x, y, dtype=None):
    y = y if dtype is None else y.astype(dtype)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


@pytest.mark.parametrize(
    "options", [{}, {"run_eagerly": True}, {"jit_compile": True}]
)
def test_labels_are_checked_however_the_step_runs(pair, images, options):
    x, y = images
    before = _weights(pair[0])
    distiller = _distiller(pair, [tfkd.Match("mse")], **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        distiller.fit(_labelled(x, y + 1), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        distiller.evaluate(_labelled(x, y - 1), verbose=0)
    matches = [tfkd.JacobianMatch(), tfkd.Match("mse")]
    distiller = _distiller(pair, matches, loss=None, **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        distiller.fit(_labelled(x, y + 1), verbose=0)
    with pytest.raises(ValueError, match="out of range"):
        distiller.fit(x, y + 1, verbose=0)
    _assert_all_close(_weights(pair[0]), before, rtol=0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_labels_of_every_type_serve(pair, images, dtype):
    x, y = images
    distiller = _distiller(pair)
    expected = distiller.evaluate(_labelled(x, y), verbose=0, return_dict=True)
    actual = distiller.evaluate(
        _labelled(x, y, dtype), verbose=0, return_dict=True
    )
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-6)
    if dtype == "float32":
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="out of range"
        ):
            distiller.evaluate(_labelled(x, y + 0.5, dtype), verbose=0)


def test_two_hundred_classes_fit_into_uint8():
    inputs = keras.Input((4,))
    student = keras.Model(inputs, keras.layers.Dense(256)(inputs))
    distiller = tfkd.Distiller(student=student)
    distiller.compile("sgd", _loss())
    x, y = np.ones([8, 4], "float32"), np.full(8, 255)
    assert distiller.evaluate(_labelled(x, y, "uint8"), verbose=0)[0] > 0


def test_integer_weights_of_positions_have_a_mean(pair, images):
    """Weights (1, 0) weigh an example by a half."""
    x, y = images
    match = [tfkd.Match(tfkd.losses.SquaredError(), name="m")]
    distiller = _distiller(pair, match, loss=None)
    plain = distiller.evaluate(x, verbose=0, return_dict=True)["m"]
    weights = np.tile([1, 0], (8, 1)).astype("int32")
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(8)
    weighed = distiller.evaluate(dataset, verbose=0, return_dict=True)["m"]
    np.testing.assert_allclose(weighed, plain / 2, rtol=1e-5)


def test_masses_reach_a_loss_between_jacobians(make_network, images):
    """Weights 1 and 0: the first half alone, at half the mean weight."""
    x, y = images

    def evaluated(x, y, weights=None):
        match = tfkd.JacobianMatch(
            tfkd.losses.RelaxedEarthMover("squared_euclidean"), name="j"
        )
        networks = make_network(seed=1), make_network(6, seed=2)
        return _distiller(networks, [match]).evaluate(
            x,
            y,
            sample_weight=weights,
            batch_size=8,
            verbose=0,
            return_dict=True,
        )["j"]

    weighed = evaluated(x, y, np.repeat([1.0, 0.0], 4))
    np.testing.assert_allclose(weighed, evaluated(x[:4], y[:4]) / 2, rtol=1e-4)


def test_a_weight_function_must_not_turn_negative(pair, images):
    match = tfkd.Match("mse", weight=lambda step: 1 - tf.cast(step, "float32"))
    distiller = _distiller(pair, [match])
    _step(distiller, images)
    _step(distiller, images)
    with pytest.raises(tf.errors.InvalidArgumentError, match="negative"):
        _step(distiller, images)


def test_metrics_must_not_hide_matches(pair):
    matches = [tfkd.Match("mse", name="accuracy")]
    with pytest.raises(ValueError, match="'accuracy' has the name of a match"):
        _distiller(pair, matches, metrics=["accuracy"])
    with pytest.raises(ValueError, match="val_"):
        _distiller(pair, [tfkd.Match("mse", name="val_loss")])


def test_stock_cross_entropies_compare_with_probabilities(make_network):
    """`from_logits` speaks of the student; the teacher gives probabilities."""
    student = make_network(seed=1, name="student")
    logits = make_network(seed=2, name="teacher")
    softmax = keras.Sequential([logits, keras.layers.Softmax()])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    _distiller((student, softmax), [tfkd.Match(loss)])
    for wrong in ("kl_divergence", "categorical_crossentropy"):
        with pytest.raises(ValueError, match="takes probabilities"):
            _distiller((student, softmax), [tfkd.Match(wrong)])


def test_a_large_regulariser_does_not_blur_the_label_loss(make_network, images):
    student = make_network(
        seed=1, name="student", regularizer=keras.regularizers.L2(1e6)
    )
    distiller = _distiller((student, make_network(seed=2)), [])
    logs = distiller.evaluate(*images, verbose=0, return_dict=True)
    logits = student(images[0]).numpy().astype("float64")
    expected = np.mean(
        np.log(np.exp(logits).sum(-1)) - logits[np.arange(8), images[1]]
    )
    np.testing.assert_allclose(logs["label_loss"], expected, rtol=1e-5)


def test_projectors_of_lower_precision_are_compared_in_float32(pair, images):
    seen = []

    def difference(y_true, y_pred):
        seen.append((y_true.dtype, y_pred.dtype))
        return tf.reduce_sum((y_true - y_pred) ** 2, axis=-1)

    projector = keras.layers.Dense(12, dtype="mixed_float16")
    match = tfkd.Match(difference, at="features", projector=projector)
    distiller = _distiller(pair, [match])
    distiller.evaluate(*images, verbose=0)
    assert {*seen} == {(tf.float32, tf.float32)}


def test_dropout_goes_on_where_it_was(make_network, images, tmp_path):
    """The seed's state is saved, so that the next masks are the same."""

    def fresh():
        inputs = keras.Input((8, 8, 2))
        x = keras.layers.Dropout(0.5, seed=3)(inputs)
        x = keras.layers.Flatten()(x)
        return keras.Model(inputs, keras.layers.Dense(3)(x), name="student")

    teacher = make_network(seed=2)
    matches = [tfkd.JacobianMatch(num_projections=2)]
    distiller = _distiller((fresh(), teacher), matches)
    _step(distiller, images)
    distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    again = tfkd.Distiller.load(tmp_path / "distiller.keras", teacher=teacher)
    matches = [tfkd.JacobianMatch(num_projections=2)]
    third = _distiller((fresh(), teacher), matches)
    third.load_weights(tmp_path / "distiller.weights.h5")
    for trainer in (distiller, again, third):
        _step(trainer, images)
    _assert_all_close(_weights(again), _weights(distiller), rtol=0)
    _assert_all_close(_weights(third), _weights(distiller), rtol=0)


def test_an_interrupted_run_is_resumed_bit_for_bit(
    make_network, images, tmp_path
):
    """BackupAndRestore, stopped in the third of four epochs."""

    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    teacher = make_network(seed=2)

    def run(folder, *callbacks):
        inputs = keras.Input((8, 8, 2))
        x = keras.layers.Dropout(0.5, seed=3)(inputs)
        x = keras.layers.Flatten()(x)
        keras.utils.set_random_seed(1)
        outputs = keras.layers.Dense(3)(x)
        student = keras.Model(inputs, outputs, name="student")
        distiller = _distiller(
            (student, teacher), [tfkd.Match("mse")], optimizer="adam"
        )
        backup = keras.callbacks.BackupAndRestore(tmp_path / folder)
        distiller.fit(
            *images,
            shuffle=False,
            epochs=4,
            verbose=0,
            callbacks=[backup, *callbacks],
        )
        return _weights(distiller)

    with pytest.raises(KeyboardInterrupt):
        run("killed", Stops())
    _assert_all_close(run("killed"), run("whole"), rtol=0)


@pytest.mark.parametrize("eager", [False, True])
def test_a_stage_that_does_not_reach_the_logits_is_resumed(
    make_network, images, tmp_path, eager
):
    """The optimizer's state is saved and read for all variables alike."""
    networks = make_network(seed=1, name="student"), make_network(seed=2)
    distiller = tfkd.Distiller(
        student=networks[0],
        teacher=networks[1],
        matches=[tfkd.Match("mse", at="stage1")],
        label_weight=0.0,
    )
    distiller.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), _loss(), run_eagerly=eager
    )
    distiller.train_on_batch(*images)
    distiller.save(tmp_path / "distiller.keras")
    again = tfkd.Distiller.load(
        tmp_path / "distiller.keras", teacher=networks[1]
    )
    one, two = distiller.optimizer.variables, again.optimizer.variables
    assert len(one) == len(two)
    for saved, read in zip(one, two, strict=True):
        np.testing.assert_array_equal(read, saved)
    assert int(again.optimizer.iterations) == 1
    for trainer in (distiller, again):
        trainer.train_on_batch(*images)
    _assert_all_close(_weights(again), _weights(distiller), rtol=0)


def test_named_inputs_may_come_in_any_order():
    b, a = keras.Input((8,), name="b"), keras.Input((4,), name="a")
    x = keras.layers.Concatenate()([b, a])
    student = keras.Model([b, a], keras.layers.Dense(3)(x), name="student")
    distiller = tfkd.Distiller(student=student)
    distiller.compile("sgd", _loss())
    data = {"a": np.ones([6, 4]), "b": np.ones([6, 8])}
    assert distiller.evaluate(data, np.zeros(6), verbose=0)[0] > 0


def test_inputs_that_differ_are_refused():
    def network(size, name):
        inputs = keras.Input((size,))
        return keras.Model(inputs, keras.layers.Dense(3)(inputs), name=name)

    with pytest.raises(ValueError, match=r"takes \(None, 4\).*\(None, 5\)"):
        _distiller((network(4, "s"), network(5, "t")), [tfkd.Match("mse")])


def test_numbers_without_an_axis_are_taken_as_keras_takes_them():
    inputs = keras.Input((1,))
    student = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    distiller = tfkd.Distiller(student=student)
    distiller.compile("sgd", _loss())
    assert distiller.evaluate(np.ones(6), np.zeros(6), verbose=0)[0] > 0


def test_more_bad_input(pair, images):
    x, y = images
    distiller = _distiller(pair, [tfkd.Match("mse")])
    with pytest.raises(ValueError, match="labels are empty"):
        distiller.fit(x, y[:0], verbose=0)
    with pytest.raises(ValueError, match="empty"):
        distiller.fit([], [], verbose=0)
    with pytest.raises(ValueError, match="`matches`"):
        _distiller(pair, tfkd.Match("mse"))
    distiller = _distiller(
        pair, [tfkd.Match("mse")], loss=None, metrics=["accuracy"]
    )
    with pytest.raises(ValueError, match="no labels to compare"):
        distiller.fit(x, verbose=0)


def test_networks_keep_no_losses_of_dead_graphs(make_network, images):
    inputs = keras.Input((8, 8, 2))
    outputs = keras.layers.Dense(
        3, activity_regularizer=keras.regularizers.L2(0.1)
    )(keras.layers.Flatten()(inputs))
    teacher = keras.Model(inputs, outputs, name="teacher")
    distiller = _distiller((make_network(), teacher), [tfkd.Match("mse")])
    distiller.evaluate(*images, verbose=0)
    assert teacher.losses == []
