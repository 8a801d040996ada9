"""Networks in float64 NumPy, from their papers; inference mode.

`weights` is a function: name of a layer -> list of its arrays, as Keras
orders them. Maps are `[batch, height, width, channels]`.
"""

import numpy as np


def conv(x, kernel, stride=1):
    """Cross-correlation around every `stride`-th pixel, beside it zeros."""
    x, kernel = np.float64(x), np.float64(kernel)
    margin = kernel.shape[0] // 2
    padded = np.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    height, width = x.shape[1:3]
    result = 0.0
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            seen = padded[
                :, row : row + height : stride, column : column + width : stride
            ]
            result = result + seen @ kernel[row, column]
    return result


def depthwise_conv(x, kernel, stride=1):
    """`conv` of each channel by its own kernel, `[size, size, channels, 1]`."""
    channels = [
        conv(x[..., c : c + 1], kernel[:, :, c : c + 1], stride)
        for c in range(x.shape[-1])
    ]
    return np.concatenate(channels, axis=-1)


def norm(x, arrays):
    """Normalisation by moving mean and variance."""
    gamma, beta, mean, variance = (np.float64(array) for array in arrays)
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def relu(x):
    return np.maximum(x, 0.0)


def max_pool(x, size=2, stride=2, margin=0):
    """Largest of `size` x `size` pixels; beside the maps is -inf."""
    edges = [(0, 0), (margin, margin), (margin, margin), (0, 0)]
    x = np.pad(x, edges, constant_values=-np.inf)
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    return np.stack(
        [
            np.stack(
                [x[:, r : r + size, c : c + size].max((1, 2)) for c in columns],
                axis=1,
            )
            for r in rows
        ],
        axis=1,
    )


def logits(x, weights):
    """Mean over the pixels, dense layer."""
    kernel, bias = weights("logits")
    return x.mean(axis=(1, 2)) @ np.float64(kernel) + np.float64(bias)


def basic_resnet(x, weights, *, blocks, strides, large_stem=False):
    """Stages of so many blocks; the first of each has this stride."""
    x = conv(x, *weights("stem_conv"), stride=2 if large_stem else 1)
    x = relu(norm(x, weights("stem_norm")))
    if large_stem:
        x = max_pool(x, 3, 2, margin=1)
    for stage, (count, first) in enumerate(
        zip(blocks, strides, strict=True), start=1
    ):
        for block in range(1, count + 1):
            prefix = f"stage{stage}_block{block}_"
            stride = first if block == 1 else 1
            y = conv(x, *weights(prefix + "conv1"), stride)
            y = relu(norm(y, weights(prefix + "norm1")))
            y = conv(y, *weights(prefix + "conv2"))
            y = norm(y, weights(prefix + "norm2"))
            if stride != 1 or x.shape[-1] != y.shape[-1]:
                x = conv(x, *weights(prefix + "shortcut_conv"), stride)
                x = norm(x, weights(prefix + "shortcut_norm"))
            x = relu(x + y)
    return logits(x, weights)


def wide_resnet(x, weights, *, blocks):
    """Three stages of so many pre-activation blocks."""
    x = conv(x, *weights("stem"))
    for stage in (1, 2, 3):
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}_"
            first = prefix + "norm1"
            if block == 1 and stage > 1:
                first = f"stage{stage - 1}_preactivation"
            stride = 2 if block == 1 and stage > 1 else 1
            active = relu(norm(x, weights(first)))
            y = conv(active, *weights(prefix + "conv1"), stride)
            y = relu(norm(y, weights(prefix + "norm2")))
            y = conv(y, *weights(prefix + "conv2"))
            if block == 1:
                x = conv(active, *weights(prefix + "shortcut"), stride)
            x = x + y
    return logits(relu(norm(x, weights("stage3_preactivation"))), weights)


def shufflenet_v2(x, weights, *, blocks):
    """Stages of so many blocks; ReLU on each new half, then the shuffle."""
    x = relu(norm(conv(x, *weights("stem_conv")), weights("stem_norm")))
    for stage, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            prefix = f"stage{stage}_block{block}_"
            if block == 1:
                left = depthwise_conv(
                    x, *weights(prefix + "left_depthwise"), stride=2
                )
                left = norm(left, weights(prefix + "left_norm1"))
                left = conv(left, *weights(prefix + "left_conv"))
                left = relu(norm(left, weights(prefix + "left_norm2")))
                right = x
            else:
                half = x.shape[-1] // 2
                left, right = x[..., :half], x[..., half:]
            right = conv(right, *weights(prefix + "conv1"))
            right = relu(norm(right, weights(prefix + "norm1")))
            right = depthwise_conv(
                right,
                *weights(prefix + "depthwise"),
                stride=2 if block == 1 else 1,
            )
            right = norm(right, weights(prefix + "norm2"))
            right = conv(right, *weights(prefix + "conv2"))
            right = relu(norm(right, weights(prefix + "norm3")))
            x = np.empty([*right.shape[:-1], 2 * right.shape[-1]])
            x[..., 0::2], x[..., 1::2] = left, right
    x = relu(norm(conv(x, *weights("last_conv")), weights("last_norm")))
    return logits(x, weights)


def benchmark_vgg(x, weights, *, convs, pools):
    """A stem and four stages of so many convolutions; pools between."""
    for part in ("stem", "stage1", "stage2", "stage3", "stage4"):
        if part in [f"stage{stage}" for stage in range(1, pools + 1)]:
            x = max_pool(x)
        for index in range(1, convs + 1):
            normalisation = f"{part}_norm{index}"
            if index == convs and part != "stem":
                normalisation = f"{part}_preactivation"
            x = conv(x, *weights(f"{part}_conv{index}"))
            x = relu(norm(x, weights(normalisation)))
    return logits(x, weights)
