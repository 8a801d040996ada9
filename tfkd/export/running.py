"""An artefact in this process, to compare it with its student."""

from tfkd.artefacts import open_artefact


def predict(path, inputs, *, output=None):
    """Loads an artefact and runs it.

    `tfkd.artefacts.open_artefact` opens one once for many batches.

    Args:
        path: What `export_student` wrote: the folder of a SavedModel, or a
            file that ends in ".tflite", ".onnx" or ".keras". It must have one
            input.
        inputs: `[batch, ...]`, in the units of the student. Those of
            full-integer files are rounded here, and their outputs are brought
            back to output units.
        output: Name of the output, where there are several.

    Returns:
        NumPy array of float32, `[batch, ...]`, in output units.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ImportError: If onnxruntime is needed and missing.
        ValueError: If it is of none of these kinds, or has several inputs, or
            several outputs and none is named.
    """
    return open_artefact(path, output=output, beside=False)(inputs)
