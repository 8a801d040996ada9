"""What every match is: a weighted term of the loss with its own state."""

import math
import numbers
import re
import weakref

import keras
import tensorflow as tf

from tfkd.losses import DistributionLoss
from tfkd.losses.distribution import Reduction
from tfkd.precision import at_least_float32


class BaseMatch(keras.layers.Layer):
    """A term of the loss: what it needs of two networks, and its value.

    The trainer binds a match to the outlines of both networks when it is
    constructed. Each step it shows the match the teacher's `Trace` outside
    any tape over weights (`observe`), then the student's inside (`value`).

    Subclasses override `value`, and what else differs.

    Args:
        weight: Number, or function of the step (`optimizer.iterations`, a
            scalar integer tensor) written with TensorFlow operations, a
            `keras.optimizers.schedules.LearningRateSchedule` say. Finite
            and >= 0. The number 0 switches the term off; a function's 0
            multiplies it. To be saved, a function must be registered with
            Keras.
        name: Name of the term and of its metric.

    Attributes:
        needs_teacher: Whether a teacher must be there.
        observes_teacher: Whether it looks at the teacher's pass: every match
            that needs one, but for those that compare weights.
        averages_teachers: Whether it makes sense of the mean of several
            teachers' signals.
        trains_student: Whether the student learns by it, or only what the
            match itself has to train.
        reads_outputs: Whether it compares the student's outputs, not only
            features.
        labels_outputs: Whether it takes the labels for numbers of the
            outputs that it compares.
        needs_labels: Whether labels must be there.
        needs_index: Whether training data must number their examples.
        example_labels: The classes of the training examples that it knows,
            integers `[N]`, or None for any.
        needs_input_gradient: Whether traces are to be differentiable.
        differentiates_teacher_twice: Whether what it keeps of the teacher
            takes second-order gradients.
        student_pass: "training" or "inference", the student's pass it reads.
        freezes_statistics: Whether it wants the input gradient of that pass
            with batch statistics for constants; None: they do not matter.
        has_own_pass: Whether it reads a pass of its own (`trace_student`).
        student_layers, teacher_layers: Names of the layers it reads.

    Raises:
        ValueError: If `weight` is negative or not finite.
    """

    needs_teacher = True
    averages_teachers = True
    trains_student = True
    reads_outputs = False
    labels_outputs = False
    needs_labels = False
    needs_index = False
    example_labels = None
    needs_input_gradient = False
    differentiates_teacher_twice = False
    student_pass = "training"
    freezes_statistics = False
    has_own_pass = False
    student_layers = ()
    teacher_layers = ()

    def __init__(self, *, weight=1.0, name=None):
        super().__init__(
            name=name or snake_case(type(self).__name__), dtype="float32"
        )
        self.weight = check_weight(weight, "weight")
        self._owners = _Owners()

    @property
    def observes_teacher(self):
        """Whether it looks at the teacher's pass."""
        return self.needs_teacher

    def claim(self, student, *teachers):
        """Makes the match that of one student and its teachers.

        Args:
            student: The student.
            *teachers: The teachers that it needs.

        Raises:
            ValueError: If it is that of other networks, which are in use:
                its projectors and its pass would be changed.
        """
        networks = [student, *teachers]
        owners = [reference() for reference in self._owners.models]
        if all(owners) and list(map(id, owners)) not in (
            [],
            list(map(id, networks)),
        ):
            raise ValueError(
                f"Match '{self.name}' belongs to student "
                f"'{owners[0].name}'. Make another for '{student.name}': "
                "type(match).from_config(match.get_config())."
            )
        self._owners.models = [weakref.ref(model) for model in networks]

    def require_ready(self):
        """Hook: raises a ValueError if `fit` would be too early."""

    def bind(self, *, student, teacher):
        """Checks that the networks can be compared; builds what is missing.

        Args:
            student: The student's `Outline`, with `student_layers`.
            teacher: The teacher's `Outline`, or None.

        Raises:
            ValueError: If they cannot be compared, with what to change.
        """
        self.built = True

    def observe(self, teacher, *, training=False):
        """What is kept of the teacher's trace: constants for `value`.

        Args:
            teacher: The teacher's `Trace`, of an inference pass.
            training: Whether this is a step of training. In evaluation
                nothing may change, not even the seed of a random choice.

        Returns:
            Structure of tensors; no gradient will flow into them.
        """
        return {name: teacher[name] for name in self.teacher_layers}

    def observation(self):
        """What `observe_whole` depends on, beside the teacher and the batch.

        Returns:
            A structure of lists, strings and numbers; or None where what is
            observed is drawn anew in each step, so that nothing can be kept.
        """
        return None

    def observe_whole(self, teacher):
        """As `observe`, but always of the whole batch, for `tfkd.caching`.

        Args:
            teacher: As of `observe`.

        Returns:
            Nested dicts and tuples of tensors `[batch, ...]`.
        """
        return self.observe(teacher)

    def part(self, observed):
        """What `observe` keeps, from what `observe_whole` kept.

        Args:
            observed: As `observe_whole` returns.

        Returns:
            As `observe` returns.
        """
        return observed

    def trace_student(self, model, inputs, labels, observed):
        """The pass of its own, if `has_own_pass`, in inference mode.

        Args:
            model: The student.
            inputs: The batch.
            labels: Its labels.
            observed: What `observe` returned, or None.

        Returns:
            A `Trace`.
        """
        raise NotImplementedError

    def value(self, student, observed, *, sample_weight=None, training=False):
        """The unweighted value of the term.

        Args:
            student: The student's `Trace` of the pass `student_pass`.
            observed: What `observe` returned, without gradient.
            sample_weight: `[batch, ...]` or None.
            training: Whether projectors run in training mode.

        Returns:
            Scalar, at least float32, divided by the number of replicas.
        """
        raise NotImplementedError

    @property
    def where(self):
        """Where the networks are compared, in a few words."""
        return "outputs"

    @property
    def how(self):
        """How they are compared, in a few words."""
        return type(self).__name__

    @property
    def passes(self):
        """What the term costs beside the two forward passes of a step."""
        return "-"

    def get_config(self):
        """Arguments from which an equal match can be made."""
        return {
            "weight": keras.saving.serialize_keras_object(self.weight),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """Makes a match from what `get_config` returned."""
        config = {
            key: keras.saving.deserialize_keras_object(value)
            for key, value in config.items()
        }
        return cls(**config)


class _Owners:
    """Holds references where Keras looks for no layers."""

    def __init__(self):
        self.models = []


def check_weight(weight, argument):
    """`weight` if it is a number >= 0, finite, or a function of the step.

    Args:
        weight: A number or a function.
        argument: The argument's name, for the error.

    Returns:
        The weight.

    Raises:
        ValueError: If it is anything else, or the function's value at step 0
            is.
    """
    value = weight
    if callable(weight):
        value = float(weight(tf.constant(0, tf.int64)))
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
    ):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected a finite "
            "number >= 0, or a function of the step that returns one. "
            f"Received: {argument}={weight}"
            + (f", which is {value} at step 0" if callable(weight) else "")
        )
    return weight


