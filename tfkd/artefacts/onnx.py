"""ONNX models from their files, by onnxruntime."""

import numpy as np

from tfkd.artefacts.program import Program, cast, choose, only, unreadable


def open_onnx(path, output, threads):
    """The `Program` of an ONNX model.

    Args:
        path: Of its file.
        output: Name of the output to return, or None if it has one.
        threads: Number of them, or None for onnxruntime's choice.

    Returns:
        A `Program`.

    Raises:
        ImportError: If onnxruntime is not installed.
        ValueError: If it cannot be loaded, or has other inputs or outputs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"'{path}' needs onnxruntime, which is not installed. Install it "
            "by pip install 'tfkd[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # What is fatal is raised as well.
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    # onnxruntime's exceptions have no base but Exception.
    except Exception as error:
        raise unreadable(path, "ONNX model", error) from error
    name, source = only(
        {tensor.name: tensor for tensor in session.get_inputs()}, "input", path
    )
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    chosen, target = choose(outputs, output, path)
    dtype = _ONNX_TYPES.get(source.type)
    if dtype is None:
        raise ValueError(f"'{path}' takes {source.type}, which is no number.")

    def run(x):
        (result,) = session.run([chosen], {name: cast(x, dtype)})
        return np.asarray(result)

    return Program(run, _sizes(source.shape), _sizes(target.shape))


_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def _sizes(shape):
    """A shape of onnxruntime, whose open sizes are names or None."""
    if shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in shape)
