"""ShuffleNet V2 for small images."""

import keras

from tfkd.models.blocks import (
    conv,
    conv_block,
    depthwise_conv,
    network,
    norm,
    relu,
    require_size,
    scaled,
)

NAMES = ("shufflenet-v2",)

_STEM = 24
# Channels of a stage, and its blocks.
_STAGES = ((116, 4), (232, 8), (464, 4))
_LAST = 1024


def shufflenet_v2(name, *, num_classes, input_shape, width):
    """A 1x1 stem, three stages of shuffled halves, a 1x1 convolution.

    Each stage halves height and width, rounded up. The halves of its
    channels are made by different branches and shuffled after every block,
    so its channels are even: each half is scaled and rounded.

    Args:
        name: One of `NAMES`.
        num_classes: Number of logits, an int >= 1.
        input_shape: `(height, width, channels)` of one image, ints >= 1.
        width: Factor on the channels of every convolution. > 0.

    Returns:
        A Functional model, images `[batch, height, width, channels]` ->
        logits `[batch, num_classes]`.

    Raises:
        ValueError: If the images are too small to be halved three times.

    Reference: Ma et al. 2018, table 5 at 1x, with the stem that Tian et al.
    2020 use for 32x32 pixels: 1x1 of stride 1 and no pool.
    """
    require_size(name, input_shape, halvings=len(_STAGES))

    # === Functional model ===
    inputs = keras.Input(input_shape, name="images")
    names = ("stem_conv", "stem_norm", "stem")
    x = conv_block(inputs, scaled(_STEM, width), 1, names=names)
    for stage, (channels, blocks) in enumerate(_STAGES, start=1):
        half = scaled(channels / 2, width)
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}"
            halves = _halving if block == 1 else _keeping
            x = keras.layers.Concatenate(name=f"{prefix}_halves")(
                halves(x, half, prefix)
            )
            # One ReLU over both halves: where the left one is the input's
            # half, it is >= 0 and stays as it is.
            names = (f"{prefix}_shuffle", f"{prefix}_relu2")
            if block == blocks:
                names = (f"stage{stage}_preactivation", f"stage{stage}")
            x = relu(_shuffled(x, names[0]), names[1])
    names = ("last_conv", "last_norm", "last")
    x = conv_block(x, scaled(_LAST, width), 1, names=names)
    return network(inputs, x, num_classes=num_classes, name=name)


def _halving(x, half, prefix):
    """Both halves from all channels, at half the height and width."""
    left = depthwise_conv(x, stride=2, name=f"{prefix}_left_depthwise")
    left = norm(left, f"{prefix}_left_norm1")
    left = conv(left, half, 1, name=f"{prefix}_left_conv")
    left = norm(left, f"{prefix}_left_norm2")
    return left, _branch(x, half, 2, prefix)


def _keeping(x, half, prefix):
    """The left half as it is, the right one through its branch."""
    left, right = keras.ops.split(x, 2, axis=-1)
    return left, _branch(right, half, 1, prefix)


def _branch(x, half, stride, prefix):
    """1x1, depthwise 3x3, 1x1; normalised, before its ReLU."""
    names = (f"{prefix}_conv1", f"{prefix}_norm1", f"{prefix}_relu1")
    x = conv_block(x, half, 1, names=names)
    x = depthwise_conv(x, stride=stride, name=f"{prefix}_depthwise")
    x = norm(x, f"{prefix}_norm2")
    x = conv(x, half, 1, name=f"{prefix}_conv2")
    return norm(x, f"{prefix}_norm3")


def _shuffled(x, name):
    """Takes channels from both halves in turn: 0, n/2, 1, n/2 + 1, ...

    Args:
        x: Maps `[batch, height, width, n]`, n even.
        name: Of the last of three layers; the others add a suffix.

    Returns:
        Maps of the same shape.
    """
    height, width, channels = x.shape[1:]
    x = keras.layers.Reshape(
        (height * width, 2, channels // 2), name=f"{name}_split"
    )(x)
    x = keras.layers.Permute((1, 3, 2), name=f"{name}_turn")(x)
    return keras.layers.Reshape((height, width, channels), name=name)(x)
