"""Match: the output or the features of two networks, under any loss."""

import inspect

import keras
import tensorflow as tf

from tfkd.losses import DistributionLoss
from tfkd.matches.base import (
    BaseMatch,
    compare,
    compare_distributions,
    example_weights,
    hide_padding,
    reduce_values,
    snake_case,
)
from tfkd.matches.projectors import make_projector, projected
from tfkd.precision import at_least_float32
from tfkd.teachers import ensemble
from tfkd.trace import Signal

_EVERY_LOSS = frozenset({"name", "reduction", "dtype"})
_SQUASHED = frozenset({"Softmax", "Sigmoid"})
_SIGNALS = ("features", "outputs", "labels")
_LINEAR = frozenset({"BiasAdd", "MatMul"})


class PairedMatch(BaseMatch):
    """What all matches of pairs of signals share: which they are.

    Args:
        at: As of `Match`.
        weight: As of `BaseMatch`.
        name: As of `BaseMatch`.

    Attributes:
        pairs: List of (student layer, teacher layer), None for the outputs.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(self, at=None, *, weight=1.0, name=None):
        super().__init__(weight=weight, name=name)
        self.pairs = as_pairs(at)

    @property
    def student_layers(self):
        """Names of the student's layers that are read."""
        return [name for name, _ in self.pairs if name is not None]

    @property
    def teacher_layers(self):
        """Names of the teacher's layers that are read."""
        return [name for _, name in self.pairs if name is not None]

    @property
    def reads_outputs(self):
        """Whether the outputs are among the student's places."""
        return any(name is None for name, _ in self.pairs)

    def observe(self, teacher, *, training=False):
        """The raw signals of the teacher, with their masks if they have."""
        signals = []
        for _, name in self.pairs:
            signal = self._signal(teacher, name)
            mask = getattr(signal, "_keras_mask", None)
            masked = {} if mask is None else {"mask": mask}
            signals.append({"signal": signal, **masked})
        return {"signals": tuple(signals)}

    def _signal(self, teacher, name):
        """The teacher's signal at a place."""
        return teacher[name]

    def observation(self):
        """As `BaseMatch.observation`: the layers."""
        return ["signals", [name for _, name in self.pairs]]

    @property
    def where(self):
        """The places, "student layer ~ teacher layer" where they differ."""
        return ", ".join(
            (student or "outputs")
            if student == teacher
            else f"{student or 'outputs'} ~ {teacher or 'outputs'}"
            for student, teacher in self.pairs
        )

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "at": [list(pair) for pair in self.pairs],
        }


