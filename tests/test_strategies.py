"""Several workers, and what Keras cannot do under a strategy."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import replicated
import tensorflow as tf

import tfkd

TESTS = pathlib.Path(__file__).parent
SECONDS = 540  # For workers that wait for one another.


def _start_worker(index, addresses, program):
    """The process of one worker; `program` is what Python is given.

    Without addresses it is alone.
    """
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    task = {"type": "worker", "index": index}
    if addresses:
        environment["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": addresses}, "task": task}
        )
    return subprocess.Popen(
        [sys.executable, *program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run_workers(*programs):
    """Output of one process for each program, which are workers together."""
    with socket.socket() as one, socket.socket() as other:
        sockets = [one, other]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    workers = [
        _start_worker(index, addresses, program)
        for index, program in enumerate(programs)
    ]
    try:
        return [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()


def test_two_workers_equal_one_device(tmp_path, float64):
    """As of two replicas: fit, evaluate and predict, distilled and transferred.

    Each worker reads its share of the same dataset, and ends with the same
    logs and weights.
    """
    files = [tmp_path / f"{index}.npz" for index in (0, 1)]
    program = TESTS / "replicated.py"
    outputs = _run_workers(*[(program, "worker", file) for file in files])
    expected = replicated.of_workers(tf.distribute.get_strategy())
    for output, file in zip(outputs, files, strict=True):
        assert output.strip().endswith("done"), output[-3000:]
        with np.load(file) as received:
            replicated.assert_equal(dict(received), expected)


_PLAIN = """
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
try:
    model.fit(np.ones([8, 4]), np.ones([8, 3]), batch_size=8, verbose=0)
except ValueError as error:
    assert "PerReplica" in str(error), error
    print("refused")
"""


def test_keras_alone_cannot_fit_with_workers():
    """The fault that the trainer mends; if it is gone, so can the remedy."""
    for output in _run_workers(("-c", _PLAIN), ("-c", _PLAIN)):
        assert output.strip().endswith("refused"), output[-3000:]


# === What is refused ===


@pytest.fixture
def mirrored():
    """A strategy of one device, which claims to have two replicas."""

    class Two(tf.distribute.MirroredStrategy):
        num_replicas_in_sync = 2

    return Two(["CPU:0"])


def _distiller(strategy):
    with strategy.scope():
        student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        teacher = keras.models.clone_model(student)
        return tfkd.Distiller(
            student=student,
            teacher=teacher,
            matches=[tfkd.Match(tfkd.losses.SoftTargets())],
        )


def copied(options):
    """Arguments of `compile`, with an optimizer of the current scope."""
    copy = dict(options)
    if "optimizer" in copy:
        kind = type(copy["optimizer"])
        copy["optimizer"] = kind.from_config(copy["optimizer"].get_config())
    return copy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"steps_per_execution": 2},
            "on 2 replicas. Received: steps_per_execution=2. Leave it out",
        ),
        ({"jit_compile": True}, "for the 2 replicas of a Two. Compile with"),
        (
            {"optimizer": keras.optimizers.SGD(gradient_accumulation_steps=4)},
            "gradient_accumulation_steps=4. Leave it out",
        ),
        (
            {
                "optimizer": keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.SGD(gradient_accumulation_steps=4)
                )
            },
            "gradient_accumulation_steps=4. Leave it out",
        ),
    ],
    ids=["steps", "xla", "accumulation", "scaled"],
)
def test_what_keras_cannot_do_on_replicas_is_refused(
    mirrored, options, message
):
    distiller = _distiller(mirrored)
    with mirrored.scope():
        kept = copied(options)
    with pytest.raises(ValueError, match=message):
        distiller.compile(loss=None, **kept)
    distiller = _distiller(tf.distribute.get_strategy())
    distiller.compile(loss=None, **options)


def test_steps_are_refused_by_position_too(mirrored):
    distiller = _distiller(mirrored)
    with pytest.raises(ValueError, match="steps_per_execution=2"):
        distiller.compile("sgd", None, None, None, None, False, 2)


def test_networks_and_optimizers_of_another_scope_are_refused(mirrored):
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    message = "'sequential.*' was made in the scope of another.*one `with"
    with mirrored.scope(), pytest.raises(ValueError, match=message):
        tfkd.Distiller(student=student)
    distiller = _distiller(mirrored)
    with pytest.raises(ValueError, match=message):
        tfkd.Distiller(student=distiller.student)
    with pytest.raises(ValueError, match="The optimizer was made in"):
        distiller.compile(keras.optimizers.SGD())


def test_no_optimizer_is_needed_to_evaluate():
    distiller = _distiller(tf.distribute.get_strategy())
    distiller.compile(None)
    logs = distiller.evaluate(np.ones([2, 4]), verbose=0, return_dict=True)
    assert logs["loss"] == logs["soft_targets"] > 0


def test_distributions_of_keras_are_refused():
    distiller = _distiller(tf.distribute.get_strategy())
    distribution = keras.distribution.DataParallel(devices=["cpu:0"])
    with (
        distribution.scope(),
        pytest.raises(ValueError, match="DataParallel. Call.*MirroredStrategy"),
    ):
        distiller.compile("sgd")
    distiller.compile("sgd")


# === distill.py --strategy ===


def _distill(*argv):
    return (
        TESTS.parent / "scripts" / "distill.py",
        *("--smoke", "--epochs", "1", "--examples-per-class", "2"),
        *("--method", "kd", *argv),
    )


def test_distill_by_two_workers_is_that_of_one_device(tmp_path):
    """The same history; only the first worker writes, checkpoints too."""
    teacher = tmp_path / "teacher.keras"
    network = tfkd.models.build(
        "vgg4", num_classes=10, input_shape=(32, 32, 1), width=0.0625
    )
    network.save(teacher)
    folders = tmp_path / "one", tmp_path / "two"
    one, two = (
        _distill("--teacher", str(teacher), "--output", str(folder))
        for folder in folders
    )
    worker = (*two, "--strategy", "multiworker", "--resume")
    for output in _run_workers(worker, worker):
        assert "kd  seed 0" in output, output[-3000:]
    alone = _start_worker(0, [], one)
    assert "wrote" in alone.communicate(timeout=SECONDS)[0]
    one, chief = (
        np.genfromtxt(
            folder / "history.csv", delimiter=",", skip_header=1, dtype=float
        )
        for folder in folders
    )
    np.testing.assert_allclose(chief, one, rtol=1e-4)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["one", "teacher.keras", "two"]
    kept = [
        keras.saving.load_model(folder / "student.keras") for folder in folders
    ]
    for ours, theirs in zip(*[k.get_weights() for k in kept], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_workers_without_a_cluster_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(TESTS.parent / "scripts")
    import distill

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    argv = _distill("--strategy", "multiworker", "--output", "run")
    with pytest.raises(SystemExit) as stopped:
        distill.main([str(word) for word in argv[1:]])
    assert stopped.value.code == 2
    assert "needs TF_CONFIG in the environment" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
