"""What came of a table: printed, in RESULTS.md, and drawn."""

import contextlib
import fcntl
import math
import os
import re
import textwrap

import common

from recipes import figures
from recipes.comparison import mean_and_deviation, verdict
from recipes.table import required
from tfkd.export import replacing

_HEAD = """# The papers' tables, as they came out here

Written by `scripts/reproduce.py`, a section a table; each says what it was \
run on and how long it took. Small forms have other data and narrower \
networks than the papers', so compare the order of the rows, not the figures. \
Every number is the mean ± standard deviation over the seeds. Rows of one \
seed share their images, the images' order and, but for pre-trained networks, \
the weights that they begin with. A claim holds, or does not, where the mean \
difference over the seeds is at least twice its standard error; otherwise it \
is undecided. That is a low bar for so few seeds: by chance alone a \
difference passes it in 18 of 100 cases with three seeds, in 12 with five.
"""


def listing(tables):
    """What there is to reproduce, for --list.

    Args:
        tables: `table.Table`s.
    """
    return "\n\n".join(_description(table) for table in tables)


def _description(table):
    lines = [
        f"{table.name}: {table.title} ({table.paper}, {table.place})",
        _paragraph("expected", f"{table.order}."),
    ]
    for scale, text in (("full", table.full), ("small", table.small)):
        lines += [
            _paragraph(f"{scale} form", f"{text}. {_cost(table, scale)}."),
            f"  command:    {_command(table, scale, table.seeds)}",
        ]
    if table.published:
        lines.append("  paper:")
        lines += [f"    {line}" for line in _published(table).splitlines()]
    return "\n".join(lines)


def _published(table):
    """The paper's figures as a Markdown table."""
    rows = dict.fromkeys(row for row, _ in table.published)
    columns = dict.fromkeys(column for _, column in table.published)
    return common.markdown_table(
        [table.unit, *columns],
        [[r, *(table.figure(r, c) for c in columns)] for r in rows],
    )


