"""The nearest orthogonal matrix, by matrix products only."""

import math

import numpy as np
import tensorflow as tf

# Of an odd polynomial a s + b s^3 + c s^5 of the singular values s, which
# multiplies small ones by 3.4 and keeps the others between 0.7 and 1.2.
_LIFT = (3.4445, -4.7750, 2.0315)
_SETTLING_STEPS = 5
_COMMON_BATCH = 129


def polar_factor(x, y, *, mask=None):
    """The orthogonal factor of `x y^T`, and so the best rotation of y to x.

    Formula: `P = U V^T` for the singular value decomposition
    `U diag(s) V^T` of `K = x y^T`, or of `mask * K`. It maximises
    `sum_ij P_ij K_ij` over the matrices with singular values of at most one.

    Directions that K does not have (s = 0) stay 0 where K is exactly 0; those
    of the order of rounding are turned somewhere, at full length. Where the
    points have fewer dimensions than a side has points, the factor is that
    of a small matrix between two orthonormal bases.

    Args:
        x: Points, `[..., n, d]`, floating.
        y: Points, `[..., m, d]`, of the type of `x`.
        mask: None, or zeros and ones that make blocks, `[..., n, m]`.

    Returns:
        Tensor `[..., n, m]`, without gradient; NaN where a point is.
    """
    x, y = tf.stop_gradient(x), tf.stop_gradient(y)
    if mask is None and is_flat(x, y):
        # [..., n, d], [..., d, d]
        x_basis, x = tf.linalg.qr(_of_order_one(x))
        y_basis, y = tf.linalg.qr(_of_order_one(y))
        core = _orthogonal(tf.matmul(x, y, transpose_b=True))
        core = tf.matmul(core, y_basis, transpose_b=True)
        result = tf.matmul(x_basis, core)
    else:
        product = tf.matmul(x, y, transpose_b=True)
        result = _orthogonal(product if mask is None else product * mask)
    # Here too, or the gradient of all steps is built, only to be dropped.
    return tf.stop_gradient(result)


def is_flat(x, y):
    """Whether matrices of dimensions are the smaller ones: d < n and d < m.

    Decided while tracing. Where a number of points is unknown then, as Keras
    leaves it for batches, dimensions count as few up to a common size of
    batch. That is a matter of speed only.

    Args:
        x: `[..., n, d]`.
        y: `[..., m, d]`.

    Returns:
        A bool.
    """
    points = [
        _COMMON_BATCH if size is None else size
        for size in (x.shape[-2], y.shape[-2])
    ]
    return x.shape[-1] is not None and x.shape[-1] < min(points)


def _of_order_one(matrix):
    """In units of its largest entry: then no square that matters vanishes."""
    tiny = np.finfo(matrix.dtype.as_numpy_dtype).tiny
    largest = tf.reduce_max(tf.abs(matrix), axis=[-2, -1], keepdims=True)
    return matrix / tf.maximum(largest, tiny)


# Operation by operation from Python, the steps take seven times as long.
@tf.function(autograph=False, reduce_retracing=True)
def _orthogonal(matrix):
    """The orthogonal factor of a matrix, by Newton and Schulz's iteration."""
    matrix = _of_order_one(matrix)
    # No singular value is above any norm.
    rows = tf.reduce_max(tf.reduce_sum(tf.abs(matrix), -1), -1)
    columns = tf.reduce_max(tf.reduce_sum(tf.abs(matrix), -2), -1)
    norm = tf.minimum(
        tf.norm(matrix, axis=[-2, -1]), tf.sqrt(rows) * tf.sqrt(columns)
    )
    # The norm of a matrix with an entry of 1 is no less.
    result = matrix / tf.maximum(norm, 1.0)[..., None, None]
    # Enough to lift what stands just above rounding.
    rounding = np.finfo(matrix.dtype.as_numpy_dtype).eps
    lifting_steps = math.ceil(-math.log(rounding) / math.log(_LIFT[0]))
    result = _repeat(_lift, result, lifting_steps)
    return _repeat(_settle, result, _SETTLING_STEPS)


def _lift(s):
    a, b, c = _LIFT
    squared = tf.matmul(s, s, transpose_b=True)
    factor = b * squared + c * tf.matmul(squared, squared)
    return a * s + tf.matmul(factor, s)


def _settle(s):
    """`15/8 s - 10/8 s^3 + 3/8 s^5` of the singular values.

    Its fixed point 1 is of order three. Written as a correction, which
    leaves less rounding at the end: with `D = 1 - s^2`,
    `s + (D/2 + 3/8 D^2) s`.
    """
    unit = tf.eye(tf.shape(s)[-2], dtype=s.dtype)
    rest = unit - tf.matmul(s, s, transpose_b=True)
    factor = 0.5 * rest + 0.375 * tf.matmul(rest, rest)
    return s + tf.matmul(factor, s)


def _repeat(step, matrix, num_iters):
    _, matrix = tf.while_loop(
        lambda t, _: t < num_iters,
        lambda t, s: (t + 1, step(s)),
        (tf.constant(0), matrix),
        maximum_iterations=num_iters,
    )
    return matrix
