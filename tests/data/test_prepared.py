"""Datasets of TensorFlow Datasets: found, streamed, and what is missing."""

import logging
import shutil
import sys

import numpy as np
import pytest
import requests
import tensorflow as tf
from prepared import mocked, photograph, prepare

import tfkd.data
from tfkd.data import prepared

SMALL = ("cifar10", "cifar100", "svhn_cropped")
PHOTOGRAPHS = (
    "imagenet2012",
    "caltech_birds2011",
    "cars196",
    "stanford_dogs",
    "food101",
)
CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "svhn_cropped": 10,
    "imagenet2012": 1000,
    "caltech_birds2011": 200,
    "cars196": 196,
    "stanford_dogs": 120,
    "food101": 101,
}


def labels_of(pipeline):
    return np.concatenate([y for _, y in pipeline.as_numpy_iterator()])


@pytest.mark.parametrize("name", SMALL)
def test_every_name_of_small_images_is_served(name, tmp_path):
    """1200 random labels; each class gives a tenth to validation."""
    with mocked(name, tmp_path, 1200):
        data = tfkd.data.load(name, batch_size=64, data_dir=tmp_path)
        assert data.input_shape == (32, 32, 3)
        assert data.num_classes == len(data.class_names) == CLASSES[name]
        test = labels_of(data.test)  # the mock's splits are all the same
        counts = np.bincount(test, minlength=data.num_classes)
        validation = np.round(counts / 10).astype(int)
        np.testing.assert_array_equal(
            np.bincount(labels_of(data.validation), minlength=data.num_classes),
            validation,
        )
        train = labels_of(data.train)
        np.testing.assert_array_equal(
            np.bincount(train, minlength=data.num_classes),
            counts - validation,
        )
        x = np.concatenate([x for x, _ in data.train])
        x = x.astype(np.float64)
        np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_name_of_photographs_is_served(name, tmp_path):
    number = max(300, 2 * CLASSES[name])
    with mocked(name, tmp_path, number):
        data = tfkd.data.load(
            name,
            batch_size=64,
            data_dir=tmp_path,
            image_size=7,
            augment=True,
            index=True,
            ten_crop=True,
        )
        assert data.num_classes == len(data.class_names) == CLASSES[name]
        assert data.num_test == number
        assert data.num_train + data.num_validation == number
        assert 0 < data.num_validation < number / 8
        x, y = next(iter(data.test))
        assert x.shape == (64, 10, 7, 7, 3)
        labels, indices = [], []
        for x, y in data.train.as_numpy_iterator():
            assert x.shape[1:] == (7, 7, 3)
            labels.append(y["label"])
            indices.append(y["index"])
        indices = np.concatenate(indices)
        np.testing.assert_array_equal(np.sort(indices), range(data.num_train))
        validation = np.concatenate(
            [y["label"] for _, y in data.validation.as_numpy_iterator()]
        )
        train_sizes, sizes = (
            np.bincount(part, minlength=data.num_classes)
            for part in (np.concatenate(labels), validation)
        )
        np.testing.assert_array_equal(
            sizes, np.round((train_sizes + sizes) / 10)
        )


@pytest.mark.parametrize(
    ("name", "mirrors"), [("cifar10", True), ("svhn_cropped", False)]
)
def test_digits_of_houses_are_never_mirrored(name, mirrors, tmp_path):
    """The mirrored copies of random images are crops of no plain one."""
    with mocked(name, tmp_path, 120):
        plain, augmented = (
            tfkd.data.load(
                name,
                batch_size=120,
                data_dir=tmp_path,
                index=True,
                augment=augment,
            )
            for augment in (False, True)
        )
        (x, y), (copies, y_copies) = (
            next(data.train.as_numpy_iterator()) for data in (plain, augmented)
        )
    originals = dict(zip(y["index"], x, strict=True))
    # The middle of a copy, 24x24, is 24 wide at some place of the original.
    found = [
        _shows(originals[index], copy[4:28, 4:28])
        for index, copy in zip(y_copies["index"], copies, strict=True)
    ]
    share = np.mean(found)
    assert share == 1 if not mirrors else abs(share - 0.5) < 0.25


