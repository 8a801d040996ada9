"""Random copies of training images, reproducible and new in every epoch."""

import tensorflow as tf

PADDING = 4


def with_seeds(dataset, seed):
    """Elements with a seed for stateless random numbers beside each.

    The seeds are functions of `seed`, the number of the pass over the
    dataset, and the position in it, so that they are the same in another
    process and different in every epoch.

    Args:
        dataset: A finite `tf.data.Dataset` of known cardinality.
        seed: An integer in [0, 2**32).

    Returns:
        A `tf.data.Dataset` of `(element, seed)`, seed int64 `[2]`, of the
        same cardinality.
    """
    passes = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
    # Drawn once at the beginning of a pass, then repeated.
    seeds = passes.take(1).flat_map(
        lambda drawn: tf.data.Dataset.counter().map(
            lambda position: tf.stack([drawn, position])
        )
    )
    return tf.data.Dataset.zip(dataset, seeds).apply(
        tf.data.experimental.assert_cardinality(dataset.cardinality())
    )


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
