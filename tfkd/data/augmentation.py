"""Random copies of training images, functions of a seed."""

import tensorflow as tf

PADDING = 4


def shift_and_mirror(images, *, seed, mirror, padding=PADDING):
    """Crops images at random places after zero-padding, mirrors every second.

    Formula: `y[i, j] = p[i + a, j + b]`, or `p[i + a, w - 1 - j + b]`
    mirrored, where p is the image with `padding` zeros on each side, a and b
    uniform on `{0, ..., 2 padding}`; mirrored with probability 1/2.

    Args:
        images: `[batch, height, width, channels]`, in pixel units, where 0
            is what surrounds an image: before standardisation.
        seed: Of the draws, int64 `[2]`.
        mirror: Whether to mirror left and right.
        padding: Zeros on each side, in pixels. >= 0.

    Returns:
        Tensor like `images`.

    Reference: He et al. 2016, section 4.2.
    """
    batch, height, width, _ = tf.unstack(tf.shape(images))
    margin = [padding, padding]
    padded = tf.pad(images, [[0, 0], margin, margin, [0, 0]])
    # The generator is named, for the default one depends on the device.
    draws = tf.random.stateless_uniform([3, batch, 1], seed, alg="philox")
    shifts = tf.cast(draws[:2] * (2 * padding + 1), tf.int32)
    columns = tf.range(width)[tf.newaxis]  # [1, width]
    if mirror:
        columns = tf.where(draws[2] < 0.5, columns[:, ::-1], columns)
    rows = tf.gather(padded, shifts[0] + tf.range(height), axis=1, batch_dims=1)
    return tf.ensure_shape(
        tf.gather(rows, shifts[1] + columns, axis=2, batch_dims=1),
        images.shape,
    )
