"""Residual networks for small images."""

import keras

from tfkd.models.blocks import (
    conv,
    conv_block,
    network,
    norm,
    relu,
    require_size,
    scaled,
)

# Depth, and channels of the stem and of the three stages.
_NETWORKS = {
    "resnet8": (8, (16, 16, 32, 64)),
    "resnet14": (14, (16, 16, 32, 64)),
    "resnet20": (20, (16, 16, 32, 64)),
    "resnet32": (32, (16, 16, 32, 64)),
    "resnet44": (44, (16, 16, 32, 64)),
    "resnet56": (56, (16, 16, 32, 64)),
    "resnet110": (110, (16, 16, 32, 64)),
    "resnet56-slim": (56, (8, 8, 16, 32)),
    "resnet8x4": (8, (32, 64, 128, 256)),
    "resnet32x4": (32, (32, 64, 128, 256)),
}

NAMES = tuple(_NETWORKS)


def cifar_resnet(name, *, num_classes, input_shape, width):
    """A 3x3 stem and three stages of (depth - 2) / 6 basic blocks each.

    The second and the third stage halve height and width, rounded up. A
    shortcut that changes the shape is a 1x1 convolution with normalisation.

    Args:
        name: One of `NAMES`.
        num_classes: Number of logits, an int >= 1.
        input_shape: `(height, width, channels)` of one image, ints >= 1.
        width: Factor on the channels of every convolution. > 0.

    Returns:
        A Functional model, images `[batch, height, width, channels]` ->
        logits `[batch, num_classes]`.

    Raises:
        ValueError: If the images are too small to be halved twice.

    Reference: He et al. 2016, section 4.2, with the shortcuts of its option
    B and the channels of Tian et al. 2020.
    """
    require_size(name, input_shape, halvings=2)
    depth, channels = _NETWORKS[name]
    stem, *stages = (scaled(count, width) for count in channels)

    # === Functional model ===
    inputs = keras.Input(input_shape, name="images")
    x = conv_block(inputs, stem, names=("stem_conv", "stem_norm", "stem"))
    for stage, count in enumerate(stages, start=1):
        x = basic_stage(
            x,
            count,
            blocks=(depth - 2) // 6,
            stride=1 if stage == 1 else 2,
            name=f"stage{stage}",
        )
    return network(inputs, x, num_classes=num_classes, name=name)


def basic_stage(x, channels, *, blocks, stride, name):
    """Residual blocks of two 3x3 convolutions; a ReLU after each sum.

    Args:
        x: Maps `[batch, height, width, any]`.
        channels: Number of output channels.
        blocks: How many. >= 1.
        stride: Of the first convolution and its shortcut, in pixels.
        name: Of the last ReLU; the sum before it is `name`_preactivation.

    Returns:
        Maps `[batch, ceil(height / stride), ceil(width / stride), channels]`.
    """
    for block in range(1, blocks + 1):
        prefix = f"{name}_block{block}"
        sum_name, relu_name = f"{prefix}_sum", f"{prefix}_relu2"
        if block == blocks:
            sum_name, relu_name = f"{name}_preactivation", name
        x = _basic_sum(
            x,
            channels,
            stride=stride if block == 1 else 1,
            prefix=prefix,
            name=sum_name,
        )
        x = relu(x, relu_name)
    return x


def _basic_sum(x, channels, *, stride, prefix, name):
    """Two convolutions of `x`, and `x`, before the ReLU over both."""
    names = [f"{prefix}_{layer}1" for layer in ("conv", "norm", "relu")]
    branch = conv_block(x, channels, stride=stride, names=names)
    branch = conv(branch, channels, name=f"{prefix}_conv2")
    branch = norm(branch, f"{prefix}_norm2")
    if stride > 1 or x.shape[-1] != channels:
        x = conv(x, channels, 1, stride=stride, name=f"{prefix}_shortcut_conv")
        x = norm(x, f"{prefix}_shortcut_norm")
    return keras.layers.Add(name=name)([x, branch])
