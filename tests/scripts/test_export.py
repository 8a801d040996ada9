"""scripts/export.py: its numbers, its files, its exit codes."""

import importlib
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import export
import keras
import numpy as np
import pytest
import refusals

import tfkd
from tfkd.export import FORMATS, predict

SIZE = (32, 32, 1)
FORMAT_LIST = ("saved_model", "tflite", "tflite-int8", "onnx")
IMAGES = 50  # of --smoke


@pytest.fixture(scope="module")
def digits():
    return tfkd.data.load("digits", batch_size=400)


def linear(
    digits, folder, name, scale=1.0, common=0.0, flat=keras.layers.Flatten
):
    """A file with logits `scale (m_c . x - |m_c|^2 / 2) + common sum(x)`.

    Here m_c is the mean of class c, so that the largest is that of the
    nearest mean.
    """
    parts = zip(*digits.train.as_numpy_iterator(), strict=True)
    images, labels = map(np.concatenate, parts)
    means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
    means = means.reshape(10, -1)
    model = keras.Sequential(
        [
            keras.Input(SIZE, name="images"),
            flat(),
            keras.layers.Dense(10, name="logits"),
        ],
        name=name,
    )
    bias = -np.square(means).sum(axis=1) / 2
    model.set_weights([scale * means.T + common, scale * bias])
    file = folder / f"{name}.keras"
    model.save(file)
    return file


def teacher_file(folder):
    model = tfkd.models.build(
        "vgg4", num_classes=10, input_shape=SIZE, width=0.25
    )
    model.save(folder / "teacher.keras")
    return folder / "teacher.keras"


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """A student of nearest means and an untrained teacher."""
    folder = tmp_path_factory.mktemp("networks")
    return linear(digits, folder, "means", 0.02), teacher_file(folder)


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """Folder and exit code of one run of everything."""
    student, teacher = files
    output = tmp_path_factory.mktemp("run") / "out"
    code = export.main(
        [
            str(student),
            *("--formats", ",".join(FORMAT_LIST)),
            *("--teacher", str(teacher)),
            *("--check", "0.95", "--output", str(output)),
            *("--serving", "--normalize", "--smoke"),
        ]
    )
    return output, code


def load(output, name):
    return json.loads((output / name).read_text())


def pixels_and_labels(digits):
    """The test images that a smoke run draws, in the units of the source."""
    images, labels = map(
        np.concatenate, zip(*digits.test.as_numpy_iterator(), strict=True)
    )
    drawn = np.random.RandomState(0).permutation(len(images))[:IMAGES]
    drawn = np.sort(drawn)
    return images[drawn] * digits.std + digits.mean, labels[drawn]


def test_writes_what_was_asked_for(run):
    output, code = run
    assert code == 0
    assert {path.name for path in output.iterdir()} == {
        "model",
        *(FORMATS[name] for name in FORMAT_LIST[1:]),
        "preprocessing.json",
        "config.json",
        "report.json",
        "report.md",
        "artefacts.png",
    }
    assert (output / "model" / "1" / "saved_model.pb").is_file()
    assert load(output, "preprocessing.json")["normalization_inside"] is True
    assert load(output, "config.json")["script"] == "export"


def test_reports_what_the_files_say(run, digits):
    """Accuracies and agreements by this process, from pixels."""
    output, _ = run
    pixels, labels = pixels_and_labels(digits)
    assert pixels.min() > -1e-5
    assert 15.0 < pixels.max() < 16.00001
    report = load(output, "report.json")
    assert report["images"] == IMAGES
    artefacts = report["artefacts"]
    assert list(artefacts) == ["teacher", "student", *FORMAT_LIST]
    expected = predict(output / "student.tflite", pixels)
    for name in FORMAT_LIST:
        entry = artefacts[name]
        outputs = predict(output / entry["file"], pixels)
        answers = outputs.argmax(axis=-1)
        assert entry["accuracy"] == pytest.approx(np.mean(answers == labels))
        assert entry["label_agreement"] == pytest.approx(
            np.mean(answers == expected.argmax(axis=-1))
        )
    for name in ("student", "saved_model", "tflite", "onnx"):
        assert artefacts[name]["max_difference"] < 1e-3
        assert artefacts[name]["label_agreement"] == 1.0
        assert artefacts[name]["accuracy"] > 0.85
    assert artefacts["teacher"]["label_agreement"] is None
    assert artefacts["tflite"]["largest_output"] == pytest.approx(
        np.abs(expected).max(), rel=1e-5
    )


def test_sizes_and_times_are_consistent(run):
    output, _ = run
    artefacts = load(output, "report.json")["artefacts"]
    for name in FORMAT_LIST[1:]:
        size = (output / FORMATS[name]).stat().st_size
        assert artefacts[name]["bytes"] == size
        assert artefacts[name]["compression"] == pytest.approx(
            artefacts["teacher"]["bytes"] / size
        )
        assert artefacts[name]["parameters"] == 32 * 32 * 10 + 10
    for entry in artefacts.values():
        assert 0 < entry["milliseconds"] <= entry["slow_milliseconds"]
    runtimes = [entry["runtime"] for entry in artefacts.values()]
    assert runtimes == [
        *("Keras", "Keras", "TensorFlow"),
        *("LiteRT", "LiteRT", "onnxruntime"),
    ]


