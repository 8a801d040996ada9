"""Where each channel of a map is active, as a distribution of channels."""

import keras
import tensorflow as tf

from tfkd.losses.attention_transfer import same_size
from tfkd.losses.distribution import comparable


@keras.saving.register_keras_serializable("tfkd")
class NeuronSelectivity(keras.losses.Loss):
    """Maximum mean discrepancy between the channels of two maps.

    Formula: `mean_cd (t_c . t_d)^2 + mean_cd (s_c . s_d)^2 -
    2 mean_cd (s_c . t_d)^2` per example, with `t_c = n(T_c)` and `s_c` the
    teacher's and the student's channels as vectors over positions,
    `n(v) = v / |v|`, and 0 where |v| < 1e-12.

    A channel is a point on the sphere of positions, and the squared product
    a kernel between points, so the numbers of channels may differ. Sizes
    too: both maps are brought to the smaller of each, as
    `AttentionTransfer` does.

    The products are taken over positions or over channels, whichever are
    fewer, so that memory is that of the maps and of the smaller Gram
    matrices.

    Args:
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Example:

    >>> teacher, student = [[[[1.0], [0.0]]]], [[[[1.0], [1.0]]]]
    >>> round(float(NeuronSelectivity()(teacher, student)), 4)  # 1 + 1 - 2/2
    1.0

    Reference: Huang & Wang 2017, equations 5 and 7 (polynomial kernel of
    degree 2 without offset).
    """

    same_shape = False

    def call(self, y_true, y_pred):
        """Discrepancy of each example.

        Args:
            y_true: Teacher's map, `[batch, height, width, channels]`.
            y_pred: Student's map, likewise; sizes and channels may differ.

        Returns:
            Tensor `[batch]`, without unit.

        Raises:
            ValueError: If a signal has another rank.
        """
        y_true, y_pred = comparable(y_true, y_pred, same_shape=False)
        for signal in (y_true, y_pred):
            if signal.shape.rank != 4:
                raise ValueError(
                    "Selectivity needs maps [batch, height, width, channels]. "
                    f"Received: shape={signal.shape}"
                )
        teacher, student = map(_flat, same_size(y_true, y_pred))
        positions = teacher.shape[1]
        if positions <= min(teacher.shape[2], student.shape[2]):
            # mean_cd (s_c . t_d)^2 = <S S^T, T T^T> / (channels of both), so
            # the whole is the square of one difference.
            difference = _outer(teacher) - _outer(student)
            return tf.reduce_sum(tf.square(difference), axis=[1, 2])
        among_teacher = _products(teacher)
        among_student = _products(student)
        between = tf.matmul(student, teacher, transpose_a=True)
        # Lengths are in the products already: no copy of the maps is made.
        ours = _inverse_root(tf.linalg.diag_part(among_student))
        theirs = _inverse_root(tf.linalg.diag_part(among_teacher))
        return (
            _kernel(among_teacher, theirs, theirs)
            + _kernel(among_student, ours, ours)
            - 2.0 * _kernel(between, ours, theirs)
        )

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "dtype": self.dtype}


def _flat(maps):
    """`[batch, height, width, channels]` as `[batch, positions, channels]`."""
    return tf.reshape(maps, [-1, maps.shape[1] * maps.shape[2], maps.shape[3]])


def _outer(maps):
    """Mean outer product of unit channels, `[batch, positions, positions]`."""
    lengths = _inverse_root(tf.reduce_sum(tf.square(maps), axis=1))
    directions = maps * lengths[:, None, :]
    products = _products(tf.linalg.matrix_transpose(directions))
    return products / maps.shape[2]


@tf.custom_gradient
def _products(maps):
    """`M^T M` of each example, `[batch, columns, columns]`."""

    # TensorFlow's own gradient is a sum of two products as large as the maps,
    # M U^T and M U; this is M (U^T + U).
    def gradient(upstream):
        both = upstream + tf.linalg.matrix_transpose(upstream)
        return tf.matmul(maps, both)

    return tf.matmul(maps, maps, transpose_a=True), gradient


def _kernel(products, rows, columns):
    """Mean squared cosine, `[batch]`, of products and inverse lengths."""
    cosines = products * rows[:, :, None] * columns[:, None, :]
    return tf.reduce_mean(tf.square(cosines), axis=[1, 2])


def _inverse_root(squared):
    """One over the lengths of the channels; 0 for those without one."""
    short = squared < 1e-24
    inverse = tf.math.rsqrt(tf.where(short, tf.ones_like(squared), squared))
    return tf.where(short, tf.zeros_like(squared), inverse)
