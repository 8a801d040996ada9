"""Trained networks run from their files: Keras, SavedModel, LiteRT, ONNX."""

import json
import math
import pathlib
import warnings
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfkd.arguments import check_count

SIDECAR = "preprocessing.json"
# Class names of ImageNet-21k take under a megabyte.
_SIDECAR_BYTES = 2**24
_SIDECAR_KEYS = (
    "class_names",
    "input_shape",
    "mean",
    "std",
    "normalization_inside",
)


class Sidecar(NamedTuple):
    """What is known of an artefact beside the artefact.

    Attributes:
        class_names: Name of each class, a tuple of strings, or None.
        input_shape: Of one input, a tuple of sizes, None where any size will
            do; or None.
        preprocessing: `(mean, std)`, tuples of one float per channel, in
            pixel units; or None.
        normalization_inside: Whether the artefact does this itself and takes
            pixels as they are; or None where nobody has said.
    """

    class_names: tuple[str, ...] | None = None
    input_shape: tuple[int | None, ...] | None = None
    preprocessing: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    normalization_inside: bool | None = None


class Runner:
    """A loaded artefact, to be called on batches. `open_artefact` makes it.

    Not for several threads at a time.

    Attributes:
        kind: "keras", "saved_model", "tflite" or "onnx".
        path: Where it lies, a `pathlib.Path`.
        input_shape: Of one input, without the batch; None where any size will
            do, or for all where the artefact does not say.
        num_classes: Number of outputs of one input, or None where they are no
            vector or the artefact does not say.
        class_names: Name of each class, a tuple of strings, or None.
        preprocessing: `(mean, std)`, tuples of one float per channel, by
            which pixels are standardised; or None where nobody has said.
        normalization_inside: Whether the artefact standardises itself and
            takes pixels as they are; None where nobody has said.
    """

    def __init__(self, kind, path, program, sidecar):
        self.kind = kind
        self.path = path
        self.input_shape = program.input_shape
        self.num_classes = program.num_classes
        self._run = program.run
        self._batch = program.batch
        self._learn(sidecar)

    def __call__(self, inputs):
        """The outputs for a batch of any size.

        An int8 artefact's inputs are quantised and its outputs brought back
        by its own scales. One of a fixed batch runs as often as it needs.

        Args:
            inputs: `[batch, ...]`, in the units that the artefact takes; see
                `preprocess`.

        Returns:
            NumPy array of float32, `[batch, classes]`, or of whatever shape
            the artefact returns, in output units.

        Raises:
            ValueError: If `inputs` are of another shape or no numbers, or the
                artefact fails.
        """
        inputs = np.asarray(inputs)
        self._check(inputs)
        size = self._batch or len(inputs)
        parts = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            missing = size - len(part)
            if missing:
                part = np.concatenate([part, np.repeat(part[-1:], missing, 0)])
            outputs = self._attempt(part)
            parts.append(outputs[: size - missing])
        return np.concatenate(parts).astype(np.float32)

    def preprocess(self, pixels):
        """What the artefact takes, of pixels.

        Args:
            pixels: `[batch, ..., channels]`, in the units of its training
                images.

        Returns:
            float32, of the same shape: `pixels` themselves if
            `normalization_inside`, else `(pixels - mean) / std`.

        Raises:
            ValueError: If nobody has said how.
        """
        pixels = np.asarray(pixels, np.float32)
        if self.normalization_inside:
            return pixels
        if self.preprocessing is None:
            raise ValueError(
                f"Nobody says how '{self.path}' wants its inputs standardised: "
                f"no {SIDECAR} beside it has a mean and std."
            )
        mean, std = np.float32(self.preprocessing)
        return (pixels - mean) / std

    def _learn(self, sidecar):
        """Takes over what a sidecar says, if it is about this artefact."""
        names, shape, self.preprocessing, self.normalization_inside = sidecar
        self.class_names = names
        if names is not None:
            if self.num_classes not in (None, len(names)):
                raise ValueError(
                    f"'{self.path}' has {self.num_classes} classes, but "
                    f"beside it {len(names)} are named. Correct the names, "
                    f"or move {SIDECAR} away."
                )
            self.num_classes = len(names)
        if shape is not None:
            if not _agree(self.input_shape, shape):
                raise ValueError(
                    f"'{self.path}' takes inputs of shape {self.input_shape}, "
                    f"but {SIDECAR} beside it says {shape}. It belongs to "
                    "another artefact: move it away."
                )
            self.input_shape = tuple(
                own or told
                for own, told in zip(
                    self.input_shape or shape, shape, strict=True
                )
            )
        if self.preprocessing is not None and self.input_shape:
            channels = self.input_shape[-1]
            if channels and len(self.preprocessing[0]) not in (1, channels):
                raise ValueError(
                    f"{SIDECAR} beside '{self.path}' has means of "
                    f"{len(self.preprocessing[0])} channels, but inputs have "
                    f"the shape {self.input_shape}."
                )

    def _check(self, inputs):
        if not np.issubdtype(inputs.dtype, np.number) or not inputs.ndim:
            raise ValueError(
                "Invalid value for argument `inputs`. Expected numbers "
                f"[batch, ...]. Received: {inputs.dtype} {inputs.shape}"
            )
        if not len(inputs) or not _agree(self.input_shape, inputs.shape[1:]):
            wanted = "..." if self.input_shape is None else self.input_shape
            raise ValueError(
                "Invalid value for argument `inputs`. Expected at least one "
                f"input of shape {wanted}, which '{self.path}' takes. "
                f"Received: inputs.shape={inputs.shape}"
            )

    def _attempt(self, inputs):
        """The outputs of one run; a fault of the runtime names the file."""
        try:
            outputs = self._run(inputs)
        # LiteRT, onnxruntime and TensorFlow each raise what they like.
        except Exception as error:
            raise ValueError(
                f"'{self.path}' fails on inputs of shape {inputs.shape}: "
                f"{error}"
            ) from error
        if outputs.ndim == 0 or len(outputs) != len(inputs):
            raise ValueError(
                f"'{self.path}' returns outputs of shape {outputs.shape} for "
                f"inputs of shape {inputs.shape}. Expected one for each input."
            )
        return outputs


