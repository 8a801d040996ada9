"""The handwritten digits that come with scikit-learn, enlarged."""

import numpy as np

from tfkd.data import dataset

_FACTOR = 4


def read():
    """Reads the 1797 digits, enlarged from 8x8 to 32x32 pixels.

    Returns:
        A `dataset.Source` without a test part; images float16
        `[1797, 32, 32, 1]` in [0, 16].

    Reference: Alpaydin & Kaynak 1998, optical recognition of handwritten
    digits (test set).
    """
    # Deferred, so that the other datasets do without these modules.
    from sklearn.datasets import load_digits

    digits = load_digits()
    # float16 is exact: values are multiples of 1/64 up to 16, 11 bits.
    images = enlarge(digits.images, _FACTOR).astype(np.float16)
    return dataset.Source(
        train=dataset.Examples(images[..., np.newaxis], digits.target),
        test=None,
        class_names=tuple(str(digit) for digit in digits.target_names),
        origin="scikit-learn's digits",
        white=16.0,
    )


def enlarge(images, factor):
    """Enlarges square images bilinearly, as `tf.image.resize` does.

    Formula: W X W^T, W_ij = max(0, 1 - |c_i - j|), c_i the centre of new
    pixel i in units of old pixels, clamped to the old pixels' centres.

    Args:
        images: `[examples, size, size]`, of any real type.
        factor: Integer >= 1.

    Returns:
        Array `[examples, factor * size, factor * size]`, in the units of
        `images`.
    """
    size = images.shape[-1]
    centers = (np.arange(factor * size) + 0.5) / factor - 0.5
    centers = np.clip(centers, 0, size - 1)
    distances = np.abs(centers[:, np.newaxis] - np.arange(size))
    weights = np.maximum(0.0, 1.0 - distances)  # [factor * size, size]
    return weights @ images @ weights.T
