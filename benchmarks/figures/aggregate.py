"""One number a method hides much: three summaries of all runs, each with its interval, side by side."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import statistics

METRIC = "final_score"
SUMMARIES: tuple[tuple[str, statistics.Statistic], ...] = (
    ("IQM (higher is better)", statistics.iqm),
    ("median (higher is better)", statistics.median),
    ("optimality gap (lower is better)", statistics.optimality_gap),
)


def needs(data: Data) -> str:
    """Final scores: returns have no gap to an optimum."""
    return "" if style.metric(data, METRIC) else f"needs {METRIC}"


@style.styled
def draw(data: Data) -> Figure:
    """A panel a summary, a bar a method; game settings are the strata of the interval."""
    rows = data.rows[data.rows["metric"] == METRIC]
    methods = style.looks(rows)
    settings = len(style.settings(data))
    over = f"seeds and {settings} game settings" if settings > 1 else "seeds"
    note = (
        f"Bars: over {over}; black and in brackets: the 95% stratified bootstrap interval. "
        "Optimality gap: the mean of what is missing to score 1"
    )
    figure, body = style.page(style.PAGE, 0.24 * len(methods) + 0.6, data, note)
    panels = body.subplots(1, len(SUMMARIES), sharey=True)
    tables = [style.table(rows[rows["method"] == look.name], "cell") for look in methods]
    for axes, (label, summary) in zip(panels, SUMMARIES, strict=True):
        for k, (look, runs) in enumerate(zip(methods, tables, strict=True)):
            found = statistics.interval(runs, summary)
            axes.barh(k, float(found.value), height=0.62, color=look.colour, alpha=0.5)
            words = f"{found.value:z.2f}"
            if not np.isnan(found.low):
                axes.plot([found.low, found.high], [k, k], color="#222222", linewidth=1.4, solid_capstyle="butt")
                words += f"\n[{found.low:z.2f}, {found.high:z.2f}]"
            axes.annotate(words, (1.02, k), xycoords=axes.get_yaxis_transform(), va="center", fontsize=5, linespacing=1)
        axes.axvline(0.0, color="#222222", linewidth=0.6)
        low, high = axes.get_xlim()
        axes.set_xlim(min(0.0, low), max(1.02, high))
        axes.set_xlabel(label)
        axes.margins(y=0.02)
    panels[0].set_yticks(range(len(methods)), [look.label for look in methods])
    panels[0].invert_yaxis()
    return figure


FIGURES = {"aggregate": draw}
