"""What all networks are made of: their layers, channels and ends."""

import keras


def conv(x, channels, kernel_size=3, *, stride=1, initializer=None, name):
    """A convolution without bias, for a normalisation follows.

    Args:
        x: Maps `[batch, height, width, any]`.
        channels: Number of output channels.
        kernel_size: Odd, in pixels.
        stride: In pixels.
        initializer: Of the kernel; None: normal with variance
            2 / (kernel_size^2 channels), He et al. 2015 for the backward
            pass, as the residual networks were published.
        name: Of the layer; what a stride needs before it is `name`_pad or,
            for a kernel of one pixel, `name`_pixels.

    Returns:
        Maps `[batch, ceil(height / stride), ceil(width / stride), channels]`.
    """
    x, stride, padding = _prepared(x, kernel_size, stride, name)
    return keras.layers.Conv2D(
        channels,
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer=initializer or _he_fan_out(),
        data_format="channels_last",
        name=name,
    )(x)


def depthwise_conv(x, kernel_size=3, *, stride=1, name):
    """A convolution of each channel by itself, without bias.

    Args:
        x: Maps `[batch, height, width, channels]`.
        kernel_size: Odd, in pixels.
        stride: In pixels.
        name: Of the layer; what a stride needs before it is `name`_pad.

    Returns:
        Maps `[batch, ceil(height / stride), ceil(width / stride), channels]`.
    """
    x, stride, padding = _prepared(x, kernel_size, stride, name)
    return keras.layers.DepthwiseConv2D(
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer=_he_fan_out(),
        data_format="channels_last",
        name=name,
    )(x)


def norm(x, name):
    """Batch normalisation, momentum 0.9.

    Keras' momentum of 0.99 leaves statistics of the first weights in the
    moving averages of a run of some hundred steps.
    """
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, name=name
    )(x)


def relu(x, name):
    """max(x, 0)."""
    return keras.layers.ReLU(name=name)(x)


def conv_block(x, channels, kernel_size=3, *, names, **kwargs):
    """Convolution, batch normalisation, ReLU.

    Args:
        x: Maps `[batch, height, width, any]`.
        channels: Number of output channels.
        kernel_size: As of `conv`.
        names: Names of the three layers, in this order.
        **kwargs: As of `conv`.

    Returns:
        Maps as of `conv`, all >= 0.
    """
    x = conv(x, channels, kernel_size, name=names[0], **kwargs)
    return relu(norm(x, names[1]), names[2])


def max_pool(x, name):
    """The largest of each 2x2 pixels; a last odd row or column is dropped."""
    return keras.layers.MaxPooling2D(2, data_format="channels_last", name=name)(
        x
    )


def network(inputs, x, *, num_classes, name):
    """Ends a network: the layers "features" and "logits".

    Args:
        inputs: The network's input.
        x: Its last maps, `[batch, height, width, channels]`.
        num_classes: Number of logits.
        name: Of the model.

    Returns:
        A Functional model, `inputs` -> logits `[batch, num_classes]`.
    """
    x = keras.layers.GlobalAveragePooling2D(
        data_format="channels_last", name="features"
    )(x)
    return keras.Model(inputs, classifier(x, num_classes), name=name)


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


def scaled(channels, width):
    """`width` times `channels`, rounded, at least 1."""
    return max(1, round(width * channels))


def require_size(name, input_shape, *, halvings):
    """Refuses images that a network cannot halve so many times.

    Args:
        name: Of the network.
        input_shape: `(height, width, channels)`.
        halvings: How often the network halves height and width.

    Raises:
        ValueError: If height or width is below 2^halvings pixels.
    """
    smallest = 2**halvings
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            "Invalid value for argument `input_shape`. "
            f"Expected height and width >= {smallest}, for {name} halves "
            f"them {halvings} times; the smallest that fits is "
            f"{(smallest, smallest, input_shape[2])}. "
            f"Received: input_shape={input_shape}"
        )


def _prepared(x, kernel_size, stride, name):
    """Maps, and the stride and padding that Keras is to convolve them with."""
    if stride == 1:
        return x, 1, "same"
    if kernel_size == 1:
        # The pixels that it looks at, first: TensorFlow's CPU kernel (oneDNN)
        # for the gradient of strided 1x1 kernels writes beyond its memory
        # where channels are few.
        x = keras.layers.AveragePooling2D(
            1,
            strides=stride,
            data_format="channels_last",
            name=f"{name}_pixels",
        )(x)
        return x, 1, "valid"
    # Keras' own padding of even maps is one-sided: the strided convolution
    # would look one pixel further than the shortcut beside it.
    x = keras.layers.ZeroPadding2D(
        kernel_size // 2, data_format="channels_last", name=f"{name}_pad"
    )(x)
    return x, stride, "valid"


def _he_fan_out():
    """A new one each time: Keras repeats the draws of a shared one."""
    return keras.initializers.VarianceScaling(
        2.0, "fan_out", "untruncated_normal"
    )
