"""Fernandes Montesuma 2025, KD2M: feature knowledge distillation.

Table 1, figures 2 and 3. What each shows, its networks, data, cost, expected
order and command: `reproduce.py --list`.
"""

import numpy as np

from recipes import figures, small_forms
from recipes.small_forms import by_method
from recipes.table import Cell, Claim, Table, over, published
from tfkd.analysis import FeatureAlignment, plot_feature_alignment
from tfkd.analysis.figures import panels, styles, tidy

_PAPER = "Fernandes Montesuma 2025"
_STUDENT, _TEACHER = "student", "teacher"

# Row -> the method, and the paper's figures.
_METRICS = {
    "W2 (E)": ("w2", (94.00, 86.45, 61.07)),
    "CW2 (E)": ("cw2", (94.06, 86.54, 61.47)),
    "JW2 (E)": ("jw2", (94.00, 86.60, 61.07)),
    "W2 (G)": ("gaussian-w2", (93.94, 86.63, 60.68)),
    "CW2 (G)": ("gaussian-cw2", (93.95, 86.25, 61.43)),
    "KL (G)": ("gaussian-kl", (94.05, 86.44, 60.66)),
}
_FULL_DATA = {
    "SVHN": ("svhn_cropped", 73257),
    "CIFAR-10": ("cifar10", 50000),
    "CIFAR-100": ("cifar100", 50000),
}
_SMALL_DATA = ("digits", "Fashion-MNIST")
_ALL_DATA = (*_FULL_DATA, *_SMALL_DATA)
_FULL_EPOCHS, _FULL_BATCH = 100, 128
_FULL_TEXT = (
    "a ResNet-34 teacher, a ResNet-18 student, both with the stem for small "
    "images. Of the training the paper says that it is by stochastic "
    f"gradients: here Adam, {_FULL_EPOCHS} epochs, batch {_FULL_BATCH}, rate "
    "1e-3 and a tenth of it after 80 %, no augmentation"
)
_SMALL_TEXT = (
    f"{small_forms.DIGITS_TEXT[0].upper()}{small_forms.DIGITS_TEXT[1:]}"
)
# Of 1e-4, 0.01, 0.1 and 1 the best on validation images of Fashion-MNIST, over
# all six distances.
_SMALL_WEIGHT = 1e-2
# Looks along a run of figure 2, and images in figure 3.
_POINTS, _ALIGNED = 5, 200


