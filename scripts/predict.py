"""Classifies your own images with a trained network.

The network is a .keras, .tflite or .onnx file or the folder of a SavedModel,
and returns logits (or probabilities, see --outputs). Images are PNG, JPEG, BMP
or GIF of any size, gray or in colour. Each is brought to the network's size as
a whole, or with --crop as photographs are for testing; what is transparent is
taken as if it were not. Then it is brought to the units of the network's
training images, which preprocessing.json beside the network tells, or
--dataset, or --mean, --std and --white.
"""

import argparse
import contextlib
import json
import math
import pathlib
import sys
from typing import NamedTuple

import common
import numpy as np
import tensorflow as tf

from tfkd import data
from tfkd.artefacts import open_artefact
from tfkd.artefacts.sidecar import read_names
from tfkd.data import photographs

_BATCH = 32
# Of a file; photographs have a tenth of it.
_MOST_BYTES = 2**28
# What is longer than so many times its shorter edge is not cropped.
_NARROWEST = 50
_HEADER = ("file", "class", "probability %")


class Units(NamedTuple):
    """How pixels become what the network takes.

    Attributes:
        mean, std: One float per channel, or one; None: pixels are taken as
            they are.
        white: Value of a white pixel before that.
        invert: Whether light and dark are exchanged.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    white: float
    invert: bool

    def __call__(self, pixels):
        """Converts a batch.

        Args:
            pixels: float32 `[batch, height, width, channels]` in [0, 255].

        Returns:
            float32, of the same shape.
        """
        if self.invert:
            pixels = 255 - pixels
        pixels = pixels * np.float32(self.white / 255)
        if self.mean is None:
            return pixels
        return (pixels - np.float32(self.mean)) / np.float32(self.std)


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of arguments; None: those of the command line.

    Returns:
        The exit code: 0; 1 if a file is no image, after all others; or as of
        `common.run`.

    Raises:
        SystemExit: With code 2 on bad input, before any image is read.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    return common.run(parser, lambda: _predict(parser, options))


def _parser():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add("network", metavar="NETWORK", help="file, or folder of a SavedModel")
    add(
        "--images",
        nargs="+",
        required=True,
        metavar="FILE",
        help="what to classify",
    )
    add(
        "--top",
        type=common.integer(1),
        default=3,
        metavar="N",
        help="classes to print for each image, the likeliest first",
    )
    add(
        "--classes",
        metavar="FILE",
        help="text with a class name in each line (default: those that lie "
        "beside the network, or of --dataset, or numbers)",
    )
    add(
        "--dataset",
        metavar="NAME",
        help="what the network was trained on, for class names and units: one "
        f"of {', '.join(data.NAMES)}",
    )
    common.add_reading_arguments(parser)
    add(
        "--mean",
        nargs="+",
        type=_number,
        metavar="X",
        help="subtracted from pixels, one for all channels or one for each",
    )
    add(
        "--std",
        nargs="+",
        type=common.positive_number,
        metavar="X",
        help="divides what is left",
    )
    add(
        "--white",
        type=common.positive_number,
        metavar="X",
        help="value of a white pixel in the units of --mean (default: as told "
        "beside the network or by --dataset, which is 16 for digits, else 255)",
    )
    add(
        "--invert",
        action="store_true",
        help="exchange light and dark: for ink on paper, where a network has "
        "learned light digits on a dark ground",
    )
    add(
        "--crop",
        action="store_true",
        help="take the middle square, after the shorter edge was brought to "
        "256/224 of the network's size: as networks of photographs are tested",
    )
    add("--head", metavar="NAME", help="the output to use, of several")
    add(
        "--outputs",
        choices=("logits", "probabilities"),
        default="logits",
        help="what the network returns",
    )
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _number(text):
    """An argument type: a finite number."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a finite number, not {text!r}")


