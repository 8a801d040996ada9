"""Lohit & Jones 2020: ImageNet (table 4) and SVHN (table 5)."""

from recipes import figures, small_forms
from recipes.model_compression import (
    PAIRS,
    PAPER,
    SETTINGS_TEXT,
    SMALL_TEXT,
    SOLVER_TEXT,
    STUDENT,
    TEACHER,
    VGG,
    WEIGHT_TEXT,
    better,
    configured,
    run,
)
from recipes.table import Cell, Claim, Table, over, published

# === Table 4: ImageNet ===

# Row -> the method, and the paper's figures, top-1 and top-5 error.
_ERRORS = {
    TEACHER: (None, (26.69, 8.58)),
    STUDENT: ("ce", (30.25, 10.93)),
    "KD": ("kd", (29.34, 10.12)),
    "CRD": ("crd", (28.83, 9.87)),
    "CRD+KD": ("crd+kd", (28.62, 9.51)),
    "AT": ("attention", (29.30, 10.00)),
    "SP": ("sp", (29.38, 10.20)),
    "CC": ("cc", (30.04, 10.83)),
    "IPOT": ("ipot", (29.54, 10.48)),
    "IPOT+KD": ("ipot+kd", (28.88, 9.66)),
}
_TOPS = ("top-1 error", "top-5 error")
_IMAGENET = {
    "data": "imagenet2012",
    "network": "resnet18",
    "width": 1.0,
    "examples_per_class": None,
    "augment": True,
    "image_size": 224,
    "validation_from": "test",
    "batch_size": 256,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "drops": [1 / 3, 2 / 3],
    "decay": 1e-4,
    "steps": 90 * 5005,
}
_IMAGENET_TEACHER = {
    **_IMAGENET,
    "task": "learning.trained",
    "network": "resnet34",
    "seed": 0,
}


def _errors_of(scale, method):
    if scale == "small":
        return run(scale, VGG, method)
    if method is None:
        return _IMAGENET_TEACHER
    return configured(
        method, scale=scale, setting=_IMAGENET, teacher=_IMAGENET_TEACHER
    )


def _error_cells(scale):
    return [
        Cell(row, top, _errors_of(scale, method), top)
        for row, (method, _) in _ERRORS.items()
        for top in _TOPS
        if scale == "full" or method
    ]


ERRORS = Table(
    name="compression-4",
    paper=PAPER,
    place="table 4",
    title="Compression on photographs",
    unit="test error, %",
    full="ImageNet, ResNet-34 → ResNet-18. The paper takes PyTorch's trained "
    "ResNet-34 and does not say how it trains: SGD with momentum 0.9, weight "
    "decay 1e-4, 90 epochs, batch 256, rate 0.1 and a tenth of it after 30 "
    f"and 60, for the teacher too. {SOLVER_TEXT}. {WEIGHT_TEXT}. Without "
    "its row of online distillation",
    small=f"{SMALL_TEXT}. No photographs: the runs of compression-1, and "
    "two more, by their errors; without the teacher's row",
    order="of the students, CRD+KD has the least error, then CRD and "
    "IPOT+KD; the student alone the most",
    minutes=23,
    published=published(
        {row: figures for row, (_, figures) in _ERRORS.items()}, _TOPS
    ),
    cells=_error_cells,
    claims=[
        Claim(
            "The student alone has more errors than with IPOT",
            over(_TOPS, STUDENT, "IPOT"),
        ),
        Claim(
            "KD takes errors off IPOT",
            over(_TOPS, "IPOT", "IPOT+KD"),
        ),
        Claim(
            "IPOT+KD has fewer errors than KD, AT, SP and CC",
            [
                pair
                for row in ("KD", "AT", "SP", "CC")
                for pair in over(_TOPS, row, "IPOT+KD")
            ],
        ),
        Claim(
            "CRD+KD has the fewest",
            over(_TOPS, "IPOT+KD", "CRD+KD"),
        ),
    ],
    digits=2,
    draw=figures.dots,
)

# === Table 5: SVHN ===

