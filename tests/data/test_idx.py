"""IDX folders: what is read from good files, and what of damaged ones."""

import gzip
import pathlib
import struct
import tracemalloc

import numpy as np
import pytest

import tfkd.data
from tfkd.data import idx

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")


def encode(array):
    """The bytes of an IDX file with these unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim])
    dimensions = struct.pack(f">{array.ndim}I", *array.shape)
    return header + dimensions + array.astype(np.uint8).tobytes()


def make_arrays(height=28, width=28):
    """200 training and 30 test images by name of their file."""
    rng = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (200, height, width)),
        TRAIN_LABELS: np.arange(200) % 10,
        TEST_IMAGES: rng.integers(0, 256, (30, height, width)),
        TEST_LABELS: np.arange(30) % 10,
    }


def write(folder, arrays, compress=False):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        content = encode(array)
        if compress:
            name, content = f"{name}.gz", gzip.compress(content, 1)
        (folder / name).write_bytes(content)
    return folder


def load(folder):
    return tfkd.data.load(f"idx:{folder}", batch_size=25)


def pixels(dataset, pipeline):
    """Images of one epoch in the source's units, and their labels."""
    images, labels = zip(*pipeline.as_numpy_iterator(), strict=True)
    images = np.concatenate(images) * dataset.std + dataset.mean
    return np.round(images).astype(int)[..., 0], np.concatenate(labels)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "numbers", make_arrays())


@pytest.mark.parametrize("compress", [False, True])
def test_reads_raw_and_gzipped_files(tmp_path, compress):
    arrays = make_arrays()
    dataset = load(write(tmp_path / "numbers", arrays, compress))
    images, labels = pixels(dataset, dataset.test)
    np.testing.assert_array_equal(images[:, 2:30, 2:30], arrays[TEST_IMAGES])
    np.testing.assert_array_equal(labels, arrays[TEST_LABELS])
    assert dataset.name == f"idx:{tmp_path / 'numbers'}"
    assert dataset.num_classes == 10
    assert dataset.class_names == tuple("0123456789")
    assert dataset.input_shape == (32, 32, 1)


def test_validation_is_a_tenth_of_each_training_class(folder):
    """20 images of each class in the training files: 18 and 2 of them."""
    dataset = load(folder)
    train, train_labels = pixels(dataset, dataset.train)
    validation, validation_labels = pixels(dataset, dataset.validation)
    np.testing.assert_array_equal(np.bincount(train_labels), 18)
    np.testing.assert_array_equal(np.bincount(validation_labels), 2)
    assert dataset.num_train == 180
    assert dataset.num_validation == 20
    assert dataset.num_test == 30
    source = {image.tobytes() for image in make_arrays()[TRAIN_IMAGES]}
    read = [
        {image[2:30, 2:30].tobytes() for image in images}
        for images in (train, validation)
    ]
    assert len(source) == 200
    assert not read[0] & read[1]
    assert read[0] | read[1] == source


def test_standardises_by_the_padded_training_images(folder):
    """Deviations are in units of 0 to 255, the zero margin included."""
    dataset = load(folder)
    train, _ = pixels(dataset, dataset.train)
    assert train.shape == (180, 32, 32)
    assert dataset.mean == pytest.approx((train.mean(),))
    assert dataset.std == pytest.approx((train.std(),))
    images = np.concatenate([x for x, _ in dataset.train.as_numpy_iterator()])
    assert images.mean(dtype=np.float64) == pytest.approx(0.0, abs=1e-6)
    assert images.std(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("size", "padded", "corner"),
    [
        ((28, 28), (32, 32), (2, 2)),
        ((3, 31), (32, 32), (14, 0)),  # 29 rows: 14 above; 1 column: right
        ((32, 32), (32, 32), (0, 0)),
        ((20, 40), (32, 40), (6, 0)),
        ((33, 40), (33, 40), (0, 0)),
    ],
)
def test_pads_with_zeros_to_32_and_keeps_larger_sides(
    tmp_path, size, padded, corner
):
    arrays = make_arrays(*size)
    dataset = load(write(tmp_path / "numbers", arrays))
    expected = np.zeros((30, *padded), int)
    (top, left), (height, width) = corner, size
    expected[:, top : top + height, left : left + width] = arrays[TEST_IMAGES]
    images, _ = pixels(dataset, dataset.test)
    np.testing.assert_array_equal(images, expected)
    assert dataset.input_shape == (*padded, 1)