def _predict(parser, options):
    """Checks, reads, runs and prints; returns the exit code."""
    if (options.mean is None) != (options.std is None):
        parser.error("argument --mean: only together with --std")
    with parser.checking("NETWORK"), common.quiet():
        run = open_artefact(options.network, output=options.head)
        shape = _image_shape(run, options.crop)
    dataset = _dataset(parser, options)
    units = _units(parser, options, run, dataset, shape)
    files = list(dict.fromkeys(options.images))
    found, faults = {}, {}
    for start in range(0, len(files), _BATCH):
        part = files[start : start + _BATCH]
        with common.quiet():
            images, corrupt = _read(part, shape, options.crop)
        faults |= corrupt
        if images:
            with parser.checking("NETWORK"), common.quiet():
                outputs = run(units(np.stack(list(images.values()))))
            found |= zip(images, outputs, strict=True)
    if found:
        with parser.checking("NETWORK"):
            outputs = np.stack(list(found.values()))
            rows = _probabilities(parser, options, run, outputs)
        found = dict(zip(found, rows, strict=True))
    _say(parser, options, run, dataset, found, faults)
    return 1 if faults else 0


def _image_shape(run, crop):
    """`(height, width, channels)` of the network's images.

    Args:
        run: A `tfkd.artefacts.Runner`.
        crop: Whether images are to be cropped.

    Returns:
        A tuple of three integers.

    Raises:
        ValueError: If it takes no images, or of any size, or is to have
            squares and takes none.
    """
    shape = run.input_shape
    if shape is None or len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(
            f"'{run.path}' takes inputs of shape {shape}. Expected images "
            "(height, width, channels) of 1 or 3 channels."
        )
    if crop and shape[0] != shape[1]:
        raise ValueError(
            f"'{run.path}' takes images of shape {shape}, which are no "
            "squares. Leave --crop out."
        )
    if None in shape:
        raise ValueError(
            f"'{run.path}' takes images of any size, {shape}. Say which in "
            '"input_shape" of a preprocessing.json beside it.'
        )
    return shape


def _dataset(parser, options):
    """The `tfkd.data.Dataset` of --dataset, or None."""
    if options.dataset is None:
        if common.reading(options):
            parser.error(
                "arguments --data-dir, --download, --image-size and "
                "--skip-corrupt: only with --dataset"
            )
        return None
    with parser.checking("--dataset"):
        return data.load(
            options.dataset, batch_size=1, **common.reading(options)
        )


def _units(parser, options, run, dataset, shape):
    """The `Units`: of the options, else beside the network, else the dataset's.

    Ends the script if nobody tells.
    """
    white = options.white or run.white or (dataset.white if dataset else 255.0)
    if options.mean is not None:
        if run.normalization_inside:
            parser.error(
                "argument --mean: the network standardises images itself; "
                "leave it out"
            )
        mean, std = options.mean, options.std
    elif run.normalization_inside:
        mean, std = None, None
    elif run.preprocessing is not None:
        mean, std = run.preprocessing
    elif dataset is not None:
        mean, std = dataset.mean, dataset.std
    else:
        parser.error(
            f"argument NETWORK: nobody tells how '{options.network}' wants its "
            "images standardised. Pass --dataset NAME, on which it was "
            "trained, or --mean and --std (0 and 1 if it takes pixels as they "
            "are)"
        )
    for option, values in (("--mean", mean), ("--std", std)):
        if values is not None and len(values) not in (1, shape[2]):
            parser.error(
                f"argument {option}: expected 1 or {shape[2]} numbers, one for "
                f"each channel of the network's images, not {len(values)}"
            )
    return Units(mean, std, white, options.invert)


def _class_names(parser, options, run, dataset, size):
    """Name of each class: given, beside the network, of the dataset, numbers.

    Ends the script if there are other than `size`.
    """
    if options.classes:
        option = "--classes"
        with parser.checking(option):
            names = read_names(options.classes)
    elif run.class_names:
        return run.class_names
    elif dataset is not None:
        option, names = "--dataset", dataset.class_names
    else:
        return tuple(map(str, range(size)))
    if len(names) != size:
        parser.error(
            f"argument {option}: expected {size} class names, as many as the "
            f"network's outputs, not {len(names)}"
        )
    return names


