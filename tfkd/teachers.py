"""Several teachers, seen as one: what they signal is averaged."""

import functools

import keras
import tensorflow as tf

from tfkd.precision import at_least_float32
from tfkd.trace import Signal, Trace, outline


class MeanTrace:
    """Traces of several networks over one batch, read as one `Trace`.

    Outputs, features and derivatives are the means of those of the networks,
    entry by entry, in float32 at least. Since differentiation is linear, a
    derivative is that of the mean.

    Args:
        traces: List of `Trace`s of the same inputs.

    Attributes:
        traces: As given.
        inputs, labels, index: Those of the traces.
        outputs: Mean of their outputs.
    """

    def __init__(self, traces):
        self.traces = traces
        self.inputs = traces[0].inputs
        self.labels = traces[0].labels
        self.index = traces[0].index
        self.outputs = self[None]

    def __getitem__(self, layer):
        """As of `Trace`: the mean."""
        return _mean([trace[layer] for trace in self.traces])

    def again(self, inputs, **kwargs):
        """As `Trace.again`, of all networks."""
        return MeanTrace([t.again(inputs, **kwargs) for t in self.traces])

    def input_gradient(self, fn):
        """As `Trace.input_gradient`: the mean over the networks.

        Args:
            fn: As of `Trace.input_gradient`; called with each trace.

        Returns:
            As `Trace.input_gradient`.
        """
        return _mean([trace.input_gradient(fn) for trace in self.traces])

    def input_derivative(self, fn, directions):
        """As `Trace.input_derivative`: the mean over the networks."""
        return _mean(
            [trace.input_derivative(fn, directions) for trace in self.traces]
        )


def trace_of(teachers, inputs, **kwargs):
    """One trace of one or several teachers.

    Args:
        teachers: List of built Keras models.
        inputs: As of `Trace`.
        **kwargs: As of `Trace`.

    Returns:
        A `Trace`; for several a `MeanTrace`.
    """
    traces = [Trace(teacher, inputs, **kwargs) for teacher in teachers]
    return traces[0] if len(traces) == 1 else MeanTrace(traces)


def ensemble(trace, layer, loss):
    """The signal under a loss that says how it takes several teachers.

    Args:
        trace: A `Trace` or `MeanTrace`.
        layer: As of `Trace.__getitem__`.
        loss: A loss. Its `ensemble`, if it has one, makes one signal
            `[batch, ...]` of those of several teachers, `[teachers, batch,
            ...]`. Else it is their mean.

    Returns:
        The signal.
    """
    signal = trace[layer]
    if isinstance(trace, Trace) or not hasattr(loss, "ensemble"):
        return signal
    combined = loss.ensemble(
        tf.stack([at_least_float32(t[layer]) for t in trace.traces])
    )
    mask = getattr(signal, "_keras_mask", None)
    if mask is not None:
        combined._keras_mask = mask
    return combined


def as_teachers(teacher):
    """The argument `teacher` as a list of models.

    Args:
        teacher: A built Keras model, a list of these, or None.

    Returns:
        A list, empty for None.

    Raises:
        ValueError: If it is an empty list or holds something else.
    """
    if teacher is None:
        return []
    several = isinstance(teacher, list | tuple)
    teachers = list(teacher) if several else [teacher]
    if not teachers or not all(isinstance(t, keras.Model) for t in teachers):
        raise ValueError(
            "Invalid value for argument `teacher`. Expected a built Keras "
            f"model, or a list of some. Received: teacher={teacher!r}"
        )
    return teachers


def outlines(teachers, layers):
    """The outlines of the teachers, whose signals can be averaged.

    Args:
        teachers: List of built Keras models.
        layers: As of `tfkd.trace.outline`.

    Returns:
        List of `Outline`s.

    Raises:
        ValueError: If one lacks a layer, or gives a signal of another shape
            than the first.
    """
    result = []
    for number, teacher in enumerate(teachers, start=1):
        try:
            result.append(outline(teacher, layers))
        except ValueError as error:
            if len(teachers) == 1:
                raise
            raise ValueError(
                f"Teacher {number} of {len(teachers)}: {error}"
            ) from error
        _require_same_signals(result[0], result[-1], number)
    return result


def _require_same_signals(first, other, number):
    """Raises unless two teachers' signals have the same shapes."""
    for layer, signal in first.signals.items():
        ours, theirs = _shapes(signal), _shapes(other.signals[layer])
        if ours != theirs:
            place = "outputs" if layer is None else f"layer '{layer}'"
            raise ValueError(
                "Signals of several teachers are averaged, so their shapes "
                f"must agree, but the {place} of teacher 1, '{first.name}', "
                f"and of teacher {number}, '{other.name}', have shapes "
                f"{ours} and {theirs}. Compare at another layer, or give "
                "teachers of one label space and one width."
            )


def _shapes(signals):
    """The shapes of a structure of `Signal`s."""
    if isinstance(signals, Signal):
        return signals.shape
    if isinstance(signals, dict):
        return {key: _shapes(value) for key, value in signals.items()}
    return [_shapes(signal) for signal in signals]


def _mean(structures):
    """The mean of equal structures of tensors; padding is that of all."""
    return keras.tree.map_structure(_mean_tensor, *structures)


def _mean_tensor(*tensors):
    mean = tf.add_n([at_least_float32(t) for t in tensors]) / len(tensors)
    masks = [getattr(tensor, "_keras_mask", None) for tensor in tensors]
    masks = [mask for mask in masks if mask is not None]
    if masks:  # True where any of them knows the position
        mean._keras_mask = functools.reduce(tf.logical_or, masks)
    return mean
