"""Residual networks that normalise before they convolve: wide, or deep."""

import keras

from tfkd.models.blocks import conv, network, norm, relu, require_size, scaled

# Depth, and channels of the stages in units of 16, 32 and 64.
_WIDE = {"wrn-16-2": (16, 2), "wrn-40-2": (40, 2), "wrn-28-10": (28, 10)}
_DEEP = "resnet1001"

NAMES = (*_WIDE, _DEEP)


def wide_resnet(name, *, num_classes, input_shape, width):
    """A 3x3 stem and three stages of pre-activation blocks.

    A block of the wide networks has two 3x3 convolutions and there are
    (depth - 4) / 6 of them in a stage; one of resnet1001 has a bottleneck,
    1x1, 3x3 and 1x1, and there are 111. The second and the third stage halve
    height and width, rounded up.

    "stem" is the first convolution and "stage1", "stage2", "stage3" are the
    stages' sums, without ReLU.

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

    Reference: Zagoruyko & Komodakis 2016, table 1; for resnet1001 He et al.
    2016 ("Identity mappings in deep residual networks"), figure 1b and the
    appendix.
    """
    require_size(name, input_shape, halvings=2)
    blocks, stages = _plan(name, width)

    # === Functional model ===
    inputs = keras.Input(input_shape, name="images")
    x = conv(inputs, scaled(16, width), name="stem")
    for stage, convs in enumerate(stages, start=1):
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}"
            first = (f"{prefix}_norm1", f"{prefix}_relu1")
            if stage > 1 and block == 1:
                first = _closing(stage - 1)
            x = _block(
                x,
                convs,
                stride=2 if stage > 1 and block == 1 else 1,
                first=first,
                prefix=prefix,
                name=f"stage{stage}" if block == blocks else f"{prefix}_sum",
            )
    x = _activated(x, _closing(len(stages)))
    return network(inputs, x, num_classes=num_classes, name=name)


def _plan(name, width):
    """Blocks of a stage; each stage's kernel sizes and channels of a block."""
    if name == _DEEP:
        stages = [
            ((1, narrow), (3, narrow), (1, 4 * narrow))
            for narrow in (16, 32, 64)
        ]
        blocks = 111  # 9 * 111 + 2 layers
    else:
        depth, factor = _WIDE[name]
        stages = [2 * ((3, factor * unit),) for unit in (16, 32, 64)]
        blocks = (depth - 4) // 6
    return blocks, [
        [(size, scaled(channels, width)) for size, channels in convs]
        for convs in stages
    ]


def _block(x, convs, *, stride, first, prefix, name):
    """Normalisation, ReLU, convolution, so often as asked; plus `x`.

    Args:
        x: Maps `[batch, height, width, any]`.
        convs: Kernel sizes and channels of the convolutions.
        stride: Of the first convolution, in pixels.
        first: Names of the first normalisation and ReLU.
        prefix: Of the names of the other layers.
        name: Of the sum.

    Returns:
        Maps `[batch, ceil(height / stride), ceil(width / stride), channels]`
        with the channels of the last convolution.
    """
    active = branch = _activated(x, first)
    for index, (size, channels) in enumerate(convs, start=1):
        if index > 1:
            names = (f"{prefix}_norm{index}", f"{prefix}_relu{index}")
            branch = _activated(branch, names)
        branch = conv(
            branch,
            channels,
            size,
            stride=stride if index == 1 else 1,
            name=f"{prefix}_conv{index}",
        )
    if stride > 1 or x.shape[-1] != channels:
        x = conv(active, channels, 1, stride=stride, name=f"{prefix}_shortcut")
    # The shortcut first: Keras walks back from the output by recursion, first
    # inputs first, and 1001 layers are deeper than Python's limit.
    return keras.layers.Add(name=name)([x, branch])


def _activated(x, names):
    """Normalisation and ReLU of these names."""
    return relu(norm(x, names[0]), names[1])


def _closing(stage):
    """Names of the normalisation and ReLU that close a stage."""
    return f"stage{stage}_preactivation", f"stage{stage}_relu"
