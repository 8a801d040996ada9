"""Srinivas & Fleuret 2018, Knowledge Transfer with Jacobian Matching.

Tables 1 and 2; those of transfer are in jacobian_transfer.py. What each shows,
its networks, data, cost, expected order and command: `reproduce.py --list`.
"""

from recipes import learning
from recipes.table import Cell, Claim, Table, over, published

_PAPER = "Srinivas & Fleuret 2018"

# Adam, as the supplement's section 4.3 has it, and shorter.
_FULL = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "drops": [0.8],
    "batch_size": 128,
}
# Of the choices, the best on validation images; with the moving statistics,
# a rate that is not yet small leaves networks that infer otherwise than they
# train.
_STATISTICS = "frozen"
_MOVING = "CE + both, moving statistics"
_SMALL = {**_FULL, "learning_rate": 5e-3}
_FULL_EPOCHS = 500
_CIFAR = {"data": "cifar100", "width": 1.0, "validation_from": "test"}
_CIFAR_PER_CLASS, _CIFAR_CLASSES = 500, 100


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
        sized = {**_FULL, **_CIFAR}
        steps = _full_steps(_CIFAR_CLASSES * _CIFAR_PER_CLASS)
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
                "task": "jacobian_tasks.distilled",
                **_few(scale, column),
                "network": "vgg4",
                "terms": terms,
                "label_weight": label_weight,
            }
            if terms:
                config["teacher"] = _teacher(scale)
            if "jacobian" in terms:
                config["batch_statistics"] = _STATISTICS
            cells.append(Cell(row, column, config))
            if row == "CE + both":
                own = {**config, "batch_statistics": "moving"}
                cells.append(Cell(_MOVING, column, own))
    return cells


def _few(scale, per_class):
    """Data and schedule for so many images of each class."""
    count = None if per_class == "all" else int(per_class)
    if scale == "full":
        return {
            **_FULL,
            **_CIFAR,
            "examples_per_class": count,
            "steps": _full_steps(_CIFAR_CLASSES * (count or _CIFAR_PER_CLASS)),
        }
    return {
        **_SMALL,
        "data": learning.FASHION,
        "width": 0.125,
        "examples_per_class": count,
        "batch_size": min(64, 10 * count),
        "steps": 800 if count >= 50 else 400,
    }


DISTILLATION = Table(
    name="jacobian-1",
    paper=_PAPER,
    place="table 1",
    title="Distillation from few images of each class, by six losses",
    unit="test accuracy, %",
    full="CIFAR-100; a VGG-9 teacher of all images (64.78 %), a VGG-4 "
    "student; squared errors of logits and of the true class' input gradient, "
    "weights 1; Adam, 500 epochs, batch 128, rate 1e-3 and a tenth of it "
    "after 400. The paper does not speak of augmentation, nor of the "
    "batch's statistics in the student's gradient: none, and held constant",
    small="Fashion-MNIST; the same networks of a quarter (teacher) and an "
    "eighth (student) of the channels; Adam 5e-3, a tenth of it after 80 % of "
    "400 steps (800 from 50 images on), batch min(64, 10 n) for n images of "
    "each class, 1 to 50. The "
    "student's gradient is taken with the batch's statistics held constant "
    '(batch_statistics="frozen")',
    order="CE + both first wherever images are few, CE last; from 5 images "
    "on what Jacobians add to activations shrinks",
    minutes=43,
    published=published(
        {row: figures for row, (_, _, figures) in _DISTILLATION.items()},
        _PER_CLASS,
    ),
    cells=_distillation_cells,
    claims=[
        Claim(
            "Matching activations is better than labels alone",
            over(_PER_CLASS, "CE + activations", "CE"),
        ),
        Claim(
            "Matching Jacobians is better than labels alone",
            over(_PER_CLASS[:5], "CE + Jacobians", "CE"),
        ),
        Claim(
            "With few images, Jacobians add to activations",
            over(_PER_CLASS[:5], "CE + both", "CE + activations"),
        ),
        Claim(
            "They do without labels, too",
            over(_PER_CLASS[:4], "both", "activations"),
        ),
        Claim(
            "Of our own: Jacobians are better with the batch's statistics "
            "held constant than with the moving ones",
            over(_PER_CLASS, "CE + both", _MOVING),
        ),
        Claim(
            "With many images, Jacobians are better left out",
            over(_PER_CLASS[5:], "CE + activations", "CE + both"),
        ),
        Claim(
            "Beside both, labels are of some use still",
            over(_PER_CLASS, "CE + both", "both"),
        ),
    ],
    seeds=5,
)