@keras.saving.register_keras_serializable("tfkd")
class Match(PairedMatch):
    """Compares student and teacher at one or several places.

    The value is the sum over the places of `loss(y_true=teacher's signal,
    y_pred=student's signal)`, each through its projector if it has one. A
    loss whose `signals` are several gets a dict on either side, with the
    signal of the place ("features"), the network's outputs and the labels of
    the batch, those that it names.

    Signals are compared in float32 at least; no gradient reaches the
    teacher, but one reaches a teacher-side projector.

    Args:
        loss: A `keras.losses.Loss` (of `tfkd.losses`, of Keras or your own),
            a function of `(y_true, y_pred)`, or a Keras name such as "mse".
        at: Where. None: the outputs. "layer": the layer of this name or path
            in both networks. ("student layer", "teacher layer"): a pair; an
            entry may be None for the outputs. A list of these.
        weight: As of `BaseMatch`.
        projector: What the student's signal goes through first: "dense"
            (acts on the last axis), "conv" (fits size and width), a Keras
            layer, or a list with one of these or None for each place.
            A string builds a trained layer that fits the teacher's signal.
        teacher_projector: The same for the teacher's signal.
        joint: Whether the loss gets the lists of all places at once instead,
            `loss(y_true=[...], y_pred=[...])`.
        across_replicas: Whether a `DistributionLoss` compares the batches of
            all replicas as one, so that replicas change nothing; or each
            replica its own, which is cheaper. None: as one. Other losses
            look at one example at a time, and take None.
        name: Name of the term and of its metric; by default the loss's.

    Raises:
        ValueError: On construction, if an argument is invalid. When it is
            bound to two networks, if a layer is unknown, or the signals
            differ in shape and nothing maps one to the other, or the loss
            needs logits and a network returns probabilities.

    Example:

    >>> match = tfkd.Match("mse", at=("stage2", "stage3"), projector="conv")
    >>> match.where
    'stage2 ~ stage3'
    """

    def __init__(
        self,
        loss,
        *,
        at=None,
        weight=1.0,
        projector=None,
        teacher_projector=None,
        joint=False,
        across_replicas=None,
        name=None,
    ):
        loss = as_loss(loss)
        super().__init__(at, weight=weight, name=name or loss_name(loss))
        _check_kind(loss, joint, across_replicas)
        self.loss = loss
        self.joint = bool(joint)
        self.across_replicas = across_replicas
        self.supports_jit = getattr(loss, "supports_jit", True)
        self._projector = projector
        self._teacher_projector = teacher_projector
        self.student_projectors = _per_pair(
            projector, len(self.pairs), "projector"
        )
        self.teacher_projectors = _per_pair(
            teacher_projector, len(self.pairs), "teacher_projector"
        )

    @property
    def needs_labels(self):
        """Whether the loss asks for them."""
        return "labels" in _signals(self.loss)

    @property
    def reads_outputs(self):
        """Whether the outputs are a place, or the loss asks for them."""
        return super().reads_outputs or "outputs" in _signals(self.loss)

    @property
    def labels_outputs(self):
        """Whether the loss asks for both."""
        return {"outputs", "labels"} <= {*_signals(self.loss)}

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; builds the projectors."""
        places = [
            (single_signal(student, ours), single_signal(teacher, theirs))
            for ours, theirs in self.pairs
        ]
        compared = places
        if "outputs" in _signals(self.loss):
            compared = [
                (single_signal(student, None), single_signal(teacher, None))
            ]
            widths = [signal.shape[-1] for signal in compared[0]]
            if widths[0] != widths[1]:
                raise ValueError(
                    f"Loss '{self.loss.name}' compares the outputs too, but "
                    f"student '{student.name}' has {widths[0]} classes and "
                    f"teacher '{teacher.name}' {widths[1]}."
                )
        for ours, theirs in compared:
            check_scale(self.loss, student, ours)
            if getattr(self.loss, "needs_logits", False):
                refuse_probabilities(self.loss, teacher, theirs)
        self.student_projectors = [
            make_projector(projector, ours, theirs, "projector")
            for projector, (ours, theirs) in zip(
                self.student_projectors, places, strict=True
            )
        ]
        self.teacher_projectors = [
            make_projector(projector, theirs, ours, "teacher_projector")
            for projector, (ours, theirs) in zip(
                self.teacher_projectors, places, strict=True
            )
        ]
        if getattr(self.loss, "same_shape", True):
            self._require_same_shapes(student.name, teacher.name, places)
        super().bind(student=student, teacher=teacher)

    def observe(self, teacher, *, training=False):
        """As `PairedMatch.observe`; the outputs too, if the loss asks."""
        observed = super().observe(teacher, training=training)
        if "outputs" in _signals(self.loss):
            observed["outputs"] = ensemble(teacher, None, self.loss)
        return observed

    def _signal(self, teacher, name):
        """As of `PairedMatch`; the loss's logits as it takes them."""
        if "outputs" in _signals(self.loss):  # and not those of the place
            return teacher[name]
        return ensemble(teacher, name, self.loss)

    def observation(self):
        """As `BaseMatch.observation`: the layers, and whether outputs too."""
        return [*super().observation(), "outputs" in _signals(self.loss)]

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`: the sum over the places."""
        places = self._places(student, observed["signals"], training)
        if not self._takes_whole_signals:
            return sum(
                compare(
                    self.loss,
                    y_true,
                    y_pred,
                    sample_weight=sample_weight,
                    mask=mask,
                )
                for y_true, y_pred, mask in places
            )
        y_true = [hide_padding(y_true, mask) for y_true, _, mask in places]
        y_pred = [hide_padding(y_pred, mask) for _, y_pred, mask in places]
        if self.joint:
            return self._values(y_true, y_pred, sample_weight)
        y_true = self._with_signals(y_true, student, observed.get("outputs"))
        y_pred = self._with_signals(y_pred, student, student.outputs)
        if isinstance(self.loss, DistributionLoss):
            return compare_distributions(
                self.loss,
                y_true,
                y_pred,
                sample_weight=sample_weight,
                across_replicas=self.across_replicas is not False,
            )
        return sum(
            self._values(ours, theirs, sample_weight)
            for ours, theirs in zip(y_true, y_pred, strict=True)
        )

    @property
    def _takes_whole_signals(self):
        """Whether the loss takes more than one tensor a side, or batches."""
        return (
            self.joint
            or isinstance(self.loss, DistributionLoss)
            or _signals(self.loss) != ("features",)
        )

    def _values(self, y_true, y_pred, sample_weight):
        """The reduced value of structures of signals."""
        return reduce_values(
            at_least_float32(self.loss.call(y_true, y_pred)),
            reduction=self.loss.reduction,
            sample_weight=example_weights(sample_weight),
        )

    def _places(self, student, signals, training):
        """(teacher's signal, student's, mask) of each place, projected."""
        places = []
        for (name, _), y_true, projector, teacher_projector in zip(
            self.pairs,
            signals,
            self.student_projectors,
            self.teacher_projectors,
            strict=True,
        ):
            y_true = _masked(
                at_least_float32(y_true["signal"]), y_true.get("mask")
            )
            y_pred = at_least_float32(student[name])
            if projector is not None:
                y_pred = projector(y_pred, training=training)
            if teacher_projector is not None:
                y_true = teacher_projector(y_true, training=training)
            places.append(
                (y_true, y_pred, getattr(y_pred, "_keras_mask", None))
            )
        return places

    def _with_signals(self, features, student, outputs):
        """What the loss asks for beside features, in a dict for each place."""
        names = _signals(self.loss)
        if names == ("features",):
            return features
        beside = {}
        if "outputs" in names:
            beside["outputs"] = at_least_float32(outputs)
        if "labels" in names:
            beside["labels"] = _class_labels(student, self.loss)
        return [{"features": signal, **beside} for signal in features]

    def _require_same_shapes(self, student_name, teacher_name, places):
        for (ours, theirs), (source, target), projector, other in zip(
            self.pairs,
            places,
            self.student_projectors,
            self.teacher_projectors,
            strict=True,
        ):
            _require_same_shape(
                projected(projector, source),
                projected(other, target),
                f"'{student_name}' at {place_name(ours)}",
                f"'{teacher_name}' at {place_name(theirs)}",
            )

    @property
    def how(self):
        """The loss and its projectors."""
        sides = []
        if any(layer is not None for layer in self.student_projectors):
            sides.append("student")
        if any(layer is not None for layer in self.teacher_projectors):
            sides.append("teacher")
        projectors = f", {' and '.join(sides)} projected" if sides else ""
        return describe_loss(self.loss) + projectors

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "joint": self.joint,
            "across_replicas": self.across_replicas,
            "projector": keras.saving.serialize_keras_object(self._projector),
            "teacher_projector": keras.saving.serialize_keras_object(
                self._teacher_projector
            ),
        }


@keras.saving.register_keras_serializable("tfkd")
class FunctionLoss(keras.losses.Loss):
    """A loss from a function of `(y_true, y_pred)`.

    Args:
        fn: Function that returns `[batch, ...]`. It must be registered with
            Keras where the match is to be saved.
        name: As of `keras.losses.Loss`; by default the function's.
        reduction: As of `keras.losses.Loss`.
    """

    def __init__(self, fn, name=None, reduction="sum_over_batch_size"):
        name = name or getattr(fn, "__name__", type(fn).__name__).strip("<>")
        super().__init__(name=name, reduction=reduction)
        self.fn = fn

    def call(self, y_true, y_pred):
        """The function's values."""
        return self.fn(y_true, y_pred)

    def get_config(self):
        """As `keras.losses.Loss.get_config`."""
        return {
            **super().get_config(),
            "fn": keras.saving.serialize_keras_object(self.fn),
        }

    @classmethod
    def from_config(cls, config):
        """As `keras.losses.Loss.from_config`."""
        fn = keras.saving.deserialize_keras_object(config["fn"])
        return cls(**{**config, "fn": fn})


def as_loss(loss):
    """`loss` as a `keras.losses.Loss` with a reduction.

    Args:
        loss: A loss, a function of `(y_true, y_pred)`, or a Keras name.

    Returns:
        The loss.

    Raises:
        ValueError: If it is none of these, or does not reduce.
    """
    loss = wrap_loss(loss)
    if not isinstance(loss, keras.losses.Loss):
        raise ValueError(
            "Invalid value for argument `loss`. Expected a keras.losses.Loss, "
            "a function of (y_true, y_pred) or a Keras name. "
            f"Received: loss={loss}"
        )
    if loss.reduction in (None, "none"):
        raise ValueError(
            f"Loss '{loss.name}' has reduction={loss.reduction}, but a match "
            "needs one number. Use 'sum_over_batch_size'."
        )
    return loss


def _signals(loss):
    """Names of what a side of the loss consists of."""
    return tuple(getattr(loss, "signals", ("features",)))


def _check_kind(loss, joint, across_replicas):
    """Raises unless a loss can be used so."""
    of_batches = isinstance(loss, DistributionLoss)
    if across_replicas not in (None, True, False) or (
        across_replicas is not None and not of_batches
    ):
        raise ValueError(
            "Invalid value for argument `across_replicas`. Expected None, or "
            "True or False for a tfkd.losses.DistributionLoss. Received: "
            f"across_replicas={across_replicas!r} for loss '{loss.name}'"
        )
    if joint and of_batches:
        raise ValueError(
            "Invalid value for argument `joint`. A DistributionLoss takes "
            f"each place by itself. Received: joint={joint!r} for loss "
            f"'{loss.name}'"
        )
    names = _signals(loss)
    if not set(names) <= set(_SIGNALS):
        raise ValueError(
            f"Loss '{loss.name}' has signals={names}. Expected some of "
            f"{_SIGNALS}."
        )


def _class_labels(student, loss):
    """The labels of the student's batch, checked."""
    labels = student.labels
    if not isinstance(labels, tf.Tensor):
        raise ValueError(
            f"Loss '{loss.name}' compares class by class and needs one tensor "
            f"of labels. Received: {labels}. Train with (x, y)."
        )
    classes = getattr(student.outputs, "shape", [None])[-1]
    if labels.shape.rank == 2 and labels.shape[1] not in (1, classes, None):
        raise ValueError(
            f"Loss '{loss.name}' needs labels [batch], [batch, 1] or one-hot "
            f"[batch, {classes}]. Received: labels.shape={labels.shape}"
        )
    return labels


def _masked(tensor, mask):
    """`tensor`, with a Keras mask if there is one."""
    if mask is not None:
        tensor = tf.identity(tensor)
        tensor._keras_mask = mask
    return tensor


def loss_name(loss):
    """The loss's name without the number that Keras counts up."""
    if isinstance(loss, FunctionLoss):
        return loss.name
    return snake_case(type(loss).__name__)


def describe_loss(loss):
    """The loss with its settings, as `SoftTargets(temperature=4.0)`."""
    if isinstance(loss, FunctionLoss):
        return loss.name
    settings = [
        f"{key}={value}"
        for key, value in loss.get_config().items()
        if isinstance(value, (int, float, str)) and key not in _EVERY_LOSS
    ]
    wrapped = getattr(loss, "loss", None)
    if isinstance(wrapped, keras.losses.Loss):
        settings.insert(0, describe_loss(wrapped))
    return f"{type(loss).__name__}({', '.join(settings)})"


def as_pairs(at):
    """The places that `at` of a match names.

    Args:
        at: As of `Match`.

    Returns:
        List of (student layer, teacher layer), None for the outputs.

    Raises:
        ValueError: If it is nothing of the kind.
    """
    entries = at if isinstance(at, list) else [at]
    pairs = []
    for entry in entries:
        # A pair comes back from a saved configuration as a list.
        is_pair = isinstance(entry, (tuple, list))
        pair = entry if is_pair else (entry, entry)
        if len(pair) != 2 or not all(
            name is None or isinstance(name, str) for name in pair
        ):
            raise ValueError(
                "Invalid value for argument `at`. Expected None, a layer's "
                'name, a ("student layer", "teacher layer") tuple, or a list '
                f"of these. Received: at={at!r}"
            )
        pairs.append(tuple(pair))
    if not pairs:
        raise ValueError(
            "Invalid value for argument `at`. Expected at least one place. "
            f"Received: at={at!r}"
        )
    return pairs


def _per_pair(projector, count, argument):
    """One projector, name or None for each pair."""
    if projector is None or isinstance(projector, str):
        return [projector] * count
    if isinstance(projector, keras.layers.Layer):
        projector = [projector]
    if not isinstance(projector, (list, tuple)) or len(projector) != count:
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected None, "
            f'"dense", "conv", or one layer for each of the {count} '
            f"place(s). Received: {argument}={projector!r}"
        )
    return list(projector)


def place_name(name):
    """A layer's name in a sentence; None is the outputs."""
    return "its outputs" if name is None else f"layer '{name}'"


def single_signal(outline, name):
    """The `Signal` of a layer that gives one tensor.

    Args:
        outline: The network's `Outline`.
        name: The layer's name; None: the outputs.

    Returns:
        A `Signal`.

    Raises:
        ValueError: If the layer gives several tensors.
    """
    signal = outline.signals[name]
    if not isinstance(signal, Signal):
        raise ValueError(
            f"'{outline.name}' at {place_name(name)} gives several tensors; a "
            "match compares one with one. Name the layer that makes it."
        )
    return signal


def wrap_loss(loss):
    """A function or a Keras name as a loss; anything else as it is."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if callable(loss) and not isinstance(loss, (keras.losses.Loss, type)):
        loss = FunctionLoss(loss)
    return loss


def check_scale(loss, outline, signal):
    """Raises if a loss mistakes logits for probabilities, or the reverse.

    Args:
        loss: The loss. It takes logits for its prediction if it has a true
            `needs_logits` or `from_logits`, and probabilities if
            `from_logits` is false or it is Keras' divergence.
        outline: The network's `Outline`, for its name.
        signal: The `Signal` that is the loss's prediction.

    Raises:
        ValueError: If the signal is the other thing.
    """
    from_logits = getattr(loss, "from_logits", None)
    name = getattr(getattr(loss, "fn", None), "__name__", "")
    if from_logits is None and isinstance(loss, FunctionLoss):
        default = inspect.signature(loss.fn).parameters.get("from_logits")
        from_logits = None if default is None else default.default
    if getattr(loss, "needs_logits", False) or from_logits:
        refuse_probabilities(loss, outline, signal)
    elif signal.op in _LINEAR and (
        from_logits is False or name == "kl_divergence"
    ):
        hint = "Pass from_logits=True"
        if name == "kl_divergence":
            hint = "Use tfkd.losses.SoftTargets"
        raise ValueError(
            f"Loss '{loss.name}' takes probabilities, but '{outline.name}' "
            f"returns logits. {hint}."
        )


def refuse_probabilities(loss, outline, signal):
    """Raises if a loss that needs logits would be given probabilities.

    Args:
        loss: The loss, for its name.
        outline: The network's `Outline`, for its name.
        signal: The `Signal` that the loss would be given.

    Raises:
        ValueError: If the signal comes out of a softmax or sigmoid.
    """
    if signal.op in _SQUASHED:
        raise ValueError(
            f"Loss '{loss.name}' needs logits, but '{outline.name}' ends in "
            f"{signal.op.lower()}. Build it without the last activation, or "
            "compare the layer before it with `at`."
        )


def _require_same_shape(student, teacher, student_place, teacher_place):
    """Raises unless the shapes agree; None agrees with any size."""
    agree = len(student.shape) == len(teacher.shape) and all(
        ours is None or theirs is None or ours == theirs
        for ours, theirs in zip(student.shape, teacher.shape, strict=True)
    )
    if agree:
        return
    kind = "conv" if len(student.shape) == len(teacher.shape) > 3 else "dense"
    raise ValueError(
        f"Student {student_place} has shape {student.shape}, teacher "
        f"{teacher_place} has shape {teacher.shape}. To compare them pass "
        f'projector="{kind}" (student to the teacher\'s shape) or '
        f'teacher_projector="{kind}" (teacher to the student\'s).'
    )
