"""Trainings that stop and go on: bit for bit, and past every fault."""

import errno
import json
import logging
import os
import random
import re
import resource
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.callbacks import Checkpoints, DivergedError, StopOnDivergence

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Killed(BaseException):
    """Stands for SIGKILL where a test stays in its process."""


class KillAt(keras.callbacks.Callback):
    """Ends the training in the second step of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        self.now = None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, 1):
            raise Killed


def digits(**kwargs):
    settings = {"batch_size": 16, "examples_per_class": 5, "seed": 3}
    return tfkd.data.load("digits", **{**settings, **kwargs})


def network(width, name, dropout=0.0):
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.AveragePooling2D(4)(inputs)
    x = keras.layers.Conv2D(width, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Activation("softplus", name="stage1")(x)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    x = keras.layers.Dropout(dropout, name="drop")(x)
    outputs = keras.layers.Dense(10, name="logits", dtype="float32")(x)
    return keras.Model(inputs, outputs, name=name)


def distiller(seed=0, teacher_seed=7, **kwargs):
    """Everything that has a state: the teacher is always the same."""
    keras.utils.set_random_seed(teacher_seed)
    teacher = network(6, "teacher")
    labels = np.arange(50) % 10
    data = digits(index=True)
    for _, y in data.train.as_numpy_iterator():
        labels[y["index"]] = y["label"]
    keras.utils.set_random_seed(seed)
    made = tfkd.Distiller(
        student=network(4, "student", dropout=0.5),
        teacher=teacher,
        matches=[
            tfkd.Match("mse", at="stage1", projector="conv"),
            tfkd.JacobianMatch(of="all", num_projections=2),
            tfkd.ContrastiveMatch(labels, dimensions=8, negatives=8),
        ],
    )
    made.compile("adam", LOSS, metrics=["accuracy"], **kwargs)
    return made


def state(model):
    return [
        keras.ops.convert_to_numpy(variable)
        for variable in (*model.variables, *model.optimizer.variables)
    ]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def plain(seed=0, units=3):
    """A small Distiller without matches."""
    keras.utils.set_random_seed(seed)
    student = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            keras.layers.AveragePooling2D(8),
            keras.layers.Flatten(),
            keras.layers.Dense(units),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(10),
        ]
    )
    made = tfkd.Distiller(student=student)
    made.compile("adam", LOSS, metrics=["accuracy"])
    return made


def fit(model, folder, epochs, data=None, callbacks=()):
    data = data or digits(augment=True)
    checkpoints = Checkpoints(folder, data=data)
    history = model.fit(
        data.train,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks, checkpoints],
    )
    return checkpoints, history


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """The folder of a training of two epochs, not to be changed."""
    folder = tmp_path_factory.mktemp("two")
    fit(plain(), folder, 2)
    return folder


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    """The state after three."""
    model = plain()
    fit(model, tmp_path_factory.mktemp("three"), 3)
    return state(model)


@pytest.fixture
def run(two_epochs, tmp_path):
    """A copy of the folder of two epochs."""
    return shutil.copytree(two_epochs, tmp_path / "run")


# === Bit for bit ===


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_ends_like_the_training_that_was_not_killed(tmp_path, policy):
    """Killed in epoch 3 of 3, gone on from other initial weights."""
    keras.config.set_dtype_policy(policy)
    try:
        whole = distiller()
        data = digits(index=True)
        _, history = fit(whole, tmp_path / "whole", 3, data)
        for seed, kill in ((0, 2), (5, None)):
            part = distiller(seed)
            callbacks = [] if kill is None else [KillAt(kill)]
            try:
                _, resumed = fit(
                    part,
                    tmp_path / "part",
                    3,
                    digits(index=True),
                    callbacks,
                )
                assert kill is None
            except Killed:
                assert kill is not None
    finally:
        keras.config.set_dtype_policy("float32")
    assert_same(state(part), state(whole))
    assert resumed.history == history.history
    assert resumed.epoch == history.epoch == [0, 1, 2]
    names = {variable.path.split("/")[-1] for variable in part.variables}
    assert {"student_bank", "seed_generator_state"} <= names
    if policy == "mixed_float16":
        scales = [
            variable
            for variable in part.optimizer.variables
            if variable.path.endswith("dynamic_scale")
        ]
        assert len(scales) == 1


def test_what_comes_after_has_the_same_draws(tmp_path):
    """Layers made after a training are seeded by Python's generator."""
    draws = []
    for seed in (0, 4):
        fit(plain(seed), tmp_path, 2)
        layer = keras.layers.Dense(3)
        layer.build((None, 2))
        draws.append((layer.kernel.numpy(), np.random.rand(), random.random()))
        np.random.rand(5)
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    assert draws[0][1:] == draws[1][1:]


