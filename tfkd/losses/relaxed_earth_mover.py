"""Relaxed earth mover's distance between two batches of features."""

import keras

from tfkd.losses.distribution import DistributionLoss
from tfkd.losses.shapes import flatten_examples
from tfkd.transport import pairwise_cost, relaxed_emd
from tfkd.transport.costs import check_metric


@keras.saving.register_keras_serializable("tfkd")
class RelaxedEarthMover(DistributionLoss):
    """Each example's features go to the nearest of the other network's.

    Formula: `max(sum_i a_i min_j C_ij, sum_j a_j min_i C_ij)` with masses a
    and the pairwise cost C between features. A map is flattened to one
    vector per example. Never above `OptimalTransport`'s exact value, at a
    fraction of its time.

    Args:
        cost: "cosine" or "squared_euclidean", as of
            `tfkd.transport.pairwise_cost`.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`.

    Raises:
        ValueError: If `cost` is unknown.

    Example:

    >>> loss = tfkd.losses.RelaxedEarthMover()
    >>> float(loss([[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [3.0, 0.0]]))
    0.0

    Reference: Lohit & Jones 2020, equation 8.
    """

    def __init__(
        self,
        cost="cosine",
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.cost = check_metric(cost, "cost")

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in units of the cost."""
        cost = pairwise_cost(
            x=flatten_examples(y_pred),
            y=flatten_examples(y_true),
            metric=self.cost,
        )
        return relaxed_emd(cost, a=masses, b=masses)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "cost": self.cost}
