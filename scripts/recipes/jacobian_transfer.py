"""Srinivas & Fleuret 2018, section 6.3: transfer from another task.

Tables 3 to 5. What each shows, its networks, data, cost, expected order and
command: `reproduce.py --list`.
"""

import itertools

from recipes import learning
from recipes.table import Cell, Claim, Table, over, published

_PAPER = "Srinivas & Fleuret 2018"

_WEIGHT = 10.0
_LEVELS = ("level 1", "level 2", "level 3", "level 4")

# === Full form: ImageNet to MIT scenes ===

# In its own split, which is even: 80 images of each class.
_SCENES = {
    "data": "folder:mit-scenes",
    "validation_from": "test",
    "image_size": 224,
    "batch_size": 8,
    "width": 1.0,
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "drops": [40 / 75, 60 / 75],
}
_SCENES_EPOCHS, _SCENES_CLASSES, _SCENES_IMAGES = 75, 67, 80
# For who has no trained network: the usual schedule of 90 epochs.
_IMAGENET = {
    "task": "learning.trained",
    "data": "imagenet2012",
    "examples_per_class": None,
    "augment": True,
    "image_size": 224,
    "batch_size": 256,
    "width": 1.0,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "drops": [1 / 3, 2 / 3],
    "decay": 1e-4,
    "steps": 90 * 4504,
    "seed": 0,
}
# Pairs of layers, the student's first, by the paper's levels.
_FULL_AT = [
    ["stage2", "stage1"],
    ["stage3", "stage2"],
    ["stage4", "stage3"],
    ["stage5", "stage4"],
]

# === Small form: six classes of Fashion-MNIST to the four others ===

# T-shirts, trousers, pullovers, sandals, bags and boots teach; dresses, coats,
# shirts and sneakers are learned. With all of shirts, coats, pullovers and
# T-shirts to learn, a pre-trained student was no better than a new one.
_SOURCE, _TARGET = [0, 1, 2, 5, 8, 9], [3, 4, 6, 7]
_FASHION = {
    "data": learning.FASHION,
    "classes": _TARGET,
    "width": 0.125,
    "optimizer": "adam",
    "learning_rate": 5e-3,
    "drops": [0.8],
    "steps": 400,
}
_PRETRAINING = {
    **_FASHION,
    "task": "learning.trained",
    "classes": _SOURCE,
    "examples_per_class": None,
    "batch_size": 64,
    "steps": 1500,
    "seed": 0,
}
_SMALL_AT = [
    ["stage1", "stage2"],
    ["stage2", "stage3"],
    ["stage3", "stage4"],
    ["stage4", "stage4"],
]
_SMALL_TEXT = (
    "classes 0, 1, 2, 5, 8, 9 of Fashion-MNIST teach and 3, 4, 6, 7 are "
    "learned; a ResNet-18 teacher for small images and a VGG-9 student, an "
    "eighth of the channels; Adam 5e-3, a tenth of it after 80 % of 400 steps, "
    "batch min(32, 4 n) for n images of each class"
)
_FULL_TEXT = (
    "ImageNet to MIT scenes (67 classes); a ResNet-34 teacher, a VGG-9 "
    "student; all weights 10; SGD with momentum 0.9, 75 epochs, batch 8, rate "
    "1e-3 and a tenth of it after 40 and 60; all 80 images of each class in "
    "the scenes' own split (the paper: about 6,000), the batch's statistics "
    "held constant. The paper's networks of ImageNet were there; here they "
    "train for 90 epochs, batch 256, rate 0.1 and a tenth of it after 30 and "
    "60, weight decay 1e-4. Needs a folder of the scenes: --dataset "
    "folder:mit-scenes=folder:PATH"
)


