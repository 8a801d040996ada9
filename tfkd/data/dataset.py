"""From arrays of labelled images to split, standardised pipelines."""

import dataclasses
import numbers
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfkd.data import augmentation
from tfkd.data import passes as passes_lib
from tfkd.records import Record

_VALIDATION_FRACTION = 0.1
_TEST_FRACTION = 0.2
_SPLIT_SEED = 1797
_CHUNK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Three pipelines of labelled images, and what models need to know.

    A pipeline yields batches `(x, y)`: `x` float32 `[batch, height, width,
    channels]`, equal to `(pixels - mean) / std`, and `y` int32 `[batch]` in
    `[0, num_classes)`, or a record with the example's index. All know their
    cardinality and keep an incomplete last batch. `train` has a new order in
    every epoch and, if augmented, new copies, both functions of the seed and
    of the number of the epoch; the others keep theirs. Passes over `train`
    are epochs 0, 1, 2, ..., unless `set_epoch` says otherwise.

    Attributes:
        name: The name it was loaded by.
        train, validation, test: `tf.data.Dataset`s.
        num_classes: Number of classes.
        input_shape: `(height, width, channels)` of one image, in pixels.
        class_names: Name of each label, a tuple of `num_classes` strings.
        mean, std: Of the pixels of the training images of all classes, one
            float per channel, in the units of the source: 0 to 16 for
            digits, 0 to 255 for IDX files. Images are taken as they are
            served (enlarged or padded) without augmentation.
        num_train, num_validation, num_test: Number of images.
        white: Value of a white pixel, in the units of the source.
        skipped: Names of corrupt images that were left out, a tuple of
            strings.
        passes: Numbers the passes over `train`, for `set_epoch`.
    """

    name: str
    train: tf.data.Dataset
    validation: tf.data.Dataset
    test: tf.data.Dataset
    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int
    num_validation: int
    num_test: int
    white: float = 255.0
    skipped: tuple[str, ...] = ()
    passes: passes_lib.Passes | None = dataclasses.field(
        default=None, repr=False
    )

    def set_epoch(self, epoch):
        """Makes each pass over `train` that of one epoch, until called again.

        It holds for all that was made of `train` too: mapped, zipped, or with
        what `tfkd.caching.with_teacher` adds. Whoever trains in a loop of
        their own, or goes on at an epoch by `fit(initial_epoch=...)`, calls
        it before each epoch; `tfkd.callbacks.Checkpoints` does so by itself.
        Not for a pipeline that was repeated, which begins passes ahead.

        Args:
            epoch: Number of the epoch, >= 0; or None: each pass from now on
                has the number after that of the pass before.

        Raises:
            ValueError: If it is no such number.
        """
        if epoch is not None and (
            isinstance(epoch, bool)
            or not isinstance(epoch, numbers.Integral)
            or epoch < 0
        ):
            raise ValueError(
                "Invalid value for argument `epoch`. Expected an integer >= 0 "
                f"or None. Received: epoch={epoch!r}"
            )
        self.passes.epoch = epoch


class Examples(NamedTuple):
    """Labelled images in memory.

    Attributes:
        images: `[examples, height, width, channels]`, of any real type.
        labels: Integers `[examples]`.
        mirrors: Whether a mirrored image shows the same class.
    """

    images: np.ndarray
    labels: np.ndarray
    mirrors: bool = False

    @property
    def input_shape(self):
        """`(height, width, channels)` of one image."""
        return self.images.shape[1:]

    def take(self, indices):
        """The examples at `indices`, `[n]`, in their order."""
        return self._replace(
            images=self.images[indices], labels=self.labels[indices]
        )

    def labelled(self, labels):
        """The examples with other labels, `[examples]`."""
        return self._replace(labels=labels)

    def moments(self):
        """Mean and standard deviation of each channel, in float64.

        Returns:
            `(mean, std)`, arrays `[channels]`, in pixel units.
        """
        # In chunks, for in float64 images of uint8 take eight times their
        # memory.
        chunks = [
            self.images[start : start + _CHUNK]
            for start in range(0, len(self.images), _CHUNK)
        ]
        size = np.prod(self.images.shape[:-1])
        total = sum(c.sum(axis=(0, 1, 2), dtype=np.float64) for c in chunks)
        mean = total / size
        squares = sum(np.square(c - mean).sum(axis=(0, 1, 2)) for c in chunks)
        return mean, np.sqrt(squares / size)

    def batches(
        self,
        *,
        mean,
        std,
        batch_size,
        index,
        augment=False,
        passes=None,
    ):
        """Batches of standardised images with their labels.

        Args:
            mean: Subtracted, one per channel, `[channels]`, in pixel units.
            std: Divides, one per channel, `[channels]`, in pixel units.
            batch_size: Images per batch.
            index: Whether labels are records with the example's number.
            augment: Whether each epoch has new copies, by `passes`.
            passes: A `passes.Passes`, which gives each epoch a new order;
                None keeps the order.

        Returns:
            A `tf.data.Dataset` of `(x, y)`, float32 `[batch, height, width,
            channels]` and int32 `[batch]` or records, of known cardinality.
        """
        # Eager tensors go to a GPU if there is one, which needs its memory
        # for the models.
        with tf.device("CPU:0"):
            images = tf.constant(self.images)
            labels = tf.constant(self.labels, tf.int32)
            mean = tf.constant(mean, tf.float32)
            std = tf.constant(std, tf.float32)

        def batch_at(indices, seed=None):
            pixels = tf.gather(images, indices)
            if seed is not None:
                pixels = augmentation.shift_and_mirror(
                    pixels, seed=seed, mirror=self.mirrors
                )
            record = Record(
                tf.gather(labels, indices), index=indices if index else None
            )
            return (tf.cast(pixels, tf.float32) - mean) / std, record.pack()

        size = len(self.labels)

        def one_pass(key):
            order = passes_lib.permutation(size, key)
            indices = tf.data.Dataset.from_tensor_slices(order)
            indices = indices.batch(batch_size)
            if not augment:
                return indices
            return indices.enumerate().map(
                lambda number, batch: (batch, passes_lib.fold(key, number))
            )

        if passes is None:
            indices = tf.data.Dataset.range(size).batch(batch_size)
        else:
            indices = passes.over(one_pass).apply(
                tf.data.experimental.assert_cardinality(-(-size // batch_size))
            )
        return indices.map(
            batch_at, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).prefetch(tf.data.AUTOTUNE)


class Source(NamedTuple):
    """What a reader hands over, before any split.

    Attributes:
        train: `Examples` or `photographs.Photographs` to train on; also to
            validate and test on what the source does not set apart.
        test: Such that the source sets apart, or None.
        class_names: Name of each label, a tuple of strings.
        origin: Where the examples come from, for error messages.
        validation: Such that the source sets apart, or None; not without
            `test`.
        held_out: Indices of `train` to validate on where the source sets
            nothing apart, ascending; None for a tenth at random. Not without
            `test`.
        test_options: What `batches` of the test split takes besides.
        skipped: Names of corrupt images that were left out.
        white: Value of a white pixel, in the units of the images.
    """

    train: Any
    test: Any
    class_names: tuple[str, ...]
    origin: str
    validation: Any = None
    held_out: np.ndarray | None = None
    test_options: dict[str, Any] | None = None
    skipped: tuple[str, ...] = ()
    white: float = 255.0


def assemble(
    name,
    source,
    *,
    batch_size,
    seed,
    examples_per_class=None,
    classes=None,
    augment=False,
    index=False,
    validation_from="train",
):
    """Splits, subsets and standardises a source.

    Args:
        name: The dataset's name.
        source: A `Source`.
        batch_size: Images per batch. >= 1.
        seed: Of the subset, the order and the augmentation, in [0, 2**32).
        examples_per_class: Training images per class, or None for all.
        classes: Sequence of the labels to keep, which become 0, 1, ...; or
            None for all.
        augment: Whether training images are augmented.
        index: Whether labels are records with the example's number.
        validation_from: "train" or "test", see `tfkd.data.load`.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If a label is out of range, a split stays empty, a class
            has too few images, a channel is constant, or `classes` are not
            labels of the source.
    """
    class_names = source.class_names
    num_classes = len(class_names)
    if classes is not None:
        classes = _check_classes(classes, num_classes)
    parts = {
        "training": source.train,
        "validation": source.validation,
        "test": source.test,
    }
    for title, part in parts.items():
        if part is not None:
            _check_labels(
                part.labels, num_classes, f"{source.origin}, {title} part"
            )
    set_apart = [
        part for part in (source.validation, source.test) if part is not None
    ]
    if source.held_out is None:
        fractions = (_VALIDATION_FRACTION, _TEST_FRACTION)
        split = stratified_split(
            source.train.labels, fractions[: 2 - len(set_apart)]
        )
    else:
        every = np.arange(len(source.train.labels))
        split = [np.setdiff1d(every, source.held_out), source.held_out]
    train, validation, test = [
        *(source.train.take(indices) for indices in split),
        *set_apart,
    ]
    _check_sizes(train, validation, test, source.origin)

    mean, std = train.moments()
    if not np.all(std > 0):
        raise ValueError(
            f"Constant images in {source.origin}. Expected pixels of a "
            f"standard deviation > 0 in every channel. Received: std={std}"
        )
    # Not before: networks of either kind shall have the same units.
    if validation_from == "test":
        validation = test
        if source.validation is None:
            train = source.train.take(np.sort(np.concatenate(split[:2])))
    if classes is not None:
        class_names = tuple(class_names[label] for label in classes)
        train, validation, test = (
            _only(part, classes, num_classes)
            for part in (train, validation, test)
        )
        names = ", ".join(class_names)
        _check_sizes(
            train, validation, test, f"{source.origin}, classes {names}"
        )
    if examples_per_class is not None:
        train = train.take(
            _stratified_subset(
                train.labels, examples_per_class, class_names, seed
            )
        )

    shared = {
        "mean": mean,
        "std": std,
        "batch_size": batch_size,
        "index": index,
    }
    passes = passes_lib.Passes(seed)
    return Dataset(
        name=name,
        train=train.batches(passes=passes, augment=augment, **shared),
        validation=validation.batches(**shared),
        test=test.batches(**shared, **(source.test_options or {})),
        num_classes=len(class_names),
        input_shape=train.input_shape,
        class_names=class_names,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        num_train=len(train.labels),
        num_validation=len(validation.labels),
        num_test=len(test.labels),
        white=source.white,
        skipped=source.skipped,
        passes=passes,
    )


def stratified_split(labels, fractions):
    """Splits examples at random, each class in the same proportions.

    The split is a function of the labels alone.

    Args:
        labels: Integers `[examples]`.
        fractions: Shares of the parts after the first, which takes the rest;
            each class's count is rounded to the nearest integer.

    Returns:
        A list of `1 + len(fractions)` disjoint, sorted arrays of indices
        `[examples of the part]`, which cover all examples.
    """
    # RandomState, because NumPy promises its stream never to change: with
    # default_rng, an upgrade could move test images into the training split.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    parts = [[] for _ in range(1 + len(fractions))]
    for label in np.unique(labels):
        members = order[labels[order] == label]
        sizes = [round(fraction * len(members)) for fraction in fractions]
        cuts = len(members) - np.cumsum(sizes[::-1])[::-1]
        for part, indices in zip(parts, np.split(members, cuts), strict=True):
            part.append(indices)
    return [np.sort(np.concatenate(part)) for part in parts]


def _stratified_subset(labels, examples_per_class, class_names, seed):
    """Indices of `examples_per_class` examples of each class, sorted.

    Args:
        labels: Integers `[examples]`.
        examples_per_class: Examples of each class. >= 1.
        class_names: Name of each label.
        seed: Of the choice, in [0, 2**32).

    Returns:
        Array `[classes * examples_per_class]`.

    Raises:
        ValueError: If a class has fewer examples.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    scarcest = int(np.argmin(counts))
    if examples_per_class > counts[scarcest]:
        raise ValueError(
            "Invalid value for argument `examples_per_class`. Expected at "
            f"most {counts[scarcest]}, the number of training images of "
            f"class {class_names[scarcest]!r}. "
            f"Received: examples_per_class={examples_per_class}"
        )
    # The permutation does not depend on the size, so subsets are nested.
    order = np.random.RandomState(seed).permutation(len(labels))
    chosen = [
        order[labels[order] == label][:examples_per_class]
        for label in range(len(class_names))
    ]
    return np.sort(np.concatenate(chosen))


