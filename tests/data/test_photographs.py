"""Photographs: how they are decoded, shrunk and cropped."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfkd.data import photographs


def grid(height, width):
    """An image whose pixels tell their place: row, column, 0."""
    image = np.zeros((height, width, 3), np.float32)
    image[..., 0] = np.arange(height)[:, np.newaxis]
    image[..., 1] = np.arange(width)
    return image


def place(crop):
    """Row and column of a crop's top left corner, and whether mirrored."""
    crop = np.asarray(crop)
    mirrored = crop[0, 0, 1] > crop[0, -1, 1]
    if mirrored:
        crop = crop[:, ::-1]
    row, column = crop[0, 0, :2].astype(int)
    side = len(crop)
    expected = grid(row + side, column + side)[row:, column:]
    np.testing.assert_array_equal(crop, expected)  # else it is no true crop
    return row, column, bool(mirrored)


def test_ten_crops_are_corners_and_middle_and_their_mirrors():
    crops = photographs.ten_crops(grid(7, 10), 4)
    assert crops.shape == (10, 4, 4, 3)
    corners = [(0, 0), (0, 6), (3, 0), (3, 6), (1, 3)]
    assert [place(crop) for crop in crops] == [
        *((*corner, False) for corner in corners),
        *((*corner, True) for corner in corners),
    ]


def test_middle_crop_by_hand():
    assert place(photographs.center_crop(grid(7, 10), 4)) == (1, 3, False)
    assert place(photographs.center_crop(grid(4, 5), 4)) == (0, 0, False)


def test_random_crops_reach_every_place_alike():
    """4 rows, 7 columns, 2 directions: 560 draws, 20 each on average.

    Each of 4 rows has 140 with a deviation of 10.2, each of 7 columns 80
    with one of 8.3, each direction 280 with one of 11.8.
    """
    image = tf.constant(grid(7, 10))
    crop = tf.function(
        lambda i: photographs.random_crop(image, 4, tf.stack([7, i]))
    )
    draws = [place(crop(tf.constant(i))) for i in range(560)]
    rows, columns, mirrored = np.array(draws).T
    for values, number in ((rows, 4), (columns, 7), (mirrored, 2)):
        counts = np.bincount(values, minlength=number)
        assert len(counts) == number
        deviation = np.sqrt(560 / number * (1 - 1 / number))
        assert np.abs(counts - 560 / number).max() < 5 * deviation


def test_random_crop_of_one_seed_is_always_the_same():
    image = grid(40, 60)
    crops = [photographs.random_crop(image, 8, [3, 4]) for _ in range(2)]
    np.testing.assert_array_equal(*crops)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((375, 500), 224, (256, 341)),  # 500 * 256 / 375 = 341.3
        ((500, 375), 224, (341, 256)),
        ((100, 100), 224, (256, 256)),
        ((600, 8), 7, (600, 8)),
        ((3, 5), 28, (32, 53)),
    ],
)
def test_shorter_edge_is_256_for_crops_of_224(size, side, expected):
    """In that proportion for others: 8 for 7, 32 for 28."""
    image = photographs.shrink(np.zeros((*size, 3), np.uint8), side)
    assert image.shape == (*expected, 3)
    assert image.dtype == tf.float32


def test_shrinking_averages():
    """With antialiasing, a chequerboard becomes gray, not black or white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255.0
    image = np.repeat(board[..., np.newaxis], 3, axis=-1)
    shrunk = photographs.shrink(image, 7).numpy()
    assert shrunk.shape == (8, 8, 3)
    np.testing.assert_allclose(shrunk, 127.5, atol=1.0)


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "gif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decodes_every_format_to_three_channels(kind, channels):
    rng = np.random.default_rng(0)
    image = np.full((6, 9, channels), rng.integers(256, size=channels))
    image = image.astype(np.uint8)
    expected = np.broadcast_to(image, (6, 9, 3))
    if kind == "jpeg":
        content = tf.io.encode_jpeg(image, quality=100).numpy()
    elif kind == "png":
        content = tf.io.encode_png(image).numpy()
    else:
        content = _with_pillow(expected, kind)
    decoded = photographs.decode(content)
    assert decoded.dtype == tf.uint8
    tolerance = 2 if kind == "jpeg" else 0
    np.testing.assert_allclose(
        decoded.numpy().astype(int), expected.astype(int), atol=tolerance
    )


def test_a_jpeg_that_promises_more_than_it_holds_is_refused():
    """Its end is there, so that TensorFlow would give gray for the rest."""
    content = tf.io.encode_jpeg(np.zeros([16, 16, 3], np.uint8)).numpy()
    place = content.index(b"\xff\xc0") + 5
    promise = (3000).to_bytes(2, "big") * 2
    content = content[:place] + promise + content[place + 4 :]
    assert tf.io.decode_jpeg(content).shape == (3000, 3000, 3)
    with pytest.raises(tf.errors.OpError, match="cannot hold the 3000 x 3000"):
        photographs.decode(content)


def test_one_colour_is_what_a_jpeg_holds_most_of():
    image = np.zeros([2000, 2000, 3], np.uint8)
    content = tf.io.encode_jpeg(image, optimize_size=True).numpy()
    np.testing.assert_array_equal(photographs.decode(content), image)


@pytest.mark.parametrize("size", [(1, 101), (303, 3)])
def test_a_line_of_pixels_is_refused(size):
    """A PNG of 1 x 20,000 pixels, 157 bytes, would become 16 GB."""
    image = np.zeros([*size, 3], np.uint8)
    content = tf.io.encode_png(image).numpy()
    with pytest.raises(tf.errors.OpError, match="more than 100 times"):
        photographs.decode(content)
    content = tf.io.encode_png(image[:300, :100]).numpy()
    assert photographs.decode(content).shape == image[:300, :100].shape


@pytest.mark.parametrize(
    "content",
    [
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0),
        b"BM"
        + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 30000, 30000, 1, 24)
        + bytes(24),
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + struct.pack(">II", 2**31 - 1, 2**31 - 1)
        + b"\x08\x02\0\0\0",
    ],
    ids=["gif", "bmp", "png"],
)
def test_a_huge_size_is_refused(content):
    with pytest.raises(tf.errors.OpError):
        photographs.decode(content)


def _with_pillow(image, kind):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["BMP", "PNG"])
def test_decodes_any_number_of_channels(kind, mode):
    """A BMP, too, which TensorFlow decodes to the channels it has."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [5, 7, 4], np.uint8)
    pixels = pixels[..., 0] if mode == "L" else pixels[..., : len(mode)]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    if mode == "L":
        pixels = np.repeat(pixels[..., np.newaxis], 3, axis=-1)
    decoded = photographs.decode(stream.getvalue())
    np.testing.assert_array_equal(decoded, pixels[..., :3])


def test_a_bmp_may_have_a_palette():
    pixels = np.random.default_rng(0).integers(0, 9, [5, 7], np.uint8)
    colors = np.random.default_rng(1).integers(0, 256, [9, 3], np.uint8)
    image = Image.fromarray(pixels, "L")
    image.putpalette(colors.tobytes())
    stream = io.BytesIO()
    image.save(stream, "BMP")
    decoded = photographs.decode(stream.getvalue())
    np.testing.assert_array_equal(decoded, colors[pixels])
    for size in (2, 20, 40, 60, len(stream.getvalue()) - 1):
        with pytest.raises(tf.errors.InvalidArgumentError):
            photographs.decode(stream.getvalue()[:size])