def _setting(scale, per_class):
    """Task, data, schedule and student for so many images of each class."""
    count = None if per_class == "all" else int(per_class)
    if scale == "full":
        images = _SCENES_CLASSES * (count or _SCENES_IMAGES)
        steps = _SCENES_EPOCHS * -(-images // _SCENES["batch_size"])
        sized = {**_SCENES, "steps": steps, "at": _FULL_AT}
    else:
        batch = min(32, len(_TARGET) * count)
        sized = {**_FASHION, "batch_size": batch, "at": _SMALL_AT[:3]}
    return {
        "task": "jacobian_tasks.transferred",
        **sized,
        "network": "vgg9",
        "examples_per_class": count,
        "weight": _WEIGHT,
        "window": 5,
        "batch_statistics": "frozen",
    }


def _source(scale, network):
    """The run of a network that learns the source task."""
    if scale == "full":
        return {**_IMAGENET, "network": network}
    small = {"resnet34": "resnet18-cifar"}.get(network, network)
    return {**_PRETRAINING, "network": small}


# === Table 3 ===

_PER_CLASS = ("5", "10", "25", "50", "all")
# Four classes and a source that is near: more than 25 images leave a teacher
# little to say.
_SMALL_PER_CLASS = ("1", "2", "5", "10", "25")
_ANY_PER_CLASS = ("1", "2", *_PER_CLASS)
_ORACLE = "pre-trained student (oracle)"
# Row -> the terms beside the labels, and the paper's figures.
_TRANSFER = {
    "CE": ([], (11.64, 20.3, 35.19, 46.38, 59.33)),
    _ORACLE: ([], (25.93, 43.81, 57.65, 64.18, 71.42)),
    "activations": (["activations"], (17.08, 27.13, 45.08, 55.22, 65.22)),
    "activations + Jacobians": (
        ["activations", "jacobian"],
        (17.88, 28.25, 45.26, 56.49, 66.04),
    ),
    "activations + attention": (
        ["activations", "attention"],
        (16.53, 28.35, 46.01, 57.8, 67.24),
    ),
    "all three": (
        ["activations", "attention", "jacobian"],
        (18.02, 29.25, 47.31, 58.35, 67.31),
    ),
}


def _transfer_cells(scale):
    cells = []
    for row, (terms, _) in _TRANSFER.items():
        for column in _PER_CLASS if scale == "full" else _SMALL_PER_CLASS:
            config = {**_setting(scale, column), "terms": terms}
            if row == _ORACLE:
                config["start"] = _source(scale, "vgg9")
            if terms:
                config["teacher"] = _source(scale, "resnet34")
                config["jacobian_at"] = config["at"][0]
            cells.append(Cell(row, column, config))
    return cells


TRANSFER = Table(
    name="jacobian-3",
    paper=_PAPER,
    place="table 3",
    title="Transfer from another task with few images, by six losses",
    unit="test accuracy, %",
    full=_FULL_TEXT,
    small=f"{_SMALL_TEXT}; n from 1 to 25",
    order="the oracle first, then all three, CE last",
    minutes=51,
    published=published(
        {row: figures for row, (_, figures) in _TRANSFER.items()}, _PER_CLASS
    ),
    cells=_transfer_cells,
    claims=[
        Claim(
            "Matching the source head is better than labels alone",
            over(_ANY_PER_CLASS, "activations", "CE"),
        ),
        Claim(
            "Jacobians add to activations",
            over(_ANY_PER_CLASS, "activations + Jacobians", "activations"),
        ),
        Claim(
            "Attention adds to activations",
            over(
                [count for count in _ANY_PER_CLASS if count != "5"],
                "activations + attention",
                "activations",
            ),
        ),
        Claim(
            "Jacobians add to both",
            over(_ANY_PER_CLASS, "all three", "activations + attention"),
        ),
        Claim(
            "A pre-trained student is better than all",
            over(_ANY_PER_CLASS, _ORACLE, "all three"),
        ),
    ],
    remarks="The oracle bounds what there is to transfer, and from 5 images on "
    "it is little: classes of one dataset need not much of each other. A "
    "farther source is of no use (all ten classes of Fashion-MNIST before "
    "scikit-learn's digits, 5 images of each: 78.6 % pre-trained, 86.1 % not; "
    "seed 0).",
)


# === Tables 4 and 5: labels and Jacobians alone, 10 images of each class ===


def _ablated(scale, level, window):
    config = {**_setting(scale, "10"), "terms": ["jacobian"]}
    at = _FULL_AT if scale == "full" else _SMALL_AT
    return {
        **config,
        "jacobian_at": at[_LEVELS.index(level)],
        "window": window,
        "teacher": _source(scale, "resnet34"),
    }


def _depth_cells(scale):
    return [
        Cell(row, level, _ablated(scale, level, 5), result)
        for row, result in (
            ("test accuracy", "accuracy"),
            ("Jacobian loss reduction", "reduction"),
        )
        for level in _LEVELS
    ]


DEPTH = Table(
    name="jacobian-4",
    paper=_PAPER,
    place="table 4",
    title="At which depth to match the Jacobians of attention",
    unit="%",
    full=f"{_FULL_TEXT}. Level 1 is ResNet-34's first stage and VGG-9's "
    "second pool, each next level a stage deeper; 10 images of each class; "
    "labels and Jacobians alone, for the paper does not say beside what",
    small=f"{_SMALL_TEXT}, n = 10. Level 1 is the teacher's second stage and "
    "the student's first pool, of 16x16; at level 4 the teacher's 4x4 are "
    "pooled to the student's 2x2, for it has no deeper stage",
    order="the shallowest first, in accuracy and in what training takes off "
    "the Jacobians' term",
    minutes=13,
    published=published(
        {
            "test accuracy": (22.39, 21.98, 20.45, 20.03),
            "Jacobian loss reduction": (25.88, 15.59, 11.55, 1.25),
        },
        _LEVELS,
    ),
    cells=_depth_cells,
    claims=[
        Claim(
            "The shallowest level gives the best accuracy",
            [
                (("test accuracy", "level 1"), ("test accuracy", level))
                for level in _LEVELS[1:]
            ],
        ),
        Claim(
            "Deeper Jacobians are learned less",
            [
                (
                    ("Jacobian loss reduction", shallow),
                    ("Jacobian loss reduction", deep),
                )
                for shallow, deep in itertools.pairwise(_LEVELS)
            ],
        ),
    ],
    remarks="With one image of each class the third level is better than the "
    "first (63.6 and 58.6 %, five seeds). In the paper accuracy follows what "
    "is learned of the Jacobians, and of the deepest that is 1 % of the term's "
    "value. Here the deep ones are learned best: these networks are small.",
    seeds=5,
)

# Column -> the window as of `tfkd.AttentionJacobianMatch`.
_WINDOWS = {"full": "full", "s/3": 3, "s/5": 5, "s/7": 7, "none": None}


def _window_cells(scale):
    return [
        Cell("test accuracy", column, _ablated(scale, "level 1", window))
        for column, window in _WINDOWS.items()
    ]


def _windows_better(*worse):
    row = "test accuracy"
    return [((row, "s/5"), (row, window)) for window in worse]


WINDOW = Table(
    name="jacobian-5",
    paper=_PAPER,
    place="table 5",
    title="Over which window to pool attention before its Jacobian",
    unit="%",
    full=f"{_FULL_TEXT}. Images, losses and level 1 of table 4, where the "
    "map's side s is 56",
    small=f"{_SMALL_TEXT}, n = 10. Level 1 of table 4, where s is 16",
    order="a window of s/5 first, the whole map and no pooling last",
    minutes=13,
    published=published(
        {"test accuracy": (20.0, 21.2, 21.87, 21.09, 19.74)}, _WINDOWS
    ),
    cells=_window_cells,
    claims=[
        Claim("A window of s/5 is best", _windows_better("s/3", "s/7")),
        Claim(
            "Some pooling is better than none or all",
            _windows_better("full", "none"),
        ),
    ],
    remarks="With one image of each class there is no order (58.3, 55.7, 58.6, "
    "57.0 and 59.7 %). The map's side is 16 here, not 56, and a window of s/5 "
    "is 3 wide, which is near to none.",
    seeds=5,
)

TABLES = [TRANSFER, DEPTH, WINDOW]
