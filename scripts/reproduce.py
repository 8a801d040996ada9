"""Runs tables and figures of the papers, and compares with what they say.

Each run is kept in saved_models/reproduce when it has ended, and is never
computed again: a killed command, given again, goes on. Prints each table
beside the paper's figures, and whether the paper's claims hold here.
"""

import argparse
import pathlib
import shlex
import time

import common
from recipes import (
    compression_elsewhere,
    compression_variants,
    jacobian_matching,
    jacobian_transfer,
    kd2m,
    model_compression,
    report,
    representation_compression,
    representation_transfer,
    workers,
)
from recipes.runs import Runs
from recipes.table import overridden, with_seed

_MODULES = (
    jacobian_matching,
    jacobian_transfer,
    kd2m,
    representation_transfer,
    representation_compression,
    model_compression,
    compression_variants,
    compression_elsewhere,
)
_ALL = [table for module in _MODULES for table in module.TABLES]
TABLES = {table.name: table for table in sorted(_ALL, key=lambda t: t.name)}
_RESULTS = pathlib.Path(__file__).with_name("recipes")


def main(argv=None):
    """Runs the script.

    Args:
        argv: List of arguments; None: those of the command line.

    Returns:
        The exit code: 0; 1 if a run failed; 130 if interrupted.

    Raises:
        SystemExit: With code 2 on bad input, before any training.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    unknown = [name for name in options.tables if name not in TABLES]
    if unknown:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    common.refuse_repeated(parser, "TABLE", options.tables)
    if options.list:
        names = options.tables or TABLES
        common.say(report.listing(TABLES[name] for name in names))
        return 0
    if not options.tables:
        parser.error("say which tables; --list shows them")
    _check_datasets(parser, options)

    def change(name, value):
        if name == "steps":
            return options.steps or value
        return options.dataset.get(value, value) if name == "data" else value

    fewer = options.seeds and any(
        options.seeds < TABLES[name].seeds for name in options.tables
    )
    special = (
        options.steps or options.dataset or options.scale == "full" or fewer
    )
    if special and not options.output:
        parser.error(
            "argument --output: needed with --scale full, --steps, --dataset "
            "and fewer --seeds than a table has, since RESULTS.md is of the "
            "whole small forms"
        )
    try:
        return _reproduce(options, change)
    except KeyboardInterrupt:
        common.say("\nInterrupted: what has ended is kept.")
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        parser.exit(1, f"\n{parser.prog}: error: {error}\n")


def _parser():
    parser = common.Parser(__doc__)
    add = parser.add_argument
    add(
        "tables", nargs="*", metavar="TABLE", help=f"any of {', '.join(TABLES)}"
    )
    add(
        "--list",
        action="store_true",
        help="describe the given tables, or all, and exit",
    )
    add(
        "--scale",
        choices=("small", "full"),
        default="small",
        help="full: the paper's own networks, data and schedule",
    )
    add(
        "--seeds",
        type=common.integer(1),
        metavar="N",
        help="seeds 0 to N - 1 (default: the table's number)",
    )
    add(
        "--jobs",
        type=common.integer(1),
        default=1,
        metavar="N",
        help="runs at a time, a thread and a process each",
    )
    add(
        "--steps",
        type=common.integer(1),
        metavar="N",
        help="of every training, teachers too, to try a recipe out",
    )
    add(
        "--dataset",
        type=_replacement,
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help="datasets to take instead of the recipe's, by their names in "
        "tfkd.data, so as to say where a folder is, say idx:FOLDER=digits",
    )
    add(
        "--runs",
        default=str(common.SAVED_MODELS / "reproduce"),
        metavar="FOLDER",
        help="where runs are kept (default: %(default)s)",
    )
    add(
        "--output",
        metavar="FOLDER",
        help="where RESULTS.md and figures/ are written; what RESULTS.md has "
        "of other tables stays (default: scripts/recipes)",
    )
    return parser


def _replacement(text):
    """An argument type: two names, as a pair."""
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, not {text!r}")
    return old, new


def _check_datasets(parser, options):
    """Makes a dict of --dataset; ends the script if it changes nothing."""
    pairs, options.dataset = options.dataset, dict(options.dataset)
    common.refuse_repeated(parser, "--dataset", [old for old, _ in pairs])
    known = {
        run["data"]
        for name in options.tables
        for run in TABLES[name].trainings(options.scale, 1)
        if "data" in run
    }
    unknown = sorted(options.dataset.keys() - known)
    if unknown:
        parser.error(
            f"argument --dataset: {unknown[0]!r} is not of these tables, but "
            f"{', '.join(sorted(known))}"
        )


def _reproduce(options, change):
    """Computes, prints and writes; returns the exit code."""
    runs = Runs(options.runs)
    output = pathlib.Path(options.output or _RESULTS)
    for folder in (runs.folder, output):
        folder.mkdir(parents=True, exist_ok=True)
    plans = {
        name: _plan(TABLES[name], options, change) for name in options.tables
    }
    configs = [
        config
        for plan in plans.values()
        for _, seeded in plan
        for config in seeded
    ]
    number = len(workers.missing(runs, configs))
    common.say(f"{number} runs to compute; what has ended is in {runs.folder}")
    failed = workers.compute(
        runs, configs, jobs=options.jobs, report=_progress()
    )
    changes = _changes(options)
    for name, plan in plans.items():
        done = report.Outcome(TABLES[name], plan, runs)
        if not any(done.given(*place) for place in done.values):
            common.say(f"\n{name}: all runs failed; nothing is written")
            continue
        common.say(f"\n{done.text(options.scale, changes)}")
        if not options.output and not done.complete:
            common.say("Some runs failed: RESULTS.md stays as it was.")
            continue
        done.write(output, options.scale, changes)
        common.say(f"wrote {output / 'RESULTS.md'}")
    return 1 if failed else 0


def _plan(table, options, change):
    """Pairs of a cell and its run with each seed."""
    seeds = range(options.seeds or table.seeds)
    return [
        (
            cell,
            [
                with_seed(overridden(cell.config, change), seed)
                for seed in seeds
            ],
        )
        for cell in table.cells(options.scale)
    ]


def _changes(options):
    """The options that make runs others than the tables', as given."""
    changes = [f"--steps {options.steps}"] if options.steps else []
    if options.dataset:
        pairs = [f"{old}={new}" for old, new in options.dataset.items()]
        changes.append(shlex.join(["--dataset", *pairs]))
    return " ".join(changes)


def _progress():
    """A function that prints a line for each run that is over."""
    start = time.perf_counter()
    told = set()

    def reason(error):
        """All of a traceback the first time, then its last line."""
        last = error.rstrip().rpartition("\n")[2]
        first = last not in told
        told.add(last)
        return error.rstrip() if first else last

    def show(config, error, over, total):
        seconds = time.perf_counter() - start
        left = seconds / over * (total - over)
        common.say(
            f"{over:4}/{total}  {report.describe(config)}  "
            + (
                f"FAILED: {reason(error)}"
                if error
                else f"{left / 60:.0f} min left"
            )
        )

    return show


if __name__ == "__main__":
    common.start(main)
