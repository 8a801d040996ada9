"""JacobianMatch: the derivatives of the outputs with respect to the input."""

import keras
import tensorflow as tf

from tfkd.losses import SquaredError
from tfkd.matches.base import BaseMatch, reduce_values
from tfkd.matches.match import as_loss, describe_loss
from tfkd.precision import at_least_float32
from tfkd.trace import Signal

# What TensorFlow cannot differentiate twice: the first drops the second
# order without a word, the others raise in the middle of a training step.
_WITHOUT_SECOND_ORDER = (
    "ResizeBilinear",
    "ResizeNearestNeighbor",
    "ResizeBicubic",
    "ScaleAndTranslate",
    "CropAndResize",
    "MaxPoolWithArgmax",
    "LRN",
    "Softsign",
)


@keras.saving.register_keras_serializable("tfkd")
class JacobianMatch(BaseMatch):
    """Matches the Jacobians of two networks' outputs.

    Formula: mean over the batch of `loss(dT/dx, dS/dx)`; with the default
    loss `sum_i |dT_i/dx - dS_i/dx|^2`, summed over the input's entries and
    over the outputs i that `of` names.

    Both networks are differentiated with respect to the same input, in the
    units of the data pipeline. The teacher's Jacobian is a constant; the
    student's is differentiated once more with respect to its weights,
    exactly, through any normalisation of the user's model.

    Args:
        loss: As of `Match`; receives `[batch, inputs]`, or
            `[batch, outputs, inputs]` with `of="all"`, in output units per
            input unit. Default: `SquaredError`.
        of: Which outputs. "label": the example's true class, from sparse
            `[batch]` or `[batch, 1]` or one-hot `[batch, classes]` labels;
            "top": the teacher's largest output, without labels; "all": every
            output, at the price of one backward pass each.
        weight: As of `BaseMatch`.
        batch_statistics: "moving": the student's Jacobian comes from one
            inference-mode pass of its own, where BatchNormalization uses its
            moving statistics, so that it is each example's own (a student
            without layers that act differently in training needs no such
            pass). "batch": the gradient of the batch's sum in the training
            pass, where each example also acts on the others through the
            batch statistics.
        name: Name of the term and of its metric.

    Raises:
        ValueError: On construction, if an argument is invalid. When bound,
            if the outputs are not `[batch, classes]` with equal classes, the
            input is not floating, or the student has an operation without
            second-order gradient. In a step, if a label is out of range
            (`tf.errors.InvalidArgumentError`; not under XLA).

    Reference: Srinivas & Fleuret 2018, proposition 1 and section 4.1.
    """

    needs_input_gradient = True

    def __init__(
        self,
        loss=None,
        *,
        of="label",
        weight=1.0,
        batch_statistics="moving",
        name=None,
    ):
        super().__init__(weight=weight, name=name)
        self.loss = as_loss(SquaredError() if loss is None else loss)
        self.of = _one_of(of, ("label", "top", "all"), "of")
        self.batch_statistics = _one_of(
            batch_statistics, ("moving", "batch"), "batch_statistics"
        )

    @property
    def needs_labels(self):
        """Whether the true class is asked for."""
        return self.of == "label"

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; decides which pass of the student it reads."""
        for outline in (student, teacher):
            signal = outline.signals[None]
            if not isinstance(signal, Signal) or len(signal.shape) != 2:
                raise ValueError(
                    "JacobianMatch compares outputs of shape [batch, "
                    f"classes]. Received: '{outline.name}' with {signal}"
                )
            for spec in keras.tree.flatten(outline.inputs):
                if not spec.dtype.is_floating:
                    raise ValueError(
                        "JacobianMatch needs a floating input. Received: "
                        f"'{outline.name}' takes {spec.dtype.name}"
                    )
        self._classes = student.signals[None].shape[-1]
        if self._classes != teacher.signals[None].shape[-1]:
            raise ValueError(
                "JacobianMatch needs as many outputs of the student as of "
                f"the teacher. Received: '{student.name}' with "
                f"{self._classes}, '{teacher.name}' with "
                f"{teacher.signals[None].shape[-1]}"
            )
        for op in _WITHOUT_SECOND_ORDER:
            if op in student.ops:
                raise ValueError(
                    f"'{student.name}' uses {op} (at {student.ops[op]}), "
                    "which has no exact second-order gradient, so its "
                    "Jacobian cannot be trained. Replace that layer; a "
                    "transposed convolution can upsample."
                )
        own_pass = self.batch_statistics == "moving" and student.mixes_modes
        self.student_pass = "inference" if own_pass else "training"
        super().bind(student=student, teacher=teacher)

    def observe(self, teacher):
        """The outputs looked at (a selection or None) and the Jacobian."""
        selection = None
        if self.of == "label":
            selection = _true_class(teacher.labels, self._classes)
        elif self.of == "top":
            selection = tf.one_hot(
                tf.argmax(teacher.outputs, axis=-1), self._classes
            )
        observed = {"jacobian": self._jacobian(teacher, selection)}
        if selection is not None:
            observed["selection"] = selection  # [batch, classes]
        return observed

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`."""
        jacobian = self._jacobian(student, observed.get("selection"))
        values = self.loss.call(observed["jacobian"], jacobian)
        return reduce_values(
            at_least_float32(values),
            reduction=self.loss.reduction,
            sample_weight=sample_weight,
        )

    def _jacobian(self, trace, selection):
        """`[batch, inputs]`, or `[batch, outputs, inputs]` for all."""
        if selection is not None:
            return _gradient(
                trace,
                lambda trace: tf.reduce_sum(
                    tf.cast(selection, trace.outputs.dtype) * trace.outputs,
                    axis=-1,
                ),
            )
        rows = [
            _gradient(trace, lambda trace, i=i: trace.outputs[:, i])
            for i in range(self._classes)
        ]
        return tf.stack(rows, axis=1)

    @property
    def where(self):
        """Which Jacobian."""
        outputs = {
            "label": "true class",
            "top": "teacher's top output",
            "all": "all outputs",
        }
        return f"input gradient of {outputs[self.of]}"

    @property
    def how(self):
        """The loss and the statistics."""
        return f"{describe_loss(self.loss)}, {self.batch_statistics} statistics"

    @property
    def passes(self):
        """Backward passes to the input, and a forward pass if one is added."""
        count = self._classes if self.of == "all" else 1
        extra = "1 forward, " if self.student_pass == "inference" else ""
        return f"student {extra}{count} backward; teacher {count} backward"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "of": self.of,
            "batch_statistics": self.batch_statistics,
        }


