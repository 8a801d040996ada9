"""Every table of scripts/reproduce.py to its end, at its tiniest."""

import dataclasses
import pathlib
import re
import sys

import pytest
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))

import reproduce
from recipes import learning, workers
from recipes.runs import Runs
from recipes.table import overridden, with_seed

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config")

# Rows and columns of the small forms.
SHAPES = {
    "jacobian-1": (7, 4),
    "jacobian-2": (6, 8),
    "jacobian-3": (6, 5),
    "jacobian-4": (2, 4),
    "jacobian-5": (1, 5),
    "kd2m-1": (8, 2),
    "kd2m-figure2": (12, 5),
    "kd2m-figure3": (2, 1),
    "representation-1": (6, 2),
    "representation-figure2": (2, 5),
    "representation-figure3": (2, 5),
    "representation-2": (5, 2),
    "compression-1": (14, 1),
    "compression-2": (10, 1),
    "compression-3": (5, 2),
    "compression-4": (9, 2),
    "compression-5": (11, 1),
    "compression-7": (4, 1),
}
OPTIONS = ["--steps", "2", "--seeds", "1"]
# Beside these options. Columns of other sizes are the same runs then.
TINY = {
    "width": 0.0625,
    "examples_per_class": 2,
    "batch_size": 4,
    "images": 8,
    "draws": 1,
    "aligned": 8,
    "negatives": 8,
}
NUMBER = r"-?\d+\.\d+( \([\d.]+\))?"


def shrunk(key, value):
    """A setting, tiny; digits and two steps are the options' part."""
    if value == "vgg13":
        return "vgg8"
    return TINY[key] if key in TINY and value is not None else value


def as_run(config):
    """The configuration of the run that a cell's becomes by the options."""

    def change(key, value):
        given = {"steps": 2, "data": "digits"}
        return given.get(key, value)

    return with_seed(overridden(config, change), 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where runs and output are; the command computes them in this process."""

    def compute(runs, configs, *, jobs, report):
        for config in workers.missing(runs, configs).values():
            runs.compute(config)
        return 0

    tables = {
        name: dataclasses.replace(
            table,
            cells=lambda scale, table=table: [
                cell._replace(config=overridden(cell.config, shrunk))
                for cell in table.cells(scale)
            ],
        )
        for name, table in reproduce.TABLES.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "compute", compute)
        patch.setattr(reproduce, "TABLES", tables)
        tf.config.run_functions_eagerly(True)
        yield tmp_path_factory.mktemp("tables")
        tf.config.run_functions_eagerly(False)


def reproduced(name, folder):
    """The section of RESULTS.md that the command writes."""
    argv = ["--runs", str(folder / "runs"), "--output", str(folder / "out")]
    if learning.FASHION in str(reproduce.TABLES[name].cells("small")):
        argv += ["--dataset", f"{learning.FASHION}=digits"]
    assert reproduce.main([name, *OPTIONS, *argv]) == 0
    text = (folder / "out" / "RESULTS.md").read_text()
    (section,) = re.findall(
        rf"^## {name}: .*?(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL
    )
    return section


def tables_of(text):
    """The tables of a Markdown text: rows of cells, without the rule."""
    return [
        [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for number, line in enumerate(table.splitlines())
            if number != 1
        ]
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    ]


@pytest.mark.parametrize("name", reproduce.TABLES)
def test_a_table_its_claims_and_its_picture(name, folder):
    section = reproduced(name, folder)
    (header, *rows), (_, *verdicts), *theirs = tables_of(section)
    assert (len(rows), len(header) - 1) == SHAPES[name]
    table, kept = reproduce.TABLES[name], Runs(folder / "runs")
    shown = {
        (row[0], column): text
        for row in rows
        for column, text in zip(header[1:], row[1:], strict=True)
        if text
    }
    cells = {cell[:2]: cell for cell in table.cells("small")}
    assert shown.keys() == cells.keys()
    for place, text in shown.items():
        assert re.fullmatch(NUMBER, text), (place, text)
        cell = cells[place]
        results = kept.read(as_run(cell.config))["results"]
        number = f"{results[cell.result]:.{table.digits}f}"
        figure = table.figure(*place)
        assert text == (f"{number} ({figure})" if figure else number)

    pairs = [pair for claim in table.claims for pair in claim.pairs]
    judged = [pair for pair in pairs if cells.keys() >= {*pair}]
    assert judged
    assert len(verdicts) == len(judged)
    # One seed decides nothing.
    assert {row[-1] for row in verdicts} == {"undecided"}

    # In brackets, or as a table of their own.
    beside = cells.keys() & table.published.keys()
    assert len(theirs) == (bool(table.published) and not beside)

    command = f"reproduce.py {name} --scale small --seeds 1 --jobs 2 --steps 2 "
    assert command in section
    assert f"(figures/{name}.png)" in section
    picture = (folder / "out" / "figures" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_again_computes_nothing_and_keeps_other_sections(folder, capsys):
    reproduced("kd2m-1", folder)
    reproduced("jacobian-2", folder)
    capsys.readouterr()
    files = [*folder.rglob("*.json"), folder / "out" / "RESULTS.md"]
    before = [file.read_bytes() for file in files]
    reproduced("kd2m-1", folder)
    assert capsys.readouterr().out.startswith("0 runs to compute")
    assert [file.read_bytes() for file in files] == before
