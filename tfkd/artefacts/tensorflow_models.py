"""Keras models and SavedModels from their files."""

import re
import zipfile

import keras
import tensorflow as tf

from tfkd.artefacts.program import (
    Program,
    cast,
    choose,
    listed,
    only,
    unreadable,
)


def open_keras(path, output):
    """The `Program` of a Keras model, loaded in safe mode.

    Args:
        path: Of its file.
        output: Name of the output to return, or None if it has one.

    Returns:
        A `Program`.

    Raises:
        ValueError: If it cannot be loaded, or has other inputs or outputs.
    """
    model = load_keras(path)
    inputs = _keras_inputs(model)
    names = [tensor.name for tensor in keras.tree.flatten(inputs)]
    _, spec = only(_named(inputs, "input", names), "input", path)
    outputs = _named(
        model.compute_output_spec(inputs),
        "output",
        getattr(model, "output_names", None),
    )
    name, result = choose(outputs, output, path)
    place = list(outputs).index(name)

    @tf.function(
        input_signature=[tf.TensorSpec(spec.shape, spec.dtype)],
        autograph=False,
    )
    def forward(x):
        x = keras.tree.pack_sequence_as(inputs, [x])
        return keras.tree.flatten(model(x, training=False))[place]

    return Program(
        lambda x: forward(cast(x, spec.dtype)).numpy(),
        tuple(spec.shape),
        tuple(result.shape),
        model,
    )


def load_keras(path):
    """A Keras model from a .keras file, without running any code in it.

    Args:
        path: Of the file, which exists.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        ValueError: If it is damaged, needs code or classes that nobody has
            imported, or holds no model.
    """
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    # Each fault of a file has an exception of its own, of zip, JSON or HDF5.
    except Exception as error:
        reason = error
        unknown = _UNKNOWN.search(str(error))
        if unknown:  # Keras prints the whole architecture.
            reason = (
                f"it needs the {unknown[1]} '{unknown[2]}' of your own code. "
                "Import the module that registers it with "
                "keras.saving.register_keras_serializable first"
            )
        elif not zipfile.is_zipfile(path):  # Keras says it does not exist.
            reason = "it is damaged, or something else"
        raise unreadable(path, "Keras model", reason) from error
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"'{path}' holds no keras.Model but a {type(model).__name__}."
        )
    return model


_UNKNOWN = re.compile(r"Could not locate (class|function) '(\w+)'")


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
    """The leaves of a structure: dict, name -> leaf, in Keras' order.

    Keys are names; else `names`, if there are enough; else numbers.
    """
    if isinstance(tensors, dict):
        names = sorted(tensors)
    leaves = keras.tree.flatten(tensors)
    if names is None or len(set(names)) != len(leaves):
        names = [f"{kind}_{i}" for i in range(len(leaves))]
    return dict(zip(names, leaves, strict=True))


def open_saved_model(path, output):
    """The `Program` of a SavedModel.

    Args:
        path: Of its folder, or of one with a folder for each version.
        output: Name of the output to return, or None if it has one.

    Returns:
        A `Program`.

    Raises:
        ValueError: If it cannot be loaded, or has other inputs or outputs.
    """
    folder = saved_model_folder(path)
    try:
        loaded = tf.saved_model.load(str(folder))
    # A damaged graph, index or shard has an exception of its own each.
    except Exception as error:
        raise unreadable(path, "SavedModel", error) from error
    signatures = dict(loaded.signatures)
    serve = signatures.get("serving_default")
    if serve is None:
        if len(signatures) != 1:
            raise ValueError(
                f"'{path}' has no signature 'serving_default'. It has "
                f"{listed(signatures)}."
            )
        (serve,) = signatures.values()
    _, specs = serve.structured_input_signature
    name, spec = only(specs, "input", path)
    chosen, result = choose(serve.structured_outputs, output, path)

    def run(x, loaded=loaded):  # Nothing else keeps the variables alive.
        x = tf.constant(cast(x, spec.dtype.as_numpy_dtype))
        return serve(**{name: x})[chosen].numpy()

    return Program(run, _static(spec.shape), _static(result.shape))


def saved_model_folder(path):
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