def open_artefact(path, *, output=None, threads=None):
    """Loads a trained network, to be run.

    - A file that ends in ".keras", in Keras' safe mode: no code in it runs.
    - The folder of a SavedModel, by its signature `serving_default` or the
      only one it has; or a folder as TensorFlow Serving wants it, whose
      subfolder of the highest number is the SavedModel. It is a program of
      TensorFlow's operations, which may also read and write files: open only
      what you trust.
    - A file that ends in ".tflite", by LiteRT's interpreter, or TensorFlow's
      own where LiteRT is not installed: float32, float16, dynamic range and
      full int8.
    - A file that ends in ".onnx", by onnxruntime on the CPU.

    Class names and preprocessing are read from `preprocessing.json` in the
    folder where the artefact lies, class names of a SavedModel also from its
    `assets/class_names.txt`. Neither need be there.

    Args:
        path: Of the file or folder.
        output: Name of the output to return, of an artefact with several.
        threads: Number of threads of LiteRT or onnxruntime; None: theirs.
            TensorFlow has one number for the whole process,
            `tf.config.threading`.

    Returns:
        A `Runner`.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ImportError: If onnxruntime is needed and not installed.
        ValueError: If it cannot be loaded, is none of these, has several
            inputs, or several outputs and `output` is none of them; if
            `threads` is no such number or not for this kind; or if what lies
            beside it is broken or belongs to another artefact.

    Example:
    >>> run = open_artefact("run/student.tflite")
    >>> run(run.preprocess(pixels)).argmax(axis=-1)
    array([3, 8])
    """
    path = pathlib.Path(path)
    if threads is not None:
        threads = check_count(threads, "threads")
    if not path.exists():
        raise FileNotFoundError(f"No artefact at '{path}'.")
    kind = "saved_model" if path.is_dir() else path.suffix.lower()[1:]
    if kind not in _OPENERS:
        raise ValueError(
            "Invalid value for argument `path`. Expected a SavedModel's "
            "folder, or a file that ends in .keras, .tflite or .onnx. "
            f"Received: path={str(path)!r}"
        )
    if threads is not None and kind in ("keras", "saved_model"):
        raise ValueError(
            "Invalid value for argument `threads`. Expected None, for "
            "TensorFlow has one number for the whole process "
            "(tf.config.threading.set_intra_op_parallelism_threads). "
            f"Received: threads={threads} for '{path}'"
        )
    program = _OPENERS[kind](path, output, threads)
    return Runner(kind, path, program, _read_beside(path))


