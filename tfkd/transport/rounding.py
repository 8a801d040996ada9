"""Plans with exact masses, and what no plan can undercut."""

import tensorflow as tf

from tfkd.transport.plan import min_where


def rounded(plan, a, b, keep=None):
    """The plan with exactly the masses a and b.

    Rows and columns that carry too much are scaled down; what is then
    missing is spread as a product. Altschuler et al. 2017, algorithm 2.

    Args:
        plan: `[..., n, m]`, non-negative.
        a: Masses of the rows, `[..., n]`.
        b: Masses of the columns, `[..., m]`.
        keep: Pairs that may carry mass, boolean `[..., n, m]`, or None for
            all. They must be blocks (see `are_blocks`) of equal masses on
            either side, so that a product stays within them.

    Returns:
        The plan, `[..., n, m]`.
    """
    rows = tf.math.divide_no_nan(a, tf.reduce_sum(plan, axis=-1))
    plan *= tf.minimum(rows, 1.0)[..., :, None]
    columns = tf.math.divide_no_nan(b, tf.reduce_sum(plan, axis=-2))
    plan *= tf.minimum(columns, 1.0)[..., None, :]
    rest_a = tf.nn.relu(a - tf.reduce_sum(plan, axis=-1))
    rest_b = tf.nn.relu(b - tf.reduce_sum(plan, axis=-2))
    if keep is None:
        total = tf.reduce_sum(rest_b, axis=-1, keepdims=True)
        share = tf.math.divide_no_nan(rest_b, total)
        return plan + rest_a[..., :, None] * share[..., None, :]
    total = tf.linalg.matvec(tf.cast(keep, plan.dtype), rest_b)
    share = tf.math.divide_no_nan(rest_a, total)
    rest = share[..., :, None] * rest_b[..., None, :]
    return plan + tf.where(keep, rest, tf.zeros_like(rest))


def are_blocks(keep):
    """Whether pairs form blocks: groups of rows times groups of columns.

    Then rows that share a column share all of theirs. So each pair of a row
    and a column is kept exactly if the first column of the row is the first
    column of the column's rows.

    Args:
        keep: Boolean `[..., n, m]`.

    Returns:
        Boolean tensor `[...]`.
    """
    count = tf.shape(keep)[-1]
    first = tf.argmax(keep, axis=-1, output_type=tf.int32)
    first = tf.where(tf.reduce_any(keep, axis=-1), first, count)[..., :, None]
    group = tf.where(keep, first, -1)
    group = tf.reduce_max(group, axis=-2, keepdims=True)  # [..., 1, m]
    return tf.reduce_all(tf.equal(first == group, keep), axis=[-2, -1])


def dual_value(cost, a, b, potential, keep):
    """A lower bound: no plan of masses a and b costs less.

    `sum a f + sum b g <= sum P C` for each plan P wherever f_i + g_j <= C_ij.
    From any f, first g then f are made as large as that allows.

    Args:
        cost: `[..., n, m]`.
        a: `[..., n]`.
        b: `[..., m]`.
        potential: f to start from, `[..., n]`.
        keep: Pairs that may carry mass, boolean `[..., n, m]`.

    Returns:
        Tensor `[...]`, in units of the cost.
    """
    g = min_where(cost - potential[..., :, None], keep, axis=-2)
    f = min_where(cost - g[..., None, :], keep, axis=-1)
    return tf.reduce_sum(a * f, axis=-1) + tf.reduce_sum(b * g, axis=-1)
