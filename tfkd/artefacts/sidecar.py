"""What lies beside an artefact: class names, input shape, preprocessing."""

import json
import pathlib
import sys
from typing import NamedTuple

from tfkd.artefacts.program import listed

SIDECAR = "preprocessing.json"
# Class names of ImageNet-21k take under a megabyte.
_SIDECAR_BYTES = 2**24
_SIDECAR_KEYS = (
    "class_names",
    "input_shape",
    "mean",
    "std",
    "normalization_inside",
)


class Sidecar(NamedTuple):
    """What is known of an artefact beside the artefact.

    Attributes:
        class_names: Name of each class, a tuple of strings, or None.
        input_shape: Of one input, a tuple of sizes, None where any size will
            do; or None.
        preprocessing: `(mean, std)`, tuples of one float per channel, in
            pixel units; or None.
        normalization_inside: Whether the artefact does this itself and takes
            pixels as they are; or None where nobody has said.
        white: Value of a white pixel, in pixel units; or None.
    """

    class_names: tuple[str, ...] | None = None
    input_shape: tuple[int | None, ...] | None = None
    preprocessing: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    normalization_inside: bool | None = None
    white: float | None = None


def read_sidecar(path):
    """Reads a `preprocessing.json`.

    It is an object with the keys "class_names" (strings), "input_shape"
    (sizes, null for any), "mean" and "std" (one number per channel, in pixel
    units), each of which may be null, and "normalization_inside" (true or
    false). It may have "white", the value of a white pixel.

    Args:
        path: Of the file.

    Returns:
        A `Sidecar`.

    Raises:
        ValueError: If it is too large, no JSON, or says something else; names
            the file and the key.
    """
    path = pathlib.Path(path)
    if path.stat().st_size > _SIDECAR_BYTES:
        raise ValueError(
            f"'{path}' has more than {_SIDECAR_BYTES} bytes. Expected a small "
            "JSON file."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is no JSON object.")
    missing = [key for key in _SIDECAR_KEYS if key not in content]
    if missing:
        raise ValueError(f"'{path}' lacks {listed(missing)}.")

    def value(key, accepts, expected):
        if content[key] is None:
            return None
        if not accepts(content[key]):
            raise ValueError(
                f"'{path}': expected {key} to be {expected} or null. "
                f"Received: {repr(content[key])[:100]}"
            )
        return tuple(content[key])

    names = value("class_names", _are_names, "a list of strings")
    shape = value("input_shape", _are_sizes, "a list of integers >= 1")
    mean = value("mean", _are_numbers, "a list of finite numbers")
    std = value("std", _are_positive, "a list of finite numbers > 0")
    inside = content["normalization_inside"]
    if not isinstance(inside, bool):
        raise ValueError(
            f"'{path}': expected normalization_inside to be true or false. "
            f"Received: {repr(inside)[:100]}"
        )
    white = content.get("white")
    if white is not None and not _are_positive([white]):
        raise ValueError(
            f"'{path}': expected white to be a finite number > 0 or null. "
            f"Received: {repr(white)[:100]}"
        )
    if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
        raise ValueError(
            f"'{path}': expected mean and std of equally many channels, or "
            f"both null. Received: mean={mean}, std={std}"
        )
    preprocessing = mean and (tuple(map(float, mean)), tuple(map(float, std)))
    return Sidecar(names, shape, preprocessing, inside, white)


def read_beside(path):
    """All that is known of an artefact beside its program.

    Args:
        path: Of its file; or of the folder that holds saved_model.pb, which
            may be a version of a model.

    Returns:
        A `Sidecar`.

    Raises:
        ValueError: If a file is broken, or two name different classes.
    """
    path = path.absolute()
    places = [path.parent]
    if path.is_dir() and path.name.isdecimal():
        places.append(path.parent.parent)  # beside the model of this version
    files = [place / SIDECAR for place in places]
    sidecar = next(
        (read_sidecar(file) for file in files if file.is_file()), Sidecar()
    )
    asset = path / "assets" / "class_names.txt"
    if asset.is_file():
        names = read_names(asset)
        if sidecar.class_names not in (None, names):
            raise ValueError(
                f"{SIDECAR} beside '{path}' and '{asset}' name different "
                "classes. Correct one of them."
            )
        sidecar = sidecar._replace(class_names=names)
    return sidecar


def read_names(path):
    """Class names from a text file.

    Args:
        path: Of the file, UTF-8, a name in each line.

    Returns:
        A tuple of strings.

    Raises:
        ValueError: If it is something else.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no UTF-8 text: {error}") from error
    names = tuple(name.strip() for name in text.strip("\n").split("\n"))
    if not all(names):
        raise ValueError(f"'{path}': expected a class name in each line.")
    return names


def _are_names(value):
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str) and name for name in value)
    )


def _are_sizes(value):
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            size is None or (type(size) is int and size > 0) for size in value
        )
    )


def _are_numbers(value):
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(number) in (int, float) for number in value)
        # Larger integers are no float.
        and all(abs(number) <= sys.float_info.max for number in value)
    )


def _are_positive(value):
    return _are_numbers(value) and all(number > 0 for number in value)
