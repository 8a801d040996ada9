"""Optimal transport of features and predictions together."""

import keras
import tensorflow as tf

from tfkd.arguments import check_choice, check_count, check_positive
from tfkd.losses.distribution import DistributionLoss, flatten
from tfkd.losses.soft_targets import mean_probabilities
from tfkd.transport import ipot, mean_reduced_cost, pairwise_cost

_LABEL_DISTANCES = ("squared_euclidean", "cross_entropy")


@keras.saving.register_keras_serializable("tfkd")
class JointTransport(DistributionLoss):
    """Least cost of carrying examples, features and predictions alike.

    Formula: `min_P sum_ij P_ij (|t_i - s_j|^2 + w L(p_i, q_j))`, over plans P
    that carry the mass of every example, with t, s the features of teacher
    and student, flattened, and p, q their class probabilities: softmax of
    the networks' outputs, which must be logits. L is

    - "squared_euclidean": `|p - q|^2`
    - "cross_entropy": `-sum_k p_k log q_k`, which is not zero at the teacher

    So an example is not carried to one that looks alike but is taken for
    another class. The value is about 1e-3 above the least cost where features
    of 64 and more dimensions weigh as much as predictions, and some percent
    where predictions weigh most; `tolerance` asks for less.

    Args:
        weight: w, in squared feature units. >= 0. None: the ratio of the
            mean costs of features and predictions, a constant of the
            gradient, so that both weigh alike.
        label_distance: L.
        num_iters: Steps of the solver, >= 1; None: see
            `tfkd.transport.ipot`.
        tolerance: Relative gap to go on to, see `tfkd.transport.ipot`, or
            None.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> loss = JointTransport(weight=0.0)
    >>> outputs = [[3.0, 0.0], [0.0, 3.0]]
    >>> teacher = {"features": [[0.0], [5.0]], "outputs": outputs}
    >>> student = {"features": [[5.0], [1.0]], "outputs": outputs}
    >>> round(float(loss(teacher, student)), 4)
    0.5

    Reference: Fernandes Montesuma 2025, equation 4; Courty et al. 2017.
    """

    signals = ("features", "outputs")
    needs_logits = True

    def __init__(
        self,
        weight=None,
        *,
        label_distance="squared_euclidean",
        num_iters=None,
        tolerance=None,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if weight is not None and weight != 0:
            weight = check_positive(weight, "weight")
        if tolerance is not None:
            check_positive(tolerance, "tolerance")
        self.weight = weight
        self.label_distance = check_choice(
            label_distance, _LABEL_DISTANCES, "label_distance"
        )
        if num_iters is not None:
            check_count(num_iters, "num_iters")
        self.num_iters = num_iters
        self.tolerance = tolerance

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in squared feature units."""
        features = pairwise_cost(
            x=flatten(y_true["features"]),
            y=flatten(y_pred["features"]),
            metric="squared_euclidean",
        )
        labels = self._label_costs(y_true["outputs"], y_pred["outputs"])
        weight = self.weight
        if weight is None:
            weight = tf.stop_gradient(
                tf.math.divide_no_nan(
                    _mean(features, masses), _mean(labels, masses)
                )
            )
        labels *= weight
        cost = features + labels
        scales = [None]
        if self.tolerance is None:
            # The plan's error is in units of the solver's scale. Where pairs
            # of other labels are dear but hardly paid for, that is the
            # features'; where they must be paid for, the whole cost's. Both
            # and the middle between them are tried, for the best plan.
            low = mean_reduced_cost(features, a=masses, b=masses)
            high = mean_reduced_cost(cost, a=masses, b=masses)
            scales = [low, tf.sqrt(low) * tf.sqrt(high), high]
        costs = [
            ipot(
                cost,
                a=masses,
                b=masses,
                num_iters=self.num_iters,
                tolerance=self.tolerance,
                scale=scale,
            ).cost
            for scale in scales
        ]
        return tf.reduce_min(tf.stack(costs))

    def _label_costs(self, teacher, student):
        """L between all predictions, `[batch, batch]`."""
        p = tf.nn.softmax(flatten(teacher))
        if self.label_distance == "cross_entropy":
            log_q = tf.nn.log_softmax(flatten(student))
            return -tf.matmul(p, log_q, transpose_b=True)
        q = tf.nn.softmax(flatten(student))
        return pairwise_cost(x=p, y=q, metric="squared_euclidean")

    def ensemble(self, logits):
        """As `SoftTargets.ensemble`, at temperature 1."""
        return mean_probabilities(logits, 1.0)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "weight": self.weight,
            "label_distance": self.label_distance,
            "num_iters": self.num_iters,
            "tolerance": self.tolerance,
        }


def _mean(cost, masses):
    return tf.reduce_sum(masses * tf.linalg.matvec(cost, masses))
