"""Li, Grandvalet, Flamary, Courty & Dou 2020, Representation Transfer by OT.

Tables 1 and 2, figures 2 and 3. What each shows, its networks, data, cost,
expected order and command: `reproduce.py --list`.
"""

from recipes import learning, small_forms
from recipes.small_forms import by_method
from recipes.table import Cell, Claim, Table, over, published

_PAPER = "Li et al. 2020"
_NONE, _L2, _L2_SP = "none", "L2", "L2-SP"
_IDENTITY, _UNIFORM, _OPTIMAL = "identity", "uniform", "optimal transport"

# === Fine-tuning: table 1, figures 2 and 3 ===

# Row -> the method, and the paper's figures.
_TUNING = {
    _NONE: ("finetune", (83.95, 80.64, 90.21, 69.53, 86.85)),
    _L2: ("l2", (83.64, 80.57, 90.51, 69.79, 86.86)),
    _L2_SP: ("l2-sp", (83.94, 81.10, 90.73, 77.05, 87.15)),
    _IDENTITY: ("neuron-identity", (83.44, 82.25, 90.40, 77.15, 86.88)),
    _UNIFORM: ("neuron-uniform", (84.74, 81.53, 91.49, 71.40, 86.90)),
    _OPTIMAL: ("neuron-ot", (85.19, 82.37, 91.29, 77.43, 87.06)),
}
_FULL_TARGETS = {
    "Aircraft100": "folder:fgvc-aircraft",
    "Birds200": "caltech_birds2011",
    "Cars196": "cars196",
    "Dogs120": "stanford_dogs",
    "Foods101": "food101",
}
# Tops and coats, which the source network has not seen, and three kinds of
# shoes, which it knows: as Dogs120 is a part of ImageNet.
_SOURCE = [1, 3, 5, 7, 8, 9]
_SMALL_TARGETS = {"tops": [0, 2, 4, 6], "shoes": [5, 7, 9]}
_TARGETS = (*_FULL_TARGETS, *_SMALL_TARGETS)
_KNOWN = ("Dogs120", "shoes")
_POINTS = 5

_IMAGENET = {
    "task": "tuned.pretrained",
    "network": "resnet101",
    "weights": "imagenet",
    "image_size": 224,
    "seed": 0,
}
_FINETUNING = {
    "examples_per_class": None,
    "augment": True,
    "ten_crop": True,
    "image_size": 224,
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "drops": [2 / 3],
    "steps": 9000,
    "images": 3000,
}
_FOODS = {"drops": [1 / 2, 3 / 4], "steps": 16000}
# The 19th residual unit of 33, and the penultimate layer.
_FULL_COMPARED = ["conv4_block12_out", "features"]
_FULL_LAYERS = [
    "conv1_relu",
    "conv2_block3_out",
    "conv3_block4_out",
    "conv4_block6_out",
    "conv4_block12_out",
    "conv4_block18_out",
    "conv4_block23_out",
    "conv5_block1_out",
    "conv5_block2_out",
    "conv5_block3_out",
    "features",
]
_SMALL_SOURCE = {**small_forms.FASHION_TEACHER, "classes": _SOURCE}
_SMALL_TUNING = {
    "data": learning.FASHION,
    "examples_per_class": 10,
    "batch_size": 20,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "drops": [0.8],
    "steps": 100,
    "images": 1000,
}
_SMALL_COMPARED = ["stage4", "features"]
_SMALL_LAYERS = ["stage1", "stage2", "stage3", "stage4", "stage5", "features"]
_FULL_TEXT = (
    "ResNet-101 of ImageNet, from Keras, fine-tuned on five datasets; SGD "
    "with momentum 0.9, 9000 steps, batch 64, rate 0.01 and a tenth of it "
    "after 6000 (Foods101: 16000, after 8000 and 12000); random crops of 224, "
    "ten crops on the test; neurons of the 19th residual unit and the "
    "features. The paper chooses rates and weights by cross-validation; here "
    "they are the middle of its ranges. Its own test images of Dogs120, from "
    "ImageNet's validation, and its blur are left out; Birds200 is the "
    "edition of 2011. Needs a folder of the aircraft: --dataset "
    "folder:fgvc-aircraft=folder:PATH"
)
_SMALL_TEXT = (
    "a VGG-13 of an eighth of the channels that has learned six classes of "
    "Fashion-MNIST (1, 3, 5, 7, 8, 9) is fine-tuned on 10 images each of four "
    "others (tops: 0, 2, 4, 6) or of three that it knows (shoes: 5, 7, 9); "
    "Adam 1e-3, a tenth of it after 80 % of 100 steps, batch 20; neurons of "
    "the fourth stage and the features; the same weights"
)


def _tuned(scale, column, method):
    """A run of fine-tuning."""
    if scale == "full":
        setting = {**_FINETUNING, "data": _FULL_TARGETS[column]}
        if column == "Foods101":
            setting |= _FOODS
        start, compared, layers = _IMAGENET, _FULL_COMPARED, _FULL_LAYERS
    else:
        setting = {**_SMALL_TUNING, "classes": _SMALL_TARGETS[column]}
        start, compared, layers = _SMALL_SOURCE, _SMALL_COMPARED, _SMALL_LAYERS
    settings = {}
    if method.startswith("neuron"):
        settings = {method.replace("-", "_"): {"at": compared}}
    return {
        "task": "tuned.tuned",
        **setting,
        "method": method,
        "settings": settings,
        "start": start,
        "layers": layers if method == "l2-sp" else None,
        "points": _POINTS if method == "neuron-ot" else None,
    }


