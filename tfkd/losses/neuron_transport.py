"""Optimal transport between the neurons of two layers."""

import keras
import tensorflow as tf

from tfkd.arguments import check_choice, check_count
from tfkd.losses.attention_transfer import same_size
from tfkd.losses.distribution import DistributionLoss
from tfkd.transport import ipot, pairwise_cost

_PLANS = ("optimal", "identity", "uniform")


@keras.saving.register_keras_serializable("tfkd")
class NeuronTransport(DistributionLoss):
    """Cost of carrying the student's neurons onto the teacher's.

    Formula: `sum_ij P_ij M_ij` with `M_ij = |A_i - T_j|`, where A_i is what
    neuron i of the student does on the batch, a vector over its examples,
    T_j the same of the teacher, and P carries `1 / d` from each of the
    student's d neurons and `1 / d'` to each of the teacher's d':

    - "optimal": the plan of least cost, a constant of the gradient
    - "identity": neuron i to neuron i, which takes signals of one shape
    - "uniform": everything everywhere, the mean of M

    A neuron is an entry of the last axis. The channels of a map are neurons,
    whose positions count as further examples; of maps that differ in height
    or width the larger is shrunk to the smaller.

    With "optimal" the value does not depend on the order of neurons. M is 0,
    without gradient, where two neurons agree to the rounding of their squares
    (see "euclidean" of `tfkd.transport.pairwise_cost`).

    Args:
        plan: "optimal", "identity" or "uniform".
        normalize: Whether the squares in a norm are averaged over examples
            (by weight) and positions, which makes the value independent of
            the batch size. False: summed over those of positive weight, as
            printed.
        num_iters: Steps of the solver, >= 1; None: see
            `tfkd.transport.ipot`.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> teacher, student = [[0.0, 5.0]], [[5.0, 1.0]]  # one example, d = 2
    >>> round(float(NeuronTransport()(teacher, student)), 4)  # (1 + 0) / 2
    0.5
    >>> float(NeuronTransport("identity")(teacher, student))  # (5 + 4) / 2
    4.5

    Reference: Li, Grandvalet, Flamary, Courty & Dou 2020, equations 3 and 4.
    """

    def __init__(
        self,
        plan="optimal",
        *,
        normalize=True,
        num_iters=None,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.plan = check_choice(plan, _PLANS, "plan")
        self.same_shape = plan == "identity"
        self.normalize = bool(normalize)
        if num_iters is not None:
            check_count(num_iters, "num_iters")
        self.num_iters = num_iters

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in feature units."""
        teacher, student = _same_positions(y_true, y_pred)
        if not self.normalize:
            masses = tf.cast(masses > 0, masses.dtype)
        x = _neurons(student, masses, self.normalize)  # [d, positions]
        y = _neurons(teacher, masses, self.normalize)
        if self.plan == "identity":
            squared = tf.reduce_sum(tf.square(x - y), axis=1)  # [d]
            # The root's slope at 0 is infinite; there the distance has none.
            zero = squared == 0
            root = tf.sqrt(tf.where(zero, tf.ones_like(squared), squared))
            return tf.reduce_mean(tf.where(zero, tf.zeros_like(root), root))
        cost = pairwise_cost(x=x, y=y, metric="euclidean")
        if self.plan == "uniform":
            return tf.reduce_mean(cost)
        return ipot(cost, num_iters=self.num_iters).cost

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "plan": self.plan,
            "normalize": self.normalize,
            "num_iters": self.num_iters,
        }


def _neurons(signal, masses, normalize):
    """Each neuron as a point, whose coordinates are examples and positions.

    Args:
        signal: `[batch, positions, neurons]`.
        masses: What an example's square counts, `[batch]`.
        normalize: Whether the squares of positions are averaged.

    Returns:
        `[neurons, batch * positions]`.
    """
    factor = tf.sqrt(masses)
    if normalize:
        factor /= tf.sqrt(tf.cast(tf.shape(signal)[1], signal.dtype))
    points = tf.transpose(factor[:, None, None] * signal, [2, 0, 1])
    return tf.reshape(points, [points.shape[0] or tf.shape(points)[0], -1])


def _same_positions(y_true, y_pred):
    """Both signals as `[batch, positions, neurons]` with equal positions."""
    ranks = y_true.shape.rank, y_pred.shape.rank
    if ranks == (4, 4) and y_true.shape[1:3] != y_pred.shape[1:3]:
        y_true, y_pred = _same_sizes(y_true, y_pred)
    if (
        ranks[0] != ranks[1]
        or ranks[0] < 2
        or not y_true.shape[:-1].is_compatible_with(y_pred.shape[:-1])
    ):
        raise ValueError(
            "NeuronTransport compares the last axes of signals [batch, "
            "neurons], or of maps [batch, ..., neurons] with the same "
            "positions, or [batch, height, width, neurons]. Received: "
            f"y_true.shape={y_true.shape}, y_pred.shape={y_pred.shape}"
        )
    return [
        tf.reshape(z, [tf.shape(z)[0], -1, z.shape[-1] or tf.shape(z)[-1]])
        for z in (y_true, y_pred)
    ]


def _same_sizes(*maps):
    """Maps `[batch, height, width, channels]` at the smaller of each size."""
    alone = [
        # [batch * channels, height, width]
        tf.reshape(tf.transpose(z, [0, 3, 1, 2]), [-1, *z.shape[1:3]])
        for z in maps
    ]
    return [
        tf.transpose(
            tf.reshape(small, [-1, z.shape[3], *small.shape[1:]]), [0, 2, 3, 1]
        )
        for small, z in zip(same_size(*alone), maps, strict=True)
    ]
