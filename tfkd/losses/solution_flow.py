"""How a network's maps go over into one another."""

import itertools

import keras
import tensorflow as tf

from tfkd.losses.attention_transfer import same_size
from tfkd.losses.distribution import comparable


@keras.saving.register_keras_serializable("tfkd")
class SolutionFlow(keras.losses.Loss):
    """Squared difference of the products of adjacent maps.

    Formula: `sum_l mean_cd (G_l (teacher) - G_l (student))_cd^2` per
    example, with `G_l = F_l^T F_(l+1) / positions` the mean over positions
    of the products of channel c of map l and channel d of the next, both
    brought to the smaller size as `AttentionTransfer` does.

    It compares several places at once: either side is a list of maps, as a
    match with `joint=True` makes them. Sizes may differ between teacher and
    student, widths may not.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> teacher = [[[[[1.0], [2.0]]]], [[[[3.0], [4.0]]]]]  # (3 + 8) / 2
    >>> student = [[[[[1.0], [1.0]]]], [[[[1.0], [0.0]]]]]  # 1 / 2
    >>> float(SolutionFlow()(teacher, student))
    25.0

    Reference: Yim et al. 2017, equations 1 and 2.
    """

    same_shape = False
    joint = True

    def call(self, y_true, y_pred):
        """Difference of each example's products.

        Args:
            y_true: List of the teacher's maps, two or more, each
                `[batch, height, width, channels]`, sizes known.
            y_pred: List of as many maps of the student, each of the
                teacher's number of channels.

        Returns:
            Tensor `[batch]`, in the maps' unit to the fourth power.

        Raises:
            ValueError: If sides are no such lists, or widths differ.
        """
        sides = (y_true, y_pred)
        if not all(isinstance(side, (list, tuple)) for side in sides) or (
            len(y_true) != len(y_pred) or len(y_true) < 2
        ):
            raise ValueError(
                f"Loss '{self.name}' compares two lists of as many maps, two "
                "or more. Use tfkd.Match(..., at=[...], joint=True). "
                f"Received: y_true={y_true!r}, y_pred={y_pred!r}"
            )
        pairs = [
            comparable(teacher, student, same_shape=False)
            for teacher, student in zip(y_true, y_pred, strict=True)
        ]
        for teacher, student in pairs:
            if teacher.shape.rank != 4 or student.shape.rank != 4:
                raise ValueError(
                    "Products need maps [batch, height, width, channels]. "
                    f"Received: y_true.shape={teacher.shape}, "
                    f"y_pred.shape={student.shape}"
                )
            if teacher.shape[-1] != student.shape[-1]:
                raise ValueError(
                    "Expected maps of equal widths; pass a projector. "
                    f"Received: y_true.shape={teacher.shape}, "
                    f"y_pred.shape={student.shape}"
                )
        flows = [_flows(maps) for maps in zip(*pairs, strict=True)]
        return tf.add_n(
            [
                tf.reduce_mean(tf.square(teacher - student), axis=[1, 2])
                for teacher, student in zip(*flows, strict=True)
            ]
        )

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "dtype": self.dtype}


def _flows(maps):
    """Products of adjacent maps, a list of `[batch, channels, channels]`."""
    flows = []
    for pair in itertools.pairwise(maps):
        one, other = (_positions(m) for m in same_size(*pair))
        flows.append(tf.matmul(one, other, transpose_a=True) / one.shape[1])
    return flows


def _positions(maps):
    """`[batch, height, width, channels]` as `[batch, positions, channels]`."""
    return tf.reshape(maps, [-1, maps.shape[1] * maps.shape[2], maps.shape[3]])