def _read(files, shape, crop):
    """Reads images.

    Args:
        files: Paths, each once.
        shape: `(height, width, channels)` to bring them to.
        crop: Whether they are cropped.

    Returns:
        A dict, file -> float32 `shape` in [0, 255], and a dict, file -> what
        is wrong with it.
    """
    contents, images = {}, {}

    def content_of(file):
        contents[file] = _content(file)
        return contents[file]

    faults = photographs.find_corrupt(files, content_of)
    for file in files:
        if file not in faults:
            pixels = photographs.decode(contents[file])
            if crop and max(pixels.shape) > _NARROWEST * min(pixels.shape[:2]):
                faults[file] = f"{tuple(pixels.shape[:2])} is too narrow"
            else:
                images[file] = _fit(pixels, shape, crop).numpy()
    return images, faults


def _content(file):
    """The bytes of a file.

    Raises:
        OSError: If it is no file, or too large.
    """
    path = pathlib.Path(file)
    if not path.exists():
        raise OSError("no such file")
    if not path.is_file():
        raise OSError("it is no file")
    if path.stat().st_size > _MOST_BYTES:
        raise OSError(f"it has more than {_MOST_BYTES // 2**20} MB")
    return path.read_bytes()


def _fit(pixels, shape, crop):
    """Brings an image to a shape.

    Args:
        pixels: uint8 `[height, width, 3]`.
        shape: `(height, width, channels)`.
        crop: Whether it is cropped.

    Returns:
        float32 of that shape, in [0, 255].
    """
    height, width, channels = shape
    if channels == 1:
        # Of integers, for of floats it would make gray darker by 1e-4.
        pixels = tf.image.rgb_to_grayscale(pixels)
    if crop:
        pixels = tf.repeat(pixels, 3 // channels, axis=-1)
        crop = photographs.center_crop(
            photographs.shrink(pixels, height), height
        )
        return crop[..., :channels]
    if tuple(pixels.shape[:2]) == (height, width):
        return tf.cast(pixels, tf.float32)
    return tf.image.resize(pixels, (height, width), antialias=True)


def _probabilities(parser, options, run, outputs):
    """Class probabilities `[images, classes]` of a network's outputs."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"'{run.path}' returns {outputs.shape[1:]} for an image. Expected "
            "a number for each of several classes."
        )
    if not np.all(np.isfinite(outputs)):
        raise ValueError(f"'{run.path}' returns numbers that are not finite.")
    if options.outputs == "probabilities":
        return np.float64(outputs)
    if common.are_probabilities(outputs):
        print(
            f"{parser.prog}: warning: '{run.path}' seems to return "
            "probabilities; if so, pass --outputs probabilities",
            file=sys.stderr,
        )
    return np.exp(common.log_softmax(outputs))


def _best(probabilities, names, top):
    """The likeliest classes: list of (label, name, probability)."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        (int(label), names[label], float(probabilities[label]))
        for label in order
    ]


def _say(parser, options, run, dataset, found, faults):
    """Prints results, in the order of the files, and faults."""
    results = {}
    if found:
        size = len(next(iter(found.values())))
        names = _class_names(parser, options, run, dataset, size)
        results = {
            file: _best(row, names, options.top) for file, row in found.items()
        }
    if options.json:
        content = [
            {"file": file, "error": faults[file]}
            if file in faults
            else {
                "file": file,
                "classes": [
                    {"label": label, "class": name, "probability": probability}
                    for label, name, probability in results[file]
                ],
            }
            for file in dict.fromkeys(options.images)
        ]
        common.say(json.dumps(content, indent=2))
    elif results:
        rows = [
            (file, name, common.percent(probability))
            for file, best in results.items()
            for _, name, probability in best
        ]
        common.say(common.markdown_table(_HEADER, rows))
    for file, fault in faults.items():
        print(f"{parser.prog}: error: {file}: {fault}", file=sys.stderr)


if __name__ == "__main__":
    common.start(main)