# === Table 2: robustness to noise ===

_STDDEVS = ("0", "0.1", "0.2", "0.3", "0.4")
# Noise that is strong for images of ten kinds of clothes.
_STRONGER = ("0.6", "0.8", "1")
_PLAIN = "no penalty"
# Row -> the penalty, and the paper's figures.
_ROBUSTNESS = {
    _PLAIN: ({}, (64.78, 61.9, 47.53, 29.63, 17.69)),
    "Jacobian 0.1": ({"jacobian": 0.1}, (65.62, 63.36, 53.57, 37.38, 23.99)),
    "Jacobian 1": ({"jacobian": 1.0}, (63.59, 62.66, 57.53, 47.48, 35.43)),
    "Jacobian 10": ({"jacobian": 10.0}, (61.37, 60.78, 58.28, 52.82, 44.96)),
    "weight decay 1e-3": ({"l2": 1e-3}, (66.92, 60.41, 39.93, 23.32, 13.76)),
    "dropout 0.25": ({"dropout": 0.25}, (66.8, 61.53, 44.34, 26.7, 15.77)),
}


def _robustness_cells(scale):
    if scale == "full":
        setting = {**_few(scale, "all"), "network": "vgg9", "draws": 10}
        columns = _STDDEVS
    else:
        setting = {**_few(scale, "500"), "network": "vgg4", "draws": 3}
        columns = (*_STDDEVS, *_STRONGER)
    task = {
        "task": "jacobian_tasks.hardened",
        **setting,
        "batch_statistics": _STATISTICS,
        "stddevs": [float(column) for column in columns],
    }
    return [
        Cell(row, column, {**task, "penalty": penalty}, f"noise {column}")
        for row, (penalty, _) in _ROBUSTNESS.items()
        for column in columns
    ]


ROBUSTNESS = Table(
    name="jacobian-2",
    paper=_PAPER,
    place="table 2",
    title="Accuracy under Gaussian noise on the test images, by penalty",
    unit="test accuracy, %, at noise of std",
    full="CIFAR-100, VGG-9, all images, schedule of table 1; noise in units "
    "of the standardised images; squared norm of the true class' input "
    "gradient with weights 0.1, 1 and 10, weight decay 1e-3 on kernels, "
    "dropout 0.25 after each pool (the paper does not say where), the batch's "
    "statistics held constant",
    small="Fashion-MNIST, VGG-4 of an eighth of the channels, 500 images of "
    "each class, Adam 5e-3, a tenth of it after 80 % of 800 steps of 64 "
    "images; each test image with 3 noises a level, three of them stronger "
    "than the paper's; the batch's statistics held constant",
    order="the stronger the Jacobian's penalty, the better under strong "
    "noise; 1 and 10 cost accuracy without; weight decay and dropout help "
    "without noise, and harm under it",
    minutes=16,
    published=published(
        {row: figures for row, (_, figures) in _ROBUSTNESS.items()}, _STDDEVS
    ),
    cells=_robustness_cells,
    claims=[
        Claim(
            "Under noise, a penalty is better than none",
            over(_STDDEVS[2:], "Jacobian 1", _PLAIN),
        ),
        Claim(
            "The stronger, the more robust",
            over((*_STDDEVS[3:], *_STRONGER), "Jacobian 1", "Jacobian 0.1")
            + over((*_STDDEVS[3:], *_STRONGER), "Jacobian 10", "Jacobian 1"),
        ),
        Claim(
            "That costs accuracy without noise",
            over(_STDDEVS[:1], "Jacobian 0.1", "Jacobian 10"),
        ),
        Claim(
            "Weight decay is less robust than no penalty",
            over(_STDDEVS[3:], _PLAIN, "weight decay 1e-3"),
        ),
        Claim(
            "So is dropout",
            over(_STDDEVS[3:], _PLAIN, "dropout 0.25"),
        ),
    ],
    remarks="The price of weight 10 is higher than in the paper, and it pays "
    "only under noise that is stronger than the paper's. Three times the steps "
    "or twice the channels do not change that (seed 0, noise 0 and 0.4: 83.7 "
    "and 77.6 % with weight 1, 76.2 and 72.3 with 10; 83.4 and 78.0, 77.6 and "
    "75.5): ten kinds of clothes bear more noise than a hundred classes do.",
)

TABLES = [DISTILLATION, ROBUSTNESS]
