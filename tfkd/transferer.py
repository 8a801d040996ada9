"""Transferer: the teacher knows another task, or is the student's own start."""

import keras

from tfkd.copies import copy_weights
from tfkd.trace import Signal, Trace, classifier, find_layer, outline
from tfkd.training import StudentTrainer, describe_networks

_SQUASHED = ("Softmax", "Sigmoid")


@keras.saving.register_keras_serializable("tfkd")
class Transferer(StudentTrainer):
    """Trains a student on a target task with knowledge of another.

    It is a Keras model: compile it, `fit` it on the target data, save it.
    Its `student` is what you take away, the target network alone; `predict`
    and `export` are the student's.

    From another task: a `teacher` with classes of its own, a student of any
    architecture. With `source_head=True` the student gets a second dense
    layer, on the features that enter its last one, with as many outputs as
    the teacher. A match of the outputs (`Match(SquaredError())`) compares
    these, the source head, with the teacher's outputs; the label loss and
    matches without a teacher know the student's own outputs only.

    From the student's own beginning: with `reference="start"` the matches
    compare with a frozen copy of the student as it was given here. The copy
    never changes. It is a part of the Transferer that is saved with it.

    Args:
        student: A built Keras model, for instance of
            `tfkd.models.with_head`.
        teacher: A built Keras model that knows the source task, or None. A
            constant: never trained, changed, saved or exported. A list of
            several of the same classes is averaged as by `Distiller`.
        reference: "start" or None. Not beside a teacher.
        source_head: Whether there is a source head, or the name or path of
            the student's layer that it stands on, which gives `[batch,
            dim]`. Where True fails, as in a subclassed model, name it.
        matches: List of matches, or a `tfkd.methods.Method`.
        label_weight: Number or function of the step, >= 0; None: the
            method's, or 1.
        name: As of `keras.Model`.

    Attributes:
        student: The target network.
        reference: The copy of its beginning, or None.
        source_head: The second dense layer, or None.
        matches: The matches, bound to the networks.

    Raises:
        ValueError: If an argument is invalid; if a match cannot compare the
            networks, needs a teacher that is missing, or takes target labels
            for classes of the source; if a match compares outputs with a
            teacher without a source head, or none does with one.

    Example:

    >>> transferer = tfkd.Transferer(
    ...     student=student,
    ...     teacher=teacher,
    ...     source_head=True,
    ...     matches=[tfkd.Match(tfkd.losses.SquaredError(), weight=10.0)],
    ...     label_weight=10.0,
    ... )
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> transferer.compile("sgd", loss=loss, metrics=["accuracy"])
    >>> transferer.fit(train, validation_data=validation, epochs=75)
    >>> transferer.student.export("student")

    References: Li & Hoiem 2016 and Srinivas & Fleuret 2018, section 5 (the
    source head); Li, Grandvalet & Davoine 2018 and Li, Grandvalet, Flamary,
    Courty & Dou 2020, section 4.2 (the student's start).
    """

    _how_to_give_a_teacher = (
        'Pass teacher=, or reference="start" to compare with the student\'s '
        "own beginning"
    )

    def __init__(
        self,
        *,
        student,
        teacher=None,
        reference=None,
        source_head=False,
        matches=(),
        label_weight=None,
        name=None,
    ):
        if reference not in (None, "start"):
            raise ValueError(
                'Invalid value for argument `reference`. Expected "start" or '
                f"None. Received: reference={reference!r}"
            )
        if reference and teacher is not None:
            raise ValueError(
                'A Transferer compares with a teacher or, by reference="start"'
                ", with the student's own beginning, not with both. Received: "
                f"reference={reference!r}, teacher={teacher!r}"
            )
        if not isinstance(source_head, bool | str):
            raise ValueError(
                "Invalid value for argument `source_head`. Expected a bool or "
                "the name of the student's layer that the head stands on. "
                f"Received: source_head={source_head!r}"
            )
        if source_head and teacher is None:
            raise ValueError(
                "source_head learns what a teacher of another task says. Pass "
                "teacher=."
            )
        self._head_option = source_head
        self._head_at = None
        if source_head:
            self._head_at = (
                source_head
                if isinstance(source_head, str)
                else _last_features(student)
            )
        self.source_head = None
        self.reference = _frozen_copy(student) if reference else None
        super().__init__(
            student=student,
            teacher=self.reference if reference else teacher,
            matches=matches,
            label_weight=label_weight,
            name=name,
        )

    @property
    def student_with_source_head(self):
        """The student with both heads, sharing its weights.

        Returns:
            A Keras model, inputs -> (the student's outputs, the source
            head's).

        Raises:
            AttributeError: If there is no source head.
        """
        if self.source_head is None:
            raise AttributeError(
                "This Transferer has no source head. Make it with "
                "source_head=True."
            )
        return self._networks.both_heads

    # === What the matches see ===

    def _bind(self):
        self._networks.both_heads = None
        super()._bind()

    def _check_networks(self, student, teacher):
        """Refuses matches of incomparable outputs; builds the source head."""
        compares = [match for match in self.matches if self._reads_head(match)]
        if self._head_at is None:
            if self.reference is None and compares:
                raise ValueError(
                    f"Match '{compares[0].name}' compares the outputs, but "
                    f"teacher '{teacher.name}' of a Transferer knows other "
                    "classes. Pass source_head=True, which gives the student "
                    "outputs of these classes beside its own. For a teacher "
                    "of the same classes use Distiller."
                )
            return
        if not compares:
            raise ValueError(
                "The source head would learn nothing: no match compares the "
                "outputs. Add tfkd.Match(tfkd.losses.SquaredError()), or "
                "leave source_head out."
            )
        for match in compares:
            if match.labels_outputs:
                raise ValueError(
                    f"Match '{match.name}' takes the labels for classes of "
                    "the teacher, but they are of the target task. Choose one "
                    'without labels; a JacobianMatch of="top", say.'
                )
        theirs = teacher.signals[None]
        if not isinstance(theirs, Signal) or len(theirs.shape) != 2:
            raise ValueError(
                "source_head needs a teacher with one output [batch, "
                f"classes]. Received: '{teacher.name}' with {theirs}"
            )
        if theirs.op in _SQUASHED:
            raise ValueError(
                "The source head is compared with the teacher's logits, but "
                f"'{teacher.name}' ends in {theirs.op.lower()}. Build it "
                "without the last activation (classifier_activation=None in "
                "keras.applications)."
            )
        ours = student.signals[self._head_at]
        if not isinstance(ours, Signal) or len(ours.shape) != 2:
            raise ValueError(
                "Invalid value for argument `source_head`. Expected a layer "
                "of the student that gives one [batch, dim]. Received: "
                f"source_head={self._head_at!r}, which gives {ours}"
            )
        if self.source_head is None:
            dtype = keras.backend.result_type(
                self.dtype_policy.variable_dtype, "float32"
            )
            head = keras.layers.Dense(
                theirs.shape[-1], dtype=dtype, name="source_head"
            )
            head.build((None, ours.shape[-1]))
            self.source_head = head
        if self._networks.both_heads is None:
            self._networks.both_heads = TwoHeads(
                self.student, self.source_head, self._head_at
            )

    def _reads_head(self, match):
        """Whether the source head is what a match reads of the student."""
        return match.needs_teacher and match.reads_outputs

    def _layers_beside(self):
        return () if self._head_at is None else (self._head_at,)

    def _network_for(self, match):
        if self.source_head is not None and self._reads_head(match):
            return self._networks.both_heads
        return self.student

    def _outline_for(self, match, outline):
        if self.source_head is None or not self._reads_head(match):
            return outline
        source = Signal(
            (None, self.source_head.units), self.source_head.dtype, "BiasAdd"
        )
        return outline._replace(signals={**outline.signals, None: source})

    def _trace_for(self, match, trace, own):
        if self.source_head is None or not self._reads_head(match):
            return trace
        if own:
            return trace.with_outputs(lambda trace: trace.outputs[1])
        return trace.with_outputs(
            lambda trace: self.source_head(trace[self._head_at])
        )

    # === Keras ===

    @property
    def trainable(self):
        """As `keras.Model.trainable`; the reference never is."""
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        keras.Model.trainable.fset(self, value)
        if getattr(self, "reference", None) is not None:
            self.reference.trainable = False

    def get_config(self):
        """As `StudentTrainer.get_config`."""
        return {
            **super().get_config(),
            "reference": None if self.reference is None else "start",
            "source_head": self._head_option,
        }

    def _describe_networks(self):
        if self.reference is None:
            lines = describe_networks(self.student, self._networks.teachers)
        else:
            lines = describe_networks(self.student, [])
            lines.append("reference: a frozen copy of the student's start")
        if self.source_head is not None:
            lines.append(
                f"source head: {self.source_head.units} outputs on "
                f"'{self._head_at}', "
                f"{self.source_head.count_params():,} parameters"
            )
        return lines


