"""Every format gives the student's answers, in a process that knows no tfkd."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

import tfkd
from tfkd.export import FORMATS, export_student, runners, with_normalization
from tfkd.trace import find_layer

BATCHES = (1, 7, 96)
ALONE = [name for name in FORMATS if name not in ("keras", "saved_model")]
CLASS_NAMES = [f"digit {label}" for label in range(10)]


def logits_of(student, inputs):
    return student(inputs, training=False).numpy()


def fresh(folder, paths, inputs, *, blocked, sizes=BATCHES):
    """What artefacts return in a new process; dict, (name, size) -> outputs."""
    np.save(folder / "inputs.npy", inputs)
    jobs = {
        (name, size): {
            "path": str(path),
            "results": str(folder / f"{name}-{size}.npz"),
            "batch_size": size,
        }
        for name, path in paths.items()
        for size in sizes
    }
    job = {
        "inputs": str(folder / "inputs.npy"),
        "runs": 0,
        "threads": None,
        "blocked": blocked,
        "imports": [],
        "path": [],
        "artefacts": list(jobs.values()),
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-P", runners.__file__, folder / "job.json"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert process.returncode == 0, process.stderr
    return {
        key: np.load(entry["results"])["outputs"] for key, entry in jobs.items()
    }


@pytest.fixture(scope="module")
def digits():
    """Images of digits, for training and for testing, and test labels."""
    data = tfkd.data.load("digits", batch_size=64)
    train = list(data.train.as_numpy_iterator())
    test = list(data.test.as_numpy_iterator())
    return (
        data,
        *(np.concatenate(x) for x in zip(*train, strict=True)),
        *(np.concatenate(x) for x in zip(*test, strict=True)),
    )


@pytest.fixture(scope="module")
def student(digits):
    """A narrow VGG-4 that knows digits."""
    keras.utils.set_random_seed(0)
    _, images, labels, _, _ = digits
    student = tfkd.models.build(
        "vgg4", num_classes=10, input_shape=(32, 32, 1), width=0.125
    )
    rate = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=160)
    student.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    student.fit(images, labels, batch_size=64, epochs=8, verbose=0)
    return student


@pytest.fixture(scope="module")
def exported(student, digits, tmp_path_factory):
    """The student in all formats: folder and what export_student returned."""
    data, images, _, _, _ = digits
    folder = tmp_path_factory.mktemp("exported")
    artefacts = export_student(
        student,
        folder,
        formats=list(FORMATS),
        calibration=images[:200],
        class_names=CLASS_NAMES,
        normalization=(data.mean, data.std),
        white=data.white,
    )
    return folder, {name: a.path for name, a in artefacts.items()}


@pytest.fixture(scope="module")
def outputs(exported, digits, tmp_path_factory):
    """Outputs on test images of new processes, most without TensorFlow."""
    _, paths = exported
    images = digits[3]
    results = fresh(
        tmp_path_factory.mktemp("alone"),
        {name: paths[name] for name in ALONE},
        images,
        blocked=["tensorflow", "keras", "tfkd"],
    )
    return results | fresh(
        tmp_path_factory.mktemp("tensorflow"),
        {name: paths[name] for name in ("saved_model", "keras")},
        images,
        blocked=["tfkd"],
    )


@pytest.mark.parametrize("size", BATCHES)
def test_float32_formats_equal_the_student(outputs, student, digits, size):
    expected = logits_of(student, digits[3])
    for name in ("keras", "saved_model", "tflite", "onnx"):
        np.testing.assert_allclose(outputs[name, size], expected, atol=1e-5)


@pytest.mark.parametrize("size", BATCHES)
def test_weights_of_16_bits_cost_a_hundredth_of_the_largest_logit(
    outputs, student, digits, size
):
    expected = logits_of(student, digits[3])
    difference = np.abs(outputs["tflite-float16", size] - expected).max()
    assert 0 < difference < 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("size", BATCHES)
def test_8_bits_leave_the_labels(outputs, student, digits, size):
    expected = logits_of(student, digits[3]).argmax(axis=-1)
    assert np.mean(expected == digits[4]) > 0.95
    for name in ("tflite-int8", "tflite-dynamic"):
        answers = outputs[name, size].argmax(axis=-1)
        assert np.mean(answers == expected) >= 0.99


def test_there_is_no_tensorflow_where_it_is_blocked(exported, tmp_path):
    with pytest.raises(AssertionError, match="import of tensorflow halted"):
        fresh(
            tmp_path,
            {"saved_model": exported[1]["saved_model"]},
            np.zeros([1, 32, 32, 1], np.float32),
            blocked=["tensorflow"],
        )


def test_int8_takes_and_gives_int8(exported):
    _, paths = exported
    for name, dtype in (("tflite-int8", np.int8), ("tflite", np.float32)):
        run = _interpreter(paths[name]).get_signature_runner()
        (taken,) = run.get_input_details().values()
        (given,) = run.get_output_details().values()
        assert taken["dtype"] == given["dtype"] == dtype


def test_fewer_bits_are_smaller_files(exported):
    _, paths = exported
    size = {name: path.stat().st_size for name, path in paths.items()}
    assert size["tflite-float16"] < 0.6 * size["tflite"]
    assert size["tflite-int8"] < 0.4 * size["tflite"]


def test_the_saved_model_holds_the_students_weights_alone(exported, student):
    """Compiled and trained, the student has an optimizer too."""
    _, paths = exported
    assert len(student.optimizer.variables) > len(student.weights)
    loaded = tf.saved_model.load(str(paths["saved_model"]))
    assert set(loaded.signatures) == {"serving_default", "serve"}
    assert list(loaded.signatures["serve"].structured_outputs) == ["logits"]
    listed = tf.train.list_variables(
        str(paths["saved_model"] / "variables" / "variables")
    )
    shapes = [s for n, s in listed if n.endswith("VARIABLE_VALUE")]
    assert sorted(shapes) == sorted(list(v.shape) for v in student.weights)


def test_class_names_go_along(exported):
    folder, paths = exported
    asset = paths["saved_model"] / "assets" / "class_names.txt"
    assert asset.read_text().splitlines() == CLASS_NAMES
    content = json.loads((folder / "preprocessing.json").read_text())
    assert content["class_names"] == CLASS_NAMES


def test_preprocessing_is_told(exported, digits):
    folder, _ = exported
    data = digits[0]
    content = json.loads((folder / "preprocessing.json").read_text())
    del content["class_names"]
    assert content == {
        "input_shape": [32, 32, 1],
        "mean": list(data.mean),
        "std": list(data.std),
        "normalization_inside": False,
        "white": 16.0,
    }


def test_onnx_has_names_and_any_batch(exported):
    graph = onnx.load(exported[1]["onnx"]).graph
    for values, name in ((graph.input, "images"), (graph.output, "logits")):
        (value,) = values
        assert value.name == name
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


# === Normalisation inside ===


def test_artefacts_standardise_pixels_themselves(
    make_network, images, tmp_path
):
    student = make_network(seed=3)
    mean, std = np.array([3.0, 120.0]), np.array([2.0, 60.0])
    pixels = (images[0] * std + mean).astype(np.float32)
    report = export_student(
        student,
        tmp_path,
        formats=["keras", "saved_model", "tflite", "tflite-int8", "onnx"],
        check=pixels,
        calibration=pixels,
        normalization=(mean, std),
        normalization_inside=True,
    )
    expected = logits_of(student, images[0])
    for name, artefact in report.items():
        outputs = tfkd.export.predict(artefact.path, pixels)
        close = 0.2 if name == "tflite-int8" else 1e-5
        np.testing.assert_allclose(outputs, expected, atol=close)
        assert artefact.max_difference <= close
    content = json.loads((tmp_path / "preprocessing.json").read_text())
    assert content == {
        "class_names": None,
        "input_shape": [8, 8, 2],
        "mean": None,
        "std": None,
        "normalization_inside": True,
        "white": None,
    }
    names = tf.saved_model.load(str(report["saved_model"].path))
    assert list(names.signatures["serve"].structured_outputs) == ["logits"]


def test_normalization_is_one_formula(make_network, images):
    """(x - 3) / 2, of a constant image."""
    student = make_network()
    wrapped = with_normalization(student, 3.0, 2.0)
    np.testing.assert_allclose(
        logits_of(wrapped, np.full([1, 8, 8, 2], 4.0, np.float32)),
        logits_of(student, np.full([1, 8, 8, 2], 0.5, np.float32)),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("normalization", "text"),
    [
        ((1.0, 0.0), "std > 0"),
        ((1.0, [1.0, 2.0, 3.0]), "one float per channel"),
        ((float("nan"), 1.0), "finite"),
        (1.0, r"\(mean, std\)"),
    ],
)
def test_wrong_normalization_is_refused(
    make_network, tmp_path, normalization, text
):
    with pytest.raises(ValueError, match=text):
        export_student(
            make_network(), tmp_path / "out", normalization=normalization
        )
    assert not any(tmp_path.iterdir())


def test_normalization_inside_needs_a_normalization(make_network, tmp_path):
    with pytest.raises(ValueError, match="normalization=None"):
        export_student(make_network(), tmp_path, normalization_inside=True)


# === Students of every kind ===


def test_resizing_students_compute_as_in_inference(tmp_path):
    """`student.export` normalises by the batch's statistics there."""
    norm = keras.layers.BatchNormalization()
    student = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Resizing(8, 8),
            norm,
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    norm.moving_mean.assign([5.0, -3.0])
    x = np.ones([2, 4, 4, 2], np.float32)
    # (1 - mean) / sqrt(1 + 1e-3)
    expected = np.array([[-4.0, 4.0]] * 2) / np.sqrt(1.001)
    student.export(tmp_path / "keras", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "keras"))
    wrong = loaded.serve(x)
    assert np.abs(wrong - expected).max() > 1.0
    report = export_student(
        student, tmp_path, formats=["saved_model", "tflite", "onnx"]
    )
    for artefact in report.values():
        np.testing.assert_allclose(
            tfkd.export.predict(artefact.path, x), expected, atol=1e-5
        )


