"""How a trainer runs one match, in a few lines, for tests of its values."""

import functools

import tensorflow as tf

from tfkd.trace import Trace, outline

# Tests bind many matches to the same networks.
_outline = functools.lru_cache(maxsize=16)(outline)


def bind(match, student, teacher=None):
    """Binds a match to two networks; returns it."""
    match.bind(
        student=_outline(student, tuple(match.student_layers)),
        teacher=teacher and _outline(teacher, tuple(match.teacher_layers)),
    )
    return match


def run(match, student, teacher, x, labels=None, *, training=True, **kwargs):
    """The value of a match that is not bound yet.

    Args:
        match: The match.
        student: The student.
        teacher: The teacher, or None.
        x: A batch.
        labels: Its labels, or None.
        training: Whether random directions are drawn anew. The student's
            pass is that of a training step either way.
        **kwargs: Of `value`.
    """
    bind(match, student, teacher)
    x = tf.constant(x)
    labels = None if labels is None else tf.constant(labels)
    observed = None
    if match.needs_teacher:
        trace = Trace(
            teacher,
            x,
            layers=match.teacher_layers,
            labels=labels,
            differentiable=True,
        )
        observed = match.observe(trace, training=training)
    if match.has_own_pass:
        trace = match.trace_student(student, x, labels, observed)
    else:
        trace = Trace(
            student,
            x,
            layers=match.student_layers,
            labels=labels,
            training=match.student_pass == "training",
            differentiable=True,
            freeze_statistics=match.freezes_statistics,
        )
    return match.value(trace, observed, training=training, **kwargs)


def run_each(match, student, teacher, x, labels=None, **kwargs):
    """The value of each example, `[batch]`.

    A match is the mean of weighted values over the batch, so they are its
    derivatives by the weights, times the batch.
    """
    weights = tf.ones([len(x)], x.dtype)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = run(
            match, student, teacher, x, labels, sample_weight=weights, **kwargs
        )
    return tape.gradient(value, weights).numpy() * len(x)


def jacobian(fn, x):
    """[batch, outputs, inputs] of fn by TensorFlow's own batch Jacobian."""
    x = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = fn(x)
    # One output after the other: for so few, quicker than all at once.
    rows = tape.batch_jacobian(outputs, x, experimental_use_pfor=False)
    return rows.numpy().reshape(*outputs.shape, -1)
