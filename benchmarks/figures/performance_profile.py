"""What share of the runs gets beyond a score, for every score: above everywhere means better everywhere."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import statistics

METRIC = "final_score"
FINE, COARSE = 241, 41  # thresholds of a line and of its band


def needs(data: Data) -> str:
    """Final scores."""
    return "" if style.metric(data, METRIC) else f"needs {METRIC}"


@style.styled
def draw(data: Data) -> Figure:
    """One line a method over all seeds and settings, with the interval of the share at each threshold."""
    rows = data.rows[data.rows["metric"] == METRIC]
    methods = style.looks(rows)
    low = max(-0.5, min(0.0, float(rows["value"].min())))
    high = max(1.05, min(1.5, float(rows["value"].max())))
    settings = len(style.settings(data))
    over = f"seeds and {settings} game settings" if settings > 1 else "seeds"
    note = f"Lines: share of runs over {over}; bands: its 95% stratified bootstrap interval at each threshold"
    side = min(4, len(methods))
    figure, body = style.page(0.8 * style.PAGE, 2.4 + 0.14 * -(-len(methods) // side), data, note)
    axes = body.subplots()
    fine, coarse = np.linspace(low, high, FINE), np.linspace(low, high, COARSE)
    for look in methods:
        runs = style.table(rows[rows["method"] == look.name], "cell")
        band = statistics.profile_bands(runs, [float(t) for t in coarse])
        axes.fill_between(coarse, band.low, band.high, color=look.colour, alpha=0.13, linewidth=0)
        line = statistics.performance_profile(runs, [float(t) for t in fine])
        every = (7 * look.rank % 40, 40)
        axes.plot(fine, line, color=look.colour, linestyle=look.dash, marker=look.marker, markersize=3, markevery=every)
    axes.axvline(1.0, color="#888888", linewidth=0.6, linestyle=(0, (4, 2)), zorder=0)
    axes.set(
        xlim=(low, high), ylim=(-0.02, 1.02), xlabel="score \N{GREEK SMALL LETTER TAU} (0 random, 1 best reachable)"
    )
    axes.set_ylabel("share of runs with final score > \N{GREEK SMALL LETTER TAU}")
    axes.grid(linewidth=0.3, color="#dddddd")
    body.legend(handles=[look.line() for look in methods], loc="outside upper center", ncols=side, handlelength=3)
    return figure


FIGURES = {"performance_profile": draw}
