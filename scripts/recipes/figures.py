"""Pictures of tables."""

import numpy as np

from tfkd.analysis.figures import panels, styles, tidy


def lines(path, outcome):
    """A line for each row over the columns, here and in the paper.

    Args:
        path: File of the picture.
        outcome: A `report.Outcome`.
    """
    table = outcome.table
    published = [c for c in outcome.columns if _of_paper(table, c)]
    figure, axes = panels(2 if published else 1, width=5.4, height=4.4)
    figure.suptitle(f"{table.name}: {table.title}", x=0.01, ha="left")
    for row, (line, color) in zip(outcome.rows, styles(), strict=False):
        style = {"ls": line, "color": color, "label": row, "marker": "o"}
        known = [c for c in outcome.columns if outcome.given(row, c)]
        values = [outcome.given(row, c) for c in known]
        spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
        axes[0].errorbar(
            [outcome.columns.index(c) for c in known],
            [np.mean(v) for v in values],
            spread,
            capsize=3,
            ms=4,
            **style,
        )
        if published:
            theirs = [c for c in published if (row, c) in table.published]
            axes[1].plot(
                [outcome.columns.index(c) for c in theirs],
                [table.published[row, c] for c in theirs],
                ms=4,
                **style,
            )
    titles = ("here, mean ± standard deviation", f"{table.paper}")
    for panel, title in zip(axes, titles, strict=False):
        tidy(panel, title=title)
        panel.set_xticks(range(len(outcome.columns)), outcome.columns)
    axes[0].set_ylabel(table.unit)
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def _of_paper(table, column):
    return any(name == column for _, name in table.published)
