"""Matches on given signals, without networks that compute them."""

import keras
import tensorflow as tf

from tfkd.trace import Trace, outline


def identity(shape, name="net"):
    """A network that returns its input; its layer `features` does too.

    Args:
        shape: Of one example.
        name: Of the model.
    """
    inputs = keras.Input(shape)
    outputs = keras.layers.Activation("linear", name="features")(inputs)
    return keras.Model(inputs, outputs, name=name)


def bind(match, student, teacher):
    """The match, bound to two networks."""
    match.bind(
        student=outline(student, match.student_layers),
        teacher=outline(teacher, match.teacher_layers),
    )
    return match


def between(match, student_shape, teacher_shape):
    """Binds a match to two networks that return their input.

    Args:
        match: A match at `features`.
        student_shape, teacher_shape: Of one example.

    Returns:
        Function of the student's signal, the teacher's and what `value` of
        the match takes, that returns the value.
    """
    student = identity(student_shape, "student")
    teacher = identity(teacher_shape, "teacher")
    bind(match, student, teacher)

    def value(ours, theirs, labels=None, index=None, **kwargs):
        shared = {"labels": labels, "index": index}
        training = kwargs.get("training", False)
        observed = match.observe(
            Trace(
                teacher,
                tf.constant(theirs),
                layers=match.teacher_layers,
                **shared,
            ),
            training=training,
        )
        trace = Trace(student, ours, layers=match.student_layers, **shared)
        return match.value(trace, observed, **kwargs)

    return value
