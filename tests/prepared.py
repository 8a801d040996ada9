"""Prepared datasets of TensorFlow Datasets, made up for tests."""

import contextlib
import warnings

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


@contextlib.contextmanager
def mocked(name, folder, num_examples):
    """Serves random examples as if `name` were prepared in `folder`.

    Args:
        name: The dataset's name.
        folder: An empty folder, for `data_dir`.
        num_examples: Of each split.
    """
    with tfds.testing.mock_data():
        builder = tfds.builder(name)
        target = folder / name / str(builder.version)
        target.mkdir(parents=True)
        builder.info.write_to_directory(target)
    with tfds.testing.mock_data(num_examples, data_dir=str(folder)):
        yield


def photograph(number, height=40, width=60):
    """A JPEG that is red by its number, green down and blue rightwards."""
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = number
    image[..., 1] = np.linspace(0, 255, height)[:, np.newaxis]
    image[..., 2] = np.linspace(0, 255, width)
    return tf.io.encode_jpeg(image, quality=100).numpy()


def prepare_photographs(name, folder, labels, *, contents=None):
    """Prepares photographs in `folder` as TensorFlow Datasets stores them.

    Args:
        name: The dataset's name.
        folder: An empty folder, for `data_dir`.
        labels: Dict, split -> list of labels.
        contents: Dict, split -> list of encoded photographs.
    """
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
    )
