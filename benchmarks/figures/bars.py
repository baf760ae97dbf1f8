"""How good is each credit over all cells together: the final score with its interval, each cell as a dot behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import statistics

LABELS = {"final_score": "final score (0 random play, 1 best reachable)", "final_return": "final return"}


def needs(data: Data) -> str:
    """Final scores; or, where no optimum is known, final returns of a single game setting."""
    if style.metric(data, "final_score"):
        return ""
    if style.metric(data, "final_return") is None:
        return "needs final_score or final_return"
    one = len(style.settings(data)) == 1
    return "" if one else "needs final_score: returns of different settings cannot be averaged"


@style.styled
def draw(data: Data) -> Figure:
    """IQM over seeds and cells, by family and rank; game settings are the strata of the interval."""
    metric = style.metric(data, "final_score", "final_return")
    rows = data.rows[data.rows["metric"] == metric]
    methods = style.looks(rows)
    settings = len(style.settings(data))
    over = f"seeds and {settings} game settings" if settings > 1 else "seeds"
    note = f"Bars: IQM over {over}; black and in brackets: its 95% stratified bootstrap interval; dots: single settings"
    figure, body = style.page(0.72 * style.PAGE, 0.2 * len(methods) + 0.6, data, note)
    axes = body.subplots()
    for k, look in enumerate(methods):
        runs = style.table(rows[rows["method"] == look.name], "cell")
        all_cells = statistics.interval(runs)
        each = statistics.iqm(runs, axis=0)
        axes.barh(k, float(all_cells.value), height=0.62, color=look.colour, alpha=0.5)
        dots: dict[str, Any] = {
            "color": "white",
            "markeredgecolor": look.colour,
            "markeredgewidth": 0.5,
            "markersize": 4,
        }
        axes.plot(each, np.full(each.size, k), ".", **dots)
        words = f"{all_cells.value:z.2f}"
        if not np.isnan(all_cells.low):
            axes.plot([all_cells.low, all_cells.high], [k, k], color="#222222", linewidth=1.4, solid_capstyle="butt")
            words += f" [{all_cells.low:z.2f}, {all_cells.high:z.2f}]"
        axes.annotate(words, (1.01, k), xycoords=axes.get_yaxis_transform(), va="center", fontsize=6)
    axes.set_yticks(range(len(methods)), [look.label for look in methods])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    if metric == "final_score":
        axes.set_xlim(min(0.0, axes.get_xlim()[0]), max(1.02, axes.get_xlim()[1]))
        axes.axvline(1.0, color="#888888", linewidth=0.6, linestyle=(0, (4, 2)), zorder=0)
    axes.axvline(0.0, color="#222222", linewidth=0.6)
    axes.set_xlabel(LABELS[str(metric)])
    return figure


FIGURES = {"bars": draw}
