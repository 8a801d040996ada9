"""The maximum mean discrepancy between two batches of signals."""

import keras
import tensorflow as tf

from tfkd.arguments import check_choice
from tfkd.losses.distribution import DistributionLoss, flatten
from tfkd.transport import pairwise_cost
from tfkd.transport.costs import unit_vectors
from tfkd.transport.moments import safe_sqrt


@keras.saving.register_keras_serializable("tfkd")
class MaximumMeanDiscrepancy(DistributionLoss):
    """Squared distance between two batches' means in the space of a kernel.

    Formula: `sum_ij w_i w_j [ k(t_i, t_j) + k(s_i, s_j) - 2 k(t_i, s_j) ]`,
    with w the masses of the examples (`1 / n` each), t the teacher's and s
    the student's signals, flattened, and k of

    - "gaussian": `exp(-|t - s|^2 / (2 sigma^2))`, with sigma^2 the median of
      `|t_i - s_j|^2` over all pairs, a constant of the gradient
    - "polynomial": `(n(t) . n(s))^2` with `n(v) = v / |v|`: compares the
      second moments of directions
    - "energy": `-|t - s|`, which makes this the energy distance: without a
      parameter, and with attraction at any distance

    This is the biased estimate (pairs i = i count), which is never negative
    and is zero for equal batches. NaN gives NaN.

    The Gaussian's width follows the batch. Of one example (or one with more
    than 0.71 of the mass) it is the distance of its own two signals: the value
    is then 0.787 for any distance but zero, and the gradient grows as they
    approach. For such batches use another kernel.

    Args:
        kernel: "gaussian", "polynomial" or "energy".
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `kernel` is unknown.

    Example: mean distances of 3.5 across, and of 2 and 1 within the batches.

    >>> loss = MaximumMeanDiscrepancy("energy")
    >>> round(float(loss([[0.0], [4.0]], [[5.0], [7.0]])), 4)
    5.0

    Reference: Gretton et al. 2012, equation 5; Huang & Wang 2017
    (polynomial); Székely & Rizzo 2013 (energy).
    """

    def __init__(
        self,
        kernel="gaussian",
        *,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.kernel = check_choice(kernel, tuple(_KERNELS), "kernel")

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`; the energy in units of signals."""
        within_teacher, within_student, across = _KERNELS[self.kernel](
            flatten(y_true), flatten(y_pred), masses
        )
        products = within_teacher + within_student - 2.0 * across
        value = tf.tensordot(masses, tf.linalg.matvec(products, masses), 1)
        # Rounding puts equal batches on either side of 0; their gradient is
        # right on both.
        return value + tf.stop_gradient(tf.nn.relu(value) - value)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "kernel": self.kernel}


def _gaussian(teacher, student, masses):
    distances = _squared_distances(teacher, student)
    width = tf.stop_gradient(_typical(distances[-1], masses))
    return [tf.exp(-distance / (2.0 * width)) for distance in distances]


def _polynomial(teacher, student, masses):
    teacher, student = unit_vectors(teacher), unit_vectors(student)
    return [
        tf.square(tf.matmul(x, y, transpose_b=True))
        for x, y in _sides(teacher, student)
    ]


def _energy(teacher, student, masses):
    return [-safe_sqrt(d) for d in _squared_distances(teacher, student)]


_KERNELS = {
    "gaussian": _gaussian,
    "polynomial": _polynomial,
    "energy": _energy,
}


def _sides(teacher, student):
    return (teacher, teacher), (student, student), (teacher, student)


def _squared_distances(teacher, student):
    """Squared distances within both batches and across, `[n, n]` each."""
    result = []
    for x, y in _sides(teacher, student):
        distances = pairwise_cost(x=x, y=y, metric="squared_euclidean")
        # What is left of a distance of 0 after rounding would be a thousand
        # times larger after a root.
        least = 1e-6 * tf.stop_gradient(tf.reduce_mean(distances))
        distances = tf.where(
            distances <= least, tf.zeros_like(distances), distances
        )
        # An example's own distance goes to 0 in training: without rounding.
        own = tf.reduce_sum(tf.math.squared_difference(x, y), axis=-1)
        result.append(tf.linalg.set_diag(distances, own))
    return result


def _typical(distances, masses):
    """Median of the distances, by mass; their mean if it is 0, else 1."""
    weights = tf.reshape(masses[:, None] * masses[None, :], [-1])
    flat = tf.reshape(distances, [-1])
    order = tf.argsort(flat)
    below = tf.cumsum(tf.gather(weights, order))
    # The upper one of two in the middle; halves are not exact in rounding.
    middle = tf.reduce_sum(tf.cast(below <= 0.5 + 1e-5, tf.int32))
    middle = tf.minimum(middle, tf.size(flat) - 1)
    median = tf.gather(tf.gather(flat, order), middle)
    mean = tf.tensordot(weights, flat, 1)
    typical = tf.where(median > 0, median, mean)
    return tf.where(typical > 0, typical, tf.ones_like(typical))
