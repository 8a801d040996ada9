"""Checks of the data that users bring, before any training."""

import keras
import numpy as np
import tensorflow as tf

from tfkd.records import unpack

_OTHER_LABELS = (
    "Labels of the data differ from `labels` of the ContrastiveMatch. Give it "
    "those of the training data, in the order of their index. Index, label, "
    "known:"
)


def check_data(x, y, *, outlines, classes, known=()):
    """Refuses data that no step could use.

    Args:
        x: What `fit` takes: arrays, a `tf.data.Dataset` or anything else,
            which is not looked at.
        y: Labels, or None.
        outlines: `Outline`s of the networks that will be given x.
        classes: Number of classes that sparse labels are to be below, or
            None.
        known: List of the examples' classes by their index, integers `[N]`
            each: indices are to be below N, sparse labels equal to these.

    Returns:
        `x`; of a dataset with sparse labels or indices, one that checks them
        as they come.

    Raises:
        ValueError: If the data are empty, not batched, of another shape than
            a network takes, hold labels or indices out of range, or labels
            that are not the known ones.
    """
    if isinstance(x, tf.data.Dataset):
        if x.cardinality().numpy() == 0:
            raise ValueError("The dataset is empty.")
        specs = x.element_spec
        _require_shapes(specs[0] if _is_pair(specs) else specs, outlines)
        label, index, _ = unpack(specs[1] if _is_pair(specs) else None)
        if known and index is not None:
            x = x.map(
                lambda *batch: _with_checked_index(batch, known),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
        labelled = isinstance(label, tf.TensorSpec)
        labelled = labelled and label.shape.rank is not None
        if classes is None or not labelled:
            return x
        return x.map(
            lambda *batch: _with_checked_labels(batch, classes),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    y, index, _ = unpack(y)
    arrays = keras.tree.flatten(x)
    if not arrays:
        raise ValueError("The data are empty.")
    if all(hasattr(array, "shape") for array in arrays):
        if any(0 in array.shape[:1] for array in arrays):
            raise ValueError("The data are empty.")
        _require_shapes(x, outlines)
        if classes is not None and hasattr(y, "shape"):
            _require_labels(np.asarray(y), classes)
        if known and index is not None:
            _require_index(np.asarray(index), np.asarray(y), known)
    return x


def _is_pair(specs):
    return isinstance(specs, tuple) and len(specs) >= 2


def _with_checked_labels(batch, classes):
    """The batch, whose labels fail in the pipeline if they are wrong."""
    x, y, *rest = batch
    record = unpack(y)
    y = record.label
    if _is_one_hot(y.shape, classes):
        return batch
    integers = tf.cast(y, tf.int64)
    in_range = tf.reduce_all((integers >= 0) & (integers < classes))
    if y.dtype.is_floating:
        in_range &= tf.reduce_all(tf.cast(integers, y.dtype) == y)
    message = f"Labels out of range: expected 0 to {classes - 1}, got"
    check = tf.debugging.Assert(in_range, [message, y])
    with tf.control_dependencies([check]):
        return (x, record._replace(label=tf.identity(y)).pack(), *rest)


def _with_checked_index(batch, known):
    """The batch, whose indices fail in the pipeline if they are wrong."""
    x, y, *rest = batch
    record = unpack(y)
    index = tf.cast(record.index, tf.int64)
    label, checks = record.label, []
    for labels in known:
        last = len(labels) - 1
        in_range = tf.reduce_all((index >= 0) & (index <= last))
        message = f"Indices out of range: expected 0 to {last}, got"
        check = tf.debugging.Assert(in_range, [message, index])
        checks.append(check)
        if _is_sparse(getattr(label, "shape", None)):
            with tf.control_dependencies([check]):
                expected = tf.gather(tf.constant(labels), _flat(index))
            equal = tf.cast(_flat(label), expected.dtype) == expected
            details = [_OTHER_LABELS, index, label, expected]
            checks.append(tf.debugging.Assert(tf.reduce_all(equal), details))
    with tf.control_dependencies(checks):
        return (x, record._replace(index=tf.identity(index)).pack(), *rest)


def _require_index(index, y, known):
    for labels in known:
        if index.min() < 0 or index.max() >= len(labels):
            raise ValueError(
                f"Indices out of range: expected 0 to {len(labels) - 1}. "
                f"Received indices from {index.min()} to {index.max()}."
            )
        if _is_sparse(y.shape):
            index = index.astype(np.int64).ravel()
            wrong = np.flatnonzero(y.ravel() != labels[index])
            if wrong.size:
                first = wrong[0]
                raise ValueError(
                    f"{_OTHER_LABELS} {index[first]}, {y.ravel()[first]}, "
                    f"{labels[index[first]]}"
                )


def _is_sparse(shape):
    """Whether labels of this shape are one number an example."""
    shape = tf.TensorShape(shape)
    return shape.rank == 1 or (shape.rank == 2 and shape[-1] == 1)


def _flat(tensor):
    return tf.reshape(tensor, [-1])


def _require_labels(y, classes):
    if not y.size:
        raise ValueError("The labels are empty.")
    if _is_one_hot(y.shape, classes):
        return
    if y.min() < 0 or y.max() >= classes or np.any(y != np.floor(y)):
        raise ValueError(
            f"Labels out of range: expected 0 to {classes - 1}. "
            f"Received labels from {y.min()} to {y.max()}."
        )


def _is_one_hot(shape, classes):
    return len(shape) > 1 and shape[-1] == classes > 1


def _require_shapes(data, outlines):
    """Raises if a network takes other shapes than the data have."""
    for outline in outlines:
        try:
            keras.tree.assert_same_structure(data, outline.inputs)
        except (ValueError, TypeError):
            continue  # Keras maps structures by name and order.
        for ours, spec in zip(
            keras.tree.flatten(data),
            keras.tree.flatten(outline.inputs),
            strict=True,
        ):
            _require_shape(tf.TensorShape(ours.shape), spec.shape, outline)


def _require_shape(shape, wanted, outline):
    if shape.is_compatible_with(wanted):
        return
    # Keras gives numbers an axis of size 1.
    if shape.rank == 1 and wanted.rank == 2 and wanted[-1] in (1, None):
        return
    hint = ""
    if shape.is_compatible_with(wanted[1:]):
        hint = " They are not batched: use dataset.batch(n) or x[None]."
    raise ValueError(
        f"'{outline.name}' takes inputs of shape {wanted}, the data have "
        f"{shape}.{hint}"
    )
