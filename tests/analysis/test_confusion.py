"""Tests of tfkd.analysis.confusion."""

import numpy as np
import pytest
import tensorflow as tf

from tfkd.analysis import class_scores, confusion_matrix, plot_confusion

MATRIX = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])


def test_counts_by_hand():
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    predictions = [0, 0, 1, 0, 1, 0, 1, 0]
    matrix = confusion_matrix(predictions, labels, num_classes=3)
    np.testing.assert_array_equal(matrix, MATRIX)
    assert matrix.dtype == np.int64


def test_scores_by_hand():
    """Class 2 has no example and is never said."""
    scores = class_scores(MATRIX)
    np.testing.assert_allclose(scores.precision, [3 / 5, 2 / 3, np.nan])
    np.testing.assert_allclose(scores.recall, [3 / 4, 1 / 2, np.nan])
    np.testing.assert_array_equal(scores.count, [4, 4, 0])


def test_agrees_with_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 7, [2, 500])
    matrix = confusion_matrix(predictions, labels, num_classes=7)
    np.testing.assert_array_equal(
        matrix, metrics.confusion_matrix(labels, predictions)
    )
    scores = class_scores(matrix)
    expected = metrics.precision_recall_fscore_support(labels, predictions)
    np.testing.assert_allclose(scores.precision, expected[0])
    np.testing.assert_allclose(scores.recall, expected[1])
    np.testing.assert_array_equal(scores.count, expected[3])


@pytest.mark.parametrize("size", [1, 10, 130])
def test_draws_a_picture(size, tmp_path):
    """The diagonal in blue, what is beside it in orange."""
    matrix = 9 * np.eye(size, dtype=int)
    matrix[0, size // 2] += 1
    path = tmp_path / "confusion.png"
    names = [f"class ${i}$ of a long name" for i in range(size)]
    plot_confusion(matrix, path, class_names=names)
    pixels = tf.io.decode_png(path.read_bytes()).numpy().astype(int)
    height, width = pixels.shape[:2]
    assert max(height, width) < 2100
    red, green, blue = np.moveaxis(pixels[:, : width * 3 // 4, :3], -1, 0)
    assert (blue > red + 80).sum() > 100
    assert ((red > blue + 80).sum() > 3) == (size > 1)


def test_refuses_other_things(tmp_path):
    with pytest.raises(ValueError, match=r"argument `predictions`.*\[0, 2\)"):
        confusion_matrix([2], [0], num_classes=2)
    with pytest.raises(ValueError, match=r"argument `labels`.*\[0, 2\)"):
        confusion_matrix([0], [-1], num_classes=2)
    with pytest.raises(ValueError, match="each of 2 labels. Received: 1"):
        confusion_matrix([0], [0, 1], num_classes=2)
    with pytest.raises(ValueError, match="argument `num_classes`"):
        confusion_matrix([0], [0], num_classes=0)
    for wrong in ([[1, 2]], [[0.5]], [[-1]], np.zeros([0, 0], int), 3):
        with pytest.raises(ValueError, match="argument `matrix`"):
            class_scores(wrong)
        with pytest.raises(ValueError, match="argument `matrix`"):
            plot_confusion(wrong, tmp_path / "picture.png")
    with pytest.raises(ValueError, match="argument `class_names`. Expected 3"):
        plot_confusion(MATRIX, tmp_path / "picture.png", class_names=["a"])
