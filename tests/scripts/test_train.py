"""Tests of scripts/train.py."""

import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import refusals
from prepared import photograph

from tfkd import data

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import common
import train

TINY = ["--smoke", "--network", "vgg4", "--examples-per-class", "4"]


def refused(argv, capsys):
    """The one line with which the script refuses its arguments."""
    return refusals.refused(train.main, [*TINY, *argv], capsys)


@pytest.fixture
def no_training(monkeypatch):
    """Makes training a failure of the test."""

    def fail(*args, **kwargs):
        raise AssertionError("Training began.")

    monkeypatch.setattr(common, "fit", fail)


def test_writes_the_network_whose_accuracies_it_prints(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(common, "SAVED_MODELS", tmp_path)
    assert train.main([*TINY, "--epochs", "3"]) == 0
    (file,) = tmp_path.iterdir()
    assert file.name == "vgg4-digits.keras"
    network = keras.saving.load_model(file)
    digits = data.load("digits", batch_size=512)
    common.check_teacher(network, digits)
    printed = re.search(
        r"^validation (.*) %, test (.*) %$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    shown = dict(zip(("validation", "test"), printed.groups(), strict=True))
    for split in shown:
        x, y = next(iter(getattr(digits, split)))
        correct = np.argmax(network(x, training=False), axis=-1) == y
        assert shown[split] == f"{100 * np.mean(correct):.1f}"


def test_crd_prints_the_last_epoch_and_the_best(tmp_path, capsys):
    argv = [*TINY, "--protocol", "crd", "--epochs", "3"]
    assert train.main([*argv, "--output", str(tmp_path / "net.keras")]) == 0
    printed = capsys.readouterr().out
    epochs = re.findall(r"^epoch +\d+ .* test (.*) %$", printed, re.MULTILINE)
    assert len(epochs) == 3
    last, best, epoch = re.search(
        r"^test (.*) % after the last epoch, (.*) % after the best, epoch (.)$",
        printed,
        re.MULTILINE,
    ).groups()
    assert last == epochs[-1]
    assert best == max(epochs, key=float) == epochs[int(epoch) - 1]


def test_trains_on_a_folder_of_photographs(tmp_path, capsys):
    """One of 24 is corrupt; tenths of 11 and 12 are one each."""
    for part, number in (("train", 12), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(number):
                file = tmp_path / "pets" / part / name / f"{i:02}.jpg"
                file.write_bytes(photograph(20 * i))
    (tmp_path / "pets" / "train" / "a" / "11.jpg").write_bytes(b"damaged")
    argv = ["--dataset", f"folder:{tmp_path / 'pets'}", "--image-size", "32"]
    assert "11.jpg" in refused(argv, capsys)
    output = tmp_path / "pets.keras"
    argv = [*TINY, *argv, "--skip-corrupt", "--output", str(output)]
    assert train.main(argv) == 0
    assert (
        "8 training, 2 validation, 4 test images of shape (32, 32, 3); "
        "1 corrupt ones left out"
    ) in capsys.readouterr().out
    assert keras.saving.load_model(output).input_shape == (None, 32, 32, 3)


def test_missing_data_are_refused_in_one_line(tmp_path, capsys, no_training):
    line = refused(
        ["--dataset", "cifar100", "--data-dir", str(tmp_path)], capsys
    )
    assert f"No prepared data of 'cifar100' in {tmp_path / 'cifar100'}" in line


def test_seed_decides_the_weights():
    digits = data.load("digits", batch_size=8)
    first, same, other = (
        common.build(common.RECIPE._replace(seed=seed), digits).get_weights()
        for seed in (5, 5, 6)
    )
    for a, b in zip(first, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0] - other[0]).max() > 1e-2


def test_existing_file_needs_overwrite(tmp_path, capsys, no_training):
    file = tmp_path / "mine.keras"
    file.write_text("old")
    line = refused(["--output", str(file)], capsys)
    assert "exists" in line
    assert "--overwrite" in line
    assert file.read_text() == "old"


def test_overwrite_replaces_the_file_at_the_end(tmp_path, monkeypatch):
    file = tmp_path / "mine.keras"
    file.write_text("old")

    def stop(*args, **kwargs):
        assert file.read_text() == "old"
        raise KeyboardInterrupt

    argv = [*TINY, "--output", str(file), "--overwrite"]
    with monkeypatch.context() as patch:
        patch.setattr(common, "evaluate", stop)
        assert train.main(argv) == 130
    assert file.read_text() == "old"
    assert train.main(argv) == 0
    assert keras.saving.load_model(file).name == "vgg4"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--network", "vgg"], r"--network.*'vgg4', 'vgg9'.*Did you mean"),
        (["--dataset", "digit"], r"--dataset.*'digits'"),
        (["--image-size", "8"], r"--dataset.*`image_size`.*is only for"),
        (["--download"], r"--dataset.*`download`.*is only for"),
        (["--width", "-1"], r"--width: expected a finite number > 0"),
        (["--epochs", "0"], r"--epochs: expected an integer >= 1"),
        (["--seed", "-1"], r"--seed: expected an integer from 0 to"),
        (["--batch-size", "x"], r"--batch-size: expected an integer >= 1"),
        (["--learning-rate", "0"], r"--learning-rate: expected a finite"),
        (["--examples-per-class", "-2"], r"--examples-per-class: expected"),
        (["--examples-per-class", "5000"], r"--dataset.*at most"),
        (["--output", "model.h5"], r"--output: expected a file .* \.keras"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    argv, message, capsys, tmp_path, monkeypatch, no_training
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "SAVED_MODELS", tmp_path)
    line = refused(argv, capsys)
    assert re.search(message, line), line
    assert not any(tmp_path.iterdir())


def test_output_that_cannot_be_written_is_refused(
    tmp_path, capsys, no_training
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.keras").mkdir()
    for path in ("file/model.keras", "folder.keras"):
        line = refused(["--output", str(tmp_path / path)], capsys)
        assert "--output" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_diverged_training_writes_nothing(tmp_path, capsys):
    file = tmp_path / "network.keras"
    argv = ["--smoke", "--learning-rate", "1e30", "--output", str(file)]
    assert train.main(argv) == 1
    assert "loss is nan at step 2 (epoch 1," in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