@keras.saving.register_keras_serializable("tfkd")
class TwoHeads(keras.Model):
    """A student and a second dense layer on one of its layers.

    Args:
        student: A built Keras model.
        source_head: A built layer.
        at: Name or path of the student's layer that it stands on.
        name: As of `keras.Model`.

    Returns:
        When called, the tuple of the student's outputs and the head's.
    """

    def __init__(self, student, source_head, at, name=None):
        super().__init__(
            name=name or f"{student.name}_with_source_head",
            dtype=student.dtype_policy,
        )
        self.student = student
        self.source_head = source_head
        self.at = at
        self(_symbolic_inputs(student))

    def call(self, inputs, training=False):
        """Both heads' outputs, of one pass of the student."""
        trace = Trace(self.student, inputs, layers=[self.at], training=training)
        return trace.outputs, self.source_head(trace[self.at])

    def get_config(self):
        """Arguments of an equal model."""
        serialize = keras.saving.serialize_keras_object
        return {
            "student": serialize(self.student),
            "source_head": serialize(self.source_head),
            "at": self.at,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """Makes a model from what `get_config` returned."""
        return cls(
            **{
                key: keras.saving.deserialize_keras_object(value)
                for key, value in config.items()
            }
        )


def _frozen_copy(student):
    """A copy with the weights that the student has now, not to be trained."""
    try:
        config = {**student.get_config()}
        if "name" in config:
            config["name"] = f"{student.name}_start"
        copy = type(student).from_config(config)
        if not copy.built:
            copy(_symbolic_inputs(student))
        copy_weights(source=student, target=copy)
        # Layers that a subclassed model does not name are counted up by Keras
        # over all models; matches know both networks' layers by their names.
        for ours, theirs in zip(
            student._flatten_layers(include_self=False),
            copy._flatten_layers(include_self=False),
            strict=True,
        ):
            theirs.name = ours.name
    except Exception as error:
        raise ValueError(
            f"reference=\"start\" copies the student, but '{student.name}' of "
            f"type {type(student).__name__} cannot be made anew from its "
            f"get_config(): {error}"
        ) from error
    copy.trainable = False
    return copy


def _symbolic_inputs(model):
    """What a model takes, as placeholders that build another by a call."""
    return keras.tree.map_structure(
        lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name),
        outline(model).inputs,
    )


def _last_features(student):
    """The path of the layer whose output enters the student's classifier."""
    path = classifier(student)
    try:
        before = find_layer(student, path).input._keras_history.operation.name
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            "The layer before the classifier of student "
            f"'{getattr(student, 'name', student)}' is unknown. Name it: "
            'source_head="features", say.'
        ) from None
    return "/".join([*path.split("/")[:-1], before])
