"""Matches of input gradients: Jacobians, their norm, and input noise."""

import functools
import math
import numbers

import keras
import tensorflow as tf

from tfkd.arguments import (
    check_choice,
    check_count,
    check_positive,
    check_seed,
)
from tfkd.losses import SquaredError
from tfkd.matches.base import (
    BaseMatch,
    compare,
    example_weights,
    reduce_values,
)
from tfkd.matches.match import (
    as_loss,
    describe_loss,
    loss_name,
    refuse_probabilities,
)
from tfkd.precision import at_least_float32
from tfkd.teachers import ensemble
from tfkd.trace import Signal, Trace

# What TensorFlow cannot differentiate twice, and what to take instead. Some
# raise in the middle of a training step; ResizeBilinear and FakeQuant drop
# the second order without a word.
_RESIZE = (
    "enlarge by keras.layers.Conv2DTranspose or "
    'UpSampling2D(interpolation="nearest"), reduce by average pooling'
)
_QUANTIZE = "quantise after training"
_WARP = "warp images in the input pipeline"
_WITHOUT_SECOND_ORDER = {
    "ResizeBilinear": _RESIZE,
    "ResizeNearestNeighbor": _RESIZE,
    "ResizeBicubic": _RESIZE,
    "ResizeArea": _RESIZE,
    "ScaleAndTranslate": _RESIZE,
    "CropAndResize": f"crop by slicing; {_RESIZE}",
    "MaxPoolWithArgmax": "use keras.layers.MaxPooling2D",
    "FractionalMaxPool": "use keras.layers.MaxPooling2D",
    "FractionalAvgPool": "use keras.layers.AveragePooling2D",
    "Dilation2D": "use keras.layers.MaxPooling2D",
    "LRN": "use keras.layers.GroupNormalization or LayerNormalization",
    "Softsign": "activate by tanh",
    "FakeQuantWithMinMaxArgs": _QUANTIZE,
    "FakeQuantWithMinMaxVars": _QUANTIZE,
    "FakeQuantWithMinMaxVarsPerChannel": _QUANTIZE,
    "ImageProjectiveTransformV2": _WARP,
    "ImageProjectiveTransformV3": _WARP,
    "CudnnRNN": "give the layer use_cudnn=False",
    "CudnnRNNV2": "give the layer use_cudnn=False",
    "CudnnRNNV3": "give the layer use_cudnn=False",
}
# Of those, what it cannot even differentiate once: the first has no gradient,
# the others have one that is not that of the values.
_WITHOUT_FIRST_ORDER = (
    "ResizeArea",
    "ImageProjectiveTransformV2",
    "ImageProjectiveTransformV3",
)
_STATISTICS = ("frozen", "moving", "batch")


