"""What a transport solver returns, and what it is given."""

from typing import NamedTuple

import tensorflow as tf


class Transport(NamedTuple):
    """A transport plan, its cost, and how far the cost can be trusted.

    Attributes:
        plan: Mass moved from each point to each, `[..., n, m]`. Constant.
        cost: `sum plan * cost`, `[...]`, in cost units. Its gradient with
            respect to the costs is the plan.
        lower_bound: A number that the exact cost is not below, `[...]`, in
            cost units, up to rounding. Constant.
        marginal_error: Mass by which the plan's marginals miss the given
            ones, summed over both sides, `[...]`. Constant.
    """

    plan: tf.Tensor
    cost: tf.Tensor
    lower_bound: tf.Tensor
    marginal_error: tf.Tensor

    @property
    def gap(self):
        """At most how far the cost is above the exact one, `[...]`.

        Certified where `marginal_error` is 0: the exact cost lies between
        `lower_bound` and `cost` then.
        """
        return self.cost - self.lower_bound


def uniform_if_none(masses, cost, axis):
    """Masses along one axis of the cost, uniform by default.

    Args:
        masses: Non-negative, `[..., size of the axis]`, or None.
        cost: `[..., n, m]`.
        axis: -2 for the rows, -1 for the columns.

    Returns:
        Tensor `[..., size of the axis]` of the cost's dtype and leading axes.

    Raises:
        ValueError: If the sizes differ.
    """
    shape = tf.shape(cost)
    shape = tf.concat([shape[:-2], shape[axis : axis + 1 or None]], axis=0)
    if masses is None:
        return tf.ones(shape, cost.dtype) / tf.cast(shape[-1], cost.dtype)
    masses = tf.cast(tf.convert_to_tensor(masses), cost.dtype)
    if not masses.shape[-1:].is_compatible_with([cost.shape[axis]]):
        side = "a" if axis == -2 else "b"
        raise ValueError(
            f"Masses `{side}` have shape {masses.shape}, but the cost has "
            f"shape {cost.shape}. Expected one mass for each "
            + ("row." if axis == -2 else "column.")
        )
    return tf.broadcast_to(masses, shape)
