"""VGG networks for small images, with batch normalisation."""

import keras

from tfkd.models.blocks import (
    conv_block,
    max_pool,
    network,
    require_size,
    scaled,
)

# Channels of each convolution; a 2x2 max pool closes every stage.
_POOLED = {
    "vgg4": ((64,), (128,), (512,)),
    "vgg9": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
}
# Channels of each convolution of the stem and of the stages; a 2x2 max pool
# opens each of the first three stages.
_BENCHMARK = {
    "vgg8": ((64,), (128,), (256,), (512,), (512,)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
}
# From this height and width on, a pool opens their fourth stage too.
_LARGE = 64

NAMES = (*_POOLED, *_BENCHMARK)


def vgg(name, *, num_classes, input_shape, width):
    """A plain stack of 3x3 convolutions and pools, one dense layer on top.

    The number in the name counts the layers with weights to multiply:
    convolutions and the dense layer.

    - vgg4 and vgg9: "stem" is the first convolution after its ReLU, "stage1",
      "stage2" and so on are the pools, each half the height and width of the
      one before, rounded down.
    - vgg8 and vgg13, as the common benchmark has them: "stem" is the ReLU
      before the first pool, "stage1" to "stage4" are the last ReLUs before
      the next pools. A fourth pool, between the last two stages, is left out
      for images below 64 pixels.

    Args:
        name: One of `NAMES`.
        num_classes: Number of logits, an int >= 1.
        input_shape: `(height, width, channels)` of one image, ints >= 1.
        width: Factor on the channels of every convolution. > 0.

    Returns:
        A Functional model, images `[batch, height, width, channels]` ->
        logits `[batch, num_classes]`.

    Raises:
        ValueError: If the images are too small to be halved by every pool.

    Reference: Simonyan & Zisserman 2015 for the design; for depths and
    channels Srinivas & Fleuret 2018, supplement 4.1 (vgg4, vgg9), and Tian et
    al. 2020 (vgg8, vgg13).
    """
    inputs = keras.Input(input_shape, name="images")
    maps = _pooled if name in _POOLED else _benchmark
    x = maps(inputs, name, width)
    return network(inputs, x, num_classes=num_classes, name=name)


def _pooled(x, name, width):
    """Convolutions and a pool, stage after stage."""
    stages = _POOLED[name]
    require_size(name, x.shape[1:], halvings=len(stages))
    for stage, convs in enumerate(stages, start=1):
        names = _names(f"stage{stage}", len(convs))
        if stage == 1:
            names[0] = ("stem_conv", "stem_norm", "stem")
        conv_name, _, relu_name = names[-1]
        names[-1] = (conv_name, f"stage{stage}_preactivation", relu_name)
        x = _convolved(x, convs, width, names, initializer="he_normal")
        x = max_pool(x, f"stage{stage}")
    return x


def _benchmark(x, name, width):
    """A pool and convolutions, stage after stage; no pool before the stem."""
    require_size(name, x.shape[1:], halvings=3)
    stem, *stages = _BENCHMARK[name]
    names = _names("stem", len(stem))
    names[-1] = (*names[-1][:2], "stem")
    pools = 4 if min(x.shape[1:3]) >= _LARGE else 3
    x = _convolved(x, stem, width, names)
    for stage, convs in enumerate(stages, start=1):
        if stage <= pools:
            x = max_pool(x, f"stage{stage}_pool")
        names = _names(f"stage{stage}", len(convs))
        names[-1] = (
            names[-1][0],
            f"stage{stage}_preactivation",
            f"stage{stage}",
        )
        x = _convolved(x, convs, width, names)
    return x


def _names(prefix, count):
    """Names of the layers of so many blocks."""
    return [
        tuple(f"{prefix}_{layer}{index}" for layer in ("conv", "norm", "relu"))
        for index in range(1, count + 1)
    ]


def _convolved(x, convs, width, names, **kwargs):
    """A block of each number of channels, by these names."""
    for channels, block in zip(convs, names, strict=True):
        x = conv_block(x, scaled(channels, width), names=block, **kwargs)
    return x
