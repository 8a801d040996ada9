"""`folder:`: photographs in folders of classes, and every fault of them."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from prepared import photograph

import tfkd.data

SIZES = {"train": (12, 30), "test": (3, 4)}


@pytest.fixture
def folder(tmp_path):
    """Classes cat and dog; each photograph is red by its number."""
    return write(tmp_path / "pets", SIZES)


def write(root, sizes):
    """Photographs 0, 4, 8 ... in the order of part, class and name."""
    number = 0
    for part, counts in sizes.items():
        for name, count in zip(("cat", "dog"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                path = root / part / name / f"{i:03}.jpg"
                path.write_bytes(photograph(number))
                number += 4
    return root


def load(folder, **overrides):
    arguments = {"batch_size": 5, "image_size": 28, **overrides}
    return tfkd.data.load(f"folder:{folder}", **arguments)


def pixels(dataset, x):
    """Images in units of 0 to 255."""
    return x * np.array(dataset.std) + np.array(dataset.mean)


def examples(dataset, split):
    """The numbers of the photographs of one epoch, and their labels."""
    numbers, labels = [], []
    for x, y in getattr(dataset, split).as_numpy_iterator():
        red = pixels(dataset, x)[..., 0].reshape(len(x), -1).mean(-1)
        numbers.extend(np.round(red / 4).astype(int).tolist())
        labels.extend(y.tolist())
    return numbers, labels


def test_describes_itself(folder):
    data = load(folder)
    assert data.name == f"folder:{folder}"
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    assert data.input_shape == (28, 28, 3)
    assert load(folder, image_size=None).input_shape == (224, 224, 3)
    assert (data.num_train, data.num_validation, data.num_test) == (38, 4, 7)
    assert data.skipped == ()
    for split, size in ((data.train, 8), (data.validation, 1), (data.test, 2)):
        assert split.cardinality() == size
        assert split.element_spec == (
            tf.TensorSpec((None, 28, 28, 3), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        )


def test_splits_are_disjoint_stratified_and_whole(folder):
    """Tenths of 12 and 30 are 1 and 3; the other 42 - 4 are for training."""
    data = load(folder)
    train, train_labels = examples(data, "train")
    validation, validation_labels = examples(data, "validation")
    test, test_labels = examples(data, "test")
    assert np.bincount(validation_labels).tolist() == [1, 3]
    assert np.bincount(train_labels).tolist() == [11, 27]
    assert sorted(train + validation) == list(range(42))
    assert test == list(range(42, 49))
    assert test_labels == [0] * 3 + [1] * 4
    for numbers, labels in (
        (train, train_labels),
        (validation, validation_labels),
    ):
        assert labels == [int(number >= 12) for number in numbers]


def test_splits_are_the_same_for_every_seed_and_the_order_is_not(folder):
    one, other, again = (load(folder, seed=seed) for seed in (1, 2, 1))
    assert examples(one, "validation") == examples(other, "validation")
    first, second = examples(one, "train"), examples(one, "train")
    assert first != second
    assert sorted(first[0]) == sorted(second[0])
    assert first != examples(other, "train")
    assert first == examples(again, "train")
    assert second == examples(again, "train")


def test_a_validation_folder_is_the_validation_split(folder):
    for name in ("cat", "dog"):
        (folder / "validation" / name).mkdir(parents=True)
        path = folder / "validation" / name / "x.jpg"
        path.write_bytes(photograph(200))
    data = load(folder)
    assert (data.num_train, data.num_validation, data.num_test) == (42, 2, 7)
    assert examples(data, "validation") == ([50, 50], [0, 1])
    assert sorted(examples(data, "train")[0]) == list(range(42))


def test_evaluation_is_the_middle_crop_standardised_as_imagenet(folder):
    """40x60 becomes 32x48; rows 2 to 29 and columns 10 to 37 of it.

    Linear in the place: column j of 48 is at (j + 0.5) 60/48 - 0.5 of 60.
    """
    data = load(folder)
    assert data.mean == (123.675, 116.28, 103.53)
    assert data.std == (58.395, 57.12, 57.375)
    x, _ = next(data.test.as_numpy_iterator())
    image = pixels(data, x)[0]
    columns = ((np.arange(10, 38) + 0.5) * 60 / 48 - 0.5) * 255 / 59
    rows = ((np.arange(2, 30) + 0.5) * 40 / 32 - 0.5) * 255 / 39
    np.testing.assert_allclose(image[..., 0], 4 * 42, atol=4)
    np.testing.assert_allclose(image.mean(1)[:, 1], rows, atol=4)
    np.testing.assert_allclose(image.mean(0)[:, 2], columns, atol=4)


def directions(images):
    """Whether blue falls rightwards: mirrored."""
    return images[:, :, 0, 2].mean(-1) > images[:, :, -1, 2].mean(-1)


def test_augmented_crops_differ_by_epoch_and_repeat_by_seed(folder):
    data, again = (load(folder, augment=True, index=True) for _ in range(2))
    epochs = []
    for _ in range(4):
        images, labels = {}, {}
        for (x, y), (same, _) in zip(data.train, again.train, strict=True):
            np.testing.assert_array_equal(x, same)
            for i, index in enumerate(y["index"].numpy()):
                images[index] = pixels(data, x[i].numpy())
                labels[index] = int(y["label"][i])
        assert sorted(images) == list(range(38))
        assert [labels[i] for i in range(38)] == [0] * 11 + [1] * 27
        epochs.append(np.stack([images[i] for i in range(38)]))
    mirrored = np.stack([directions(images) for images in epochs])
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(4 * 38)
    same = [np.array_equal(a, b) for a, b in zip(*epochs[:2], strict=True)]
    assert np.mean(same) < 0.1
    # Red tells the photograph, the same in each epoch.
    red = np.stack([images[..., 0].mean((1, 2)) for images in epochs])
    np.testing.assert_allclose(red, red[:1].repeat(4, 0), atol=1)


def test_evaluation_is_not_augmented(folder):
    plain, augmented = load(folder), load(folder, augment=True)
    for split in ("validation", "test"):
        for (x, _), (same, _) in zip(
            getattr(plain, split), getattr(augmented, split), strict=True
        ):
            np.testing.assert_array_equal(x, same)


def test_ten_crops_of_the_test_split_alone(folder):
    data, plain = load(folder, ten_crop=True), load(folder)
    x, y = next(iter(data.test))
    assert x.shape == (5, 10, 28, 28, 3)
    assert data.test.element_spec[0].shape.as_list() == [None, 10, 28, 28, 3]
    assert data.validation.element_spec == plain.validation.element_spec
    assert data.train.element_spec == plain.train.element_spec
    assert data.input_shape == plain.input_shape
    middle, labels = next(iter(plain.test))
    np.testing.assert_array_equal(x[:, 4], middle)
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_array_equal(x[:, 5:], x[:, :5, :, ::-1])


def test_subsets_classes_and_indices(folder):
    data = load(folder, classes=[1], examples_per_class=9, index=True)
    assert data.class_names == ("dog",)
    assert (data.num_train, data.num_validation, data.num_test) == (9, 3, 4)
    records = [y for _, y in data.train.as_numpy_iterator()]
    indices = np.concatenate([y["index"] for y in records])
    np.testing.assert_array_equal(np.sort(indices), range(9))
    assert not np.concatenate([y["label"] for y in records]).any()
    whole = examples(load(folder), "train")[0]
    some = examples(load(folder, classes=[1], examples_per_class=9), "train")
    assert set(some[0]) < set(whole)
    assert min(some[0]) >= 12


def test_every_suffix_and_size_is_read(folder):
    images = tf.cast(
        tf.reshape(tf.range(30 * 9 * 3), (30, 9, 3)) % 256, "uint8"
    )
    (folder / "test" / "cat" / "a.PNG").write_bytes(
        tf.io.encode_png(images).numpy()
    )
    (folder / "test" / "cat" / "b.jpeg").write_bytes(
        photograph(7, height=9, width=300)
    )
    (folder / "test" / "cat" / "c.jpg").write_bytes(
        tf.io.encode_jpeg(images[..., :1]).numpy()
    )
    assert len(examples(load(folder), "test")[0]) == 10


# === Faults ===


def test_classes_too_small_to_be_split_are_refused(tmp_path):
    """Tenths of 5 and 4 are none; with the 12 of cat there is one."""
    write(tmp_path, {"train": (12, 4), "test": (1, 1)})
    assert load(tmp_path).num_validation == 1
    with pytest.raises(ValueError, match="Too few.*classes dog.*4 for train"):
        load(tmp_path, classes=[1])
    (tmp_path / "train").rename(tmp_path / "old")
    write(tmp_path / "new", {"train": (5, 4)})
    (tmp_path / "new" / "train").rename(tmp_path / "train")
    with pytest.raises(ValueError, match="Too few examples.*0 for validation"):
        load(tmp_path)


def test_hidden_files_are_passed_over(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / "train" / ".DS_Store").write_text("x")
    (folder / "train" / "cat" / "._000.jpg").write_text("x")
    assert load(folder).num_train == 38


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_missing_folders_are_named(folder, missing):
    target = folder / missing
    target.rename(folder.parent / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"No folder {target}"):
        load(folder)


def test_an_empty_class_is_named(folder):
    (folder / "test" / "fox").mkdir()
    with pytest.raises(ValueError, match=f"Empty class {folder}/test/fox"):
        load(folder)


def test_a_part_without_classes_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=f"No class in {tmp_path}/train"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("test", "only in train: none; only in test: fox"),
        ("train", "only in train: fox; only in test: none"),
    ],
)
def test_unequal_classes_are_named(folder, part, text):
    (folder / part / "fox").mkdir()
    (folder / part / "fox" / "a.jpg").write_bytes(photograph(0))
    with pytest.raises(ValueError, match=f"Different classes in.*{text}"):
        load(folder)


@pytest.mark.parametrize("name", ["notes.txt", "photo", "photo.jpg.part"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_file_that_is_no_photograph_is_named(folder, name, skip):
    path = folder / "train" / "cat" / name
    path.write_bytes(photograph(0))
    with pytest.raises(ValueError, match=f"{path} is no photograph"):
        load(folder, skip_corrupt=skip)


def test_a_folder_in_a_class_is_named(folder):
    path = folder / "train" / "cat" / "more.jpg"
    path.mkdir()
    with pytest.raises(ValueError, match=f"{path} is no photograph"):
        load(folder)


def test_a_file_beside_the_classes_is_named(folder):
    path = folder / "train" / "000.jpg"
    path.write_bytes(photograph(0))
    with pytest.raises(ValueError, match=f"Unexpected file {path}"):
        load(folder)


def damaged(kind):
    whole = photograph(0)
    return {
        "text": b"<html>not found</html>",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "almost whole": whole[:-20],
        "head only": whole[:100],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["text", "empty", "cut", "almost whole", "head only"]
)
def test_a_corrupt_file_is_named(folder, kind):
    path = folder / "train" / "dog" / "004.jpg"
    path.write_bytes(damaged(kind))
    with pytest.raises(ValueError, match=rf"Corrupt.*{path} \(.+skip_corrupt"):
        load(folder)


def test_corrupt_files_are_skipped_and_counted_on_request(folder, caplog):
    """Two of 30 dogs and one of four in the test; the others stay."""
    paths = [
        folder / "test" / "dog" / "003.jpg",
        folder / "train" / "dog" / "004.jpg",
        folder / "train" / "dog" / "007.jpg",
    ]
    for path, kind in zip(paths, ("cut", "text", "empty"), strict=True):
        path.write_bytes(damaged(kind))
    with caplog.at_level(logging.WARNING, logger="tfkd"):
        data = load(folder, skip_corrupt=True)
    assert sorted(data.skipped) == [str(path) for path in paths]
    assert "Left out 3 corrupt photographs" in caplog.text
    assert all(str(path) in caplog.text for path in paths)
    assert (data.num_train, data.num_validation, data.num_test) == (36, 4, 6)
    read = examples(data, "train")[0] + examples(data, "validation")[0]
    assert sorted(read) == sorted({*range(42)} - {12 + 4, 12 + 7})
    assert examples(data, "test")[0] == [42, 43, 44, 45, 46, 47]


def test_many_corrupt_files_are_named_in_part(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.write_text("x")
    with pytest.raises(ValueError, match="and 25 more"):
        load(folder)
    with pytest.raises(
        ValueError, match=f"No photograph in {folder}/train/dog"
    ):
        load(folder, skip_corrupt=True)


@pytest.mark.parametrize("what", ["file", "class", "part"])
def test_links_out_of_the_folder_are_named(folder, tmp_path, what):
    target, link = {
        "file": ("000.jpg", folder / "train" / "cat" / "link.jpg"),
        "class": ("cat", folder / "train" / "link"),
        "part": ("train", folder / "validation"),
    }[what]
    outside = tmp_path / "outside" / target
    if what == "file":
        outside.parent.mkdir()
        outside.write_bytes(photograph(0))
    else:
        write(tmp_path / "outside", {"train": (1, 1)})
        outside = tmp_path / "outside" / "train"
        outside = outside / "cat" if what == "class" else outside
    link.symlink_to(outside)
    with pytest.raises(ValueError, match=f"{link}.* leads out of.* by a link"):
        load(folder)


def test_links_within_the_folder_and_to_it_are_followed(folder, tmp_path):
    link = folder / "train" / "cat" / "link.jpg"
    link.symlink_to(folder / "train" / "cat" / "000.jpg")
    (tmp_path / "alias").symlink_to(folder)
    assert load(tmp_path / "alias").num_train == 39  # 12 of 13 cats, 27 dogs


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("digits", {"image_size": 32}),
        ("digits", {"ten_crop": True}),
        ("digits", {"skip_corrupt": True}),
        ("digits", {"data_dir": "x"}),
        ("digits", {"download": True}),
        ("idx:x", {"ten_crop": True}),
        ("cifar10", {"image_size": 32}),
        ("cifar100", {"ten_crop": True}),
        ("svhn_cropped", {"skip_corrupt": True}),
        ("folder:x", {"data_dir": "x"}),
        ("folder:x", {"download": True}),
    ],
)
def test_options_of_other_datasets_are_refused(name, option):
    (argument,) = option
    with pytest.raises(ValueError, match=f"`{argument}`.*is only for"):
        tfkd.data.load(name, batch_size=8, **option)


@pytest.mark.parametrize("image_size", [0, -1, 2.5, True, "224"])
def test_image_size_must_be_a_positive_integer(folder, image_size):
    with pytest.raises(ValueError, match="`image_size`"):
        load(folder, image_size=image_size)
