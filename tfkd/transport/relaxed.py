"""The relaxed earth mover's distance: a bound without a solver."""

import tensorflow as tf

from tfkd.transport.plan import check_problem, min_where, nan_where_nan


def relaxed_emd(cost, *, a=None, b=None):
    """Lower bound of the optimal transport cost, by dropping constraints.

    Formula: `max(sum_i a_i min_j C_ij, sum_j b_j min_i C_ij)`

    Either sum is the optimal cost where only one side's masses must be met.
    A point without mass is nobody's nearest.

    Args:
        cost: `C`, `[..., n, m]`, finite; NaN gives NaN.
        a: Masses of the rows, `[n]` or `[..., n]`, non-negative, with sum
            one; or all zero, for a value of zero. None: `1 / n` each.
        b: The same for the columns, `[m]` or `[..., m]`.

    Returns:
        Tensor `[...]`, in units of the cost. The gradient goes to each
        point's nearest, in equal parts where several are; none goes to the
        masses.

    Raises:
        ValueError: If the shapes do not fit.

    Example:

    >>> float(relaxed_emd([[0.0, 1.0], [0.0, 1.0]]))
    0.5

    Reference: Kusner et al. 2015; Lohit & Jones 2020, equation 8.
    """
    cost, a, b, _ = check_problem(cost, a, b)
    to_columns = min_where(cost, b[..., None, :] > 0, axis=-1)  # [..., n]
    to_rows = min_where(cost, a[..., :, None] > 0, axis=-2)  # [..., m]
    dearer = tf.maximum(
        tf.reduce_sum(a * to_columns, axis=-1),
        tf.reduce_sum(b * to_rows, axis=-1),
    )
    return nan_where_nan(dearer, cost)
