"""Relaxed earth mover's distance: each side goes to its nearest."""

import tensorflow as tf

from tfkd.precision import at_least_float32
from tfkd.transport.plan import uniform_if_none


def relaxed_emd(cost, *, a=None, b=None):
    """The larger of the two transports that heed one marginal only.

    Formula: `max(sum_i a_i min_j C_ij, sum_j b_j min_i C_ij)`

    A lower bound of the optimal cost. Points without mass are nobody's
    nearest.

    Args:
        cost: `[..., n, m]`, in any unit.
        a: Masses of the rows, `[..., n]`, >= 0 with sum 1; None: uniform.
        b: Masses of the columns, `[..., m]`, likewise.

    Returns:
        `[...]`, in cost units; 0 where a side has no mass at all.

    Raises:
        ValueError: If a mass is given for another number of points.

    Example:

    >>> float(relaxed_emd([[0.0, 4.0], [1.0, 2.0]]))
    1.0

    Reference: Lohit & Jones 2020, equations 5 to 8; Kusner et al. 2015.
    """
    cost = at_least_float32(cost)
    a = uniform_if_none(a, cost, -2)
    b = uniform_if_none(b, cost, -1)
    rows = _nearest(cost, b[..., None, :] > 0, axis=-1)  # [..., n]
    columns = _nearest(cost, a[..., :, None] > 0, axis=-2)  # [..., m]
    return tf.maximum(
        tf.reduce_sum(a * rows, axis=-1), tf.reduce_sum(b * columns, axis=-1)
    )


def _nearest(cost, reachable, axis):
    """Smallest cost to a reachable point; 0 where there is none."""
    far = tf.where(reachable, cost, tf.constant(cost.dtype.max, cost.dtype))
    nearest = tf.reduce_min(far, axis=axis)
    return tf.where(
        tf.reduce_any(reachable, axis=axis), nearest, tf.zeros_like(nearest)
    )
