"""A transport problem, checked, and its solution."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfkd.precision import at_least_float32


class Transport(NamedTuple):
    """A transport plan, what it costs, and how far it is from the best.

    Attributes:
        plan: Mass carried from i to j, `[..., n, m]`; no gradient.
        cost: `sum_ij plan_ij C_ij`, `[...]`, in units of the cost matrix C.
            Its gradient is that of the optimal cost where the plan is
            optimal (envelope theorem): d cost / d C = plan.
        lower_bound: No plan of these masses costs less, `[...]`; no
            gradient.
        marginal_error: Mass by which the plan's row and column sums miss the
            masses asked for, both sides added, `[...]`; no gradient. It says
            whether the plan is one, not whether it is a good one.
    """

    plan: tf.Tensor
    cost: tf.Tensor
    lower_bound: tf.Tensor
    marginal_error: tf.Tensor

    @property
    def gap(self):
        """`cost - lower_bound`: how much a better plan could save."""
        return self.cost - self.lower_bound


def check_problem(cost, a, b, mask=None):
    """The parts of a transport problem as tensors that fit together.

    Args:
        cost: `[..., n, m]`.
        mask: `[n, m]` or `[..., n, m]`, or None.
        a: Masses of the rows, `[n]` or `[..., n]`, or None for `1 / n`.
        b: Masses of the columns, `[m]` or `[..., m]`, or None for `1 / m`.

    Returns:
        `cost` in float32 at least, `a` as `[..., n]` and `b` as `[..., m]`
        in its type and without gradient, `mask` as boolean `[..., n, m]` or
        None.

    Raises:
        ValueError: If the shapes cannot fit.
    """
    cost = at_least_float32(cost)
    if cost.shape.rank is not None and cost.shape.rank < 2:
        raise ValueError(
            "Invalid value for argument `cost`. Expected a tensor "
            f"[..., n, m]. Received: cost.shape={cost.shape}"
        )
    a, b = _masses(a, cost, -2, "a"), _masses(b, cost, -1, "b")
    return cost, a, b, _mask(mask, cost)


def min_where(values, keep, axis):
    """Minimum along an axis of those values that `keep` marks.

    Args:
        values: Tensor.
        keep: Boolean, of the rank of `values` and broadcasting to it.
        axis: The axis that goes.

    Returns:
        The minima; 0 where nothing is kept.
    """
    smallest = tf.reduce_min(tf.where(keep, values, values.dtype.max), axis)
    kept = tf.reduce_any(keep, axis)
    return tf.where(kept, smallest, tf.zeros_like(smallest))


def nan_where_nan(values, cost):
    """`values`, or NaN where a cost is, which XLA's minima pass over.

    Args:
        values: Made of the costs, `[...]`.
        cost: `[..., n, m]`.

    Returns:
        Tensor `[...]`, NaN with a gradient of NaN where any cost is.
    """
    found = tf.reduce_any(tf.math.is_nan(cost), axis=[-2, -1])
    one = tf.ones_like(values)
    return values * tf.where(found, np.nan * one, one)


def _masses(masses, cost, axis, argument):
    """Masses for one axis of `cost`, with all its leading axes."""
    shape = tf.shape(cost)
    shape = tf.concat([shape[:-2], shape[axis, None]], axis=0)
    if masses is None:
        return tf.fill(shape, 1 / tf.cast(shape[-1], cost.dtype))
    masses = tf.cast(masses, cost.dtype)
    points = cost.shape[axis : axis + 1 or None]
    full = cost.shape[:-2].concatenate(points)
    if not any(masses.shape.is_compatible_with(s) for s in (points, full)):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected one mass for "
            f"each point, of shape {full} or {points}. "
            f"Received: {argument}.shape={masses.shape}"
        )
    return tf.broadcast_to(tf.stop_gradient(masses), shape)


def _mask(mask, cost):
    """A mask of pairs with all the leading axes of `cost`."""
    if mask is None:
        return None
    mask = tf.cast(mask, tf.bool)
    shapes = cost.shape[-2:], cost.shape
    if not any(mask.shape.is_compatible_with(shape) for shape in shapes):
        raise ValueError(
            "Invalid value for argument `mask`. Expected whether each pair is "
            f"allowed, of shape {shapes[1]} or {shapes[0]}. "
            f"Received: mask.shape={mask.shape}"
        )
    return tf.broadcast_to(mask, tf.shape(cost))
