"""Writes a student in many formats, all of them or none."""

import contextlib
import json
import pathlib
import tempfile
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfkd.arguments import check_count, check_positive
from tfkd.export import blame, running
from tfkd.export.files import replacing
from tfkd.export.keras_file import write_keras
from tfkd.export.onnx_file import require_onnx, to_onnx
from tfkd.export.portable import in_float32, with_normalization
from tfkd.export.saved_model import interface, write_saved_model
from tfkd.export.tflite_file import check_calibration, to_tflite

SIDECAR = "preprocessing.json"

# Format -> name of its file or folder.
FORMATS = {
    "keras": "student.keras",
    "saved_model": "saved_model",
    "tflite": "student.tflite",
    "tflite-float16": "student-float16.tflite",
    "tflite-dynamic": "student-dynamic.tflite",
    "tflite-int8": "student-int8.tflite",
    "onnx": "student.onnx",
}


class Artefact(NamedTuple):
    """One exported file or folder, as it was measured.

    Attributes:
        path: Where it is, a `pathlib.Path`.
        bytes: Its size; of a folder, that of all its files.
        max_difference: Largest absolute difference between its outputs and
            the Keras student's on the check batch, in output units; None
            without a check batch.
        label_agreement: Share of the check batch where both have the same
            largest output, in [0, 1], or None.
    """

    path: pathlib.Path
    bytes: int
    max_difference: float | None
    label_agreement: float | None


def export_student(
    student,
    path,
    *,
    formats=("saved_model", "tflite"),
    check=None,
    calibration=None,
    class_names=None,
    normalization=None,
    normalization_inside=False,
    white=None,
    version=None,
):
    """Writes a student in several formats, all of them or none.

    - "keras": the file `student.keras`, for `keras.saving.load_model`.
    - "saved_model": the folder `saved_model`, for TensorFlow and TensorFlow
      Serving, with the signatures "serving_default" and "serve" (the same)
      and, given class names, the asset `class_names.txt`.
    - "tflite": the file `student.tflite`, float32, for LiteRT;
      "tflite-float16": `student-float16.tflite`, weights of 16 bits;
      "tflite-dynamic": `student-dynamic.tflite`, large weights of 8 bits;
      "tflite-int8": `student-int8.tflite`, everything of 8 bits, inputs and
      outputs too.
    - "onnx": the file `student.onnx`, for onnxruntime.

    All but the first are in float32 (or fewer bits) whatever precision the
    student computes in. They hold its weights alone: no optimizer, no teacher.
    They take batches of any size. What they need to know who run them is in
    `preprocessing.json` beside them: class_names, input_shape, mean and std
    (null if inside or unknown), normalization_inside, white. Each is
    written under a temporary name in the same folder and moved to its own
    when all are complete, so that a killed run leaves no half of a file under
    these names.

    Args:
        student: A built Keras model.
        path: Folder of the artefacts. It is made if it is missing; earlier
            artefacts of the same formats in it are replaced.
        formats: Any of the names above.
        check: Inputs `[batch, ...]` as the artefacts take them, on which each
            is loaded and compared with `student`, which then must have one
            input and one output; or None.
        calibration: For "tflite-int8", inputs `[examples, ...]` from the
            training data as the artefacts take them; some hundred will do.
        class_names: Strings, the name of each class, or None.
        normalization: `(mean, std)`, each a float or one float per channel in
            the units of the pixels, as of `tfkd.data.Dataset`: the student
            was trained on `(pixels - mean) / std`. None if that is unknown.
        normalization_inside: Whether the artefacts do that themselves and
            take pixels (as float32, not divided by 255); else it is noted in
            `preprocessing.json` for those who run them.
        white: Value of a white pixel in the units of `mean` (16 for digits,
            255 for photographs), noted there likewise for those who have
            images of other units; or None.
        version: None, or an integer >= 1: the SavedModel is written to
            `model/<version>`, as TensorFlow Serving wants it.

    Returns:
        A dict, format -> `Artefact`.

    Raises:
        ValueError: If an argument is none of these; if a layer of the student
            has no counterpart in a format, with the layer's name.
        ImportError: If "onnx" needs a package that is missing.
        FileExistsError: If something that is no earlier artefact has the
            name of one.

    Example:
    >>> report = export_student(student, "out", check=images)
    >>> report["tflite"].max_difference < 1e-4
    True
    """
    formats = list(dict.fromkeys(formats))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(
            "Invalid value for argument `formats`. Expected one or more of "
            f"{tuple(FORMATS)}. Received: formats={tuple(formats)}"
        )
    if not isinstance(student, keras.Model) or not student.built:
        raise ValueError(
            "Invalid value for argument `student`. Expected a built Keras "
            f"model. Received: student={student}"
        )
    if isinstance(getattr(student, "student", None), keras.Model):
        raise ValueError(
            "Invalid value for argument `student`. Expected the student "
            f"alone, the attribute `student` of '{student.name}'. "
            f"Received: a {type(student).__name__}"
        )
    known = interface(student)
    mean, std = _check_normalization(normalization, normalization_inside, known)
    class_names = _check_class_names(class_names, student)
    if white is not None:
        white = check_positive(white, "white")
    if "tflite-int8" in formats:
        if normalization_inside:
            known = interface(with_normalization(student, mean, std))
        calibration = check_calibration(calibration, known)
    if "onnx" in formats:
        require_onnx()
    targets = _targets(pathlib.Path(path), formats, version)

    models = {"keras": student}
    if formats != ["keras"]:
        models["portable"] = in_float32(student)
    if normalization_inside:
        models = {
            kind: with_normalization(model, mean, std)
            for kind, model in models.items()
        }
    expected = None
    if check is not None:
        check = np.asarray(check)
        if not check.shape or not len(check):
            raise ValueError(
                "Invalid value for argument `check`. Expected at least one "
                f"input [batch, ...]. Received: shape {check.shape}"
            )
        expected = outputs_of(models["keras"], check)
    with contextlib.ExitStack() as stack:
        sidecar = stack.enter_context(replacing(pathlib.Path(path) / SIDECAR))
        written = {
            name: stack.enter_context(replacing(target))
            for name, target in targets.items()
        }
        content = {
            "class_names": class_names,
            "input_shape": _input_shape(known),
            "mean": None if normalization_inside else mean,
            "std": None if normalization_inside else std,
            "normalization_inside": normalization_inside,
            "white": white,
        }
        sidecar.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        if "keras" in written:
            write_keras(models["keras"], written["keras"])
        if "portable" in models:
            _write_portable(
                models["portable"], written, calibration, class_names
            )
        return {
            name: _measured(written[name], targets[name], check, expected)
            for name in formats
        }


