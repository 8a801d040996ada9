"""The Sinkhorn divergence between two batches of signals."""

import keras
import tensorflow as tf

from tfkd.arguments import check_count, check_positive
from tfkd.losses.distribution import DistributionLoss, flatten
from tfkd.transport import ipot, pairwise_cost
from tfkd.transport.costs import check_metric


@keras.saving.register_keras_serializable("tfkd")
class SinkhornDivergence(DistributionLoss):
    """Entropic optimal transport less what it gives for equal batches.

    Formula: `E(T, S) - (E(T, T) + E(S, S)) / 2`, with

        E(X, Y) = min_P sum_ij P_ij C_ij + e sum_ij P_ij log(P_ij / (a_i b_j))

    over plans P that carry the mass of every example, with C_ij the cost
    between the signals i of X and j of Y, flattened. The strength e is
    `epsilon` times the mean cost of the three, a constant of the gradient.

    A strong e blurs the plan, so that the gradient changes smoothly with the
    signals; subtracting takes out the bias towards the mean that this has.
    From `OptimalTransport`, at a small epsilon, to a distance of means, at a
    large one (for squared costs).

    The term of the teacher alone is out of the gradient: it sends none to a
    projector on the teacher's side. The three are solved as one by
    `tfkd.transport.ipot`, in the log domain.

    Args:
        cost: A metric of `tfkd.transport.pairwise_cost`.
        epsilon: Strength of the entropy, relative to the mean cost. > 0.
        num_iters: Steps of the solver. >= 1.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> loss = SinkhornDivergence(epsilon=1000.0)
    >>> round(float(loss([[0.0], [4.0]], [[5.0], [5.0]])), 2)  # (2 - 5)^2
    9.0

    Reference: Feydy et al. 2019, equation 3.
    """

    def __init__(
        self,
        cost="squared_euclidean",
        *,
        epsilon=0.1,
        num_iters=50,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_metric(cost, "cost")
        self.cost = cost
        self.epsilon = check_positive(epsilon, "epsilon")
        self.num_iters = check_count(num_iters, "num_iters")

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in units of the cost."""
        teacher, student = flatten(y_true), flatten(y_pred)
        fixed = tf.stop_gradient(teacher)
        cost = pairwise_cost(
            x=tf.stack([teacher, student, fixed]),
            y=tf.stack([student, student, fixed]),
            metric=self.cost,
        )  # [3, batch, batch]
        mean = masses * tf.linalg.matvec(tf.reduce_mean(cost, axis=0), masses)
        strength = self.epsilon * tf.stop_gradient(tf.reduce_sum(mean))
        strength = tf.maximum(strength, 1e-30)
        # After N steps of beta the plan is the entropic one of beta / N.
        transport = ipot(
            cost,
            a=masses,
            b=masses,
            beta=strength * self.num_iters,
            num_iters=self.num_iters,
        )
        plan = transport.plan
        product = masses[:, None] * masses[None, :]
        ratio = tf.math.divide_no_nan(plan, product)
        entropy = tf.reduce_sum(tf.math.xlogy(plan, ratio), axis=[1, 2])
        cross, own, constant = tf.unstack(transport.cost + strength * entropy)
        return cross - 0.5 * (own + constant)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "cost": self.cost,
            "epsilon": self.epsilon,
            "num_iters": self.num_iters,
        }
