"""Networks to teach and to be taught: flat Functional models, logits out."""

import difflib
import math
import numbers

from tfkd.models import vgg

__all__ = ["NAMES", "build"]

# A family joins with one line: its names, and the function that builds them.
_BUILDERS = {
    **dict.fromkeys(vgg.NAMES, vgg.vgg),
}

NAMES = tuple(_BUILDERS)


def build(name, *, num_classes, input_shape=(32, 32, 3), width=1.0):
    """Builds an untrained network with random weights.

    Every network maps images `[batch, height, width, channels]` to logits
    `[batch, num_classes]`, which are float32 or wider under any precision
    policy. The layers to compare networks at are "stem", "stage1", "stage2"
    and so on, "features" (the pooled vector before the classifier) and
    "logits".

    Args:
        name: One of `tfkd.models.NAMES`; it also names the model.
        num_classes: Number of logits. >= 1.
        input_shape: `(height, width, channels)` of one image, in pixels.
        width: Factor on the channels of every layer but the logits, rounded,
            and at least one channel. > 0.

    Returns:
        A flat Functional `keras.Model`.

    Raises:
        ValueError: If `name` is unknown, `num_classes` or `width` out of
            range, or `input_shape` not that of an image or too small for
            the network.

    Example:
    >>> model = build("vgg4", num_classes=10, width=0.25)
    >>> model.output_shape
    (None, 10)
    """
    if not isinstance(name, str) or name not in _BUILDERS:
        nearest = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            "Invalid value for argument `name`. "
            f"Expected one of {NAMES}. Received: name={name!r}.{hint}"
        )
    if not _is_positive_integer(num_classes):
        raise ValueError(
            "Invalid value for argument `num_classes`. "
            "Expected an integer >= 1. "
            f"Received: num_classes={num_classes!r}"
        )
    if (
        not isinstance(input_shape, tuple | list)
        or len(input_shape) != 3
        or not all(_is_positive_integer(size) for size in input_shape)
    ):
        raise ValueError(
            "Invalid value for argument `input_shape`. "
            "Expected (height, width, channels), three integers >= 1. "
            f"Received: input_shape={input_shape!r}"
        )
    if (
        not isinstance(width, numbers.Real)
        or isinstance(width, bool)
        or not 0.0 < width < math.inf
    ):
        raise ValueError(
            "Invalid value for argument `width`. "
            f"Expected a finite number > 0. Received: width={width!r}"
        )
    return _BUILDERS[name](
        name,
        num_classes=int(num_classes),
        input_shape=tuple(int(size) for size in input_shape),
        width=float(width),
    )


def _is_positive_integer(value):
    """Whether `value` is a Python or NumPy integer >= 1, and no bool."""
    return (
        isinstance(value, numbers.Integral)
        and not isinstance(value, bool)
        and value >= 1
    )