def two_headed(structure):
    """A nested network and two heads on it, with weights and biases."""
    images = keras.Input((8, 8, 2), name="images")
    body = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(3, 3, activation="gelu"),
            keras.layers.GlobalAveragePooling2D(),
        ],
        name="body",
    )
    features = body(images)
    heads = {
        name: keras.layers.Dense(
            size, bias_initializer="random_normal", name=name
        )(features)
        for name, size in (("new", 3), ("old", 4))
    }
    return keras.Model(
        images, heads if structure is dict else list(heads.values())
    )


@pytest.mark.parametrize("structure", [dict, list])
def test_two_headed_students_keep_their_heads_names(
    structure, images, tmp_path
):
    student = two_headed(structure)
    x = images[0]
    expected = student(x, training=False)
    if structure is list:
        expected = dict(zip(("new", "old"), expected, strict=True))
    paths = {
        name: artefact.path
        for name, artefact in export_student(
            student, tmp_path, formats=["saved_model", "tflite", "onnx"]
        ).items()
    }
    served = tf.saved_model.load(str(paths["saved_model"])).signatures["serve"]
    run = _interpreter(paths["tflite"]).get_signature_runner()
    session = onnxruntime.InferenceSession(paths["onnx"])
    names = [output.name for output in session.get_outputs()]
    for outputs in (
        served(images=x),
        run(images=x),
        dict(zip(names, session.run(names, {"images": x}), strict=True)),
    ):
        assert set(outputs) == {"new", "old"}
        for name, value in expected.items():
            np.testing.assert_allclose(outputs[name], value, atol=1e-5)


