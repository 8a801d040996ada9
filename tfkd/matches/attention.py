"""AttentionJacobianMatch: where a small change of the input draws attention."""

import keras
import tensorflow as tf

from tfkd.losses import NormalizedSquaredError
from tfkd.losses.attention_transfer import attention_map, same_size
from tfkd.losses.distribution import flatten
from tfkd.matches.base import compare
from tfkd.matches.jacobian import InputGradientMatch, input_rows
from tfkd.matches.match import as_loss, as_pairs, describe_loss
from tfkd.precision import at_least_float32
from tfkd.trace import Signal


@keras.saving.register_keras_serializable("tfkd")
class AttentionJacobianMatch(InputGradientMatch):
    """Matches the Jacobians of attention maps at their strongest place.

    Formula: `| n(df_S/dx) - n(df_T/dx) |^2`, with f the largest value of the
    teacher's attention map `A = sum_c |Z_c|^2` after average pooling, and
    the value of the student's pooled map at the same place; summed over the
    pairs of layers.

    A whole map has too many entries to differentiate each; the whole output
    of a deep network passes on too little of a second derivative. Shallow
    maps serve best.

    Args:
        at: As of `Match`: layers that give `[batch, height, width,
            channels]` of known size. Maps of two sizes are brought to the
            smaller, as by `tfkd.losses.AttentionTransfer`.
        window: Size of the pooling window, of stride 1. A number n: the
            map's size divided by n, rounded, at least 1; "full": the whole
            map; None: no pooling.
        loss: As of `Match`; receives `[batch, inputs]`, in squared feature
            units per input unit. Default: `NormalizedSquaredError`.
        batch_statistics: As of `JacobianMatch`; None: "frozen".
        weight: As of `BaseMatch`.
        name: Name of the term and of its metric.

    Raises:
        ValueError: If an argument is invalid; when bound, if a layer gives
            no map of known size, or as of `JacobianMatch`.

    Reference: Srinivas & Fleuret 2018, section 5.2 and equation 10.
    """

    def __init__(self, at, *, window=5, loss=None, **kwargs):
        super().__init__(**kwargs)
        self.pairs = as_pairs(at)
        self.loss = as_loss(NormalizedSquaredError() if loss is None else loss)
        whole = isinstance(window, int) and not isinstance(window, bool)
        if not (window in (None, "full") or (whole and window >= 1)):
            raise ValueError(
                "Invalid value for argument `window`. Expected an integer "
                f'>= 1, "full" or None. Received: window={window!r}'
            )
        self.window = window

    @property
    def student_layers(self):
        """Names of the student's layers that are read."""
        return [name for name, _ in self.pairs if name is not None]

    @property
    def teacher_layers(self):
        """Names of the teacher's layers that are read."""
        return [name for _, name in self.pairs if name is not None]

    def bind(self, *, student, teacher):
        """As `InputGradientMatch.bind`."""
        self._sizes = [
            [
                min(pair)
                for pair in zip(
                    _map_size(student, ours),
                    _map_size(teacher, theirs),
                    strict=True,
                )
            ]
            for ours, theirs in self.pairs
        ]
        super().bind(student=student, teacher=teacher)

    def observe(self, teacher, *, training=False):
        """For each pair the place, `[batch, places]`, and the gradient."""
        observed = []
        for (_, name), size in zip(self.pairs, self._sizes, strict=True):
            pooled = self._pooled(teacher[name], size)
            place = tf.one_hot(
                tf.argmax(pooled, axis=-1), pooled.shape[-1], dtype=pooled.dtype
            )
            observed.append((place, self._rows(teacher, name, size, place)))
        return tuple(observed)

    def observation(self):
        """As `BaseMatch.observation`: the layers, sizes and window."""
        if not self.built:
            raise ValueError(
                f"Match '{self.name}' pools to the smaller of two maps, so it "
                "must know the student. Construct the Distiller first."
            )
        return [
            "attention_jacobian",
            [name for _, name in self.pairs],
            self._sizes,
            self.window,
        ]

    def value(self, student, observed, *, sample_weight=None, training=False):
        """As `BaseMatch.value`: the sum over the pairs."""
        total = 0.0
        for (name, _), size, (place, y_true) in zip(
            self.pairs, self._sizes, observed, strict=True
        ):
            total += compare(
                self.loss,
                y_true,
                self._rows(student, name, size, place),
                sample_weight=sample_weight,
            )
        return total

    def _rows(self, trace, name, size, place):
        """`[batch, inputs]`: the gradient of the pooled map at a place."""
        return input_rows(
            trace,
            lambda trace: tf.reduce_sum(
                place * self._pooled(trace[name], size), axis=-1
            ),
        )

    def _pooled(self, feature, size):
        """The pooled attention map, `[batch, places]`."""
        maps = attention_map(at_least_float32(feature))
        maps, _ = same_size(maps, tf.zeros([1, *size], maps.dtype))
        window = [_window(length, self.window) for length in size]
        pooled = tf.nn.avg_pool2d(maps[..., None], window, 1, "VALID")
        return flatten(pooled)

    @property
    def where(self):
        """The layers."""
        return "input gradient of attention at " + ", ".join(
            ours if ours == theirs else f"{ours} ~ {theirs}"
            for ours, theirs in self.pairs
        )

    @property
    def how(self):
        """The loss, the window and the statistics."""
        return (
            f"{describe_loss(self.loss)}, window {self.window}, "
            f"{self.batch_statistics} statistics"
        )

    @property
    def passes(self):
        """Backward passes to the input, and a forward pass if one is added."""
        count = len(self.pairs)
        extra = "1 forward, " if self.student_pass == "inference" else ""
        return f"student {extra}{count} backward; teacher {count} backward"

    def get_config(self):
        """As `BaseMatch.get_config`."""
        return {
            **super().get_config(),
            "at": [list(pair) for pair in self.pairs],
            "window": self.window,
            "loss": keras.saving.serialize_keras_object(self.loss),
        }


def _map_size(outline, name):
    """Height and width of a layer's map."""
    signal = outline.signals[name]
    shape = signal.shape if isinstance(signal, Signal) else ()
    if len(shape) != 4 or None in shape[1:3]:
        raise ValueError(
            "AttentionJacobianMatch needs maps [batch, height, width, "
            f"channels] of known size. Received: '{outline.name}' at "
            f"'{name}' gives {signal}"
        )
    return shape[1:3]


def _window(length, window):
    """Entries of a pooling window over `length` entries."""
    if window is None:
        return 1
    return length if window == "full" else max(1, round(length / window))
