"""Tests of tfkd.artefacts."""

import json
import re
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.artefacts import Sidecar, open_artefact, read_sidecar
from tfkd.artefacts.sidecar import SIDECAR
from tfkd.export import export_student

GOOD = {
    "class_names": ["cat", "dog", "owl"],
    "input_shape": [8, 8, 2],
    "mean": [1.0, 2.0],
    "std": [0.5, 4.0],
    "normalization_inside": False,
}


def write_onnx(path, kernel, batch="batch", dtype="FLOAT"):
    """Saves `x -> flat(x) @ kernel`, of images [8, 8, 2]."""
    onnx = pytest.importorskip("onnx")
    number = getattr(onnx.TensorProto, dtype)
    info = onnx.helper.make_tensor_value_info
    to_float = onnx.helper.make_node("Cast", ["x"], ["f"], to=1)
    flatten = onnx.helper.make_node("Flatten", ["f"], ["flat"])
    multiply = onnx.helper.make_node("MatMul", ["flat", "kernel"], ["logits"])
    graph = onnx.helper.make_graph(
        [to_float, flatten, multiply],
        "flat",
        [info("x", number, [batch, 8, 8, 2])],
        [info("logits", onnx.TensorProto.FLOAT, [batch, kernel.shape[1]])],
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    onnx.save(model, path)


def flat_model(kernel, batch=None):
    """The same as a Keras model."""
    x = keras.Input(batch_shape=(batch, 8, 8, 2))
    flat = keras.layers.Flatten()(x)
    dense = keras.layers.Dense(kernel.shape[1], use_bias=False, name="logits")
    model = keras.Model(x, dense(flat))
    model.set_weights([kernel])
    return model


@pytest.fixture(scope="module")
def kernel():
    return np.random.default_rng(1).normal(size=[128, 3]).astype(np.float32)


@pytest.fixture(scope="module")
def folder(kernel, tmp_path_factory):
    """One linear network in all formats."""
    folder = tmp_path_factory.mktemp("artefacts")
    formats = ("keras", "saved_model", "tflite")
    export_student(flat_model(kernel), folder, formats=formats)
    return folder


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 8, 8, 2)).astype(np.float32)


def convert(model, path, **options):
    """Writes a LiteRT model by way of a SavedModel."""
    model.export(path.parent / "for_lite", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(path.parent / "for_lite")
    )
    for name, value in options.items():
        setattr(converter, name, value)
    path.write_bytes(converter.convert())
    return path


FILES = ("student.keras", "saved_model", "student.tflite", "student.onnx")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("batch", [1, 7, 96])
def test_all_kinds_compute_the_product(name, batch, kernel, folder, inputs):
    path = folder / name
    if name.endswith("onnx") and not path.exists():
        write_onnx(path, kernel)
    run = open_artefact(path)
    assert run.kind == (path.suffix[1:] or "saved_model")
    assert run.path == path
    assert (run.input_shape, run.num_classes) == ((8, 8, 2), 3)
    assert (run.class_names, run.preprocessing) == (None, None)
    assert run.normalization_inside is False  # as the exporter noted
    assert open_artefact(path, beside=False).normalization_inside is None
    x = np.resize(inputs, [batch, 8, 8, 2])
    expected = x.reshape(batch, -1).astype(np.float64) @ kernel
    outputs = run(x)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, atol=2e-5)


def test_batches_may_change_their_size(folder, inputs):
    run = open_artefact(folder / "student.tflite", threads=1)
    whole = run(inputs)
    for size in (3, 1, 7):
        np.testing.assert_allclose(run(inputs[:size]), whole[:size], atol=1e-5)


@pytest.mark.parametrize("kind", ["keras", "saved_model", "tflite", "onnx"])
def test_fixed_batches_are_filled(kind, kernel, inputs, tmp_path):
    """7 inputs in batches of 4: the last has one too few."""
    path = tmp_path / f"fixed.{kind}"
    model = flat_model(kernel, batch=4)
    if kind == "keras":
        model.save(path)
    elif kind == "onnx":
        write_onnx(path, kernel, batch=4)
    elif kind == "tflite":
        convert(model, path)
    else:
        model.export(path, verbose=False)
    run = open_artefact(path)
    expected = inputs.reshape(7, -1) @ kernel
    np.testing.assert_allclose(run(inputs), expected, atol=2e-5)
    np.testing.assert_allclose(run(inputs[:1]), expected[:1], atol=2e-5)


