"""Augmented training images: true crops, mirrors, seeds and indices."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkd
from tfkd.data import augmentation
from tfkd.data import dataset as dataset_lib

PADDING = 4


def draw(images, *, seed=(1, 2), mirror=True, **kwargs):
    """What `shift_and_mirror` makes of some images."""
    seed = tf.constant(seed, tf.int64)
    return augmentation.shift_and_mirror(
        tf.constant(images), seed=seed, mirror=mirror, **kwargs
    ).numpy()


def crops(image):
    """Every copy of an image: (row, column, mirrored) -> bytes."""
    height, width, _ = image.shape
    margin = (PADDING, PADDING)
    padded = np.pad(image, (margin, margin, (0, 0)))
    copies = {}
    for row, column in np.ndindex(2 * PADDING + 1, 2 * PADDING + 1):
        copy = padded[row : row + height, column : column + width]
        copies[row, column, False] = copy.tobytes()
        copies[row, column, True] = copy[:, ::-1].tobytes()
    return copies


def places(images, copies):
    """Where each copy was cropped: arrays `[batch]` row, column, mirrored."""
    found = []
    for image, copy in zip(images, copies, strict=True):
        known = {content: place for place, content in crops(image).items()}
        found.append(known[copy.tobytes()])  # else it is no true crop
    return np.array(found).T


@pytest.fixture(scope="module")
def noise():
    """Images in which every crop differs from every other."""
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (400, 7, 9, 3), dtype=np.uint8)


def test_every_copy_is_a_crop_of_the_padded_image(noise):
    """Any of the 81 places and of the two directions, each by its chance.

    Of 400 draws, each of 9 rows has 44.4 with a deviation of 6.3, each
    direction 200 with one of 10: within 5 deviations.
    """
    rows, columns, mirrored = places(noise, draw(noise))
    for shifts in (rows, columns):
        counts = np.bincount(shifts, minlength=9)
        assert len(counts) == 9
        assert np.abs(counts - 400 / 9).max() < 32
    assert abs(mirrored.sum() - 200) < 50
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 5 / np.sqrt(400)


def test_a_hand_made_crop():
    """Of one pixel, padded by one zero, 4 in 9 crops hold the corner 2x2."""
    image = np.array([[[[5.0], [7.0]]]], "float32")  # 1 x 2 pixels
    copies = np.concatenate(
        [draw(image, seed=(0, i), padding=1) for i in range(200)]
    )
    seen = {tuple(copy.ravel().tolist()) for copy in copies}
    # Rows 0, 1, 2 of [0, 5 7, 0]; columns 0, 1, 2 of [0 5 7 0]; reversed.
    assert seen == {
        (0.0, 0.0),
        (0.0, 5.0),
        (5.0, 7.0),
        (7.0, 0.0),
        (5.0, 0.0),
        (7.0, 5.0),
        (0.0, 7.0),
    }


def test_nothing_is_mirrored_unless_asked_for(noise):
    _, _, mirrored = places(noise, draw(noise, mirror=False))
    assert not mirrored.any()


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_keeps_type_and_shape(noise, dtype):
    images = noise.astype(dtype)
    copies = draw(images)
    assert (copies.dtype, copies.shape) == (images.dtype, images.shape)
    np.testing.assert_array_equal(copies, draw(noise).astype(dtype))


def test_is_the_same_in_a_graph(noise):
    """Pipelines run on the host and are never compiled by XLA."""
    seed = tf.constant([3, 4], tf.int64)
    function = tf.function(augmentation.shift_and_mirror)
    np.testing.assert_array_equal(
        function(tf.constant(noise), seed=seed, mirror=True),
        draw(noise, seed=(3, 4)),
    )


def test_draws_never_change(noise):
    """Frozen: other draws would change the results of every recipe."""
    rows, columns, mirrored = places(noise[:6], draw(noise[:6]))
    assert rows.tolist() == [7, 1, 8, 1, 2, 5]
    assert columns.tolist() == [0, 0, 3, 0, 1, 1]
    assert mirrored.tolist() == [1, 1, 0, 1, 0, 1]


# === load ===


def images_of(name, mirrors, **kwargs):
    """A made-up source, assembled."""
    rng = np.random.default_rng(1)
    images = rng.integers(1, 256, (300, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(300) % 256  # tells images apart
    source = dataset_lib.Source(
        train=dataset_lib.Examples(images, np.arange(300) % 3, mirrors),
        test=None,
        class_names=("a", "b", "c"),
        origin="this test",
    )
    return dataset_lib.assemble(name, source, batch_size=32, **kwargs)


def epoch(pipeline, dataset):
    """Images in pixel units by their index, and their labels."""
    images, labels = {}, {}
    for x, y in pipeline.as_numpy_iterator():
        pixels = np.round(x * np.array(dataset.std) + np.array(dataset.mean))
        for i, index in enumerate(y["index"]):
            images[int(index)] = pixels[i].astype(np.uint8)
            labels[int(index)] = int(y["label"][i])
    order = sorted(images)
    assert order == list(range(len(order)))
    return np.stack([images[i] for i in order]), [labels[i] for i in order]


@pytest.mark.parametrize("mirrors", [True, False])
def test_training_images_are_crops_of_their_own_image(mirrors):
    """Of the image with the same index, with its label, in every epoch.

    Of 210 images, half with a deviation of 7.2 are mirrored.
    """
    plain = images_of("plain", mirrors, seed=3, index=True)
    augmented = images_of("new", mirrors, seed=3, index=True, augment=True)
    assert (augmented.mean, augmented.std) == (plain.mean, plain.std)
    originals, labels = epoch(plain.train, plain)
    previous = None
    for _ in range(2):
        copies, copied_labels = epoch(augmented.train, augmented)
        assert copied_labels == labels
        found = places(originals, copies)
        share = found[2].mean()
        assert share == 0 if not mirrors else abs(share - 0.5) < 0.18
        assert previous is None or (found != previous).any(0).mean() > 0.9
        previous = found


def test_evaluation_is_never_augmented():
    plain = images_of("plain", True, seed=3, index=True)
    augmented = images_of("new", True, seed=3, index=True, augment=True)
    for split in ("validation", "test"):
        for (x, y), (x_new, y_new) in zip(
            getattr(plain, split), getattr(augmented, split), strict=True
        ):
            np.testing.assert_array_equal(x, x_new)
            np.testing.assert_array_equal(y["index"], y_new["index"])


def first_epochs(seed, number=2):
    data = tfkd.data.load(
        "digits", batch_size=50, examples_per_class=10, seed=seed, augment=True
    )
    return np.stack(
        [
            np.concatenate([x for x, _ in data.train.as_numpy_iterator()])
            for _ in range(number)
        ]
    )


def test_one_seed_gives_the_same_epochs_and_another_does_not():
    one = first_epochs(1)
    np.testing.assert_array_equal(one, first_epochs(1))
    assert not np.array_equal(one, first_epochs(2))


def test_a_fresh_process_without_a_global_seed_repeats_the_epochs():
    script = (
        "import hashlib, tfkd\n"
        "data = tfkd.data.load('digits', batch_size=50,"
        " examples_per_class=10, augment=True)\n"
        "digest = hashlib.sha256()\n"
        "for _ in range(2):\n"
        "    for x, y in data.train.as_numpy_iterator():\n"
        "        digest.update(x.tobytes() + y.tobytes())\n"
        "print(digest.hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_cardinality_and_types_are_those_of_plain_images():
    plain, augmented = (
        tfkd.data.load(
            "digits",
            batch_size=32,
            examples_per_class=10,
            index=True,
            augment=augment,
        ).train
        for augment in (False, True)
    )
    assert augmented.cardinality() == plain.cardinality() == 4
    assert augmented.element_spec == plain.element_spec
    assert [len(x) for x, _ in augmented] == [32, 32, 32, 4]


def test_repeating_goes_on_to_new_copies():
    data = images_of("new", True, seed=0, index=True, augment=True)
    batches = list(data.train.repeat(2).as_numpy_iterator())
    first, second = batches[:7], batches[7:]
    by_index = [
        {
            int(i): x
            for images, y in half
            for x, i in zip(images, y["index"], strict=True)
        }
        for half in (first, second)
    ]
    same = [np.array_equal(by_index[0][i], by_index[1][i]) for i in by_index[0]]
    assert len(same) == 210
    assert np.mean(same) < 0.1


@pytest.mark.parametrize("index", [True, False])
def test_caching_refuses_augmented_images(tmp_path, make_network, index):
    data = images_of("new", True, seed=0, index=index, augment=True)
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    with pytest.raises(ValueError, match="it is augmented"):
        tfkd.caching.with_teacher(
            data.train,
            teacher=keras.Model(inputs, outputs),
            matches=[tfkd.Match("mse")],
            cache_dir=tmp_path,
            verbose=0,
        )


def test_trains_a_network_with_indices():
    """One epoch of a Distiller: records with an index, new in each epoch."""
    data = images_of("new", True, seed=0, index=True, augment=True)
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    distiller = tfkd.Distiller(student=keras.Model(inputs, outputs))
    distiller.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    distiller.fit(data.train, epochs=2, verbose=0)
    assert int(distiller.optimizer.iterations) == 2 * 7


@pytest.mark.parametrize("option", ["augment", "index"])
@pytest.mark.parametrize("value", [None, "yes", 2])
def test_switches_are_true_or_false(option, value):
    with pytest.raises(ValueError, match=f"`{option}`"):
        tfkd.data.load("digits", batch_size=8, **{option: value})
