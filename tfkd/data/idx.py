"""Folders of IDX files, the format of MNIST and of its successors."""

import contextlib
import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np

from tfkd.data import dataset

_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_UNSIGNED_BYTES = 0x08
_SMALLEST_SIDE = 32
_LARGEST_FILE = 2**32
_CHUNK = 2**20


def read(folder):
    """Reads the four files of a folder in the format of MNIST.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
    `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, raw or with the
    suffix `.gz`; of both, the raw one is read. The ten classes are named
    "0" to "9", or as in Fashion-MNIST where the folder's name contains
    "fashion-mnist".

    Args:
        folder: Path of the folder; "~" is the home directory.

    Returns:
        A `dataset.Source`; images uint8 `[examples, height, width, 1]` in
        [0, 255], height and width at least 32.

    Raises:
        FileNotFoundError: If the folder or a file is missing.
        ValueError: If a file is damaged or a link out of the folder, or the
            files do not fit together.

    Reference: LeCun, Cortes & Burges, the MNIST database, file formats.
    """
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(folder)))
    paths = _find_files(folder)
    train, test = (
        _read_examples(paths[part, "images"], paths[part, "labels"])
        for part in ("train", "test")
    )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"Invalid IDX file {paths['test', 'images']}. Expected images of "
            f"the size of those for training, {train.images.shape[1:]}. "
            f"Received: {test.images.shape[1:]}"
        )
    is_fashion = "fashion-mnist" in folder.name.lower()
    return dataset.Source(
        train=train._replace(images=pad(train.images)),
        test=test._replace(images=pad(test.images)),
        class_names=_FASHION if is_fashion else _DIGITS,
        origin=str(folder),
    )


def _find_files(folder):
    """The path of each of `_FILES`, raw or gzipped, as a dict."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {folder}. Expected one with the files "
            f"{', '.join(_FILES.values())}, each raw or with the suffix .gz. "
            "Debian's package dataset-fashion-mnist brings one, "
            "/usr/share/datasets/fashion-mnist"
        )
    paths, missing = {}, []
    for key, name in _FILES.items():
        candidates = [folder / name, folder / f"{name}.gz"]
        found = [path for path in candidates if path.is_file()]
        if found:
            paths[key] = found[0]
        else:
            missing.append(" or ".join(path.name for path in candidates))
    if missing:
        raise FileNotFoundError(
            f"Missing files in {folder}. Looked for: {'; '.join(missing)}"
        )
    for path in paths.values():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{path} leads out of {folder} by a link, to "
                f"{path.resolve()}. Copy what it stands for into the folder"
            )
    return paths


def _read_examples(images_path, labels_path):
    """Images `[examples, height, width]` and labels as `dataset.Examples`."""
    images = read_array(images_path, num_dims=3)
    # Before they are read: a small gzip stream may hold gigabytes.
    (labels,) = _read_header(labels_path, num_dims=1)
    if len(images) != labels:
        raise ValueError(
            f"Invalid IDX file {labels_path}. Expected one label for each of "
            f"the {len(images)} images in {images_path}. "
            f"Received: {labels} labels"
        )
    return dataset.Examples(images, read_array(labels_path, num_dims=1))


def _read_header(path, *, num_dims):
    """The dimensions that an IDX file promises, as a tuple of ints."""
    with _opened(path) as stream:
        return _read_shape(path, stream, num_dims)


@contextlib.contextmanager
def _opened(path):
    """A file for reading, whose gzip stream may turn out to be damaged."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"Invalid IDX file {path}. Expected a whole gzip stream. "
            f"Received: {error}"
        ) from error


def read_array(path, *, num_dims):
    """Reads one IDX file of unsigned bytes.

    The header is two zero bytes, the type 8, the number of dimensions, and
    the dimensions as big-endian 32-bit integers. It is not trusted: memory
    grows with the bytes that are really there, up to what it promises.

    Args:
        path: A `pathlib.Path`, gzipped if it ends in ".gz".
        num_dims: Number of dimensions the array must have.

    Returns:
        Array of uint8 with `num_dims` dimensions, not empty.

    Raises:
        ValueError: If the file is not such an array, is damaged, or would
            take more than 4 GiB in memory after padding.
    """
    with _opened(path) as stream:
        shape = _read_shape(path, stream, num_dims)
        size = math.prod(shape)
        payload = _read_at_most(stream, size + 1)
    if len(payload) != size:
        held = "more" if len(payload) > size else f"{len(payload)} bytes"
        raise ValueError(
            f"Invalid IDX file {path}. Expected {size} bytes after the "
            f"header, which promises the shape {shape}. Received: {held}"
        )
    return np.frombuffer(payload, np.uint8).reshape(shape)


def _read_shape(path, stream, num_dims):
    """The dimensions in an IDX header, checked, as a tuple of ints."""
    header = _read_at_most(stream, 4 + 4 * num_dims)
    magic = bytes([0, 0, _UNSIGNED_BYTES, num_dims])
    if header[:4] != magic:
        raise ValueError(
            f"Invalid IDX file {path}. Expected the magic number "
            f"{magic.hex()}. Received: {header[:4].hex() or 'an empty file'}"
        )
    if len(header) < 4 + 4 * num_dims:
        raise ValueError(
            f"Invalid IDX file {path}. Expected a header of "
            f"{4 + 4 * num_dims} bytes. Received: {len(header)} bytes"
        )
    shape = struct.unpack(f">{num_dims}I", header[4:])
    sides = (max(side, _SMALLEST_SIDE) for side in shape[1:])
    if 0 in shape or shape[0] * math.prod(sides) > _LARGEST_FILE:
        raise ValueError(
            f"Invalid IDX file {path}. Expected dimensions >= 1 and at most "
            f"{_LARGEST_FILE} bytes with every side padded to at least "
            f"{_SMALLEST_SIDE}. Received: shape {shape}"
        )
    return shape


def _read_at_most(stream, size):
    """The next `size` bytes of a stream, fewer at its end."""
    # Not in one read, which would allocate `size` bytes before it sees any.
    content = bytearray()
    while chunk := stream.read(min(_CHUNK, size - len(content))):
        content += chunk
    return content


def pad(images):
    """Pads gray images with zeros on all sides to at least 32x32 pixels.

    Args:
        images: `[examples, height, width]`.

    Returns:
        Array `[examples, max(height, 32), max(width, 32), 1]` of the same
        type. Of an odd padding, the bottom and the right get the odd line.
    """
    missing = [max(0, _SMALLEST_SIDE - side) for side in images.shape[1:]]
    margins = [(total // 2, total - total // 2) for total in missing]
    return np.pad(images, [(0, 0), *margins])[..., np.newaxis]