# Row -> the method, and the paper's figures for either pair.
_HOUSES = {
    TEACHER: (None, (94.36, 94.52)),
    STUDENT: ("ce", (90.39, 93.45)),
    "KD": ("kd", (94.49, 95.22)),
    "CRD": ("crd", (94.96, 94.74)),
    "CRD+KD": ("crd+kd", (95.47, 95.25)),
    "FitNet": ("fitnet", (91.32, 93.93)),
    "FitNet+KD": ("fitnet+kd", (94.48, 95.27)),
    "RKD": ("rkd", (93.30, 95.23)),
    "RKD+KD": ("rkd+kd", (94.58, 95.39)),
    "PKT": ("pkt", (90.77, 93.68)),
    "PKT+KD": ("pkt+kd", (94.38, 95.15)),
    "REMD": ("remd", (89.66, 93.15)),
    "REMD+KD": ("remd+kd", (94.49, 94.94)),
    "IPOT": ("ipot", (91.63, 94.28)),
    "IPOT+KD": ("ipot+kd", (94.73, 95.41)),
}
_HOUSE_PAIRS = (PAIRS[4], PAIRS[0])
_DIGITS = f"digits, {VGG}"
_COLUMNS = (*_HOUSE_PAIRS, _DIGITS)
_SMALL_ROWS = (
    *(TEACHER, STUDENT, "KD", "CRD", "CRD+KD", "RKD", "RKD+KD"),
    *("REMD", "REMD+KD", "IPOT", "IPOT+KD"),
)
_SVHN = {
    "data": "svhn_cropped",
    "width": 1.0,
    "examples_per_class": None,
    "augment": True,
    "validation_from": "test",
    "batch_size": 200,
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "drops": [80 / 150, 110 / 150, 135 / 150],
    "decay": 5e-4,
    "steps": 150 * -(-73257 // 200),
}


def _house(scale, column, method):
    if scale == "small":
        setting, teacher = small_forms.DIGITS, small_forms.DIGITS_TEACHER
    else:
        large, small = column.split(" → ")
        setting = {**_SVHN, "network": small}
        teacher = {
            **_SVHN,
            "task": "learning.trained",
            "network": large,
            "seed": 0,
        }
    if method is None:
        return teacher
    return configured(method, scale=scale, setting=setting, teacher=teacher)


def _house_cells(scale):
    return [
        Cell(row, column, _house(scale, column, _HOUSES[row][0]))
        for row in (_HOUSES if scale == "full" else _SMALL_ROWS)
        for column in (_HOUSE_PAIRS if scale == "full" else (_DIGITS,))
    ]


HOUSES = Table(
    name="compression-5",
    paper=PAPER,
    place="table 5",
    title="Compression on images of digits",
    unit="test accuracy, %",
    full="SVHN, all images; SGD with momentum 0.9 and weight decay 5e-4 on "
    "all that is trained, 150 epochs, batch 200, rate 1e-3 and a tenth of it "
    "after 80, 110 and 135; crops, and no mirror images, which would be "
    f"other digits. {SOLVER_TEXT}. {WEIGHT_TEXT}",
    small=f"{small_forms.DIGITS_TEXT}; {SETTINGS_TEXT}; fewer rows",
    order="with KD, transport, CRD and RKD are alike and first, beside CRD "
    "alone; IPOT before REMD",
    minutes=8,
    published=published(
        {row: figures for row, (_, figures) in _HOUSES.items()}, _HOUSE_PAIRS
    ),
    cells=_house_cells,
    claims=[
        Claim("IPOT is better than REMD", over(_COLUMNS, "IPOT", "REMD")),
        Claim(
            "IPOT is better than the student alone",
            over(_COLUMNS, "IPOT", STUDENT),
        ),
        Claim(
            "KD adds to each",
            [
                pair
                for row in ("CRD", "RKD", "REMD", "IPOT")
                for pair in over(_COLUMNS, f"{row}+KD", row)
            ],
        ),
        Claim(
            "IPOT+KD is better than the other comparisons with KD",
            better(
                _COLUMNS,
                "IPOT+KD",
                ("KD", "RKD+KD", "FitNet+KD", "PKT+KD", "REMD+KD"),
            ),
        ),
    ],
    digits=2,
    draw=figures.dots,
)

TABLES = [ERRORS, HOUSES]
