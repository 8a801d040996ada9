"""Li, Grandvalet, Flamary, Courty & Dou 2020, Representation Transfer by OT.

Fine-tuning: table 1, figures 2 and 3; compression is in
representation_compression.py. What each shows, its networks, data, cost,
expected order and command: `reproduce.py --list`.
"""

from recipes import figures, learning, small_forms
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
FULL_COMPARED = ["conv4_block12_out", "features"]
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
_SMALL_COMPARED = ["stage3", "features"]
_SMALL_LAYERS = ["stage1", "stage2", "stage3", "stage4", "features"]
_FULL_TEXT = (
    "ResNet-101 of ImageNet, from Keras, fine-tuned on five datasets; SGD "
    "with momentum 0.9, 9000 steps, batch 64, rate 0.01 and a tenth of it "
    "after 6000 (Foods101: 16000, after 8000 and 12000); random crops of 224, "
    "ten crops on the test; neurons of the 19th residual unit and the "
    "features. The paper chooses rates and weights by cross-validation; here "
    "the rate is 0.01, and weights are the library's (0.01 for neurons, 0.1 "
    "and 0.01 for L2-SP). A tenth of the training images is held out. Its own "
    "test images of Dogs120, from ImageNet's validation, and its blur are left "
    "out; Birds200 is the edition of 2011. Needs a folder of the aircraft: "
    "--dataset folder:fgvc-aircraft=folder:PATH"
)
_SMALL_TEXT = (
    "a VGG-13 of an eighth of the channels that has learned six classes of "
    "Fashion-MNIST (1, 3, 5, 7, 8, 9) is fine-tuned on 10 images each of four "
    "others (tops: 0, 2, 4, 6) or of three that it knows (shoes: 5, 7, 9); "
    "Adam 1e-3, a tenth of it after 80 % of 100 steps, batch 20; neurons of "
    "the third stage and the features; the same weights"
)


def _tuned(scale, column, method):
    """A run of fine-tuning."""
    if scale == "full":
        setting = {**_FINETUNING, "data": _FULL_TARGETS[column]}
        if column == "Foods101":
            setting |= _FOODS
        start, compared, layers = _IMAGENET, FULL_COMPARED, _FULL_LAYERS
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
    order="optimal transport first or close to it, on Dogs120 far before "
    "none, L2 and uniform transport",
    minutes=10,
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
            over([t for t in _TARGETS if t != "Foods101"], _OPTIMAL, _L2_SP),
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
    remarks="Six kinds of clothes teach little that the tops need, unlike a "
    "thousand classes of photographs: on validation images each regularizer "
    "is the worse the more it weighs (tops, seed 0: none 66.7 %; optimal "
    "transport 59.1, 57.1 and 49.6 with 0.1, 1 and 10; L2-SP 66.7 and 62.5 "
    "with 0.001 and 0.01). With a small weight all transports are alike.",
    draw=figures.dots,
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
    minutes=3,
    published={},
    cells=_trace_cells,
    claims=[
        Claim(
            "Deep neurons change their role rather than shallow ones",
            [
                ((target, first), (target, "features"))
                for target in _TARGETS
                if target not in _KNOWN
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
    minutes=4,
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

TABLES = [TUNING, TRACES, PROGRESS]
