"""Optimal transport between a batch of teacher and of student signals."""

import keras

from tfkd.losses.distribution import DistributionLoss, flatten
from tfkd.transport import ipot, pairwise_cost
from tfkd.transport.costs import check_metric
from tfkd.transport.ipot import check_settings


@keras.saving.register_keras_serializable("tfkd")
class OptimalTransport(DistributionLoss):
    """Least cost of carrying the student's batch onto the teacher's.

    Formula: `min_P sum_ij P_ij C_ij` over plans P that carry the mass of
    every example, with C_ij the cost from the teacher's signal i to the
    student's signal j, flattened.

    It is zero where the batches agree up to a permutation: looser than
    matching examples one to one, stricter than matching statistics. The
    plan is solved for by `tfkd.transport.ipot` and is a constant of the
    gradient.

    Equal batches give zero (to the solver's accuracy) and a gradient of zero;
    one example gives its own cost; a signal of zeros has cosine cost 1 to
    every other, without gradient; NaN gives NaN.

    Args:
        cost: A metric of `tfkd.transport.pairwise_cost`.
        beta: None (scale-free), a number or "paper", see
            `tfkd.transport.ipot`.
        num_iters: Steps of the solver, >= 1; None: see
            `tfkd.transport.ipot`.
        tolerance: Relative gap to go on to, see `tfkd.transport.ipot`, or
            None.
        solver: "ipot", or "exact" for an optimal assignment on the CPU,
            where all weights are one number or zero.
        name: As of `keras.losses.Loss`.
        reduction: As of `keras.losses.Loss`.
        dtype: As of `keras.losses.Loss`. Computations are in float32 at
            least, whatever it is.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> loss = OptimalTransport(cost="squared_euclidean")
    >>> round(float(loss([[0.0], [9.0]], [[9.0], [2.0]])), 4)
    2.0

    Reference: Lohit & Jones 2020, equation 2 and algorithm 1.
    """

    def __init__(
        self,
        cost="cosine",
        *,
        beta=None,
        num_iters=None,
        tolerance=None,
        solver="ipot",
        name=None,
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_metric(cost, "cost")
        check_settings(
            beta=beta,
            num_iters=num_iters,
            tolerance=tolerance,
            solver=solver,
        )
        self.cost = cost
        self.beta = beta
        self.num_iters = None if num_iters is None else int(num_iters)
        self.tolerance = tolerance
        self.solver = solver

    @property
    def supports_jit(self):
        """Whether the loss compiles under XLA."""
        return self.solver != "exact"

    def distance(self, y_true, y_pred, masses):
        """As `DistributionLoss.distance`, in units of the cost."""
        cost = self._costs(y_true, y_pred)
        return self._solve(cost, masses, masses)

    def conditional_distance(self, y_true, y_pred, masses, labels):
        """As `DistributionLoss.conditional_distance`, by a mask."""
        return self._solve(
            self._costs(y_true, y_pred),
            *masses,
            mask=labels[0][:, None] == labels[1][None, :],
        )

    def _costs(self, y_true, y_pred):
        return pairwise_cost(
            x=flatten(y_true), y=flatten(y_pred), metric=self.cost
        )

    def _solve(self, cost, a, b, mask=None):
        transport = ipot(
            cost,
            a=a,
            b=b,
            mask=mask,
            beta=self.beta,
            num_iters=self.num_iters,
            tolerance=self.tolerance,
            solver=self.solver,
        )
        return transport.cost

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "cost": self.cost,
            "beta": self.beta,
            "num_iters": self.num_iters,
            "tolerance": self.tolerance,
            "solver": self.solver,
        }
