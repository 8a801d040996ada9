"""Distiller: teacher and student solve the same task."""

import keras

from tfkd.trace import Signal
from tfkd.training import StudentTrainer


@keras.saving.register_keras_serializable("tfkd")
class Distiller(StudentTrainer):
    """Distils a teacher into a student that solves the same task.

    It is a Keras model: compile it, `fit` it, save it. Its `student` is what
    you take away; `predict` and `export` are the student's.

    Args:
        student: A built Keras model.
        teacher: A built Keras model of the same label space, or None where
            no match needs one. A constant: never trained, changed, saved or
            exported. A list of several is averaged: what the matches observe
            of them, at layers of the same names and shapes; under losses of
            class probabilities those, at the loss's temperature.
        matches: List of matches, or a `tfkd.methods.Method`.
        label_weight: Number or function of the step, >= 0; None: the
            method's, or 1.
        name: As of `keras.Model`.

    Raises:
        ValueError: If the label spaces differ, a match cannot compare the
            two networks or needs a teacher that is missing, several
            teachers cannot be averaged, or a weight is invalid.

    Example:

    >>> distiller = tfkd.Distiller(
    ...     student=student,
    ...     teacher=teacher,
    ...     matches=[tfkd.Match(tfkd.losses.SoftTargets(4.0), weight=0.9)],
    ...     label_weight=0.1,
    ... )
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> distiller.compile("adam", loss=loss, metrics=["accuracy"])
    >>> distiller.fit(train, validation_data=validation, epochs=10)
    >>> distiller.student.export("student")
    """

    def _check_networks(self, student, teacher):
        ours, theirs = student.signals[None], teacher.signals[None]
        if not (isinstance(ours, Signal) and isinstance(theirs, Signal)):
            return
        if ours.shape[-1] != theirs.shape[-1]:
            raise ValueError(
                "A Distiller needs a teacher and a student of one label "
                f"space. Received: student '{student.name}' with outputs "
                f"{ours.shape}, teacher '{teacher.name}' with {theirs.shape}."
            )
