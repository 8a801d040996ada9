"""scripts/evaluate.py: its numbers, its files, what it refuses."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import evaluate
import keras
import numpy as np
import pytest
import refusals
import tensorflow as tf

from tfkd import data
from tfkd.analysis import noise_robustness
from tfkd.artefacts.sidecar import SIDECAR
from tfkd.export import export_student


@pytest.fixture(scope="module")
def splits():
    """Split -> its images and labels, as arrays."""
    dataset = data.load("digits", batch_size=100)
    return {
        name: tuple(
            np.concatenate(part)
            for part in zip(
                *getattr(dataset, name).as_numpy_iterator(), strict=True
            )
        )
        for name in ("train", "validation", "test")
    }


def nearest_mean(images, labels, scale):
    """Logits `scale (m_c . x - |m_c|^2 / 2)`, m_c the mean of class c.

    The largest is that of the nearest mean.
    """
    means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
    means = means.reshape(10, -1)
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    bias = -np.square(means).sum(axis=1) / 2
    model.set_weights([scale * means.T, scale * bias])
    return model


@pytest.fixture(scope="module")
def files(splits, tmp_path_factory):
    """Two networks in files of one name; the second is unsure."""
    folder = tmp_path_factory.mktemp("networks")
    paths = []
    for name, scale in (("sure", 0.02), ("unsure", 0.001)):
        path = folder / name / "student.keras"
        path.parent.mkdir()
        nearest_mean(*splits["train"], scale).save(path)
        paths.append(str(path))
    return paths


def direct(file, images, labels):
    """Accuracy, cross-entropy and calibration by NumPy, in float64."""
    kernel, bias = map(np.float64, keras.saving.load_model(file).get_weights())
    logits = images.reshape(len(images), -1) @ kernel + bias
    losses = np.log(np.exp(logits).sum(axis=1)) - np.take_along_axis(
        logits, labels[:, None], axis=1
    ).squeeze(1)
    right = logits.argmax(axis=1) == labels
    confidence = np.exp(logits.max(1)) / np.exp(logits).sum(axis=1)
    calibration = 0.0
    for low in np.arange(15) / 15:
        members = (low < confidence) & (confidence <= low + 1 / 15)
        gap = np.sum(right[members]) - np.sum(confidence[members])
        calibration += np.abs(gap) / len(right)
    return np.mean(right), losses.mean(), calibration


def rows(text, table=0):
    """The cells of a Markdown table's rows below its rule."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = blocks[table].splitlines()
    return [[c.strip() for c in line[1:-1].split("|")] for line in lines[2:]]


def test_prints_what_numpy_computes(files, splits, capsys):
    """Also of the training split, which never has the same order twice."""
    for split in ("test", "train"):
        assert evaluate.main([*files, "--split", split]) == 0
        table = rows(capsys.readouterr().out)
        expected = []
        for label, file in zip(("sure", "unsure"), files, strict=True):
            accuracy, loss, calibration = direct(file, *splits[split])
            assert 0.85 < accuracy < 1.0
            expected.append(
                [
                    f"{label}/student.keras",
                    f"{pathlib.Path(file).stat().st_size / 1000:,.0f} kB",
                    "10,250",  # 32 * 32 * 10 + 10
                    f"{100 * accuracy:.1f}",
                    f"{loss:.4f}",
                    f"{100 * calibration:.1f}",
                ]
            )
        assert table == expected
        assert expected[0][4:] != expected[1][4:]


@pytest.fixture(scope="module")
def exports(files, tmp_path_factory):
    """The first network in other formats."""
    folder = tmp_path_factory.mktemp("exports")
    network = keras.saving.load_model(files[0])
    export_student(network, folder, formats=("saved_model", "tflite"))
    (folder / SIDECAR).unlink(missing_ok=True)
    return [str(folder / "saved_model"), str(folder / "student.tflite")]


def test_all_kinds_have_the_same_numbers(files, exports, splits, capsys):
    assert evaluate.main([files[0], *exports]) == 0
    keras_row, *others = rows(capsys.readouterr().out)
    for row, file in zip(others, exports, strict=True):
        path = pathlib.Path(file)
        found = [p for p in (path, *path.rglob("*")) if p.is_file()]
        size = sum(p.stat().st_size for p in found)
        assert row[1] == f"{size / 1000:,.0f} kB"
        assert row[2] == ""
        assert row[3:] == keras_row[3:]