def test_folder_name_decides_the_class_names(tmp_path):
    dataset = load(write(tmp_path / "My-Fashion-MNIST", make_arrays()))
    assert dataset.class_names[0] == "T-shirt/top"
    assert dataset.class_names[9] == "Ankle boot"


def test_tilde_is_the_home_directory(tmp_path, monkeypatch):
    write(tmp_path / "numbers", make_arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/numbers").num_train == 180


def test_missing_folder_says_what_belongs_there_and_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist") as e:
        load(tmp_path / "nowhere")
    for text in (str(tmp_path / "nowhere"), *make_arrays(), str(FASHION)):
        assert text in str(e.value)


def test_file_is_no_folder(folder):
    with pytest.raises(FileNotFoundError, match="No folder"):
        load(folder / TRAIN_IMAGES)


def test_missing_files_are_listed_and_no_others(folder):
    (folder / TRAIN_LABELS).unlink()
    (folder / TEST_IMAGES).unlink()
    with pytest.raises(FileNotFoundError, match=str(folder)) as error:
        load(folder)
    for name in (TRAIN_LABELS, TEST_IMAGES):
        assert f"{name} or {name}.gz" in str(error.value)
    assert TRAIN_IMAGES not in str(error.value)


GOOD_IMAGES = encode(make_arrays()[TRAIN_IMAGES])
GOOD_LABELS = encode(make_arrays()[TRAIN_LABELS])


def with_shape(*shape):
    """A good file of images whose header promises another shape."""
    return GOOD_IMAGES[:4] + struct.pack(">3I", *shape) + GOOD_IMAGES[16:]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic number 00000803. Received: an empty file"),
        (b"\0\0\x08", "magic number 00000803. Received: 000008"),
        (GOOD_LABELS, "magic number 00000803. Received: 00000801"),
        (b"\0\0\x0d" + GOOD_IMAGES[3:], "Received: 00000d03"),
        (GOOD_IMAGES[:15], "header of 16 bytes. Received: 15"),
        (GOOD_IMAGES[:16], "156800 bytes .* Received: 0 bytes"),
        (GOOD_IMAGES[:-1], "156800 bytes .* Received: 156799 bytes"),
        (GOOD_IMAGES + b"\0", "156800 bytes .* Received: more"),
        (with_shape(199, 28, 28), "156016 bytes .* Received: more"),
        (with_shape(201, 28, 28), "157584 bytes .* Received: 156800 bytes"),
        (with_shape(0, 28, 28), r"dimensions >= 1 .*shape \(0, 28, 28\)"),
        (with_shape(200, 0, 28), r"dimensions >= 1 .*shape \(200, 0, 28\)"),
        (with_shape(*3 * [2**32 - 1]), "at most 4294967296 bytes"),
        (with_shape(2**32 - 1, 1, 1), "at most 4294967296 bytes"),
    ],
)
def test_damaged_images_are_refused(folder, content, message, compress):
    """The limit counts padded images: 2^32 of one pixel take 4 TiB."""
    name = TRAIN_IMAGES
    (folder / name).unlink()
    if compress:
        name, content = f"{name}.gz", gzip.compress(content)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert f"Invalid IDX file {folder / name}." in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD_IMAGES, "magic number 00000801. Received: 00000803"),
        (GOOD_LABELS[:-1], "200 bytes .* Received: 199 bytes"),
        (encode(np.zeros(199)), "200 images .* Received: 199 labels"),
    ],
)
def test_damaged_labels_are_refused(folder, content, message):
    (folder / TRAIN_LABELS).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert f"Invalid IDX file {folder / TRAIN_LABELS}." in str(error.value)