def test_the_rate_that_another_callback_lowered_is_kept(tmp_path):
    def lower(epoch, rate):
        return rate * 0.5

    scheduler = keras.callbacks.LearningRateScheduler
    fit(plain(), tmp_path, 2, callbacks=[scheduler(lower)])
    model = plain(1)
    checkpoints, _ = fit(model, tmp_path, 3, callbacks=[scheduler(lower)])
    assert float(model.optimizer.learning_rate) == np.float32(1e-3 / 8)
    rates = [row["learning_rate"] for row in checkpoints.history]
    np.testing.assert_allclose(rates, [5e-4, 2.5e-4, 1.25e-4], rtol=1e-6)


def test_a_new_rate_is_taken(tmp_path):
    """To go back after a divergence; a lowered one is no new one."""

    def rated(rate):
        model = plain(1)
        model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"])
        return model

    lower = keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2)
    fit(rated(1e-2), tmp_path, 1, callbacks=[lower])
    model = rated(3e-3)
    fit(model, tmp_path, 2, callbacks=[lower])
    assert float(model.optimizer.learning_rate) == np.float32(1.5e-3)
    fit(model, tmp_path, 3)  # Of the same process, lowered.
    model = rated(3e-3)
    fit(model, tmp_path, 4)
    assert float(model.optimizer.learning_rate) == np.float32(1.5e-3)
    decay = keras.optimizers.schedules.CosineDecay
    fit(rated(decay(0.1, 9)), tmp_path / "decay", 1)
    fit(rated(decay(0.01, 9)), tmp_path / "decay", 2)


def test_the_last_two_are_kept(tmp_path):
    checkpoints, _ = fit(plain(), tmp_path, 4)
    assert files(tmp_path) == [
        "epoch-00003.checkpoint",
        "epoch-00004.checkpoint",
    ]
    assert checkpoints.last == tmp_path / "epoch-00004.checkpoint"
    assert [row["epoch"] for row in checkpoints.history] == [1, 2, 3, 4]


def test_a_finished_training_is_not_trained_again(tmp_path):
    first = plain()
    _, history = fit(first, tmp_path, 2)
    again = plain(8)
    checkpoints, restored = fit(again, tmp_path, 2)
    assert_same(state(again), state(first))
    assert restored.history == history.history
    assert len(checkpoints.history) == 2
    # Keras' own place for the first epoch is free again.
    assert len(again.fit(digits().train, epochs=1, verbose=0).epoch) == 1


def test_any_keras_model_and_pipeline_will_do(tmp_path):
    def make(seed):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(1),
            ]
        )
        model.compile("sgd", "mse")
        return model

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 1))
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0}
    whole, part, rest = make(0), make(0), make(1)
    whole.fit(
        x, y, epochs=3, callbacks=[Checkpoints(tmp_path / "a")], **settings
    )
    for model, epochs in ((part, 2), (rest, 3)):
        callbacks = [Checkpoints(tmp_path / "b")]
        model.fit(x, y, epochs=epochs, callbacks=callbacks, **settings)
    assert_same(state(rest), state(whole))