class _Program(NamedTuple):
    """One input and one output of a loaded artefact.

    Attributes:
        run: Function of an array `[batch, ...]` that returns an array.
        shape: Of the input with the batch, None for any size; or None.
        output_shape: Likewise.
    """

    run: Callable
    shape: tuple | None
    output_shape: tuple | None

    @property
    def batch(self):
        """The only size of batch that it takes, or None."""
        return self.shape[0] if self.shape else None

    @property
    def input_shape(self):
        return self.shape[1:] if self.shape else None

    @property
    def num_classes(self):
        if self.output_shape is None or len(self.output_shape) != 2:
            return None
        return self.output_shape[1]


# === Kinds ===


def _open_keras(path, output, threads):
    del threads
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    # Each fault of a file has an exception of its own, of zip, JSON or HDF5.
    except Exception as error:
        raise _unreadable(path, "Keras model", error) from error
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"'{path}' holds no keras.Model but a {type(model).__name__}."
        )
    inputs = _keras_inputs(model)
    _, spec = _only(_named(inputs, "input"), "input", path)
    outputs = _named(
        model.compute_output_spec(inputs),
        "output",
        getattr(model, "output_names", None),
    )
    name, result = _choose(outputs, output, path)
    place = list(outputs).index(name)

    @tf.function(
        input_signature=[tf.TensorSpec(spec.shape, spec.dtype)],
        autograph=False,
    )
    def forward(x):
        x = keras.tree.pack_sequence_as(inputs, [x])
        return keras.tree.flatten(model(x, training=False))[place]

    return _Program(
        lambda x: forward(_cast(x, spec.dtype)).numpy(),
        tuple(spec.shape),
        tuple(result.shape),
    )


def _keras_inputs(model):
    """The inputs of a Keras model, as `keras.KerasTensor`s."""
    if hasattr(model, "_inputs_struct"):
        return model._inputs_struct
    if isinstance(model, keras.Sequential) and model.built:
        return model.inputs[0]
    # A subclassed model remembers only the shapes it was built for.
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            f"Model '{model.name}' was saved before its first call, so its "
            "inputs are not known. Call it, and save it again."
        )
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor(shape, keras.config.floatx()), shapes
    )


def _named(tensors, kind, names=None):
    """The leaves of a structure: dict, name -> leaf, in Keras' order."""
    if isinstance(tensors, dict):
        names = sorted(tensors)
    leaves = keras.tree.flatten(tensors)
    if names is None or len(set(names)) != len(leaves):
        names = [f"{kind}_{i}" for i in range(len(leaves))]
    return dict(zip(names, leaves, strict=True))


def _open_saved_model(path, output, threads):
    del threads
    folder = _saved_model_folder(path)
    try:
        loaded = tf.saved_model.load(str(folder))
    # A damaged graph, index or shard has an exception of its own each.
    except Exception as error:
        raise _unreadable(path, "SavedModel", error) from error
    signatures = dict(loaded.signatures)
    serve = signatures.get("serving_default")
    if serve is None:
        if len(signatures) != 1:
            raise ValueError(
                f"'{path}' has no signature 'serving_default'. It has "
                f"{_listed(signatures)}."
            )
        (serve,) = signatures.values()
    _, specs = serve.structured_input_signature
    name, spec = _only(specs, "input", path)
    chosen, result = _choose(serve.structured_outputs, output, path)

    def run(x, loaded=loaded):  # Nothing else keeps the variables alive.
        x = tf.constant(_cast(x, spec.dtype.as_numpy_dtype))
        return serve(**{name: x})[chosen].numpy()

    return _Program(run, _static(spec.shape), _static(result.shape))