def test_tells_class_from_class(exports, splits, tmp_path, capsys):
    """Also on the screen, for one network."""
    output = tmp_path / "run"
    assert evaluate.main([exports[1], "--output", str(output)]) == 0
    table = rows(capsys.readouterr().out, table=1)
    images, labels = splits["test"]
    means = np.stack(
        [splits["train"][0][splits["train"][1] == c].mean(0) for c in range(10)]
    )
    distances = np.square(images[:, None] - means).sum(axis=(2, 3, 4))
    said = distances.argmin(axis=1)
    matrix = np.zeros([10, 10], int)
    np.add.at(matrix, (labels, said), 1)
    for c, row in enumerate(table):
        right = matrix[c, c]
        assert row == [
            str(c),
            f"{100 * right / matrix[:, c].sum():.1f}",
            f"{100 * right / matrix[c].sum():.1f}",
            str(matrix[c].sum()),
        ]
    written = np.loadtxt(output / "confusion-1.csv", delimiter=",")
    np.testing.assert_array_equal(written, matrix)
    text = (output / "evaluation.json").read_text()
    (network,) = json.loads(text)["networks"]
    assert network["kind"] == "tflite"
    assert network["parameters"] is None
    assert network["classes"][3]["recall"] == matrix[3, 3] / matrix[3].sum()
    report = (output / "report.md").read_text()
    assert rows(report, table=2) == table
    wrong = matrix * (1 - np.eye(10, dtype=int))
    first = rows(report, table=1)[0]
    true, guess = map(int, first[:2])
    assert int(first[2]) == wrong[true, guess] == wrong.max()
    assert "confusion-1.png" in report


def beside(file, folder, **content):
    """A copy of a network with a sidecar."""
    empty = {
        "class_names": None,
        "input_shape": [32, 32, 1],
        "mean": None,
        "std": None,
        "normalization_inside": False,
    }
    folder.mkdir()
    (folder / SIDECAR).write_text(json.dumps(empty | content))
    return shutil.copy(file, folder)