def _targets(scale):
    return _FULL_TARGETS if scale == "full" else _SMALL_TARGETS


def _tuning_cells(scale):
    return [
        Cell(row, column, _tuned(scale, column, method))
        for row, (method, _) in _TUNING.items()
        for column in _targets(scale)
    ]


TUNING = Table(
    name="representation-1",
    paper=_PAPER,
    place="table 1",
    title="Fine-tuning with six regularizers",
    unit="test accuracy, %",
    full=_FULL_TEXT,
    small=f"{_SMALL_TEXT}; two targets",
    order="optimal transport first, on Dogs120 far before none, L2 and "
    "uniform transport",
    cost={"small": "", "full": ""},
    published=published(
        {row: figures for row, (_, figures) in _TUNING.items()}, _FULL_TARGETS
    ),
    cells=_tuning_cells,
    claims=[
        Claim(
            "Optimal transport is better than no regularizer",
            over(_TARGETS, _OPTIMAL, _NONE),
        ),
        Claim(
            "It is better than the distance of weights",
            over(
                [t for t in _TARGETS if t != "Foods101"], _OPTIMAL, _L2_SP
            ),
        ),
        Claim(
            "It is better than no transport",
            over(_TARGETS, _OPTIMAL, _IDENTITY),
        ),
        Claim(
            "Where the source knows the classes, weights near the start help",
            over(_KNOWN, _L2_SP, _NONE) + over(_KNOWN, _L2_SP, _L2),
        ),
        Claim(
            "There uniform transport fails",
            over(_KNOWN, _OPTIMAL, _UNIFORM),
        ),
    ],
    digits=2,
)


def _trace_cells(scale):
    layers = _FULL_LAYERS if scale == "full" else _SMALL_LAYERS
    return [
        Cell(target, layer, _tuned(scale, target, "l2-sp"), f"trace {layer}")
        for target in _targets(scale)
        for layer in layers
    ]


TRACES = Table(
    name="representation-figure2",
    paper=_PAPER,
    place="figure 2",
    title="Neurons that kept their role in fine-tuning with L2-SP, by depth",
    unit="trace of the transport plan",
    full=f"{_FULL_TEXT}. On 3000 validation images (what there are, if fewer)",
    small=f"{_SMALL_TEXT}; 1000 validation images. The runs of "
    "representation-1",
    order="falls with depth; stays at 1 where the source knows the classes",
    cost={"small": "none beside representation-1", "full": "likewise"},
    published={},
    cells=_trace_cells,
    claims=[
        Claim(
            "Deep neurons change their role rather than shallow ones",
            [
                ((target, first), (target, "features"))
                for target in _TARGETS
                for first in ("conv1_relu", "stage1")
            ],
        ),
        Claim(
            "Where the source knows the classes, they keep it",
            [
                ((known, "features"), (target, "features"))
                for known in _KNOWN
                for target in _TARGETS
                if target not in _KNOWN
            ],
        ),
    ],
    digits=2,
)

_SHARES = [f"{100 * n // _POINTS} %" for n in range(1, _POINTS + 1)]


def _progress_cells(scale):
    return [
        Cell(
            target,
            share,
            _tuned(scale, target, "neuron-ot"),
            f"trace at {point}",
        )
        for target in _targets(scale)
        for point, share in enumerate(_SHARES, start=1)
    ]


PROGRESS = Table(
    name="representation-figure3",
    paper=_PAPER,
    place="figure 3",
    title="Neurons that keep their role along fine-tuning with transport",
    unit="trace of the transport plan, after",
    full=f"{_FULL_TEXT}. The features' plan on 3000 validation images, where "
    "the paper takes each batch's",
    small=f"{_SMALL_TEXT}; 1000 validation images. The runs of "
    "representation-1",
    order="far from 1, but where the source knows the classes",
    cost={"small": "none beside representation-1", "full": "likewise"},
    published={},
    cells=_progress_cells,
    claims=[
        Claim(
            "Where the source knows the classes, more neurons keep their role",
            [
                ((known, share), (target, share))
                for known in _KNOWN
                for target in _TARGETS
                if target not in _KNOWN
                for share in _SHARES[-1:]
            ],
        )
    ],
    digits=2,
)


# === Compression: table 2 ===

_KD = "KD"
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
            "task": "taught.trained",
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
    "mirror images. Weights are the middle of the paper's range, 0.1, for KD "
    "1 at temperature 4. No identity: our ResNet-1001 has 256 features, "
    "ResNet-56 64",
    small=f"{small_forms.FASHION_TEXT} (M) or a sixteenth of them (S); "
    "no wide teacher",
    order="optimal transport and KD first, uniform transport hardly better "
    "than none",
    cost={"small": "", "full": ""},
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
)

TABLES = [TUNING, TRACES, PROGRESS, COMPRESSION]
