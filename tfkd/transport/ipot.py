"""Inexact proximal optimal transport, scale-free and certified."""

import tensorflow as tf

from tfkd.precision import at_least_float32
from tfkd.transport.plan import Transport, uniform_if_none

# Proximal step, in units of the mean reduced cost. After N steps the plan is
# the entropic one of strength step / N.
_RELATIVE_STEP = 0.5

# The step that Lohit & Jones print, in cost units.
_PAPER_STEP = 20.0


def ipot(cost, *, a=None, b=None, beta=None, num_iters=50):
    """Optimal transport by inexact proximal point iterations.

    Algorithm: `Q = exp(-C / beta) * T; u = a / (Q v); v = b / (Q^T u);
    T = diag(u) Q diag(v)`, `num_iters` times.

    N such steps solve entropic transport of strength `beta / N` exactly when
    their marginals have converged, so `beta / N` must be small beside the
    costs: marginals alone tell nothing. By default the step is half the mean
    cost above the cheapest, after rows and columns are reduced by their
    minima; the plan is then rounded so that its marginals are exact.

    The gradient of `cost` with respect to the costs is the plan, by the
    envelope theorem; nothing is taped.

    Args:
        cost: `[..., n, m]`, in any unit.
        a: Masses of the rows, `[..., n]`, >= 0 with sum 1; None: uniform.
        b: Masses of the columns, `[..., m]`, likewise.
        beta: None: scale-free, as above. "paper": Algorithm 1 as printed,
            with beta 20, for cosine costs: entropic transport of strength
            0.4, whose cost lies far above the optimum; neither reduced nor
            rounded.
        num_iters: Number of steps, >= 1.

    Returns:
        A `Transport`. Its `gap` bounds the error: up to 1e-3 of the cost on
        features of 64 and more dimensions, far more on tight clusters.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> float(ipot([[0.0, 1.0], [1.0, 0.0]]).cost)
    0.0

    Reference: Lohit & Jones 2020, algorithm 1; Xie et al. 2020. Rounding:
    Altschuler et al. 2017, algorithm 2.
    """
    check_beta(beta)
    check_num_iters(num_iters)
    cost = at_least_float32(cost)
    a = uniform_if_none(a, cost, -2)
    b = uniform_if_none(b, cost, -1)
    solve = _solve_eagerly if tf.executing_eagerly() else _solve
    plan, lower_bound, error = solve(
        *(tf.stop_gradient(t) for t in (cost, a, b)),
        paper=beta == "paper",
        num_iters=num_iters,
    )
    plan = tf.stop_gradient(plan)
    value = tf.reduce_sum(plan * cost, axis=[-2, -1])
    return Transport(plan, value, lower_bound, error)


def check_beta(beta):
    """`beta` if it is None or "paper".

    Args:
        beta: As of `ipot`.

    Returns:
        The value.

    Raises:
        ValueError: If it is anything else.
    """
    if beta is not None and beta != "paper":
        raise ValueError(
            "Invalid value for argument `beta`. Expected None (scale-free) "
            f'or "paper". Received: beta={beta!r}'
        )
    return beta


def check_num_iters(num_iters):
    """`num_iters` if it is an integer >= 1.

    Args:
        num_iters: Number of steps.

    Returns:
        The number.

    Raises:
        ValueError: If it is anything else.
    """
    if (
        not isinstance(num_iters, int)
        or isinstance(num_iters, bool)
        or num_iters < 1
    ):
        raise ValueError(
            "Invalid value for argument `num_iters`. Expected an integer "
            f">= 1. Received: num_iters={num_iters!r}"
        )
    return num_iters


def _solve(cost, a, b, *, paper, num_iters):
    """Plan, lower bound of the exact cost, and marginal error."""
    used = (a[..., :, None] > 0) & (b[..., None, :] > 0)
    row_shift = tf.zeros_like(a)
    column_shift = tf.zeros_like(b)
    reduced = tf.where(used, cost, tf.zeros_like(cost))
    if not paper:
        # Shifts of rows and columns move every plan's cost by the same.
        row_shift = _smallest(reduced, used, axis=-1)
        reduced = reduced - row_shift[..., :, None]
        column_shift = _smallest(reduced, used, axis=-2)
        reduced = tf.where(
            used, reduced - column_shift[..., None, :], tf.zeros_like(cost)
        )
    step = _step(reduced, used, paper)
    plan, row_logs = _iterate(reduced, used, step, a, b, num_iters)
    row_duals = step[..., 0] / num_iters * row_logs
    lower_bound = (
        _dual_value(reduced, used, row_duals, a, b)
        + tf.reduce_sum(a * row_shift, axis=-1)
        + tf.reduce_sum(b * column_shift, axis=-1)
    )
    if not paper:
        plan = _round(plan, a, b)
    error = tf.reduce_sum(tf.abs(tf.reduce_sum(plan, axis=-1) - a), axis=-1)
    error += tf.reduce_sum(tf.abs(tf.reduce_sum(plan, axis=-2) - b), axis=-1)
    return plan, lower_bound, error