def test_the_report_tells_all_in_words(run):
    output, _ = run
    text = (output / "report.md").read_text()
    for name in ("teacher", "student", *FORMAT_LIST):
        assert f"\n| {name} " in text
    assert "at least 95 %" in text
    assert "(artefacts.png)" in text


OWN_LAYERS = """
import keras

@keras.saving.register_keras_serializable("own")
class Flat(keras.layers.Flatten):
    pass
"""


def test_fails_where_an_artefact_disagrees(
    digits, tmp_path, capsys, monkeypatch
):
    """Eight bits cannot tell logits of a large common part apart.

    The student has a layer from a module of the user, too, which the process
    that measures it must import.
    """
    (tmp_path / "own_layers.py").write_text(OWN_LAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    flat = importlib.import_module("own_layers").Flat
    student = linear(digits, tmp_path, "hazy", 2e-5, common=0.1, flat=flat)
    output = tmp_path / "out"
    code = export.main(
        [
            str(student),
            *("--formats", "tflite,tflite-int8", "--smoke"),
            *("--check", "0.9", "--output", str(output)),
        ]
    )
    assert code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: tflite-int8 gives" in line
    assert "less than 90 %" in line
    report = load(output, "report.json")
    assert report["below"] == ["tflite-int8"]
    assert report["artefacts"]["tflite"]["label_agreement"] == 1.0
    assert "Fails the check" in (output / "report.md").read_text()


def refused(argv, capsys):
    """The one line with which the script refuses its arguments."""
    return refusals.refused(export.main, [*argv, "--smoke"], capsys)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--formats", "tflite,onyx"], "not 'onyx'"),
        (["--formats", "tflite", "--serving"], "only with saved_model"),
        (["--check", "1.5"], "from 0 to 1"),
        (["--runs", "49"], ">= 50"),
        (["--teacher", "nothing.keras"], "No file"),
        (["--dataset", "idx:nowhere"], "--dataset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_refused_in_one_line(
    files, tmp_path, capsys, options, text
):
    output = tmp_path / "out"
    line = refused([files[0], *options, "--output", output], capsys)
    assert text in line
    assert not output.exists()


def test_a_student_of_other_classes_is_called_a_student(tmp_path, capsys):
    student = keras.Sequential(
        [keras.Input(SIZE), keras.layers.Flatten(), keras.layers.Dense(7)],
        name="seven",
    )
    student.save(tmp_path / "seven.keras")
    line = refused([tmp_path / "seven.keras"], capsys)
    assert "STUDENT.keras: student 'seven' returns (None, 7), but" in line


def test_a_layer_that_a_format_lacks_is_named(tmp_path, capsys):
    student = keras.Sequential(
        [
            keras.Input(SIZE),
            keras.layers.Reshape((32, 32)),
            keras.layers.LSTM(2, name="reader"),
            keras.layers.Dense(10),
        ]
    )
    student.save(tmp_path / "student.keras")
    output = tmp_path / "out"
    argv = [tmp_path / "student.keras", "--formats", "tflite", "--smoke"]
    with pytest.raises(SystemExit) as stopped:
        export.main([str(argument) for argument in [*argv, "--output", output]])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'reader'" in line
    assert not output.exists()


def test_a_missing_runtime_is_told_first(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = tmp_path / "out"
    line = refused([files[0], "--formats", "onnx", "--output", output], capsys)
    assert "pip install onnxruntime" in line


def test_an_earlier_run_is_replaced_on_request_alone(files, run, capsys):
    before = (run[0] / "report.json").read_bytes()
    line = refused(
        [files[0], "--formats", "tflite", "--output", run[0]], capsys
    )
    assert "--overwrite" in line
    assert (run[0] / "report.json").read_bytes() == before


def test_exports_one_head_of_two(files, tmp_path, capsys):
    student = keras.saving.load_model(files[0])
    inputs = keras.Input(SIZE)
    logits = student(inputs)
    other = keras.layers.Dense(3, name="other")(logits)
    keras.Model(inputs, [logits, other], name="two").save(
        tmp_path / "two.keras"
    )
    argv = [tmp_path / "two.keras", "--formats", "tflite"]
    line = refused(argv, capsys)
    assert "'two' has the outputs 'means', 'other', which --head choo" in line
    line = refused([*argv, "--head", "third"], capsys)
    assert "has the outputs 'means', 'other', not 'third'" in line
    output = tmp_path / "out"
    argv += ["--head", "means", "--smoke", "--output", output]
    assert export.main([str(argument) for argument in argv]) == 0
    x = np.random.default_rng(0).normal(size=(3, *SIZE)).astype(np.float32)
    np.testing.assert_allclose(
        predict(output / "student.tflite", x), student(x), atol=1e-4
    )