def _one_of(value, allowed, argument):
    if value not in allowed:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected one of "
            f"{allowed}. Received: {argument}={value!r}"
        )
    return value


def _gradient(trace, fn):
    """The input gradient of one scalar per example, as `[batch, inputs]`."""
    gradients = keras.tree.flatten(trace.input_gradient(fn))
    return tf.concat(
        [tf.reshape(g, [tf.shape(g)[0], _size(g)]) for g in gradients],
        axis=-1,
    )


def _size(tensor):
    """Entries per example, statically where they are known."""
    size = tensor.shape[1:].num_elements()
    return tf.reduce_prod(tf.shape(tensor)[1:]) if size is None else size


def _true_class(labels, classes):
    """One-hot `[batch, classes]` from sparse or one-hot labels."""
    if not isinstance(labels, tf.Tensor):
        raise ValueError(
            'JacobianMatch(of="label") needs one tensor of labels. '
            f'Received: {labels}. Use of="top" where there are none.'
        )
    if labels.shape.rank == 2 and labels.shape[-1] == classes > 1:
        indices = tf.argmax(labels, axis=-1)
    else:
        indices = tf.cast(tf.reshape(labels, [-1]), tf.int64)
    in_range = tf.reduce_all((indices >= 0) & (indices < classes))
    check = tf.debugging.Assert(
        in_range,
        [f"Labels out of range: expected 0 to {classes - 1}, got", indices],
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.one_hot(indices, classes)
