"""IPOT: optimal transport by proximal steps, with a certificate."""

import tensorflow as tf

from tfkd.arguments import check_count
from tfkd.transport.plan import Transport, check_problem, min_where

_PAPER_BETA = 20.0
# In units of the mean reduced cost. Less is sharper per step, but 50 steps
# then no longer reach the marginals.
_RELATIVE_BETA = 0.5


def ipot(cost, *, a=None, b=None, beta=None, num_iters=50):
    """Optimal transport by inexact proximal point iterations.

    Formula: minimises `sum_ij P_ij C_ij` over `P >= 0, P 1 = a, P^T 1 = b`.
    With `G = exp(-C / beta)` and `P = 1 1^T`, each step is

        Q = G * P;  u = a / (Q v);  v = b / (Q^T u);  P = diag(u) Q diag(v)

    After N steps P is an entropic plan of strength `beta / N`, whatever the
    scale of C. By default beta is therefore relative: half the mean of C
    after the minima of its rows, then of its columns, are subtracted (which
    moves every plan's cost by the same number). Then P is rounded to the
    exact masses (Altschuler et al. 2017). For features of 64 and more
    dimensions the cost is then 1e-3 above the optimum or less, 2e-3 where few
    dimensions dominate; on the plane or for tight clusters it may be some
    percent. `gap` bounds the error in each case.

    With `beta="paper"`, this is the algorithm with beta = 20 and without
    rounding, as Lohit & Jones 2020 print it. For costs in [0, 2] its plan is
    nearly the uniform one; for costs in the thousands it can be NaN.

    Solved in the precision of `cost`, float32 at least, without a tape.

    Args:
        cost: `C`, `[..., n, m]`, finite; any units, any sign.
        a: Masses of the rows, `[n]` or `[..., n]`, non-negative, with sum
            one; or all zero, for a cost of zero. A point without mass has no
            part in the result. None: `1 / n` each.
        b: The same for the columns, `[m]` or `[..., m]`.
        beta: None or "paper".
        num_iters: Number of steps N. >= 1.

    Returns:
        A `Transport`. Its cost has the gradient of the optimal cost with
        respect to C, to the plan's accuracy; none goes to the masses.

    Raises:
        ValueError: If an argument is invalid or shapes do not fit.

    Example:

    >>> transport = ipot([[0.0, 1.0], [1.0, 0.0]])
    >>> round(float(transport.cost), 6), round(float(transport.gap), 6)
    (0.0, 0.0)

    Reference: Xie et al. 2018; Lohit & Jones 2020, algorithm 1.
    """
    check_settings(beta=beta, num_iters=num_iters)
    cost, a, b = check_problem(cost, a, b)
    plan, lower_bound = _solve(
        tf.stop_gradient(cost), a, b, int(num_iters), beta == "paper"
    )
    return Transport(
        plan=plan,
        cost=tf.reduce_sum(plan * cost, axis=[-2, -1]),
        lower_bound=lower_bound,
        marginal_error=(
            tf.reduce_sum(tf.abs(tf.reduce_sum(plan, axis=-1) - a), axis=-1)
            + tf.reduce_sum(tf.abs(tf.reduce_sum(plan, axis=-2) - b), axis=-1)
        ),
    )


def check_settings(*, beta, num_iters):
    """Raises a `ValueError` unless `ipot` takes these settings."""
    if beta is not None and not (isinstance(beta, str) and beta == "paper"):
        raise ValueError(
            "Invalid value for argument `beta`. Expected None (scale-free) or "
            f"'paper'. Received: beta={beta!r}"
        )
    check_count(num_iters, "num_iters")


