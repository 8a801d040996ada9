"""Tests of tfkd.analysis.calibration."""

import numpy as np
import pytest

from tfkd.analysis import calibration_error


def oracle(probabilities, labels, bins):
    """Bin by bin from the definition, in float64, by loops."""
    total, n = 0.0, len(labels)
    for b in range(1, bins + 1):
        members = [
            (p.max(), p.argmax() == y)
            for p, y in zip(probabilities, labels, strict=True)
            if (b - 1) / bins < p.max() <= b / bins
        ]
        if members:
            confidence, right = np.mean(members, axis=0, dtype=np.float64)
            total += len(members) / n * abs(right - confidence)
    return total


@pytest.fixture
def probabilities():
    rng = np.random.default_rng(0)
    p = np.exp(2 * rng.normal(size=[400, 5]))
    return p / p.sum(axis=1, keepdims=True)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 5, 400)


def test_known_value_by_hand():
    """Two bins: confidences 0.9, 0.7 (one right) and 0.5 (right).

    2/3 |1/2 - 0.8| + 1/3 |1 - 0.5| = 0.2 + 1/6.
    """
    p = [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]
    error = calibration_error(p, [0, 0, 0], bins=2)
    assert error == pytest.approx(0.2 + 1 / 6, abs=1e-15)


@pytest.mark.parametrize("bins", [1, 2, 15, 100])
def test_agrees_with_the_definition(probabilities, labels, bins):
    error = calibration_error(probabilities, labels, bins=bins)
    expected = oracle(probabilities, labels, bins)
    assert error == pytest.approx(expected, abs=1e-13)
    assert expected > 0.1


def test_has_15_bins_unless_told(probabilities, labels):
    assert calibration_error(probabilities, labels) == pytest.approx(
        oracle(probabilities, labels, 15), abs=1e-13
    )


def test_a_bin_holds_its_upper_edge():
    """At 15 bins 0.2, 0.4, 0.6, 0.8 and 1 are edges, some not in binary.

    0.6 and what is just above it are two bins, whose gaps of opposite sign
    would cancel in one.
    """
    p = np.array([[0.6, 0.4], [0.6 + 1e-9, 0.4 - 1e-9]])
    apart = calibration_error(p, [0, 1], bins=15)
    assert apart == pytest.approx((0.4 + 0.6) / 2, abs=1e-8)
    together = calibration_error(p, [0, 1], bins=1)
    assert together == pytest.approx(0.1, abs=1e-8)


def test_is_zero_for_who_is_right_as_often_as_said():
    p = np.tile([0.75, 0.25], [8, 1])
    assert calibration_error(p, [0, 0, 0, 1] * 2) == pytest.approx(0, abs=1e-15)
    assert calibration_error(np.eye(4), np.arange(4)) == 0.0


def test_is_one_for_who_is_certain_and_wrong():
    assert calibration_error(np.eye(4), [1, 2, 3, 0]) == 1.0


def test_forgives_the_rounding_of_float32(probabilities, labels):
    rounded = np.float32(probabilities)
    assert calibration_error(rounded, labels) == pytest.approx(
        calibration_error(probabilities, labels), abs=1e-6
    )
    # A sum just above one is in the last bin.
    over = np.float32([[1.0000001, 0.0]])
    assert calibration_error(over, [0]) == 0.0


@pytest.mark.parametrize(
    ("p", "y", "bins", "message"),
    [
        ([[2.0, -1.0]], [0], 15, "softmax of logits"),
        ([[0.5, 0.4]], [0], 15, "softmax of logits"),
        ([[np.nan, 1.0]], [0], 15, "softmax of logits"),
        ([0.5, 0.5], [0, 1], 15, r"\[examples, classes\]"),
        (np.zeros([0, 2]), [], 15, r"\[examples, classes\]"),
        ([[0.5, 0.5]], [2], 15, r"argument `labels`.*\[0, 2\)"),
        ([[0.5, 0.5]], [-1], 15, r"argument `labels`.*\[0, 2\)"),
        ([[0.5, 0.5]], [0.0], 15, "argument `labels`"),
        ([[0.5, 0.5]], [[0]], 15, "argument `labels`"),
        ([[0.5, 0.5]], [0, 1], 15, "argument `labels`.*each row"),
        ([[0.5, 0.5]], [0], 0, "argument `bins`"),
    ],
)
def test_refuses_other_things(p, y, bins, message):
    with pytest.raises(ValueError, match=message):
        calibration_error(p, y, bins=bins)
