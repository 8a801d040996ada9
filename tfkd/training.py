"""The one training step, which every trainer of students shares."""

import contextvars

import keras
import numpy as np
import tensorflow as tf

from tfkd.matches.base import BaseMatch, check_weight, weighted
from tfkd.matches.match import refuse_probabilities
from tfkd.trace import Signal, Trace, outline

# XLA's second derivative of max pooling compares the top 16 bits only.
_APPROXIMATE_UNDER_XLA = ("MaxPool", "MaxPoolV2", "MaxPool3D")

# The teacher that `load` hands to `from_config`, past the file.
_teacher = contextvars.ContextVar("teacher", default=None)


class StudentTrainer(keras.Model):
    """Trains a student by its labels and by matches with a teacher.

    Each step runs the teacher once, in inference mode and outside the tape
    over weights, and the student once in training mode. A match that wants
    the student's own Jacobian adds one inference-mode pass of the student,
    shared by all that want it.

    The loss is `label_weight * label loss + sum of weight * match`, plus the
    student's and the projectors' own regularisers, once. Metrics: `loss`,
    `label_loss`, each match's unweighted value under its name, and those
    given to `compile`.

    Args:
        student: A built Keras model.
        teacher: A built Keras model, or None where no match needs one. It is
            a constant: never trained, changed, saved or exported.
        matches: List of matches, or a `tfkd.methods.Method`.
        label_weight: As a match's weight; None: the method's, or 1.
        name: As of `keras.Model`.

    Attributes:
        student: The student.
        matches: The matches, bound to the networks.

    Raises:
        ValueError: If a match cannot compare the two networks, needs a
            teacher that is missing, or a weight is invalid.
    """

    def __init__(
        self,
        *,
        student,
        teacher=None,
        matches=(),
        label_weight=None,
        name=None,
    ):
        dtype = getattr(student, "dtype_policy", None)
        super().__init__(name=name, dtype=dtype)
        if label_weight is None:
            label_weight = getattr(matches, "label_weight", 1.0)
        self.label_weight = check_weight(label_weight, "label_weight")
        self.student = student
        self.matches = _as_matches(getattr(matches, "matches", matches))
        self._networks = _Networks(teacher)
        self._bind()
        names = _unique_names(self.matches)
        self._match_metrics = [keras.metrics.Mean(name=n) for n in names]
        self._label_metric = keras.metrics.Mean(name="label_loss")
        self._has_label_loss = False
        self.built = True

    def _bind(self):
        """Outlines both networks and binds the matches to them."""
        teacher = self._networks.teacher
        for match in self.matches:
            if match.needs_teacher and teacher is None:
                raise ValueError(
                    f"Match '{match.name}' needs a teacher. Pass teacher=, "
                    "or load a saved trainer with "
                    f"{type(self).__name__}.load(path, teacher=...)."
                )
        self._student_layers = _merged(m.student_layers for m in self.matches)
        self._teacher_layers = _merged(m.teacher_layers for m in self.matches)
        ours = outline(self.student, self._student_layers)
        theirs = None
        if teacher is not None:
            theirs = outline(teacher, self._teacher_layers)
            _require_disjoint(self.student, teacher)
        self._check_networks(ours, theirs)
        for match in self.matches:
            match.bind(student=ours, teacher=theirs)
        self._networks.student_outline = ours
        self._networks.teacher_outline = theirs
        shared = [m for m in self.matches if not m.has_own_pass]
        wanted = [m for m in shared if m.needs_input_gradient]
        self._differentiable = {m.student_pass for m in wanted}
        self._teacher_differentiable = any(m.needs_teacher for m in wanted)
        self._student_passes = {"training", *(m.student_pass for m in shared)}
        self._freezes = _one_kind_of_statistics(wanted)
        if self._approximate_op():
            self.supports_jit = False

    def _check_networks(self, student, teacher):
        """Hook for what a subclass requires of the two outlines."""

    def _approximate_op(self):
        """An operation whose Jacobian XLA would only approximate, or None."""
        if any(match.needs_input_gradient for match in self.matches):
            for op in _APPROXIMATE_UNDER_XLA:
                if op in self._networks.student_outline.ops:
                    return op
        return None

    # === Keras: compile, fit, evaluate ===

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """As `keras.Model.compile`.

        Args:
            optimizer: As of `keras.Model.compile`.
            loss: The label loss, or None: the student then learns from the
                matches alone, and data need no labels unless a match does.
            **kwargs: As of `keras.Model.compile`. `jit_compile="auto"` keeps
                XLA off where it would only approximate a Jacobian.

        Raises:
            ValueError: If there is neither a loss nor a match; if the loss
                takes logits and the student returns probabilities, or the
                reverse; or if `jit_compile=True` would give an approximate
                Jacobian.
        """
        if loss is None and not self.matches:
            raise ValueError(
                "There is nothing to learn from: compile() got no loss and "
                "there are no matches."
            )
        op = self._approximate_op()
        if kwargs.get("jit_compile") is True and op:
            place = self._networks.student_outline.ops[op]
            raise ValueError(
                f"XLA only approximates the Jacobian of '{self.student.name}'"
                f": its second derivative of {op} (at {place}) compares "
                'rounded values. Compile with jit_compile=False or "auto", or '
                "use average pooling or strided convolutions."
            )
        self._check_label_loss(loss)
        self._has_label_loss = loss is not None
        super().compile(optimizer, loss, **kwargs)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`; bad data are refused before the first step.

        Args:
            x: As of `keras.Model.fit`.
            y: As of `keras.Model.fit`.
            *args: As of `keras.Model.fit`.
            **kwargs: As of `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: If the data are empty, not batched, of another shape
                than a network takes, or hold labels out of range.
        """
        self._check_data(x, y)
        validation = kwargs.get("validation_data")
        if validation is not None:
            x_y_weight = keras.utils.unpack_x_y_sample_weight(validation)
            self._check_data(*x_y_weight[:2])
        if isinstance(x, tf.data.Dataset) and len(args) < 5:
            # Keras warns that it will not shuffle a dataset unless told.
            kwargs.setdefault("shuffle", False)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; changes no weight and no statistic.

        Args:
            x: As of `keras.Model.evaluate`.
            y: As of `keras.Model.evaluate`.
            *args: As of `keras.Model.evaluate`.
            **kwargs: As of `keras.Model.evaluate`.

        Returns:
            As `keras.Model.evaluate`.

        Raises:
            ValueError: As `fit`.
        """
        if not kwargs.get("_use_cached_eval_dataset"):
            self._check_data(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def call(self, inputs, training=None):
        """The student's outputs."""
        return self.student(inputs, training=training)

    def train_step(self, data):
        """One step of training on one batch."""
        x, y, sample_weight = self._unpack(data)
        observed = self._observe_teacher(x, y, training=True)
        with tf.GradientTape() as tape:
            loss, outputs = self._step_loss(
                x, y, sample_weight, observed, training=True
            )
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        if not variables:
            raise ValueError(
                f"Student '{self.student.name}' has no trainable variables, "
                "nor has any match. Set student.trainable = True."
            )
        gradients = tape.gradient(scaled, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self.compute_metrics(x, y, outputs, sample_weight)

    def test_step(self, data):
        """One step of evaluation on one batch."""
        x, y, sample_weight = self._unpack(data)
        observed = self._observe_teacher(x, y, training=False)
        _, outputs = self._step_loss(
            x, y, sample_weight, observed, training=False
        )
        return self.compute_metrics(x, y, outputs, sample_weight)

    # === One step ===

    def _unpack(self, data):
        """The batch as (x, y, sample_weight): structures of tensors or None.

        Whatever is computed from x waits for the check of the labels.
        """
        x, y, sample_weight = keras.tree.map_structure(
            lambda v: None if v is None else tf.convert_to_tensor(v),
            keras.utils.unpack_x_y_sample_weight(data),
        )
        check = self._label_check(y)
        if check is not None:  # in a graph
            with tf.control_dependencies([check]):
                x = keras.tree.map_structure(tf.identity, x)
        return x, y, sample_weight

    def _observe_teacher(self, x, y, training):
        """What the matches keep of the teacher, as constants."""
        if not any(match.needs_teacher for match in self.matches):
            return [None] * len(self.matches)
        trace = Trace(
            self._networks.teacher,
            x,
            layers=self._teacher_layers,
            labels=y,
            differentiable=self._teacher_differentiable,
        )
        return [
            keras.tree.map_structure(
                tf.stop_gradient, match.observe(trace, training=training)
            )
            if match.needs_teacher
            else None
            for match in self.matches
        ]

    def _trace_student(self, x, y, training):
        """Pass name -> the student's trace."""
        if not training:
            trace = Trace(
                self.student,
                x,
                layers=self._student_layers,
                labels=y,
                differentiable=bool(self._differentiable),
            )
            return {"training": trace, "inference": trace}
        # The training pass comes last: each call of the student clears the
        # losses that its layers added in the one before.
        return {
            name: Trace(
                self.student,
                x,
                layers=self._student_layers,
                training=name == "training",
                labels=y,
                differentiable=name in self._differentiable,
                freeze_statistics=name == "training" and self._freezes,
            )
            for name in sorted(self._student_passes)
        }

    def _step_loss(self, x, y, sample_weight, observed, training):
        """The total loss and the student's outputs; updates the metrics."""
        own = [
            match.trace_student(self.student, x, y, seen)
            if match.has_own_pass
            else None
            for match, seen in zip(self.matches, observed, strict=True)
        ]
        traces = self._trace_student(x, y, training)
        outputs = traces["training"].outputs
        values = [
            match.value(
                trace or traces[match.student_pass],
                seen,
                sample_weight=_single_weight(sample_weight, match),
                training=training,
            )
            for match, trace, seen in zip(
                self.matches, own, observed, strict=True
            )
        ]
        step = self.optimizer.iterations if self.optimizer else tf.constant(0)
        added = self._added_losses()
        total, label_loss = added, None
        if self._has_label_loss:
            task = self.compute_loss(x, y, outputs, sample_weight, training)
            label_loss = task - added
            total = task
            if callable(self.label_weight) or self.label_weight != 1:
                # Labels are weighed, regularisers are not.
                labels = weighted(self.label_weight, label_loss, step)
                total = added if labels is None else added + labels
        for match, value in zip(self.matches, values, strict=True):
            term = weighted(match.weight, value, step)
            if term is not None:
                total += tf.cast(term, total.dtype)
        self._track(total, label_loss, values, x)
        return total, outputs

    def _added_losses(self):
        """Sum of regularisers and added losses, divided by the replicas."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        total = tf.zeros([], keras.config.floatx())
        for loss in self.losses:
            total += tf.cast(tf.reduce_sum(loss), total.dtype)
        return total / replicas

    def _track(self, total, label_loss, values, x):
        """Shows the step's values to their metrics."""
        batch = tf.shape(keras.tree.flatten(x)[0])[0]
        replicas = self.distribute_strategy.num_replicas_in_sync
        shown = [(self._loss_tracker, total)]
        shown += zip(self._match_metrics, values, strict=True)
        if label_loss is not None:
            shown.append((self._label_metric, label_loss))
        for metric, value in shown:
            metric.update_state(
                tf.stop_gradient(value) * replicas, sample_weight=batch
            )

    @property
    def metrics(self):
        """As `keras.Model.metrics`; `label_loss` only if there is one."""
        return [
            metric
            for metric in super().metrics
            if self._has_label_loss or metric is not self._label_metric
        ]

    # === Checks of what users bring ===

    def _check_label_loss(self, loss):
        """Raises if the loss and the student's outputs speak of two things."""
        signal = self._networks.student_outline.signals[None]
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
            if not hasattr(loss, "from_logits"):
                name = getattr(loss, "__name__", "")
                known = _CROSS_ENTROPIES.get(name)
                loss = known() if known else loss
        if not isinstance(signal, Signal) or not hasattr(loss, "from_logits"):
            return
        if loss.from_logits:
            refuse_probabilities(loss, self._networks.student_outline, signal)
        elif signal.op in ("BiasAdd", "MatMul"):
            raise ValueError(
                f"Loss '{loss.name}' takes probabilities, but "
                f"'{self.student.name}' returns logits. Compile with "
                f"loss=keras.losses.{type(loss).__name__}(from_logits=True)."
            )

    def _label_check(self, y):
        """An operation that fails if labels are out of range, or None."""
        if not self._has_label_loss:
            return None
        if y is None:
            raise ValueError(
                "The label loss needs labels, but the data have none. Pass "
                "them, or compile with loss=None to learn from the teacher "
                "alone."
            )
        classes = self._sparse_classes()
        if classes is None or not isinstance(y, tf.Tensor):
            return None
        low, high = tf.reduce_min(y), tf.reduce_max(y)
        return tf.debugging.Assert(
            (low >= 0) & (high < tf.cast(classes, y.dtype)),
            [f"Labels out of range: expected 0 to {classes - 1}, got", y],
        )

    def _sparse_classes(self):
        """Number of classes if sparse labels are to be below it, or None."""
        loss = self.loss
        sparse = loss == "sparse_categorical_crossentropy" or (
            isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
            and loss.ignore_class is None
        )
        signal = self._networks.student_outline.signals[None]
        if sparse and isinstance(signal, Signal):
            return signal.shape[-1]
        return None

    def _check_data(self, x, y):
        """Raises on data that no step could use."""
        if isinstance(x, tf.data.Dataset):
            if x.cardinality().numpy() == 0:
                raise ValueError("The dataset is empty.")
            specs = x.element_spec
            self._check_shapes(specs[0] if isinstance(specs, tuple) else specs)
        elif all(hasattr(v, "shape") for v in keras.tree.flatten(x)):
            if any(len(v) == 0 for v in keras.tree.flatten(x)):
                raise ValueError("The data are empty.")
            self._check_shapes(x)
            self._check_label_array(y)

    def _check_shapes(self, data):
        for known in (
            self._networks.student_outline,
            self._networks.teacher_outline,
        ):
            if known is not None:
                _require_shapes(data, known)

    def _check_label_array(self, y):
        classes = self._sparse_classes()
        if classes is None or not hasattr(y, "shape"):
            return
        y = np.asarray(y)
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(
                f"Labels out of range: expected 0 to {classes - 1} for "
                f"'{self.student.name}'. Received labels from {y.min()} to "
                f"{y.max()}."
            )

    # === Saving, exporting, describing ===

    def get_config(self):
        """Arguments of an equal trainer; the teacher is not among them."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "student": serialize(self.student),
            "matches": [serialize(match) for match in self.matches],
            "label_weight": serialize(self.label_weight),
        }

    @classmethod
    def from_config(cls, config):
        """Makes a trainer, with the teacher that `load` was given."""
        config = {
            key: keras.saving.deserialize_keras_object(value)
            for key, value in config.items()
        }
        return cls(teacher=_teacher.get(), **config)

    def compile_from_config(self, config):
        """Compiles as the saved trainer was, with an optimizer for it."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @classmethod
    def load(cls, path, *, teacher=None, **kwargs):
        """Loads what `save` wrote and brings it together with its teacher.

        Args:
            path: The `.keras` file.
            teacher: The teacher, which the file does not hold.
            **kwargs: As of `keras.saving.load_model`.

        Returns:
            The trainer, compiled as it was, with its optimizer's state.

        Raises:
            ValueError: If the file holds something else, or a match needs a
                teacher and none is given.
        """
        token = _teacher.set(teacher)
        try:
            trainer = keras.saving.load_model(path, **kwargs)
        finally:
            _teacher.reset(token)
        if not isinstance(trainer, cls):
            raise ValueError(
                f"'{path}' does not hold a {cls.__name__}. "
                f"Received: {type(trainer).__name__}"
            )
        return trainer

    def export(self, filepath, *args, **kwargs):
        """As `keras.Model.export`, of the student alone."""
        return self.student.export(filepath, *args, **kwargs)

    def summary(self, print_fn=print):
        """Prints the networks, the terms of the loss and what they cost.

        Args:
            print_fn: Function that takes one string.
        """
        rows = [("term", "where", "how", "weight", "extra passes per step")]
        rows.append(
            ("label_loss", "outputs", "see compile", self.label_weight, "-")
        )
        for match, metric in zip(
            self.matches, self._match_metrics, strict=True
        ):
            name, weight = metric.name, match.weight
            rows.append((name, match.where, match.how, weight, match.passes))
        lines = [f"{type(self).__name__} '{self.name}'", ""]
        lines += _networks(self.student, self._networks.teacher)
        lines += ["", *_table(rows), ""]
        passes = ["student 1 training pass"]
        if "inference" in self._student_passes:
            passes.append("student 1 inference pass")
        if any(match.needs_teacher for match in self.matches):
            passes.append("teacher 1 inference pass")
        lines.append(f"Forward passes per step: {', '.join(passes)}.")
        print_fn("\n".join(lines))


class _Networks:
    """Holds the teacher and the outlines where Keras does not look.

    As an attribute of the trainer, the teacher would be tracked, trained and
    written to every checkpoint.
    """

    def __init__(self, teacher):
        self.teacher = teacher
        self.student_outline = None
        self.teacher_outline = None


_CROSS_ENTROPIES = {
    "sparse_categorical_crossentropy": (
        keras.losses.SparseCategoricalCrossentropy
    ),
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
}


def _as_matches(matches):
    matches = list(matches)
    for match in matches:
        if not isinstance(match, BaseMatch):
            raise ValueError(
                "Invalid value for argument `matches`. Expected matches such "
                "as tfkd.Match(loss) or a method of tfkd.methods.build. "
                f"Received: {match!r}"
            )
    return matches


def _merged(lists):
    return list(dict.fromkeys(name for names in lists for name in names))


def _unique_names(matches):
    """The matches' names, counted up where they repeat."""
    names = []
    for match in matches:
        name, count = match.name, 1
        while name in ("loss", "label_loss", *names):
            count += 1
            name = f"{match.name}_{count}"
        names.append(name)
    return names


def _one_kind_of_statistics(matches):
    """Whether the training pass freezes batch statistics for its gradients.

    Args:
        matches: Those that want an input gradient of a shared pass.

    Returns:
        A bool.

    Raises:
        ValueError: If some want them frozen and some do not.
    """
    kinds = {
        match.freezes_statistics
        for match in matches
        if match.student_pass == "training"
    }
    if len(kinds) > 1:
        raise ValueError(
            'Matches with batch_statistics="batch" and "frozen" cannot share '
            "one training pass. Give all of them the same."
        )
    return kinds == {True}


def _require_disjoint(student, teacher):
    """Raises if training the student would change the teacher."""
    trained = {id(variable) for variable in student.variables}
    shared = [v.path for v in teacher.variables if id(v) in trained]
    if shared:
        raise ValueError(
            f"Teacher '{teacher.name}' and student '{student.name}' share "
            f"variables ({', '.join(shared[:3])}), so training would change "
            "the teacher. Give the student its own: keras.models.clone_model."
        )


def _single_weight(sample_weight, match):
    """The weights of the examples, or None."""
    if keras.tree.is_nested(sample_weight):
        raise ValueError(
            "A sample weight for each output cannot reach match "
            f"'{match.name}'. Give one weight per example."
        )
    return sample_weight


def _require_shapes(data, outline):
    """Raises if the data's shapes are not those of the network's input."""
    received = keras.tree.flatten(data)
    expected = keras.tree.flatten(outline.inputs)
    if len(received) != len(expected):
        return  # Keras maps structures by name and says what does not fit.
    for ours, spec in zip(received, expected, strict=True):
        shape, wanted = tf.TensorShape(ours.shape), spec.shape
        if shape.is_compatible_with(wanted):
            continue
        hint = ""
        if shape.is_compatible_with(wanted[1:]):
            hint = " They are not batched: use dataset.batch(n) or x[None]."
        raise ValueError(
            f"'{outline.name}' takes inputs of shape {wanted}, the data "
            f"have {shape}.{hint}"
        )


def _networks(student, teacher):
    """Lines that say which networks there are and how large they are."""
    lines = [f"student: {student.name}, {student.count_params():,} parameters"]
    if teacher is not None:
        ratio = teacher.count_params() / max(student.count_params(), 1)
        lines.append(
            f"teacher: {teacher.name}, {teacher.count_params():,} "
            f"parameters ({ratio:.1f} times the student's)"
        )
    return lines


def _table(rows):
    """Lines of a table with aligned columns."""
    rows = [[_cell(entry) for entry in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            entry.ljust(width) for entry, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _cell(entry):
    if callable(entry):
        return getattr(entry, "__name__", type(entry).__name__) + "(step)"
    return entry if isinstance(entry, str) else f"{entry:g}"