# Operation by operation from Python, the loop takes thirty times as long.
@tf.function(autograph=False, reduce_retracing=True)
def _solve(cost, a, b, num_iters, paper):
    """Plan and lower bound of `ipot`."""
    rows, columns = a[..., :, None] > 0, b[..., None, :] > 0
    row = min_where(cost, columns, axis=-1)
    reduced = cost - row[..., :, None]
    if paper:
        # A row's factor in G is undone by u, so that subtracting its minimum
        # changes no number of the algorithm; it only keeps exp above 0.
        column = tf.zeros_like(b)
        beta = _PAPER_BETA * tf.ones_like(a[..., :1])
    else:
        column = min_where(reduced, rows, axis=-2)
        reduced -= column[..., None, :]
    # Below zero only where there is no mass, and there exp must not overflow.
    reduced = tf.nn.relu(reduced)
    if not paper:
        # Weighing the mean by masses makes a doubled point the same as a
        # point of double mass.
        mean = a * tf.linalg.matvec(reduced, b)
        mean = tf.reduce_sum(mean, axis=-1, keepdims=True)
        beta = _RELATIVE_BETA * tf.maximum(mean, 1e-30)  # [..., 1]
    plan, log_u = _iterate(
        tf.exp(-reduced / beta[..., None]),
        a,
        b,
        num_iters,
        floor=0.0 if paper else 1e-30,
    )
    # log (P_ij / a_i) = log_u_i + log_v_j - reduced_ij * num_iters / beta:
    # in units of the cost, log_u is a potential of entropic transport.
    lower_bound = _lower_bound(reduced, a, b, log_u * beta / num_iters)
    lower_bound += tf.reduce_sum(a * row, axis=-1)
    lower_bound += tf.reduce_sum(b * column, axis=-1)
    return plan if paper else _rounded(plan, a, b), lower_bound


def _iterate(kernel, a, b, num_iters, floor):
    """The proximal steps.

    Args:
        kernel: G, `[..., n, m]`.
        a: `[..., n]`.
        b: `[..., m]`.
        num_iters: Number of steps.
        floor: Added to G * P. An entry that underflows to 0 stays 0, and
            where all useful entries of a row do, u overflows; from a
            negligible number they grow again.

    Returns:
        The plan, `[..., n, m]`, and the sum of log u over the steps less
        log a, `[..., n]`.
    """

    def step(t, q, u, v, log_u):
        # With diag(u) and diag(v) last, XLA multiplies q by vectors ten
        # times as fast as with the floor last.
        q = u[..., :, None] * v[..., None, :] * (kernel * q + floor)
        u = tf.where(a > 0, a / tf.linalg.matvec(q, v), 0.0)
        v = tf.linalg.matvec(q, u, transpose_a=True)
        v = tf.where(b > 0, b / v, 0.0)
        return t + 1, q, u, v, log_u + tf.math.log(tf.where(a > 0, u, 1.0))

    _, q, u, v, log_u = tf.while_loop(
        lambda t, *_: t < num_iters,
        step,
        (
            tf.constant(0),
            tf.ones_like(kernel),
            tf.ones_like(a),
            tf.cast(b > 0, b.dtype),
            -tf.math.log(tf.where(a > 0, a, 1.0)),
        ),
        maximum_iterations=num_iters,
    )
    return u[..., :, None] * q * v[..., None, :], log_u


def _rounded(plan, a, b):
    """The plan with exactly the masses a and b.

    Rows and columns that carry too much are scaled down; what is then
    missing is spread as a product. Altschuler et al. 2017, algorithm 2.
    """
    rows = tf.math.divide_no_nan(a, tf.reduce_sum(plan, axis=-1))
    plan *= tf.minimum(rows, 1.0)[..., :, None]
    columns = tf.math.divide_no_nan(b, tf.reduce_sum(plan, axis=-2))
    plan *= tf.minimum(columns, 1.0)[..., None, :]
    rest_a = tf.nn.relu(a - tf.reduce_sum(plan, axis=-1))
    rest_b = tf.nn.relu(b - tf.reduce_sum(plan, axis=-2))
    total = tf.reduce_sum(rest_b, axis=-1, keepdims=True)
    share = tf.math.divide_no_nan(rest_b, total)
    return plan + rest_a[..., :, None] * share[..., None, :]


def _lower_bound(cost, a, b, potential):
    """A dual value: no plan of masses a and b costs less.

    `sum a f + sum b g <= sum P C` for each plan P wherever f_i + g_j <= C_ij.
    From any f, first g then f are made as large as that allows.

    Args:
        cost: `[..., n, m]`.
        a: `[..., n]`.
        b: `[..., m]`.
        potential: f to start from, `[..., n]`.

    Returns:
        Tensor `[...]`, in units of the cost.
    """
    slack = cost - potential[..., :, None]
    g = min_where(slack, a[..., :, None] > 0, axis=-2)
    f = min_where(cost - g[..., None, :], b[..., None, :] > 0, axis=-1)
    return tf.reduce_sum(a * f, axis=-1) + tf.reduce_sum(b * g, axis=-1)