def test_students_of_two_inputs_are_calibrated(tmp_path):
    left, right = (keras.Input((4,), name=n) for n in ("left", "right"))
    student = keras.Model(
        {"left": left, "right": right},
        keras.layers.Dense(3)(keras.layers.Concatenate()([left, right])),
    )
    rng = np.random.default_rng(0)
    x = {n: rng.normal(size=(20, 4)).astype("f4") for n in ("left", "right")}
    report = export_student(
        student,
        tmp_path,
        formats=["tflite", "tflite-int8", "onnx"],
        calibration=x,
    )
    run = _interpreter(report["tflite"].path).get_signature_runner()
    (outputs,) = run(**x).values()
    np.testing.assert_allclose(outputs, student(x), atol=1e-5)
    content = json.loads((tmp_path / "preprocessing.json").read_text())
    assert content["input_shape"] is None


_MIRRORED = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
import keras
import numpy as np
from tfkd.export import export_student

keras.config.set_dtype_policy("mixed_bfloat16")
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    student = keras.Sequential([
        keras.Input((4, 4, 2)),
        keras.layers.Conv2D(3, 3),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(3, dtype="float32"),
    ])
    student.compile("adam", "mse")
keras.config.set_dtype_policy("float32")
x = np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype("float32")
student.fit(x, np.zeros([16, 3]), batch_size=8, verbose=0)
report = export_student(
    student, sys.argv[1], formats=["keras", "saved_model", "onnx"], check=x
)
assert report["keras"].max_difference == 0.0, report
assert all(a.max_difference < 0.1 for a in report.values()), report
print(len(tf.train.list_variables(
    sys.argv[1] + "/saved_model/variables/variables")))
