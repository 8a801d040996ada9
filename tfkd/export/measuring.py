"""Artefacts against their student: answers, size and time, side by side."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np

from tfkd.arguments import check_count
from tfkd.export import runners
from tfkd.export.keras_file import write_keras
from tfkd.export.students import outputs_of, size_of

MIN_RUNS = 50
_BATCH = 256
_KERAS, _TENSORFLOW = "Keras", "TensorFlow"
_RUNTIMES = {".tflite": "LiteRT", ".onnx": "onnxruntime", ".keras": _KERAS}
# None of them may be needed to run what was made for other runtimes.
_BLOCKED = ("tensorflow", "keras", "tfkd", "jax", "torch")


class Measurement(NamedTuple):
    """A network as others will run it: loaded from disk by a new process.

    Attributes:
        runtime: What ran it: "LiteRT", "onnxruntime", "TensorFlow" or
            "Keras". The first two in a process without TensorFlow.
        bytes: Size on disk.
        parameters: Weights of the network it was made of.
        compression: The teacher's bytes over these, or None.
        accuracy: Share of right labels, in [0, 1].
        max_difference: Largest absolute difference between its outputs and
            the student's in this process, in output units; None for the
            teacher.
        largest_output: Largest absolute output of the student.
        label_agreement: Share of examples where both have the same largest
            output, in [0, 1]; None for the teacher.
        milliseconds: Median time of one example, on one thread.
        slow_milliseconds: The time that 90 % of the runs stay below.
    """

    runtime: str
    bytes: int
    parameters: int
    compression: float | None
    accuracy: float
    max_difference: float | None
    largest_output: float | None
    label_agreement: float | None
    milliseconds: float
    slow_milliseconds: float


def measure(student, artefacts, inputs, labels, *, teacher=None, runs=200):
    """Runs what was exported in new processes, on data held out.

    Two processes: one for the files of LiteRT and onnxruntime, in which
    TensorFlow cannot be imported, one for the rest. All use one thread.

    Args:
        student: The Keras model as it was exported; behind
            `with_normalization` if that is inside the artefacts.
        artefacts: Dict, format -> `Artefact`, as `export_student` returns it.
        inputs: `[examples, ...]` as the artefacts take them.
        labels: Integers `[examples]`.
        teacher: A Keras model with the same inputs, or None.
        runs: Timed runs of one example each, at least 50.

    Returns:
        Dict, name -> `Measurement`: "teacher", if there is one, "student"
        (as a .keras file) and the other formats.

    Raises:
        ImportError: If LiteRT or onnxruntime is needed and missing.
        ChildProcessError: If an artefact cannot be run, with what its process
            said.
        ValueError: If `runs` is too small, `inputs` are no examples with
            `labels`, the student's outputs are not finite, or a layer's class
            is defined where no other process finds it, in `__main__`.
    """
    if check_count(runs, "runs") < MIN_RUNS:
        raise ValueError(
            "Invalid value for argument `runs`. Expected an integer >= "
            f"{MIN_RUNS}, for the median to mean something. "
            f"Received: runs={runs}"
        )
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if not len(inputs) or labels.shape != inputs.shape[:1]:
        raise ValueError(
            "Invalid value for argument `labels`. Expected one integer for "
            f"each of {len(inputs)} >= 1 inputs. "
            f"Received: shape {labels.shape}"
        )
    imports = _imports_of(student, teacher)
    paths = {n: pathlib.Path(a.path) for n, a in artefacts.items()}
    require_runtimes(paths.values())
    expected = outputs_of(student, inputs)
    if not np.all(np.isfinite(expected)):
        raise ValueError(
            f"Student '{student.name}' returns numbers that are not finite, "
            "which nothing can be compared with."
        )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        kept = {}
        for name, model in (("teacher", teacher), ("student", student)):
            if model is not None:
                kept[name] = folder / f"{name}.keras"
                write_keras(model, kept[name])
        # The student is a .keras file already.
        kept["student"] = paths.pop("keras", kept["student"])
        paths = kept | paths
        results = _run(paths, inputs, runs, folder, imports)
        sizes = {name: size_of(path) for name, path in paths.items()}
    measurements = {}
    for name, (outputs, times) in results.items():
        of_student = name != "teacher"
        compared = {
            "max_difference": None,
            "largest_output": None,
            "label_agreement": None,
        }
        answers = outputs.argmax(axis=-1)
        if of_student:
            compared = {
                "max_difference": float(np.abs(outputs - expected).max()),
                "largest_output": float(np.abs(expected).max()),
                "label_agreement": float(
                    np.mean(answers == expected.argmax(axis=-1))
                ),
            }
        model = student if of_student else teacher
        measurements[name] = Measurement(
            runtime=_runtime(paths[name]),
            bytes=sizes[name],
            parameters=model.count_params(),
            compression=teacher and sizes["teacher"] / sizes[name],
            accuracy=float(np.mean(answers == labels)),
            milliseconds=float(np.median(times)),
            slow_milliseconds=float(np.percentile(times, 90)),
            **compared,
        )
    return measurements


def require_runtimes(paths):
    """Imports what runs artefacts outside TensorFlow.

    Args:
        paths: Paths of artefacts, or of such as shall be.

    Raises:
        ImportError: If a runtime is not installed, with what to do.
    """
    packages = {
        "LiteRT": ("ai_edge_litert.interpreter", "ai-edge-litert"),
        "onnxruntime": ("onnxruntime", "onnxruntime"),
    }
    for runtime in sorted({_runtime(path) for path in paths} & set(packages)):
        module, package = packages[runtime]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"{package} is needed to run what was exported. Install it: "
                f"pip install {package}"
            ) from error


def _imports_of(*models):
    """Names of the modules that register the layers of Keras models."""
    names = {"tfkd"}
    for model in filter(None, models):
        for layer in model._flatten_layers():
            module = type(layer).__module__
            if module == "__main__":
                raise ValueError(
                    f"Layer '{layer.name}' of '{model.name}' is a "
                    f"{type(layer).__name__}, defined in the running program, "
                    "where no other process finds it. Define the class in a "
                    "module of its own and import it."
                )
            if module.partition(".")[0] not in ("keras", "tfkd"):
                names.add(module)
    return sorted(names)


def _runtime(path):
    return _RUNTIMES.get(pathlib.Path(path).suffix, _TENSORFLOW)


def _run(paths, inputs, runs, folder, imports):
    """Dict, name -> (outputs, milliseconds), each run in a new process."""
    np.save(folder / "inputs.npy", inputs)
    alone, with_tensorflow = {}, {}
    for name, path in paths.items():
        runtime = _runtime(path)
        heavy = runtime in (_KERAS, _TENSORFLOW)
        (with_tensorflow if heavy else alone)[name] = path
    for group, blocked, needed in (
        (alone, _BLOCKED, ()),
        (with_tensorflow, (), imports),
    ):
        if group:
            _start(group, folder, runs, blocked, needed)
    results = {}
    for name in paths:
        with np.load(folder / f"{name}.npz") as loaded:
            results[name] = (loaded["outputs"], loaded["times"])
    return results


def _start(paths, folder, runs, blocked, imports):
    """Runs artefacts in one new process of one thread."""
    job = {
        "inputs": str(folder / "inputs.npy"),
        "runs": runs,
        "threads": 1,
        "blocked": blocked,
        "imports": imports,
        "path": [os.path.abspath(part) for part in sys.path],
        "artefacts": [
            {
                "path": os.path.abspath(path),
                "results": str(folder / f"{name}.npz"),
                "batch_size": _BATCH,
            }
            for name, path in paths.items()
        ],
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-P", runners.__file__, str(file)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"},
    )
    if process.returncode:
        raise ChildProcessError(
            f"{', '.join(paths)} could not be run in a process of their own: "
            f"{process.stderr[-2000:].strip()}"
        )
