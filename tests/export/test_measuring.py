"""What measure refuses, and the picture. scripts/test_export.py runs it."""

import sys

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tfkd.export import (
    Artefact,
    Measurement,
    export_student,
    measure,
    plot_measurements,
)


@pytest.fixture
def student(make_network):
    return make_network()


def test_few_runs_are_refused(student, images):
    with pytest.raises(ValueError, match=">= 50.*runs=49"):
        measure(student, {}, *images, runs=49)


def test_labels_that_do_not_fit_are_refused(student, images):
    with pytest.raises(ValueError, match=r"each of 8 .*shape \(7,\)"):
        measure(student, {}, images[0], images[1][:7])


def test_students_that_return_nan_are_refused(student, images):
    weights = student.get_weights()
    student.set_weights([np.full_like(weight, np.nan) for weight in weights])
    with pytest.raises(ValueError, match="'net' .* not finite"):
        measure(student, {}, *images)


def test_layers_of_the_running_program_are_refused(images, monkeypatch):
    """As those of a notebook, which no other process can import."""

    class Own(keras.layers.Flatten):
        pass

    monkeypatch.setattr(Own, "__module__", "__main__")
    student = keras.Sequential(
        [keras.Input((8, 8, 2)), Own(name="mine"), keras.layers.Dense(3)]
    )
    with pytest.raises(ValueError, match="'mine' .* an? Own, .* module of its"):
        measure(student, {}, *images)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("student.tflite", "ai_edge_litert.interpreter", "ai-edge-litert"),
        ("student.onnx", "onnxruntime", "onnxruntime"),
    ],
)
def test_a_missing_runtime_is_told(
    student, images, monkeypatch, name, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    artefacts = {"x": Artefact(name, 1, None, None)}
    with pytest.raises(ImportError, match=f"pip install {package}"):
        measure(student, artefacts, *images)


def test_an_artefact_that_cannot_be_run_is_named(student, images, tmp_path):
    exports = export_student(student, tmp_path, formats=["tflite"])
    exports["tflite"].path.write_bytes(b"no model")
    with pytest.raises(ChildProcessError, match="(?s)tflite could not.*Error"):
        measure(student, exports, *images)


# === Picture ===


def measurement(size, time, accuracy):
    return Measurement(
        runtime="LiteRT",
        bytes=size,
        parameters=1,
        compression=None,
        accuracy=accuracy,
        max_difference=0.0,
        largest_output=1.0,
        label_agreement=1.0,
        milliseconds=time,
        slow_milliseconds=2 * time,
    )


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, which are saved too."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **kwargs: (
            figures.append(self),
            save(self, *args, **kwargs),
        ),
    )
    return figures


def test_every_network_is_a_point_with_a_label(figures, tmp_path):
    networks = {
        "teacher": measurement(2_000_000, 4.0, 0.9),
        "student": measurement(3_000, 0.5, 0.8),
    }
    plot_measurements(networks, tmp_path / "p.png", title="networks")
    assert (tmp_path / "p.png").stat().st_size > 5_000
    sizes, times = figures[0].axes
    for axes, xs in ((sizes, [2000, 3]), (times, [4.0, 0.5])):
        points = [
            (line.get_xdata()[0], line.get_ydata()[0])
            for line in axes.lines
            if line.get_marker() != "None"
        ]
        assert points == list(zip(xs, [90.0, 80.0], strict=True))
        assert {text.get_text() for text in axes.texts} == set(networks)


def test_labels_of_near_points_do_not_overlap(figures, tmp_path):
    """Eight networks of one accuracy, some in the same place."""
    networks = {
        f"tflite-number{i}": measurement(1000 * (1 + i // 3), 1 + i // 4, 0.97)
        for i in range(8)
    }
    plot_measurements(networks, tmp_path / "p.png")
    renderer = figures[0].canvas.get_renderer()
    for axes in figures[0].axes:
        # Without the lines to their points.
        boxes = [Text.get_window_extent(t, renderer) for t in axes.texts]
        assert len(boxes) == 8
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        plot_measurements({}, tmp_path / "p.png")