"""


def test_students_of_a_mirrored_strategy_are_exported(tmp_path):
    """Trained on two replicas in 16 bits; in a process with two devices."""
    process = subprocess.run(
        [sys.executable, "-c", _MIRRORED, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    # Of one replica: kernel, bias; four of the norm; kernel, bias; the graph.
    assert int(process.stdout) == 9


def test_lookup_tables_go_along(tmp_path):
    student = keras.Sequential(
        [
            keras.Input((2,), dtype="int64"),
            keras.layers.IntegerLookup(vocabulary=[7, 9]),
            keras.layers.Embedding(3, 2),
        ]
    )
    x = np.array([[7, 9], [8, 7]])
    report = export_student(student, tmp_path, formats=["saved_model"], check=x)
    assert report["saved_model"].max_difference == 0.0


# === Layers that a format lacks ===


def with_layer(function):
    """A network with a nested layer that computes `function`."""
    inner = keras.Sequential(
        [keras.Input((4, 4, 2)), keras.layers.Lambda(function, name="culprit")],
        name="inner",
    )
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(2, 1, name="innocent"),
            inner,
            keras.layers.Flatten(),
        ],
        name="net",
    )


@pytest.mark.parametrize(
    "name", ["saved_model", "tflite", "tflite-int8", "onnx"]
)
def test_unsupported_layers_are_named_and_leave_no_file(name, tmp_path):
    if name == "saved_model":
        student = with_layer(
            lambda x: tf.ensure_shape(
                tf.py_function(lambda y: y, [x], tf.float32), x.shape
            )
        )
        operation = "EagerPyFunc"
    else:
        student = with_layer(lambda x: tf.linalg.svd(x, compute_uv=False))
        operation = "Svd"
    with pytest.raises(
        ValueError,
        match=rf"'net' .* {name}, .*: 'inner/culprit' \({operation}\)\. ",
    ):
        export_student(
            student,
            tmp_path / "out",
            formats=["keras", name],
            calibration=np.ones([3, 4, 4, 2], np.float32),
        )
    assert not any(tmp_path.iterdir())
    # The layers' own methods are back.
    assert "call" not in find_layer(student, "culprit").__dict__


def test_a_missing_converter_is_told_before_anything_is_written(
    make_network, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ImportError, match="pip install onnx tf2onnx"):
        export_student(make_network(), tmp_path / "out", formats=["onnx"])
    assert not any(tmp_path.iterdir())


# === Calibration ===


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        (None, "calibration=None"),
        (np.zeros([5, 8, 8, 3], "f4"), r"Received: shape \(5, 8, 8, 3\)"),
        (np.zeros([8, 8, 2], "f4"), r"Received: shape \(8, 8, 2\)"),
        (np.zeros([0, 8, 8, 2], "f4"), "at least one example"),
        (np.zeros([5, 8, 8, 2], np.uint8), "Received: .*uint8"),
        (np.full([5, 8, 8, 2], np.nan, "f4"), "NaN or infinity"),
        ({"x": np.zeros([5, 8, 8, 2], "f4")}, "structure .* dict"),
    ],
    ids=["none", "channels", "rank", "empty", "dtype", "nan", "structure"],
)
def test_wrong_calibration_is_refused(
    make_network, tmp_path, calibration, text
):
    with pytest.raises(ValueError, match=text):
        export_student(
            make_network(),
            tmp_path / "out",
            formats=["tflite", "tflite-int8"],
            calibration=calibration,
        )
    assert not any(tmp_path.iterdir())


# === TensorFlow Serving ===


def test_a_version_makes_the_layout_of_tensorflow_serving(
    make_network, images, tmp_path
):
    student = make_network()
    for version in (1, 2):
        report = export_student(
            student,
            tmp_path,
            formats=["saved_model"],
            version=version,
            check=images[0],
        )
        path = tmp_path / "model" / str(version)
        assert report["saved_model"].path == path
        assert report["saved_model"].max_difference < 1e-5
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["1", "2"]
    with pytest.raises(ValueError, match="`version`"):
        export_student(student, tmp_path, version=0)


@pytest.mark.parametrize(
    "names",
    [["a", "b"], ["a", "b", "c\nd"], ["a", "b", " c"], ["a", "b", 3], "abc"],
    ids=["two", "lines", "blank", "number", "text"],
)
def test_wrong_class_names_are_refused(make_network, tmp_path, names):
    with pytest.raises(ValueError, match="for each of 3 classes"):
        export_student(make_network(), tmp_path / "out", class_names=names)
    assert not any(tmp_path.iterdir())


def _interpreter(path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path))
