"""--resume of distill.py, train.py and transfer.py."""

import errno
import fcntl
import json
import os
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from refusals import refused

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import common
import distill
import train
import transfer

TINY = ["--smoke", "--network", "vgg4", "--examples-per-class", "4"]
DISTILL = [
    *("--smoke", "--epochs", "2", "--examples-per-class", "2"),
    *("--method", "ft", "crd", "--teacher", "vgg4"),
]
TRANSFER = [
    *("--smoke", "--methods", "finetune", "lwf", "--source", "vgg4"),
    *("--student", "vgg4"),
]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, tmp_path):
    """Leaves other tests' operations as they are, and saved_models alone."""
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: None
    )
    monkeypatch.setattr(common, "TIMING_SECONDS", 0.01)
    monkeypatch.setattr(common, "SAVED_MODELS", tmp_path / "saved_models")


@pytest.fixture
def killing(monkeypatch):
    """A function that runs `main`, killed after so many checkpoints."""

    def run(main, argv, checkpoints):
        class Mortal(common.Checkpoints):
            written = 0

            def on_epoch_end(self, epoch, logs=None):
                super().on_epoch_end(epoch, logs)
                Mortal.written += 1
                if Mortal.written == checkpoints:
                    raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(common, "Checkpoints", Mortal)
            with pytest.raises(Killed):
                main(argv)

    return run