def test_a_network_gets_the_units_it_was_trained_with(
    files, splits, tmp_path, capsys
):
    """The same network, of pixels and of pixels in other units."""
    digits = data.load("digits", batch_size=1)
    mean, std = digits.mean[0], digits.std[0]
    kernel, bias = keras.saving.load_model(files[0]).get_weights()

    def saved(name, scale, shift):
        """Of `scale x + shift`, x the standardised image."""
        model = keras.saving.load_model(files[0])
        bias_of_shift = bias - kernel.sum(axis=0) * shift / scale
        model.set_weights([kernel / scale, bias_of_shift])
        model.save(tmp_path / f"{name}.keras")
        return tmp_path / f"{name}.keras"

    raw = beside(
        saved("raw", std, mean), tmp_path / "a", normalization_inside=True
    )
    # (std x + mean - 3) / 2
    own = beside(
        saved("own", std / 2, (mean - 3) / 2),
        tmp_path / "b",
        mean=[3.0],
        std=[2.0],
    )
    same = beside(files[0], tmp_path / "c", mean=[mean], std=[std])
    output = tmp_path / "run"
    files = [files[0], raw, own, same]
    assert evaluate.main([*map(str, files), "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    expected, *table = rows(out)
    for row in table:
        assert row[3:] == expected[3:]
    (line,) = err.splitlines()
    assert "own.keras: images are standardised with the network's own" in line
    report = (output / "report.md").read_text()
    assert "raw.keras` takes images raw, for the network standardises" in report
    assert (
        "own.keras` takes images with the network's own mean (3.0,)" in report
    )
    for file in (raw, own):
        line = refusal([file, "--noise"], capsys)
        assert "--noise is only for networks that take images as" in line


def test_other_class_names_are_told_or_refused(files, tmp_path, capsys):
    turned = [str(digit) for digit in range(10)][::-1]
    names = {"order": turned, "words": [f"digit {i}" for i in range(10)]}
    paths = {
        name: beside(files[0], tmp_path / name, class_names=value)
        for name, value in names.items()
    }
    assert "in another order, 9, 8, 7" in refusal([paths["order"]], capsys)
    assert evaluate.main([paths["words"], "--split", "validation"]) == 0
    assert "have other names" in capsys.readouterr().err


def test_measures_the_head_that_is_named(files, splits, tmp_path, capsys):
    network = keras.saving.load_model(files[0])
    other = keras.layers.Dense(7, name="source")
    heads = {
        "target": network.outputs[0],
        "source": other(network.layers[0].output),
    }
    path = tmp_path / "two.keras"
    keras.Model(network.inputs, heads).save(path)
    assert evaluate.main([str(path), "--head", "target"]) == 0
    (row,) = rows(capsys.readouterr().out)
    accuracy, *_ = direct(files[0], *splits["test"])
    assert row[3] == f"{100 * accuracy:.1f}"
    assert "returns (7,) for an image" in refusal(
        [path, "--head", "source"], capsys
    )
    for options in ([], ["--head", "logits"]):
        line = refusal([path, *options], capsys)
        assert "Expected one of 'source', 'target', the outputs" in line


def misfits():
    """Models that do not fit digits, with what is wrong of each."""
    x = keras.Input([32, 32, 1])
    flat = keras.layers.Flatten()(x)
    small = keras.Input([28, 28, 1])
    return {
        "classes": keras.Model(x, keras.layers.Dense(7)(flat)),
        "softmax": keras.Model(
            x, keras.layers.Dense(10, activation="softmax")(flat)
        ),
        "shape": keras.Model(
            small, keras.layers.Dense(10)(keras.layers.Flatten()(small))
        ),
    }


def test_refuses_what_does_not_fit(exports, tmp_path, capsys):
    for name, model in misfits().items():
        export_student(model, tmp_path / name, formats=["tflite"])
    for name, message in {
        "classes": "returns (7,) for an image, but 'digits' has 10 classes",
        "softmax": "returns probabilities",
        "shape": "has images of shape (32, 32, 1)",
    }.items():
        line = refusal([tmp_path / name / "student.tflite"], capsys)
        assert message in line
    line = refusal([exports[0], "--noise"], capsys)
    assert "--noise is only for .keras files" in line


def test_noise_columns_are_mean_and_deviation_of_the_draws(
    files, splits, capsys
):
    options = ["--noise", "--stddevs", "0", "2.5", "--draws", "3"]
    assert evaluate.main([files[0], *options]) == 0
    (row,) = rows(capsys.readouterr().out)
    row = row[1:]
    result = noise_robustness(
        keras.saving.load_model(files[0]),
        splits["test"],
        stddevs=[0, 2.5],
        draws=3,
    )
    clean, noisy = 100 * result.accuracies
    assert row[2] == row[5] == f"{clean[0]:.1f}"
    assert row[6] == f"{noisy.mean():.1f} ± {noisy.std(ddof=1):.1f}"
    assert noisy.std() > 0


def test_the_default_levels_are_those_of_the_paper(files, capsys):
    assert evaluate.main([files[0], "--noise", "--draws", "1"]) == 0
    header = capsys.readouterr().out.splitlines()[2]
    names = [name.strip() for name in header[1:-1].split("|")]
    assert names[6:] == [f"% at std 0{s}" for s in ("", ".1", ".2", ".3", ".4")]


def test_writes_all_numbers_and_how_they_were_made(files, tmp_path, capsys):
    """The two networks decide alike, so noise turns the same answers."""
    output = tmp_path / "run"
    options = ["--noise", "--stddevs", "2.5", "--draws", "2"]
    evaluate.main([*files, *options, "--output", str(output)])
    table = rows(capsys.readouterr().out)
    written = {path.name for path in output.iterdir()}
    assert written == {
        "config.json",
        "confusion-1.csv",
        "confusion-1.png",
        "confusion-2.csv",
        "confusion-2.png",
        "evaluation.json",
        "noise.png",
        "report.md",
    }
    networks = json.loads((output / "evaluation.json").read_text())["networks"]
    assert [network["file"] for network in networks] == files
    for network, row in zip(networks, table, strict=True):
        noise = network["noise"]
        assert noise["stddevs"] == [2.5]
        draws = np.array(noise["accuracies"])
        np.testing.assert_allclose(noise["mean"], draws.mean(axis=1))
        np.testing.assert_allclose(noise["std"], draws.std(axis=1, ddof=1))
        assert f"{100 * network['accuracy']:.1f}" == row[3]
        assert f"{network['cross_entropy_nats']:.4f}" == row[4]
        assert f"{100 * network['calibration_error']:.1f}" == row[5]
        assert network["parameters"] == 10250
        assert network["kind"] == "keras"
        path = pathlib.Path(network["file"])
        assert network["bytes"] == path.stat().st_size
    assert networks[0]["noise"] == networks[1]["noise"]
    report = (output / "report.md").read_text()
    assert rows(report) == table
    assert "noise.png" in report
    config = json.loads((output / "config.json").read_text())
    assert config["script"] == "evaluate"
    assert config["options"]["draws"] == 2
    assert tf.io.decode_png((output / "noise.png").read_bytes()).shape[2] == 4


def test_without_noise_it_writes_no_noise(files, tmp_path):
    output = tmp_path / "run"
    evaluate.main([files[0], "--output", str(output)])
    assert not (output / "noise.png").exists()
    assert "noise" not in (output / "report.md").read_text()
    (network,) = json.loads((output / "evaluation.json").read_text())[
        "networks"
    ]
    assert "noise" not in network


def test_one_draw_is_valid_json(files, tmp_path):
    output = tmp_path / "run"
    options = ["--noise", "--draws", "1", "--stddevs", "1"]
    evaluate.main([files[0], *options, "--output", str(output)])
    text = (output / "evaluation.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["networks"][0]["noise"]["std"] is None


def test_replaces_its_own_run_only_when_told(files, tmp_path, capsys):
    output = str(tmp_path / "run")
    arguments = [files[0], "--split", "validation", "--output", output]
    evaluate.main(arguments)
    assert "holds another run" in refusal(arguments, capsys)
    assert evaluate.main([*arguments, "--overwrite"]) == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    arguments = [files[0], "--output", str(other), "--overwrite"]
    assert "never replaced" in refusal(arguments, capsys)
    assert (other / "thesis.txt").read_text() == "mine"


def test_an_interrupted_run_writes_nothing(
    files, tmp_path, monkeypatch, capsys
):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "_outputs", interrupt)
    output = tmp_path / "folder" / "run"
    assert evaluate.main([files[0], "--output", str(output)]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def refusal(arguments, capsys):
    """The one line with which the script refuses its arguments."""
    return refusals.refused(evaluate.main, arguments, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "imagenet"], "argument --dataset: .*'imagenet'"),
        (["--split", "all"], "argument --split: invalid choice: 'all'"),
        (["--noise", "--stddevs", "-0.1"], "number >= 0, not '-0.1'"),
        (["--noise", "--stddevs", "nan"], "number >= 0, not 'nan'"),
        (["--noise", "--stddevs", "1", "1"], "--stddevs: .1.0. given twice"),
        (["--noise", "--draws", "0"], "--draws: expected an integer >= 1"),
        (["--stddevs", "0.5"], "argument --stddevs: only with --noise"),
        (["--draws", "3"], "argument --draws: only with --noise"),
        (["--overwrite"], "argument --overwrite: only with --output"),
    ],
)
def test_refuses_bad_options(options, message, files, capsys, tmp_path):
    output = tmp_path / "run"
    if "--overwrite" not in options:
        options = [*options, "--output", output]
    line = refusal([files[0], *options], capsys)
    assert re.search(message, line)
    assert not output.exists()


