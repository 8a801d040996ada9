"""How far a classifier's confidence can be believed."""

import numpy as np

from tfkd.arguments import check_count

# Probabilities of float32 and of many classes add up to 1 within this.
_TOLERANCE = 1e-3


def calibration_error(probabilities, labels, *, bins=15):
    """Expected calibration error, by bins of equal width.

    Formula: `sum_b n_b / n |accuracy_b - confidence_b|`. Bin b of B holds the
    n_b of n examples whose largest probability is in ((b - 1) / B, b / B];
    `accuracy_b` is the share of them whose class of the largest probability
    is the label, `confidence_b` the mean of their largest probabilities. 0
    for a classifier that is right as often as it says.

    Args:
        probabilities: `[examples, classes]`, in [0, 1], each row of sum 1.
        labels: Integers `[examples]` in [0, classes).
        bins: Number of bins, B. >= 1.

    Returns:
        A float in [0, 1], computed in float64.

    Raises:
        ValueError: If `probabilities` are none (logits, say), `labels` are
            not theirs, or `bins` is out of range.

    Example:
    >>> calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1])
    0.4

    Reference: Guo et al. 2017, equation 3.
    """
    bins = check_count(bins, "bins")
    probabilities = np.asarray(probabilities, np.float64)
    shape = probabilities.shape
    if (
        len(shape) != 2
        or 0 in shape
        # The negations refuse NaN, too.
        or not probabilities.min() >= 0
        or not np.abs(probabilities.sum(axis=1) - 1).max() <= _TOLERANCE
    ):
        raise ValueError(
            "Invalid value for argument `probabilities`. Expected [examples, "
            "classes] of numbers in [0, 1] whose rows have the sum 1; take "
            f"the softmax of logits. Received: probabilities={probabilities}"
        )
    labels = check_labels(labels, shape[1], "labels")
    if len(labels) != len(probabilities):
        raise ValueError(
            "Invalid value for argument `labels`. Expected one for each row "
            f"of probabilities, {len(probabilities)}. Received: {len(labels)}"
        )
    confidence = np.minimum(probabilities.max(axis=1), 1.0)
    right = probabilities.argmax(axis=1) == labels
    edges = np.arange(1, bins) / bins
    places = np.searchsorted(edges, confidence, side="left")
    # The sum over a bin of accuracy - confidence, times n_b.
    gaps = np.bincount(places, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def check_labels(labels, num_classes, argument):
    """`labels` as int64, if they are integers `[examples]` of the classes.

    Args:
        labels: Anything.
        num_classes: Number of classes.
        argument: The argument's name, for the error.

    Returns:
        NumPy array of int64, `[examples]`.

    Raises:
        ValueError: If they are anything else.
    """
    array = np.asarray(labels)
    if (
        array.ndim != 1
        or not len(array)
        or not np.issubdtype(array.dtype, np.integer)
        or array.min() < 0
        or array.max() >= num_classes
    ):
        raise ValueError(
            f"Invalid value for argument `{argument}`. Expected integers "
            f"[examples] in [0, {num_classes}). "
            f"Received: {argument}={labels!r}"
        )
    return array.astype(np.int64)