def _only(examples, classes, num_classes):
    """The examples of some classes, in their order, labelled anew.

    Args:
        examples: `Examples` or `photographs.Photographs`.
        classes: Tuple of labels; they become 0, 1, ...
        num_classes: Number of labels.

    Returns:
        The same kind.
    """
    new = np.full(num_classes, -1)
    new[list(classes)] = range(len(classes))
    chosen = examples.take(np.flatnonzero(new[examples.labels] >= 0))
    return chosen.labelled(new[chosen.labels])


def _check_classes(classes, num_classes):
    """`classes` as a tuple of ints, if they are different labels."""
    is_list = isinstance(classes, list | tuple | range | np.ndarray)
    labels = list(classes) if is_list else []
    if (
        not labels
        or not all(
            isinstance(label, numbers.Integral)
            and not isinstance(label, bool)
            and 0 <= label < num_classes
            for label in labels
        )
        or len(set(labels)) < len(labels)
    ):
        raise ValueError(
            "Invalid value for argument `classes`. Expected None or a list "
            f"of different integers in [0, {num_classes}), at least one. "
            f"Received: classes={classes!r}"
        )
    return tuple(map(int, labels))


def _check_sizes(train, validation, test, origin):
    """Refuses an empty split."""
    if not all(len(part.labels) for part in (train, validation, test)):
        raise ValueError(
            f"Too few examples in {origin}. Expected at least one in each "
            f"split. Received: {len(train.labels)} for training, "
            f"{len(validation.labels)} for validation, {len(test.labels)} for "
            "testing"
        )


def _check_labels(labels, num_classes, origin):
    """Refuses labels outside `[0, num_classes)`."""
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(
            f"Invalid labels in {origin}. Expected integers in "
            f"[0, {num_classes}). Received: {outside[0]} and "
            f"{len(outside) - 1} more outside that range"
        )
