"""Datasets that TensorFlow Datasets has prepared on this machine."""

import os
import pathlib
import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfkd.data import dataset, photographs
from tfkd.data import passes as passes_lib

_VALIDATION_FRACTION = 0.1
# Encoded photographs, about 0.1 MB each: as many are shuffled at once, and a
# training split of no more is read from disk only once.
BUFFER = 8192
# Files that are read at once.
_FILES = 16
_BATCH = 1024
_SECONDS = 5
_DEFAULT = "~/tensorflow_datasets"
_MANUAL = pathlib.Path("downloads", "manual")
# "cars196-train.tfrecord-00003-of-00008__17": file 3, example 17 of it.
_NAME = re.compile(r".*-(\d+)-of-\d+__(\d+)")


class _Entry(NamedTuple):
    """What tfkd must know of a dataset.

    Attributes:
        test: Name of the split to test on, whose labels are public.
        small: Whether its images have one size and fit into memory.
        mirrors: Whether a mirrored image shows the same class.
        manual: Files that must be downloaded by hand.
        source: Where they are.
    """

    test: str = "test"
    small: bool = False
    mirrors: bool = True
    manual: tuple[str, ...] = ()
    source: str | None = None


_ENTRIES = {
    "cifar10": _Entry(small=True),
    "cifar100": _Entry(small=True),
    "svhn_cropped": _Entry(small=True, mirrors=False),
    "imagenet2012": _Entry(
        test="validation",
        manual=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
        source="https://image-net.org/download-images, after registering,",
    ),
    "caltech_birds2011": _Entry(),
    "cars196": _Entry(),
    "stanford_dogs": _Entry(),
    "food101": _Entry(test="validation"),
}
NAMES = tuple(_ENTRIES)
PHOTOGRAPHS = tuple(name for name in NAMES if not _ENTRIES[name].small)


def read_small(name, *, data_dir, download):
    """Reads small images that TensorFlow Datasets has prepared.

    Args:
        name: One of `NAMES` that is none of `PHOTOGRAPHS`.
        data_dir: The folder of all prepared datasets; None:
            `TFDS_DATA_DIR` in the environment, or else
            ~/tensorflow_datasets.
        download: Whether to download and prepare what is not there.

    Returns:
        A `dataset.Source`; images uint8 `[examples, 32, 32, 3]`.

    Raises:
        ImportError: If TensorFlow Datasets is not installed.
        FileNotFoundError: If the data are not there.
        ConnectionError: If there is no network to download over.
        ValueError: If the data name files outside their folder.
    """
    builder = _builder(name, data_dir, download)
    train, test = (
        _read_all(builder, split, _ENTRIES[name].mirrors)
        for split in ("train", _ENTRIES[name].test)
    )
    return dataset.Source(train, test, _class_names(builder), name)


def read_photographs(name, *, data_dir, download, side, ten_crop, skip_corrupt):
    """Finds the photographs that TensorFlow Datasets has prepared.

    Args:
        name: One of `PHOTOGRAPHS`.
        data_dir, download: As `read_small` takes them.
        side: Of the crops, in pixels.
        ten_crop: Whether photographs for testing are served as ten crops.
        skip_corrupt: Whether all photographs are decoded once, and those
            left out that cannot be.

    Returns:
        A `dataset.Source`.

    Raises:
        ImportError, FileNotFoundError, ConnectionError, ValueError: As
            `read_small`.
    """
    builder = _builder(name, data_dir, download)
    train, test = (
        _scan(builder, split, skip_corrupt)
        for split in ("train", _ENTRIES[name].test)
    )
    corrupt = {**train.corrupt, **test.corrupt}
    if corrupt:
        photographs.warn_of(corrupt)
    return dataset.Source(
        train=train.photographs(side),
        held_out=_first_of_each_class(train.labels, _VALIDATION_FRACTION),
        test=test.photographs(side),
        test_options={"ten_crop": ten_crop},
        class_names=_class_names(builder),
        origin=name,
        skipped=tuple(corrupt),
    )


def _class_names(builder):
    return tuple(builder.info.features["label"].names)


