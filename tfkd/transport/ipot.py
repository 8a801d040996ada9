"""IPOT: optimal transport by proximal steps, with a certificate."""

import tensorflow as tf

from tfkd.arguments import check_choice, check_count, check_positive
from tfkd.transport.assignment import assignment_plan
from tfkd.transport.plan import Transport, check_problem, min_where
from tfkd.transport.proximal import State, log_domain, proceed, start
from tfkd.transport.rounding import are_blocks, dual_value, rounded

_PAPER_BETA = 20.0
_PRINTED_NUM_ITERS = 50
# In units of the mean reduced cost. Less is sharper per step, but the steps
# then no longer reach the marginals. With 50 of them the cost is up to 1.3e-3
# too large on features of 64 dimensions, with 60 less than 1e-3.
_RELATIVE_BETA = 0.5
_NUM_ITERS = 60
# The same where the steps go on until the gap is small.
_SHARP_BETA = 0.2
_MAXIMUM_BLOCKS = 20
_TINY = 1e-30
_TINY_FLOAT64 = 1e-290
# In units of the scale, the gap that is float32's own.
_ROUNDING = 1e-6


def ipot(
    cost,
    *,
    a=None,
    b=None,
    mask=None,
    beta=None,
    num_iters=None,
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
    dimensions the cost is then at most 1e-3 above the optimum, 3e-3
    where few dimensions dominate; on the plane or for tight clusters it may
    be some percent, and more. `gap` bounds the error in each case, and
    `tolerance` asks for a smaller one.

    With `beta="paper"`, this is the algorithm with beta = 20 and without
    rounding, as Lohit & Jones 2020 print it. For costs in [0, 2] its plan is
    nearly the uniform one; for costs in the thousands it can be NaN.

    Solved in the precision of `cost`, float32 at least, without a tape. NaN
    among the costs of pairs that may carry mass gives a cost of NaN.

    Args:
        cost: `C`, `[..., n, m]`, finite for pairs that may carry mass; any
            units, any sign.
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
        num_iters: Number of steps N, >= 1; None: 60 with a relative beta,
            and 50, the printed number, with one that is given.
        tolerance: Goes on in blocks of `num_iters` steps (50), in float64,
            until the gap of each problem is at most `tolerance` times its
            cost (or a millionth of the mean reduced cost, where float32
            ends), for 20 blocks at most. beta is a fifth of the mean reduced
            cost first and is halved whenever sharper steps promise more. The
            best plan seen is returned; `gap` tells where it does not suffice.
            > 0; not together with `beta`.
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
    every = a is None and b is None and mask is None
    cost, a, b, mask = check_problem(cost, a, b, mask)
    if not every:
        # Nothing times infinity or NaN would be NaN.
        cost = tf.where(_pairs(a, b, mask), cost, tf.zeros_like(cost))
    if num_iters is None:
        relative = beta is None and tolerance is None
        num_iters = _NUM_ITERS if relative else _PRINTED_NUM_ITERS
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
        scale = None if scale is None else _constant(scale, cost)
        if tolerance is None:
            paper = isinstance(beta, str)
            if not paper and beta is not None:
                beta = _constant(beta, cost)
            plan, lower_bound = _compiled(_solve)(
                fixed,
                a,
                b,
                mask,
                None if paper else beta,
                scale,
                int(num_iters),
                paper,
            )
        else:
            tolerance = _constant(tolerance, cost)
            plan, lower_bound = _compiled(_solve_to)(
                fixed, a, b, mask, tolerance, scale, int(num_iters)
            )
    # The eager function forgets shapes where it was traced for others.
    plan = tf.ensure_shape(plan, cost.shape)
    lower_bound = tf.ensure_shape(lower_bound, cost.shape[:-2])
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
    if num_iters is not None:
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
    problem = _reduced_problem(cost, a, b, keep)
    return _scale(None, problem, keep, mask)


def _compiled(solve):
    """`solve` as a graph: its own for eager callers, else the caller's.

    Operation by operation from Python, the loop takes thirty times as long.
    A function of its own within a graph would be traced for shapes of any
    rank once two were seen, and takes eight times as long.
    """
    return solve if tf.executing_eagerly() else solve.python_function


@tf.function(autograph=False, reduce_retracing=True)
def _solve(cost, a, b, mask, beta, scale, num_iters, paper):
    """Plan and lower bound of `ipot` after a given number of steps."""
    keep = _pairs(a, b, mask)
    if paper or beta is not None:
        # A row's factor in G is undone by u: subtracting its minimum changes
        # no number of the algorithm, it only keeps exp above 0. A column's
        # would.
        problem = _reduced_problem(cost, a, b, keep, columns=False)
    else:
        problem = _reduced_problem(cost, a, b, keep)
    reduced, a, b, shift = problem
    if beta is not None:
        plan, log_u = log_domain(reduced / beta, a, b, keep, num_iters)
    else:
        if paper:
            beta = _PAPER_BETA * tf.ones_like(shift)
        else:
            beta = _RELATIVE_BETA * _scale(scale, problem, keep, mask)
        beta = beta[..., None]
        kernel, floor = _kernel(reduced, beta, keep, mask)
        state = proceed(
            start(kernel, a, b, printed=paper),
            kernel,
            a,
            b,
            num_iters,
            floor=0.0 if paper else floor,
        )
        plan, log_u = state.plan, state.log_u
    lower = dual_value(reduced, a, b, log_u * beta / num_iters, keep) + shift
    return plan if paper else _finish(plan, a, b, keep, mask), lower


@tf.function(autograph=False, reduce_retracing=True)
def _solve_to(cost, a, b, mask, tolerance, scale, num_iters):
    """Plan and lower bound of `ipot` when the gap is small enough.

    In float64: after hundreds of steps the numbers of float32 are too near
    to its ends.
    """
    dtype = cost.dtype
    cost, a, b = (tf.cast(tensor, tf.float64) for tensor in (cost, a, b))
    keep = _pairs(a, b, mask)
    problem = _reduced_problem(cost, a, b, keep)
    reduced, a, b, shift = problem
    scale = _scale(scale, problem, keep, mask)
    tolerance = tf.cast(tolerance, tf.float64)

    def block(t, met, beta, sharpness, best, plan, lower, *state):
        kernel, floor = _kernel(reduced, beta, keep, mask)
        state = proceed(State(*state), kernel, a, b, num_iters, floor)
        sharpness += num_iters / beta
        bound = dual_value(reduced, a, b, state.log_u / sharpness, keep)
        lower = tf.maximum(lower, bound)
        finished = _finish(state.plan, a, b, keep, mask)
        upper = tf.reduce_sum(finished * reduced, axis=[-2, -1])
        # "Not above" rather than "below": NaN must come out.
        better = tf.logical_not(upper > best)
        plan = tf.where(better[..., None, None], finished, plan)
        best = tf.where(better, upper, best)
        # What rounding added comes from missing marginals, the rest from
        # blur, which a sharper step removes.
        raw = tf.reduce_sum(state.plan * reduced, axis=[-2, -1])
        blurred = tf.abs(upper - raw) < 0.5 * (upper - lower)
        beta = tf.where(blurred[..., None], 0.5 * beta, beta)
        wanted = tolerance * tf.abs(best + shift) + _ROUNDING * scale
        met = tf.logical_not(tf.reduce_any(best - lower > wanted))
        return t + 1, met, beta, sharpness, best, plan, lower, *state

    beta = _SHARP_BETA * scale[..., None]
    huge = tf.fill(tf.shape(shift), tf.float64.max)
    _, _, _, _, _, plan, lower, *_ = tf.while_loop(
        lambda t, met, *_: tf.logical_not(met),
        block,
        (
            tf.constant(0),
            tf.constant(False),
            beta,
            tf.zeros_like(beta),
            huge,
            tf.zeros_like(reduced),
            -huge,
            *start(reduced, a, b),
        ),
        maximum_iterations=_MAXIMUM_BLOCKS,
    )
    return tf.cast(plan, dtype), tf.cast(lower + shift, dtype)


def _reduced_problem(cost, a, b, keep, *, columns=True):
    """The problem without what every plan pays.

    Args:
        cost: `[..., n, m]`.
        a: `[..., n]`.
        b: `[..., m]`.
        keep: Pairs that may carry mass, boolean `[..., n, m]`.
        columns: Whether minima of columns are subtracted too.

    Returns:
        The cost less the minima of its rows and columns, 0 where not kept;
        a and b without the points that have no partner; and what every plan
        pays for the minima, `[...]`.
    """
    row = min_where(cost, keep, axis=-1)
    reduced = cost - row[..., :, None]
    shift = tf.reduce_sum(a * row, axis=-1)
    if columns:
        column = min_where(reduced, keep, axis=-2)
        reduced -= column[..., None, :]
        shift += tf.reduce_sum(b * column, axis=-1)
    # Where there is no mass it may be below zero, and exp overflow.
    reduced = tf.where(keep, reduced, tf.zeros_like(reduced))
    a = tf.where(tf.reduce_any(keep, axis=-1), a, tf.zeros_like(a))
    b = tf.where(tf.reduce_any(keep, axis=-2), b, tf.zeros_like(b))
    return reduced, a, b, shift


def _scale(scale, problem, keep, mask):
    """The given scale of each problem, or its mean reduced cost."""
    reduced, a, b, shift = problem
    if scale is None:
        # Weighing the mean by masses makes a doubled point the same as a
        # point of double mass.
        scale = tf.reduce_sum(a * tf.linalg.matvec(reduced, b), axis=-1)
        if mask is not None:
            pairs = tf.linalg.matvec(tf.cast(keep, b.dtype), b)
            pairs = tf.reduce_sum(a * pairs, axis=-1)
            scale = tf.math.divide_no_nan(scale, pairs)
    scale = tf.maximum(tf.cast(scale, reduced.dtype), _TINY)
    return tf.broadcast_to(scale, tf.shape(shift))


def _kernel(reduced, beta, keep, mask):
    """G and the number to be added to `G * P`, zero where not kept."""
    floor = _TINY if reduced.dtype == tf.float32 else _TINY_FLOAT64
    kernel = tf.exp(-reduced / beta[..., None])
    if mask is not None:
        kernel = tf.where(keep, kernel, tf.zeros_like(kernel))
        floor *= tf.cast(keep, kernel.dtype)
    return kernel, floor


def _finish(plan, a, b, keep, mask):
    """The plan with its exact masses, where rounding can give them."""
    if mask is None:
        return rounded(plan, a, b)
    blocks = are_blocks(keep)[..., None, None]
    return tf.where(blocks, rounded(plan, a, b, keep), plan)


def _pairs(a, b, mask):
    """Pairs that may carry mass, boolean `[..., n, m]`."""
    keep = tf.logical_and(a[..., :, None] > 0, b[..., None, :] > 0)
    return keep if mask is None else tf.logical_and(keep, mask)


def _constant(value, cost):
    return tf.stop_gradient(tf.cast(value, cost.dtype))