def size_of(path):
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_portable(model, written, calibration, class_names):
    """Writes what is made of a SavedModel, and the SavedModel if asked for.

    Args:
        model: A Keras model of float32.
        written: Dict, format -> `pathlib.Path`.
        calibration: As `check_calibration` returns it.
        class_names: List of strings, or None.
    """

    def converted(name, folder):
        if name == "onnx":
            return to_onnx(folder)
        numbers = name.partition("-")[2] or "float32"
        return to_tflite(folder, numbers, calibration)

    def anew(name):
        with tempfile.TemporaryDirectory() as folder:
            write_saved_model(model, folder)
            if name != "saved_model":
                converted(name, folder)

    with tempfile.TemporaryDirectory() as temporary:
        folder = written.get("saved_model", pathlib.Path(temporary) / "saved")
        rest = [n for n in written if n not in ("keras", "saved_model")]
        for name in ("saved_model", *rest):
            try:
                if name == "saved_model":
                    write_saved_model(model, folder, class_names)
                else:
                    written[name].write_bytes(converted(name, folder))
            except Exception as error:
                asked = name if name in written else rest[0]
                reason = blame.explain(
                    model, asked, lambda name=name: anew(name), error
                )
                if reason is error:
                    raise
                raise reason from error


def _targets(folder, formats, version):
    """Dict, format -> where it shall be; refuses to overwrite other things."""
    targets = {name: folder / FORMATS[name] for name in formats}
    if version is not None and "saved_model" in targets:
        number = str(check_count(version, "version"))
        targets["saved_model"] = folder / "model" / number
    for name, target in targets.items():
        if not _may_replace(target, folder=name == "saved_model"):
            raise FileExistsError(
                f"'{target}' is no earlier {name}, so it is not replaced. "
                "Move it away, or export to another folder."
            )
    return targets


