"""A SavedModel as an ONNX file."""

import contextlib
import importlib
import logging

import numpy as np
import tensorflow as tf

from tfkd.export.blame import UnsupportedError
from tfkd.export.saved_model import SIGNATURE

_OPSET = 18


def require_onnx():
    """Imports what conversion to ONNX needs.

    Raises:
        ImportError: If it is not installed, with what to do.
    """
    for name in ("onnx", "tf2onnx"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'Format "onnx" needs {name}. Install it: pip install '
                "onnx tf2onnx onnxruntime"
            ) from error


def to_onnx(folder):
    """Converts a SavedModel.

    Args:
        folder: As `saved_model.write_saved_model` wrote it.

    Returns:
        The file's content.

    Raises:
        UnsupportedError: If ONNX lacks an operation.
    """
    import onnx
    import tf2onnx

    loaded = tf.saved_model.load(str(folder))  # keeps the weights alive
    served = loaded.signatures[SIGNATURE]
    specs = list(served.structured_input_signature[1].values())

    @tf.function(input_signature=specs, autograph=False)
    def serve(*inputs):
        return served(
            **{spec.name: x for spec, x in zip(specs, inputs, strict=True)}
        )

    with _silent("tf2onnx"):
        model, _ = tf2onnx.convert.from_function(
            serve,
            specs,
            opset=_OPSET,
            custom_op_handlers={"Erfc": (_one_minus_erf, [])},
        )
    # tf2onnx copies what it does not know into a file that nothing can read.
    missing = [
        (node.op_type, node.name)
        for node in _nodes(model.graph)
        if not onnx.defs.has(node.op_type, node.domain)
    ]
    if missing:
        raise UnsupportedError(missing)
    _fill_in_constants(model.graph, serve.get_concrete_function(*specs))
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _fill_in_constants(graph, function):
    """Gives constants of a layer their values; tf2onnx takes them for inputs.

    Args:
        graph: A GraphProto.
        function: The ConcreteFunction that it was made of.
    """
    import onnx

    inputs = {value.name: value for value in graph.input}
    used = {name for node in _nodes(graph) for name in node.input}
    for tensor, placeholder in function.graph.captures:
        name = placeholder.name
        if name in inputs:
            graph.input.remove(inputs[name])
            if name in used:
                graph.initializer.append(
                    onnx.numpy_helper.from_array(tensor.numpy(), name)
                )


def _one_minus_erf(context, node, name, args):
    """erfc(x) = 1 - erf(x), which the GELU needs."""
    del args
    (x,), (shape,), (dtype,) = (
        node.input,
        node.output_shapes,
        node.output_dtypes,
    )
    outputs = node.output
    context.remove_node(name)
    one = context.make_const(f"{name}_one", np.array(1.0, np.float32))
    erf = context.make_node("Erf", [x], name=f"{name}_erf")
    context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        name=name,
        outputs=outputs,
        shapes=[shape],
        dtypes=[dtype],
    )


def _nodes(graph):
    """The nodes of a graph and of the graphs in them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


@contextlib.contextmanager
def _silent(name):
    """Keeps a logger quiet; what went wrong is told by exceptions."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
