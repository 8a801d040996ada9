"""Folders of photographs, a folder for each class."""

import os
import pathlib

import numpy as np
import tensorflow as tf

from tfkd.data import dataset, photographs
from tfkd.data import passes as passes_lib

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_PARTS = ("train", "validation", "test")


class Files:
    """Reads photographs from files, in any order.

    Args:
        paths: List of paths; a photograph's number is its place there.
    """

    def __init__(self, paths):
        with tf.device("CPU:0"):
            self.paths = tf.constant([str(path) for path in paths])

    def read(self, numbers, passes):
        """As `photographs.Photographs` wants it."""
        with tf.device("CPU:0"):
            paths = tf.gather(self.paths, numbers)
        size = len(numbers)

        def one_pass(key):
            order = passes_lib.permutation(size, key)
            return tf.data.Dataset.from_tensor_slices(order).map(
                lambda place: (place, key)
            )

        if passes is None:
            places = tf.data.Dataset.range(size).map(lambda place: (place,))
        else:
            places = passes.over(one_pass)
        return places.map(
            lambda place, *key: (
                tf.io.read_file(paths[place]),
                paths[place],
                place,
                *key,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )


def read(folder, *, side, ten_crop, skip_corrupt):
    """Finds and checks the photographs of a folder.

    Below it are `train` and `test`, and `validation` where there is one;
    below each a folder for each class, the same in all; below each class
    its photographs, JPEG, PNG, BMP or GIF. What begins with a dot is passed
    over. A link may lead to another place in the folder, not out of it.

    Each file is decoded once, so that damage shows here, not at some step of
    the training.

    Args:
        folder: Path of the folder; "~" is the home directory.
        side: Of the crops, in pixels.
        ten_crop: Whether photographs for testing are served as ten crops.
        skip_corrupt: Whether files that cannot be decoded are left out.

    Returns:
        A `dataset.Source`; classes and photographs are in the order of their
        names.

    Raises:
        FileNotFoundError: If the folder, `train` or `test` is missing.
        ValueError: If a class is empty or not in all parts, a file is no
            photograph or is damaged, or a link leads out of the folder.
    """
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(folder)))
    for part in (folder, folder / "train", folder / "test"):
        if not part.is_dir():
            raise FileNotFoundError(
                f"No folder {part}. Expected {folder} with folders train and "
                "test (and validation, if you like), each with a folder of "
                "photographs for each class"
            )
    parts = {
        part: _find_classes(folder / part, folder.resolve())
        for part in _PARTS
        if (folder / part).is_dir()
    }
    class_names = tuple(parts["train"])
    for part, classes in parts.items():
        _check_classes(folder, part, classes, class_names)
    paths = {
        part: [path for name in class_names for path in classes[name]]
        for part, classes in parts.items()
    }
    corrupt = photographs.find_corrupt(
        [path for part in paths.values() for path in part],
        lambda path: path.read_bytes(),
    )
    if corrupt and not skip_corrupt:
        raise ValueError(
            f"Corrupt photographs in {folder}: "
            f"{photographs.shorten(corrupt)}. Replace or delete them, or "
            "leave them out by skip_corrupt=True"
        )
    if corrupt:
        photographs.warn_of(corrupt)

    def part(name):
        classes = [
            [path for path in parts[name][label] if path not in corrupt]
            for label in class_names
        ]
        for label, found in zip(class_names, classes, strict=True):
            if not found:
                raise ValueError(
                    f"No photograph in {folder / name / label} that can be "
                    "decoded. Expected at least one"
                )
        sizes = [len(found) for found in classes]
        return photographs.Photographs(
            np.repeat(np.arange(len(sizes)), sizes),
            np.arange(sum(sizes)),
            Files([path for found in classes for path in found]),
            side,
        )

    return dataset.Source(
        train=part("train"),
        validation=part("validation") if "validation" in parts else None,
        test=part("test"),
        test_options={"ten_crop": ten_crop},
        class_names=class_names,
        origin=str(folder),
        skipped=tuple(map(str, corrupt)),
    )


def _find_classes(part, root):
    """The photographs of each class: dict, name -> list of paths."""
    classes = {}
    for path in _visible(part, root):
        if not path.is_dir():
            raise ValueError(
                f"Unexpected file {path}. Expected a folder of photographs "
                "for each class. Delete it, or move it out of the folder"
            )
        classes[path.name] = _visible(path, root)
        for photograph in classes[path.name]:
            suffix = photograph.suffix.lower()
            if not photograph.is_file() or suffix not in _SUFFIXES:
                raise ValueError(
                    f"{photograph} is no photograph. Expected files that end "
                    f"in {', '.join(_SUFFIXES)}. Delete it, or move it out "
                    "of the folder"
                )
        if not classes[path.name]:
            raise ValueError(
                f"Empty class {path}. Expected at least one photograph. Fill "
                "the folder, or delete it in all parts"
            )
    if not classes:
        raise ValueError(
            f"No class in {part}. Expected a folder of photographs for each"
        )
    return classes


def _visible(folder, root):
    """What is in a folder, sorted by name, without what is hidden."""
    paths = sorted(
        path for path in folder.iterdir() if not path.name.startswith(".")
    )
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise ValueError(
                f"{path} leads out of {root} by a link, to "
                f"{path.resolve()}. Copy what it stands for into the folder"
            )
    return paths


def _check_classes(folder, part, classes, class_names):
    """Refuses a part whose classes are not those for training."""
    only_here = sorted(set(classes) - set(class_names))
    only_there = sorted(set(class_names) - set(classes))
    if only_here or only_there:
        raise ValueError(
            f"Different classes in {folder / 'train'} and {folder / part}. "
            "Expected a folder for each class in both. Received: only in "
            f"train: {', '.join(only_there) or 'none'}; only in {part}: "
            f"{', '.join(only_here) or 'none'}"
        )