class InputGradientMatch(BaseMatch):
    """What all matches of input gradients share: which pass they read.

    Args:
        batch_statistics: "frozen", "moving" or "batch"; None: "frozen".
        weight: As of `BaseMatch`.
        name: As of `BaseMatch`.

    Raises:
        ValueError: If an argument is invalid.
    """

    needs_input_gradient = True

    def __init__(self, *, batch_statistics=None, weight=1.0, name=None):
        super().__init__(weight=weight, name=name)
        if batch_statistics is None:
            batch_statistics = "frozen"
        self.batch_statistics = check_choice(
            batch_statistics, _STATISTICS, "batch_statistics"
        )

    @property
    def freezes_statistics(self):
        """As `BaseMatch.freezes_statistics`."""
        # "moving" reads the training pass where that has no statistics.
        kinds = {"frozen": True, "batch": False, "moving": None}
        return kinds[self.batch_statistics]

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; decides which pass of the student it reads."""
        for outline in (student, teacher):
            if outline is not None:
                _require_floating_input(outline, type(self).__name__)
        own_pass = self.batch_statistics == "moving" and student.mixes_modes
        ops = student.ops if own_pass else student.training_ops
        only = {op: place for op, place in ops.items() if op not in student.ops}
        _require_gradients(
            student.name,
            only,
            _WITHOUT_SECOND_ORDER,
            hint=', or take batch_statistics="moving"',
        )
        _require_gradients(student.name, ops, _WITHOUT_SECOND_ORDER)
        if self.needs_teacher:
            _require_gradients(teacher.name, teacher.ops, _WITHOUT_FIRST_ORDER)
            if self.differentiates_teacher_twice:
                _require_gradients(
                    teacher.name,
                    teacher.ops,
                    _WITHOUT_SECOND_ORDER,
                    hint=', or take directions="output"',
                )
        self.student_pass = "inference" if own_pass else "training"
        super().bind(student=student, teacher=teacher)

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "batch_statistics": self.batch_statistics,
        }


class OutputGradientMatch(InputGradientMatch):
    """What matches of the outputs' gradients share: which, of how many.

    Args:
        of: "label", "top" or "all"; ignored with `num_projections`.
        num_projections: Number of random directions, or None.
        directions: "output" or "input", the space that they are of.
        batch_statistics: As of `InputGradientMatch`, but None is "moving"
            with a `fraction` below 1.
        fraction: Part of the batch, in (0, 1].
        seed: Of the random directions.
        **kwargs: As of `InputGradientMatch`.

    Raises:
        ValueError: If an argument is invalid.
    """

    reads_outputs = True

    def __init__(
        self,
        *,
        of="label",
        num_projections=None,
        directions="output",
        batch_statistics=None,
        fraction=1.0,
        seed=0,
        **kwargs,
    ):
        if batch_statistics is None and _share(fraction) < 1:
            batch_statistics = "moving"
        super().__init__(batch_statistics=batch_statistics, **kwargs)
        self.of = check_choice(of, ("label", "top", "all"), "of")
        if num_projections is not None:
            check_count(num_projections, "num_projections")
        self.num_projections = num_projections
        self.directions = check_choice(
            directions, ("output", "input"), "directions"
        )
        if self.directions == "input" and num_projections is None:
            raise ValueError(
                'directions="input" are random. Say how many: '
                f"num_projections=1. Received: directions={directions!r}"
            )
        self.fraction = _share(fraction)
        if self.fraction < 1 and self.batch_statistics != "moving":
            raise ValueError(
                "A fraction of the batch needs a pass of its own, so "
                'batch_statistics="moving". '
                f"Received: batch_statistics={self.batch_statistics!r}"
            )
        self.seed = check_seed(seed)
        if num_projections is not None:
            self._seeds = keras.random.SeedGenerator(seed)

    @property
    def needs_labels(self):
        """Whether the true class is asked for."""
        return self.of == "label" and self.num_projections is None

    @property
    def labels_outputs(self):
        """Whether the true class is asked for."""
        return self.needs_labels

    @property
    def differentiates_teacher_twice(self):
        """Whether derivatives along input directions are asked for."""
        return self.directions == "input"

    @property
    def has_own_pass(self):
        """Whether only a part of the batch is looked at."""
        return self.fraction < 1

    def bind(self, *, student, teacher):
        """As `InputGradientMatch.bind`."""
        for outline in (student, teacher):
            if outline is not None:
                _require_classes(outline, type(self).__name__)
        self._classes = student.signals[None].shape[-1]
        super().bind(student=student, teacher=teacher)

    def trace_student(self, model, inputs, labels, observed):
        """The part of the batch, in inference mode."""
        return Trace(model, self._part(inputs), differentiable=True)

    def _part(self, batch):
        """The first examples of a structure `[batch, ...]`."""
        if self.fraction == 1 or batch is None:
            return batch
        size = tf.shape(keras.tree.flatten(batch)[0])[0]
        share = tf.cast(size, tf.float32) * self.fraction
        count = tf.cast(tf.math.ceil(share), tf.int32)
        return keras.tree.map_structure(lambda t: t[:count], batch)

    def _draw(self, trace, labels, training):
        """What of the Jacobian is looked at.

        Args:
            trace: The trace whose largest output is "top".
            labels: The labels of the batch.
            training: Whether new directions are to be drawn.

        Returns:
            A dict with "combinations" `[batch, combinations, classes]` of
            the outputs, or with "directions", a structure `[batch,
            directions, ...]` of the inputs' shapes; or empty, for every
            output.
        """
        if self.num_projections is not None:
            seed = draw_seed(self._seeds, self.seed, training)
            if self.directions == "input":
                drawn = [
                    self._signs(
                        tf.shape(x), x.dtype, seed + tf.constant([0, i])
                    )
                    for i, x in enumerate(keras.tree.flatten(trace.inputs))
                ]
                return {
                    "directions": keras.tree.pack_sequence_as(
                        trace.inputs, drawn
                    )
                }
            outputs = at_least_float32(trace.outputs)
            return {
                "combinations": self._signs(
                    tf.shape(outputs), outputs.dtype, seed
                )
            }
        if self.of == "all":
            return {}
        if self.of == "label":
            chosen = _true_class(labels, trace.outputs.shape[-1])
        else:
            largest = tf.argmax(trace.outputs, axis=-1)
            chosen = tf.one_hot(largest, trace.outputs.shape[-1])
        return {"combinations": chosen[:, None, :]}

    def _signs(self, shape, dtype, seed):
        """Random signs `[batch, projections, ...]` over root projections."""
        shape = tf.concat([shape[:1], [self.num_projections], shape[1:]], 0)
        signs = tf.where(draw_bits(shape, seed) < 2**31, -1, 1)
        return tf.cast(signs, dtype) / math.sqrt(self.num_projections)

    def _jacobian(self, trace, drawn, scalars):
        """What is looked at of the Jacobian of some scalars.

        Args:
            trace: A differentiable `Trace`.
            drawn: As `_draw` returns; more entries do not matter.
            scalars: Function of the trace that returns `[batch, classes]`.

        Returns:
            `[batch, combinations, inputs]`, or `[batch, directions, classes]`
            along input directions, in units of the scalars per input unit.
        """
        if "directions" in drawn:
            columns = [
                trace.input_derivative(
                    scalars,
                    keras.tree.map_structure(
                        lambda d, i=i: d[:, i], drawn["directions"]
                    ),
                )
                for i in range(self.num_projections)
            ]
            return tf.stack(columns, axis=1)
        if "combinations" not in drawn:
            functions = [
                lambda trace, i=i: scalars(trace)[:, i]
                for i in range(trace.outputs.shape[-1])
            ]
        else:
            combinations = drawn["combinations"]

            def combined(trace, i):
                values = scalars(trace)
                weights = tf.cast(combinations[:, i], values.dtype)
                return tf.reduce_sum(weights * values, axis=-1)

            functions = [
                functools.partial(combined, i=i)
                for i in range(self.num_projections or 1)
            ]
        return tf.stack([input_rows(trace, fn) for fn in functions], axis=1)

    @property
    def where(self):
        """Which input gradient."""
        outputs = {
            "label": "true class",
            "top": "top output",
            "all": "all outputs",
        }[self.of]
        if self.num_projections is not None:
            outputs = (
                f"{self.num_projections} random {self.directions} directions"
            )
        part = f", {self.fraction:g} of the batch" * (self.fraction < 1)
        return f"input gradient of {outputs}{part}"

    @property
    def passes(self):
        """Backward passes to the input, and a forward pass if one is added."""
        count = self._classes if self.of == "all" else 1
        if self.num_projections is not None:
            # A derivative along an input takes two backward passes.
            twice = self.directions == "input"
            count = self.num_projections * (2 if twice else 1)
        own = self.student_pass == "inference" or self.has_own_pass
        extra = "1 forward, " if own else ""
        teacher = f"; teacher {count} backward" if self.needs_teacher else ""
        return f"student {extra}{count} backward{teacher}"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "of": self.of,
            "num_projections": self.num_projections,
            "directions": self.directions,
            "fraction": self.fraction,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable("tfkd")
class JacobianMatch(OutputGradientMatch):
    """Matches the Jacobians of two networks' outputs.

    Formula: mean over the batch of `loss(dT/dx, dS/dx)`; with the default
    loss `sum_i |dT_i/dx - dS_i/dx|^2`, summed over the input's entries and
    over the outputs i that `of` names.

    Both networks are differentiated with respect to the same input, in the
    units of the data pipeline; a teacher that wants its images in another
    size or normalisation is wrapped in a model that begins with it. The
    teacher's Jacobian is a constant; the student's is differentiated once
    more with respect to its weights, exactly, through any normalisation of
    the user's model. In mixed_float16, input gradients above 64 overflow.

    Args:
        loss: As of `Match`; receives `[batch, outputs, inputs]` in output
            units per input unit, where outputs is 1 for "label" and "top".
            A loss with an attribute `log_probabilities`
            (`tfkd.losses.JacobianCrossEntropy`) receives the gradients of
            log-probabilities instead, times the root of the teacher's
            probability. Default: `SquaredError`.
        of: Which outputs. "label": the example's true class, from sparse
            `[batch]` or `[batch, 1]` or one-hot `[batch, classes]` labels;
            "top": the teacher's largest output (of several teachers, that
            of their mean outputs), without labels; "all": every
            output, at the price of one backward pass each.
        num_projections: Instead of `of`: this many random directions, with
            signs drawn anew in each step and for each example. For squared
            errors their mean has the expectation of "all".
        directions: "output": combinations of the outputs, each at the price
            of "label"; "input": directions of the input, along which all
            outputs are differentiated, each at twice that price. The loss
            then receives `[batch, directions, outputs]`.
        batch_statistics: What BatchNormalization divides by while the
            student is differentiated in training. In evaluation it is always
            the moving statistics.

            - "frozen": the statistics of the batch, taken for constants, in
              the training pass, which is there anyway. A Jacobian is each
              example's own, but of a function that changes with the batch,
              dropout included.
            - "moving": the moving statistics, in one more pass, in inference
              mode. A Jacobian is that of the network that is used later. But
              the statistics lag behind weights that move fast, which can
              spoil the student: let the learning rate decay to 0. (A student
              without layers that act differently in training needs no such
              pass.)
            - "batch": the gradient of the batch's sum in the training pass,
              where each example also acts on the others through the
              statistics.
            - None: "moving" with a `fraction` below 1, else "frozen", which
              bears large learning rates and costs less.

            Layers of your own are frozen where they call `tf.nn.moments` or
            `keras.ops.moments`; other statistics over the batch are refused,
            unless a loop or a `call` that is a tf.function hides them, in
            which examples mix.
        fraction: Part of the batch that is differentiated, its first
            examples, in (0, 1]. Below 1 it needs "moving", and takes a pass
            of its own over that part, of the teacher too.
        seed: Of the random projections.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: On construction, if an argument is invalid. By the
            trainer, if examples would mix in a student that is to be frozen.
            When bound, if the outputs are not `[batch, classes]` with equal
            classes, the input is not floating, or the student has an
            operation without exact second-order gradient (the teacher:
            first-order, and second with `directions="input"`). In a step, if
            a label is out of range (`tf.errors.InvalidArgumentError`; not
            under XLA).

    Reference: Srinivas & Fleuret 2018, proposition 1 and section 4.1.
    """

    def __init__(
        self,
        loss=None,
        *,
        of="label",
        num_projections=None,
        directions="output",
        batch_statistics=None,
        fraction=1.0,
        seed=0,
        weight=1.0,
        name=None,
    ):
        super().__init__(
            of=of,
            num_projections=num_projections,
            directions=directions,
            batch_statistics=batch_statistics,
            fraction=fraction,
            seed=seed,
            weight=weight,
            name=name,
        )
        self.loss = as_loss(SquaredError() if loss is None else loss)

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; decides which pass of the student it reads."""
        super().bind(student=student, teacher=teacher)
        ours, theirs = student.signals[None], teacher.signals[None]
        if ours.shape[-1] != theirs.shape[-1]:
            raise ValueError(
                "JacobianMatch needs as many outputs of the student as of "
                f"the teacher. Received: '{student.name}' with "
                f"{ours.shape[-1]}, '{teacher.name}' with {theirs.shape[-1]}"
            )
        if self._is_of_log_probabilities:
            refuse_probabilities(self.loss, student, ours)
            refuse_probabilities(self.loss, teacher, theirs)

    def observe(self, teacher, *, training=False):
        """As `BaseMatch.observe`, of the part of the batch."""
        if self.has_own_pass:
            teacher = teacher.again(
                self._part(teacher.inputs),
                labels=self._part(teacher.labels),
                differentiable=True,
            )
        return self._observed(teacher, training)

    def observation(self):
        """As `BaseMatch.observation`: the outputs that are differentiated."""
        if self.num_projections is not None:
            return None
        temperature = None
        if self._is_of_log_probabilities:
            temperature = self.loss.temperature
        return ["jacobian", self.of, temperature]

    def observe_whole(self, teacher):
        """As `BaseMatch.observe_whole`."""
        return self._observed(teacher, training=False)

    def part(self, observed):
        """As `BaseMatch.part`: the first examples."""
        return self._part(observed)

    def _observed(self, teacher, training):
        """The combinations looked at, their scale, and the Jacobian."""
        observed = self._draw(teacher, teacher.labels, training)
        if self._is_of_log_probabilities:
            outputs = at_least_float32(ensemble(teacher, None, self.loss))
            probabilities = tf.nn.softmax(outputs / self.loss.temperature)
            observed["scale"] = tf.sqrt(probabilities)
        observed["jacobian"] = self._jacobian(
            teacher, observed, self._scalars(observed)
        )
        return observed

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`."""
        jacobian = self._jacobian(student, observed, self._scalars(observed))
        return compare(
            self.loss,
            observed["jacobian"],
            jacobian,
            sample_weight=self._part(example_weights(sample_weight)),
        )

    @property
    def _is_of_log_probabilities(self):
        return getattr(self.loss, "log_probabilities", False)

    def _scalars(self, observed):
        """Function of a trace that returns what is differentiated."""
        if not self._is_of_log_probabilities:
            return lambda trace: trace.outputs
        return lambda trace: (
            observed["scale"]
            * tf.nn.log_softmax(
                at_least_float32(trace.outputs) / self.loss.temperature
            )
        )

    @property
    def how(self):
        """The loss and the statistics."""
        return f"{describe_loss(self.loss)}, {self.batch_statistics} statistics"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
        }


@keras.saving.register_keras_serializable("tfkd")
class JacobianPenalty(OutputGradientMatch):
    """Penalises the student's own Jacobian: robustness to input noise.

    Needs no teacher: `Distiller(student=..., matches=[JacobianPenalty()])`.

    Formulas, for Gaussian input noise of variance s^2, each divided by s^2:

    - "squared_error": `sum_i |dS_i|^2` over the outputs i that `of` names;
      what the noise adds to the squared error with the labels.
    - "cross_entropy": `1/2 sum_i p_i |d log p_i|^2` with p the softmax of
      the outputs, which is half the variance of the outputs' gradients under
      p; what it adds to the cross-entropy with any labels, exactly, where
      the outputs are linear in the input.
    - "printed_cross_entropy": `|d log p_y|^2` for the true class y. The
      paper prints this; it is twice too large and lacks the term that makes
      the true one independent of the label.

    Args:
        form: One of the three above. "cross_entropy" is of all outputs, the
            printed form of the label.
        of: With "squared_error": "label", "top" (the student's largest) or
            "all".
        num_projections: As of `JacobianMatch`; of the first two forms.
        directions: As of `JacobianMatch`.
        batch_statistics: As of `JacobianMatch`.
        fraction: As of `JacobianMatch`.
        seed: As of `JacobianMatch`.
        weight: As of `BaseMatch`: s^2 in squared input units.
        name: Name of the term and of its metric.

    Raises:
        ValueError: As of `JacobianMatch`.

    Reference: Srinivas & Fleuret 2018, proposition 2 and equation 3,
    corrected; Drucker & LeCun 1992.
    """

    needs_teacher = False

    def __init__(
        self,
        form="squared_error",
        *,
        of=None,
        num_projections=None,
        directions="output",
        batch_statistics=None,
        fraction=1.0,
        seed=0,
        weight=1.0,
        name=None,
    ):
        forms = ("squared_error", "cross_entropy", "printed_cross_entropy")
        check_choice(form, forms, "form")
        fixed = {"cross_entropy": "all", "printed_cross_entropy": "label"}
        default = fixed.get(form, "label")
        if of is not None and form in fixed and of != default:
            raise ValueError(
                f'JacobianPenalty("{form}") is of="{default}". '
                f"Received: of={of!r}"
            )
        super().__init__(
            of=of or default,
            num_projections=num_projections,
            directions=directions,
            batch_statistics=batch_statistics,
            fraction=fraction,
            seed=seed,
            weight=weight,
            name=name,
        )
        if form == "printed_cross_entropy" and num_projections:
            raise ValueError(
                'JacobianPenalty("printed_cross_entropy") is of the label '
                "and takes no random projections."
            )
        self.form = form

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`."""
        super().bind(student=student, teacher=None)
        if self.form != "squared_error":
            refuse_probabilities(self, student, student.signals[None])

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`."""
        # Made outside the tape over inputs, these are constants of the input
        # gradient; gradients with respect to weights go through them.
        outputs = at_least_float32(student.outputs)
        scale = tf.ones_like(outputs)
        if self.form == "cross_entropy":
            scale = tf.exp(0.5 * tf.nn.log_softmax(outputs))
        drawn = self._draw(student, student.labels, training)

        def scalars(trace):
            if self.form == "squared_error":
                return trace.outputs
            logs = tf.nn.log_softmax(at_least_float32(trace.outputs))
            return scale * logs

        jacobian = self._jacobian(student, drawn, scalars)
        values = tf.reduce_sum(tf.square(jacobian), axis=[1, 2])
        if self.form == "cross_entropy":
            values = 0.5 * values
        return reduce_values(
            values,
            reduction="sum_over_batch_size",
            sample_weight=self._part(example_weights(sample_weight)),
        )

    def trace_student(self, model, inputs, labels, observed):
        """The part of the batch, in inference mode, with its labels."""
        return Trace(
            model,
            self._part(inputs),
            labels=self._part(labels),
            differentiable=True,
        )

    @property
    def how(self):
        """The form and the statistics."""
        return f"{self.form} norm, {self.batch_statistics} statistics"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {**super().get_config(), "form": self.form}


