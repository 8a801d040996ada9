"""Li, Grandvalet, Flamary, Courty & Dou 2020: compression, table 2."""

from recipes import figures, small_forms
from recipes.small_forms import by_method
from recipes.table import Cell, Claim, Table, over, published

_PAPER = "Li et al. 2020"
_NONE, _KD = "none", "KD"
_IDENTITY, _UNIFORM, _OPTIMAL = "identity", "uniform", "optimal transport"

# Row -> the method, and the paper's figures.
_COMPRESSION = {
    _NONE: ("ce", (91.8, 93.6, 91.8, 93.6, 69.6, 73.7, 69.6, 73.7)),
    _IDENTITY: (
        "neuron-identity",
        (None, 94.5, None, None, None, 73.2, None, None),
    ),
    _UNIFORM: (
        "neuron-uniform",
        (91.8, 93.8, 91.8, 93.7, 70.0, 74.2, 69.8, 73.9),
    ),
    _KD: ("kd", (92.4, 94.0, 92.3, 94.1, 71.0, 74.8, 70.7, 75.6)),
    _OPTIMAL: ("neuron-ot", (92.8, 94.5, 92.5, 94.7, 70.6, 75.6, 70.5, 75.6)),
}
_PAIRS = ("L → S", "L → M", "W → S", "W → M")
_FULL_PAIRS = {
    f"{title} {pair}": (name, pair)
    for title, name in (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100"))
    for pair in _PAIRS
}
_NETWORKS = {
    "L": "resnet1001",
    "W": "wrn-28-10",
    "M": "resnet56",
    "S": "resnet56-slim",
}
_SMALL_PAIRS = {"S": 0.0625, "M": small_forms.WIDTH}
_SMALL_PREFIX = "Fashion-MNIST L → "
_SMALL_COLUMNS = [f"{_SMALL_PREFIX}{student}" for student in _SMALL_PAIRS]
_CIFAR = {
    "width": 1.0,
    "examples_per_class": None,
    "augment": True,
    "validation_from": "test",
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "drops": [1 / 2, 3 / 4],
    "decay": 1e-4,
    "steps": 160000,
}


def _compressed(column, method):
    """A run of compression."""
    given = {}
    if method == "kd":
        # Beside labels of weight 1, as the paper has it.
        given = {"settings": {"kd": {"weight": 1.0}}, "label_weight": 1.0}
    if column in _SMALL_COLUMNS:
        width = _SMALL_PAIRS[column.removeprefix(_SMALL_PREFIX)]
        setting = {**small_forms.FASHION, "width": width}
        teacher = small_forms.FASHION_TEACHER
    else:
        data, pair = _FULL_PAIRS[column]
        large, small = pair.split(" → ")
        setting = {**_CIFAR, "data": data, "network": _NETWORKS[small]}
        teacher = {
            **setting,
            "task": "learning.trained",
            "network": _NETWORKS[large],
            "seed": 0,
        }
    return by_method(setting, method, teacher=teacher, **given)


def _compression_cells(scale):
    # Networks whose features have different widths have no identity.
    return [
        Cell(row, column, _compressed(column, method))
        for row, (method, _) in _COMPRESSION.items()
        for column in (_FULL_PAIRS if scale == "full" else _SMALL_COLUMNS)
        if method != "neuron-identity" or column == f"{_SMALL_PREFIX}M"
    ]


_ALL_PAIRS = (*_FULL_PAIRS, *_SMALL_COLUMNS)

COMPRESSION = Table(
    name="representation-2",
    paper=_PAPER,
    place="table 2",
    title="Compression with the teacher's neurons",
    unit="test accuracy, %",
    full="CIFAR-10 and CIFAR-100; teachers ResNet-1001 (L) and WRN-28-10 "
    "(W), students ResNet-56 (M) and its half as wide form (S); SGD with "
    "momentum 0.9, 160,000 steps, batch 64, rate 0.1 and a tenth of it after "
    "80,000 and 120,000, weight decay 1e-4 on all that is trained, crops and "
    "mirror images. The paper chooses weights by cross-validation; here 0.1, "
    "for KD 1 at temperature 4, and times its square as usual. No identity: "
    "our ResNet-1001 has 256 features, ResNet-56 64",
    small=f"{small_forms.FASHION_TEXT}. That student is M; S has half of its "
    "channels; no wide teacher",
    order="optimal transport and KD first, where widths are equal beside "
    "identity; uniform transport hardly better than none",
    minutes=22,
    published=published(
        {row: figures for row, (_, figures) in _COMPRESSION.items()},
        _FULL_PAIRS,
    ),
    cells=_compression_cells,
    claims=[
        Claim(
            "Transport of neurons is better than no teacher",
            over(_ALL_PAIRS, _OPTIMAL, _NONE),
        ),
        Claim("So is KD", over(_ALL_PAIRS, _KD, _NONE)),
        Claim(
            "Optimal transport is better than uniform",
            over(_ALL_PAIRS, _OPTIMAL, _UNIFORM),
        ),
        Claim(
            "On ten classes it is better than KD",
            over((*list(_FULL_PAIRS)[:4], *_SMALL_COLUMNS), _OPTIMAL, _KD),
        ),
    ],
    digits=2,
    draw=figures.dots,
)

TABLES = [COMPRESSION]