def test_refuses_bad_files(files, capsys, tmp_path):
    for name, model in misfits().items():
        model.save(tmp_path / f"{name}.keras")
    (tmp_path / "text.keras").write_text("no network")
    (tmp_path / "notes.txt").write_text("no network")
    (tmp_path / "empty.tflite").touch()
    (tmp_path / "folder").mkdir()
    output = tmp_path / "run"
    for name, message in {
        "classes.keras": "has 10 classes",
        "softmax.keras": "ends in softmax",
        "shape.keras": "has images of shape (32, 32, 1)",
        "text.keras": "is no Keras model",
        "missing.keras": "No artefact at",
        "notes.txt": "ends in .keras, .tflite or .onnx",
        "empty.tflite": "is no LiteRT model",
        "folder": "is no SavedModel",
    }.items():
        arguments = [files[0], tmp_path / name, "--output", output]
        line = refusal(arguments, capsys)
        assert message in line
        assert name in line
    arguments = [files[0], files[0], "--output", output]
    assert "given twice" in refusal(arguments, capsys)
    assert "required: FILE" in refusal([], capsys)
    assert not output.exists()


def test_runs_as_a_command_without_warnings(files, tmp_path):
    """--smoke: 179 validation images, two levels, two draws."""
    third = shutil.copy(files[0], tmp_path)
    command = [sys.executable, evaluate.__file__, *files, third]
    # The tests' own log level would count as a user's wish for logs.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "TF_CPP_MIN_LOG_LEVEL"
    }
    done = subprocess.run(
        [*command, "--noise", "--smoke"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "validation split" in done.stdout
    assert done.stderr == ""
    table = rows(done.stdout)
    assert len(table) == 3
    for *_, noiseless, noisy in table:
        assert "±" not in noiseless
        assert "±" in noisy


def test_help_names_the_options(capsys):
    """A stray percent sign in a help text would end in a traceback."""
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in ("--noise", "--stddevs", "--draws", "--output", "--split"):
        assert option in text
