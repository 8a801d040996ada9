"""Students as files that run without tfkd, tried before they are kept."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import uuid
import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfkd.copies import copy_weights

_HALF_PRECISION = ("float16", "bfloat16")


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
    student, path, *, formats=("saved_model", "tflite"), check=None
):
    """Writes a student in several formats, all of them or none.

    - "saved_model": the folder `saved_model`, for TensorFlow and TF Serving.
    - "tflite": the file `student.tflite`, float32, for LiteRT.
    - "keras": the file `student.keras`, for `keras.saving.load_model`.

    All but the last are in float32 whatever precision the student computes
    in, and take batches of any size. Each is written under a temporary name
    in the same folder and moved to its own when all are complete, so that a
    killed run leaves no half of a file under these names.

    Args:
        student: A built Keras model.
        path: Folder of the artefacts. It is made if it is missing; earlier
            artefacts in it are replaced.
        formats: Any of the three names above.
        check: Inputs `[batch, ...]` on which each artefact is loaded and
            compared with `student`, which then must have one input and one
            output; or None.

    Returns:
        A dict, format -> `Artefact`.

    Raises:
        ValueError: If a format is unknown, or `student` is no built model.
        FileExistsError: If something that is no earlier artefact has the
            name of one.

    Example:
    >>> report = export_student(student, "out", check=images)
    >>> report["tflite"].max_difference < 1e-4
    True
    """
    formats = list(dict.fromkeys(formats))
    unknown = [name for name in formats if name not in _FORMATS]
    if unknown or not formats:
        raise ValueError(
            "Invalid value for argument `formats`. Expected one or more of "
            f"{tuple(_FORMATS)}. Received: formats={tuple(formats)}"
        )
    if not isinstance(student, keras.Model) or not student.built:
        raise ValueError(
            "Invalid value for argument `student`. Expected a built Keras "
            f"model. Received: student={student}"
        )
    targets = {
        name: pathlib.Path(path) / _FORMATS[name].file_name for name in formats
    }
    for name, target in targets.items():
        if not _may_replace(target, folder=name == "saved_model"):
            raise FileExistsError(
                f"'{target}' is no earlier {name}, so it is not replaced. "
                "Move it away, or export to another folder."
            )

    portable = in_float32(student)
    with contextlib.ExitStack() as stack:
        written = {
            name: stack.enter_context(replacing(target))
            for name, target in targets.items()
        }
        for name, temporary in written.items():
            model = student if name == "keras" else portable
            _FORMATS[name].write(model, temporary)
        return {
            name: _measured(student, written[name], targets[name], check)
            for name in formats
        }


def predict(path, inputs):
    """Loads an artefact and runs it.

    Args:
        path: What `export_student` wrote: the folder of a SavedModel, or a
            file that ends in ".tflite" or ".keras". It must have one input
            and one output.
        inputs: `[batch, ...]`.

    Returns:
        NumPy array of float32, `[batch, ...]`, in output units.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If it is of none of these kinds, or has several inputs or
            outputs.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No exported model at '{path}'.")
    if path.is_dir():
        outputs = _run_saved_model(path, inputs)
    elif path.suffix == ".tflite":
        outputs = _run_tflite(path, inputs)
    elif path.suffix == ".keras":
        model = keras.saving.load_model(path, compile=False)
        outputs = model(inputs, training=False)
    else:
        raise ValueError(
            "Invalid value for argument `path`. Expected a SavedModel's "
            f"folder, or a .tflite or .keras file. Received: path={path}"
        )
    return _as_array(outputs)


def in_float32(model):
    """`model`, or an equal one in float32 where it computes in 16 bits.

    Args:
        model: A built Keras model. One of 16 bits must have a `get_config`.

    Returns:
        `model` itself, or a new model with copies of its weights.

    Raises:
        ValueError: If its config does not govern its precision.
    """
    if not _computes_in_half(model):
        return model
    clone = type(model).from_config(_without_half(model.get_config()))
    if _computes_in_half(clone):
        raise ValueError(
            f"Model '{model.name}' computes in 16 bits whatever its config "
            "says, so no float32 copy can be made. Build it under the "
            "float32 policy and give it these weights with set_weights."
        )
    if not clone.built:
        # Keras exports a subclassed model only after a call.
        shapes = model.get_build_config()["input_shape"]
        clone(keras.tree.map_shape_structure(_zeros, shapes))
    copy_weights(source=model, target=clone)
    return clone


