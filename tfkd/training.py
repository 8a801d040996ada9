"""The one training step, which every trainer of students shares."""

import contextvars
import inspect

import keras
import tensorflow as tf

from tfkd.caching import observation_key, teachers_key
from tfkd.checks import check_data
from tfkd.matches.base import BaseMatch, check_weight, weighted
from tfkd.matches.match import check_scale, wrap_loss
from tfkd.records import unpack, with_class_weight
from tfkd.strategies import (
    agree_on_overflow,
    batch_specs,
    check_compile,
    is_multi_worker,
    multi_worker_function,
    part_of_batch,
    require_examples,
    require_in_scope,
)
from tfkd.teachers import as_teachers, outlines, trace_of
from tfkd.trace import Signal, Trace, mixing_layers, outline

# XLA's second derivative of max pooling compares the top 16 bits only.
_APPROXIMATE_UNDER_XLA = ("MaxPool", "MaxPoolV2", "MaxPool3D")

# The teacher that `load` hands to `from_config`, past the file.
_teacher = contextvars.ContextVar("teacher", default=None)


class StudentTrainer(keras.Model):
    """Trains a student by its labels and by matches with a teacher.

    Each step runs the teacher once, in inference mode and outside the tape
    over weights, and the student once in training mode. Matches of Jacobians
    by moving statistics add one inference-mode pass of the student, which
    they share.

    A student that neither labels nor a match train is left as it is: it runs
    in inference mode, and only what the matches have to train is trained.

    The loss is `label_weight * label loss + sum of weight * match`, plus the
    student's and the projectors' own regularisers, once. Metrics: `loss`,
    `label_loss`, each match's unweighted value under its name, and those
    given to `compile`.

    Args:
        student: A built Keras model.
        teacher: A built Keras model, or None where no match needs one. It is
            a constant: never trained, changed, saved or exported. Of a list
            of models what the matches observe is averaged: each is run once
            a step, and layers must have one shape in all of them.
        matches: List of matches, or a `tfkd.methods.Method`.
        label_weight: As a match's weight; None: the method's, or 1.
        name: As of `keras.Model`.

    Attributes:
        student: The student.
        matches: The matches, bound to the networks.

    Raises:
        ValueError: If a match cannot compare the two networks, needs a
            teacher that is missing, or a weight is invalid; if several
            teachers cannot be averaged.
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
        self._networks = _Networks(as_teachers(teacher))
        self._hides_losses = False
        self._bind()
        names = _unique_names(self.matches)
        self._match_metrics = [keras.metrics.Mean(name=n) for n in names]
        self._label_metric = keras.metrics.Mean(name="label_loss")
        self._has_label_loss = False
        self.built = True

    def _bind(self):
        """Outlines both networks and binds the matches to them."""
        teachers = self._networks.teachers
        for match in self.matches:
            if match.needs_teacher and not teachers:
                raise ValueError(
                    f"Match '{match.name}' needs a teacher. "
                    f"{self._how_to_give_a_teacher}, or load a saved trainer "
                    f"with {type(self).__name__}.load(path, teacher=...)."
                )
            if len(teachers) > 1 and not match.averages_teachers:
                raise ValueError(
                    f"Match '{match.name}' ({match.how}) learns what one "
                    "teacher's signal looks like, so several cannot be "
                    f"averaged. Received: {len(teachers)} teachers. Give it "
                    "one teacher, or take another match."
                )
        self._student_layers = _merged(
            [*(m.student_layers for m in self.matches), self._layers_beside()]
        )
        self._teacher_layers = _merged(m.teacher_layers for m in self.matches)
        ours = outline(self.student, self._student_layers)
        require_in_scope(self.distribute_strategy, self.student)
        theirs = outlines(teachers, self._teacher_layers)
        for teacher, their in zip(teachers, theirs, strict=True):
            _require_disjoint(self.student, teacher)
            _require_equal_inputs(ours, their)
            self._check_networks(ours, their)
        for match in self.matches:
            match.claim(
                self.student, *(teachers if match.needs_teacher else [])
            )
            for their in theirs or [None]:
                match.bind(
                    student=self._outline_for(match, ours), teacher=their
                )
        self._networks.student_outline = ours
        self._networks.teacher_outlines = theirs
        self._networks.trainable = _trainable_flags(self.student)
        shared = [m for m in self.matches if not m.has_own_pass]
        wanted = [m for m in shared if m.needs_input_gradient]
        self._differentiable = {m.student_pass for m in wanted}
        self._teacher_differentiable = any(m.observes_teacher for m in wanted)
        self._student_passes = {"training", *(m.student_pass for m in shared)}
        self._freezes = _one_kind_of_statistics(wanted)
        if self._freezes:
            _require_freezable(self.student, wanted)
        self.supports_jit = self._approximate_op() is None and all(
            match.supports_jit for match in self.matches
        )

    # === Hooks for subclasses ===

    _how_to_give_a_teacher = "Pass teacher="

    def _check_networks(self, student, teacher):
        """Hook for what a subclass requires of a teacher's outline."""

    def _layers_beside(self):
        """Student's layers that are read beside those of the matches."""
        return ()

    def _network_for(self, match):
        """The network of which a match makes a pass of its own."""
        return self.student

    def _outline_for(self, match, outline):
        """What a match is to know of the student."""
        return outline

    def _trace_for(self, match, trace, own):
        """What a match is to see of a pass, a shared one or its own."""
        return trace

    # === What XLA cannot do ===

    def _approximate_op(self):
        """Model, type and place of what XLA would approximate, or None."""
        networks = self._networks
        twice = []
        if any(match.needs_input_gradient for match in self.matches):
            twice.append(networks.student_outline)
        if any(
            match.observes_teacher and match.differentiates_teacher_twice
            for match in self.matches
        ):
            twice += networks.teacher_outlines
        for network in twice:
            for op in _APPROXIMATE_UNDER_XLA:
                place = network.ops.get(op) or network.training_ops.get(op)
                if place:
                    return network.name, op, place
        return None

    # === Keras: compile, fit, evaluate ===

    def compile(self, optimizer="rmsprop", loss=None, *args, **kwargs):
        """As `keras.Model.compile`.

        Args:
            optimizer: As of `keras.Model.compile`.
            loss: The label loss, or None: the student then learns from the
                matches alone, and data need no labels unless a match does.
            *args: As of `keras.Model.compile`.
            **kwargs: As of `keras.Model.compile`. `jit_compile="auto"` keeps
                XLA off where it would only approximate a Jacobian.

        Raises:
            ValueError: If there is neither a loss nor a match; if the loss
                takes logits and the student returns probabilities, or the
                reverse; if `jit_compile=True` would give an approximate
                Jacobian, or a match does not run under it; if Keras cannot do
                what is asked for under the strategy of several replicas in
                whose scope the trainer was made; or if a metric has the name
                of a match.
        """
        if loss is None and not self.matches:
            raise ValueError(
                "There is nothing to learn from: compile() got no loss and "
                "there are no matches."
            )
        given = inspect.signature(super().compile).bind(
            optimizer, loss, *args, **kwargs
        )
        check_compile(
            self.distribute_strategy,
            optimizer,
            steps_per_execution=given.arguments.get("steps_per_execution"),
            jit_compile=given.arguments.get("jit_compile"),
        )
        if self._networks.trainable != _trainable_flags(self.student):
            self._bind()  # BatchNormalization acts otherwise when it is frozen
        approximate = self._approximate_op()
        if kwargs.get("jit_compile") is True and approximate:
            name, op, place = approximate
            raise ValueError(
                f"XLA only approximates the Jacobian of '{name}': its second "
                f"derivative of {op} (at {place}) compares rounded values. "
                'Compile with jit_compile=False or "auto", or use average '
                "pooling or strided convolutions."
            )
        for match in self.matches:
            if kwargs.get("jit_compile") is True and not match.supports_jit:
                raise ValueError(
                    f"Match '{match.name}' ({match.how}) does not run under "
                    'XLA. Compile with jit_compile=False or "auto".'
                )
        self._check_label_loss(loss)
        self._check_metric_names(
            kwargs.get("metrics"), kwargs.get("weighted_metrics")
        )
        self._has_label_loss = loss is not None
        super().compile(optimizer, loss, *args, **kwargs)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=None,
        class_weight=None,
        sample_weight=None,
        **kwargs,
    ):
        """As `keras.Model.fit`; bad data are refused before the first step.

        Labels of a `tf.data.Dataset` are checked as they come. Labels may be
        records: dicts of "label" and of what `tfkd.data.load(index=True)`
        ("index") or `tfkd.caching.with_teacher` ("teacher") put beside it.

        Args:
            x: As of `keras.Model.fit`.
            y: As of `keras.Model.fit`.
            batch_size: As of `keras.Model.fit`.
            epochs: As of `keras.Model.fit`.
            verbose: As of `keras.Model.fit`.
            callbacks: As of `keras.Model.fit`.
            validation_split: As of `keras.Model.fit`.
            validation_data: As of `keras.Model.fit`.
            shuffle: As of `keras.Model.fit`; None: arrays are shuffled.
            class_weight: As of `keras.Model.fit`.
            sample_weight: As of `keras.Model.fit`.
            **kwargs: As of `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: If the data are empty, not batched, of another shape
                than a network takes, or hold labels out of range; if what a
                match needs has not been trained.
        """
        for match in self.matches:
            match.require_ready()
        x = self._checked(x, y, known=self._example_labels())
        if class_weight is not None:
            x, sample_weight, class_weight = with_class_weight(
                x, y, sample_weight, class_weight
            )
        if isinstance(validation_data, tf.data.Dataset):
            validation_data = self._checked(validation_data, None)
        elif validation_data is not None:
            data = keras.utils.unpack_x_y_sample_weight(validation_data)
            self._checked(*data[:2])
        if shuffle is None:
            shuffle = not isinstance(x, tf.data.Dataset)
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            **kwargs,
        )

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
            x = self._checked(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def make_train_function(self, force=False):
        """As `keras.Model.make_train_function`; for several workers too."""
        if not is_multi_worker(self.distribute_strategy):
            super().make_train_function(force)
        elif self.train_function is None or force:
            self.train_function = multi_worker_function(self, self.train_step)

    def make_test_function(self, force=False):
        """As `keras.Model.make_test_function`; for several workers too."""
        if not is_multi_worker(self.distribute_strategy):
            super().make_test_function(force)
        elif self.test_function is None or force:
            self.test_function = multi_worker_function(self, self.test_step)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras reads a batch, which a shuffled dataset would give in another
        # order from then on, and fails with those of several workers.
        if iterator is not None and self._distribute_strategy is not None:
            data_batch, iterator = batch_specs(iterator), None
        super()._maybe_symbolic_build(iterator, data_batch)

    def call(self, inputs, training=None):
        """The student's outputs."""
        return self.student(inputs, training=training)

    def train_step(self, data):
        """One step of training on one batch."""
        x, y, sample_weight, given, index = _unpack(data)
        self._require_index(index)
        observed = self._observe_teacher(
            x, y, training=True, given=given, index=index
        )
        with tf.GradientTape() as tape:
            loss, outputs = self._step_loss(
                x, y, sample_weight, observed, training=True, index=index
            )
            scaled = self.optimizer.scale_loss(loss)
        variables = self._trained_variables()
        if not variables:
            raise ValueError(
                f"Student '{self.student.name}' has no trainable variables, "
                "nor has any match. Set student.trainable = True."
            )
        gradients = tape.gradient(scaled, variables)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = agree_on_overflow(gradients)
        if not self.optimizer.built:
            # For all variables, reached or not, as `load` does: their number
            # must agree for the state to be read.
            with tf.init_scope():
                self.optimizer.build(self.trainable_variables)
        self.optimizer.apply_gradients(self._reached(gradients, variables))
        return self.compute_metrics(x, y, outputs, sample_weight)

    def test_step(self, data):
        """One step of evaluation on one batch."""
        x, y, sample_weight, given, _ = _unpack(data)
        observed = self._observe_teacher(x, y, training=False, given=given)
        _, outputs = self._step_loss(
            x, y, sample_weight, observed, training=False
        )
        return self.compute_metrics(x, y, outputs, sample_weight)

    # === One step ===

    def _learns_labels(self):
        """Whether labels train the student."""
        return self._has_label_loss and (
            callable(self.label_weight) or self.label_weight > 0
        )

    def _trains_student(self):
        """Whether labels or a match train the student."""
        return (
            self._learns_labels()
            or not self.matches
            or any(match.trains_student for match in self.matches)
        )

    def _trained_variables(self):
        """The variables that a step changes by their gradients."""
        kept = set()
        if not self._trains_student():
            kept = {id(variable) for variable in self.student.variables}
        return [v for v in self.trainable_variables if id(v) not in kept]

    def _reached(self, gradients, variables):
        """Pairs of gradients and variables for the optimizer.

        Without labels nothing reaches the student's layers behind the last
        match. Keras would warn of each, and do nothing else.
        """
        pairs = list(zip(gradients, variables, strict=True))
        if self._learns_labels():
            return pairs
        student = {id(variable) for variable in self.student.variables}
        return [
            (gradient, variable)
            for gradient, variable in pairs
            if gradient is not None or id(variable) not in student
        ] or pairs

    def _observe_teacher(self, x, y, training, given=None, index=None):
        """What the matches keep of the teacher, as constants.

        Args:
            x: The batch.
            y: Its labels.
            training: Whether this is a step of training.
            given: What `tfkd.caching` kept, key -> structure; the teacher
                runs for the rest.
            index: The examples' numbers in the dataset, or None.
        """
        given = given or {}
        observed = [
            match.part(given[key]) if key in given else None
            for match, key in zip(
                self.matches, self._given_keys(given), strict=True
            )
        ]
        missing = [
            (i, match)
            for i, match in enumerate(self.matches)
            if match.observes_teacher and observed[i] is None
        ]
        if not missing:
            return observed
        trace = trace_of(
            self._networks.teachers,
            x,
            layers=self._teacher_layers,
            labels=y,
            index=index,
            differentiable=self._teacher_differentiable,
        )
        for teacher in self._networks.teachers:
            teacher._clear_losses()
        for i, match in missing:
            observed[i] = keras.tree.map_structure(
                _constant, match.observe(trace, training=training)
            )
        return observed

    def _given_keys(self, given):
        """For each match the key of its observation in a batch, or None.

        Args:
            given: Key -> what `tfkd.caching` kept of a teacher.

        Raises:
            ValueError: If that was another teacher.
        """
        teachers = self._networks.teachers
        if not given or not teachers:
            return [None] * len(self.matches)
        with tf.init_scope():
            teacher = teachers_key(teachers)
        if not all(key.startswith(teacher) for key in given):
            names = ", ".join(f"'{teacher.name}'" for teacher in teachers)
            raise ValueError(
                "The dataset holds what tfkd.caching.with_teacher kept of "
                f"another teacher than {names}, or of this one with other "
                "weights. Call with_teacher with the teacher of the Distiller."
            )
        return [
            f"{teacher}-{observation_key(match, len(teachers))}"
            if match.observes_teacher
            else None
            for match in self.matches
        ]

    def _trace_student(self, x, y, training, index):
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
                training=name == "training" and self._trains_student(),
                labels=y,
                index=index,
                differentiable=name in self._differentiable,
                freeze_statistics=name == "training" and self._freezes,
            )
            for name in sorted(self._student_passes)
        }

    def _step_loss(self, x, y, sample_weight, observed, training, index=None):
        """The total loss and the student's outputs; updates the metrics."""
        own = [
            match.trace_student(self._network_for(match), x, y, seen)
            if match.has_own_pass
            else None
            for match, seen in zip(self.matches, observed, strict=True)
        ]
        traces = self._trace_student(x, y, training, index)
        outputs = traces["training"].outputs
        values = [
            match.value(
                self._trace_for(
                    match,
                    trace or traces[match.student_pass],
                    own=trace is not None,
                ),
                seen,
                sample_weight=_single_weight(sample_weight, match),
                training=training,
            )
            for match, trace, seen in zip(
                self.matches, own, observed, strict=True
            )
        ]
        step = self.optimizer.iterations if self.optimizer else tf.constant(0)
        part = part_of_batch(x)
        values = [
            part.shared(value, getattr(match, "loss", None))
            for match, value in zip(self.matches, values, strict=True)
        ]
        total, label_loss = self._added_losses(), None
        if self._has_label_loss:
            label_loss = part.shared(
                self._label_loss(x, y, outputs, sample_weight, training),
                self.loss,
            )
            labels = weighted(self.label_weight, label_loss, step)
            if labels is not None:
                total += tf.cast(labels, total.dtype)
        for match, value in zip(self.matches, values, strict=True):
            term = weighted(match.weight, value, step)
            if term is not None:
                total += tf.cast(term, total.dtype)
        self._track(total, label_loss, values, part.mean)
        return total, outputs

    def _label_loss(self, x, y, outputs, sample_weight, training):
        """`compute_loss` of the labels alone, divided by the replicas."""
        if y is None:
            raise ValueError(
                "The label loss needs labels, but the data have none. Pass "
                "them, or compile with loss=None to learn from the teacher "
                "alone."
            )
        self._hides_losses = True
        try:
            return self.compute_loss(x, y, outputs, sample_weight, training)
        finally:
            self._hides_losses = False

    def compute_loss(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.compute_loss`; of the labels of a record."""
        return super().compute_loss(x, unpack(y).label, *args, **kwargs)

    @property
    def losses(self):
        """As `keras.Model.losses`."""
        # Regularisers are not labels: `label_weight` is not theirs.
        return [] if self._hides_losses else super().losses

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As `keras.Model.compute_metrics`; of the labels of a record."""
        y = unpack(y).label
        if y is None and self._compile_metrics is not None:
            raise ValueError(
                "compile() got metrics, but the data have no labels to "
                "compare with. Leave metrics out."
            )
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _added_losses(self):
        """Sum of regularisers and added losses, divided by the replicas."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        total = tf.zeros([], keras.config.floatx())
        for loss in self.losses:
            total += tf.cast(tf.reduce_sum(loss), total.dtype)
        return total / replicas

    def _track(self, total, label_loss, values, batch):
        """Shows the step's values to their metrics."""
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
    def terms(self):
        """Name of the metric -> what it is called, of each term of the loss.

        Terms that are switched off by a weight of 0 are left out.
        """
        terms = {}
        if self._learns_labels():
            terms["label_loss"] = "label_loss"
        for match, metric in zip(
            self.matches, self._match_metrics, strict=True
        ):
            if callable(match.weight) or match.weight > 0:
                terms[metric.name] = f"match '{metric.name}'"
        return terms

    @property
    def metrics(self):
        """As `keras.Model.metrics`; `label_loss` only if there is one."""
        return [
            metric
            for metric in super().metrics
            if self._has_label_loss or metric is not self._label_metric
        ]

    # === Checks of what users bring ===

    def _require_index(self, index):
        """Raises if a match needs the examples' numbers and has none."""
        for match in self.matches:
            if match.needs_index and index is None:
                raise ValueError(
                    f"Match '{match.name}' needs each example's number in "
                    'the training data. Pass labels {"label": y, '
                    '"index": i}, as tfkd.data.load(..., index=True) gives '
                    "them."
                )

    def _check_label_loss(self, loss):
        """Raises if the loss mistakes logits for probabilities or so."""
        signal = self._networks.student_outline.signals[None]
        if isinstance(loss, list | tuple) and len(loss) == 1:
            loss = loss[0]
        single = loss is not None and not isinstance(loss, list | tuple | dict)
        if single and isinstance(signal, Signal):
            outline = self._networks.student_outline
            check_scale(wrap_loss(loss), outline, signal)

    def _check_metric_names(self, *metrics):
        """Raises if a metric of `compile` would hide one of a match."""
        names = {metric.name for metric in self._match_metrics}
        for metric in keras.tree.flatten(metrics):
            name = getattr(metric, "name", getattr(metric, "__name__", metric))
            if name in names:
                raise ValueError(
                    f"The metric '{name}' has the name of a match. Give the "
                    "match another: name=..."
                )

    def _example_labels(self):
        """The labels of the training examples, of each match that knows."""
        labels = [match.example_labels for match in self.matches]
        return [known for known in labels if known is not None]

    def _checked(self, x, y, known=()):
        """The data, checked; see `check_data`."""
        outlines = [
            self._networks.student_outline,
            *self._networks.teacher_outlines,
        ]
        if isinstance(x, tf.data.Dataset):
            # A compiled step has checked the teacher of its first batch only.
            specs = x.element_spec
            if isinstance(specs, tuple) and len(specs) > 1:
                self._given_keys(unpack(specs[1]).teacher)
        return check_data(
            x,
            y,
            outlines=outlines,
            classes=self._sparse_classes(),
            known=known,
        )

    def _sparse_classes(self):
        """Number of classes that sparse labels are to be below, or None."""
        signal = self._networks.student_outline.signals[None]
        if not isinstance(signal, Signal):
            return None
        loss = self.loss if self._has_label_loss else None
        sparse = loss == "sparse_categorical_crossentropy" or (
            isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
            and loss.ignore_class is None
        )
        if sparse or any(match.needs_labels for match in self.matches):
            return signal.shape[-1]
        return None

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

    def save_own_variables(self, store):
        """Writes the states of random seeds, which Keras leaves out."""
        super().save_own_variables(store)
        for index, state in enumerate(self._seed_states()):
            store[f"seed{index}"] = state.numpy()

    def load_own_variables(self, store):
        """Reads what `save_own_variables` wrote."""
        for index, state in enumerate(self._seed_states()):
            state.assign(store[f"seed{index}"])

    def _seed_states(self):
        """The states of all random seeds of the student and the matches."""
        return [
            generator.state
            for layer in self._flatten_layers()
            for generator in layer._seed_generators
        ]

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
            teacher: The teacher or list of teachers, which the file does
                not hold.
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
        if self._has_label_loss or not self.compiled:
            weight = self.label_weight
            rows.append(("label_loss", "outputs", "see compile", weight, "-"))
        for match, metric in zip(
            self.matches, self._match_metrics, strict=True
        ):
            name, weight = metric.name, match.weight
            rows.append((name, match.where, match.how, weight, match.passes))
        lines = [f"{type(self).__name__} '{self.name}'", ""]
        lines += self._describe_networks()
        lines += ["", *_table(rows), ""]
        passes = ["student 1 training pass"]
        if "inference" in self._student_passes:
            passes.append("student 1 inference pass")
        if any(match.observes_teacher for match in self.matches):
            count = len(self._networks.teachers)
            each = f"each of {count} teachers" if count > 1 else "teacher"
            passes.append(f"{each} 1 inference pass")
        own = sum(match.has_own_pass for match in self.matches)
        if own:
            passes.append(f"{own} of matches' own, of each network they need")
        lines.append(f"Forward passes per step: {', '.join(passes)}.")
        print_fn("\n".join(lines))

    def _describe_networks(self):
        """Lines that say which networks there are and how large they are."""
        return describe_networks(self.student, self._networks.teachers)


class _Networks:
    """Holds the teachers and the outlines where Keras does not look.

    As an attribute of the trainer, a teacher would be tracked, trained and
    written to every checkpoint.
    """

    def __init__(self, teachers):
        self.teachers = teachers
        self.student_outline = None
        self.teacher_outlines = []
        self.trainable = None


def _unpack(data):
    """The batch as (x, y, sample_weight, given, index): tensors or None.

    `given` is what a record holds of a teacher, key -> structure, or None;
    `index` the examples' numbers in the dataset.
    """
    x, y, sample_weight = keras.tree.map_structure(
        lambda v: None if v is None else tf.convert_to_tensor(v),
        keras.utils.unpack_x_y_sample_weight(data),
    )
    record = unpack(y)
    if record.label is not y and isinstance(sample_weight, dict):
        # Keras gives each entry of y the weights of arrays.
        sample_weight = sample_weight["label"]
    x = require_examples(x)
    return x, record.label, sample_weight, record.teacher, record.index


def _constant(tensor):
    return None if tensor is None else tf.stop_gradient(tensor)


def _trainable_flags(model):
    return [layer.trainable for layer in model._flatten_layers()]


def _as_matches(matches):
    if not isinstance(matches, list | tuple):
        raise ValueError(
            "Invalid value for argument `matches`. Expected a list of "
            f"matches. Received: {matches!r}"
        )
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
        if name.startswith("val_"):
            raise ValueError(
                f"Invalid name of a match: '{name}'. Names that begin with "
                "val_ are those of Keras' validation metrics."
            )
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
    if kinds >= {True, False}:
        raise ValueError(
            'Matches with batch_statistics="batch" and "frozen" cannot share '
            'one training pass; without the argument, they have "frozen". '
            "Give all of them the same."
        )
    return True in kinds


def _require_freezable(student, matches):
    """Raises if examples would mix although their statistics are frozen.

    Args:
        student: The student.
        matches: Those that want an input gradient of a shared pass.
    """
    layers = mixing_layers(student)
    if layers:
        places = ", ".join(f"'{layer}'" for layer in layers)
        names = ", ".join(
            f"'{match.name}'" for match in matches if match.freezes_statistics
        )
        raise ValueError(
            f"'{student.name}' takes statistics over the batch in training "
            f"(layer {places}), which cannot be taken for constants: the "
            "Jacobian of an example would hold its effect on others. Compute "
            "them by tf.nn.moments or keras.ops.moments, called by these "
            f'names, or give {names} batch_statistics="moving" or "batch" '
            'instead of "frozen", the default.'
        )


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


def _require_equal_inputs(student, teacher):
    """Raises if no batch can be given to both networks."""
    ours = keras.tree.flatten(student.inputs)
    theirs = keras.tree.flatten(teacher.inputs)
    agree = len(ours) == len(theirs) and all(
        one.shape.is_compatible_with(other.shape)
        for one, other in zip(ours, theirs, strict=True)
    )
    if not agree:
        raise ValueError(
            f"Student '{student.name}' takes {_shapes(ours)}, teacher "
            f"'{teacher.name}' takes {_shapes(theirs)}; both are given the "
            "same batch. Wrap the teacher in a model that begins with what "
            "its input needs."
        )


def _shapes(specs):
    return ", ".join(str(spec.shape) for spec in specs)


def describe_networks(student, teachers):
    """Lines that say which networks there are and how large they are.

    Args:
        student: The student.
        teachers: List of the teachers.

    Returns:
        List of strings.
    """
    lines = [f"student: {student.name}, {student.count_params():,} parameters"]
    for teacher in teachers:
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
