"""Which neurons of a network kept their role, by optimal transport."""

from typing import NamedTuple

import keras
import numpy as np

from tfkd.analysis.figures import (
    check_labelled,
    check_networks,
    panels,
    styles,
    tidy,
)
from tfkd.arguments import check_names
from tfkd.trace import Trace
from tfkd.transport import ipot

# Enough for plans as sharp as permutations, but where neurons are close.
_NUM_ITERS = 200
# Of two neurons' squared distance, relative to their mean square: below, they
# are one and the same.
_EQUAL = 1e-10


class TransportTrace(NamedTuple):
    """Transport between the neurons of two networks, layer by layer.

    Attributes:
        layers: Names of the layers, from the input to the output.
        traces: Share of each layer's neurons that kept their role, in [0, 1].
        partners: For each layer the neuron of the second network that takes
            the most of each neuron of the first, integers `[neurons]`.
        entropies: For each layer the mean entropy of a neuron's row of the
            plan that `tfkd.transport.ipot` finds, in units of log(neurons):
            0 where each has one partner, 1 where all are alike.
    """

    layers: tuple
    traces: np.ndarray
    partners: list
    entropies: np.ndarray


def transport_trace(model_a, model_b, data, layers):
    """Traces of the optimal transport plans between two networks' neurons.

    Formula: `tr P = sum_i P_ii` of the plan P, with masses 1 / d, of
    least cost `sum_ij P_ij |A_i - B_j|`; A_i is what neuron i does on all
    examples, and all positions of a map. Neurons that do the same (those that
    are never active, say) cannot be told apart, so mass that one gives to
    another's partner counts as kept.

    Args:
        model_a: A built Keras model, after fine-tuning, say.
        model_b: A built Keras model with the same layers, before it, say.
        data: A finite `tf.data.Dataset` of batches `(x, y)` or x; held out.
        layers: Names or paths of layers, in order of depth. The last axis of
            an output is that of its neurons.

    Returns:
        A `TransportTrace`.

    Raises:
        ValueError: If a layer does not exist or differs in width between the
            networks, or `data` is empty.

    Example:

    >>> transport_trace(model, model, data, ["stage1", "features"]).traces
    array([1., 1.])

    Reference: Li, Grandvalet, Flamary, Courty & Dou 2020, figure 2.
    """
    layers = check_names(layers, "layers")
    check_networks(model_a=model_a, model_b=model_b)
    products = [_Products() for _ in layers]
    for batch in data:
        x = batch[0] if isinstance(batch, tuple) else batch
        ours = Trace(model_a, x, layers=layers)
        theirs = Trace(model_b, x, layers=layers)
        for layer, product in zip(layers, products, strict=True):
            product.add(ours[layer], theirs[layer], layer)
    if products[0].own is None:
        raise ValueError("The data are empty.")
    traces, partners, entropies = zip(
        *(product.solved() for product in products), strict=True
    )
    return TransportTrace(
        tuple(layers), np.array(traces), list(partners), np.array(entropies)
    )


def plot_transport_trace(results, path):
    """Draws the traces over the layers, a line a pair of networks.

    Args:
        results: Dict, label -> `TransportTrace`, of the same layers.
        path: File of the picture, of a type that Matplotlib knows.

    Raises:
        ValueError: If there are no results, or their layers differ.
    """
    check_labelled(results, "results")
    layers = next(iter(results.values())).layers
    figure, (axes,) = panels(1, width=max(5.0, 0.45 * len(layers) + 3))
    for (label, result), (line, color) in zip(
        results.items(), styles(), strict=False
    ):
        if result.layers != layers:
            raise ValueError(
                f"The results are of different layers: {layers} and, of "
                f"'{label}', {result.layers}."
            )
        axes.plot(
            result.traces, line, marker="o", ms=4, color=color, label=label
        )
    axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
    axes.legend(frameon=False)
    tidy(
        axes,
        title="Neurons that kept their role",
        ylabel="trace of the transport plan",
        ylim=(-0.03, 1.03),
    )
    figure.savefig(path, dpi=140)


class TransportTraceLogger(keras.callbacks.Callback):
    """Logs, during training, which neurons keep the role they had.

    At the end of each epoch the logs, and so the history, receive
    "trace_LAYER" for each layer: see `transport_trace`.

    Args:
        reference: The network to compare with, which does not change: the
            teacher, or a copy of the student as it began.
        data: As of `transport_trace`.
        layers: As of `transport_trace`.

    Example:

    ```python
    start = keras.models.clone_model(student)
    start.set_weights(student.get_weights())
    logger = TransportTraceLogger(start, validation, ["features"])
    history = distiller.fit(train, epochs=20, callbacks=[logger])
    plot_curves({"student": history}, "trace.png", metrics=["trace_features"])
    ```

    Reference: Li, Grandvalet, Flamary, Courty & Dou 2020, figure 3.
    """

    def __init__(self, reference, data, layers):
        super().__init__()
        self.reference = reference
        self.data = data
        self.layers = check_names(layers, "layers")

    def on_epoch_end(self, epoch, logs=None):
        """Adds the traces to the logs."""
        student = getattr(self.model, "student", self.model)
        result = transport_trace(
            student, self.reference, self.data, self.layers
        )
        for layer, trace in zip(result.layers, result.traces, strict=True):
            logs[f"trace_{layer}"] = float(trace)


class _Products:
    """Products of the neurons of two networks, summed over examples.

    Attributes:
        own: Between neurons of the first, `[d, d]`; None before any example.
        other: Between neurons of the second, `[d, d]`.
        cross: Between the first's and the second's, `[d, d]`.
    """

    def __init__(self):
        self.own = self.other = self.cross = None

    def add(self, ours, theirs, layer):
        """Adds a batch of signals `[batch, ..., neurons]` of one layer."""
        x, y = (
            np.asarray(z, np.float64).reshape(-1, z.shape[-1])
            for z in (ours, theirs)
        )
        if x.shape != y.shape:
            raise ValueError(
                f"The networks differ at layer '{layer}': {ours.shape} and "
                f"{theirs.shape}. Neurons keep their role only where both "
                "have the same."
            )
        if self.own is None:
            self.own = self.other = self.cross = 0.0
        self.own = self.own + x.T @ x
        self.other = self.other + y.T @ y
        self.cross = self.cross + x.T @ y

    def solved(self):
        """The trace, the partners and the entropy of the plan."""
        squared = _squared(self.own, self.other, self.cross)
        distances = np.sqrt(squared)
        plan = ipot(distances, num_iters=_NUM_ITERS).plan.numpy()
        scale = np.diag(self.own).mean() + np.diag(self.other).mean()
        alike = np.eye(len(plan), dtype=bool)
        for product in (self.own, self.other):
            alike |= _squared(product, product, product) <= _EQUAL * scale
        rows = plan / np.maximum(plan.sum(axis=1, keepdims=True), 1e-300)
        logs = np.log(np.where(rows > 0, rows, 1.0))
        entropy = -np.sum(rows * logs, axis=1).mean()
        if len(plan) > 1:
            entropy /= np.log(len(plan))
        # Neurons that are close to each other, beside the rest, would share
        # partners in that plan even where a network is compared with itself.
        plan = ipot(distances, solver="exact").plan.numpy()
        return np.sum(plan[alike]), plan.argmax(axis=1), entropy


def _squared(own, other, cross):
    """Squared distances `[d, d]` from products; never negative."""
    squared = np.diag(own)[:, None] + np.diag(other)[None, :] - 2 * cross
    return np.maximum(squared, 0.0)