def _saved_model_folder(path):
    """The folder of a SavedModel itself, of `path` or a version below it."""
    if (path / "saved_model.pb").is_file():
        return path
    versions = [
        child
        for child in path.iterdir()
        if child.is_dir() and child.name.isascii() and child.name.isdecimal()
    ]
    if versions:
        newest = max(versions, key=lambda child: int(child.name))
        if (newest / "saved_model.pb").is_file():
            return newest
        path = newest
    raise ValueError(
        f"'{path}' is no SavedModel. Expected saved_model.pb in the folder, "
        "or folders in it whose names are numbers, the highest with "
        "saved_model.pb."
    )


def _static(shape):
    """A `tf.TensorShape` as a tuple, or None if the rank is unknown."""
    return None if shape.rank is None else tuple(shape)


def _open_tflite(path, output, threads):
    try:
        interpreter = _interpreter(path, threads)
        signatures = interpreter.get_signature_list()
        interpreter.allocate_tensors()
    # LiteRT raises ValueError, RuntimeError or OSError.
    except Exception as error:
        raise _unreadable(path, "LiteRT model", error) from error
    if signatures:
        key = "serving_default"
        if key not in signatures:
            key, _ = _only(signatures, "signature", path)
        signature = interpreter.get_signature_runner(key)
        inputs = signature.get_input_details()
        outputs = signature.get_output_details()
    else:
        inputs = {d["name"]: d for d in interpreter.get_input_details()}
        outputs = {d["name"]: d for d in interpreter.get_output_details()}
    name, source = _only(inputs, "input", path)
    chosen, target = _choose(outputs, output, path)

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

    return _Program(run, _signature(source), _signature(target))


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
        return _cast(x, detail["dtype"])
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


def _open_onnx(path, output, threads):
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
        raise _unreadable(path, "ONNX model", error) from error
    name, source = _only(
        {tensor.name: tensor for tensor in session.get_inputs()}, "input", path
    )
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    chosen, target = _choose(outputs, output, path)
    dtype = _ONNX_TYPES.get(source.type)
    if dtype is None:
        raise ValueError(f"'{path}' takes {source.type}, which is no number.")

    def run(x):
        (result,) = session.run([chosen], {name: _cast(x, dtype)})
        return np.asarray(result)

    return _Program(run, _sizes(source.shape), _sizes(target.shape))


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


_OPENERS = {
    "keras": _open_keras,
    "saved_model": _open_saved_model,
    "tflite": _open_tflite,
    "onnx": _open_onnx,
}


def _unreadable(path, kind, error):
    return ValueError(f"'{path}' is no {kind} that can be loaded: {error}")


def _only(tensors, kind, path):
    """The name and the value of a dict with one."""
    if len(tensors) != 1:
        raise ValueError(
            f"Expected a model with one {kind}. Received: '{path}' with "
            f"{len(tensors)} {kind}s, {_listed(tensors)}"
        )
    (item,) = tensors.items()
    return item


def _choose(outputs, name, path):
    """The name and the value of the output that is asked for."""
    if name is None and len(outputs) == 1:
        return _only(outputs, "output", path)
    if name not in outputs:
        raise ValueError(
            "Invalid value for argument `output`. Expected one of "
            f"{_listed(outputs)}, the outputs of '{path}'. "
            f"Received: output={name!r}"
        )
    return name, outputs[name]


def _listed(names):
    return ", ".join(repr(name) for name in names) or "none"