def _shows(image, patch):
    """Whether a patch is a part of an image, not mirrored."""
    size = len(patch)
    return any(
        np.array_equal(image[i : i + size, j : j + size], patch)
        for i in range(33 - size)
        for j in range(33 - size)
    )


# === Files that are really there ===


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    """60 + 12 photographs in four files a split, red by their number."""
    folder = tmp_path_factory.mktemp("tfds")
    splits = {
        "train": [(photograph(4 * i), i % 3) for i in range(60)],
        "test": [(photograph(4 * i), i % 3) for i in range(12)],
    }
    prepare("cars196", folder, splits)
    return folder


def load(folder, **overrides):
    arguments = {"batch_size": 7, "image_size": 28, **overrides}
    return tfkd.data.load("cars196", data_dir=folder, **arguments)


def examples(data, split):
    """The numbers of the photographs of one epoch, labels and indices."""
    numbers, labels, indices = [], [], []
    for x, y in getattr(data, split).as_numpy_iterator():
        pixels = x * np.array(data.std) + np.array(data.mean)
        red = pixels[..., 0].reshape(len(x), -1).mean(-1)
        numbers.extend(np.round(red / 4).astype(int).tolist())
        labels.extend(y["label"].tolist())
        indices.extend(y["index"].tolist())
    return numbers, labels, indices


def test_splits_are_disjoint_stratified_and_whole(cars):
    """A tenth of 20 is 2 of each of the three classes."""
    data = load(cars, index=True)
    assert data.class_names == ("a", "b", "c")
    assert (data.num_train, data.num_validation, data.num_test) == (54, 6, 12)
    train, validation, test = (
        examples(data, split) for split in ("train", "validation", "test")
    )
    assert sorted(train[0] + validation[0]) == list(range(60))
    assert sorted(test[0]) == list(range(12))
    assert np.bincount(validation[1]).tolist() == [2, 2, 2]
    for numbers, labels, indices in (train, validation, test):
        assert labels == [number % 3 for number in numbers]
        assert sorted(indices) == list(range(len(numbers)))
    assert validation[2] == list(range(6))
    assert test[2] == list(range(12))
    for split, size in ((data.train, 8), (data.validation, 1), (data.test, 2)):
        assert split.cardinality() == size


def test_an_index_is_always_the_same_photograph(cars):
    """In every epoch, and for every seed without a subset."""
    known = {}
    for seed in (1, 2):
        data = load(cars, index=True, seed=seed)
        for _ in range(2):
            numbers, _, indices = examples(data, "train")
            for number, index in zip(numbers, indices, strict=True):
                assert known.setdefault(index, number) == number


def test_data_that_name_files_elsewhere_are_refused(cars, tmp_path):
    """By a template of names with dots in it."""
    cars = shutil.copytree(cars, tmp_path / "data")
    (info,) = (cars / "cars196").glob("*/dataset_info.json")
    text = info.read_text()
    name = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    assert name in text
    info.write_text(text.replace(name, f"../../../{name}"))
    with pytest.raises(ValueError, match="leads out of"):
        load(cars)


def test_data_that_link_to_files_elsewhere_are_refused(cars, tmp_path):
    cars = shutil.copytree(cars, tmp_path / "data")
    file = next((cars / "cars196").glob("*/*tfrecord*"))
    outside = tmp_path / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of") as error:
        load(cars)
    assert str(outside) in str(error.value)


def test_order_is_new_in_every_epoch_and_repeats_by_seed(cars):
    one, again, other = (load(cars, index=True, seed=s) for s in (1, 1, 2))
    first, second = examples(one, "train"), examples(one, "train")
    assert first != second
    assert first == examples(again, "train")
    assert second == examples(again, "train")
    assert first != examples(other, "train")
    assert examples(one, "validation") == examples(other, "validation")
    assert examples(one, "test") == examples(one, "test")