def weighted(weight, value, step):
    """`weight * value`, or None where the weight is the number 0.

    A term that is switched off so does not bring in its NaN or infinity.

    Args:
        weight: A number or a function of the step.
        value: Scalar tensor.
        step: Scalar integer tensor.

    Returns:
        Scalar tensor of the value's dtype, or None.
    """
    if callable(weight):
        factor = tf.cast(weight(step), value.dtype)
        tf.debugging.assert_non_negative(
            factor, "A weight function returned a negative number."
        )
        return factor * value
    return None if weight == 0 else tf.cast(weight, value.dtype) * value


def snake_case(name):
    """The class name `SoftTargets` as `soft_targets`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def example_weights(sample_weight):
    """Weights of whole examples, from weights of their positions.

    Args:
        sample_weight: `[batch, ...]` or None.

    Returns:
        `[batch]`, the mean over an example's positions, or None.
    """
    if sample_weight is None or sample_weight.shape.rank == 1:
        return sample_weight
    return tf.reduce_mean(
        at_least_float32(sample_weight),
        axis=list(range(1, sample_weight.shape.rank)),
    )


def compare(loss, y_true, y_pred, *, sample_weight=None, mask=None):
    """The reduced value of a loss, with weights where they belong.

    Args:
        loss: A `keras.losses.Loss`.
        y_true: The teacher's signal, `[batch, ...]`.
        y_pred: The student's signal, `[batch, ...]`.
        sample_weight: As of `reduce_values`; masses of examples to a
            `DistributionLoss`.
        mask: As of `reduce_values`. Padding is set to zero on both sides.

    Returns:
        Scalar, at least float32, divided by the number of replicas.
    """
    y_true = hide_padding(at_least_float32(y_true), mask)
    y_pred = hide_padding(at_least_float32(y_pred), mask)
    if isinstance(loss, DistributionLoss):
        return compare_distributions(
            loss, [y_true], [y_pred], sample_weight=sample_weight
        )
    return reduce_values(
        at_least_float32(loss.call(y_true, y_pred)),
        reduction=loss.reduction,
        sample_weight=sample_weight,
        mask=mask,
    )


def compare_distributions(
    loss, y_true, y_pred, *, sample_weight=None, across_replicas=True
):
    """The reduced value of a `DistributionLoss`, summed over places.

    Args:
        loss: A `DistributionLoss`.
        y_true: List of the teacher's signals as the loss takes them.
        y_pred: List of the student's.
        sample_weight: As of `reduce_values`: masses of examples.
        across_replicas: Whether the batches of all replicas are compared as
            one, so that replicas make no difference; or each its own part.

    Returns:
        Scalar, at least float32, divided by the number of replicas.
    """
    examples = tf.shape(keras.tree.flatten(y_pred)[0])[0]
    sample_weight = example_weights(sample_weight)
    if across_replicas:
        y_true, y_pred, sample_weight = gathered(
            (y_true, y_pred, sample_weight)
        )
    values = sum(
        loss.call(*sides, sample_weight=sample_weight)
        for sides in zip(y_true, y_pred, strict=True)
    )
    # Every replica has the value of all; its share is that of its examples.
    return reduce_values(values[:examples], reduction=loss.reduction)


def gathered(batch):
    """Structure of `[batch, ...]` tensors or None, of all replicas in order.

    Differentiable: what replicas do with another's examples reaches it.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return batch

    def gather(tensor):
        if tensor is None:
            return None
        # One that came in from outside has no device, which workers need.
        return context.all_gather(tf.identity(tensor), axis=0)

    return keras.tree.map_structure(gather, batch)


