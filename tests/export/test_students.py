"""What export_student writes, refuses and leaves alone."""

import io
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.export import export_student, predict, running

FORMATS = ("saved_model", "tflite", "keras")


@pytest.fixture
def student(make_network):
    return make_network(seed=1)


@pytest.fixture
def inputs(images):
    return images[0]


def expected(student, inputs):
    return keras.ops.convert_to_numpy(student(inputs, training=False))


def test_artefacts_predict_what_the_student_predicts(student, inputs, tmp_path):
    report = export_student(student, tmp_path, formats=FORMATS)
    truth = expected(student, inputs)
    for name in FORMATS:
        np.testing.assert_allclose(
            predict(report[name].path, inputs[:3]), truth[:3], atol=1e-5
        )


def test_names_are_those_of_the_docstring(student, tmp_path):
    export_student(student, tmp_path / "new" / "folder", formats=FORMATS)
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {
        "saved_model",
        "student.tflite",
        "student.keras",
        "preprocessing.json",
    }


def test_report_is_measured_on_the_files(student, inputs, tmp_path):
    report = export_student(student, tmp_path, formats=FORMATS, check=inputs)
    assert tuple(report) == FORMATS
    truth = expected(student, inputs)
    for artefact in report.values():
        difference = np.abs(predict(artefact.path, inputs) - truth).max()
        assert artefact.max_difference == pytest.approx(difference, abs=1e-9)
        assert artefact.label_agreement == 1.0
    tflite = tmp_path / "student.tflite"
    assert report["tflite"].bytes == tflite.stat().st_size
    folder = tmp_path / "saved_model"
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    assert report["saved_model"].bytes == sum(sizes)


def test_report_shows_an_artefact_that_differs(
    student, inputs, tmp_path, monkeypatch
):
    truth = expected(student, inputs)
    shifted = np.roll(truth, 1, axis=-1)
    monkeypatch.setattr(running, "predict", lambda path, inputs: shifted)
    report = export_student(student, tmp_path, check=inputs)
    difference = np.abs(shifted - truth).max()
    assert report["tflite"].max_difference == pytest.approx(difference)
    assert report["tflite"].label_agreement == 0.0


def test_report_without_check_batch_has_no_differences(student, tmp_path):
    report = export_student(student, tmp_path, formats=["keras"])
    assert report["keras"].max_difference is None
    assert report["keras"].label_agreement is None


def test_keras_files_hold_no_optimizer(make_network, inputs, tmp_path):
    """Nor do networks in the student; and both may go on training."""
    inner = make_network()
    student = keras.Sequential([keras.Input(inputs.shape[1:]), inner])
    optimizers = {
        inner: keras.optimizers.Adam(),
        student: keras.optimizers.Adam(),
    }
    for model, optimizer in optimizers.items():
        model.compile(optimizer, "mse")
        optimizer.build(model.trainable_variables)
    export_student(student, tmp_path, formats=["keras"])
    with zipfile.ZipFile(tmp_path / "student.keras") as file:
        weights = h5py.File(io.BytesIO(file.read("model.weights.h5")))
        assert "Adam" not in file.read("config.json").decode()
    groups = []
    weights.visit(groups.append)
    assert any("conv" in group for group in groups)
    assert not any("optimizer" in group for group in groups)
    for model, optimizer in optimizers.items():
        assert model.compiled
        assert model.optimizer is optimizer


def test_student_stays_as_it_was(student, inputs, tmp_path):
    before = student.get_weights()
    export_student(student, tmp_path, formats=FORMATS, check=inputs)
    for old, new in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert student.trainable


@pytest.mark.parametrize(
    ("policy", "nested"), [("mixed_float16", True), ("mixed_bfloat16", False)]
)
def test_students_of_16_bits_are_exported_in_float32(
    make_network, inputs, tmp_path, policy, nested
):
    keras.config.set_dtype_policy(policy)
    try:
        network = student = make_network(seed=1)
        if nested:
            student = keras.Sequential([keras.Input((8, 8, 2)), network])
    finally:
        keras.config.set_dtype_policy("float32")
    exact = expected(make_network(seed=1), inputs)
    report = export_student(student, tmp_path, check=inputs)
    for artefact in report.values():
        np.testing.assert_allclose(
            predict(artefact.path, inputs), exact, atol=1e-5
        )
        # bfloat16 has 8 significant bits, and the logits are of order 1.
        assert 0.0 < artefact.max_difference < 0.1
    assert network.get_layer("conv1").compute_dtype == policy[6:]


