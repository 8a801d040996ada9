"""Curves show the metrics of the runs."""

import keras
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from tfkd.analysis import plot_curves


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_each_run_is_a_line_in_each_panel(drawn, tmp_path):
    history = keras.callbacks.History()
    history.history = {
        "label_loss": [2.0, 1.0, 0.5],
        "accuracy": [0.1, 0.5, 0.8],
        "val_accuracy": [0.1, 0.4, 0.6],
    }
    other = {"accuracy": [0.2, 0.3], "label_loss": [3.0, 2.5], "w2": [1, 2]}
    plot_curves({"ours": history, "other": other}, tmp_path / "curves.png")
    loss, accuracy = drawn[0].axes
    assert (loss.get_title(), accuracy.get_title()) == (
        "label_loss",
        "accuracy",
    )
    lines = [line.get_xydata().tolist() for line in loss.lines]
    assert lines == [[[1, 2.0], [2, 1.0], [3, 0.5]], [[1, 3.0], [2, 2.5]]]
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "--", "-"]
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [0.1, 0.4, 0.6])
    texts = [text.get_text() for text in loss.get_legend().get_texts()]
    assert texts == ["ours", "other"]
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[1] > 1000


def test_wrong_arguments_are_refused(tmp_path):
    path = tmp_path / "curves.png"
    with pytest.raises(ValueError, match="`histories`"):
        plot_curves({}, path)
    with pytest.raises(ValueError, match="no metric in common"):
        plot_curves({"a": {"x": [1]}, "b": {"y": [1]}}, path)
    with pytest.raises(ValueError, match="'a' has no metric 'y'"):
        plot_curves({"a": {"x": [1]}}, path, metrics=["y"])
    with pytest.raises(ValueError, match="`metrics`"):
        plot_curves({"a": {"x": [1]}}, path, metrics="x")
    with pytest.raises(ValueError, match="`metrics`"):
        plot_curves({"a": {"x": [1]}}, path, metrics=[])
    with pytest.raises(ValueError, match="'a' is neither"):
        plot_curves({"a": [1]}, path)