@pytest.mark.parametrize(
    ("types", "tolerance"), [([tf.float16], 0.02), ([], 0.5)]
)
def test_float16_and_dynamic_range_run(
    types, tolerance, kernel, inputs, tmp_path
):
    path = convert(
        flat_model(kernel),
        tmp_path / "small.tflite",
        optimizations=[tf.lite.Optimize.DEFAULT],
        target_spec=tf.lite.TargetSpec(supported_types=types),
    )
    difference = open_artefact(path)(inputs) - inputs.reshape(7, -1) @ kernel
    assert 1e-6 < np.abs(difference).max() < tolerance


def int8(model, path, inputs):
    return convert(
        model,
        path,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([x[None]] for x in inputs),
        target_spec=tf.lite.TargetSpec(
            supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        ),
        inference_input_type=tf.int8,
        inference_output_type=tf.int8,
    )


def test_int8_quantises_what_goes_in_and_out(inputs, tmp_path):
    """A network that only reshapes gives `scale (q - zero_point)` back.

    What is beyond the calibrated range is the range's end.
    """
    x = keras.Input((8, 8, 2))
    model = keras.Model(x, keras.layers.Flatten()(x))
    path = int8(model, tmp_path / "int8.tflite", inputs)
    from ai_edge_litert.interpreter import Interpreter

    (detail,) = Interpreter(str(path)).get_input_details()
    assert detail["dtype"] == np.int8
    scale, zero_point = detail["quantization"]
    wide = np.concatenate([inputs, 100 * inputs])
    q = np.clip(np.round(wide / np.float64(scale)) + zero_point, -128, 127)
    assert {-128, 127} <= set(q.ravel())
    np.testing.assert_allclose(
        open_artefact(path)(wide),
        scale * (q - zero_point).reshape(14, -1),
        rtol=1e-6,
    )


def test_int8_is_near_the_floats(kernel, inputs, tmp_path):
    """An input's error is uniform in a step, and so is an output's.

    128 terms: sd sqrt(128 / 12) * step * 1, plus what kernels of 8 bits and
    the last rounding do, which is not more; six times that.
    """
    path = int8(flat_model(kernel), tmp_path / "int8.tflite", inputs)
    step = (inputs.max() - inputs.min()) / 255
    bound = 6 * 2 * np.sqrt(128 / 12) * step
    difference = open_artefact(path)(inputs) - inputs.reshape(7, -1) @ kernel
    assert 0 < np.abs(difference).max() < bound
    with pytest.raises(ValueError, match="not finite"):
        open_artefact(path)(np.full([1, 8, 8, 2], np.nan))


def test_lite_models_without_signature_run(kernel, inputs, tmp_path):
    model = flat_model(kernel)
    function = tf.function(model).get_concrete_function(
        tf.TensorSpec([None, 8, 8, 2])
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function], model
    )
    # The converter writes a signature, unless it does not know the function.
    converter._trackable_obj = None
    path = tmp_path / "plain.tflite"
    path.write_bytes(converter.convert())
    from ai_edge_litert.interpreter import Interpreter

    if Interpreter(str(path)).get_signature_list():
        pytest.fail("this file has a signature")
    run = open_artefact(path)
    for size in (7, 2):
        np.testing.assert_allclose(
            run(inputs[:size]),
            inputs[:size].reshape(size, -1) @ kernel,
            atol=2e-5,
        )


def test_whole_numbers_are_not_rounded_silently(kernel, tmp_path):
    path = tmp_path / "bytes.onnx"
    write_onnx(path, kernel, dtype="UINT8")
    run = open_artefact(path)
    pixels = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 2])
    np.testing.assert_allclose(
        run(np.float32(pixels)), pixels.reshape(3, -1) @ kernel, rtol=1e-4
    )
    for wrong in (pixels + 0.5, pixels - 300, pixels + np.nan):
        with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
            run(wrong)


def two_headed():
    x = keras.Input((4,), name="x")
    heads = {
        "target": keras.layers.Dense(3, name="one")(x),
        "source": keras.layers.Dense(5, name="two")(x),
    }
    return keras.Model(x, heads)