def test_students_of_16_bits_normalise_inputs_as_before(inputs, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        scale = keras.layers.Normalization(dtype="float32")
        scale.adapt(5.0 * inputs + 7.0)
        student = keras.Sequential(
            [
                keras.Input(inputs.shape[1:]),
                scale,
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    kernel, bias = student.layers[-1].get_weights()
    report = export_student(student, tmp_path)
    exact = scale(inputs).numpy().reshape([len(inputs), -1]) @ kernel + bias
    for artefact in report.values():
        np.testing.assert_allclose(
            predict(artefact.path, inputs), exact, atol=1e-5
        )


@keras.saving.register_keras_serializable("test_export")
class Subclassed(keras.Model):
    """A model whose config governs its precision only if it passes it on."""

    def __init__(self, passes_on=True, **kwargs):
        super().__init__(**kwargs)
        self.passes_on = passes_on
        dtype = self.dtype_policy if passes_on else "mixed_bfloat16"
        self.dense = keras.layers.Dense(3, dtype=dtype)

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {**super().get_config(), "passes_on": self.passes_on}


def test_subclassed_student_of_16_bits_is_exported_in_float32(tmp_path):
    student = Subclassed(dtype="mixed_bfloat16")
    inputs = np.eye(4, dtype=np.float32)
    student(inputs)
    report = export_student(student, tmp_path)
    kernel, bias = student.get_weights()
    for artefact in report.values():
        np.testing.assert_allclose(
            predict(artefact.path, inputs), kernel + bias, atol=1e-6
        )


def test_precision_that_no_config_governs_is_refused(tmp_path):
    student = Subclassed(passes_on=False)
    student(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="whatever its config says"):
        export_student(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensorflows_own_interpreter_serves_without_litert(
    student, inputs, tmp_path, monkeypatch
):
    report = export_student(student, tmp_path, formats=["tflite"])
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    np.testing.assert_allclose(
        predict(report["tflite"].path, inputs),
        expected(student, inputs),
        atol=1e-5,
    )


def test_failure_leaves_nothing(student, tmp_path, monkeypatch):
    def fail(path, **kwargs):
        raise RuntimeError("no converter")

    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_saved_model", fail)
    with pytest.raises(RuntimeError, match="no converter"):
        export_student(student, tmp_path / "a" / "b", formats=FORMATS)
    assert not any(tmp_path.iterdir())


def test_failure_leaves_earlier_artefacts(
    student, make_network, inputs, tmp_path, monkeypatch
):
    export_student(student, tmp_path, formats=FORMATS)
    before = _contents(tmp_path)

    def fail(path, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_saved_model", fail)
    with pytest.raises(KeyboardInterrupt):
        export_student(make_network(seed=2), tmp_path, formats=FORMATS)
    assert _contents(tmp_path) == before


def test_earlier_artefacts_are_replaced(
    student, make_network, inputs, tmp_path
):
    formats = ("saved_model", "keras")  # a folder and a file
    export_student(make_network(seed=2), tmp_path, formats=formats)
    report = export_student(student, tmp_path, formats=formats)
    assert len(list(tmp_path.iterdir())) == 3
    for artefact in report.values():
        np.testing.assert_allclose(
            predict(artefact.path, inputs),
            expected(student, inputs),
            atol=1e-5,
        )


def test_folder_of_something_else_is_not_replaced(student, tmp_path):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="no earlier saved_model"):
        export_student(student, tmp_path)
    assert _contents(tmp_path) == {"saved_model/thesis.tex": b"mine"}


@pytest.mark.parametrize("formats", [("onyx",), ("keras", "onyx"), ()])
def test_unknown_formats_are_refused(student, tmp_path, formats):
    with pytest.raises(ValueError, match=r"one or more of \('keras'"):
        export_student(student, tmp_path / "out", formats=formats)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(0, 8, 8, 2), ()])
def test_a_check_of_nothing_is_refused(student, tmp_path, shape):
    with pytest.raises(ValueError, match="`check`. Expected at least one"):
        export_student(student, tmp_path / "out", check=np.zeros(shape))
    assert not any(tmp_path.iterdir())


def test_a_distiller_is_refused(student, make_network, tmp_path):
    match = tfkd.Match(tfkd.losses.SoftTargets(), weight=1.0)
    distiller = tfkd.Distiller(
        student=student, teacher=make_network(), matches=[match]
    )
    distiller.build((None, 8, 8, 2))
    with pytest.raises(ValueError, match="attribute `student` of"):
        export_student(distiller, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_unbuilt_student_is_refused(tmp_path):
    student = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="built Keras model"):
        export_student(student, tmp_path)


def test_predict_says_what_it_cannot_load(tmp_path, inputs):
    with pytest.raises(FileNotFoundError, match="No artefact at"):
        predict(tmp_path / "nothing.tflite", inputs)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.tflite or \.onnx"):
        predict(tmp_path / "model.bin", inputs)


def test_predict_takes_one_of_several_outputs_by_name(tmp_path):
    x = keras.Input((2,))
    heads = [keras.layers.Dense(2, name=name)(x) for name in ("one", "other")]
    student = keras.Model(x, heads)
    inputs = np.float32([[1, -2]])
    expected = student(inputs)[1].numpy()
    for artefact in export_student(student, tmp_path, formats=FORMATS).values():
        with pytest.raises(ValueError, match="one of 'one', 'other', the out"):
            predict(artefact.path, inputs)
        actual = predict(artefact.path, inputs, output="other")
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_folder_in_a_files_place_stops_all_formats(tmp_path, student):
    export_student(student, tmp_path, formats=("saved_model",))
    (tmp_path / "student.keras").mkdir()
    before = (tmp_path / "saved_model" / "saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match="no earlier keras"):
        export_student(student, tmp_path, formats=("keras", "saved_model"))
    after = (tmp_path / "saved_model" / "saved_model.pb").read_bytes()
    assert after == before


def _contents(folder):
    """Relative path -> bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
