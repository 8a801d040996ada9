"""Exact optimal transport between equal numbers of equal masses."""

import numpy as np
import tensorflow as tf


def assignment_plan(cost, a, b):
    """An optimal plan, which carries each point to one other.

    Solved by SciPy, in Python: on the CPU, and not under XLA.

    Args:
        cost: `[..., n, n]`, floating.
        a: Masses of the rows, `[..., n]`: one number or zero.
        b: Masses of the columns, `[..., n]`: the same number or zero, and as
            many of it.

    Returns:
        Tensor `[..., n, n]`; NaN where the costs of points with mass are not
        finite.

    Raises:
        ValueError: If the masses are others, or the matrix is known not to
            be square. In graph mode, masses are seen when it runs, and the
            error is a `tf.errors.InvalidArgumentError`.
        ImportError: If SciPy is missing.
    """
    _require_scipy()
    if not cost.shape[-2:-1].is_compatible_with(cost.shape[-1:]):
        raise ValueError(_MESSAGE.format(f"cost.shape={cost.shape}"))
    if tf.executing_eagerly():
        return tf.constant(_plans(cost.numpy(), a.numpy(), b.numpy()))
    # Where XLA refuses, it shows the name of the operation.
    plan = tf.numpy_function(
        _plans,
        [cost, a, b],
        cost.dtype,
        name="solver_exact_runs_on_the_CPU_and_not_under_XLA",
    )
    return tf.ensure_shape(plan, cost.shape)


_MESSAGE = (
    "Invalid value for argument `solver`. solver='exact' assigns points to "
    "points: it takes as many rows as columns, all of equal mass (or none), "
    "on either side alike. For other problems use solver='ipot', with "
    "tolerance=1e-3 say. Received: {}"
)


def _plans(cost, a, b):
    """`assignment_plan` of NumPy arrays."""
    from scipy.optimize import linear_sum_assignment

    plan = np.zeros_like(cost)
    for index in np.ndindex(*cost.shape[:-2]):
        rows, columns = np.flatnonzero(a[index]), np.flatnonzero(b[index])
        masses = np.concatenate([a[index][rows], b[index][columns]])
        if len(rows) != len(columns) or not np.allclose(
            masses, masses[:1], rtol=1e-5, atol=0
        ):
            raise ValueError(
                _MESSAGE.format(
                    f"{len(rows)} rows and {len(columns)} columns with "
                    f"masses from {masses.min()} to {masses.max()}"
                )
            )
        if not len(rows):
            continue
        part = np.ix_(rows, columns)
        kept = cost[index][part]
        if not np.all(np.isfinite(kept)):
            plan[index][part] = np.nan
            continue
        i, j = linear_sum_assignment(kept)
        plan[index][rows[i], columns[j]] = a[index][rows[i]]
    return plan


def _require_scipy():
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "solver='exact' needs SciPy: python -m pip install scipy"
        ) from error
