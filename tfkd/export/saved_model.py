"""A student as a SavedModel: one function and the weights that it reads."""

import pathlib
import re
import tempfile
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfkd.export.blame import UnsupportedError
from tfkd.trace import input_specs

SIGNATURE = "serving_default"
NAMED_SIGNATURE = "serve"

# They call back into the process that traced them.
_BOUND_TO_PROCESS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


class Interface(NamedTuple):
    """What a student takes.

    Attributes:
        structure: Structure of `tf.TensorSpec`, as the student takes it.
        inputs: The same as a flat list, each with a name of its own.
    """

    structure: Any
    inputs: list[tf.TensorSpec]


def interface(student):
    """The `Interface` of a built Keras model, of any batch size.

    Raises:
        ValueError: If its input is unknown.
    """
    structure = input_specs(student)
    flat = keras.tree.flatten(structure)
    given = [tensor.name for tensor in getattr(student, "inputs", None) or ()]
    if any(name.startswith("keras_tensor") for name in given):
        given = None  # Keras counts them up.
    names = _unique(given, "input", len(flat))
    inputs = [
        tf.TensorSpec(spec.shape, spec.dtype, name)
        for spec, name in zip(flat, names, strict=True)
    ]
    return Interface(structure, inputs)


def write_saved_model(student, path, class_names=None):
    """Writes what `student(inputs, training=False)` computes.

    `student.export` would not do: there some layers of Keras (`Resizing`, for
    one) let those after them compute as in training.

    Args:
        student: A built Keras model of float32.
        path: Folder to write.
        class_names: Strings, one a class, for the asset "class_names.txt"; or
            None.

    Raises:
        UnsupportedError: If an operation needs this very process.
    """
    known = interface(student)

    @tf.function(input_signature=known.inputs)
    def serve(*inputs):
        inputs = keras.tree.pack_sequence_as(known.structure, inputs)
        return _named(student, student(inputs, training=False))

    function = serve.get_concrete_function()
    student._clear_losses()  # those of the graph, which nobody can use
    bound = [
        (operation.type, operation.name)
        for operation in function.graph.get_operations()
        if operation.type in _BOUND_TO_PROCESS
    ]
    if bound:
        raise UnsupportedError(bound)
    # No optimizer, no seeds, nothing that was not read but lookup tables.
    module = tf.Module()
    module.weights = list(function.variables)
    module.tables = [
        value
        for layer in student._flatten_layers()
        for value in vars(layer).values()
        if isinstance(value, tf.saved_model.experimental.TrackableResource)
    ]
    module.serve = serve
    signatures = {SIGNATURE: function, NAMED_SIGNATURE: function}
    with tempfile.TemporaryDirectory() as folder:
        if class_names is not None:
            file = pathlib.Path(folder) / "class_names.txt"
            file.write_text("".join(f"{name}\n" for name in class_names))
            module.class_names = tf.saved_model.Asset(str(file))
        tf.saved_model.save(module, str(path), signatures)


def _named(student, outputs):
    """Dict, name -> tensor, of a student's outputs in their order.

    Names are the keys of a dict of outputs, or else those of the layers that
    make them.
    """
    pairs = keras.tree.flatten_with_path(outputs)
    keys = [
        "_".join(map(str, path))
        for path, _ in pairs
        if any(isinstance(part, str) for part in path)
    ]
    given = keys or _output_names(student)
    names = _unique(given, "output", len(pairs))
    # An output may be an input, which a signature cannot return as it is.
    return {
        name: tf.identity(tensor)
        for name, (_, tensor) in zip(names, pairs, strict=True)
    }


def _output_names(student):
    """Names of the layers that make the outputs, or None.

    Of a network that is a layer itself, its own output's layer gives it.
    """
    names = getattr(student, "output_names", None)
    if names and len(names) == 1:
        layer = student.get_layer(names[0])
        if isinstance(layer, keras.Model):
            return _output_names(layer) or names
    return names


def _unique(names, kind, count):
    """`count` names fit for a signature: the given ones, or numbered ones."""
    names = [re.sub(r"\W", "_", name) for name in names or ()]
    if len(set(names)) == count == len(names):
        return names
    return [f"{kind}_{index}" for index in range(count)]
