"""Prepared datasets of TensorFlow Datasets, made up for tests."""

import contextlib
import io

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
    return tf.io.encode_jpeg(
        image, quality=100, chroma_downsampling=False
    ).numpy()


def prepare(name, folder, splits, *, version="1.0.0", files=4):
    """Prepares images in `folder` as TensorFlow Datasets stores them.

    Args:
        name: The dataset's name.
        folder: A folder, for `data_dir`.
        splits: Dict, split -> list of (encoded image, label in 0, 1, 2).
        version: Of the data.
        files: Number of files of each split.
    """
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        version,
        features,
        {
            split: [
                (i, {"image": io.BytesIO(content), "label": label})
                for i, (content, label) in enumerate(examples)
            ]
            for split, examples in splits.items()
        },
        data_dir=folder,
        download_config=tfds.download.DownloadConfig(num_shards=files),
    )
