"""A SavedModel as a file for LiteRT, in one of four number formats."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from tfkd.export.saved_model import SIGNATURE


def to_tflite(folder, numbers="float32", calibration=None):
    """Converts a SavedModel.

    Args:
        folder: As `saved_model.write_saved_model` wrote it.
        numbers: "float32"; "float16": weights of 16 bits; "dynamic": large
            weights of 8 bits, the rest computed in float32; "int8":
            everything of 8 bits, inputs and outputs too.
        calibration: For "int8", as `check_calibration` returns it.

    Returns:
        The file's content.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(folder), signature_keys=[SIGNATURE]
    )
    if numbers != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if numbers == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if numbers == "int8":
        converter.representative_dataset = lambda: calibration
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    with warnings.catch_warnings():
        # For the calibration it takes an interpreter whose deletion it
        # announces.
        warnings.simplefilter("ignore")
        return converter.convert()


def check_calibration(calibration, known):
    """Examples to find the ranges of all tensors by.

    Args:
        calibration: Structure of arrays `[examples, ...]`, as the student
            takes them; from the training data.
        known: The student's `saved_model.Interface`.

    Returns:
        List of dicts, one an example, name of the input -> `[1, ...]`.

    Raises:
        ValueError: If an array has another shape or type than the student
            takes, holds a number that is not finite, or there is none.
    """
    if calibration is None:
        raise ValueError(
            'Format "tflite-int8" needs `calibration`: inputs [examples, ...] '
            "from the training data, by which the ranges of all tensors are "
            "found. Received: calibration=None"
        )
    try:
        keras.tree.assert_same_structure(known.structure, calibration)
        arrays = [np.asarray(part) for part in keras.tree.flatten(calibration)]
    except (TypeError, ValueError) as error:
        raise _refused(
            "the structure of the student's inputs",
            type(calibration).__name__,
        ) from error
    for array, spec in zip(arrays, known.inputs, strict=True):
        shape = tuple(spec.shape)
        received = f"shape {array.shape}, {array.dtype}"
        if (
            array.ndim != len(shape)
            or not len(array)
            or not spec.shape[1:].is_compatible_with(array.shape[1:])
        ):
            raise _refused(f"shape {shape} of at least one example", received)
        if len(array) != len(arrays[0]):
            raise _refused("as many examples of each input", received)
        floating = np.issubdtype(array.dtype, np.floating)
        integer = np.issubdtype(array.dtype, np.integer)
        if not (floating if spec.dtype.is_floating else integer):
            raise _refused(
                f"the type of the student's inputs, {spec.dtype.name}, and "
                "their units",
                received,
            )
        if not np.all(np.isfinite(array)):
            raise _refused("finite numbers", "NaN or infinity")
    return [
        {
            spec.name: array[i : i + 1].astype(spec.dtype.as_numpy_dtype)
            for array, spec in zip(arrays, known.inputs, strict=True)
        }
        for i in range(len(arrays[0]))
    ]


def _refused(expected, received):
    return ValueError(
        "Invalid value for argument `calibration`. Expected inputs from the "
        f"training data as the artefact takes them, with {expected}. "
        f"Received: {received}"
    )
