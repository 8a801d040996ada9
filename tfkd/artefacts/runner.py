"""Artefacts to be called on batches."""

import pathlib

import numpy as np

from tfkd.arguments import check_count
from tfkd.artefacts.onnx import open_onnx
from tfkd.artefacts.program import agree
from tfkd.artefacts.sidecar import SIDECAR, Sidecar, read_beside
from tfkd.artefacts.tensorflow_models import (
    open_keras,
    open_saved_model,
    saved_model_folder,
)
from tfkd.artefacts.tflite import open_tflite


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
        white: Value of a white pixel in the units of its training images, or
            None where nobody has said.
        bytes: Size of the file, or of all files of the SavedModel.
        model: The `keras.Model` of a Keras file; else None.
    """

    def __init__(self, kind, path, place, program, sidecar, *, one_of_several):
        self.kind = kind
        self.path = path
        files = place.rglob("*") if place.is_dir() else [place]
        self.bytes = sum(f.stat().st_size for f in files if f.is_file())
        self.model = program.model
        self.input_shape = program.input_shape
        self.num_classes = program.num_classes
        self._run = program.run
        self._batch = program.batch
        self._learn(sidecar, one_of_several)

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

    def _learn(self, sidecar, one_of_several):
        """Takes over what a sidecar says, if it is about this artefact."""
        names, shape = sidecar.class_names, sidecar.input_shape
        if one_of_several and len(names or ()) != self.num_classes:
            names = None  # of another output
        self.class_names = names
        self.preprocessing = sidecar.preprocessing
        self.normalization_inside = sidecar.normalization_inside
        self.white = sidecar.white
        if names is not None:
            if self.num_classes not in (None, len(names)):
                raise ValueError(
                    f"'{self.path}' has {self.num_classes} classes, but "
                    f"beside it {len(names)} are named. Correct the names, "
                    f"or move {SIDECAR} away."
                )
            self.num_classes = len(names)
        if shape is not None:
            if not agree(self.input_shape, shape):
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
        if not len(inputs) or not agree(self.input_shape, inputs.shape[1:]):
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


def open_artefact(path, *, output=None, threads=None, beside=True):
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
        beside: Whether to read what lies beside the artefact; False if that
            may belong to another.

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
    if threads is not None and kind not in _THREADED:
        raise ValueError(
            "Invalid value for argument `threads`. Expected None, for "
            "TensorFlow has one number for the whole process "
            "(tf.config.threading.set_intra_op_parallelism_threads). "
            f"Received: threads={threads} for '{path}'"
        )
    if kind in _THREADED:
        program = _OPENERS[kind](path, output, threads)
    else:
        program = _OPENERS[kind](path, output)
    place = saved_model_folder(path) if kind == "saved_model" else path
    sidecar = read_beside(place) if beside else Sidecar()
    return Runner(
        kind,
        path,
        place,
        program,
        sidecar,
        one_of_several=output is not None,
    )


_OPENERS = {
    "keras": open_keras,
    "saved_model": open_saved_model,
    "tflite": open_tflite,
    "onnx": open_onnx,
}
_THREADED = ("tflite", "onnx")
