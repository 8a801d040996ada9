"""Attention maps: where a network looks, whatever its width."""

import keras
import numpy as np
import tensorflow as tf

from tfkd.losses.distribution import comparable, flatten
from tfkd.transport.costs import unit_vectors


@keras.saving.register_keras_serializable("tfkd")
class AttentionTransfer(keras.losses.Loss):
    """Distance between normalised attention maps.

    Formula: `| n(A_T) - n(A_S) |`, with the map `A = sum_c |Z_c|^2` of a
    feature Z and `n(v) = v / |v|` over its positions. With `squared=True`,
    the mean over positions of the squared difference, as code in circulation
    has it.

    Widths may differ. Sizes too: both maps are brought to the smaller of
    each, by average pooling where it divides the larger, else by bilinear
    interpolation.

    Args:
        squared: Whether to take the mean squared difference instead.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> teacher, student = np.zeros([2, 1, 1, 2, 3])
    >>> teacher[0, 0, 0], student[0, 0, 1] = 1.0, 1.0
    >>> round(float(AttentionTransfer()(teacher, student)), 4)
    1.4142

    Reference: Srinivas & Fleuret 2018, equations 8 and 9; Zagoruyko &
    Komodakis 2017 (squared).
    """

    same_shape = False

    def __init__(
        self,
        squared=False,
        *,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.squared = bool(squared)

    def call(self, y_true, y_pred):
        """Distance of each example's maps.

        Args:
            y_true: Teacher's feature, `[batch, height, width, channels]`.
            y_pred: Student's feature, likewise; sizes and channels may
                differ.

        Returns:
            Tensor `[batch]`, without unit.

        Raises:
            ValueError: If a signal has another rank.
        """
        y_true, y_pred = comparable(y_true, y_pred, same_shape=False)
        teacher, student = same_size(
            attention_map(y_true), attention_map(y_pred)
        )
        difference = unit_vectors(flatten(teacher)) - unit_vectors(
            flatten(student)
        )
        squared = tf.square(difference)
        if self.squared:
            return tf.reduce_mean(squared, axis=-1)
        total = tf.reduce_sum(squared, axis=-1)
        # The root's slope at 0 is infinite; there the distance has none.
        zero = total == 0.0
        root = tf.sqrt(tf.where(zero, tf.ones_like(total), total))
        return tf.where(zero, tf.zeros_like(total), root)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "squared": self.squared,
            "dtype": self.dtype,
        }


def attention_map(feature):
    """The map `sum_c |Z_c|^2` of a feature.

    Args:
        feature: `[batch, height, width, channels]`.

    Returns:
        `[batch, height, width]`, in squared feature units.

    Raises:
        ValueError: If the feature has another rank.
    """
    if feature.shape.rank != 4:
        raise ValueError(
            "Attention maps need features [batch, height, width, channels]. "
            f"Received: shape={feature.shape}"
        )
    return tf.reduce_sum(tf.square(feature), axis=-1)


def same_size(x, y):
    """Two maps brought to the smaller height and width of both.

    Args:
        x: `[batch, height, width, ...]`; sizes that differ must be static.
        y: Likewise.

    Returns:
        The two maps, of one size.
    """
    sizes = zip(x.shape[1:3], y.shape[1:3], strict=True)
    size = [a if a == b else min(a, b) for a, b in sizes]
    return _shrink(x, size), _shrink(y, size)


def _shrink(x, size):
    """A map at a smaller size, differentiable twice.

    Bilinear interpolation as two products: TensorFlow's own operation loses
    its second derivative.
    """
    last = x.shape.rank - 1
    for axis, (old, new) in enumerate(
        zip(x.shape[1:3], size, strict=True), start=1
    ):
        if old != new:
            weights = tf.constant(_averaging(old, new), x.dtype)
            x = tf.tensordot(x, weights, [[axis], [0]])  # the axis goes last
            x = tf.transpose(x, [*range(axis), last, *range(axis, last)])
    return x


def _averaging(old, new):
    """Matrix `[old, new]` that averages windows or interpolates."""
    if old % new == 0:
        return np.repeat(np.eye(new), old // new, axis=0) * (new / old)
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(np.arange(old)[:, None] - centers[None, :])
    weights = np.maximum(1.0 - distance, 0.0)
    return weights / weights.sum(axis=0)