def test_backup_and_restore_of_keras_trains_an_epoch_twice(
    tmp_path, monkeypatch
):
    """Killed between its two files; `Checkpoints` has but one."""
    save = tfkd.Distiller.save_weights

    def save_and_die(self, *args, **kwargs):
        save(self, *args, **kwargs)
        raise Killed

    def train(seed, epochs):
        model = plain(seed)
        backup = keras.callbacks.BackupAndRestore(
            tmp_path / "run", delete_checkpoint=False
        )
        model.fit(digits().train, epochs=epochs, verbose=0, callbacks=[backup])
        return int(model.optimizer.iterations)

    assert train(0, 1) == 4
    with monkeypatch.context() as patch:
        patch.setattr(tfkd.Distiller, "save_weights", save_and_die)
        with pytest.raises(Killed):
            train(1, 2)
    assert train(2, 2) == 3 * 4


# === Damaged and foreign files ===


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        # In the middle of the largest variable, where only a sum tells.
        place = len(content) // 2
        changed = bytes([content[place] ^ 1])
        path.write_bytes(content[:place] + changed + content[place + 1 :])
    elif how == "no archive":
        path.write_text("foreign")
    elif how == "no state":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("0", b"")
    elif how == "encrypted":
        # One bit of the directory says so.
        place = content.index(b"PK\x01\x02") + 8
        changed = bytes([content[place] | 1])
        path.write_bytes(content[:place] + changed + content[place + 1 :])
    elif how == "nested":
        rewrite(path, lambda state: "[" * 100_000)
    elif how == "bomb":
        rewrite(path, json.dumps, zipfile.ZIP_DEFLATED)
    else:
        rewrite(path, lambda state: json.dumps({**state, **how}))


