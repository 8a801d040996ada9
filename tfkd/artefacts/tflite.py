"""LiteRT models from their files, quantised ones too."""

import warnings

import numpy as np
import tensorflow as tf

from tfkd.artefacts.program import Program, cast, choose, only, unreadable


def open_tflite(path, output, threads):
    """The `Program` of a LiteRT model.

    Args:
        path: Of its file.
        output: Name of the output to return, or None if it has one.
        threads: Number of them, or None for LiteRT's choice.

    Returns:
        A `Program`.

    Raises:
        ValueError: If it cannot be loaded, or has other inputs or outputs.
    """
    try:
        interpreter = _interpreter(path, threads)
        signatures = interpreter.get_signature_list()
        interpreter.allocate_tensors()
    # LiteRT raises ValueError, RuntimeError or OSError.
    except Exception as error:
        raise unreadable(path, "LiteRT model", error) from error
    if signatures:
        key = "serving_default"
        if key not in signatures:
            key, _ = only(signatures, "signature", path)
        signature = interpreter.get_signature_runner(key)
        inputs = signature.get_input_details()
        outputs = signature.get_output_details()
    else:
        inputs = {d["name"]: d for d in interpreter.get_input_details()}
        outputs = {d["name"]: d for d in interpreter.get_output_details()}
    name, source = only(inputs, "input", path)
    chosen, target = choose(outputs, output, path)

    def run(x):
        x = _quantize(x, source)
        if signatures:
            return _dequantize(signature(**{name: x})[chosen], target)
        place = source["index"]
        if tuple(interpreter.get_input_details()[0]["shape"]) != x.shape:
            interpreter.resize_tensor_input(place, x.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(place, x)
        interpreter.invoke()
        return _dequantize(interpreter.get_tensor(target["index"]), target)

    return Program(run, _signature(source), _signature(target))


def _interpreter(path, threads):
    """LiteRT's interpreter of a file, or TensorFlow's own without LiteRT."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        with warnings.catch_warnings():
            # It announces its deletion to those who have no choice here.
            warnings.simplefilter("ignore")
            return tf.lite.Interpreter(str(path), num_threads=threads)
    return Interpreter(str(path), num_threads=threads)


def _signature(detail):
    """The shape of a tensor of LiteRT, None for any size."""
    shape = detail["shape_signature"]
    shape = shape if len(shape) else detail["shape"]
    return tuple(None if size < 0 else int(size) for size in shape)


def _quantize(x, detail):
    """`x` as a tensor of LiteRT wants it.

    Formula: `q = round(x / scale) + zero_point`, into the range of the type.
    """
    scale, zero_point = detail["quantization"]
    if not scale or not np.issubdtype(detail["dtype"], np.integer):
        return cast(x, detail["dtype"])
    if not np.all(np.isfinite(x)):
        raise ValueError("inputs that are not finite have no integer")
    limits = np.iinfo(detail["dtype"])
    q = np.rint(np.float64(x) / scale) + zero_point
    return np.clip(q, limits.min, limits.max).astype(detail["dtype"])


def _dequantize(q, detail):
    """Formula: `x = scale (q - zero_point)`."""
    scale, zero_point = detail["quantization"]
    if not scale or not np.issubdtype(q.dtype, np.integer):
        return q
    return scale * (np.float64(q) - zero_point)