@contextlib.contextmanager
def replacing(path):
    """A temporary name for what shall be at `path` when it is complete.

    What was at `path` stays there until then: a file is replaced at once, a
    folder by two renames. If the body raises, all is as before. A killed
    process leaves at most the temporary name, which begins with a dot.

    Args:
        path: Path of a file or folder to write. Missing parents are made.

    Yields:
        A `pathlib.Path` in the same folder, with the same suffix, where the
        body writes a file or a folder.

    Raises:
        FileExistsError: If a folder would replace a file, or the reverse.
        FileNotFoundError: If the body wrote nothing.
        OSError: If the folder cannot be written to.
    """
    path = pathlib.Path(os.path.realpath(path))
    made = [parent for parent in path.parents if not parent.exists()]
    token = uuid.uuid4().hex[:8]
    new = path.with_name(f".new-{token}-{path.name}")
    old = path.with_name(f".old-{token}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        if path.exists() and path.is_dir() != new.is_dir():
            kinds = ("file", "folder")
            raise FileExistsError(
                f"'{path}' is a {kinds[path.is_dir()]}; it is not replaced "
                f"by a {kinds[new.is_dir()]}."
            )
        if path.is_dir():
            os.rename(path, old)
            try:
                os.rename(new, path)
            except BaseException:
                os.rename(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(new, path)
    except BaseException:
        _remove(new)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _may_replace(path, *, folder):
    """Whether nothing else is lost if an artefact is put at `path`."""
    if not path.exists():
        return True
    if not folder or not path.is_dir():
        return not folder and path.is_file()
    return (path / "saved_model.pb").exists() or not any(path.iterdir())


def _measured(student, path, target, check):
    """The `Artefact` that is at `path` now and will be at `target`."""
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if check is None:
        return Artefact(target, size, None, None)
    expected = _as_array(student(check, training=False))
    actual = predict(path, check)
    same = expected.argmax(axis=-1) == actual.argmax(axis=-1)
    return Artefact(
        target,
        size,
        float(np.max(np.abs(expected - actual))),
        float(np.mean(same)),
    )


def _write_saved_model(student, path):
    student.export(path, format="tf_saved_model", verbose=False)


def _write_tflite(student, path):
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(student, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        path.write_bytes(converter.convert())


def _write_keras(student, path):
    student.save(path)


class _Format(NamedTuple):
    file_name: str
    write: callable


_FORMATS = {
    "saved_model": _Format("saved_model", _write_saved_model),
    "tflite": _Format("student.tflite", _write_tflite),
    "keras": _Format("student.keras", _write_keras),
}


def _run_saved_model(path, inputs):
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    _, named = serve.structured_input_signature
    (name, spec) = _single(named.items(), "input", path)
    outputs = serve(**{name: tf.cast(inputs, spec.dtype)})
    return _single(outputs.values(), "output", path)


def _run_tflite(path, inputs):
    run = _interpreter(path).get_signature_runner()
    name, detail = _single(run.get_input_details().items(), "input", path)
    outputs = run(**{name: np.asarray(inputs, detail["dtype"])})
    return _single(outputs.values(), "output", path)


def _interpreter(path):
    """LiteRT's interpreter of a file, or TensorFlow's own without LiteRT."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        with warnings.catch_warnings():
            # It announces its deletion to those who have no choice here.
            warnings.simplefilter("ignore")
            return tf.lite.Interpreter(str(path))
    return Interpreter(str(path))


def _single(tensors, kind, path):
    tensors = list(tensors)
    if len(tensors) != 1:
        raise ValueError(
            f"Expected a model with one {kind}. "
            f"Received: '{path}' with {len(tensors)} {kind}s"
        )
    return tensors[0]


def _as_array(outputs):
    if len(keras.tree.flatten(outputs)) != 1:
        raise ValueError(
            "Expected a model with one output. Received: "
            f"{len(keras.tree.flatten(outputs))} outputs"
        )
    return np.asarray(keras.tree.flatten(outputs)[0]).astype(np.float32)


def _computes_in_half(model):
    return any(
        layer.compute_dtype in _HALF_PRECISION
        for layer in model._flatten_layers()
    )


def _zeros(shape):
    """One example of a shape `(batch, ...)`, unknown sizes taken as 1."""
    return tf.zeros([1, *(size or 1 for size in shape[1:])])


def _without_half(config):
    """A copy of a nested configuration, its 16-bit policies made float32."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            name = config["config"]["name"]
            if any(half in name for half in _HALF_PRECISION):
                return {**config, "config": {"name": "float32"}}
        return {key: _without_half(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        kind = list if isinstance(config, list) else tuple
        return kind(_without_half(value) for value in config)
    return config