def flip_last(content, byte):
    """`content` with the byte that many places from its end inverted."""
    at = len(content) - byte
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


# Without the time of day, which pytest would put into the names of tests.
ZIPPED = gzip.compress(GOOD_IMAGES, mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        ZIPPED[:5],
        ZIPPED[: len(ZIPPED) // 2],
        ZIPPED[:-8],  # the checksum and the length
        flip_last(ZIPPED, 8),  # in the checksum
        flip_last(ZIPPED, len(ZIPPED) // 2),
        GOOD_IMAGES,  # no gzip at all
    ],
)
def test_damaged_gzip_is_refused(folder, content):
    (folder / TRAIN_IMAGES).unlink()
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="whole gzip stream") as error:
        load(folder)
    assert f"Invalid IDX file {path}." in str(error.value)


def peak_memory(function):
    """The most bytes allocated at once while `function` raises."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="after the header"):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_memory_follows_the_bytes_and_not_the_promise(tmp_path, suffix):
    """Four billion labels promised, three there."""
    path = tmp_path / f"labels{suffix}"
    content = bytes([0, 0, 8, 1]) + struct.pack(">I", 4_000_000_000) + b"123"
    path.write_bytes(gzip.compress(content) if suffix else content)
    peak = peak_memory(lambda: idx.read_array(path, num_dims=1))
    assert peak < 2**23


def test_decompression_stops_after_the_promise(tmp_path):
    """Three labels promised, 64 MiB there."""
    path = tmp_path / "labels.gz"
    content = encode(np.zeros(3)) + bytes(2**26)
    path.write_bytes(gzip.compress(content, 1))
    del content
    peak = peak_memory(lambda: idx.read_array(path, num_dims=1))
    assert peak < 2**23


def test_labels_are_counted_before_they_are_read(folder):
    """64 MiB of them in a few kilobytes, for 200 images."""
    (folder / TRAIN_LABELS).unlink()
    content = bytes([0, 0, 8, 1]) + struct.pack(">I", 2**26) + bytes(2**26)
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="200 images.*67108864 labels"):
            load(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def spoilt(rng):
    """An IDX file with a few faults at random, mostly in its header."""
    size = rng.integers(1, 5, 3)
    content = bytearray(encode(rng.integers(0, 256, size)))
    for _ in range(rng.integers(0, 4)):
        fault = rng.integers(6)
        place = int(rng.integers(0, min(len(content), 18)))
        if fault == 0:
            content[place] = rng.integers(256)
        elif fault == 1:
            content[place] ^= 1 << int(rng.integers(8))
        elif fault == 2:
            del content[place:]
        elif fault == 3:
            del content[place]
        elif fault == 4:
            content[place:place] = rng.bytes(rng.integers(1, 5))
        else:
            huge = rng.choice([0, 1, 255, 2**16, 2**31, 2**32 - 1])
            content[4:8] = struct.pack(">I", huge)
        content = content or bytearray(b"\0")
    return bytes(content)


def read_or_refuse(path):
    """The array and None, or None and why the file is refused."""
    array, message = None, None
    try:
        array = idx.read_array(path, num_dims=3)
    except ValueError as error:
        message = str(error)
    assert array is not None or message.startswith(f"Invalid IDX file {path}.")
    return array, message


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_any_header_is_read_as_it_says_or_refused(tmp_path, suffix):
    """1000 files: no other exception, no more memory than bytes are there."""
    rng = np.random.default_rng(0)
    path = tmp_path / f"images{suffix}"
    read, refused = 0, set()
    tracemalloc.start()
    try:
        for _ in range(1000):
            content = spoilt(rng)
            path.write_bytes(gzip.compress(content, 1) if suffix else content)
            array, message = read_or_refuse(path)
            if message:
                refused.add(message.split("Expected ")[1].split()[0])
                continue
            read += 1
            shape = struct.unpack(">3I", content[4:16])
            assert content[:4] == b"\0\0\x08\x03"
            assert array.shape == shape
            assert array.tobytes() == content[16:]
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert read > 200
    # A wrong magic, a short header, dimensions, and bytes that are not there.
    assert {"the", "a", "dimensions"} < refused
    assert len(refused) > 4


@pytest.mark.parametrize("faults", [1, 3])
def test_any_damage_to_a_gzip_stream_is_refused_or_harmless(tmp_path, faults):
    """Bytes of a stream at random; a header's time may be any."""
    rng = np.random.default_rng(faults)
    path = tmp_path / "images.gz"
    content = encode(np.arange(60).reshape(3, 4, 5))
    for _ in range(500):
        stream = bytearray(gzip.compress(content))
        for place in rng.integers(0, len(stream), faults):
            stream[place] = rng.integers(256)
        path.write_bytes(stream[: rng.integers(len(stream) // 2, 200)])
        array, message = read_or_refuse(path)
        assert message or array.tobytes() == content[16:]


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    outside = tmp_path / "secret"
    (folder / TEST_LABELS).rename(outside)
    (folder / TEST_LABELS).symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of .* by a link") as error:
        load(folder)
    assert str(outside) in str(error.value)


def test_links_within_the_folder_and_to_it_are_followed(folder, tmp_path):
    (folder / TEST_LABELS).rename(folder / "labels")
    (folder / TEST_LABELS).symlink_to("labels")
    (tmp_path / "link").symlink_to(folder)
    assert load(tmp_path / "link").num_test == 30


def test_images_of_two_sizes_are_refused(folder):
    """Even where padding would make them equal."""
    write(folder, {TEST_IMAGES: make_arrays(28, 27)[TEST_IMAGES]})
    with pytest.raises(ValueError, match=r"\(28, 28\).*\(28, 27\)") as error:
        load(folder)
    assert str(folder / TEST_IMAGES) in str(error.value)


@pytest.mark.parametrize(
    ("name", "part"), [(TRAIN_LABELS, "training part"), (TEST_LABELS, "test")]
)
def test_label_of_no_class_is_refused(folder, name, part):
    labels = make_arrays()[name]
    labels[7] = 10
    write(folder, {name: labels})
    with pytest.raises(ValueError, match=r"\[0, 10\). Received: 10") as error:
        load(folder)
    assert f"Invalid labels in {folder}, {part}" in str(error.value)


def test_constant_images_are_refused(folder):
    write(folder, {TRAIN_IMAGES: np.zeros((200, 32, 32))})
    write(folder, {TEST_IMAGES: np.zeros((30, 32, 32))})
    with pytest.raises(ValueError, match="Constant images"):
        load(folder)


def test_too_few_images_to_validate_on_are_refused(folder):
    """Four of each class: a tenth, 0.4, rounds to none."""
    arrays = make_arrays()
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        write(folder, {name: arrays[name][:40]})
    with pytest.raises(ValueError, match="40 for training, 0 for validation"):
        load(folder)


@pytest.mark.skipif(
    not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
def test_reads_fashion_mnist():
    """60000 and 10000 images, as many of each class; the first is a boot."""
    dataset = load(FASHION)
    assert dataset.num_train == 54000
    assert dataset.num_validation == 6000
    assert dataset.num_test == 10000
    assert int(dataset.train.cardinality()) == 54000 / 25
    assert dataset.class_names == (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    images, labels = pixels(dataset, dataset.test)
    np.testing.assert_array_equal(np.bincount(labels), 1000)
    assert dataset.class_names[labels[0]] == "Ankle boot"
    with gzip.open(FASHION / f"{TEST_IMAGES}.gz") as stream:
        first = np.frombuffer(stream.read(16 + 784)[16:], np.uint8)
    expected = np.pad(first.reshape(28, 28), 2)
    np.testing.assert_array_equal(images[0], expected)
    assert images[0].max() == 255
    _, labels = pixels(dataset, dataset.validation)
    np.testing.assert_array_equal(np.bincount(labels), 600)