def rewrite(path, text_of, compression=zipfile.ZIP_STORED):
    """Replaces a checkpoint's state by a text, a function of it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["state.json"] = text_of(json.loads(parts["state.json"]))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "how",
    [
        *("truncated", "empty", "one bit", "no archive", "no state"),
        *("encrypted", "nested", "bomb"),
        {"epoch": 2.0},
        {"history": None},
        {"history": [{"epoch": 1}]},
        {"generators": {}},
        {"generators": {"python": [3, [0], None], "numpy": ["MT19937"]}},
        {"learning_rate": "1"},
    ],
    ids=str,
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    run, three_epochs, caplog, how
):
    broken = run / "epoch-00002.checkpoint"
    damage(broken, how)
    content = broken.read_bytes()
    part = plain(3)
    with caplog.at_level(logging.WARNING, "tfkd"):
        fit(part, run, 3)
    (record,) = caplog.records
    assert str(broken) in record.getMessage()
    assert "it is damaged" in record.getMessage()
    assert "epoch-00001.checkpoint" in record.getMessage()
    aside = broken.with_name("epoch-00002.checkpoint.refused")
    assert aside.read_bytes() == content
    assert_same(state(part), three_epochs)


def test_without_a_good_one_it_starts_anew(run, three_epochs, caplog):
    for number in (1, 2):
        damage(run / f"epoch-0000{number}.checkpoint", "truncated")
    part = plain()
    with caplog.at_level(logging.WARNING, "tfkd"):
        fit(part, run, 3)
    assert "from its beginning" in caplog.text
    assert_same(state(part), three_epochs)


def test_a_foreign_checkpoint_is_named_and_the_one_before_used(
    run, two_epochs, tmp_path, three_epochs, caplog
):
    fit(plain(units=4), tmp_path / "other", 2)
    name = "epoch-00002.checkpoint"
    os.replace(tmp_path / "other" / name, run / name)
    part = plain()
    with caplog.at_level(logging.WARNING, "tfkd"):
        fit(part, run, 3)
    assert f"'{run / name}' (its variable 0 is [[16, 4]," in caplog.text
    assert_same(state(part), three_epochs)


def test_metrics_that_are_vectors_are_kept(tmp_path):
    model = plain()
    score = keras.metrics.F1Score(average=None)
    model.compile("sgd", "mean_squared_error", metrics=[score])
    x, y = np.ones([2, *model.student.input_shape[1:]]), np.eye(2, 10)
    checkpoints = tfkd.callbacks.Checkpoints(tmp_path)
    model.fit(x, y, verbose=0, callbacks=[checkpoints])
    assert len(checkpoints.history[0]["f1_score"]) == 10


def test_a_renamed_checkpoint_is_foreign(run):
    (run / "epoch-00001.checkpoint").unlink()
    os.replace(run / "epoch-00002.checkpoint", run / "epoch-00009.checkpoint")
    with pytest.raises(ValueError, match="it is of epoch 2"):
        fit(plain(), run, 9)


def test_a_folder_of_another_training_is_refused_and_left_alone(run):
    before = {p: p.read_bytes() for p in run.iterdir()}
    model = distiller()
    weights = [variable.numpy() for variable in model.variables]
    with pytest.raises(ValueError, match="another training.*epoch-00002"):
        fit(model, run, 3, digits(index=True))
    assert {p: p.read_bytes() for p in run.iterdir()} == before
    assert_same([variable.numpy() for variable in model.variables], weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: keras.optimizers.SGD(), "its optimizer: Adam; here: SGD"),
        (lambda: keras.optimizers.Adam(amsgrad=True), "variables, here are"),
    ],
)
def test_another_optimizer_is_refused(run, change, message):
    model = plain()
    model.compile(change(), LOSS)
    with pytest.raises(ValueError, match=message):
        fit(model, run, 3)


def test_fewer_epochs_than_done_are_refused(run):
    with pytest.raises(ValueError, match="is of epoch 2, but fit is to end"):
        fit(plain(), run, 1)


def test_what_a_killed_process_left_is_swept(run):
    (run / ".new-0123-epoch-00003.checkpoint").write_bytes(b"half")
    (run / "mine.txt").write_text("mine")
    fit(plain(), run, 3)
    assert files(run) == [
        "epoch-00002.checkpoint",
        "epoch-00003.checkpoint",
        "mine.txt",
    ]


def test_a_checkpoint_holds_no_code(two_epochs):
    """JSON and raw numbers: nothing in it is ever unpickled."""
    with zipfile.ZipFile(two_epochs / "epoch-00002.checkpoint") as archive:
        names = archive.namelist()
        assert names[0] == "state.json"
        assert names[1:] == [str(i) for i in range(len(state(plain_built())))]
        assert json.loads(archive.read("state.json"))["epoch"] == 2


def plain_built():
    model = plain()
    model.optimizer.build(model.trainable_variables)
    return model


# === Full disks and folders that cannot be written to ===


def test_a_full_disk_ends_in_a_clear_error(run, three_epochs):
    """A real limit on the size of a file."""
    before = {p: p.read_bytes() for p in run.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))

    try:
        with pytest.raises(OSError, match="cannot be written") as caught:
            fit(plain(), run, 3, callbacks=[Fill()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    good = run / "epoch-00002.checkpoint"
    assert f"The last good one is '{good}'" in str(caught.value)
    assert {p: p.read_bytes() for p in run.iterdir()} == before
    part = plain(2)
    fit(part, run, 3)
    assert_same(state(part), three_epochs)


def test_an_error_of_the_disk_leaves_nothing_half(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*none before it"):
        fit(plain(), tmp_path, 1)
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("mine")
    model = plain()
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(OSError, match="cannot be written to.*file"):
        fit(model, tmp_path / "file" / "run", 1)
    assert_same([variable.numpy() for variable in model.variables], before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": ""}, "`folder`"),
        ({"folder": None}, "`folder`"),
        ({"folder": "run", "data": [1]}, "`data`"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(**arguments)


# === Divergence ===


@keras.saving.register_keras_serializable("test_callbacks")
class Poisoned(keras.losses.Loss):
    """A squared difference that is NaN from one call on."""

    def __init__(self, value, at):
        super().__init__(name="poisoned")
        self.value = value
        self.at = at
        self.calls = tf.Variable(0, trainable=False)

    def call(self, y_true, y_pred):
        calls = self.calls.assign_add(1)
        good = tf.reduce_sum(tf.square(y_true - y_pred), axis=-1)
        return tf.where(calls > self.at, tf.constant(self.value), good)


def poisoned(value, at, weight=1.0):
    keras.utils.set_random_seed(0)
    made = tfkd.Distiller(
        student=network(2, "student"),
        teacher=network(2, "teacher"),
        matches=[
            tfkd.Match("mse", at="features", name="fine"),
            tfkd.Match(Poisoned(value, at), name="culprit", weight=weight),
        ],
    )
    made.compile("sgd", LOSS, metrics=["accuracy"])
    return made


class Slow(keras.callbacks.Callback):
    """Wants each step's logs at once."""

    def on_train_batch_end(self, batch, logs=None):
        assert logs


