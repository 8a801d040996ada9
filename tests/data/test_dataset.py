"""`tfkd.data.load`: order, subsets, batches and what it refuses."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tfkd.data
from tfkd.data import dataset as dataset_lib


def load(**overrides):
    arguments = {"batch_size": 32, "examples_per_class": 10, **overrides}
    return tfkd.data.load("digits", **arguments)


def images_of(pipeline):
    """The images of one epoch in order, each as bytes."""
    return [
        image.tobytes() for x, _ in pipeline.as_numpy_iterator() for image in x
    ]


def labels_of(pipeline):
    return np.concatenate([y for _, y in pipeline.as_numpy_iterator()])


def test_batches_are_float32_images_and_int32_labels():
    dataset = load()
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.element_spec == (
            tf.TensorSpec((None, 32, 32, 1), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        )


def test_cardinality_is_known_and_the_last_batch_kept():
    """100 = 3 * 32 + 4 training, 179 validation and 359 test images."""
    dataset = load()
    assert int(dataset.train.cardinality()) == 4
    assert int(dataset.validation.cardinality()) == 6
    assert int(dataset.test.cardinality()) == 12
    assert [len(y) for _, y in dataset.train] == [32, 32, 32, 4]


def test_batch_larger_than_the_subset_is_one_batch():
    dataset = load(batch_size=1000)
    assert int(dataset.train.cardinality()) == 1
    assert [len(y) for _, y in dataset.train] == [100]


def test_subset_holds_as_many_of_each_class():
    dataset = load(examples_per_class=7)
    assert dataset.num_train == 70
    np.testing.assert_array_equal(np.bincount(labels_of(dataset.train)), 7)


def test_subsets_are_nested_and_part_of_the_training_split():
    small, large, whole = (
        set(images_of(load(examples_per_class=n, seed=3).train))
        for n in (5, 10, None)
    )
    assert (len(small), len(large), len(whole)) == (50, 100, 1259)
    assert small < large < whole


def test_subset_keeps_the_units_of_the_whole():
    subset, whole = load(), load(examples_per_class=None)
    assert (subset.mean, subset.std) == (whole.mean, whole.std)
    assert images_of(subset.test) == images_of(whole.test)


def test_same_seed_gives_the_same_epochs():
    first, second = load(seed=5).train, load(seed=5).train
    for _ in range(3):
        assert images_of(first) == images_of(second)


def test_every_epoch_has_a_new_order_of_the_same_images():
    train = load().train
    first, second = images_of(train), images_of(train)
    assert first != second
    assert sorted(first) == sorted(second)


def test_seed_governs_subset_and_order_but_no_split():
    one, other = load(seed=1), load(seed=2)
    assert set(images_of(one.train)) != set(images_of(other.train))
    assert images_of(one.validation) == images_of(other.validation)
    assert images_of(one.test) == images_of(other.test)
    one, other = (load(examples_per_class=None, seed=s) for s in (1, 2))
    first, second = images_of(one.train), images_of(other.train)
    assert first != second
    assert sorted(first) == sorted(second)


def test_evaluation_keeps_its_order():
    dataset = load()
    assert images_of(dataset.test) == images_of(dataset.test)
    assert images_of(dataset.validation) == images_of(dataset.validation)


def test_shuffles_the_whole_epoch():
    """100 images of 10 classes: a sorted order would give 10 runs of 10."""
    labels = labels_of(load(batch_size=10).train)
    assert len({tuple(batch) for batch in labels.reshape(10, 10)}) == 10
    assert len(np.unique(labels[:20])) > 5


def test_stratified_split_rounds_within_each_class():
    """Classes of 10 and 26: tenths 1 and 2.6 -> 3, fifths 2 and 5.2 -> 5."""
    labels = np.repeat([4, 9], [10, 26])
    parts = dataset_lib.stratified_split(labels, (0.1, 0.2))
    assert [np.bincount(labels[part])[[4, 9]].tolist() for part in parts] == [
        [7, 18],
        [1, 3],
        [2, 5],
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), range(36))


def test_assembles_channels_apart():
    """Channel 0 alternates 0, 2 (mean 1, std 1), channel 1 is 10 times it."""
    channel = np.tile(np.array([0, 2], np.uint8), (40, 3, 2))  # [40, 3, 4]
    images = np.stack([channel, 10 * channel], axis=-1)
    labels = np.tile(np.arange(2, dtype=np.uint8), 20)
    dataset = dataset_lib.assemble(
        "stripes",
        dataset_lib.Source(
            train=dataset_lib.Examples(images, labels),
            test=None,
            class_names=("even", "odd"),
            origin="this test",
        ),
        batch_size=8,
        examples_per_class=None,
        seed=0,
    )
    assert dataset.mean == (1.0, 10.0)
    assert dataset.std == (1.0, 10.0)
    assert dataset.input_shape == (3, 4, 2)
    x, _ = next(dataset.test.as_numpy_iterator())
    expected = np.tile([[-1.0], [1.0]], (8, 3, 2, 2))
    np.testing.assert_array_equal(x, expected)


def test_import_brings_neither_tensorflow_datasets_nor_digits():
    """Keras imports scikit-learn's base by itself, but not its data."""
    script = (
        "import sys, tfkd.data\n"
        "for name in 'tensorflow_datasets', 'sklearn.datasets':\n"
        "    assert name not in sys.modules, name"
    )
    root = pathlib.Path(tfkd.data.__file__).absolute().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "name", ["mnist", "idx", "idx:", "digits:8", "", None, 3]
)
def test_unknown_name_is_refused_with_the_list(name):
    with pytest.raises(ValueError, match="Expected one of") as error:
        tfkd.data.load(name, batch_size=8)
    assert all(known in str(error.value) for known in tfkd.data.NAMES)
    assert f"Received: name={name!r}" in str(error.value)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None, "8"])
def test_batch_size_must_be_a_positive_integer(batch_size):
    with pytest.raises(ValueError, match="`batch_size`"):
        load(batch_size=batch_size)


@pytest.mark.parametrize("examples_per_class", [0, -1, 2.0, True, "8"])
def test_subset_must_be_a_positive_integer(examples_per_class):
    with pytest.raises(ValueError, match="`examples_per_class`"):
        load(examples_per_class=examples_per_class)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, None])
def test_seed_must_be_an_unsigned_32_bit_integer(seed):
    with pytest.raises(ValueError, match="`seed`"):
        load(seed=seed)


def test_subset_larger_than_a_class_is_refused():
    """The scarcest class, the eights, has 174 - 17 - 35 = 122 images."""
    assert load(examples_per_class=122).num_train == 1220
    with pytest.raises(ValueError, match=r"at most 122.*class '8'.*=123"):
        load(examples_per_class=123)
