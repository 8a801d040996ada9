"""Runs artefacts, each by its own runtime; also as a program of its own.

As a program it imports nothing of tfkd, and TensorFlow and Keras only for
artefacts that need them: `python -P runners.py JOB.json`. It runs each
artefact of the job over all inputs, times it on single ones, and writes
outputs and times where the job says. `measuring.py` makes the jobs.
"""

import json
import os
import sys
import time

import numpy as np

_WARM_UP = 10


def litert_runner(path, threads=None):
    """Runs a .tflite file by LiteRT.

    Full-integer files are given and return real numbers all the same.

    Args:
        path: The file. It has one input and one output.
        threads: Of the interpreter; None: its default.

    Returns:
        Function of `[batch, ...]` that returns float32 `[batch, ...]`.

    Raises:
        ImportError: If LiteRT is not installed.
        ValueError: If there are several inputs or outputs.
    """
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path), num_threads=threads).get_signature_runner()
    ((name, detail),) = _one(run.get_input_details().items(), "input", path)
    ((key, result),) = _one(run.get_output_details().items(), "output", path)

    def runner(inputs):
        outputs = run(**{name: _quantized(inputs, detail)})[key]
        return _dequantized(outputs, result)

    return runner


def onnx_runner(path, threads=None):
    """Runs an .onnx file by onnxruntime, on the CPU; as `litert_runner`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    (known,) = _one(session.get_inputs(), "input", path)
    (result,) = _one(session.get_outputs(), "output", path)
    types = {
        "tensor(float)": np.float32,
        "tensor(int32)": np.int32,
        "tensor(int64)": np.int64,
    }
    dtype = types[known.type]

    def runner(inputs):
        inputs = np.asarray(inputs, dtype)
        (outputs,) = session.run([result.name], {known.name: inputs})
        return np.asarray(outputs, np.float32)

    return runner


def saved_model_runner(path, threads=None):
    """Runs a SavedModel by TensorFlow; as `litert_runner`."""
    tf = _tensorflow(threads)
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    specs = serve.structured_input_signature[1]
    ((name, spec),) = _one(specs.items(), "input", path)
    (key,) = _one(serve.structured_outputs, "output", path)

    def runner(inputs):
        outputs = serve(**{name: tf.cast(inputs, spec.dtype)})[key]
        return np.asarray(outputs.numpy(), np.float32)

    runner.loaded = loaded  # whose weights `serve` does not keep
    return runner


def keras_runner(path, threads=None):
    """Runs a .keras file by Keras, compiled; as `litert_runner`."""
    tf = _tensorflow(threads)
    import keras

    model = keras.saving.load_model(path, compile=False)
    run = tf.function(
        lambda inputs: model(inputs, training=False), reduce_retracing=True
    )

    def runner(inputs):
        outputs = keras.tree.flatten(run(tf.convert_to_tensor(inputs)))
        (outputs,) = _one(outputs, "output", path)
        return tf.cast(outputs, tf.float32).numpy()

    return runner


def runner_of(path, threads=None):
    """The runner of an artefact, by what it is.

    Args:
        path: A SavedModel's folder, or a .tflite, .onnx or .keras file.
        threads: As of `litert_runner`.

    Returns:
        As of `litert_runner`.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ImportError: If its runtime is not installed.
        ValueError: If it is of none of these kinds, or has several inputs or
            outputs.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"No exported model at '{path}'.")
    suffix = os.path.splitext(path)[1]
    if os.path.isdir(path):
        return saved_model_runner(path, threads)
    kinds = {
        ".tflite": litert_runner,
        ".onnx": onnx_runner,
        ".keras": keras_runner,
    }
    if suffix not in kinds:
        raise ValueError(
            "Invalid value for argument `path`. Expected a SavedModel's "
            f"folder, or a .tflite, .onnx or .keras file. Received: path={path}"
        )
    return kinds[suffix](path, threads)


def _tensorflow(threads):
    import tensorflow as tf

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    return tf


def _one(tensors, kind, path):
    """A list of the one tensor there is."""
    tensors = list(tensors)
    if len(tensors) != 1:
        raise ValueError(
            f"Expected a model with one {kind}. "
            f"Received: '{path}' with {len(tensors)} {kind}s"
        )
    return tensors


def _quantized(values, detail):
    """Real numbers as a tensor of an interpreter wants them."""
    scale, zero = detail["quantization"]
    if not scale:
        return np.asarray(values, detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    steps = np.round(np.asarray(values, np.float32) / np.float32(scale)) + zero
    return np.clip(steps, limits.min, limits.max).astype(detail["dtype"])


def _dequantized(values, detail):
    """The real numbers that a tensor of an interpreter stands for."""
    scale, zero = detail["quantization"]
    values = np.asarray(values, np.float32)
    return (values - zero) * np.float32(scale) if scale else values


def _milliseconds(runner, inputs, runs):
    """Times of `runs` calls on single examples, after warming up."""
    times = []
    for index in range(-_WARM_UP, runs):
        start = index % len(inputs)
        example = inputs[start : start + 1]
        began = time.perf_counter()
        runner(example)
        times.append(1e3 * (time.perf_counter() - began))
    return times[_WARM_UP:]


def _main(job):
    with open(job, encoding="utf-8") as stream:
        job = json.load(stream)
    for name in job["blocked"]:
        sys.modules[name] = None  # to import it is an ImportError now
    sys.path += job["path"]
    for name in job["imports"]:
        __import__(name)
    inputs = np.load(job["inputs"])
    for artefact in job["artefacts"]:
        size = artefact["batch_size"]
        runner = runner_of(artefact["path"], job["threads"])
        times = []
        if job["runs"]:
            times = _milliseconds(runner, inputs, job["runs"])
        outputs = [
            runner(inputs[start : start + size])
            for start in range(0, len(inputs), size)
        ]
        np.savez(
            artefact["results"], outputs=np.concatenate(outputs), times=times
        )


if __name__ == "__main__":
    _main(sys.argv[1])