@pytest.mark.parametrize("others", [[], [Slow()]])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_the_match_the_step_and_the_checkpoint(tmp_path, value, others):
    """Step 10 of 4 in an epoch is the second of the third."""
    data = digits()
    checkpoints = Checkpoints(tmp_path, data=data)
    stop = StopOnDivergence(checkpoints)
    with pytest.raises(DivergedError) as caught:
        poisoned(value, at=9).fit(
            data.train,
            epochs=5,
            verbose=0,
            callbacks=[stop, checkpoints, *others],
        )
    message = str(caught.value)
    assert message.startswith(
        f"The loss is {value} at step 10 (epoch 3, step 2 of it): match "
        f"'culprit' is {value}. Go back to "
        f"'{tmp_path / 'epoch-00002.checkpoint'}'"
    )
    assert files(tmp_path) == [
        "epoch-00001.checkpoint",
        "epoch-00002.checkpoint",
    ]


def test_a_term_that_is_switched_off_does_not_stop(tmp_path):
    model = poisoned(float("nan"), at=0, weight=0.0)
    model.fit(digits().train, verbose=0, callbacks=[StopOnDivergence()])
    assert "culprit" not in model.terms
    assert set(model.terms) == {"label_loss", "fine"}


def test_weights_that_overflowed_are_told_from_a_term():
    model = plain()
    model.compile(keras.optimizers.SGD(1e38), LOSS)
    with pytest.raises(DivergedError, match="label_loss is nan. Start anew"):
        model.fit(
            digits().train, epochs=3, verbose=0, callbacks=[StopOnDivergence()]
        )


def test_no_checkpoint_of_weights_that_are_not_finite(tmp_path, caplog):
    """The last step of epoch 2 spoils the weights, and its loss is fine."""

    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                kernel = self.model.student.layers[-1].kernel
                kernel.assign(tf.fill(kernel.shape, float("nan")))

    with caplog.at_level(logging.WARNING, "tfkd"):
        checkpoints, _ = fit(plain(), tmp_path, 3, callbacks=[Spoil()])
    assert files(tmp_path) == ["epoch-00001.checkpoint"]
    assert checkpoints.last.name == "epoch-00001.checkpoint"
    assert re.search(
        "No checkpoint of epoch 2: '.*/kernel' is not finite", caplog.text
    )
    assert "No checkpoint of epoch 3: the loss is nan" in caplog.text


def test_a_validation_does_not_run_on_what_diverged():
    class Validated(keras.callbacks.Callback):
        batches = 0

        def on_test_batch_end(self, batch, logs=None):
            Validated.batches += 1

    data = digits()
    with pytest.raises(DivergedError, match="step 1 of it"):
        poisoned(float("nan"), at=0).fit(
            data.train,
            validation_data=data.validation,
            verbose=0,
            callbacks=[StopOnDivergence(), Validated(), Slow()],
        )
    assert Validated.batches == 0