def _cast(x, dtype):
    """`x` in another type; integers only of whole numbers in their range."""
    dtype = np.dtype(dtype)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        whole = np.all(np.isfinite(x)) and np.all(np.rint(x) == x)
        if not whole or x.min() < limits.min or x.max() > limits.max:
            raise ValueError(
                f"it takes whole numbers from {limits.min} to {limits.max}"
            )
    return x.astype(dtype)


def _agree(shape, other):
    """Whether two shapes may be one; None is any size, or any shape."""
    if shape is None or other is None:
        return True
    return len(shape) == len(other) and all(
        a == b or a is None or b is None
        for a, b in zip(shape, other, strict=True)
    )


# === What lies beside ===


def read_sidecar(path):
    """Reads a `preprocessing.json`.

    It is an object with the keys "class_names" (strings), "input_shape"
    (sizes, null for any), "mean" and "std" (one number per channel, in pixel
    units), each of which may be null, and "normalization_inside" (true or
    false).

    Args:
        path: Of the file.

    Returns:
        A `Sidecar`.

    Raises:
        ValueError: If it is too large, no JSON, or says something else; names
            the file and the key.
    """
    path = pathlib.Path(path)
    if path.stat().st_size > _SIDECAR_BYTES:
        raise ValueError(
            f"'{path}' has more than {_SIDECAR_BYTES} bytes. Expected a small "
            "JSON file."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is no JSON object.")
    missing = [key for key in _SIDECAR_KEYS if key not in content]
    if missing:
        raise ValueError(f"'{path}' lacks {_listed(missing)}.")

    def value(key, accepts, expected):
        if content[key] is None:
            return None
        if not accepts(content[key]):
            raise ValueError(
                f"'{path}': expected {key} to be {expected} or null. "
                f"Received: {repr(content[key])[:100]}"
            )
        return tuple(content[key])

    names = value("class_names", _are_names, "a list of strings")
    shape = value("input_shape", _are_sizes, "a list of integers >= 1")
    mean = value("mean", _are_numbers, "a list of finite numbers")
    std = value("std", _are_positive, "a list of finite numbers > 0")
    inside = content["normalization_inside"]
    if not isinstance(inside, bool):
        raise ValueError(
            f"'{path}': expected normalization_inside to be true or false. "
            f"Received: {repr(inside)[:100]}"
        )
    if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
        raise ValueError(
            f"'{path}': expected mean and std of equally many channels, or "
            f"both null. Received: mean={mean}, std={std}"
        )
    preprocessing = mean and (tuple(map(float, mean)), tuple(map(float, std)))
    return Sidecar(names, shape, preprocessing, inside)


def _read_beside(path):
    """The `Sidecar` of an artefact, of all that lies beside it."""
    path = path.absolute()
    places = [path.parent]
    folder = path
    if path.is_dir():
        folder = _saved_model_folder(path)
        # A version of a model has its sidecar beside the model.
        places += [path.parent.parent] if path.name.isdecimal() else []
    found = [place / SIDECAR for place in places]
    sidecar = next(
        (read_sidecar(file) for file in found if file.is_file()), Sidecar()
    )
    listed = folder / "assets" / "class_names.txt"
    if listed.is_file():
        names = _read_names(listed)
        if sidecar.class_names not in (None, names):
            raise ValueError(
                f"{SIDECAR} beside '{path}' and '{listed}' name different "
                "classes. Correct one of them."
            )
        sidecar = sidecar._replace(class_names=names)
    return sidecar


def _read_names(path):
    """Class names from a text file, one a line."""
    try:
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no UTF-8 text: {error}") from error
    if not names or not all(names):
        raise ValueError(f"'{path}': expected a class name in each line.")
    return names


def _are_names(value):
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str) and name for name in value)
    )


def _are_sizes(value):
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            size is None or (type(size) is int and size > 0) for size in value
        )
    )


def _are_numbers(value):
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(number) in (int, float) for number in value)
        and all(abs(number) < math.inf for number in value)
    )


def _are_positive(value):
    return _are_numbers(value) and all(number > 0 for number in value)
