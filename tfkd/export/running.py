"""An artefact in this process, to compare it with its student."""

import warnings

import tensorflow as tf

from tfkd.export import runners


def predict(path, inputs):
    """Loads an artefact and runs it.

    Args:
        path: What `export_student` wrote: the folder of a SavedModel, or a
            file that ends in ".tflite", ".onnx" or ".keras". It must have one
            input and one output.
        inputs: `[batch, ...]`, in the units of the student. Those of
            full-integer files are rounded here, and their outputs are brought
            back to output units.

    Returns:
        NumPy array of float32, `[batch, ...]`, in output units.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ImportError: If onnxruntime is needed and missing.
        ValueError: If it is of none of these kinds, or has several inputs or
            outputs.
    """
    try:
        runner = runners.runner_of(path)
    except ImportError:
        if not str(path).endswith(".tflite"):
            raise
        runner = runners.interpreter_runner(_tensorflows_own(path), path)
    return runner(inputs)


def _tensorflows_own(path):
    """TensorFlow's own interpreter, where there is no LiteRT."""
    with warnings.catch_warnings():
        # It announces its deletion to those who have no choice here.
        warnings.simplefilter("ignore")
        return tf.lite.Interpreter(str(path))
