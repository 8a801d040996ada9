"""Photographs of any size, read from where they lie while they are needed."""

import concurrent.futures
import dataclasses
import logging
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd.data import passes as passes_lib
from tfkd.records import Record

SIDE = 224
# The shorter edge that a photograph is brought to, in sides of a crop.
_EDGE_PER_SIDE = 256 / 224
# What networks for ImageNet are commonly trained with, in units of 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
# What TensorFlow adds to an error's text.
_NODE = re.compile(r"{{.*?}}|\[Op:.*")
# How many times as long as the shorter edge the other may be: shrunken to one
# scale, a line of pixels would take gigabytes.
_LONGEST = 100
# A JPEG spends some bits on every block of 8x8 pixels; at best 64 pixels or so
# a byte are common.
_PIXELS_PER_BYTE = 1024
_JPEG = b"\xff\xd8\xff"
# Corrupt photographs that a message names.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Labelled photographs, served as crops of one size.

    Attributes:
        labels: Integers `[examples]`.
        numbers: The examples' numbers for `reader`, ascending, int64
            `[examples]`.
        reader: Has `read(numbers, passes)`, which gives a `tf.data.Dataset`
            of the encoded photographs and their names, strings, each with
            its place in `numbers`, int64; in order for None, else in an
            order by the key of a `passes.Passes`, which is beside the place.
        side: Of the crops, in pixels.
    """

    labels: np.ndarray
    numbers: np.ndarray
    reader: Any
    side: int = SIDE

    @property
    def input_shape(self):
        """`(height, width, channels)` of one crop."""
        return (self.side, self.side, 3)

    def take(self, indices):
        """The examples at `indices`, `[n]`, ascending."""
        return dataclasses.replace(
            self, labels=self.labels[indices], numbers=self.numbers[indices]
        )

    def labelled(self, labels):
        """The examples with other labels, `[examples]`."""
        return dataclasses.replace(self, labels=labels)

    def moments(self):
        """The mean and standard deviation to standardise by.

        Returns:
            `(mean, std)`, arrays `[3]`, those of ImageNet, in units of 0 to
            255: a pass over all photographs would take long, and networks
            of several datasets agree on the units.
        """
        return np.array(_MEAN), np.array(_STD)

    def batches(
        self,
        *,
        mean,
        std,
        batch_size,
        index,
        augment=False,
        passes=None,
        ten_crop=False,
    ):
        """Batches of standardised crops with their labels.

        Args:
            mean: Subtracted, `[3]`, in pixel units.
            std: Divides, `[3]`, in pixel units.
            batch_size: Photographs per batch.
            index: Whether labels are records with the example's number.
            augment: Whether crops are random, by `passes`.
            passes: A `passes.Passes`, which gives each epoch a new order;
                None keeps the order.
            ten_crop: Whether to serve ten crops of each photograph; not
                with `augment`.

        Returns:
            A `tf.data.Dataset` of `(x, y)`, float32 `[batch, side, side, 3]`,
            or `[batch, 10, side, side, 3]` for ten crops, and int32 `[batch]`
            or records, of known cardinality.
        """
        with tf.device("CPU:0"):
            labels = tf.constant(self.labels, tf.int32)
            mean = tf.constant(mean, tf.float32)
            std = tf.constant(std, tf.float32)

        def example(content, name, place, key=None):
            pixels = tf.numpy_function(
                _decode_or_name, [content, name], tf.uint8, stateful=False
            )
            image = shrink(tf.ensure_shape(pixels, (None, None, 3)), self.side)
            if augment:
                seed = passes_lib.fold(key, place)
                crops = random_crop(image, self.side, seed)
            elif ten_crop:
                crops = ten_crops(image, self.side)
            else:
                crops = center_crop(image, self.side)
            record = Record(labels[place], index=place if index else None)
            return (crops - mean) / std, record.pack()

        examples = self.reader.read(self.numbers, passes).apply(
            tf.data.experimental.assert_cardinality(len(self.labels))
        )
        return (
            examples.map(
                example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )
            .batch(batch_size)
            .prefetch(tf.data.AUTOTUNE)
        )


def decode(content):
    """The pixels of an encoded photograph.

    Args:
        content: A JPEG, PNG, BMP or GIF (its first image), bytes.

    Returns:
        uint8 `[height, width, 3]`; gray becomes red, green and blue, and
        what says how transparent a pixel is, is left out.

    Raises:
        tf.errors.OpError: If it is damaged, promises more pixels than it can
            hold or is far longer than it is wide.
    """
    if content.startswith(_JPEG):
        # What is missing of a JPEG, TensorFlow takes for gray.
        height, width = tf.io.extract_jpeg_shape(content)[:2].numpy().tolist()
        if height * width > _PIXELS_PER_BYTE * len(content):
            raise _invalid(
                f"its {len(content)} bytes cannot hold the {height} x {width} "
                "pixels that it promises"
            )
    image = _decoded(content)
    height, width = image.shape[:2]
    if max(height, width) > _LONGEST * min(height, width):
        raise _invalid(
            f"{height} x {width} pixels, one edge is more than {_LONGEST} "
            "times the other"
        )
    return image


def _decoded(content):
    if not content.startswith(b"BM"):
        return tf.io.decode_image(content, channels=3, expand_animations=False)
    # TensorFlow decodes a BMP to the channels that it has, or not at all.
    pixels = tf.io.decode_bmp(content)
    if pixels.shape[-1] == 1:
        return tf.gather(_palette(content), tf.cast(pixels[..., 0], tf.int32))
    return pixels[..., :3]


def _palette(content):
    """The colours of a BMP of 8 bits, which TensorFlow takes for grays.

    Args:
        content: The file, bytes.

    Returns:
        uint8 `[256, 3]`; black where the file has no colour.
    """
    start = 14 + int.from_bytes(content[14:18], "little")
    size = int.from_bytes(content[46:50], "little") or 256
    entries = content[start : start + 4 * min(size, 256)].ljust(1024, b"\0")
    # Blue, green, red, nothing.
    return np.frombuffer(entries, np.uint8).reshape(256, 4)[:, 2::-1]


def _invalid(message):
    return tf.errors.InvalidArgumentError(None, None, message)


def shrink(image, side):
    """Brings a photograph's shorter edge to 256/224 of a crop's side.

    Bilinear with antialiasing; the other edge is rounded.

    Args:
        image: `[height, width, 3]`, of any real type.
        side: Of a crop, in pixels.

    Returns:
        float32 `[height, width, 3]`, in the units of `image`.
    """
    size = tf.cast(tf.shape(image)[:2], tf.float64)
    edge = round(side * _EDGE_PER_SIDE)
    size = tf.cast(tf.round(size * (edge / tf.reduce_min(size))), tf.int32)
    return tf.image.resize(image, size, antialias=True)


def random_crop(image, side, seed):
    """A crop at a random place, every second one mirrored.

    Args:
        image: `[height, width, 3]`, no edge below `side`.
        side: Of the crop, in pixels.
        seed: Of the draws, int64 `[2]`.

    Returns:
        Tensor `[side, side, 3]`.
    """
    # The generator is named, for the default one depends on the device.
    draws = tf.random.stateless_uniform([3], seed, alg="philox")
    free = tf.cast(tf.shape(image)[:2] - side + 1, tf.float32)
    crop = _crop(image, tf.cast(draws[:2] * free, tf.int32), side)
    return tf.where(draws[2] < 0.5, crop[:, ::-1], crop)


def center_crop(image, side):
    """The crop in the middle, half a pixel up and left of it if need be.

    Args:
        image: `[height, width, 3]`, no edge below `side`.
        side: Of the crop, in pixels.

    Returns:
        Tensor `[side, side, 3]`.
    """
    return _crop(image, (tf.shape(image)[:2] - side) // 2, side)


def ten_crops(image, side):
    """The crops in the four corners and the middle, and their mirror images.

    Args:
        image: `[height, width, 3]`, no edge below `side`.
        side: Of the crops, in pixels.

    Returns:
        Tensor `[10, side, side, 3]`: top left, top right, bottom left,
        bottom right, middle, and these mirrored.

    Reference: Krizhevsky, Sutskever & Hinton 2012, section 4.1.
    """
    free = tf.shape(image)[:2] - side
    corners = [free * [i, j] for i in (0, 1) for j in (0, 1)]
    crops = tf.stack(
        [_crop(image, place, side) for place in (*corners, free // 2)]
    )
    return tf.concat([crops, crops[:, :, ::-1]], axis=0)


def _decode_or_name(content, name):
    """The pixels of a photograph; an error names it."""
    try:
        with tf.device("CPU:0"):
            return decode(content).numpy()
    except tf.errors.OpError as error:
        raise ValueError(
            f"Corrupt photograph {name.decode()} ({_reason(error)}). Replace "
            "or delete it, or load with skip_corrupt=True"
        ) from None


def _reason(error):
    """What is wrong, without what TensorFlow adds to the text."""
    text = getattr(error, "message", None) or str(error)
    return " ".join(_NODE.sub("", text).split())


def find_corrupt(items, content_of):
    """Those items that cannot be decoded, with the reason.

    Args:
        items: Hashable things.
        content_of: Function of an item that returns the encoded photograph.

    Returns:
        A dict, item -> reason.
    """

    def fault(item):
        try:
            content = content_of(item)
            if not content:
                return "it is empty"
            decode(content)
        except (tf.errors.OpError, OSError) as error:
            return _reason(error)
        return None

    with tf.device("CPU:0"), concurrent.futures.ThreadPoolExecutor() as pool:
        faults = pool.map(fault, items)
        return {
            item: reason
            for item, reason in zip(items, faults, strict=True)
            if reason
        }


def warn_of(corrupt):
    """Logs what is left out.

    Args:
        corrupt: Dict, item -> reason, not empty.
    """
    logging.getLogger("tfkd").warning(
        "Left out %d corrupt photographs: %s", len(corrupt), shorten(corrupt)
    )


def shorten(corrupt):
    """The first few items with their reasons, in a line.

    Args:
        corrupt: Dict, item -> reason.

    Returns:
        A string.
    """
    texts = [f"{item} ({reason})" for item, reason in corrupt.items()]
    more = [f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return "; ".join([*texts[:_NAMED], *more])


def _crop(image, place, side):
    """The square whose top left corner is at `place`, `[2]`."""
    crop = tf.slice(image, [place[0], place[1], 0], [side, side, 3])
    return tf.ensure_shape(crop, [side, side, 3])
