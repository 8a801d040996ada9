"""VGG networks for small images, with batch normalisation."""

import keras

# Channels of each convolution; a 2x2 max pool closes every stage.
_STAGES = {
    "vgg4": ((64,), (128,), (512,)),
    "vgg9": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
}

NAMES = tuple(_STAGES)

_BLOCK = ("conv", "norm", "relu")


def vgg(name, *, num_classes, input_shape, width):
    """A plain stack of 3x3 convolutions and pools, one dense layer on top.

    The number in the name counts the layers with weights to multiply:
    convolutions and the dense layer. "stem" is the first convolution after
    its ReLU, "stage1", "stage2" and so on are the pools, each half the
    height and width of the one before, rounded down.

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

    Reference: Simonyan & Zisserman 2015 for the design, Srinivas & Fleuret
    2018, supplement 4.1, for these depths and channels.
    """
    stages = _STAGES[name]
    smallest = 2 ** len(stages)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            "Invalid value for argument `input_shape`. "
            f"Expected height and width >= {smallest}, for {name} halves "
            f"them {len(stages)} times; the smallest that fits is "
            f"{(smallest, smallest, input_shape[2])}. "
            f"Received: input_shape={input_shape}"
        )

    # === Functional model ===
    inputs = keras.Input(input_shape, name="images")
    x = inputs
    for stage, convs in enumerate(stages, start=1):
        for index, channels in enumerate(convs, start=1):
            names = [f"stage{stage}_{layer}{index}" for layer in _BLOCK]
            if x is inputs:
                names = ["stem_conv", "stem_norm", "stem"]
            x = conv_block(x, max(1, round(width * channels)), names=names)
        x = keras.layers.MaxPooling2D(
            2, data_format="channels_last", name=f"stage{stage}"
        )(x)
    x = keras.layers.GlobalAveragePooling2D(
        data_format="channels_last", name="features"
    )(x)
    outputs = classifier(x, num_classes)
    return keras.Model(inputs, outputs, name=name)


def conv_block(x, channels, *, names):
    """3x3 convolution, batch normalisation, ReLU.

    Args:
        x: Maps `[batch, height, width, any]`.
        channels: Number of output channels.
        names: Names of the three layers, in this order.

    Returns:
        Maps `[batch, height, width, channels]`, all >= 0.
    """
    conv, norm, relu = names
    x = keras.layers.Conv2D(
        channels,
        3,
        padding="same",
        use_bias=False,  # The normalisation would subtract it again.
        kernel_initializer="he_normal",
        data_format="channels_last",
        name=conv,
    )(x)
    # Keras' momentum of 0.99 leaves statistics of the first weights in the
    # moving averages of a run of some hundred steps.
    x = keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=1e-5,
        name=norm,
    )(x)
    return keras.layers.ReLU(name=relu)(x)


def classifier(x, num_classes):
    """The dense layer "logits", in float32 at least.

    Args:
        x: Features `[batch, dim]`.
        num_classes: Number of logits.

    Returns:
        Logits `[batch, num_classes]`, float32 under the policies of 16 bits
        (there a softmax would lose the small probabilities distillation
        lives on), else in the policy's own type.
    """
    dtype = keras.backend.result_type(
        keras.config.dtype_policy().variable_dtype, "float32"
    )
    return keras.layers.Dense(num_classes, dtype=dtype, name="logits")(x)