def _builder(name, data_dir, download):
    """TensorFlow Datasets' reader of the prepared data."""
    # Deferred, so that the other datasets do without it.
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"The dataset {name!r} needs TensorFlow Datasets. Install it: pip "
            "install tensorflow-datasets importlib_resources"
        ) from error
    entry = _ENTRIES[name]
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT
    root = pathlib.Path(os.path.abspath(os.path.expanduser(root)))
    versions = [
        path.parent.name
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if versions:
        # By its version, for without one it might ask the network.
        latest = max(versions, key=lambda text: [*map(int, text.split("."))])
        builder = tfds.builder(name, version=latest, data_dir=root)
        _require_inside(builder, root / name / latest)
        return builder
    if not download:
        raise FileNotFoundError(_how_to_get(name, entry, root))
    if not entry.manual:
        _require_network(name, tfds.builder_cls(name).url_infos)
    elif not all((root / _MANUAL / file).is_file() for file in entry.manual):
        raise FileNotFoundError(_how_to_get(name, entry, root))
    builder = tfds.builder(name, data_dir=root)
    builder.download_and_prepare()
    return builder


def _require_inside(builder, folder):
    """Refuses prepared data whose files lie elsewhere.

    Where the files are is told by the data themselves.
    """
    for split in builder.info.splits.values():
        for path in map(pathlib.Path, split.filepaths):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(
                    f"{path} leads out of {folder}, to {path.resolve()}. Copy "
                    "what it stands for into the folder, or prepare the data "
                    "again"
                )


def _how_to_get(name, entry, root):
    """Tells how data that are not there can be had."""
    missing = f"No prepared data of {name!r} in {root / name}. "
    if entry.manual:
        missing += (
            f"Download {' and '.join(entry.manual)} by hand from "
            f"{entry.source} into {root / _MANUAL}. Then load with "
            "download=True once, which prepares them"
        )
    else:
        missing += "Load with download=True once, on a machine with a network"
    return (
        f"{missing}; or copy the folder {name} from a machine that has it to "
        f"{root}; or give the folder that holds it as data_dir"
    )


def _require_network(name, urls):
    """Refuses to download without a network, at once.

    TensorFlow Datasets itself would try for minutes.
    """
    import requests  # which TensorFlow Datasets brings

    url = next(iter(urls))
    try:
        requests.head(url, timeout=_SECONDS)
    except requests.RequestException as error:
        raise ConnectionError(
            f"Cannot download {name!r}: no answer from {url}. Try again with "
            "a network, or copy the folder of the prepared data from a "
            "machine that has it, and give the folder around it as data_dir"
        ) from error


def _read_all(builder, split, mirrors):
    """A split of small images as `dataset.Examples`."""
    batches = list(
        builder.as_dataset(split=split)
        .map(lambda example: (example["image"], example["label"]))
        .batch(_BATCH)
        .as_numpy_iterator()
    )
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    return dataset.Examples(images, labels, mirrors)


def _first_of_each_class(labels, fraction):
    """The examples that are among the first of their class.

    What is stored is in random order, and what comes first can be read
    without the rest.

    Args:
        labels: Integers `[examples]`.
        fraction: Share of each class, rounded to the nearest integer.

    Returns:
        Indices, ascending.
    """
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen.append(members[: round(fraction * len(members))])
    return np.sort(np.concatenate(chosen))


_scans = {}


def _scan(builder, split, skip_corrupt):
    """A `_Stored`, made once in a process, for it may take minutes."""
    key = (str(builder.data_dir), split, skip_corrupt)
    if key not in _scans:
        _scans[key] = _Stored(builder, split, skip_corrupt)
    return _scans[key]


class _Stored:
    """A split of photographs in the files of TensorFlow Datasets.

    A photograph's number is its place in the files, in their order. All are
    read once, for their labels.

    Args:
        builder: The reader of the prepared data.
        split: Name of the split.
        skip_corrupt: Whether to decode all, and leave out what cannot be.

    Attributes:
        labels: Integers `[examples]`, without what is left out.
        numbers: The examples' numbers, ascending.
        corrupt: What is left out, dict, name -> reason.
    """

    def __init__(self, builder, split, skip_corrupt):
        self.builder = builder
        self.split = split
        self.corrupt = {}
        names, labels = [], []
        keys = ("tfds_id", "label", *(("image",) if skip_corrupt else ()))
        examples = self._open(split).map(
            lambda example: tuple(example[key] for key in keys)
        )
        for found, label, *images in examples.batch(_BATCH).as_numpy_iterator():
            names += [name.decode() for name in found]
            labels.append(label)
            for content in images:
                contents = dict(
                    zip(names[-len(content) :], content, strict=True)
                )
                self.corrupt |= photographs.find_corrupt(contents, contents.get)
        sizes = np.bincount([_file_of(name) for name in names])
        self.starts = np.cumsum(sizes) - sizes
        self.total = len(names)
        sound = np.array([name not in self.corrupt for name in names])
        self.numbers = np.flatnonzero(sound)
        self.labels = np.concatenate(labels)[sound]

    def photographs(self, side):
        """All of them, as `photographs.Photographs` with crops of `side`."""
        return photographs.Photographs(self.labels, self.numbers, self, side)

    def read(self, numbers, passes):
        """As `photographs.Photographs` wants it."""
        end = int(numbers[-1]) + 1
        split = self.split
        if end < self.total:
            split = f"{split}[:{end}]"
        places = np.full(self.total, -1)
        places[numbers] = np.arange(len(numbers))
        with tf.device("CPU:0"):
            places = tf.constant(places)
            starts = tf.constant(self.starts)

        def locate(example):
            name = example["tfds_id"]
            shard = tf.strings.regex_replace(name, _NAME.pattern, r"\1")
            offset = tf.strings.regex_replace(name, _NAME.pattern, r"\2")
            shard = tf.strings.to_number(shard, tf.int64)
            offset = tf.strings.to_number(offset, tf.int64)
            return example["image"], name, places[starts[shard] + offset]

        def opened(seed=None):
            return (
                self._open(split, seed)
                .map(locate, num_parallel_calls=tf.data.AUTOTUNE)
                .filter(lambda content, name, place: place >= 0)
            )

        if passes is None:
            return opened()
        fits = len(numbers) <= BUFFER
        kept = opened().cache() if fits else None

        def one_pass(key):
            seed = passes_lib.scalar_seed(key)
            examples = kept if fits else opened(seed)
            return examples.shuffle(
                min(len(numbers), BUFFER),
                seed=seed,
                reshuffle_each_iteration=False,
            ).map(lambda *example: (*example, key))

        return passes.over(one_pass)

    def _open(self, split, shuffle_seed=None):
        """Encoded examples with their names, files in order or shuffled."""
        import tensorflow_datasets as tfds

        config = tfds.ReadConfig(
            add_tfds_id=True,
            try_autocache=False,
            shuffle_seed=shuffle_seed,
            interleave_cycle_length=1 if shuffle_seed is None else _FILES,
        )
        return self.builder.as_dataset(
            split=split,
            shuffle_files=shuffle_seed is not None,
            read_config=config,
            decoders=tfds.decode.PartialDecoding(
                {"image": True, "label": True},
                decoders={"image": tfds.decode.SkipDecoding()},
            ),
        )


def _file_of(name):
    """The number of the file that holds the example of this name."""
    return int(_NAME.fullmatch(name)[1])
