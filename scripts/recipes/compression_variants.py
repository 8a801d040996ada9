"""Lohit & Jones 2020: stages (table 3) and weights (table 7)."""

from recipes import figures
from recipes.model_compression import (
    FULL_TEXT,
    PAIRS,
    PAPER,
    SMALL_TEXT,
    STAGES,
    VGG,
    VGG_STAGES,
    WEIGHT_TEXT,
    better,
    run,
)
from recipes.table import Cell, Claim, Table, over, published

# === Table 3: stages ===

_STAGE_ROWS = {
    "output of stage 1": (73.59, 75.20),
    "output of stage 2": (74.01, 75.39),
    "output of stage 3": (74.25, 75.53),
    "output of stage 4": (73.27, 75.66),
    "all four": (74.19, 75.99),
}
_STAGE_METHODS = {"IPOT": "ipot", "IPOT+KD": "ipot+kd"}


def _stage_cells(scale):
    stages = STAGES if scale == "full" else VGG_STAGES
    places = [*([stage] for stage in stages), stages]
    return [
        Cell(row, column, run(scale, PAIRS[4], method, at=at))
        for row, at in zip(_STAGE_ROWS, places, strict=True)
        for column, method in _STAGE_METHODS.items()
    ]


BY_STAGE = Table(
    name="compression-3",
    paper=PAPER,
    place="table 3",
    title="At which stage to compare by transport",
    unit="test accuracy, %",
    full=f"{FULL_TEXT}; resnet32x4 → resnet8x4. {WEIGHT_TEXT}",
    small=f"{SMALL_TEXT}. Stages 1 to 4 are the second to fourth of the "
    "VGGs, and the features",
    order="one stage is nearly as good as all; KD adds to each",
    minutes=26,
    published=published(_STAGE_ROWS, _STAGE_METHODS),
    cells=_stage_cells,
    claims=[
        Claim(
            "KD adds to transport, whichever stage",
            [((row, "IPOT+KD"), (row, "IPOT")) for row in _STAGE_ROWS],
        ),
        Claim(
            "With KD, all stages are better than one",
            better(("IPOT+KD",), "all four", list(_STAGE_ROWS)[:4]),
        ),
    ],
    digits=2,
    draw=figures.dots,
)

# === Table 7: weights ===

_WEIGHT_ROWS = {
    "transport 0.9": (0.9, "ipot"),
    "transport 1": (1.0, "ipot"),
    "transport 0.9, KD 1": (0.9, "ipot+kd"),
    "transport 1, KD 1": (1.0, "ipot+kd"),
}
_WEIGHT_FIGURES = (
    (74.17, 71.04, 70.79, 72.87, 74.19, 72.75, 73.06),
    (74.79, 70.64, 70.67, 72.66, 74.03, 72.80, 73.97),
    (75.63, 71.21, 71.29, 73.54, 75.99, 74.29, 76.78),
    (75.35, 71.32, 71.18, 73.68, 75.88, 74.21, 76.37),
)


def _weight_cells(scale):
    return [
        Cell(row, pair, run(scale, pair, method, weight=weight))
        for row, (weight, method) in _WEIGHT_ROWS.items()
        for pair in (PAIRS if scale == "full" else (VGG,))
    ]


BY_WEIGHT = Table(
    name="compression-7",
    paper=PAPER,
    place="table 7",
    title="Weights of transport and of KD",
    unit="test accuracy, %",
    full=FULL_TEXT,
    small=f"{SMALL_TEXT}; half of the runs are those of compression-1",
    order="0.9 and 1 alike; KD adds",
    minutes=14,
    published=published(
        dict(zip(_WEIGHT_ROWS, _WEIGHT_FIGURES, strict=True)), PAIRS
    ),
    cells=_weight_cells,
    claims=[
        Claim(
            "KD adds to transport",
            over(PAIRS, "transport 0.9, KD 1", "transport 0.9")
            + over(PAIRS, "transport 1, KD 1", "transport 1"),
        )
    ],
    digits=2,
    draw=figures.dots,
)

TABLES = [BY_STAGE, BY_WEIGHT]
