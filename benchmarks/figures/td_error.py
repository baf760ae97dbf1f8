"""One failed walk, step by step: what V* says, what a learned V says, and how far back its trace reaches."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.figures import Data, style
from benchmarks.figures.credit_heatmap import failed_walk

QUESTION = "td_error"
ORDER = ("TD error of V*", "TD error of a learned V", "trace of a learned V")
COLUMNS = {"none": "the damage is hidden", "critic": "the critic sees the damage", "all": "everybody sees the damage"}


def needs(data: Data) -> str:
    """Credit maps of a failed walk."""
    if data.credit.empty or not failed_walk(data.credit):
        return "needs credit maps of a failed walk"
    return ""


@style.styled
def draw(data: Data) -> Figure:
    """A row a signal, a column a game setting; the same walk everywhere."""
    settings = style.settings(data)
    methods = sorted(style.looks(data.credit), key=lambda look: ORDER.index(look.name))
    note = (
        "Bars: the signal at each step, the mean over agents (a team's is the same for all), in units of return. "
        "Star: the mistake, by the truth (O8). Line: the end of the walk. One walk of uniformly random play, to whose "
        "policy the learned V was fitted; no interval"
    )
    figure, body = style.page(style.PAGE if len(settings) > 1 else style.COLUMN, 0.95 * len(methods) + 0.6, data, note)
    panels = body.subplots(len(methods), len(settings), squeeze=False, sharex=True, sharey="row")
    for j, (game, knobs, label) in enumerate(settings):
        here = data.credit[(data.credit["game"] == game) & (data.credit["knobs"] == knobs)]
        walks = failed_walk(here)
        for i, look in enumerate(methods):
            axes = panels[i, j]
            if look.name in walks:
                walk = walks[look.name]
                _bars(axes, walk.value, walk.culprits, walk.end, look.colour)
            if j == 0:
                axes.set_ylabel(style.wrap(look.label, 18))
        who = label.removeprefix("observe_damage=")
        panels[0, j].set_title(COLUMNS.get(who, label), fontweight="bold", fontsize=6.5)
        panels[-1, j].set_xlabel("step")
    return figure


def _bars(axes: Axes, value: NDArray[np.float64], culprits: NDArray[np.bool_], end: int, colour: str) -> None:
    """One signal on one walk [T, N]."""
    line = value[:end].mean(axis=1)
    axes.bar(np.arange(end), line, color=colour, width=0.9)
    axes.set_axisbelow(True)
    axes.axhline(0.0, color="#222222", linewidth=0.5)
    axes.axvline(end - 0.5, color="#222222", linewidth=0.9, linestyle=(0, (3, 2)))
    axes.set_xlim(-0.5, len(value) - 0.5)
    when = np.flatnonzero(culprits.any(axis=1))
    axes.plot(
        when,
        np.full(len(when), 0.04),
        "*",
        transform=axes.get_xaxis_transform(),
        color="#ffd700",
        markeredgecolor="black",
        markeredgewidth=0.5,
        markersize=6,
        clip_on=False,
    )
    axes.grid(axis="y", linewidth=0.3, color="#dddddd")


FIGURES = {"td_error": draw}