def assert_same_network(one, other):
    ours, theirs = (
        keras.saving.load_model(path).get_weights() for path in (one, other)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def train_argv(tmp_path):
    output = tmp_path / "out" / "net.keras"
    return [*TINY, "--epochs", "3", "--output", str(output), "--resume"]


# === Going on ===


@pytest.mark.parametrize(
    ("main", "argv", "checkpoints"),
    [
        # Teacher 1; ft's stage 1 and main 1 of 2 | 1; crd 1 of 2.
        (distill.main, DISTILL, (3, 2)),
        # Source 1; the first of two students 1 of 2.
        (transfer.main, TRANSFER, (2,)),
    ],
    ids=["distill", "transfer"],
)
def test_a_killed_run_writes_what_another_does(
    tmp_path, monkeypatch, killing, main, argv, checkpoints
):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([*argv, "--output", str(whole), "--resume"]) == 0
    monkeypatch.setattr(common, "SAVED_MODELS", tmp_path / "other_models")
    argv = [*argv, "--output", str(part), "--resume"]
    for number in checkpoints:
        killing(main, argv, number)
        for made in list(tmp_path.glob("other_models/*.keras")):
            # As of a process that was killed while it wrote the teacher.
            made.rename(made.with_name(f".new-01234567-{made.name}"))
    assert not part.exists()
    assert main(argv) == 0
    assert all(path.name[0] != "." for path in tmp_path.glob("other_models/*"))
    assert_same_network(whole / "student.keras", part / "student.keras")
    assert (whole / "history.csv").read_bytes() == (
        part / "history.csv"
    ).read_bytes()
    assert [path.name for path in tmp_path.glob("part*")] == ["part"]


def test_without_an_earlier_run_it_starts(tmp_path, train_argv):
    """And writes what it writes without --resume."""
    plain = tmp_path / "plain.keras"
    assert train.main([*train_argv[:-2], str(plain)]) == 0
    assert train.main(train_argv) == 0
    assert_same_network(plain, train_argv[-2])
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_complete_run_is_left_as_it_is(tmp_path, capsys):
    output = tmp_path / "run"
    output.mkdir()
    config = {"script": "transfer", "options": {}}
    (output / "config.json").write_text(json.dumps(config))
    argv = [*TRANSFER, "--output", str(output), "--resume"]
    line = refused(transfer.main, argv, capsys)
    assert "was begun with --dataset None, not digits; " in line
    parser = transfer._parser()
    options = vars(parser.parse(argv, transfer.SMOKE))
    options["learning_rate"] = transfer.TRANSFER["short"].learning_rate
    config["options"] = {**options, "resume": False}
    (output / "config.json").write_text(json.dumps(config))
    assert transfer.main(argv) == 0
    assert "is complete" in capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == ["config.json"]


def test_killed_after_its_last_act_but_one(tmp_path, train_argv, capsys):
    """The network is there, and its checkpoints too."""
    assert train.main(train_argv) == 0
    content = pathlib.Path(train_argv[-2]).read_bytes()
    begun = tmp_path / "out" / "net.keras.unfinished"
    begun.mkdir()
    options = vars(train._parser().parse(train_argv, train.SMOKE))
    run = {"script": "train", "options": options}
    (begun / "run.json").write_text(json.dumps(run))
    assert train.main(train_argv) == 0
    assert "is complete" in capsys.readouterr().out
    assert pathlib.Path(train_argv[-2]).read_bytes() == content
    assert not begun.exists()
    # Without them, nothing tells whether it is that of these options.
    assert "exists" in refused(train.main, train_argv, capsys)


def test_what_a_killed_process_left_of_its_output_is_swept(
    train_argv, killing, tmp_path
):
    killing(train.main, train_argv, 1)
    (tmp_path / "out" / ".new-01234567-net.keras").write_bytes(b"half")
    assert train.main(train_argv) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["net.keras"]


# === What is refused ===


def test_other_options_are_refused_by_name(train_argv, killing, capsys):
    killing(train.main, train_argv, 1)
    argv = [*train_argv, "--epochs", "4", "--seed", "9"]
    line = refused(train.main, argv, capsys)
    assert "argument --resume: " in line
    assert "net.keras.unfinished' was begun with " in line
    assert "--epochs 3, not 4" in line
    assert "--seed 0, not 9" in line
    assert "--width" not in line
    assert train.main(train_argv) == 0


def test_another_teacher_in_the_same_file_is_refused(tmp_path, killing, capsys):
    teacher = tmp_path / "teacher.keras"
    argv = [*TINY, "--epochs", "1", "--overwrite", "--output", str(teacher)]
    assert train.main(argv) == 0
    argv = ["--smoke", "--teacher", str(teacher), "--method", "ce"]
    argv += ["--output", str(tmp_path / "run"), "--resume"]
    killing(distill.main, argv, 1)
    teacher.write_bytes(teacher.read_bytes() + b" ")
    assert "another content" in refused(distill.main, argv, capsys)


def test_the_run_of_another_script_is_refused(train_argv, killing, capsys):
    killing(train.main, train_argv, 1)
    argv = [*DISTILL, *train_argv[-3:]]
    assert "is of train.py" in refused(distill.main, argv, capsys)


@pytest.mark.parametrize("main", [distill.main, train.main, transfer.main])
def test_needs_an_output(main, capsys):
    assert "needs --output" in refused(main, ["--smoke", "--resume"], capsys)


def test_a_second_process_is_refused(train_argv, killing, capsys, tmp_path):
    killing(train.main, train_argv, 1)
    lock = tmp_path / "out" / "net.keras.unfinished" / "lock"
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        line = refused(train.main, train_argv, capsys)
    assert "another process is at work" in line
    assert train.main(train_argv) == 0


def test_a_damaged_description_is_refused(
    train_argv, killing, capsys, tmp_path
):
    killing(train.main, train_argv, 1)
    run = tmp_path / "out" / "net.keras.unfinished" / "run.json"
    run.write_text("{")
    assert f"'{run}' is damaged" in refused(train.main, train_argv, capsys)


def test_bad_input_leaves_nothing_behind(tmp_path, capsys):
    argv = [*TINY, "--dataset", "none", "--output", str(tmp_path / "a.keras")]
    refused(train.main, [*argv, "--resume"], capsys)
    assert not list(tmp_path.glob("a.*"))


# === Faults ===


def test_a_full_disk_ends_in_one_line(
    train_argv, monkeypatch, capsys, tmp_path
):
    """In epoch 2; then there is room again."""
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        # The description; a file and its folder an epoch.
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert train.main(train_argv) == 1
    begun = tmp_path / "out" / "net.keras.unfinished"
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert f"The last good one is '{begun / 'epoch-00001.checkpoint'}'" in error
    assert [p.name for p in begun.glob("*.checkpoint")] == [
        "epoch-00001.checkpoint"
    ]
    assert train.main(train_argv) == 0
    assert not begun.exists()


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (False, "at step 3 (epoch 3, step 1 of it): label_loss is nan"),
        (True, "numbers that are not finite. After epoch 2"),
    ],
    ids=["loss", "logits"],
)
def test_divergence_names_what_when_and_the_checkpoint(
    train_argv, monkeypatch, capsys, tmp_path, before, message
):
    """One step an epoch, so that weights spoilt show in the next.

    Or in the validation before it. With a lower rate it goes on.
    """
    evaluate = common.evaluate
    validated = []

    def spoil(model, dataset):
        validated.append(model)
        score = None if before else evaluate(model, dataset)
        if len(validated) == 2:
            kernel = model.layers[-1].kernel
            kernel.assign(tf.fill(kernel.shape, float("inf")))
        return score or evaluate(model, dataset)

    with monkeypatch.context() as patch:
        patch.setattr(common, "evaluate", spoil)
        assert train.main(train_argv) == 1
    good = tmp_path / "out" / "net.keras.unfinished" / "epoch-00001.checkpoint"
    error = capsys.readouterr().err
    assert message in error
    assert f"Go back to '{good}', the last checkpoint" in error
    assert train.main([*train_argv, "--learning-rate", "1e-4"]) == 0
