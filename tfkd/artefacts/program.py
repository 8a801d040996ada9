"""One input and one output of a loaded artefact, whatever runs it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Program(NamedTuple):
    """One input and one output of a loaded artefact.

    Attributes:
        run: Function of an array `[batch, ...]` that returns an array.
        shape: Of the input with the batch, None for any size; or None.
        output_shape: Likewise.
        model: The `keras.Model`, if it is one.
    """

    run: Callable
    shape: tuple | None
    output_shape: tuple | None
    model: Any = None

    @property
    def batch(self):
        """The only size of batch that it takes, or None."""
        return self.shape[0] if self.shape else None

    @property
    def input_shape(self):
        """Of one input, or None."""
        return self.shape[1:] if self.shape else None

    @property
    def num_classes(self):
        """Length of the output of one input, or None if it is no vector."""
        if self.output_shape is None or len(self.output_shape) != 2:
            return None
        return self.output_shape[1]


def unreadable(path, kind, reason):
    """A `ValueError` for a file that a runtime refuses."""
    return ValueError(f"'{path}' is no {kind} that can be loaded: {reason}")


def only(tensors, kind, path):
    """The name and the value of a dict with one."""
    if len(tensors) != 1:
        raise ValueError(
            f"Expected a model with one {kind}. Received: '{path}' with "
            f"{len(tensors)} {kind}s, {listed(tensors)}"
        )
    (item,) = tensors.items()
    return item


def choose(outputs, name, path):
    """The name and the value of the output that is asked for."""
    if name is None and len(outputs) == 1:
        return only(outputs, "output", path)
    if name not in outputs:
        raise ValueError(
            "Invalid value for argument `output`. Expected one of "
            f"{listed(outputs)}, the outputs of '{path}'. "
            f"Received: output={name!r}"
        )
    return name, outputs[name]


def listed(names):
    """Names in a line, for an error."""
    return ", ".join(repr(name) for name in sorted(names)) or "none"


def cast(x, dtype):
    """`x` in another type; integers only of whole numbers in their range."""
    dtype = np.dtype(dtype)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        whole = np.all(np.isfinite(x)) and np.all(np.rint(x) == x)
        if not whole or x.min() < limits.min or x.max() > limits.max:
            raise ValueError(
                f"it takes whole numbers from {limits.min} to {limits.max}"
            )
    return x.astype(dtype)


def agree(shape, other):
    """Whether two shapes may be one; None is any size, or any shape."""
    if shape is None or other is None:
        return True
    return len(shape) == len(other) and all(
        a == b or a is None or b is None
        for a, b in zip(shape, other, strict=True)
    )