def _may_replace(path, *, folder):
    """Whether nothing else is lost if an artefact is put at `path`."""
    if not path.exists():
        return True
    if not folder or not path.is_dir():
        return not folder and path.is_file()
    return (path / "saved_model.pb").exists() or not any(path.iterdir())


def _check_class_names(names, student):
    """`names` as a list of strings, or None."""
    if names is None:
        return None
    given, names = names, list(names)
    outputs = getattr(student, "outputs", None) or ()
    classes = outputs[0].shape[-1] if len(outputs) == 1 else None
    if (
        not names
        or isinstance(given, str)
        or not all(isinstance(name, str) and _is_line(name) for name in names)
        or classes not in (None, len(names))
    ):
        raise ValueError(
            "Invalid value for argument `class_names`. Expected a name of one "
            f"line, without blanks around it, for each of {classes or 'the'} "
            "classes. "
            f"Received: class_names={given!r}"
        )
    return names


def _is_line(text):
    return len(text.splitlines()) == 1 and text == text.strip()


def _check_normalization(normalization, inside, known):
    """`(mean, std)` as lists of floats, one per channel, or two Nones."""
    if normalization is None:
        if inside:
            raise ValueError(
                "Invalid value for argument `normalization_inside`. Expected "
                "`normalization=(mean, std)` with it. Received: "
                "normalization=None"
            )
        return None, None
    channels = None
    if len(known.inputs) == 1 and known.inputs[0].shape.rank > 1:
        channels = known.inputs[0].shape[-1]
    try:
        mean, std = (
            np.broadcast_to(
                np.asarray(part, np.float64), [channels or np.size(part)]
            )
            for part in normalization
        )
        fits = (
            channels is not None
            and np.all(np.isfinite([mean, std]))
            and np.all(std > 0)
        )
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "Invalid value for argument `normalization`. Expected (mean, std) "
            "of pixels, finite, std > 0, each a float or one float per "
            f"channel (the student has {channels}). "
            f"Received: normalization={normalization!r}"
        )
    return mean.tolist(), std.tolist()


def _input_shape(known):
    """`[height, width, channels]` of the one input; None of several."""
    if len(known.inputs) != 1:
        return None
    return known.inputs[0].shape.as_list()[1:]


def _measured(path, target, check, expected):
    """The `Artefact` that is at `path` now and will be at `target`.

    Args:
        path, target: `pathlib.Path`.
        check: Inputs `[batch, ...]`, or None.
        expected: What the student returns for them, as `outputs_of` does.
    """
    size = size_of(path)
    if check is None:
        return Artefact(target, size, None, None)
    actual = running.predict(path, check)
    same = expected.argmax(axis=-1) == actual.argmax(axis=-1)
    return Artefact(
        target,
        size,
        float(np.max(np.abs(expected - actual))),
        float(np.mean(same)),
    )


def outputs_of(student, inputs, batch_size=256):
    """What a Keras model of one output returns in inference, as float32.

    Args:
        student: A built Keras model.
        inputs: `[examples, ...]`.
        batch_size: Examples at a time.

    Returns:
        NumPy array `[examples, ...]`.

    Raises:
        ValueError: If it has several outputs.
    """
    # Compiled, for in 16 bits a graph rounds elsewhere than its layers alone.
    run = tf.function(
        lambda x: keras.tree.flatten(student(x, training=False)),
        reduce_retracing=True,
    )
    parts = []
    for start in range(0, len(inputs), batch_size):
        outputs = run(tf.convert_to_tensor(inputs[start : start + batch_size]))
        if len(outputs) != 1:
            raise ValueError(
                "Expected a model with one output. Received: "
                f"{len(outputs)} outputs"
            )
        parts.append(tf.cast(outputs[0], tf.float32).numpy())
    return np.concatenate(parts)