def own_rows(rows, examples):
    """This replica's part of what `gathered` brought together.

    Args:
        rows: `[examples of all, ...]`.
        examples: How many of them are this replica's.

    Returns:
        `[examples, ...]`.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return rows
    counts = context.all_gather(tf.reshape(examples, [1]), axis=0)
    start = tf.reduce_sum(counts[: context.replica_id_in_sync_group])
    return rows[start : start + examples]


def reduce_values(values, *, reduction, sample_weight=None, mask=None):
    """Keras' own reduction of values that a loss gave.

    Keras aligns weights with the last axes of the values. Here they are
    aligned with the first, so that weights of examples meet the examples of
    a loss that gives a value per position.

    Args:
        values: `[batch, ...]`, at least float32.
        reduction: Name of a reduction of `keras.losses.Loss`.
        sample_weight: `[batch, ...]` or None. Weights per position are
            used as such where the values have the same positions, else as
            the mean over the example.
        mask: Boolean `[batch, ...]`, False where a position is padding, or
            None. Left out where the values have no positions.

    Returns:
        Scalar, divided by the number of replicas.
    """
    rank = values.shape.rank
    if sample_weight is not None:
        if not _same_positions(sample_weight, values):
            sample_weight = example_weights(sample_weight)
        sample_weight = tf.broadcast_to(
            tf.cast(_append_axes(sample_weight, rank), values.dtype),
            tf.shape(values),
        )
    if mask is not None and mask.shape.rank <= rank:
        values = tf.identity(values)
        values._keras_mask = _append_axes(mask, rank)
    reduce = Reduction("reduction", reduction, values.dtype.name)
    return reduce(values, values, sample_weight=sample_weight)


def hide_padding(tensor, mask):
    """`tensor` with zeros where `mask` says that a position is padding."""
    if mask is None or not _same_positions(mask, tensor):
        return tensor
    return tf.where(
        _append_axes(mask, tensor.shape.rank), tensor, tf.zeros_like(tensor)
    )


def _append_axes(tensor, rank):
    missing = rank - tensor.shape.rank
    return tf.reshape(
        tensor, tf.concat([tf.shape(tensor), [1] * missing], axis=0)
    )


def _same_positions(weights, values):
    rank = weights.shape.rank
    return rank <= values.shape.rank and weights.shape.is_compatible_with(
        values.shape[:rank]
    )