def _setting(column):
    """Data, schedule and student of a column, and its teacher's run."""
    if column == "digits":
        return small_forms.DIGITS, small_forms.DIGITS_TEACHER
    if column == "Fashion-MNIST":
        return small_forms.FASHION, small_forms.FASHION_TEACHER
    name, images = _FULL_DATA[column]
    setting = {
        "data": name,
        "network": "resnet18-cifar",
        "width": 1.0,
        "examples_per_class": None,
        "validation_from": "test",
        "batch_size": _FULL_BATCH,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "drops": [0.8],
        "steps": _FULL_EPOCHS * -(-images // _FULL_BATCH),
    }
    teacher = {
        **setting,
        "task": "learning.trained",
        "network": "resnet34-cifar",
        "seed": 0,
    }
    return setting, teacher


def _config(column, method, weight=None):
    """A run; those of a weight are looked at along the way."""
    setting, teacher = _setting(column)
    if method == "ce":
        return by_method(setting, "ce", teacher=None)
    if weight is None:
        weight = 1e-4 if column in _FULL_DATA else _SMALL_WEIGHT
    part = method.replace("-", "_")
    looked_at = {}
    if method == "cw2" and column in ("SVHN", "digits"):
        looked_at = {"points": _POINTS, "aligned": _ALIGNED}
    return by_method(
        setting,
        method,
        teacher=teacher,
        settings={part: {"weight": weight}},
        **looked_at,
    )


# === Table 1 ===


def _metric_cells(scale):
    columns = _SMALL_DATA if scale == "small" else _FULL_DATA
    rows = {_STUDENT: "ce", **{row: m for row, (m, _) in _METRICS.items()}}
    return [
        Cell(_TEACHER, column, _setting(column)[1]) for column in columns
    ] + [
        Cell(row, column, _config(column, method))
        for row, method in rows.items()
        for column in columns
    ]


METRICS = Table(
    name="kd2m-1",
    paper=_PAPER,
    place="table 1",
    title="Distillation by six distances between distributions of features",
    unit="test accuracy, %",
    full=f"SVHN, CIFAR-10 and CIFAR-100; {_FULL_TEXT}. Weight 1e-4",
    small=f"{small_forms.FASHION_TEXT}. {_SMALL_TEXT}. Weight "
    f"{_SMALL_WEIGHT:g}",
    order="all six alike, between the student alone and the teacher; those "
    "that know labels slightly better",
    minutes=24,
    published=published(
        {
            _TEACHER: (94.41, 86.98, 62.21),
            _STUDENT: (93.10, 85.11, 56.66),
            **{row: figures for row, (_, figures) in _METRICS.items()},
        },
        _FULL_DATA,
    ),
    cells=_metric_cells,
    claims=[
        Claim(
            "Every distance is better than the student alone",
            [
                pair
                for row in _METRICS
                for pair in over(_ALL_DATA, row, _STUDENT)
            ],
        ),
        Claim(
            "The teacher is better than any student",
            [
                pair
                for row in _METRICS
                for pair in over(_ALL_DATA, _TEACHER, row)
            ],
        ),
        Claim(
            "Labels help the distance",
            over(_ALL_DATA, "CW2 (E)", "W2 (E)"),
        ),
    ],
    digits=2,
    remarks="One weight for all, the best on validation images over the six "
    "(Fashion-MNIST, seed 0; means 83.5, 84.9, 84.7 and 72.1 % with weights "
    "1e-4, 0.01, 0.1 and 1, where labels alone have 83.4). Those that know "
    "labels take more: with weight 1 CW2 (E) and (G) reach 86.4 % of the test "
    "images, while the others fall to 34 (JW2) and 72 to 76: what has no "
    "labels, or trusts early predictions, may match one class with another.",
    draw=figures.dots,
)


# === Figure 2: weights ===

_WEIGHTS = {"small": (0.0, 1e-4, 1e-2, 1.0), "full": (0.0, 1e-5, 1e-4, 1e-3)}
_SEEN = ("accuracy", "label loss", "value")
_SHARES = tuple(
    f"{100 * point // _POINTS} %" for point in range(1, _POINTS + 1)
)


def _weight_cells(scale):
    column = "digits" if scale == "small" else "SVHN"
    return [
        Cell(
            f"{seen}, weight {weight:g}",
            share,
            _config(column, "cw2", weight),
            f"{seen} {point}",
        )
        for seen in _SEEN
        for weight in _WEIGHTS[scale]
        for point, share in enumerate(_SHARES, start=1)
    ]


def _draw_curves(path, outcome):
    """A panel for each of what was seen, a line a weight."""
    figure, axes = panels(len(_SEEN), width=4.2)
    for panel, seen in zip(axes, _SEEN, strict=True):
        rows = [row for row in outcome.rows if row.startswith(f"{seen}, ")]
        for row, (line, color) in zip(rows, styles(), strict=False):
            known = [c for c in outcome.columns if outcome.given(row, c)]
            panel.plot(
                [outcome.columns.index(c) for c in known],
                [np.mean(outcome.given(row, c)) for c in known],
                line,
                color=color,
                marker="o",
                ms=4,
                label=row.removeprefix(f"{seen}, "),
            )
        tidy(panel, title=seen, xlabel="of the steps")
        panel.set_xticks(range(len(outcome.columns)), outcome.columns)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def _of_weights(seen, higher, lower):
    last = _SHARES[-1]
    return [
        ((f"{seen}, weight {high}", last), (f"{seen}, weight {low}", last))
        for high in higher
        for low in lower
    ]


WEIGHTS = Table(
    name="kd2m-figure2",
    paper=_PAPER,
    place="figure 2",
    title="Losses and accuracy along training, by the distance's weight",
    unit="after a share of the steps",
    full=f"SVHN; {_FULL_TEXT}. CW2 (E) with weights 0, 1e-5, 1e-4 and 1e-3, "
    "of our choice",
    small=f"{_SMALL_TEXT}; CW2 (E) with weights 0, 1e-4, 1e-2 and 1",
    order="with a reasonable weight the student is better than with 0",
    minutes=3,
    published={},
    cells=_weight_cells,
    claims=[
        Claim(
            "A reasonable weight is better than none",
            _of_weights("accuracy", ("0.0001", "0.001", "0.01", "1"), ("0",)),
        ),
        Claim(
            "Of our own: the distance becomes smaller for it",
            _of_weights("value", ("0",), ("0.0001", "0.001", "0.01", "1")),
        ),
    ],
    digits=2,
    remarks="Accuracy is of the test images, in percent; the label loss and "
    "the value of the distance, without its weight, are means over the steps "
    "since the look before, on training images.",
    draw=_draw_curves,
)


# === Figure 3: features in one plane ===

_BASELINE, _MATCHED = "weight 0", "CW2 (E)"


def _plane_cells(scale):
    column = "digits" if scale == "small" else "SVHN"
    matched = _config(column, "cw2")
    return [
        Cell(row, "distance", config, "distance")
        for row, config in (
            (_BASELINE, _config(column, "cw2", 0.0)),
            (_MATCHED, matched),
        )
    ]


def _draw_planes(path, outcome):
    """Both networks' features, a panel a student, of the first seed."""
    planes = {}
    for row in outcome.rows:
        for first in outcome.results(row, "distance")[:1]:
            planes[row] = FeatureAlignment(
                teacher=np.array(first["teacher features"]),
                student=np.array(first["student features"]),
                labels=None,
                distance=first["distance"],
            )
    plot_feature_alignment(planes, path)


PLANES = Table(
    name="kd2m-figure3",
    paper=_PAPER,
    place="figure 3",
    title="Features of both networks in one plane",
    unit="mean distance, in units of the teacher's spread",
    full=f"SVHN; {_FULL_TEXT}; {_ALIGNED} test images, principal components "
    "of both networks' features together; weight 1e-4",
    small=f"{_SMALL_TEXT}; {_ALIGNED} test images; weight {_SMALL_WEIGHT:g}",
    order="the matched student's features lie where the teacher's are",
    minutes=2,
    published={},
    cells=_plane_cells,
    claims=[
        Claim(
            "Matching brings features nearer to the teacher's",
            [((_BASELINE, "distance"), (_MATCHED, "distance"))],
        )
    ],
    digits=2,
    remarks="The distance is that of an image's two features, before the "
    "projection; 0 would be equal. The picture is of the first seed.",
    draw=_draw_planes,
)

TABLES = [METRICS, WEIGHTS, PLANES]
