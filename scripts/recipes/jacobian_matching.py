"""Srinivas & Fleuret 2018, Knowledge Transfer with Jacobian Matching.

Tables 1 to 5. What each shows, its networks, data, cost, expected order and
command: `reproduce.py --list`.
"""

import tfkd
from recipes import learning
from recipes.table import Cell, Claim, Table

_PAPER = "Srinivas & Fleuret 2018"

# Adam, as the supplement's section 4.3 has it, and shorter.
_FULL = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "drops": [0.8],
    "batch_size": 128,
}
_SMALL = {**_FULL, "learning_rate": 5e-3}
_FULL_EPOCHS = 500
_CIFAR = {"data": "cifar100", "width": 1.0, "images_per_class": 450}


def _full_steps(images):
    return _FULL_EPOCHS * -(-images // _FULL["batch_size"])


# === Table 1: distillation from few images ===

# Row -> the matches, the weight of the labels, and the paper's figures.
_DISTILLATION = {
    "CE": ([], 1.0, (5.69, 13.9, 20.03, 37.6, 44.92, 54.28)),
    "CE + activations": (
        ["activations"],
        1.0,
        (12.13, 26.97, 33.92, 46.47, 50.92, 56.65),
    ),
    "CE + Jacobians": (
        ["jacobian"],
        1.0,
        (6.78, 23.94, 32.03, 45.71, 51.47, 53.44),
    ),
    "CE + both": (
        ["activations", "jacobian"],
        1.0,
        (13.78, 33.39, 39.55, 49.49, 52.43, 54.57),
    ),
    "activations": (
        ["activations"],
        0.0,
        (10.73, 28.56, 33.6, 45.73, 50.15, 56.59),
    ),
    "both": (
        ["activations", "jacobian"],
        0.0,
        (13.09, 33.31, 38.16, 47.79, 50.06, 51.33),
    ),
}
_PER_CLASS = ("1", "5", "10", "50", "100", "all")


def _teacher(scale):
    """The VGG-9 that learns all images."""
    if scale == "full":
        images = 100 * _CIFAR["images_per_class"]
        sized = {**_FULL, "data": "cifar100", "width": 1.0}
        steps = _full_steps(images)
    else:
        sized = {**_SMALL, "data": learning.FASHION, "width": 0.25}
        steps = 3000
    return {
        "task": "learning.trained",
        **sized,
        "network": "vgg9",
        "examples_per_class": None,
        "steps": steps,
        "seed": 0,
    }


def _distillation_cells(scale):
    cells = []
    for row, (terms, label_weight, _) in _DISTILLATION.items():
        for column in _PER_CLASS if scale == "full" else _PER_CLASS[:4]:
            config = {
                "task": "jacobian_matching.distilled",
                **_few(scale, column),
                "network": "vgg4",
                "terms": terms,
                "label_weight": label_weight,
            }
            if terms:
                config["teacher"] = _teacher(scale)
            cells.append(Cell(row, column, config))
    return cells


def _few(scale, per_class):
    """Data and schedule for so many images of each class."""
    count = None if per_class == "all" else int(per_class)
    if scale == "full":
        images = 100 * (count or _CIFAR["images_per_class"])
        return {
            **_FULL,
            "data": "cifar100",
            "width": 1.0,
            "examples_per_class": count,
            "steps": _full_steps(images),
        }
    return {
        **_SMALL,
        "data": learning.FASHION,
        "width": 0.125,
        "examples_per_class": count,
        "batch_size": min(128, 10 * count),
        "steps": 800 if count >= 50 else 400,
    }


def distilled(config, runs):
    """A task: a student that learns labels and what a teacher says.

    Args:
        config: The run's configuration; "terms" are names of
            `tfkd.methods`, of weight 1, "label_weight" that of the labels.
        runs: The `runs.Runs`.

    Returns:
        As `learning.scores`.
    """
    dataset = learning.load(config)
    student = learning.build(config, dataset)
    teacher, method = None, []
    if config["terms"]:
        teacher = runs.network(config["teacher"])
        method = tfkd.methods.build(
            "+".join(config["terms"]), student=student, teacher=teacher
        ).matches
    distiller = tfkd.Distiller(
        student=student,
        teacher=teacher,
        matches=method,
        label_weight=config["label_weight"],
    )
    learning.fit(distiller, dataset, config, teacher=teacher, runs=runs)
    return learning.scores(student, config)


def _published(rows, columns):
    """Dict of the paper's figures, of row -> figures."""
    return {
        (row, column): figure
        for row, figures in rows.items()
        for column, figure in zip(columns, figures, strict=True)
        if figure is not None
    }


def _over(columns, higher, lower):
    """The pairs of two rows, in these columns."""
    return [((higher, column), (lower, column)) for column in columns]


DISTILLATION = Table(
    name="jacobian-1",
    paper=_PAPER,
    place="table 1",
    title="Distillation from few images of each class, by six losses",
    unit="test accuracy, %",
    full="CIFAR-100; a VGG-9 teacher of all images (64.78 %), a VGG-4 "
    "student; squared errors of logits and of the true class' input gradient, "
    "weights 1; Adam, 500 epochs, batch 128, rate 1e-3 and a tenth of it "
    "after 400; no augmentation",
    small="Fashion-MNIST; the same networks of a quarter (teacher) and an "
    "eighth (student) of the channels; Adam 5e-3, a tenth of it after 80 % of "
    "400 steps (800 from 50 images on), batch min(128, 10 n); n up to 50",
    order="CE + both first wherever images are few, CE last; the Jacobians' "
    "gain shrinks as images grow many",
    cost={"small": "", "full": ""},
    published=_published(
        {row: figures for row, (_, _, figures) in _DISTILLATION.items()},
        _PER_CLASS,
    ),
    cells=_distillation_cells,
    claims=[
        Claim(
            "Matching activations is better than labels alone",
            _over(_PER_CLASS, "CE + activations", "CE"),
        ),
        Claim(
            "Matching Jacobians is better than labels alone",
            _over(_PER_CLASS[:5], "CE + Jacobians", "CE"),
        ),
        Claim(
            "With few images, Jacobians add to activations",
            _over(_PER_CLASS[:5], "CE + both", "CE + activations"),
        ),
        Claim(
            "They do without labels, too",
            _over(_PER_CLASS[:4], "both", "activations"),
        ),
        Claim(
            "With many images, Jacobians are better left out",
            _over(_PER_CLASS[5:], "CE + activations", "CE + both"),
        ),
        Claim(
            "Beside both, labels are of some use still",
            _over(_PER_CLASS, "CE + both", "both"),
        ),
    ],
    seeds=5,
)

TABLES = [DISTILLATION]
