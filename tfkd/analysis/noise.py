"""Accuracy under Gaussian noise on the inputs."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfkd.analysis.figures import check_labelled, panels, styles, tidy
from tfkd.arguments import check_count, check_seed

# Noise is drawn for this many examples at a time, whatever the data's batches
# are, so that an example's noise is a function of its position. Another
# number is other noise.
_BLOCK = 64


class NoiseRobustness(NamedTuple):
    """Accuracies of one model under noise of several levels.

    Attributes:
        stddevs: Standard deviations of the noise, `[levels]`, in input units.
        accuracies: Shares of right answers in [0, 1], `[levels, draws]`.
    """

    stddevs: np.ndarray
    accuracies: np.ndarray

    @property
    def mean(self):
        """Mean accuracy over the draws, `[levels]`, in [0, 1]."""
        return self.accuracies.mean(axis=1)

    @property
    def std(self):
        """Sample standard deviation over the draws, `[levels]`.

        Of accuracies in [0, 1]; NaN where there is one draw only.
        """
        if self.accuracies.shape[1] == 1:
            return np.full(len(self.stddevs), np.nan)
        return self.accuracies.std(axis=1, ddof=1)


def noise_robustness(
    model, data, *, stddevs=(0.0, 0.1, 0.2, 0.3, 0.4), draws=10, seed=0
):
    """Measures a model's accuracy under Gaussian noise on its inputs.

    Formula: the share of examples with `argmax model(x + stddev * z) = y`,
    z standard normal, independent in every entry of every input. The noise is
    added to inputs as `data` yields them, so its unit is theirs: with
    standardised images, the standard deviation of the training pixels. The
    sum is not clipped.

    z is a function of the seed, the index of the level, the draw and the
    example's position in `data`. Models compared on the same data thus meet
    the same noise, in whatever batches. `data` is read once.

    Args:
        model: A built Keras model; one input, and one output `[batch,
            classes]` of logits or probabilities. It runs in inference mode
            on batches of up to 64 examples.
        data: A `tf.data.Dataset` of batches `(x, y)`, or one such pair of
            arrays. x is `[batch, ...]`, floating; y holds integers `[batch]`
            or `[batch, 1]`, or is one-hot `[batch, classes]`. For several
            models to meet the same noise, it must keep its order.
        stddevs: Standard deviations of the noise, `[levels]`, in input
            units. >= 0; 0 is evaluated once and repeated for all draws.
        draws: Number of noises for each example and level. >= 1.
        seed: Of the noise, an integer in [0, 2**32).

    Returns:
        A `NoiseRobustness`.

    Raises:
        ValueError: If an argument is out of range, `data` is empty, endless,
            or holds something else, or `model` has other outputs.

    Example:
    >>> result = noise_robustness(model, (images, labels), stddevs=[0.0, 0.2])
    >>> result.accuracies.shape
    (2, 10)

    Reference: Srinivas & Fleuret 2018, section 6.2 and table 2.
    """
    stddevs = _check_stddevs(stddevs)
    draws, seed = check_count(draws, "draws"), check_seed(seed)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "Invalid value for argument `model`. Expected a built Keras "
            f"model. Received: model={model}"
        )
    blocks = _blocks(data)
    count_right = _counter(model, blocks.element_spec, seed)

    right = np.zeros([len(stddevs), draws], np.int64)
    examples = 0
    for block, (x, y) in enumerate(blocks):
        examples += len(y)
        for level, stddev in enumerate(stddevs):
            for draw in range(draws if stddev > 0 else 1):
                right[level, draw] += count_right(
                    x, y, stddev, level, draw, block
                )
    if not examples:
        raise ValueError(
            "Invalid value for argument `data`. Expected at least one "
            "example. Received: no examples"
        )
    noiseless = stddevs == 0
    right[noiseless] = right[noiseless, :1]
    return NoiseRobustness(stddevs, right / examples)


def plot_noise_robustness(results, path):
    """Draws accuracy over the noise's standard deviation, a line a model.

    Bands are one standard deviation over the draws to either side.

    Args:
        results: Dict, label -> `NoiseRobustness`.
        path: File of the picture, of a type that Matplotlib knows.

    Raises:
        ValueError: If there are no results, or the type is unknown.

    Example:
    >>> plot_noise_robustness({"ce": plain, "penalty": smooth}, "noise.png")
    """
    check_labelled(results, "results")
    figure, (axes,) = panels(1, width=7, height=4.6)
    for (label, result), (line, color) in zip(
        results.items(), styles(), strict=False
    ):
        order = np.argsort(result.stddevs)
        stddevs = result.stddevs[order]
        mean = 100 * result.mean[order]
        axes.plot(
            stddevs, mean, line, marker="o", ms=4, color=color, label=label
        )
        if result.accuracies.shape[1] > 1:
            spread = 100 * result.std[order]
            axes.fill_between(
                stddevs,
                np.maximum(mean - spread, 0),
                np.minimum(mean + spread, 100),
                color=color,
                alpha=0.2,
                linewidth=0,
            )
    axes.legend(frameon=False)
    tidy(
        axes,
        title="Accuracy under noise: mean ± standard deviation of the draws",
        xlabel="standard deviation of the noise (input units)",
        ylabel="accuracy (%)",
    )
    figure.savefig(path, dpi=140)


def _blocks(data):
    """Batches of `_BLOCK` examples `(x, y)`, as a `tf.data.Dataset`."""
    if isinstance(data, tuple) and len(data) == 2:
        data = tf.data.Dataset.from_tensor_slices(data).batch(_BLOCK)
    expected = (
        "Invalid value for argument `data`. Expected a finite "
        "tf.data.Dataset of batches (x, y), or one such pair of arrays, "
        "with floating x [batch, ...] and labels y. Received: "
    )
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(f"{expected}{type(data).__name__}")
    spec = data.element_spec
    if (
        not isinstance(spec, tuple)
        or len(spec) != 2
        or not all(isinstance(part, tf.TensorSpec) for part in spec)
        or not spec[0].dtype.is_floating
        or 0 in (spec[0].shape.rank, spec[1].shape.rank)
    ):
        raise ValueError(f"{expected}elements {spec}")
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{expected}an endless dataset")
    return data.rebatch(_BLOCK)


def _counter(model, spec, seed):
    """A traced function that counts right answers under one noise.

    Args:
        model: The model.
        spec: `tf.TensorSpec`s of a block's `(x, y)`.
        seed: Of all noise.

    Returns:
        A function of x `[n, ...]` and y, `n <= _BLOCK`, the standard
        deviation, and the indices of level, draw and block; it returns the
        number of right answers, int64.
    """
    index = tf.TensorSpec([], tf.int64)

    @tf.function(
        input_signature=[*spec, tf.TensorSpec([]), index, index, index],
        autograph=False,
    )
    def count_right(x, y, stddev, level, draw, block):
        key = tf.constant([seed, 0], tf.int64)
        for part in (level, draw, block):
            key = tf.random.fold_in(key, part, alg="philox")
        # Of the whole block, for the noise of a part need not be a part.
        shape = tf.concat([[_BLOCK], tf.shape(x)[1:]], axis=0)
        z = tf.random.stateless_normal(shape, key, alg="philox")
        noise = tf.cast(stddev * z[: tf.shape(x)[0]], x.dtype)
        # The sum has forgotten the static shape, which layers may ask for.
        noisy = tf.ensure_shape(x + noise, x.shape)
        outputs = model(noisy, training=False)
        if not tf.is_tensor(outputs) or not _are_scores(outputs.shape):
            raise ValueError(
                "Invalid value for argument `model`. Expected one output "
                "[batch, classes] of at least two classes. "
                f"Received: '{model.name}' with outputs {outputs}"
            )
        right = tf.argmax(outputs, axis=-1) == _labels(y, outputs.shape[-1])
        return tf.math.count_nonzero(right)

    return count_right.get_concrete_function()


def _are_scores(shape):
    """Whether a static shape is `[batch, classes]`, of several classes."""
    return shape.rank == 2 and shape[1] != 1


def _labels(y, classes):
    """Sparse or one-hot labels as int64 `[batch]`."""
    if y.shape.rank == 2 and y.shape[1] == classes:
        return tf.argmax(y, axis=-1)
    if y.shape.rank == 1 or (y.shape.rank == 2 and y.shape[1] == 1):
        return tf.reshape(tf.cast(y, tf.int64), [-1])
    raise ValueError(
        "Invalid value for argument `data`. Expected labels [batch], "
        f"[batch, 1] or one-hot [batch, {classes}]. "
        f"Received: y.shape={y.shape}"
    )


def _check_stddevs(stddevs):
    """`stddevs` as an array of float64, `[levels]`."""
    array = np.asarray(stddevs, np.float64)
    if (
        array.ndim != 1
        or not len(array)
        or not np.all((array >= 0) & np.isfinite(array))
    ):
        raise ValueError(
            "Invalid value for argument `stddevs`. Expected one or more "
            f"finite numbers >= 0. Received: stddevs={stddevs!r}"
        )
    return array