# Run op by op, the loop takes tens of times as long.
_solve_eagerly = tf.function(_solve, autograph=False, reduce_retracing=True)


def _step(reduced, used, paper):
    """The proximal step beta, `[..., 1, 1]`, in cost units."""
    if paper:
        shape = tf.concat([tf.shape(reduced)[:-2], [1, 1]], axis=0)
        return tf.fill(shape, tf.constant(_PAPER_STEP, reduced.dtype))
    count = tf.reduce_sum(
        tf.cast(used, reduced.dtype), axis=[-2, -1], keepdims=True
    )
    total = tf.reduce_sum(reduced, axis=[-2, -1], keepdims=True)
    mean = tf.math.divide_no_nan(total, count)
    return _RELATIVE_STEP * tf.maximum(mean, 1e-12)


def _iterate(reduced, used, step, a, b, num_iters):
    """The plan after `num_iters` steps, and the sum of log u, `[..., n]`."""
    kernel = tf.where(used, tf.exp(-reduced / step), tf.zeros_like(reduced))

    def body(i, q, u, v, row_logs):
        q = u[..., :, None] * q * kernel * v[..., None, :]
        u = tf.math.divide_no_nan(a, tf.linalg.matvec(q, v))
        v = tf.math.divide_no_nan(b, tf.linalg.matvec(q, u, transpose_a=True))
        logs = tf.math.log(tf.where(u > 0, u, tf.ones_like(u)))
        return i + 1, q, u, v, row_logs + logs

    _, q, u, v, row_logs = tf.while_loop(
        lambda i, *_: i < num_iters,
        body,
        (
            tf.constant(0),
            tf.ones_like(kernel),
            tf.ones_like(a),
            tf.ones_like(b),
            tf.zeros_like(a),
        ),
        maximum_iterations=num_iters,
    )
    return u[..., :, None] * q * v[..., None, :], row_logs


def _dual_value(reduced, used, row_duals, a, b):
    """Value of the best feasible dual near given row potentials.

    `g_j = min_i (R_ij - f_i)`, then `f_i = min_j (R_ij - g_j)`: each step
    keeps `f_i + g_j <= R_ij`, so `a.f + b.g` is below the optimal cost.
    """
    columns = _smallest(reduced - row_duals[..., :, None], used, axis=-2)
    rows = _smallest(reduced - columns[..., None, :], used, axis=-1)
    return tf.reduce_sum(a * rows, axis=-1) + tf.reduce_sum(
        b * columns, axis=-1
    )


def _round(plan, a, b):
    """The plan moved onto the polytope of plans with marginals a and b."""
    rows = tf.math.divide_no_nan(a, tf.reduce_sum(plan, axis=-1))
    plan = plan * tf.minimum(rows, 1.0)[..., :, None]
    columns = tf.math.divide_no_nan(b, tf.reduce_sum(plan, axis=-2))
    plan = plan * tf.minimum(columns, 1.0)[..., None, :]
    row_rest = tf.nn.relu(a - tf.reduce_sum(plan, axis=-1))
    column_rest = tf.nn.relu(b - tf.reduce_sum(plan, axis=-2))
    share = tf.math.divide_no_nan(
        column_rest, tf.reduce_sum(column_rest, axis=-1, keepdims=True)
    )
    return plan + row_rest[..., :, None] * share[..., None, :]


def _smallest(values, used, axis):
    """Minimum over the used entries of an axis; 0 where there are none."""
    largest = tf.constant(values.dtype.max, values.dtype)
    smallest = tf.reduce_min(tf.where(used, values, largest), axis=axis)
    return tf.where(
        tf.reduce_any(used, axis=axis), smallest, tf.zeros_like(smallest)
    )
