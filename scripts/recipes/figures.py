"""Pictures of tables."""

import numpy as np

from tfkd.analysis.figures import COLORS, panels, styles, tidy

# Of the distance between two columns: where the rows' lines are beside each
# other, their deviations can be told apart.
_SPREAD = 0.16


def lines(path, outcome):
    """A line for each row over the columns, here and in the paper.

    For columns that are steps of something: images, noise, depth. Rows that
    the paper has not are left to the table, if it has others.

    Args:
        path: File of the picture.
        outcome: A `report.Outcome`.
    """
    table = outcome.table
    published = [c for c in outcome.columns if _of_paper(table, c)]
    figure, axes = panels(2 if published else 1, width=5.2, height=4.4)
    _title(figure, table)
    theirs = {row for row, _ in table.published}
    rows = [row for row in outcome.rows if row in theirs or not theirs]
    shifts = np.linspace(-_SPREAD / 2, _SPREAD / 2, len(rows))
    for row, shift, (line, color) in zip(rows, shifts, styles(), strict=False):
        style = {"ls": line, "color": color, "marker": "o", "ms": 4}
        known = [c for c in outcome.columns if outcome.given(row, c)]
        means, deviations = _numbers(outcome, row, known)
        axes[0].errorbar(
            [outcome.columns.index(c) + shift for c in known],
            means,
            deviations,
            capsize=2,
            label=row,
            **style,
        )
        if published:
            known = [c for c in published if (row, c) in table.published]
            axes[1].plot(
                [outcome.columns.index(c) for c in known],
                [table.published[row, c] for c in known],
                **style,
            )
    titles = ("here, mean ± standard deviation", table.paper)
    for panel, title in zip(axes, titles, strict=False):
        tidy(panel, title=title)
        panel.set_xticks(range(len(outcome.columns)), outcome.columns)
    axes[0].set_ylabel(table.unit)
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def dots(path, outcome):
    """A dot for each row, a panel a column, here and in the paper.

    For columns that are of different kinds: networks, data.

    Args:
        path: File of the picture.
        outcome: A `report.Outcome`.
    """
    table = outcome.table
    drawn = [(c, "here") for c in outcome.columns]
    drawn += [(c, table.paper) for c in outcome.columns if _of_paper(table, c)]
    height = 1.4 + 0.28 * len(outcome.rows)
    figure, axes = panels(len(drawn), width=3.8, height=height)
    _title(figure, table)
    for panel, (column, whose) in zip(axes, drawn, strict=True):
        if whose == "here":
            known = [row for row in outcome.rows if outcome.given(row, column)]
            pairs = [_numbers(outcome, row, [column]) for row in known]
            values = [means[0] for means, _ in pairs]
            deviations = [deviations[0] for _, deviations in pairs]
        else:
            known = [
                row for row in outcome.rows if (row, column) in table.published
            ]
            values = [table.published[row, column] for row in known]
            deviations = None
        panel.errorbar(
            values,
            [outcome.rows.index(row) for row in known],
            xerr=deviations,
            fmt="o",
            capsize=3,
            color=COLORS[whose != "here"],
        )
        tidy(panel, title=f"{column}\n{whose}", xlabel=table.unit)
        panel.set_ylim(len(outcome.rows) - 0.5, -0.5)
        panel.set_yticks(range(len(outcome.rows)))
        panel.set_yticklabels([])
    axes[0].set_yticklabels(outcome.rows)
    figure.savefig(path, dpi=110)


def _numbers(outcome, row, columns):
    """Mean and deviation of a row's cells, two lists."""
    cells = [outcome.given(row, column) for column in columns]
    deviations = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in cells]
    return [float(np.mean(values)) for values in cells], deviations


def _title(figure, table):
    figure.suptitle(f"{table.name}: {table.title}", x=0.01, ha="left")


def _of_paper(table, column):
    return any(name == column for _, name in table.published)
