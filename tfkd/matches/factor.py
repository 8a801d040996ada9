"""FactorMatch: maps are compared by what a few trained channels say of them.

The teacher's map goes through the encoder of an autoencoder, which is trained
before the student is: by a `ParaphraserMatch`, in a stage of its own.
"""

import keras
import tensorflow as tf

from tfkd.arguments import check_positive
from tfkd.losses.attention_transfer import attention_map, same_size
from tfkd.losses.distribution import flatten
from tfkd.matches.base import reduce_values
from tfkd.matches.match import PairedMatch, place_name, single_signal
from tfkd.matches.projectors import (
    batch_normalization,
    default_dtype,
    projected,
)
from tfkd.precision import at_least_float32
from tfkd.transport.costs import unit_vectors

_SLOPE = 0.1  # of the rectifiers below zero


@keras.saving.register_keras_serializable("tfkd")
class Paraphraser(keras.layers.Layer):
    """Autoencoder of a map, whose code has fewer channels and equal size.

    The encoder has three 3x3 convolutions, each with a leaky ReLU of slope
    0.1, of as many channels as the map and twice `ratio` times as many. The
    decoder is its mirror image.

    Args:
        ratio: Channels of the code, as a share of the map's, > 0; rounded,
            at least 1.
        name: As of `keras.layers.Layer`.
        dtype: As of `keras.layers.Layer`; by default float32 at least.

    Attributes:
        encoder, decoder: Keras models, once it is built.
        steps: Number of steps that it was trained for, a variable.

    Raises:
        ValueError: If `ratio` is invalid.
    """

    def __init__(self, ratio=0.5, *, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype or default_dtype())
        self.ratio = check_positive(ratio, "ratio")
        self.encoder = None
        self.decoder = None

    def build(self, input_shape):
        """Makes encoder and decoder.

        Args:
            input_shape: `(None, height, width, channels)`.
        """
        channels = input_shape[-1]
        code = self.code_channels(channels)
        self.encoder = convolutions(
            [channels, code, code], dtype=self.dtype, name="encoder"
        )
        self.decoder = convolutions(
            [code, channels, channels], dtype=self.dtype, name="decoder"
        )
        self.encoder.build(input_shape)
        self.decoder.build((*input_shape[:-1], code))
        self.steps = self.add_weight(
            shape=(),
            initializer="zeros",
            trainable=False,
            dtype="int64",
            aggregation="only_first_replica",
            name="steps",
        )
        super().build(input_shape)

    def code_channels(self, channels):
        """Channels of the code of a map of so many channels."""
        return max(1, round(self.ratio * channels))

    def call(self, inputs):
        """The map again, `[batch, height, width, channels]`."""
        return self.decoder(self.encoder(inputs))

    def get_config(self):
        """As `keras.layers.Layer.get_config`."""
        return {"ratio": self.ratio, "name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable("tfkd")
class ParaphraserMatch(PairedMatch):
    """Trains the paraphraser of a `FactorMatch` to return the teacher's map.

    Formula: `mean over all entries of (decoder(encoder(T)) - T)^2`.

    The student has no part in it: a Distiller with this match alone and
    `label_weight=0.0` leaves the student as it is.

    Args:
        at: As of `Match`; one place, of which only the teacher's layer is
            read: a map `[batch, height, width, channels]`.
        paraphraser: The `Paraphraser` of the `FactorMatch`.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if the layer gives
            no map.

    Example:

    >>> factor = tfkd.FactorMatch("stage3", weight=200.0)
    >>> stage = tfkd.ParaphraserMatch("stage3", paraphraser=factor.paraphraser)

    Reference: Kim et al. 2018, equation 1.
    """

    trains_student = False
    averages_teachers = False
    student_layers = ()

    def __init__(self, at, *, paraphraser, weight=1.0, name=None):
        super().__init__(at, weight=weight, name=name)
        _require_one_place(self.pairs, at)
        self.paraphraser = _checked(paraphraser)

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; builds the paraphraser, to be trained."""
        ((_, theirs),) = self.pairs
        _build(self.paraphraser, _map(teacher, theirs), teacher.name)
        self.paraphraser.trainable = True
        super().bind(student=student, teacher=teacher)

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`."""
        maps = at_least_float32(observed["signals"][0]["signal"])
        if training:
            self.paraphraser.steps.assign_add(1)
        values = tf.square(self.paraphraser(maps) - maps)
        return reduce_values(
            tf.reduce_mean(flatten(values), axis=-1),
            reduction="sum_over_batch_size",
            sample_weight=sample_weight,
        )

    @property
    def where(self):
        """The teacher's layer."""
        return place_name(self.pairs[0][1])

    @property
    def how(self):
        """What is done, and how narrow the code is."""
        return f"reconstruction from {self.paraphraser.ratio:g} of the channels"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "paraphraser": keras.saving.serialize_keras_object(
                self.paraphraser
            ),
        }


