"""Which classes a classifier takes for which."""

from typing import NamedTuple

import numpy as np

from tfkd.analysis.calibration import check_labels
from tfkd.arguments import check_count

# Up to so many classes a cell has room for its number.
_NUMBERED = 20
# More names are not readable along an axis.
_NAMED = 120
_LONGEST = 18
# The orange scale ends here or above, lest single errors alarm.
_RARE = 0.1


class ClassScores(NamedTuple):
    """How well each class is recognised.

    Attributes:
        precision: Share of the examples said to be of the class that are,
            `[classes]`; NaN where it was never said.
        recall: Share of the examples of the class that were recognised,
            `[classes]`; NaN where there are none.
        count: Examples of the class, integers `[classes]`.
    """

    precision: np.ndarray
    recall: np.ndarray
    count: np.ndarray


def confusion_matrix(predictions, labels, *, num_classes):
    """Counts the examples of each class that were taken for each.

    Args:
        predictions: Integers `[examples]` in [0, num_classes).
        labels: The true classes, likewise.
        num_classes: Number of classes. >= 1.

    Returns:
        int64 `[num_classes, num_classes]`, the true class first.

    Raises:
        ValueError: If they are something else, or not equally many.

    Example:
    >>> confusion_matrix([0, 1, 1], [0, 0, 1], num_classes=2)
    array([[1, 1],
           [0, 1]])
    """
    num_classes = check_count(num_classes, "num_classes")
    predictions = check_labels(predictions, num_classes, "predictions")
    labels = check_labels(labels, num_classes, "labels")
    if len(predictions) != len(labels):
        raise ValueError(
            "Invalid value for argument `predictions`. Expected one for each "
            f"of {len(labels)} labels. Received: {len(predictions)}"
        )
    cells = np.bincount(
        labels * num_classes + predictions, minlength=num_classes**2
    )
    return cells.reshape(num_classes, num_classes)


def class_scores(matrix):
    """Precision and recall of each class.

    Args:
        matrix: As `confusion_matrix` returns it.

    Returns:
        A `ClassScores`.

    Raises:
        ValueError: If it is no matrix of counts.
    """
    matrix = _check_matrix(matrix)
    right = np.diag(matrix)
    said, count = matrix.sum(axis=0), matrix.sum(axis=1)
    nan = np.full(len(matrix), np.nan)
    return ClassScores(
        precision=np.divide(right, said, out=nan.copy(), where=said > 0),
        recall=np.divide(right, count, out=nan.copy(), where=count > 0),
        count=count,
    )


def plot_confusion(matrix, path, *, class_names=None, title="Confusion"):
    """Draws which classes were taken for which.

    A row is a true class. A cell's colour is the share of its examples, blue
    for right answers, orange for wrong ones, the latter by its square root, so
    that rare confusions show; up to 20 classes have the counts written in.

    Args:
        matrix: As `confusion_matrix` returns it.
        path: File of the picture, of a type that Matplotlib knows.
        class_names: Name of each class, or None for numbers.
        title: Of the picture.

    Raises:
        ValueError: If it is no matrix of counts, there are other than as many
            names, or the type of the file is unknown.

    Example:
    >>> plot_confusion(matrix, "confusion.png", class_names=data.class_names)
    """
    matrix = _check_matrix(matrix)
    size = len(matrix)
    if class_names is None:
        class_names = range(size)
    if len(class_names) != size:
        raise ValueError(
            f"Invalid value for argument `class_names`. Expected {size}, one "
            f"for each class. Received: {len(class_names)}"
        )
    # Deferred, so that measuring does without it.
    from matplotlib.colors import Normalize, PowerNorm
    from matplotlib.figure import Figure

    side = min(max(4.0, 0.45 * size), 12.0)
    figure = Figure(figsize=(side + 2.2, side + 1.2), layout="constrained")
    panels = figure.subplot_mosaic(
        [["cells", "right"], ["cells", "wrong"]],
        width_ratios=(side, 0.18),
    )
    axes = panels["cells"]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(size, dtype=bool)
    most = shares[~diagonal].max(initial=_RARE)
    pictures = {
        "right": ("Blues", diagonal, Normalize(0, 1), "recognised"),
        # A square root, so that rare confusions show.
        "wrong": (
            "Oranges",
            ~diagonal & (matrix > 0),
            PowerNorm(0.5, 0, most),
            "confused",
        ),
    }
    for panel, (colors, shown, scale, text) in pictures.items():
        picture = axes.imshow(
            np.ma.masked_where(~shown, shares),
            cmap=colors,
            norm=scale,
        )
        bar = figure.colorbar(picture, cax=panels[panel], format=_percent)
        bar.set_label(f"of the class {text}")
        bar.outline.set_visible(False)
    if size <= _NUMBERED:
        for row, column in np.argwhere(matrix):
            dark = shares[row, column] > (0.5 if row == column else most / 2)
            axes.text(
                column,
                row,
                f"{matrix[row, column]}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "0.1",
            )
    step = -(-size // _NAMED)
    ticks = np.arange(0, size, step)
    names = [_short(str(class_names[tick])) for tick in ticks]
    cell = 72 * side / len(ticks)  # in points
    font = min(9.0, max(3.5, 0.85 * cell))
    fits = 0.65 * font * max(map(len, names)) < cell
    # Names may have dollar signs.
    style = {"fontsize": font, "parse_math": False}
    axes.set_xticks(ticks, names, rotation=0 if fits else 90, **style)
    axes.set_yticks(ticks, names, **style)
    axes.tick_params(length=2 if size > _NUMBERED else 0, pad=2)
    if step == 1:
        # Lines between the cells, which lead the eye to the names.
        axes.set_xticks(np.arange(0.5, size - 1), minor=True)
        axes.set_yticks(np.arange(0.5, size - 1), minor=True)
        axes.grid(which="minor", color="0.92", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color("0.6")
    axes.set(xlabel="predicted class", ylabel="true class")
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(
        f"{title}\n{100 * accuracy:.1f} % of {matrix.sum():,} right",
        loc="left",
        fontsize=11,
        parse_math=False,
    )
    figure.savefig(path, dpi=140)


def _percent(share, position=None):
    return f"{100 * share:g} %"


def _short(name):
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _check_matrix(matrix):
    """`matrix` as int64, if it is square and of counts."""
    array = np.asarray(matrix)
    if (
        array.ndim != 2
        or array.shape[0] != array.shape[1]
        or not len(array)
        or not np.issubdtype(array.dtype, np.integer)
        or array.min() < 0
    ):
        raise ValueError(
            "Invalid value for argument `matrix`. Expected counts [classes, "
            "classes], as of confusion_matrix. "
            f"Received: matrix={matrix!r}"
        )
    return array.astype(np.int64)
