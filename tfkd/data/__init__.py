"""Labelled images as standardised `tf.data` pipelines with fixed splits."""

import functools

from tfkd.arguments import check_choice, check_count, check_seed
from tfkd.data import dataset, digits, folder, idx, photographs, prepared
from tfkd.data.dataset import Dataset

__all__ = ["NAMES", "Dataset", "load"]

NAMES = ("digits", "idx:FOLDER", "folder:FOLDER", *prepared.NAMES)


def load(
    name,
    *,
    batch_size,
    examples_per_class=None,
    classes=None,
    data_dir=None,
    download=False,
    augment=False,
    image_size=None,
    ten_crop=False,
    skip_corrupt=False,
    index=False,
    validation_from="train",
    seed=0,
):
    """Loads a dataset, split into training, validation and test images.

    In memory, small images of one size:

    - "digits": the 1797 handwritten digits of scikit-learn, 8x8 pixels
      enlarged to 32x32, in 70 % training, 10 % validation, 20 % test.
    - "idx:FOLDER": a folder in the format of MNIST, raw or gzipped. Its test
      files are the test split, 10 % of its training files the validation
      split. Images smaller than 32x32 are zero-padded to that size.
    - "cifar10", "cifar100", "svhn_cropped", by TensorFlow Datasets: likewise.

    Photographs of any size, read and decoded while they are needed:

    - "folder:FOLDER": a folder with `train` and `test` (and `validation`, if
      you like) in it, in each a folder for each class, with its JPEG, PNG,
      BMP or GIF files. 10 % of `train` are the validation split unless it
      has its own. What begins with a dot is passed over; a link out of the
      folder, a file that is no photograph and a file that is damaged are
      refused, for which each file is decoded once.
    - "imagenet2012", "caltech_birds2011", "cars196", "stanford_dogs",
      "food101", by TensorFlow Datasets: the first 10 % of each class, as
      they are stored (in random order), are the validation split. Where the
      labels for testing are not public or the part for testing is called
      validation (imagenet2012, food101), that is the test split. All labels
      are read once before the first epoch. Training images are shuffled by
      files and among 8192 at a time; no more than that many are kept, still
      encoded, in memory.

    A photograph's shorter edge is brought to 256/224 of `image_size`; the
    crop of that size in the middle is served, or a random one if augmented.

    What TensorFlow Datasets has prepared is found without a network.

    The splits are stratified and the same for every `seed`, machine and
    version, so a teacher has never seen another run's test images. `seed`
    governs the subset. Order and augmentation of the training images are
    functions of `seed` and of the number of the epoch, whatever other seeds
    are set: a fresh process repeats them, and `Dataset.set_epoch` makes it go
    on at any epoch.

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
        data_dir: The folder with all that TensorFlow Datasets has prepared;
            None: `TFDS_DATA_DIR` in the environment, or else
            ~/tensorflow_datasets.
        download: Whether TensorFlow Datasets may download and prepare what
            is not there. imagenet2012 must be downloaded by hand, and is
            then prepared.
        augment: Whether each epoch has new copies of the training images.
            Small ones are padded by 4 zeros on each side, before
            standardisation, and cropped to their size at a random place;
            of photographs, the crop is at a random place. Every second copy
            is mirrored, but never one of "digits", "idx:FOLDER" or
            "svhn_cropped": a mirror may change what digit it is.
            `tfkd.caching` refuses augmented images.
        image_size: Side of the crops of photographs, in pixels; None: 224.
        ten_crop: Whether the test split of photographs has ten crops of
            each, x `[batch, 10, height, width, 3]`: of the four corners, the
            middle, and these mirrored. `tfkd.models.average_views` makes a
            network classify them.
        skip_corrupt: Whether photographs that cannot be decoded are left
            out, counted in a log message and named in `Dataset.skipped`.
            Those of TensorFlow Datasets are decoded once for that, which is
            long for imagenet2012. If not, those of a folder are refused here
            by name, those of TensorFlow Datasets when they are read.
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
        ValueError: If an argument is out of range or not for this dataset, a
            class has fewer images than asked for, or the data are damaged.
        FileNotFoundError: If the folder, one of its files or the prepared
            data are missing; says where to get them and where to put them.
        ConnectionError: If there is no network to download over.
        ImportError: If TensorFlow Datasets is needed and not installed.

    Example:
    >>> digits = load("digits", batch_size=64, examples_per_class=10)
    >>> digits.num_train, digits.input_shape
    (100, (32, 32, 1))
    """
    batch_size, seed = check_count(batch_size, "batch_size"), check_seed(seed)
    if examples_per_class is not None:
        check_count(examples_per_class, "examples_per_class")
    if image_size is not None:
        check_count(image_size, "image_size")
    switches = {
        "download": download,
        "augment": augment,
        "ten_crop": ten_crop,
        "skip_corrupt": skip_corrupt,
        "index": index,
    }
    for argument, value in switches.items():
        check_choice(value, (False, True), argument)
    check_choice(validation_from, ("train", "test"), "validation_from")
    read, takes = _reader(name)
    given = {
        "data_dir": data_dir,
        "download": download,
        "side": image_size,
        "ten_crop": ten_crop,
        "skip_corrupt": skip_corrupt,
    }
    for argument, value in given.items():
        if argument not in takes and value not in (None, False):
            _refuse(name, "image_size" if argument == "side" else argument)
    given["side"] = image_size or photographs.SIDE
    return dataset.assemble(
        name,
        read(**{argument: given[argument] for argument in takes}),
        batch_size=batch_size,
        examples_per_class=examples_per_class,
        classes=classes,
        augment=augment,
        index=index,
        validation_from=validation_from,
        seed=seed,
    )


def _reader(name):
    """The function that reads the `dataset.Source` called `name`.

    Returns:
        The function, and the names of the arguments that it takes.
    """
    if name == "digits":
        return digits.read, ()
    kind, _, path = name.partition(":") if isinstance(name, str) else ("",) * 3
    if kind == "idx" and path:
        return functools.partial(idx.read, path), ()
    takes = ("side", "ten_crop", "skip_corrupt")
    if kind == "folder" and path:
        return functools.partial(folder.read, path), takes
    if name in prepared.NAMES:
        if name not in prepared.PHOTOGRAPHS:
            takes = ()
        read = prepared.read_photographs if takes else prepared.read_small
        return functools.partial(read, name), ("data_dir", "download", *takes)
    raise ValueError(
        "Invalid value for argument `name`. "
        f"Expected one of {NAMES}, FOLDER being a path. "
        f"Received: name={name!r}"
    )


def _refuse(name, argument):
    """Raises for an argument that means nothing for a dataset."""
    wanted = (
        f"one of {prepared.NAMES}"
        if argument in ("data_dir", "download")
        else f"photographs: 'folder:FOLDER' or one of {prepared.PHOTOGRAPHS}"
    )
    raise ValueError(
        f"Invalid value for argument `{argument}`. Expected it to be left "
        f"out, for it is only for {wanted}. Received: name={name!r}"
    )
