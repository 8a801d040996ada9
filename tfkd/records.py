"""What may travel beside a label: an example's index, the teacher's side.

Keras hands a step `(x, y, sample_weight)`, so what else belongs to an
example travels in y, as a dict: `{"label": y, "index": i, "teacher": ...}`.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class Record(NamedTuple):
    """The parts of y.

    Attributes:
        label: The label, as Keras knows y.
        index: The example's number in the dataset, `[batch]`, or None.
        teacher: What `tfkd.caching` keeps of a teacher, key -> structure, or
            None.
    """

    label: Any
    index: Any = None
    teacher: Any = None

    def pack(self):
        """The parts as y: a dict, or the bare label where there is no more."""
        parts = {
            key: value
            for key, value in self._asdict().items()
            if value is not None or key == "label"
        }
        return parts if len(parts) > 1 else self.label


def unpack(y):
    """The parts of y; anything that is not a record is a label.

    Args:
        y: A label, a structure of labels or a record.

    Returns:
        A `Record`.
    """
    if isinstance(y, Record):
        return y
    is_record = (
        isinstance(y, dict)
        and "label" in y
        and len(y) > 1
        and set(y) <= set(Record._fields)
    )
    return Record(**y) if is_record else Record(y)


def with_class_weight(x, y, sample_weight, class_weight):
    """Turns weights of classes into weights of examples.

    Keras does so itself unless labels are records.

    Args:
        x: What `fit` takes.
        y: Labels, records, or None where `x` is a dataset.
        sample_weight: Weights of arrays, or None.
        class_weight: Class -> weight. Classes that are missing weigh 1.

    Returns:
        `x`, `sample_weight` and what is left of `class_weight`: None where
        labels are records.
    """
    classes = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            [int(label) for label in class_weight],
            [float(weight) for weight in class_weight.values()],
            key_dtype=tf.int64,
            value_dtype=tf.float32,
        ),
        default_value=1.0,
    )

    def weigh(label, given):
        weights = classes.lookup(_sparse(label))
        return weights if given is None else weights * tf.cast(given, "float32")

    if isinstance(x, tf.data.Dataset):
        specs = x.element_spec
        if len(specs) < 2 or unpack(specs[1]).label is specs[1]:
            return x, sample_weight, class_weight
        weighted = x.map(
            lambda x, y, given=None: (x, y, weigh(unpack(y).label, given)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return weighted, sample_weight, None
    label = unpack(y).label
    if label is y:
        return x, sample_weight, class_weight
    return (
        x,
        np.asarray(weigh(tf.convert_to_tensor(label), sample_weight)),
        None,
    )


def _sparse(label):
    """Labels as classes `[batch]`, int64."""
    if label.shape.rank == 2 and label.shape[-1] != 1:
        return tf.argmax(label, axis=-1)
    return tf.cast(tf.reshape(label, [-1]), tf.int64)
