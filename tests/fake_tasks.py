"""Runs of no work, for tests of scripts/reproduce.py.

As `recipes.fake_tasks`, once `offered` was called, in processes of
`WORKER`, too.
"""

import importlib
import os
import pathlib
import signal
import sys
import time

_SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
WORKER = pathlib.Path(__file__)


def offered():
    """Makes scripts/ and these tasks importable; returns the package."""
    if str(_SCRIPTS) not in sys.path:
        sys.path.insert(0, str(_SCRIPTS))
    recipes = importlib.import_module("recipes")
    here = str(pathlib.Path(__file__).parent)
    if here not in recipes.__path__:
        recipes.__path__.append(here)
    return recipes


def begun(log):
    """What the runs logged that began: pairs of a name and a process."""
    lines = pathlib.Path(log).read_text().splitlines()
    return [(name, int(pid)) for name, pid in map(str.split, lines)]


def config(name, log, **settings):
    """The configuration of a run."""
    task = {"task": "fake_tasks.number", "network": name, "log": str(log)}
    return {**task, **settings}


def number(config, runs):
    """A task: "value" and the seed, plus what a teacher has."""
    with open(config["log"], "a") as log:
        log.write(f"{config['network']}-{config['seed']} {os.getpid()}\n")
    teacher = config.get("teacher")
    number = runs.read(teacher)["results"]["accuracy"] if teacher else 0.0
    time.sleep(config.get("sleep", 0))
    if "error" in config:
        raise ValueError(config["error"])
    if "die" in config:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"accuracy": number + config.get("value", 0) + config["seed"]}


def reproduce(log, argv, *, report):
    """scripts/reproduce.py with the table "fake" of 4 cells and a teacher."""
    offered()
    import reproduce
    from recipes import workers
    from recipes.table import Cell, Table

    def cells(scale):
        teacher = config("teacher", log, value=100, seed=0, sleep=0.1)
        return [
            Cell(row, column, config(row + column, log, **settings))
            for row in "ab"
            for column in "cd"
            for settings in [{"teacher": teacher, "sleep": 0.2}]
        ]

    words = ("paper", "place", "title", "unit", "full", "small", "order")
    reproduce.TABLES["fake"] = Table(
        name="fake",
        **dict.fromkeys(words, "made up"),
        minutes=1,
        published={},
        cells=cells,
        claims=[],
    )
    workers._WORKER = WORKER
    compute = workers.compute

    def reporting(*args, report, **kwargs):
        def told(*over):
            reported()
            report(*over)

        return compute(*args, report=told, **kwargs)

    reported = report
    workers.compute = reporting
    sys.exit(reproduce.main(argv))


if __name__ == "__main__":
    offered()
    from recipes import worker

    worker.main()
