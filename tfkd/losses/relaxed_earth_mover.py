"""The relaxed earth mover's distance between two batches of signals."""

import keras
import tensorflow as tf

from tfkd.losses.distribution import DistributionLoss, flatten, same_class
from tfkd.transport import pairwise_cost, relaxed_emd
from tfkd.transport.costs import check_metric
from tfkd.transport.plan import min_where, nan_where_nan


@keras.saving.register_keras_serializable("tfkd")
class RelaxedEarthMover(DistributionLoss):
    """Mean cost from each signal to its nearest, the dearer way round.

    Formula: `max(sum_i a_i min_j C_ij, sum_j b_j min_i C_ij)`, with C_ij the
    cost from the teacher's signal i to the student's signal j, flattened,
    and a, b the masses of the examples.

    A lower bound of `OptimalTransport` that needs no solver. Equal batches
    give zero (to rounding); one example gives its own cost; a signal of zeros
    has cosine cost 1 to every other, without gradient; NaN gives NaN.

    Args:
        cost: A metric of `tfkd.transport.pairwise_cost`.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If `cost` is unknown.

    Example:

    >>> loss = RelaxedEarthMover(cost="squared_euclidean")
    >>> float(loss([[0.0], [9.0]], [[1.0], [2.0]]))
    25.0

    Reference: Lohit & Jones 2020, equation 8.
    """

    def __init__(
        self,
        cost="cosine",
        *,
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_metric(cost, "cost")
        self.cost = cost

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in units of the cost."""
        return relaxed_emd(self._costs(y_true, y_pred), a=masses, b=masses)

    def conditional_distance(self, y_true, y_pred, masses, labels):
        """As `DistributionLoss.conditional_distance`."""
        cost, (a, b) = self._costs(y_true, y_pred), masses
        like = labels[0][:, None] == labels[1][None, :]
        keep = like & (a[:, None] > 0) & (b[None, :] > 0)
        rows = a * min_where(cost, keep, axis=1)
        columns = b * min_where(cost, keep, axis=0)
        # Sums over an example's class, `[batch]`, the same in all of it, so
        # that the mean over the class is the class's own.
        own = same_class(labels[0], labels[0], cost.dtype)
        dearer = tf.maximum(
            tf.linalg.matvec(own, rows),
            tf.linalg.matvec(tf.cast(like, cost.dtype), columns),
        )
        share = tf.math.divide_no_nan(a, tf.linalg.matvec(own, a))
        return nan_where_nan(tf.reduce_sum(share * dearer), cost)

    def _costs(self, y_true, y_pred):
        return pairwise_cost(
            x=flatten(y_true), y=flatten(y_pred), metric=self.cost
        )

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {**super().get_config(), "cost": self.cost}