@pytest.mark.parametrize("kind", ["keras", "saved_model", "tflite"])
def test_two_heads_are_chosen_by_name(kind, tmp_path):
    model = two_headed()
    path = tmp_path / f"two.{kind}"
    if kind == "keras":
        model.save(path)
    elif kind == "saved_model":
        model.export(path, verbose=False)
    else:
        convert(model, path)
    x = np.random.default_rng(0).normal(size=[6, 4]).astype(np.float32)
    truth = model(x)
    for name, size in (("target", 3), ("source", 5)):
        run = open_artefact(path, output=name)
        assert run.num_classes == size
        np.testing.assert_allclose(run(x), truth[name], atol=1e-5)
    for wrong in (None, "features"):
        with pytest.raises(ValueError, match="'source', 'target', the outputs"):
            open_artefact(path, output=wrong)
    null = dict.fromkeys(GOOD) | {"normalization_inside": False}
    names = {"class_names": GOOD["class_names"]}
    (tmp_path / SIDECAR).write_text(json.dumps(null | names))
    for name, expected in (("target", ("cat", "dog", "owl")), ("source", None)):
        assert open_artefact(path, output=name).class_names == expected


def test_heads_in_a_list_have_their_layers_names(tmp_path):
    heads = two_headed()
    model = keras.Model(heads.input, list(heads.output.values()))
    model.save(tmp_path / "list.keras")
    run = open_artefact(tmp_path / "list.keras", output="two")
    assert run.num_classes == 5


@pytest.mark.parametrize("kind", ["keras", "saved_model", "tflite"])
def test_several_inputs_are_refused_by_name(kind, tmp_path):
    parts = [keras.Input((2,), name=name) for name in ("left", "right")]
    model = keras.Model(parts, keras.layers.Add()(parts))
    path = tmp_path / f"two.{kind}"
    if kind == "keras":
        model.save(path)
    elif kind == "saved_model":
        model.export(path, verbose=False)
    else:
        convert(model, path)
    with pytest.raises(ValueError, match="one input.*2 inputs, .*left.*right"):
        open_artefact(path)