def _paragraph(title, text):
    return textwrap.fill(
        text[0].upper() + text[1:],
        width=78,
        initial_indent=f"  {title + ':':<12}",
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cost(table, scale):
    """How many trainings a form has, of how long, in words."""
    runs = table.trainings(scale, table.seeds)
    if scale == "small":
        return (
            f"{len(runs)} trainings, {table.minutes} minutes of one thread "
            "here; half with --jobs 2"
        )
    # A network of keras.applications has no steps.
    steps = sorted({run["steps"] for run in runs if "steps" in run})
    data = dict.fromkeys(run["data"] for run in runs if "data" in run)
    between = f"{steps[0]:,} to {steps[-1]:,}"
    return (
        f"Not run here: {len(runs)} trainings of "
        f"{between if len(steps) > 1 else between.split()[0]} steps, on "
        f"{', '.join(data)}"
    )


def _command(table, scale, seeds, changes=""):
    words = [f"python scripts/reproduce.py {table.name} --scale {scale}"]
    words.append(f"--seeds {seeds} --jobs 2")
    if changes:
        words.append(changes)
    if scale == "full" or changes:
        words.append("--output FOLDER")
    return " ".join(words)


def describe(config):
    """A run in a few words."""
    skipped = ("task", "seed")
    words = []
    for name, value in config.items():
        if name == "examples_per_class":
            words.append(f"{value or 'all'} a class")
        elif name in ("network", "data"):
            words.append(str(value).rsplit("/", 1)[-1])
        elif name in ("terms", "method"):
            words.append("+".join(value) if isinstance(value, list) else value)
        elif name == "label_weight" and value == 0:
            words.append("no labels")
        elif name == "penalty":
            words += [f"{what} {weight:g}" for what, weight in value.items()]
        elif name in ("window", "jacobian_at"):
            if "jacobian" in config.get("terms", ()):
                at = "/".join(value) if isinstance(value, list) else value
                words.append(f"{name.removeprefix('jacobian_')} {at}")
        elif name == "start" and value:
            words.append("pre-trained")
        elif name == "classes" and value:
            words.append(f"classes {', '.join(map(str, value))}")
        elif name == "settings":
            words += [
                f"{what}={v}"
                for given in value.values()
                for what, v in given.items()
            ]
        elif name in skipped or isinstance(value, dict):
            continue
    task = config["task"].rsplit(".", 1)[-1]
    return f"{task} {', '.join(filter(None, words))}, seed {config['seed']}"


class Outcome:
    """The numbers of a table's runs.

    Args:
        table: A `table.Table`.
        plan: List of pairs: a `table.Cell`, and the configuration of its run
            with each seed.
        runs: The `runs.Runs` that has them, as far as they ended.

    Attributes:
        table: The table.
        rows, columns: Labels, in order.
        seeds: Those of the runs, in order.
        values: Dict `(row, column)` -> list of a number for each seed; None
            where the run failed.

    Raises:
        ValueError: If a run that is there is damaged, or lacks the result.
    """

    def __init__(self, table, plan, runs):
        self.table = table
        self.rows = list(dict.fromkeys(cell.row for cell, _ in plan))
        self.columns = list(dict.fromkeys(cell.column for cell, _ in plan))
        self.seeds = sorted({c["seed"] for _, configs in plan for c in configs})
        self.values = {}
        self._kept, self._keys = {}, {}
        for cell, configs in plan:
            place = cell.row, cell.column
            self._keys[place] = [runs.key(config) for config in configs]
            self.values[place] = [
                self._read(runs, config, cell.result) for config in configs
            ]

    def _read(self, runs, config, result):
        for need in required(config):
            self._kept[runs.key(need)] = runs.read(need)
        kept = self._kept[runs.key(config)] = runs.read(config)
        if kept is None:
            return None
        if result not in kept["results"]:
            raise ValueError(
                f"The run in '{runs.folder / runs.key(config)}.json' has no "
                f"'{result}'. Delete it to run it anew."
            )
        return kept["results"][result]

    @property
    def complete(self):
        """Whether all of its runs came to their end."""
        return all(None not in values for values in self.values.values())

    def results(self, row, column):
        """All that the runs of a cell found.

        Returns:
            A list of dicts, of the runs that are there.
        """
        return [
            self._kept[key]["results"]
            for key in self._keys[row, column]
            if self._kept[key] is not None
        ]

    def given(self, row, column):
        """The numbers of a cell that are there."""
        values = self.values.get((row, column), ())
        return [value for value in values if value is not None]

    def body(self):
        """The comparison as a Markdown table."""
        rows = [
            [row, *(self._cell(row, column) for column in self.columns)]
            for row in self.rows
        ]
        return common.markdown_table([self.table.unit, *self.columns], rows)

    def _cell(self, row, column):
        if (row, column) not in self.values:
            return ""
        values = self.given(row, column)
        if len(set(self._keys[row, column])) == 1:
            # One run, whatever the seed: a teacher.
            values = values[:1]
        elif 0 < len(values) < len(self.seeds):
            missing = f" ({len(values)} of {len(self.seeds)} seeds)"
            return mean_and_deviation(values, self.table.digits) + missing
        text = "failed"
        if values:
            text = mean_and_deviation(values, self.table.digits)
        theirs = self.table.figure(row, column)
        return f"{text} ({theirs})" if theirs else text

    def verdicts(self):
        """List of `(claim's text, higher, lower, Verdict)`."""
        found = []
        for claim in self.table.claims:
            for higher, lower in claim.pairs:
                pairs = [
                    pair
                    for pair in zip(
                        self.values.get(higher, ()),
                        self.values.get(lower, ()),
                        strict=False,
                    )
                    if None not in pair
                ]
                if pairs:
                    judged = verdict(*zip(*pairs, strict=True))
                    found.append((claim.text, higher, lower, judged))
        return found

    def claims(self):
        """What the seeds say of each claim, as a Markdown table."""
        rows, digits, published = [], self.table.digits, self.table.published
        last = None
        for text, higher, lower, judged in self.verdicts():
            theirs = ""
            if higher in published and lower in published:
                theirs = f"{published[higher] - published[lower]:+.{digits}f}"
            ours = f"{judged.difference:+.{digits + 1}f}"
            if not math.isnan(judged.error):
                ours += f" ± {judged.error:.{digits + 1}f}"
            rows.append(
                [
                    "" if text == last else text,
                    _pair(higher, lower),
                    ours,
                    theirs,
                    judged.words,
                ]
            )
            last = text
        header = ["claim", "cells", "difference ± s.e.", "paper", "here"]
        return common.markdown_table(header, rows)

    def text(self, scale, changes=""):
        """The section of RESULTS.md.

        Args:
            scale: "small" or "full".
            changes: Options that made the runs others than the table's.
        """
        table = self.table
        kept = [one for one in self._kept.values() if one is not None]
        seconds = sum(one["seconds"] for one in kept)
        made = sorted({one["made"] for one in kept})
        teachers = "".join(
            f"- taught by: {line}\n" for line in self._teachers()
        )
        parts = [
            f"## {_section(table.name, scale)}: {table.title}",
            f"{table.paper}, {table.place}. Expected: {table.order}.",
            f"{scale.capitalize()} form"
            + (f", but for `{changes}`" if changes else "")
            + f": {table.small if scale == 'small' else table.full}.",
            self.body(),
            f"{table.unit[0].upper()}{table.unit[1:]}{self._brackets()}.",
        ]
        if self.verdicts():
            parts.append(self.claims())
        if table.published and not self._brackets():
            parts += ["The paper's own:", _published(table)]
        if table.remarks:
            parts.append(table.remarks)
        parts += [
            f"![{table.title}](figures/{table.name}.png)",
            f"- command: `{_command(table, scale, len(self.seeds), changes)}`\n"
            f"{teachers}"
            f"- seeds {', '.join(map(str, self.seeds))}; {len(kept)} runs, "
            f"{seconds / 60:.1f} minutes in all, a thread each\n"
            + "\n".join(f"- {line}" for line in made),
        ]
        return "\n\n".join(parts) + "\n"

    def _brackets(self):
        """What is said of the brackets, "" where there are none."""
        if self.values.keys() & self.table.published.keys():
            return "; in brackets the paper's figures"
        return ""

    def _teachers(self):
        """A line for each run that others needed."""
        lines = []
        for kept in self._kept.values():
            if kept and kept["config"]["task"] == "learning.trained":
                config, results = kept["config"], kept["results"]
                lines.append(
                    f"{describe(config)}, width {config['width']:g}, "
                    f"{config['steps']} steps: {results['accuracy']:.1f} %"
                )
        return lines

    def write(self, folder, scale, changes=""):
        """Writes the section and the picture; keeps other sections.

        Args:
            folder: Path of the folder.
            scale, changes: As of `text`.
        """
        drawing = self.table.draw or figures.lines
        name = self.table.name
        path = folder / "RESULTS.md"
        with _alone(folder):
            with replacing(folder / "figures" / f"{name}.png") as picture:
                drawing(picture, self)
            sections = _sections(path)
            section = _section(name, scale)
            sections[section] = self.text(scale, changes)
            with replacing(path) as new:
                ordered = [sections[one] for one in sorted(sections)]
                text = "\n".join([_HEAD, *ordered])
                new.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _alone(folder):
    """Waits until no other process is at a folder's RESULTS.md."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _section(name, scale):
    """What the section of a table begins with."""
    return name if scale == "small" else f"{name}, full form"


def _sections(path):
    """The sections of a RESULTS.md, what they begin with -> text.

    Args:
        path: A `pathlib.Path`.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {
        part[3:].partition("\n")[0].partition(":")[0]: part.rstrip("\n") + "\n"
        for part in parts
    }


def _pair(higher, lower):
    """Two cells in words, their common label once."""
    if higher[1] == lower[1]:
        return f"{higher[1]}: {higher[0]} > {lower[0]}"
    if higher[0] == lower[0]:
        return f"{higher[0]}: {higher[1]} > {lower[1]}"
    return f"{higher[0]}, {higher[1]} > {lower[0]}, {lower[1]}"
