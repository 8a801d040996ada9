"""Labelled images as standardised `tf.data` pipelines with fixed splits."""

from tfkd.arguments import check_choice, check_count, check_seed
from tfkd.data import dataset, digits, idx
from tfkd.data.dataset import Dataset

__all__ = ["NAMES", "Dataset", "load"]

NAMES = ("digits", "idx:FOLDER")


def load(
    name,
    *,
    batch_size,
    examples_per_class=None,
    classes=None,
    augment=False,
    index=False,
    validation_from="train",
    seed=0,
):
    """Loads a dataset, split into training, validation and test images.

    - "digits": the 1797 handwritten digits of scikit-learn, 8x8 pixels
      enlarged to 32x32, in 70 % training, 10 % validation, 20 % test.
    - "idx:FOLDER": a folder in the format of MNIST, raw or gzipped. Its test
      files are the test split, 10 % of its training files the validation
      split. Images smaller than 32x32 are zero-padded to that size.

    The splits are stratified and the same for every `seed`, machine and
    version, so a teacher has never seen another run's test images. `seed`
    governs the subset and, together with TensorFlow's global seed, the order
    of the training images and their augmentation: a fresh process with the
    same two seeds (or the same `seed` and no global one) repeats both, epoch
    by epoch.

    Args:
        name: One of `tfkd.data.NAMES`, FOLDER being a path.
        batch_size: Images per batch; an epoch's last batch may hold fewer.
            >= 1.
        examples_per_class: Trains on this many images of each class instead
            of all; for one seed a larger subset contains a smaller one.
            Standardisation is that of all training images nevertheless, so
            that a teacher and a student agree on the units. >= 1 or None.
        classes: Keeps the images of these labels alone, a list of integers;
            the label `classes[i]` becomes i. Splits and standardisation are
            those of all classes nevertheless, so that a network trained on
            other classes finds its units again. None for all.
        augment: Whether each epoch has new copies of the training images:
            padded by 4 zeros on each side, before standardisation, and
            cropped to their size at a random place. No digit, and nothing in
            the format of MNIST, is mirrored, for a mirror may change its
            class. `tfkd.caching` refuses augmented images.
        index: Whether labels are records `{"label": y, "index": i}`, i the
            example's number in its split, int64 `[batch]`. A `tfkd.Distiller`
            takes them for labels; `tfkd.caching` knows examples by them.
        validation_from: "train" holds validation images out of the training
            images. "test", for protocols that train on all and look at the
            test images along the way: the validation split is the test
            split, so what is chosen by it is chosen on the test images.
            Standardisation stays that of "train".
        seed: An integer in [0, 2**32).

    Returns:
        A `tfkd.data.Dataset`.

    Raises:
        ValueError: If an argument is out of range, a class has fewer images
            than asked for, or the data are damaged.
        FileNotFoundError: If the folder or one of its files is missing.

    Example:
    >>> digits = load("digits", batch_size=64, examples_per_class=10)
    >>> digits.num_train, digits.input_shape
    (100, (32, 32, 1))
    """
    batch_size, seed = check_count(batch_size, "batch_size"), check_seed(seed)
    if examples_per_class is not None:
        check_count(examples_per_class, "examples_per_class")
    for value, argument in ((augment, "augment"), (index, "index")):
        check_choice(value, (False, True), argument)
    check_choice(validation_from, ("train", "test"), "validation_from")
    return dataset.assemble(
        name,
        _read(name),
        batch_size=batch_size,
        examples_per_class=examples_per_class,
        classes=classes,
        augment=augment,
        index=index,
        validation_from=validation_from,
        seed=seed,
    )


def _read(name):
    """The `dataset.Source` called `name`."""
    if name == "digits":
        return digits.read()
    if isinstance(name, str) and name.startswith("idx:") and name != "idx:":
        return idx.read(name.removeprefix("idx:"))
    raise ValueError(
        "Invalid value for argument `name`. "
        f"Expected one of {NAMES}, FOLDER being a path. "
        f"Received: name={name!r}"
    )
