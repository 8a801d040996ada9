"""Projectors: trained layers that carry one network's signal to the other's.

Romero et al. 2015 put a regressor on the student's side; Lohit & Jones 2020
an embedding on the teacher's.
"""

import keras
import tensorflow as tf

from tfkd.trace import Signal

_CONVOLUTIONS = {
    3: (keras.layers.Conv1D, keras.layers.Conv1DTranspose),
    4: (keras.layers.Conv2D, keras.layers.Conv2DTranspose),
    5: (keras.layers.Conv3D, keras.layers.Conv3DTranspose),
}


def make_projector(projector, source, target, argument):
    """A built layer from a signal to the shape of another.

    Args:
        projector: None, "dense", "conv" or a Keras layer.
        source: `Signal` that goes in.
        target: `Signal` whose shape "dense" and "conv" are to reach.
        argument: The argument's name, for errors.

    Returns:
        The layer, built, or None.

    Raises:
        ValueError: If `projector` is anything else or cannot fit.
    """
    if projector is None:
        return None
    if isinstance(projector, str):
        makers = {"dense": _dense, "conv": fitted_convolution}
        if projector not in makers:
            raise ValueError(
                f"Invalid value for argument `{argument}`. Expected one of "
                f"{sorted(makers)} or a Keras layer. "
                f"Received: {argument}={projector!r}"
            )
        projector = makers[projector](
            source.shape, target.shape, argument, dtype=_dtype(source)
        )
    if not isinstance(projector, keras.layers.Layer):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected 'dense', "
            f"'conv' or a Keras layer. Received: {argument}={projector!r}"
        )
    projected(projector, source)
    return projector


def projected(projector, signal):
    """The signal behind a projector, which is built if it is not yet."""
    if projector is None:
        return signal
    out = projector(keras.KerasTensor(signal.shape, dtype=_dtype(signal)))
    return Signal(tuple(out.shape), out.dtype, type(projector).__name__)


def default_dtype():
    """Of what is trained where no signal tells: float32 at least."""
    return "float64" if keras.config.floatx() == "float64" else "float32"


def _dtype(signal):
    return "float64" if signal.dtype == "float64" else "float32"


def _dense(source, target, argument, dtype):
    if source[1:-1] != target[1:-1]:
        raise ValueError(
            f"{argument}='dense' acts on the last axis and cannot bring "
            f"{source} to {target}. Use '{argument}=\"conv\"' for maps, or a "
            "layer of your own."
        )
    return keras.layers.Dense(target[-1], dtype=dtype)


def fitted_convolution(source, target, argument="projector", dtype="float32"):
    """A convolution from one shape to the size and width of another.

    Equal sizes: 1x1. Larger by a whole factor: a 3-wide window with that
    stride. Smaller by one: the transpose. Any other larger size: a window
    that leaves just the target's size. Vectors: a dense layer.

    Args:
        source: Shape that goes in, `(None, ..., channels)`.
        target: Shape that comes out, of equal rank.
        argument: The argument's name, for errors.
        dtype: Of the layer.

    Returns:
        A layer without activation, not built.

    Raises:
        ValueError: If no such convolution exists.
    """
    if len(source) != len(target) or len(source) not in (2, *_CONVOLUTIONS):
        raise ValueError(
            f"{argument}='conv' cannot bring {source} to {target}. Pass a "
            "layer of your own."
        )
    if len(source) == 2:
        return _dense(source, target, argument, dtype)
    forward, transpose = _CONVOLUTIONS[len(source)]
    sizes = list(zip(source[1:-1], target[1:-1], strict=True))
    options = {"filters": target[-1], "dtype": dtype, "use_bias": False}
    if all(ours == theirs for ours, theirs in sizes):
        return forward(kernel_size=1, **options)
    if any(None in size for size in sizes):
        raise ValueError(
            f"{argument}='conv' needs known sizes to bring {source} to "
            f"{target}. Give the networks a fixed input size, or pass a "
            "layer of your own."
        )
    if all(ours % theirs == 0 for ours, theirs in sizes):
        strides = [ours // theirs for ours, theirs in sizes]
        return forward(
            kernel_size=3, strides=strides, padding="same", **options
        )
    if all(theirs % ours == 0 for ours, theirs in sizes):
        strides = [theirs // ours for ours, theirs in sizes]
        return transpose(
            kernel_size=[2 * stride for stride in strides],
            strides=strides,
            padding="same",
            **options,
        )
    if all(ours >= theirs for ours, theirs in sizes):
        windows = [1 + ours - theirs for ours, theirs in sizes]
        return forward(kernel_size=windows, padding="valid", **options)
    raise ValueError(
        f"{argument}='conv' cannot bring {source} to {target}: the larger "
        "size is no multiple of the smaller. Pass a layer of your own."
    )


def batch_normalization(dtype):
    """Batch normalisation of a projector, momentum 0.9.

    Made in the scope of a strategy of several replicas, it takes its
    statistics over the batches of all.

    Args:
        dtype: Of the layer.

    Returns:
        A layer, not built.
    """
    strategy = tf.distribute.get_strategy()
    return keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=1e-5,
        synchronized=strategy.num_replicas_in_sync > 1,
        dtype=dtype,
    )
