"""IPOT: optimal transport by proximal steps, with a certificate."""

import numpy as np
import tensorflow as tf

from tfkd.arguments import check_choice, check_count, check_positive
from tfkd.transport.assignment import assignment_plan
from tfkd.transport.plan import Transport, check_problem, min_where
from tfkd.transport.proximal import State, log_domain, proceed, start
from tfkd.transport.rounding import are_blocks, dual_value, rounded

_PAPER_BETA = 20.0
# In units of the mean reduced cost. Less is sharper per step, but 50 steps
# then no longer reach the marginals.
_RELATIVE_BETA = 0.5
# The same where the steps go on until the gap is small.
_SHARP_BETA = 0.2
_MAXIMUM_BLOCKS = 20
_TINY = 1e-30


def ipot(
    cost,
    *,
    a=None,
    b=None,
    mask=None,
    beta=None,
    num_iters=50,
    tolerance=None,
    solver="ipot",
    scale=None,
):
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
    percent. `gap` bounds the error in each case, and `tolerance` asks for a
    smaller one.

    With `beta="paper"`, this is the algorithm with beta = 20 and without
    rounding, as Lohit & Jones 2020 print it. For costs in [0, 2] its plan is
    nearly the uniform one; for costs in the thousands it can be NaN.

    Solved in the precision of `cost`, float32 at least, without a tape. NaN
    among the costs of pairs that may carry mass gives a cost of NaN.

    Args:
        cost: `C`, `[..., n, m]`, finite; any units, any sign.
        a: Masses of the rows, `[n]` or `[..., n]`, non-negative, with sum
            one; or all zero, for a cost of zero. A point without mass has no
            part in the result. None: `1 / n` each.
        b: The same for the columns, `[m]` or `[..., m]`.
        mask: Whether a pair may carry mass, `[n, m]` or `[..., n, m]`; None:
            each may. Where the pairs form blocks (classes, say: rows that
            share a column share all of theirs) of equal mass on either side,
            all said here holds. Other masks get no rounding: then
            `marginal_error` tells how far P is from a plan, and the cost may
            be below the optimum. A point with mass but no pair keeps it.
        beta: None (relative); a number > 0, or a scalar tensor, in units of
            the cost, for the printed steps in the log domain, finite for any
            beta, then rounding; or "paper".
        num_iters: Number of steps N. >= 1.
        tolerance: Makes beta a fifth of the mean reduced cost, sharper and
            slower, and goes on in blocks of `num_iters` steps until each
            problem's gap is at most `tolerance` times its cost (or a
            millionth of the mean reduced cost, where rounding sets in), for
            20 blocks at most. `gap` tells where that did not suffice. > 0;
            not together with `beta`.
        solver: "ipot", or "exact" for an optimal assignment of n points to n
            points of equal mass by SciPy: on the CPU, not under XLA, without
            a mask.
        scale: What beta is relative to, `[]` or `[...]`, in units of the
            cost, > 0, instead of the mean reduced cost: where a part of C
            that is large but rarely paid for would blur the rest.

    Returns:
        A `Transport`. Its cost has the gradient of the optimal cost with
        respect to C, to the plan's accuracy; none goes to the masses.

    Raises:
        ValueError: If an argument is invalid or shapes do not fit.
        ImportError: If `solver="exact"` and SciPy is missing.

    Example:

    >>> transport = ipot([[0.0, 1.0], [1.0, 0.0]])
    >>> round(float(transport.cost), 6), round(float(transport.gap), 6)
    (0.0, 0.0)

    Reference: Xie et al. 2018; Lohit & Jones 2020, algorithm 1.
    """
    check_settings(
        beta=beta, num_iters=num_iters, tolerance=tolerance, solver=solver
    )
    cost, a, b, mask = check_problem(cost, a, b, mask)
    if scale is not None and (beta is not None or solver == "exact"):
        raise ValueError(
            "Invalid value for argument `scale`. It is for a relative beta: "
            "leave it out, or leave out `beta` and `solver`."
        )
    fixed = tf.stop_gradient(cost)
    if solver == "exact":
        if mask is not None:
            raise ValueError(
                "Invalid value for argument `mask`. solver='exact' takes "
                "none: use solver='ipot', with tolerance=1e-3 say."
            )
        plan = assignment_plan(fixed, a, b)
        lower_bound = tf.reduce_sum(plan * fixed, axis=[-2, -1])
    else:
        plan, lower_bound = _solve(
            fixed,
            a,
            b,
            mask,
            None if beta in (None, "paper") else _constant(beta, cost),
            None if tolerance is None else _constant(tolerance, cost),
            None if scale is None else _constant(scale, cost),
            int(num_iters),
            beta == "paper",
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


def check_settings(*, beta, num_iters, tolerance=None, solver="ipot"):
    """Raises a `ValueError` unless `ipot` takes these settings."""
    check_choice(solver, ("ipot", "exact"), "solver")
    if isinstance(beta, str) and beta != "paper":
        raise ValueError(
            "Invalid value for argument `beta`. Expected None (scale-free), "
            f"a number > 0 or 'paper'. Received: beta={beta!r}"
        )
    if beta is not None and not isinstance(beta, (str, tf.Tensor)):
        check_positive(beta, "beta")
    check_count(num_iters, "num_iters")
    if tolerance is not None:
        check_positive(tolerance, "tolerance")
        if beta is not None:
            raise ValueError(
                "Invalid value for argument `tolerance`. It sets beta itself:"
                f" leave one of them out. Received: beta={beta!r}, "
                f"tolerance={tolerance!r}"
            )
    if solver == "exact" and not (beta is None and tolerance is None):
        raise ValueError(
            "Invalid value for argument `solver`. solver='exact' takes "
            f"neither `beta` nor `tolerance`. Received: beta={beta!r}, "
            f"tolerance={tolerance!r}"
        )


def mean_reduced_cost(cost, *, a=None, b=None, mask=None):
    """What `ipot` takes for the scale of a cost.

    Formula: `sum_ij a_i b_j R_ij`, with R the cost less the minima of its
    rows, then of its columns; the mean over the mask where there is one.

    Args:
        cost: As of `ipot`.
        a: As of `ipot`.
        b: As of `ipot`.
        mask: As of `ipot`.

    Returns:
        Tensor `[...]`, in units of the cost; no gradient.

    Raises:
        ValueError: If shapes do not fit.
    """
    cost, a, b, mask = check_problem(tf.stop_gradient(cost), a, b, mask)
    keep = _pairs(a, b, mask)
    reduced, _, _ = _reduce(cost, keep, columns=True)
    return _mean(reduced, a, b, keep, mask)


# Operation by operation from Python, the loop takes thirty times as long.
@tf.function(autograph=False, reduce_retracing=True)
def _solve(cost, a, b, mask, beta, tolerance, scale, num_iters, paper):
    """Plan and lower bound of `ipot`."""
    keep = _pairs(a, b, mask)
    relative = beta is None and not paper
    # A row's factor in G is undone by u: subtracting its minimum changes no
    # number of the algorithm, it only keeps exp above 0. A column's would.
    reduced, row, column = _reduce(cost, keep, columns=relative)
    shift = tf.reduce_sum(a * row, axis=-1) + tf.reduce_sum(b * column, axis=-1)
    if mask is not None:  # a point without a partner cannot take part
        a = tf.where(tf.reduce_any(keep, axis=-1), a, tf.zeros_like(a))
        b = tf.where(tf.reduce_any(keep, axis=-2), b, tf.zeros_like(b))

    def finish(plan):
        if paper:
            return plan
        if mask is None:
            return rounded(plan, a, b)
        blocks = are_blocks(keep)[..., None, None]
        return tf.where(blocks, rounded(plan, a, b, keep), plan)

    def bound(potential):
        return dual_value(reduced, a, b, potential, keep) + shift

    if beta is not None:
        plan, log_u = log_domain(reduced / beta, a, b, keep, num_iters)
        return finish(plan), bound(log_u * beta / num_iters)
    if paper:
        beta = _PAPER_BETA * tf.ones_like(a[..., :1])
    else:
        if scale is None:
            # Weighing the mean by masses makes a doubled point the same as a
            # point of double mass.
            scale = _mean(reduced, a, b, keep, mask)
        scale = tf.maximum(scale, _TINY)
        beta = _RELATIVE_BETA if tolerance is None else _SHARP_BETA
        beta = beta * tf.broadcast_to(scale, tf.shape(shift))[..., None]
    kernel = tf.exp(-reduced / beta[..., None])
    floor = 0.0 if paper else _TINY
    if mask is not None:
        kernel = tf.where(keep, kernel, tf.zeros_like(kernel))
        floor *= tf.cast(keep, kernel.dtype)
    state = start(kernel, a, b)
    if tolerance is None:
        state = proceed(state, kernel, a, b, num_iters, floor)
        return finish(state.plan), bound(state.log_u * beta / num_iters)

    rounding = 8 * np.finfo(cost.dtype.as_numpy_dtype).eps

    def block(t, met, plan, lower, *state):
        state = proceed(State(*state), kernel, a, b, num_iters, floor)
        t += 1
        steps = tf.cast(t * num_iters, beta.dtype)
        plan, lower = finish(state.plan), bound(state.log_u * beta / steps)
        upper = tf.reduce_sum(plan * cost, axis=[-2, -1])
        wanted = tolerance * tf.abs(upper) + rounding * scale
        # NaN is not above anything: it ends the search.
        met = tf.logical_not(tf.reduce_any(upper - lower > wanted))
        return t, met, plan, lower, *state

    _, _, plan, lower, *_ = tf.while_loop(
        lambda t, met, *_: tf.logical_not(met),
        block,
        (tf.constant(0), tf.constant(False), kernel, shift, *state),
        maximum_iterations=_MAXIMUM_BLOCKS,
    )
    return plan, lower


def _pairs(a, b, mask):
    """Pairs that may carry mass, boolean `[..., n, m]`."""
    keep = tf.logical_and(a[..., :, None] > 0, b[..., None, :] > 0)
    return keep if mask is None else tf.logical_and(keep, mask)


def _reduce(cost, keep, *, columns):
    """The cost less the minima of its rows and columns, and these."""
    row = min_where(cost, keep, axis=-1)
    reduced = cost - row[..., :, None]
    column = tf.zeros_like(cost[..., 0, :])
    if columns:
        column = min_where(reduced, keep, axis=-2)
        reduced -= column[..., None, :]
    # Where there is no mass it may be below zero, and exp overflow.
    return tf.where(keep, reduced, tf.zeros_like(reduced)), row, column


def _mean(reduced, a, b, keep, mask):
    """Mean of a reduced cost, zero where not kept, by masses, `[...]`."""
    total = tf.reduce_sum(a * tf.linalg.matvec(reduced, b), axis=-1)
    if mask is None:
        return total
    weight = tf.linalg.matvec(tf.cast(keep, b.dtype), b)
    return tf.math.divide_no_nan(total, tf.reduce_sum(a * weight, axis=-1))


def _constant(value, cost):
    return tf.stop_gradient(tf.cast(value, cost.dtype))