def test_more_photographs_than_are_shuffled_at_once(cars, monkeypatch):
    """54 for a buffer of 8: neither kept in memory, nor lost, nor doubled."""
    monkeypatch.setattr(prepared, "BUFFER", 8)
    data, again = (load(cars, index=True, seed=1) for _ in range(2))
    first, second = examples(data, "train"), examples(data, "train")
    assert sorted(first[0]) == sorted(second[0])
    assert len(set(first[0])) == 54
    assert first != second
    assert first == examples(again, "train")
    assert second == examples(again, "train")


def test_augmented_copies_differ_by_epoch_and_repeat_by_seed(cars):
    data, again = (load(cars, augment=True, index=True) for _ in range(2))
    epochs = []
    for _ in range(2):
        images = {}
        for (x, y), (same, _) in zip(data.train, again.train, strict=True):
            np.testing.assert_array_equal(x, same)
            images |= dict(zip(y["index"].numpy(), x.numpy(), strict=True))
        epochs.append(images)
    same = [np.array_equal(epochs[0][i], epochs[1][i]) for i in range(54)]
    assert np.mean(same) < 0.1


def test_classes_and_subsets(cars):
    data = load(cars, classes=[2, 0], examples_per_class=5, index=True)
    assert data.class_names == ("c", "a")
    assert (data.num_train, data.num_validation, data.num_test) == (10, 4, 8)
    numbers, labels, indices = examples(data, "train")
    assert sorted(labels) == [0] * 5 + [1] * 5
    assert [(2, 0)[label] for label in labels] == [n % 3 for n in numbers]
    assert sorted(indices) == list(range(10))
    assert not set(numbers) & set(
        examples(load(cars, index=True), "validation")[0]
    )


def test_ten_crops_hold_the_middle_crop(cars):
    views, _ = next(iter(load(cars, ten_crop=True).test))
    middle, _ = next(iter(load(cars).test))
    assert views.shape == (7, 10, 28, 28, 3)
    np.testing.assert_array_equal(views[:, 4], middle)


def test_training_on_all_leaves_nothing_held_out(cars):
    """Validation is then the test split in its middle crops."""
    data = load(cars, index=True, validation_from="test", ten_crop=True)
    assert (data.num_train, data.num_validation, data.num_test) == (60, 12, 12)
    assert sorted(examples(data, "train")[0]) == list(range(60))
    middle, _ = next(iter(data.validation))
    views, _ = next(iter(data.test))
    np.testing.assert_array_equal(views[:, 4], middle)


def test_small_images_of_files(tmp_path):
    """Numbers 0 to 59 as images of one size; their moments by hand."""
    images = [np.full((32, 32, 3), 4 * i, np.uint8) for i in range(60)]
    content = [
        (tf.io.encode_png(image).numpy(), i % 3)
        for i, image in enumerate(images)
    ]
    prepare("cifar10", tmp_path, {"train": content, "test": content[:6]})
    data = tfkd.data.load(
        "cifar10", batch_size=10, data_dir=tmp_path, index=True
    )
    train, validation, test = (
        examples(data, split) for split in ("train", "validation", "test")
    )
    assert sorted(train[0] + validation[0]) == list(range(60))
    assert sorted(test[0]) == list(range(6))
    assert train[1] == [number % 3 for number in train[0]]
    values = 4.0 * np.array(train[0])
    np.testing.assert_allclose(data.mean, [values.mean()] * 3)
    np.testing.assert_allclose(data.std, [values.std()] * 3)


def test_the_latest_version_is_read(tmp_path):
    for version, number in (("9.0.0", 18), ("10.0.0", 21), ("2.0.0", 24)):
        examples = [(photograph(i), i % 3) for i in range(number)]
        prepare(
            "cars196",
            tmp_path,
            {"train": examples, "test": examples},
            version=version,
        )
    (tmp_path / "cars196" / "11.0.0.incomplete").mkdir()
    data = load(tmp_path)
    assert data.num_test == 21