@keras.saving.register_keras_serializable("test_artefacts")
class Subclassed(keras.Model):
    """Knows its input shape only from its first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def test_subclassed_models_run(tmp_path):
    model, x = Subclassed(), np.ones([5, 4], np.float32)
    truth = model(x)
    model.save(tmp_path / "own.keras")
    run = open_artefact(tmp_path / "own.keras")
    assert run.num_classes == 3
    np.testing.assert_allclose(run(np.tile(x, [2, 1]))[:5], truth, atol=1e-6)


def test_sizes_that_may_vary_are_none(tmp_path):
    x = keras.Input((None, None, 2))
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(x, pooled).save(tmp_path / "any.keras")
    run = open_artefact(tmp_path / "any.keras")
    assert run.input_shape == (None, None, 2)
    assert run(np.ones([1, 5, 9, 2])).shape == (1, 2)
    (tmp_path / SIDECAR).write_text(json.dumps(GOOD | {"class_names": None}))
    assert open_artefact(tmp_path / "any.keras").input_shape == (8, 8, 2)


# === Layouts ===


def test_the_highest_version_is_served(kernel, inputs, tmp_path):
    """10 is higher than 9, though not as text."""
    for version, scale in (("9", 1.0), ("10", 2.0), ("notes", 0.0)):
        flat_model(scale * kernel).export(
            tmp_path / "model" / version, verbose=False
        )
    (tmp_path / SIDECAR).write_text(json.dumps(GOOD))
    expected = inputs.reshape(7, -1) @ kernel
    for path, scale in (("model", 2.0), ("model/10", 2.0), ("model/9", 1.0)):
        run = open_artefact(tmp_path / path)
        np.testing.assert_allclose(run(inputs), scale * expected, rtol=1e-4)
        assert run.class_names == ("cat", "dog", "owl")
    shutil.rmtree(tmp_path / "model" / "10" / "variables")
    with pytest.raises(ValueError, match="no SavedModel that can be loaded"):
        open_artefact(tmp_path / "model")
    (tmp_path / "model" / "10" / "saved_model.pb").unlink()
    with pytest.raises(ValueError, match=r"10' is no SavedModel. Expected"):
        open_artefact(tmp_path / "model")


def test_class_names_are_an_asset(folder, tmp_path):
    path = tmp_path / "saved_model"
    shutil.copytree(folder / "saved_model", path)
    names = path / "assets" / "class_names.txt"
    names.parent.mkdir(exist_ok=True)
    names.write_text("cat\nwild dog\nowl\n")
    assert open_artefact(path).class_names == ("cat", "wild dog", "owl")
    (tmp_path / SIDECAR).write_text(json.dumps(GOOD))
    with pytest.raises(ValueError, match="name different classes"):
        open_artefact(path)
    (tmp_path / SIDECAR).unlink()
    for text, message in (
        ("cat\n\nowl\n", "a class name in each line"),
        ("", "a class name in each line"),
        ("cat\ndog\n", "has 3 classes, but beside it 2"),
    ):
        names.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_artefact(path)
    names.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        open_artefact(path)


def test_a_sidecar_says_how_to_preprocess(folder, tmp_path):
    path = shutil.copy(folder / "student.tflite", tmp_path)
    pixels = np.arange(2 * 128.0).reshape(2, 8, 8, 2)
    with pytest.raises(ValueError, match="mean and std"):
        open_artefact(path).preprocess(pixels)
    sidecar = tmp_path / SIDECAR
    sidecar.write_text(json.dumps(GOOD | {"white": 16}))
    run = open_artefact(path)
    assert run.class_names == ("cat", "dog", "owl")
    assert run.preprocessing == ((1.0, 2.0), (0.5, 4.0))
    assert (run.normalization_inside, run.white) == (False, 16)
    expected = (pixels - [1.0, 2.0]) / [0.5, 4.0]
    np.testing.assert_allclose(run.preprocess(pixels), expected)
    nothing = {"mean": None, "std": None, "normalization_inside": True}
    sidecar.write_text(json.dumps(GOOD | nothing))
    run = open_artefact(path)
    assert (run.normalization_inside, run.white) == (True, None)
    np.testing.assert_array_equal(run.preprocess(pixels), pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["cat", "dog"]}, "has 3 classes, but beside it 2"),
        ({"input_shape": [8, 9, 2]}, r"says \(8, 9, 2\)"),
        ({"input_shape": [8, 8]}, r"says \(8, 8\)"),
        ({"mean": [1.0] * 3, "std": [1.0] * 3}, "means of 3 channels"),
    ],
)
def test_refuses_the_sidecar_of_another(change, message, folder, tmp_path):
    path = shutil.copy(folder / "student.keras", tmp_path)
    (tmp_path / SIDECAR).write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=message):
        open_artefact(path)
    run = open_artefact(path, beside=False)
    assert (run.class_names, run.input_shape) == (None, (8, 8, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": "cat"}, "class_names to be a list of strings"),
        ({"class_names": [1, 2]}, "class_names to be a list of strings"),
        ({"class_names": []}, "class_names to be a list of strings"),
        ({"input_shape": [8.0, 8, 2]}, "input_shape to be a list of integers"),
        ({"input_shape": [True, 8, 2]}, "input_shape to be a list of integers"),
        ({"input_shape": [0, 8, 2]}, "input_shape to be a list of integers"),
        ({"input_shape": {"h": 8}}, "input_shape to be a list of integers"),
        ({"mean": "1"}, "mean to be a list of finite numbers"),
        ({"mean": [float("nan"), 1]}, "mean to be a list of finite numbers"),
        ({"mean": [10**400, 1]}, "mean to be a list of finite numbers"),
        ({"mean": [None, 1]}, "mean to be a list of finite numbers"),
        ({"std": [0, 1]}, "std to be a list of finite numbers > 0"),
        ({"std": [float("inf"), 1]}, "std to be a list of finite numbers > 0"),
        ({"std": None}, "mean and std of equally many channels"),
        ({"std": [1.0]}, "mean and std of equally many channels"),
        ({"normalization_inside": 1}, "normalization_inside to be true or"),
        ({"normalization_inside": None}, "normalization_inside to be true or"),
        ({"white": 0}, "white to be a finite number > 0"),
        ({"white": "255"}, "white to be a finite number > 0"),
    ],
)
def test_refuses_broken_sidecars(change, message, tmp_path):
    path = tmp_path / SIDECAR
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=message) as caught:
        read_sidecar(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "is no JSON object"),
        (b'{"class_names": null}', "lacks 'input_shape', 'mean', 'normal"),
        (b" " * (2**24 + 1), "more than 16777216 bytes"),
    ],
)
def test_refuses_what_is_no_sidecar(content, message, tmp_path):
    path = tmp_path / SIDECAR
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_sidecar(path)


def test_reads_what_is_null(tmp_path):
    path = tmp_path / SIDECAR
    content = dict.fromkeys(GOOD) | {"normalization_inside": False}
    path.write_text(json.dumps(content))
    assert read_sidecar(path) == Sidecar(normalization_inside=False)


# === What is wrong ===


@pytest.mark.parametrize("suffix", ["keras", "tflite", "onnx"])
def test_refuses_damaged_files(suffix, kernel, folder, tmp_path):
    whole = folder / f"student.{suffix}"
    if suffix == "onnx":
        whole = tmp_path / "whole.onnx"
        write_onnx(whole, kernel)
    content = whole.read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    rng = np.random.default_rng(0)
    for damaged in (
        b"",
        b"no network",
        rng.bytes(len(content)),
        *(content[: len(content) * i // 8] for i in range(1, 8)),
        content[:-1],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            open_artefact(path)
        assert "that can be loaded" in str(caught.value)


def test_refuses_damaged_saved_models(folder, tmp_path):
    path = tmp_path / "saved_model"
    shutil.copytree(folder / "saved_model", path)
    file = path / "saved_model.pb"
    content = file.read_bytes()
    for damaged in (b"", b"no network", content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="saved_model' is no SavedModel"):
            open_artefact(path)
    file.write_bytes(content)
    weights = path / "variables" / "variables.data-00000-of-00001"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="saved_model' is no SavedModel"):
        open_artefact(path)


def test_refuses_other_paths(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("no network")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="No artefact at"):
        open_artefact(tmp_path / "missing.keras")
    with pytest.raises(ValueError, match="ends in .keras, .tflite or .onnx"):
        open_artefact(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="Expected saved_model.pb in the"):
        open_artefact(tmp_path / "empty")
    (tmp_path / "empty" / "1").mkdir()
    with pytest.raises(ValueError, match="1' is no SavedModel"):
        open_artefact(tmp_path / "empty")


def test_refuses_threads_it_cannot_set(folder):
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="argument `threads`"):
            open_artefact(folder / "student.tflite", threads=wrong)
    for name in ("student.keras", "saved_model"):
        with pytest.raises(ValueError, match="set_intra_op_parallelism"):
            open_artefact(folder / name, threads=2)


@pytest.mark.parametrize("name", ["student.keras", "saved_model"])
@pytest.mark.parametrize(
    "wrong",
    [
        np.ones([2, 8, 8, 3]),
        np.ones([8, 8, 2]),
        np.ones([0, 8, 8, 2]),
        np.full([2, 8, 8, 2], "a"),
        np.float32(1.0),
    ],
)
def test_refuses_wrong_inputs(name, wrong, folder):
    with pytest.raises(ValueError, match="argument `inputs`"):
        open_artefact(folder / name)(wrong)


def test_runs_no_code_of_a_file(tmp_path):
    x = keras.Input((2,))
    y = keras.layers.Lambda(lambda z: z + 1)(x)
    keras.Model(x, y).save(tmp_path / "code.keras")
    with pytest.raises(ValueError, match="[Ll]ambda"):
        open_artefact(tmp_path / "code.keras")


def test_says_what_to_install(kernel, monkeypatch, tmp_path):
    path = tmp_path / "student.onnx"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=re.escape("'tfkd[onnx]'")):
        open_artefact(path)


def test_tensorflow_runs_lite_models_without_litert(
    folder, kernel, inputs, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    run = open_artefact(folder / "student.tflite", threads=1)
    np.testing.assert_allclose(
        run(inputs), inputs.reshape(7, -1) @ kernel, atol=2e-5
    )


def test_a_keras_file_of_unknown_classes_names_them(tmp_path):
    """In few words, for Keras prints the architecture."""

    class Unknown(keras.layers.Flatten):
        pass

    x = keras.Input((4,))
    keras.Model(x, Unknown()(x)).save(tmp_path / "own.keras")
    with pytest.raises(ValueError, match="the class 'Unknown' of your") as told:
        open_artefact(tmp_path / "own.keras")
    assert len(str(told.value)) < 300 + len(str(tmp_path))


def test_half_a_keras_file_is_called_damaged(tmp_path):
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Dense(2)(x)).save(tmp_path / "half.keras")
    content = (tmp_path / "half.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="loaded: it is damaged"):
        open_artefact(tmp_path / "half.keras")