@keras.saving.register_keras_serializable("tfkd")
class FactorMatch(PairedMatch):
    """Compares factors: normalised attention maps of two encoders' codes.

    Formula: the mean over all entries of `| a(F_S) - a(F_T) |`, with the
    teacher's code F_T, the student's F_S, and `a(F) = n(sum_c |F_c|^2)` over
    positions.

    The teacher's code is that of a `Paraphraser`, a constant here, which a
    `ParaphraserMatch` trains before; `tfkd.methods.build("ft", ...)` gives
    both as stages. The student's code is that of a trained translator: the
    encoder's convolutions with batch normalisation before each rectifier,
    from the student's channels to those of the teacher's code. Of two sizes
    the larger code is brought to the smaller, as by
    `tfkd.losses.AttentionTransfer`.

    Args:
        at: As of `Match`; one place that gives `[batch, height, width,
            channels]`.
        paraphraser: A `Paraphraser`, or None for one of half the channels.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if a layer gives no
            map, or one of a single position; in `fit`, if the paraphraser has
            never been trained.

    Example:

    ```python
    factor = tfkd.FactorMatch("stage3", weight=200.0)
    first = tfkd.ParaphraserMatch("stage3", paraphraser=factor.paraphraser)
    for match, label_weight, epochs in ((first, 0.0, 30), (factor, 1.0, 240)):
        distiller = tfkd.Distiller(
            student=student,
            teacher=teacher,
            matches=[match],
            label_weight=label_weight,
        )
        distiller.compile("sgd", loss)
        distiller.fit(train, epochs=epochs)
    ```

    Reference: Kim et al. 2018, equations 2 and 3, with the first norm.
    """

    averages_teachers = False

    def __init__(self, at, *, paraphraser=None, weight=1.0, name=None):
        super().__init__(at, weight=weight, name=name)
        _require_one_place(self.pairs, at)
        if paraphraser is None:
            paraphraser = Paraphraser()
        self.paraphraser = _checked(paraphraser)
        self.translator = None

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; builds the translator."""
        ((ours, theirs),) = self.pairs
        source, target = _map(student, ours), _map(teacher, theirs)
        sizes = source.shape[1:3], target.shape[1:3]
        if all(min(pair) == 1 for pair in zip(*sizes, strict=True)):
            raise ValueError(
                f"Student '{student.name}' at {place_name(ours)} has shape "
                f"{source.shape}, teacher '{teacher.name}' at "
                f"{place_name(theirs)} has shape {target.shape}. Factors are "
                "normalised over positions, so they are equal where there is "
                "one. Choose an earlier layer."
            )
        _build(self.paraphraser, target, teacher.name)
        self.paraphraser.trainable = False
        if self.translator is None:
            code = self.paraphraser.code_channels(target.shape[-1])
            self.translator = convolutions(
                [source.shape[-1], code, code],
                normalized=True,
                dtype=self.paraphraser.dtype,
                name="translator",
            )
        projected(self.translator, source)
        super().bind(student=student, teacher=teacher)

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`."""
        ((name, _),) = self.pairs
        maps = self.paraphraser.encoder(
            at_least_float32(observed["signals"][0]["signal"])
        )
        theirs, ours = same_size(
            tf.stop_gradient(maps),
            self.translator(at_least_float32(student[name]), training=training),
        )
        values = tf.abs(_factors(theirs) - _factors(ours))
        return reduce_values(
            tf.reduce_mean(values, axis=-1),
            reduction="sum_over_batch_size",
            sample_weight=sample_weight,
        )

    def require_ready(self):
        """Raises if the paraphraser has never been trained."""
        if int(self.paraphraser.steps.numpy()) == 0:
            raise ValueError(
                f"The paraphraser of match '{self.name}' has not been trained."
                " First fit a Distiller with matches=[ParaphraserMatch(at, "
                "paraphraser=match.paraphraser)], or the stages of "
                "tfkd.methods.build('ft', ...)."
            )

    @property
    def how(self):
        """What is compared, and how narrow the code is."""
        return f"factors from {self.paraphraser.ratio:g} of the channels"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "paraphraser": keras.saving.serialize_keras_object(
                self.paraphraser
            ),
        }


def convolutions(widths, *, dtype, name, normalized=False):
    """3x3 convolutions with leaky ReLU of slope 0.1, size kept.

    Args:
        widths: Output channels of each.
        dtype: Of all layers.
        name: Of the model.
        normalized: Whether to normalise over the batch before each ReLU.

    Returns:
        A Sequential model, not built.
    """
    layers = []
    for width in widths:
        layers.append(
            keras.layers.Conv2D(
                width,
                3,
                padding="same",
                use_bias=not normalized,  # which would subtract it again
                data_format="channels_last",
                dtype=dtype,
            )
        )
        if normalized:
            layers.append(batch_normalization(dtype))
        layers.append(keras.layers.LeakyReLU(_SLOPE, dtype=dtype))
    return keras.Sequential(layers, name=name)


def _factors(code):
    """Normalised attention over positions, `[batch, positions]`."""
    return unit_vectors(flatten(attention_map(code)))


def _checked(paraphraser):
    if not isinstance(paraphraser, Paraphraser):
        raise ValueError(
            "Invalid value for argument `paraphraser`. Expected a "
            "tfkd.matches.Paraphraser. Received: "
            f"paraphraser={paraphraser!r}"
        )
    return paraphraser


def _require_one_place(pairs, at):
    if len(pairs) != 1:
        raise ValueError(
            "Invalid value for argument `at`. Expected one place; make a "
            f"match for each. Received: at={at!r}"
        )


def _map(outline, name):
    """The `Signal` of a layer that gives a map of known size."""
    signal = single_signal(outline, name)
    if len(signal.shape) != 4 or None in signal.shape[1:]:
        raise ValueError(
            "Factors need maps [batch, height, width, channels] of known "
            f"size. '{outline.name}' at {place_name(name)} gives "
            f"{signal.shape}. Choose a layer before the pooling."
        )
    return signal


def _build(paraphraser, signal, teacher_name):
    """Builds a paraphraser for a teacher's map, or checks that it fits."""
    if not paraphraser.built:
        paraphraser.build(signal.shape)
    width = paraphraser.encoder.input_shape[-1]
    if width != signal.shape[-1]:
        raise ValueError(
            f"The paraphraser was built for maps of {width} channels, teacher "
            f"'{teacher_name}' gives {signal.shape[-1]}. Make another."
        )
