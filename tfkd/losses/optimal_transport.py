"""Optimal transport between the student's and the teacher's features."""

import keras

from tfkd.losses.distribution import DistributionLoss
from tfkd.losses.shapes import flatten_examples
from tfkd.transport import ipot, pairwise_cost
from tfkd.transport.costs import check_metric
from tfkd.transport.ipot import check_beta, check_num_iters


@keras.saving.register_keras_serializable("tfkd")
class OptimalTransport(DistributionLoss):
    """The cost of moving the student's batch of features to the teacher's.

    Formula: `min sum_ij P_ij C_ij` over plans P whose marginals are the
    examples' masses, C the pairwise cost between features, by IPOT. A map is
    flattened to one vector per example. The batches may agree up to a
    permutation of the examples: then the value is 0.

    Args:
        cost: "cosine" or "squared_euclidean", as of
            `tfkd.transport.pairwise_cost`.
        beta: None: the scale-free solver; "paper": Algorithm 1 with the
            printed beta of 20, whose plan stays close to the uniform one. As
            of `tfkd.transport.ipot`.
        num_iters: Number of the solver's steps, >= 1.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> loss = tfkd.losses.OptimalTransport()
    >>> float(loss([[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [3.0, 0.0]]))
    0.0

    Reference: Lohit & Jones 2020, equations 2 and 3, algorithm 1.
    """

    def __init__(
        self,
        cost="cosine",
        beta=None,
        num_iters=50,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.cost = check_metric(cost, "cost")
        self.beta = check_beta(beta)
        self.num_iters = check_num_iters(num_iters)

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in units of the cost."""
        cost = pairwise_cost(
            x=flatten_examples(y_pred),
            y=flatten_examples(y_true),
            metric=self.cost,
        )
        return ipot(
            cost, a=masses, b=masses, beta=self.beta, num_iters=self.num_iters
        ).cost

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "cost": self.cost,
            "beta": self.beta,
            "num_iters": self.num_iters,
        }
