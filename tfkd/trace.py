"""Trace: one forward pass of one network, seen from outside.

A match never calls a network. It reads what it compares from a `Trace`: the
outputs, the features of named layers, the gradient of a scalar with respect
to the input. `outline` makes the same pass on shapes only, so that faults of
a layer's name or width come to light before any training.
"""

import contextlib
import copy
import difflib
import functools
import re
import threading
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfkd.precision import at_least_float32

# In float16 the small entries of an input gradient fall below the smallest
# number. A power of two shifts them exactly; with this one the smallest is
# 2^-34, and gradients overflow above 64 only.
_FLOAT16_SCALE = 2.0**10

# Operations that pass a tensor on without changing what its values mean.
_TRANSPARENT_OPS = frozenset({"Identity", "IdentityN", "Cast", "Reshape"})

# Operations that make one value of many.
_REDUCTIONS = frozenset({"Mean", "Sum", "Prod", "Max", "Min", "EuclideanNorm"})

# In the names of operations that are constants for the tape that freezes.
_MARK = "tfkd_frozen"


class Trace:
    """One forward pass of `model` over `inputs`.

    Args:
        model: A built Keras model.
        inputs: A batch as `model` takes it, `[batch, ...]` or a structure of
            such tensors.
        layers: Names or paths ("stage2", "backbone/stage2") of the layers
            whose outputs are kept.
        training: Whether the pass is in training mode.
        labels: The labels of the batch, for those who ask for them.
        index: The examples' numbers in the dataset, `[batch]`, likewise.
        differentiable: Whether `input_gradient` will be called. The inputs
            must be floating then.
        freeze_statistics: Whether `input_gradient` takes the means and
            variances over the batch for constants: those of Keras'
            BatchNormalization and of `tf.nn.moments`. Gradients with respect
            to weights go through them all the same.

    Attributes:
        inputs: The batch, as tensors.
        outputs: What `model` returned, in its own dtype.
        labels: As given.
        index: As given.

    Raises:
        ValueError: If a layer does not exist or is ambiguous, is not called
            in the pass or called several times, or if `differentiable` is
            asked for inputs that are not floating.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> trace = Trace(model, tf.ones([4, 2]), differentiable=True)
    >>> trace.input_gradient(lambda trace: trace.outputs[:, 0]).shape
    TensorShape([4, 2])
    """

    def __init__(
        self,
        model,
        inputs,
        *,
        layers=(),
        training=False,
        labels=None,
        index=None,
        differentiable=False,
        freeze_statistics=False,
    ):
        self.labels = labels
        self.index = index
        self.inputs = keras.tree.map_structure(tf.convert_to_tensor, inputs)
        self._model = model
        self._features = {}
        self._tape = None
        self._scale = _FLOAT16_SCALE if _computes_in_float16(model) else 1.0
        if differentiable:
            _require_floating(model, self.inputs)
            self._tape = tf.GradientTape(
                persistent=True, watch_accessed_variables=False
            )
            frozen = self._tape if freeze_statistics else None
            with twice_differentiable(frozen), self._tape:
                self._tape.watch(self.inputs)
                self._run(model, layers, training)
        else:
            self._run(model, layers, training)

    def __getitem__(self, layer):
        """The output of a kept layer; of the whole model for None."""
        return self.outputs if layer is None else self._features[layer]

    def again(self, inputs, *, labels=None, differentiable=False):
        """An inference-mode trace of the same network over other inputs.

        Args:
            inputs: As of `Trace`.
            labels: As of `Trace`.
            differentiable: As of `Trace`.

        Returns:
            A `Trace` that keeps no layers.
        """
        return Trace(
            self._model, inputs, labels=labels, differentiable=differentiable
        )

    def with_outputs(self, fn):
        """The same pass of a network that returns something else.

        Args:
            fn: Function of this trace that returns the other outputs. Input
                gradients go through it.

        Returns:
            A `Trace` with the same features and other outputs.
        """
        other = copy.copy(self)
        with self._tape or contextlib.nullcontext():
            other.outputs = fn(self)
        return other

    def input_gradient(self, fn):
        """Gradient of one scalar per example with respect to the input.

        Examples must not mix in the pass (`training=False` with
        BatchNormalization), else each gradient also holds the effect of its
        input on the other examples' scalars.

        Args:
            fn: Function of this trace that returns `[batch]`, in any unit.

        Returns:
            Structure of the inputs' shapes, in the scalar's unit per input
            unit, at least float32. Zero where an input has no influence.
        """
        with self._tape:
            scalars = at_least_float32(fn(self)) * self._scale  # [batch]
        gradients = self._tape.gradient(
            scalars,
            self.inputs,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return keras.tree.map_structure(
            lambda gradient: at_least_float32(gradient) / self._scale,
            gradients,
        )

    def input_derivative(self, fn, directions):
        """Derivative of several scalars per example along an input direction.

        Costs two backward passes: it is the derivative, by the seeds, of the
        gradient that seeds of the scalars would give.

        Args:
            fn: Function of this trace that returns `[batch, scalars]`.
            directions: Structure of the inputs' shapes, in input units.

        Returns:
            `[batch, scalars]`, in the scalars' unit, at least float32.
        """
        with self._tape:
            scalars = at_least_float32(fn(self))
        seeds = tf.zeros_like(scalars)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(seeds)
            gradients = self._tape.gradient(
                scalars,
                self.inputs,
                output_gradients=seeds,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        return tape.gradient(
            keras.tree.flatten(gradients),
            seeds,
            output_gradients=keras.tree.flatten(directions),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    def _run(self, model, layers, training):
        found = {name: find_layer(model, name) for name in layers}
        with contextlib.ExitStack() as taps:
            calls = {
                name: taps.enter_context(_tap(layer))
                for name, layer in found.items()
            }
            self.outputs = model(self.inputs, training=training)
        for name, outputs in calls.items():
            if len(outputs) != 1:
                raise ValueError(
                    f"Layer '{name}' of '{model.name}' was called "
                    f"{len(outputs)} times in one forward pass; its output "
                    "can be compared only when it is called exactly once. (A "
                    "`call` that is a tf.function hides the layers in it.)"
                )
            self._features[name] = outputs[0]


class Signal(NamedTuple):
    """What is known of a tensor before there is data.

    Attributes:
        shape: Tuple with None for the batch and other unknown sizes.
        dtype: Its dtype's name.
        op: Type of the operation that computed its values, "Softmax" say.
    """

    shape: tuple
    dtype: str
    op: str


class Outline(NamedTuple):
    """What is known of a network before there is data.

    Attributes:
        name: The model's name.
        inputs: Structure of `tf.TensorSpec`.
        signals: Layer name -> structure of `Signal`; None -> the outputs.
        ops: Type of each kind of operation in the inference pass -> paths
            of the layers that have one, joined by commas; the model's name
            for one outside all layers.
        training_ops: Likewise, of the training pass.
        mixes_modes: Whether the training pass computes something else.
    """

    name: str
    inputs: Any
    signals: dict
    ops: dict
    training_ops: dict
    mixes_modes: bool


def outline(model, layers=()):
    """Traces a forward pass of `model` on shapes, running nothing.

    Args:
        model: A built Keras model.
        layers: As of `Trace`.

    Returns:
        An `Outline` with the signals of `layers` and of the outputs.

    Raises:
        ValueError: As `Trace`; also if `model` is not built.
    """
    inputs = input_specs(model)
    signals = {}

    def forward(inputs, training):
        trace = Trace(model, inputs, layers=layers, training=training)
        for name in (None, *layers):
            signals[name] = keras.tree.map_structure(_signal, trace[name])

    traced = tf.function(forward, autograph=False)
    with layer_scopes(model) as paths:
        training, inference = (
            traced.get_concrete_function(inputs, mode).graph.as_graph_def()
            for mode in (True, False)
        )
    model._clear_losses()  # those of the graph, which nobody can use
    return Outline(
        name=model.name,
        inputs=inputs,
        signals=signals,
        ops=_places(inference, paths, model.name),
        training_ops=_places(training, paths, model.name),
        mixes_modes=_nodes(training) != _nodes(inference),
    )


def mixing_layers(model):
    """The layers through which examples mix although statistics are frozen.

    Found are sums, means, extremes and products of the kind x^T y over the
    batch in the training pass that gradients go through, unless they are
    hidden in a loop or in a tf.function.

    Args:
        model: A built Keras model.

    Returns:
        List of the layers' paths; the model's name for what is outside all
        layers.

    Raises:
        ValueError: As `outline`.
    """
    outputs = []

    def forward(inputs):
        with twice_differentiable(_Marks()):
            outputs.extend(keras.tree.flatten(model(inputs, training=True)))

    with layer_scopes(model) as paths:
        traced = tf.function(forward, autograph=False)
        traced.get_concrete_function(input_specs(model))
    model._clear_losses()
    waiting, seen, places = outputs, set(), []
    while waiting:
        op = waiting.pop().op
        if op.name in seen or op.type == "StopGradient" or _MARK in op.name:
            continue
        seen.add(op.name)
        waiting += [tensor for tensor in op.inputs if tensor.dtype.is_floating]
        if _reduces_the_batch(op):
            scopes = re.findall(r"tfkd_layer\d+", op.name)
            places.append(paths[scopes[-1]] if scopes else model.name)
    return list(dict.fromkeys(reversed(places)))


def layer_names(model):
    """The names of all layers of `model`, at any depth.

    Args:
        model: As of `find_layer`.

    Returns:
        List of strings, outermost layers first, without repetition.
    """
    return list(dict.fromkeys(layer.name for _, layer in layer_paths(model)))


def find_layer(model, name):
    """The one layer of `model`, at any depth, with this name or path.

    Args:
        model: A Keras model: Functional, Sequential, nested or subclassed.
        name: A path from the model down ("backbone/stage2"), or the end of
            one ("stage2") where it fits only one layer.

    Returns:
        The layer.

    Raises:
        ValueError: If no layer has the name (with the nearest names), or
            several have it (with their paths).
    """
    paths = layer_paths(model)
    fits = {
        id(layer): (path, layer)
        for path, layer in paths
        if path == name or path.endswith("/" + name)
    }
    exact = {id(layer): layer for path, layer in paths if path == name}
    if len(exact) == 1:
        return next(iter(exact.values()))
    if len(fits) == 1:
        return next(iter(fits.values()))[1]
    if fits:
        listed = ", ".join(repr(path) for path, _ in fits.values())
        raise ValueError(
            f"The name '{name}' fits several layers of '{model.name}': "
            f"{listed}. Give the whole path."
        )
    names = list(dict.fromkeys(path for path, _ in paths))
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    raise ValueError(
        f"Model '{model.name}' has no layer '{name}'. "
        f"Nearest names: {nearest or names[:8]}."
    )


def classifier(model):
    """The path of the layer that makes a network's outputs.

    Args:
        model: As of `find_layer`.

    Returns:
        The path of the last layer with a kernel: last in the order of calls
        in a Functional or Sequential model, of creation in others. None if
        no layer has one.
    """
    for layer in reversed(_sublayers(model)):
        below = classifier(layer)
        if below:
            return f"{layer.name}/{below}"
        if own_kernels(layer):
            return layer.name
    return None


def own_kernels(layer):
    """The kernels of a layer itself: no biases, no scales of norms.

    Args:
        layer: A built Keras layer.

    Returns:
        List of its variables whose names end in "kernel".
    """
    return [
        variable
        for variable in layer._trainable_variables
        if variable.name.endswith("kernel")
    ]


class _Stand:
    """Who stands in for functions of TensorFlow and Keras, over all threads."""

    lock = threading.Lock()
    depth = 0
    originals: ClassVar = {}  # (owner, name) -> function
    frozen = threading.local()  # .tape: for which statistics are constants


@contextlib.contextmanager
def twice_differentiable(frozen=None):
    """Makes layers traced inside exact, and cheaper, at second order.

    `tf.nn.moments`, to which Keras' batch, layer and group normalisation
    come down, takes the variance around a mean whose gradient is stopped.
    The first derivative does not notice, since deviations sum to zero; the
    second does, by up to the size of the gradient itself. Inside this
    context it is a function that can be differentiated twice, for the layers
    of any model.

    ReLU, its kin and max pooling are linear between their kinks, so their
    second derivative is zero. TensorFlow sends a tensor of zeros back
    through the whole forward pass all the same, at the price of a backward
    pass. Inside this context it sends nothing.

    Args:
        frozen: A tape that shall not see how statistics over the batch (not
            those within an example) come about, or None.
    """
    with _Stand.lock:
        if _Stand.depth == 0:
            for (owner, name), stand_in in _STAND_INS.items():
                _Stand.originals[owner, name] = getattr(owner, name)
                setattr(owner, name, stand_in)
        _Stand.depth += 1
    outer = getattr(_Stand.frozen, "tape", None)
    _Stand.frozen.tape = frozen
    try:
        yield
    finally:
        _Stand.frozen.tape = outer
        with _Stand.lock:
            _Stand.depth -= 1
            if _Stand.depth == 0:
                for (owner, name), original in _Stand.originals.items():
                    setattr(owner, name, original)


@contextlib.contextmanager
def _constants():
    """What comes about inside is constant for the tape that freezes."""
    tape = getattr(_Stand.frozen, "tape", None)
    if tape is None:
        yield
        return
    _Stand.frozen.tape = None  # it cannot be stopped twice
    try:
        with tape.stop_recording():
            yield
    finally:
        _Stand.frozen.tape = tape


def _batch_moments(layer, inputs, mask):
    """As BatchNormalization's; over replicas or a mask, past `tf.nn`, too."""
    original = _Stand.originals[keras.layers.BatchNormalization, "_moments"]
    with _constants():
        return original(layer, inputs, mask)


def _moments(x, axes, shift=None, keepdims=False, name=None):
    """As `tf.nn.moments`, differentiable twice."""
    x = tf.convert_to_tensor(x)
    axes = np.ravel(tf.get_static_value(tf.convert_to_tensor(axes))).tolist()
    axes = [axis % x.shape.rank for axis in axes]
    with _constants() if 0 in axes else contextlib.nullcontext():
        wide = at_least_float32(x)
        mean = tf.reduce_mean(wide, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(wide - mean), axes, keepdims)
        if not keepdims:
            mean = tf.squeeze(mean, axes)
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def _linear_between_kinks(name):
    """As `tf.nn`'s function of this name, without second derivative."""

    def stand_in(*args, **kwargs):
        original = _Stand.originals[tf.nn, name]
        if not args:  # The input has another name in each of them.
            return original(**kwargs)
        # tf.vectorized_map forgets that a gradient is the user's own.
        if "loop_body" in tf.get_current_name_scope():
            return original(*args, **kwargs)
        x = args[0]
        if isinstance(x, tf.Variable | keras.Variable):
            x = tf.convert_to_tensor(x)  # else its gradient is asked for
        if tf.is_tensor(x) and not x.dtype.is_floating:
            return original(*args, **kwargs)

        @tf.custom_gradient
        def function(x):
            # The backward pass depends on its own copy of the input, behind
            # which nobody differentiates.
            x = tf.stop_gradient(x)
            with tf.GradientTape(
                persistent=True, watch_accessed_variables=False
            ) as tape:
                tape.watch(x)
                y = original(x, *args[1:], **kwargs)
            return y, lambda upstream: tape.gradient(y, x, upstream)

        return function(x)

    return stand_in


_STAND_INS = {
    (tf.nn, "moments"): _moments,
    **{
        (tf.nn, name): _linear_between_kinks(name)
        for name in ("relu", "relu6", "leaky_relu", "max_pool")
    },
}
# Not public: a Keras without it has what it computes found as mixing examples.
if hasattr(keras.layers.BatchNormalization, "_moments"):
    _STAND_INS[keras.layers.BatchNormalization, "_moments"] = _batch_moments


class _Tap:
    """Stands in for a layer's `call` and shows its outputs to who listens.

    The threads of a mirrored strategy trace the same layer in turns, so each
    thread has its own list and the last to leave restores the layer.
    """

    lock = threading.Lock()

    def __init__(self, layer):
        self.layer = layer
        self.call = layer.call
        self.replaced = layer.__dict__.get("call")
        self.listeners = {}

    def __call__(self, *args, **kwargs):
        outputs = self.call(*args, **kwargs)
        for heard in self.listeners.get(threading.get_ident(), ()):
            heard.append(outputs)
        return outputs


@contextlib.contextmanager
def _tap(layer):
    """Collects the outputs of `layer` while its `call` runs.

    Yields:
        A list that grows by one entry a call.
    """
    heard, thread = [], threading.get_ident()
    with _Tap.lock:
        tap = layer.__dict__.get("call")
        if not isinstance(tap, _Tap):
            tap = _Tap(layer)
            # Past __setattr__, which would track it as the layer's own.
            layer.__dict__["call"] = tap
        tap.listeners.setdefault(thread, []).append(heard)
    try:
        yield heard
    finally:
        with _Tap.lock:
            mine = tap.listeners[thread]
            mine[:] = [other for other in mine if other is not heard]
            if not mine:
                del tap.listeners[thread]
            if not tap.listeners:
                del layer.__dict__["call"]
                if tap.replaced is not None:
                    layer.__dict__["call"] = tap.replaced


@contextlib.contextmanager
def layer_scopes(model):
    """Lets each layer of `model` make its operations in a scope of its own.

    Keras' own scopes tell no layers apart: they are counted up where one is
    called again, and `conv_1` may be a layer's name, too.

    Yields:
        Dict, name of the scope -> path of the layer.
    """
    layers = {}
    for path, layer in layer_paths(model):
        layers.setdefault(id(layer), (path, layer))
    paths, replaced = {}, []
    for index, (path, layer) in enumerate(layers.values()):
        scope = f"tfkd_layer{index}"
        paths[scope] = path
        replaced.append((layer, layer.__dict__.get("call")))
        # Past __setattr__, which would track it as the layer's own.
        layer.__dict__["call"] = _scoped(layer.call, scope)
    try:
        yield paths
    finally:
        for layer, call in replaced:
            del layer.__dict__["call"]
            if call is not None:
                layer.__dict__["call"] = call


def _scoped(call, scope):
    @functools.wraps(call)
    def scoped(*args, **kwargs):
        with tf.name_scope(scope):
            return call(*args, **kwargs)

    return scoped


def _places(graph_def, paths, model):
    """As `Outline.ops`, of a graph that was made inside `layer_scopes`."""
    functions = {f.signature.name: f for f in graph_def.library.function}
    places, seen = {}, set()

    def visit(nodes, place):
        for node in nodes:
            scopes = re.findall(r"tfkd_layer\d+", node.name)
            inner = paths[scopes[-1]] if scopes else place
            names = places.setdefault(node.op, [])
            if inner not in names:
                names.append(inner)
            for called in _called(node):
                if called in functions and (called, inner) not in seen:
                    seen.add((called, inner))
                    visit(functions[called].node_def, inner)

    visit(graph_def.node, model)
    return {op: ", ".join(names) for op, names in places.items()}


class _Marks:
    """Stands in for a tape, to show what it would be stopped for."""

    def stop_recording(self):
        """As of `tf.GradientTape`."""
        return tf.name_scope(_MARK)


def _reduces_the_batch(op):
    """Whether an operation makes one of all examples."""
    if op.type.startswith("FusedBatchNorm"):
        return op.get_attr("is_training")
    if op.type == "MatMul":
        return op.get_attr("transpose_a") and op.inputs[0].shape[0] is None
    if op.type not in _REDUCTIONS or not op.inputs[0].shape.rank:
        return False
    axes = tf.get_static_value(op.inputs[1])
    shape = op.inputs[0].shape
    # That of the batch is unknown.
    return (
        axes is not None
        and shape[0] is None
        and any(axis % shape.rank == 0 for axis in np.ravel(axes))
    )


def _called(node):
    """Names of the functions that an operation calls."""
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            if function.name:
                yield function.name


def layer_paths(model):
    """All layers of `model`, at any depth, outermost first.

    Args:
        model: As of `find_layer`.

    Returns:
        List of (path, layer); a layer that is held twice has two paths.
    """
    paths, level = [], [("", model)]
    while level:
        below = []
        for prefix, parent in level:
            for layer in _sublayers(parent):
                path = f"{prefix}{layer.name}"
                paths.append((path, layer))
                below.append((path + "/", layer))
        level = below
    return paths


def _sublayers(layer):
    """The layers held by `layer` itself."""
    if isinstance(layer, keras.Sequential):
        return layer.layers
    return layer._flatten_layers(include_self=False, recursive=False)


def input_specs(model):
    """Structure of `tf.TensorSpec` that `model` takes, of any batch size."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Expected a Keras model. "
            f"Received: {model!r} of type {type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, so the shapes of its layers "
            "are unknown. Call it once on a batch, or give it a keras.Input."
        )
    if _is_functional(model):
        return keras.tree.map_structure(
            lambda x: _any_batch(x.shape, x.dtype), model._inputs_struct
        )
    if isinstance(model, keras.Sequential):
        return _any_batch(model.inputs[0].shape, model.inputs[0].dtype)
    shapes = model.get_build_config() or {}
    shape = shapes.get("input_shape")
    if shape is None:
        raise ValueError(
            f"The input of model '{model.name}' is unknown: its call takes "
            "several arguments or it has not been called. Give it one input "
            "(a tensor, list or dict) and call it once on a batch."
        )
    return keras.tree.map_shape_structure(
        lambda s: _any_batch(s, model.input_dtype), shape
    )


def _any_batch(shape, dtype):
    dtype = keras.backend.standardize_dtype(dtype)
    return tf.TensorSpec([None, *shape[1:]], tf.as_dtype(dtype))


def _signal(tensor):
    """What is known of a tensor of a graph."""
    op = tensor.op
    while op.type in _TRANSPARENT_OPS:
        op = op.inputs[0].op
    return Signal(tuple(tensor.shape), tensor.dtype.name, op.type)


def _nodes(graph_def):
    """The operations of a graph and of the functions that it calls."""
    nodes = [*graph_def.node]
    for function in graph_def.library.function:
        nodes.extend(function.node_def)
    return nodes


def _is_functional(model):
    return hasattr(model, "_inputs_struct")


def _computes_in_float16(model):
    return any(
        layer.compute_dtype == "float16" for layer in model._flatten_layers()
    )


def _require_floating(model, inputs):
    for tensor in keras.tree.flatten(inputs):
        if not tensor.dtype.is_floating:
            raise ValueError(
                f"The gradient with respect to the input of '{model.name}' "
                f"needs a floating input. Received: dtype={tensor.dtype.name}"
                ". Cast the data to float32 in the input pipeline."
            )
