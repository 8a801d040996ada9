"""The digits: how they are enlarged, split and standardised."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import tfkd.data
from tfkd.data import digits as digits_lib


@pytest.fixture(scope="module")
def dataset():
    return tfkd.data.load("digits", batch_size=200)


def collect(pipeline):
    """All images and labels of one epoch."""
    images, labels = zip(*pipeline.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def pixels(dataset, pipeline):
    """The images of one epoch in 1/64 of the source's units, as integers."""
    images, _ = collect(pipeline)
    return in_64ths(images * dataset.std + dataset.mean)


def in_64ths(images):
    """Bilinear weights are multiples of 1/8 along either axis."""
    return np.round(images * 64).astype(int)


def test_splits_hold_70_10_20_percent_of_each_class(dataset):
    """Of 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 digits.

    Each tenth and fifth is rounded, 17.4 to 17 and 34.8 to 35 for the
    eights; the training split is the rest.
    """
    total = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    validation = np.array([18, 18, 18, 18, 18, 18, 18, 18, 17, 18])
    test = np.array([36, 36, 35, 37, 36, 36, 36, 36, 35, 36])
    expected = (total - validation - test, validation, test)
    splits = (dataset.train, dataset.validation, dataset.test)
    for split, counts in zip(splits, expected, strict=True):
        np.testing.assert_array_equal(np.bincount(collect(split)[1]), counts)
    assert dataset.num_train == 1259
    assert dataset.num_validation == 179
    assert dataset.num_test == 359


def test_splits_are_disjoint_and_cover_the_source(dataset):
    """All 1797 digits differ, so their bytes identify them."""
    splits = [
        {image.tobytes() for image in pixels(dataset, split)}
        for split in (dataset.train, dataset.validation, dataset.test)
    ]
    source = in_64ths(digits_lib.enlarge(load_digits().images, 4))
    assert [len(split) for split in splits] == [1259, 179, 359]
    assert set.union(*splits) == {image.tobytes() for image in source}


def test_images_keep_their_labels(dataset):
    source = load_digits()
    images = in_64ths(digits_lib.enlarge(source.images, 4))
    label_of = {
        image.tobytes(): label
        for image, label in zip(images, source.target, strict=True)
    }
    for split in (dataset.validation, dataset.test):
        labels = [label_of[x.tobytes()] for x in pixels(dataset, split)]
        np.testing.assert_array_equal(labels, collect(split)[1])


def test_split_never_changes(dataset):
    """Frozen: a new split would show a teacher's training images to tests."""
    _, labels = collect(dataset.test)
    assert "".join(map(str, labels[:24])) == "967365835281233464900177"


def test_describes_itself(dataset):
    assert dataset.name == "digits"
    assert dataset.num_classes == 10
    assert dataset.input_shape == (32, 32, 1)
    assert dataset.class_names == tuple("0123456789")


def test_training_images_have_mean_0_and_deviation_1(dataset):
    images, _ = collect(dataset.train)
    assert images.mean(dtype=np.float64) == pytest.approx(0.0, abs=1e-6)
    assert images.std(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)


def test_mean_and_deviation_are_in_units_of_the_source(dataset):
    """Each old pixel has the weight of 16 new ones, so the mean stays.

    The training split's is within a percent of that of all 8x8 digits.
    """
    enlarged = pixels(dataset, dataset.train) / 64
    assert enlarged.min() == 0.0
    assert enlarged.max() == 16.0
    assert dataset.mean == pytest.approx((enlarged.mean(),))
    assert dataset.std == pytest.approx((enlarged.std(),))
    assert dataset.mean == pytest.approx((load_digits().images.mean(),), 0.01)


def test_enlarges_two_pixels_by_hand():
    """New centres -1/4, 1/4, 3/4, 5/4, clamped to 0, 1/4, 3/4, 1.

    The image is 4 column + 8 row, which bilinear interpolation preserves.
    """
    image = np.array([[[0.0, 4.0], [8.0, 12.0]]])
    expected = [[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]]
    np.testing.assert_array_equal(digits_lib.enlarge(image, 2)[0], expected)


def test_enlarges_as_a_loop_over_pixels_does():
    """The textbook form: four neighbours and their distances."""
    image = np.random.default_rng(0).uniform(size=(5, 5))
    expected = np.empty((15, 15))
    for i, j in np.ndindex(15, 15):
        y = min(max((i + 0.5) / 3 - 0.5, 0.0), 4.0)
        x = min(max((j + 0.5) / 3 - 0.5, 0.0), 4.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 4), min(left + 1, 4)
        v, u = y - top, x - left
        expected[i, j] = (1 - v) * (
            (1 - u) * image[top, left] + u * image[top, right]
        ) + v * ((1 - u) * image[bottom, left] + u * image[bottom, right])
    enlarged = digits_lib.enlarge(image[np.newaxis], 3)
    np.testing.assert_allclose(enlarged[0], expected, atol=1e-14)


def test_enlarges_as_tensorflow_does():
    images = load_digits().images[:10]
    expected = tf.image.resize(images[..., np.newaxis], (32, 32))[..., 0]
    np.testing.assert_array_equal(digits_lib.enlarge(images, 4), expected)
