"""VariationalMatch: how well the student's features predict the teacher's."""

import math

import keras
import tensorflow as tf

from tfkd.arguments import check_positive
from tfkd.losses.attention_transfer import same_size
from tfkd.matches.base import hide_padding, reduce_values
from tfkd.matches.match import PairedMatch, place_name, single_signal
from tfkd.matches.projectors import projected
from tfkd.precision import at_least_float32

# No variance falls below it, so that none can make the value infinite.
_SMALLEST_VARIANCE = 1e-5


@keras.saving.register_keras_serializable("tfkd")
class VariationalMatch(PairedMatch):
    """Trains the student's features to predict the teacher's, as a Gaussian.

    Formula: `1/2 ((mu(S) - T)^2 / s^2 + log s^2)`, averaged over all entries
    of a pair and summed over the pairs: the negative logarithm of a Gaussian
    density of the teacher's signal, less the constant `1/2 log 2 pi`. It can
    be negative.

    The mean mu is a trained network of three 1x1 convolutions without bias,
    with ReLU between (for vectors and sequences: dense layers), as wide as
    the teacher's signal. The variance `s^2 = softplus(rho) + 1e-5` is trained
    too, one for each channel of the teacher, the same for all examples and
    positions: so channels that the student cannot predict come to count less.

    Maps of two sizes are brought to the smaller first, as by
    `tfkd.losses.AttentionTransfer`.

    Args:
        at: As of `Match`; signals `[batch, ..., channels]`.
        variance: Of each channel before training, in squared feature units.
            > 1e-5.
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if two signals
            have no positions in common.

    Example:

    >>> match = tfkd.VariationalMatch(["stage1", "stage2"])
    >>> match.where
    'stage1, stage2'

    Reference: Ahn et al. 2019, equations 4 to 6.
    """

    def __init__(self, at, *, variance=5.0, weight=1.0, name=None):
        super().__init__(at, weight=weight, name=name)
        self.variance = check_positive(variance, "variance")
        if self.variance <= _SMALLEST_VARIANCE:
            raise ValueError(
                "Invalid value for argument `variance`. Expected a number > "
                f"{_SMALLEST_VARIANCE}. Received: variance={variance!r}"
            )
        self.regressors = []
        self._rhos = []

    @property
    def variances(self):
        """The trained variances, for each pair `[teacher's channels]`."""
        return [
            tf.nn.softplus(tf.convert_to_tensor(rho)) + _SMALLEST_VARIANCE
            for rho in self._rhos
        ]

    def bind(self, *, student, teacher):
        """As `BaseMatch.bind`; builds the regressors and variances."""
        places = [
            (single_signal(student, ours), single_signal(teacher, theirs))
            for ours, theirs in self.pairs
        ]
        for pair, (source, target) in zip(self.pairs, places, strict=True):
            _require_common_positions(pair, student, teacher, source, target)
        if not self.regressors:
            for index, (source, target) in enumerate(places):
                self._add(index, source, target)
        for regressor, (source, target) in zip(
            self.regressors, places, strict=True
        ):
            width = projected(regressor, source).shape[-1]
            if width != target.shape[-1]:
                raise ValueError(
                    f"Match '{self.name}' was built for a teacher with "
                    f"{width} channels, '{teacher.name}' has "
                    f"{target.shape[-1]}. Make another match."
                )
        super().bind(student=student, teacher=teacher)

    def _add(self, index, source, target):
        """The regressor and the variances of one pair."""
        width = target.shape[-1]
        dtype = "float64" if source.dtype == "float64" else "float32"
        # On the last axis a dense layer is a 1x1 convolution.
        regressor = keras.Sequential(
            [
                keras.layers.Dense(
                    width, activation=activation, use_bias=False, dtype=dtype
                )
                for activation in ("relu", "relu", None)
            ],
            name=f"regressor{index}",
        )
        self.regressors.append(regressor)
        start = math.log(math.expm1(self.variance - _SMALLEST_VARIANCE))
        self._rhos.append(
            self.add_weight(
                shape=(width,),
                initializer=keras.initializers.Constant(start),
                dtype=dtype,
                name=f"rho{index}",
            )
        )

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`: the sum over the pairs."""
        total = 0.0
        for (name, _), y_true, regressor, variance in zip(
            self.pairs,
            observed["signals"],
            self.regressors,
            self.variances,
            strict=True,
        ):
            y_true = at_least_float32(y_true["signal"])
            source = at_least_float32(student[name])
            mask = getattr(source, "_keras_mask", None)
            if source.shape.rank == 4:
                y_true, source = same_size(y_true, source)
            # Zeros predict zeros. Keras warns of a mask that a layer drops.
            source = tf.identity(hide_padding(source, mask))
            y_true = hide_padding(y_true, mask)
            mean = regressor(source, training=training)
            values = 0.5 * (
                tf.square(mean - y_true) / variance + tf.math.log(variance)
            )
            total += reduce_values(
                tf.reduce_mean(values, axis=-1),
                reduction="sum_over_batch_size",
                sample_weight=sample_weight,
                mask=mask,
            )
        return total

    @property
    def how(self):
        """What is done, and from which variance."""
        return f"Gaussian prediction, variance from {self.variance:g}"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {**super().get_config(), "variance": self.variance}


def _require_common_positions(pair, student, teacher, source, target):
    """Raises unless signals agree in all but channels, or are two maps."""
    ours, theirs = source.shape, target.shape
    known = None not in (*ours[1:], *theirs[1:])
    maps = len(ours) == len(theirs) == 4 and known
    if (ours[1:-1] == theirs[1:-1] and len(ours) == len(theirs) > 1) or maps:
        return
    raise ValueError(
        f"Student '{student.name}' at {place_name(pair[0])} has shape {ours}, "
        f"teacher '{teacher.name}' at {place_name(pair[1])} has shape "
        f"{theirs}. VariationalMatch compares signals that differ in their "
        "channels alone, or maps [batch, height, width, channels] of known "
        "sizes. Choose other layers."
    )
