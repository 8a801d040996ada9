"""The proximal steps of IPOT, in the plan's own numbers and in logarithms."""

from typing import NamedTuple

import tensorflow as tf

# Steps per turn of a graph's loop. For small problems the loop itself is a
# third of the time and, beside other work, more; XLA compiles longer.
_UNROLLED = 5


class State(NamedTuple):
    """Where the steps stand.

    The plan is `diag(u) Q diag(v)`.

    Attributes:
        q: Q, `[..., n, m]`.
        u: `[..., n]`.
        v: `[..., m]`.
        log_u: Sum of log u over the steps less log a, `[..., n]`: times
            beta / steps, a potential of entropic transport.
    """

    q: tf.Tensor
    u: tf.Tensor
    v: tf.Tensor
    log_u: tf.Tensor

    @property
    def plan(self):
        """`diag(u) Q diag(v)`."""
        return self.u[..., :, None] * self.q * self.v[..., None, :]


def start(kernel, a, b, *, printed=False):
    """The state before the first step, of which the plan is no plan yet.

    Args:
        kernel: G, for its shape and type.
        a: Masses of the rows, `[..., n]`.
        b: Masses of the columns, `[..., m]`.
        printed: Whether to start from 1, as the algorithm is printed, rather
            than from b. With b, a doubled column is the same as one of
            double mass; it makes no difference where b is uniform.

    Returns:
        A `State`.
    """
    q = tf.ones_like(kernel)
    return State(
        q=q if printed else b[..., None, :] * q,
        u=tf.ones_like(a),
        v=tf.cast(b > 0, b.dtype),
        log_u=-tf.math.log(tf.where(a > 0, a, 1.0)),
    )


def proceed(state, kernel, a, b, num_iters, floor):
    """The state after more steps.

    Args:
        state: A `State`.
        kernel: G, `[..., n, m]`.
        a: Masses of the rows, `[..., n]`.
        b: Masses of the columns, `[..., m]`.
        num_iters: Number of steps.
        floor: Added to G * P, a number or `[..., n, m]`. An entry that
            underflows to 0 stays 0, and where all useful entries of a row
            do, u overflows; from a negligible number they grow again.

    Returns:
        A `State`.
    """

    def step(q, u, v, log_u):
        # With diag(u) and diag(v) last, XLA multiplies q by vectors ten
        # times as fast as with the floor last.
        q = u[..., :, None] * v[..., None, :] * (kernel * q + floor)
        u = tf.where(a > 0, a / tf.linalg.matvec(q, v), 0.0)
        v = tf.linalg.matvec(q, u, transpose_a=True)
        v = tf.where(b > 0, b / v, 0.0)
        return q, u, v, log_u + tf.math.log(tf.where(a > 0, u, 1.0))

    def turn(t, *state):
        for _ in range(unrolled):
            state = step(*state)
        return t + 1, *state

    unrolled = _UNROLLED if num_iters % _UNROLLED == 0 else 1
    turns = num_iters // unrolled
    _, *state = tf.while_loop(
        lambda t, *_: t < turns,
        turn,
        (tf.constant(0), *state),
        maximum_iterations=turns,
    )
    return State(*state)


def log_domain(scaled, a, b, keep, num_iters):
    """The same steps from the start in logarithms, for any beta.

    Of the plan only the sums of log u and log v over the steps are kept:
    after t steps, `log P_ij = sum log u_i + sum log v_j - t C_ij / beta`.

    Args:
        scaled: C / beta, `[..., n, m]`.
        a: Masses of the rows, `[..., n]`.
        b: Masses of the columns, `[..., m]`.
        keep: Pairs that may carry mass, boolean `[..., n, m]`.
        num_iters: Number of steps.

    Returns:
        The plan, `[..., n, m]`, and the sum of log u, `[..., n]`.
    """
    log_a = tf.math.log(tf.where(a > 0, a, 1.0))
    log_b = tf.math.log(tf.where(b > 0, b, 1.0))
    never = tf.cast(scaled.dtype.min / 4, scaled.dtype)

    def log_plan(t, sum_u, sum_v):
        vectors = sum_u[..., :, None] + sum_v[..., None, :]
        t = tf.cast(t, scaled.dtype)
        return tf.where(keep, vectors - t * scaled, never)

    def step(t, sum_u, sum_v, v):
        log_q = log_plan(t + 1, sum_u, sum_v)
        u = log_a - tf.reduce_logsumexp(log_q + v[..., None, :], axis=-1)
        u = tf.where(a > 0, u, 0.0)
        v = log_b - tf.reduce_logsumexp(log_q + u[..., :, None], axis=-2)
        v = tf.where(b > 0, v, 0.0)
        return t + 1, sum_u + u, sum_v + v, v

    t, sum_u, sum_v, _ = tf.while_loop(
        lambda t, *_: t < num_iters,
        step,
        (
            tf.constant(0),
            tf.zeros_like(a),
            tf.zeros_like(b),
            tf.zeros_like(b),
        ),
        maximum_iterations=num_iters,
    )
    return tf.exp(log_plan(t, sum_u, sum_v)), sum_u