def test_the_environment_says_where(cars, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(cars))
    assert load(None).num_train == 54


# === What is missing or damaged ===


@pytest.fixture
def offline(monkeypatch):
    """A network that is not there."""

    def refuse(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests.Session, "send", refuse)


@pytest.mark.parametrize("name", [*SMALL, *PHOTOGRAPHS])
def test_missing_data_say_where_to_put_them(name, tmp_path, offline):
    with pytest.raises(FileNotFoundError) as error:
        tfkd.data.load(name, batch_size=8, data_dir=tmp_path)
    text = str(error.value)
    assert f"No prepared data of '{name}' in {tmp_path / name}" in text
    assert "download=True" in text
    assert "data_dir" in text


@pytest.mark.parametrize("download", [True, False])
def test_imagenet_says_which_files_must_be_downloaded(tmp_path, download):
    folder = tmp_path / "downloads" / "manual"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(FileNotFoundError) as error:
        tfkd.data.load(
            "imagenet2012",
            batch_size=8,
            data_dir=tmp_path,
            download=download,
        )
    text = str(error.value)
    for part in (
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        "image-net.org/download-images",
        f"into {folder}",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["cifar10", "cars196"])
def test_a_download_without_a_network_is_refused(name, tmp_path, offline):
    with pytest.raises(ConnectionError, match=f"Cannot download '{name}'"):
        tfkd.data.load(name, batch_size=8, data_dir=tmp_path, download=True)
    assert not any(tmp_path.iterdir())


def test_prepared_data_are_found_without_a_network(cars, offline):
    assert load(cars, download=True).num_train == 54


def test_without_tensorflow_datasets_the_error_says_what_to_install(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install.*tensorflow-datasets"):
        tfkd.data.load("cifar10", batch_size=8)


@pytest.fixture
def damaged(tmp_path):
    """Photograph 5 is half a one, 9 is none at all."""
    train = [[photograph(4 * i), i % 3] for i in range(30)]
    train[5][0] = train[5][0][:400]
    train[9][0] = b"not found"
    prepare("cars196", tmp_path, {"train": train, "test": train[10:16]})
    return tmp_path


def test_corrupt_photographs_are_skipped_and_counted(damaged, caplog):
    with caplog.at_level(logging.WARNING, logger="tfkd"):
        data = load(damaged, skip_corrupt=True, index=True)
    assert len(data.skipped) == 2
    assert all(name.startswith("cars196-train") for name in data.skipped)
    assert "Left out 2 corrupt photographs" in caplog.text
    read = [
        number
        for split in ("train", "validation")
        for number in examples(data, split)[0]
    ]
    assert sorted(read) == sorted({*range(30)} - {5, 9})
    assert sorted(examples(data, "test")[0]) == list(range(10, 16))


@pytest.mark.parametrize("split", ["train", "test"])
def test_corrupt_photographs_are_named_when_they_are_read(tmp_path, split):
    examples = [(photograph(4 * i), i % 3) for i in range(30)]
    bad = [*examples[:29], (b"not found", 0)]
    prepare(
        "cars196",
        tmp_path,
        {"train": examples, "test": examples, split: bad},
    )
    data = load(tmp_path)
    name = rf"Corrupt photograph cars196-{split}\.tfrecord-0000\d-of-00004__\d"
    pipeline = data.test
    if split == "train":
        pipeline = data.train.concatenate(data.validation)
    with pytest.raises(tf.errors.InvalidArgumentError, match=name):
        list(pipeline)


def test_a_file_that_is_damaged_later_is_named(tmp_path):
    for part in ("train", "test"):
        for i in range(6):
            path = tmp_path / part / "a" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(i))
    data = tfkd.data.load(f"folder:{tmp_path}", batch_size=4, image_size=28)
    path.write_bytes(b"not found")
    with pytest.raises(tf.errors.InvalidArgumentError, match=str(path)):
        list(data.test)
