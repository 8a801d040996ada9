"""What a table of a paper consists of."""

import dataclasses
import json
from collections.abc import Callable
from typing import NamedTuple


class Cell(NamedTuple):
    """One number of a table.

    Attributes:
        row, column: Its labels.
        config: Dict of all settings of the run that it is of but the seed, as
            JSON has them. "task" names the function that runs it, "module.
            function" in this folder. A dict inside that has a "task" too, a
            teacher's say, is a run that comes first; one with a "seed" of
            its own keeps it.
        result: Which of the run's results it is. Cells of one run share its
            configuration.
    """

    row: str
    column: str
    config: dict
    result: str = "accuracy"


class Claim(NamedTuple):
    """A statement of the paper that its table bears out.

    Attributes:
        text: The statement.
        pairs: List of pairs of cells `(higher, lower)`, a cell being `(row,
            column)`: the first has the higher number.
    """

    text: str
    pairs: list


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table or a figure of a paper.

    Attributes:
        name: Of the command line.
        paper: Authors and year.
        place: "table 1", say.
        title: What it shows, in a line.
        unit: What the numbers are, "test accuracy, %" say.
        full: The paper's networks, data and protocol.
        small: What the small form has instead.
        order: The order that the paper lets expect.
        minutes: What the small form took here, all of its runs on a thread
            each.
        published: Dict `(row, column)` -> the paper's number.
        cells: Function of a scale, "small" or "full", that returns the
            list of its cells, row by row.
        claims: List of `Claim`s, of cells that some scale has.
        seeds: How many seeds by default.
        digits: Of the numbers, after the point.
        remarks: What is to be known to read the results, where they differ
            from the paper's say; Markdown.
        draw: Function that draws it, as `figures.lines`; None for that one.
    """

    name: str
    paper: str
    place: str
    title: str
    unit: str
    full: str
    small: str
    order: str
    minutes: int
    published: dict
    cells: Callable
    claims: list
    seeds: int = 3
    digits: int = 1
    remarks: str = ""
    draw: Callable | None = None

    def figure(self, row, column):
        """The paper's number.

        Args:
            row, column: Labels of a cell.

        Returns:
            A text, with as many digits as the longest of the table's numbers;
            "" if the paper has none.
        """
        if (row, column) not in self.published:
            return ""
        digits = max(
            len(str(number).partition(".")[2].rstrip("0"))
            for number in self.published.values()
        )
        return f"{self.published[row, column]:.{digits}f}"

    def trainings(self, scale, seeds):
        """The runs of a scale, each once.

        Args:
            scale: "small" or "full".
            seeds: Number of seeds.

        Returns:
            List of configurations.
        """
        runs = {}
        for cell in self.cells(scale):
            for seed in range(seeds):
                config = with_seed(cell.config, seed)
                for run in (*required(config), config):
                    runs[json.dumps(run, sort_keys=True)] = run
        return list(runs.values())


def with_seed(config, seed):
    """A configuration with the seed of a run; a given one stays.

    Args:
        config: A dict; those inside it get no seed.
        seed: An integer.
    """
    return {"seed": seed, **config}


def overridden(config, change):
    """A configuration with other values, in the dicts inside it, too.

    Args:
        config: A dict.
        change: Function of a key and its value that returns the new value.
    """
    return {
        key: overridden(value, change)
        if isinstance(value, dict)
        else change(key, value)
        for key, value in config.items()
    }


def required(config):
    """The runs that a run needs, each before those that need it.

    Args:
        config: A run's configuration.

    Returns:
        List of configurations.
    """
    found = []
    for value in config.values():
        if isinstance(value, dict):
            found += required(value)
            if "task" in value:
                found.append(value)
    return found


def published(rows, columns):
    """Dict of the paper's figures, of row -> figures."""
    return {
        (row, column): figure
        for row, figures in rows.items()
        for column, figure in zip(columns, figures, strict=True)
        if figure is not None
    }


def over(columns, higher, lower):
    """The pairs of two rows, in these columns."""
    return [((higher, column), (lower, column)) for column in columns]