@keras.saving.register_keras_serializable("tfkd")
class InputNoiseMatch(BaseMatch):
    """Compares the outputs of both networks on noisy inputs.

    Formula: mean over the batch of `loss(T(x + s z), S(x + s z))`, with z
    standard normal, drawn anew in each step, the same for both networks.

    To second order in s this is the match of the outputs plus s^2 times the
    match of the Jacobians (proposition 1), by sampling instead of
    differentiating. Takes one more inference-mode forward pass of each
    network.

    Args:
        stddev: s, in input units. Finite and > 0.
        loss: As of `Match`. Default: `SquaredError`.
        seed: Of the noise.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid, or, when bound, if the
            networks' outputs or inputs cannot be compared so.

    Reference: Srinivas & Fleuret 2018, figure 1, solution 1.
    """

    has_own_pass = True
    reads_outputs = True

    def __init__(self, stddev, loss=None, *, seed=0, weight=1.0, name=None):
        super().__init__(weight=weight, name=name)
        self.stddev = check_positive(stddev, "stddev")
        self.loss = as_loss(SquaredError() if loss is None else loss)
        self.seed = check_seed(seed)
        self._seeds = keras.random.SeedGenerator(seed)

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`."""
        for outline in (student, teacher):
            _require_classes(outline, "InputNoiseMatch")
            _require_floating_input(outline, "InputNoiseMatch")
            if getattr(self.loss, "needs_logits", False):
                signal = outline.signals[None]
                refuse_probabilities(self.loss, outline, signal)
        super().bind(student=student, teacher=teacher)

    def observe(self, teacher, *, training=False):
        """The noisy inputs and the teacher's outputs on them."""
        seed = draw_seed(self._seeds, self.seed, training)
        noisy = []
        for i, tensor in enumerate(keras.tree.flatten(teacher.inputs)):
            noise = _normal(
                tf.shape(tensor), tensor.dtype, seed + tf.constant([0, i])
            )
            noisy.append(tensor + self.stddev * noise)
        inputs = keras.tree.pack_sequence_as(teacher.inputs, noisy)
        outputs = ensemble(teacher.again(inputs), None, self.loss)
        return {"inputs": inputs, "outputs": outputs}

    def trace_student(self, model, inputs, labels, observed):
        """The student on the noisy inputs."""
        return Trace(model, observed["inputs"])

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`."""
        return compare(
            self.loss,
            observed["outputs"],
            student.outputs,
            sample_weight=sample_weight,
        )

    @property
    def where(self):
        """Where the outputs are compared."""
        return f"outputs, inputs + {self.stddev:g} noise"

    @property
    def how(self):
        """The loss."""
        return loss_name(self.loss)

    @property
    def passes(self):
        """One more of each network."""
        return "student 1 forward; teacher 1 forward"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "stddev": self.stddev,
            "loss": keras.saving.serialize_keras_object(self.loss),
            "seed": self.seed,
        }


def draw_seed(generator, seed, training):
    """A seed for one step's random choices.

    Args:
        generator: A `keras.random.SeedGenerator`.
        seed: The integer that it began with.
        training: Whether to draw anew; in evaluation all steps are alike.

    Returns:
        `[2]`, int32.
    """
    drawn = generator.next() if training else [seed, 0]
    return tf.cast(drawn, tf.int32)


def draw_bits(shape, seed):
    """Random integers of 32 bits, uniformly.

    From these on, XLA draws what TensorFlow draws. Its own floating numbers
    are others, whatever algorithm is named.

    Args:
        shape: Of the result.
        seed: As `draw_seed` returns.

    Returns:
        Tensor of this shape, uint32.
    """
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )


def _normal(shape, dtype, seed):
    """Standard normal numbers, by the method of Box and Muller."""
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    bits = draw_bits(tf.concat([[2], shape], axis=0), seed)
    radius, angle = tf.unstack((tf.cast(bits, wide) + 0.5) * 2.0**-32)
    normal = tf.sqrt(-2.0 * tf.math.log(radius)) * tf.cos(2 * math.pi * angle)
    return tf.cast(normal, dtype)


def _share(fraction):
    if (
        not isinstance(fraction, numbers.Real)
        or isinstance(fraction, bool)
        or not 0 < fraction <= 1
    ):
        raise ValueError(
            "Invalid value for argument `fraction`. Expected a number in "
            f"(0, 1]. Received: fraction={fraction!r}"
        )
    return fraction


def _require_classes(outline, name):
    """Raises unless a network returns `[batch, classes]`."""
    signal = outline.signals[None]
    if not isinstance(signal, Signal) or len(signal.shape) != 2:
        raise ValueError(
            f"{name} compares outputs of shape [batch, classes]. "
            f"Received: '{outline.name}' with {signal}"
        )


def _require_floating_input(outline, name):
    """Raises unless a network can be differentiated by its input."""
    for spec in keras.tree.flatten(outline.inputs):
        if not spec.dtype.is_floating:
            raise ValueError(
                f"{name} needs a floating input. Received: "
                f"'{outline.name}' takes {spec.dtype.name}"
            )


def _require_gradients(name, ops, refused, hint=""):
    """Raises if a network has an operation whose gradient is not exact."""
    for op in refused:
        if op in ops:
            order = "first" if op in _WITHOUT_FIRST_ORDER else "second"
            raise ValueError(
                f"'{name}' uses {op} (layer '{ops[op]}'), which has no exact "
                f"{order}-order gradient in TensorFlow, so that a match of "
                "its Jacobian would be wrong. Replace that layer: "
                f"{_WITHOUT_SECOND_ORDER[op]}{hint}."
            )


def input_rows(trace, fn):
    """The input gradient of one scalar per example, as a row each.

    Args:
        trace: A differentiable `Trace`.
        fn: As of `Trace.input_gradient`.

    Returns:
        `[batch, inputs]`, all inputs flattened and joined.
    """
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
            'The Jacobian of="label" needs one tensor of labels. '
            f'Received: {labels}. Use of="top" where there are none.'
        )
    if labels.shape.rank == 2 and labels.shape[-1] == classes > 1:
        return tf.one_hot(tf.argmax(labels, axis=-1), classes)
    indices = tf.cast(tf.reshape(labels, [-1]), tf.int64)
    in_range = tf.reduce_all((indices >= 0) & (indices < classes))
    message = f"Labels out of range: expected 0 to {classes - 1}, got"
    # In a graph the operation must be waited for; eagerly there is none.
    check = tf.debugging.Assert(in_range, [message, indices])
    with tf.control_dependencies([] if check is None else [check]):
        return tf.one_hot(indices, classes)
