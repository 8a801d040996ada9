"""ResNet-18 and ResNet-34, for photographs and for small images."""

import keras

from tfkd.models.blocks import (
    conv_block,
    network,
    require_size,
    scaled,
)
from tfkd.models.cifar_resnet import basic_stage

# Blocks of each stage.
_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet18-cifar": (2, 2, 2, 2),
    "resnet34-cifar": (3, 4, 6, 3),
}
_CHANNELS = (64, 128, 256, 512)

NAMES = tuple(_BLOCKS)


def resnet(name, *, num_classes, input_shape, width):
    """A stem and four stages of basic blocks, of 64 to 512 channels.

    The stem is a 7x7 convolution of stride 2 and, after the layer "stem", a
    3x3 max pool of stride 2, five halvings with the stages'. That of the
    names in "-cifar" is a 3x3 convolution, which leaves three halvings for
    images of about 32x32 pixels.

    Args:
        name: One of `NAMES`.
        num_classes: Number of logits, an int >= 1.
        input_shape: `(height, width, channels)` of one image, ints >= 1.
        width: Factor on the channels of every convolution. > 0.

    Returns:
        A Functional model, images `[batch, height, width, channels]` ->
        logits `[batch, num_classes]`.

    Raises:
        ValueError: If the images are too small to be halved so often.

    Reference: He et al. 2016, table 1.
    """
    small = name.endswith("-cifar")
    require_size(name, input_shape, halvings=3 if small else 5)
    stem = scaled(_CHANNELS[0], width)
    names = ("stem_conv", "stem_norm", "stem")

    # === Functional model ===
    inputs = keras.Input(input_shape, name="images")
    if small:
        x = conv_block(inputs, stem, names=names)
    else:
        x = conv_block(inputs, stem, 7, stride=2, names=names)
        # Beside maps >= 0 a border of zeros is never the largest.
        x = keras.layers.ZeroPadding2D(
            1, data_format="channels_last", name="stem_pool_pad"
        )(x)
        x = keras.layers.MaxPooling2D(
            3, strides=2, data_format="channels_last", name="stem_pool"
        )(x)
    blocks = _BLOCKS[name]
    for stage, channels in enumerate(_CHANNELS, start=1):
        x = basic_stage(
            x,
            scaled(channels, width),
            blocks=blocks[stage - 1],
            stride=1 if stage == 1 else 2,
            name=f"stage{stage}",
        )
    return network(inputs, x, num_classes=num_classes, name=name)
