"""The price of delay: score, and whether blame finds the culprit, against delay and length; a line a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "temporal"
SHOWN = (
    "team + return",
    "team + recency",
    "team + TD",
    "team + GAE",
    "potential V + return",
    "potential V* + return",
    "IRCR + return",
    "RUDDER + immediate",
    "HCA return",
    "COCOA reward",
    "reference O8",
)
"""The lines of the figure; the table that the question prints has all methods."""


class Sweep(NamedTuple):
    """A column: what moves, and which score of blame or credit its game has."""

    game: str
    knob: str
    label: str
    quality: str
    said: str


SWEEPS = (
    Sweep("walking_robot", "delay", "delay D (T = 100)", "walk_culprit_auc", "culprit AUC"),
    Sweep("walking_robot", "horizon", "horizon T (D = 20)", "walk_culprit_auc", "culprit AUC"),
    Sweep("key_door", "horizon", "horizon T = delay + 1", "walk_unit_auc", "unit AUC"),
)
NOTE = (
    "Marks: IQM over seeds with its 95% bootstrap interval. Below: area under the ROC curve on 64 episodes of "
    "uniformly random play a seed, after what a method learns was fitted to 100 batches of such play. Culprit AUC: "
    "does -credit find the mistake in failed episodes? Unit AUC (nothing fails on key_door): does |credit| find the "
    "steps with |O8| > .05 of the episode's largest? Dotted: chance. Recency: the return discounted by .9, less its "
    "mean over the batch"
)


def needs(data: Data) -> str:
    """Cells of the question `temporal` that sweep a knob."""
    asked = {str(config.get("question")) for config in data.configs}
    if asked != {QUESTION}:
        return f"needs cells of the question {QUESTION}"
    return "" if any(len(_swept(data.rows, sweep)) for sweep in SWEEPS) else "needs walking_robot or key_door"


@style.styled
def draw(data: Data) -> Figure:
    """A column a sweep: score above, quality of the credit below."""
    shown = data.rows[data.rows["method"].isin(SHOWN)]
    rows = shown if len(shown) else data.rows
    methods = style.looks(rows)
    left = data.rows["method"].nunique() - len(methods)
    sweeps = [sweep for sweep in SWEEPS if len(_swept(rows, sweep))]
    note = NOTE + (f". {left} more methods are in the table" if left else "")
    figure, body = style.page(style.PAGE, 2 * 1.65 + 0.75, data, note)
    panels = body.subplots(2, len(sweeps), squeeze=False, sharex="col", sharey="row")
    for j, sweep in enumerate(sweeps):
        here = _swept(rows, sweep)
        for i, metric in enumerate(("final_score", sweep.quality)):
            for k, look in enumerate(methods):
                mine = here[(here["method"] == look.name) & (here["metric"] == metric)]
                _line(panels[i, j], mine, look, sweep.knob, (k - (len(methods) - 1) / 2) / len(methods))
        _furnish((panels[0, j], panels[1, j]), sweep, sorted(here[sweep.knob].unique()))
    panels[0, 0].set_ylabel("final score\n(0 random, 1 best)")
    chance = Line2D([], [], color="#888888", linewidth=0.8, linestyle=":", label="chance (.5)")
    entries = [*(look.line() for look in methods), chance]
    body.legend(handles=entries, loc="outside upper center", ncols=4, handlelength=3)
    return figure


def _swept(rows: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """The rows of a sweep; the two of walking_robot are told apart by their windows."""
    mine = rows[rows["game"].str.contains(sweep.game)]
    if sweep.game != "walking_robot" or not len(mine):
        return mine
    return mine[mine["window"] == (20 if sweep.knob == "delay" else 10)]


def _line(axes: Axes, rows: pd.DataFrame, look: style.Look, knob: str, aside: float) -> None:
    """One method in one panel; `aside` moves its marks, lest they hide others."""
    places = sorted(rows[knob].unique())
    found = [statistics.interval(rows[rows[knob] == x].sort_values("seed")["value"].to_numpy()) for x in places]
    known = [(float(x), e) for x, e in zip(places, found, strict=True) if not np.isnan(e.value)]
    if not known:
        return
    step = min(np.diff(places), default=1.0) if len(places) > 1 else 1.0
    middle = np.array([float(e.value) for _, e in known])
    ends = np.array([[float(e.low), float(e.high)] for _, e in known]).T
    errors = np.nan_to_num(np.abs(ends - middle))
    how = {"color": look.colour, "linestyle": look.dash, "marker": look.marker}
    xs = np.array([x for x, _ in known]) + 0.25 * aside * step
    axes.errorbar(xs, middle, errors, markersize=2.6, linewidth=1.0, elinewidth=0.6, **how)


def _furnish(column: tuple[Axes, Axes], sweep: Sweep, places: list[float]) -> None:
    """Scales, and the lines that mean something."""
    above, below = column
    above.set_title(sweep.game, fontweight="bold")
    below.set_xlabel(sweep.label, labelpad=1)
    below.set_xticks(places, [style.short(x) for x in places])
    below.set_ylabel(sweep.said, labelpad=1)
    above.set_ylim(-0.5, 1.12)
    below.set_ylim(-0.04, 1.06)
    for axes, levels in ((above, (0, 1)), (below, (0.5,))):
        axes.grid(axis="y", linewidth=0.3, color="#dddddd")
        for level in levels:
            axes.axhline(level, color="#888888", linewidth=0.8, linestyle=":", zorder=0)


FIGURES = {"temporal": draw}
