"""How fast each credit learns: score against environment steps, and against all steps asked of the simulator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

LABELS = {
    "score": "score (0 random play,\n1 best reachable)",
    "return": "return",
    "culprit_auc": "culprit AUC\n(.5 is chance)",
    "unit_auc": "AUC of the units that\nmatter (.5 is chance)",
    "credit_pearson": "correlation of credit\nwith the true credit",
    "env_steps": "environment steps per seed",
    "total_steps": "simulator steps per seed (environment + counterfactual; log scale)",
}


def needs(data: Data) -> str:
    """Curve points of `score` or `return`."""
    return "" if style.metric(data, "score", "return") else "needs the metric score or return along training"


@style.styled
def draw(
    data: Data,
    budget: Literal["env_steps", "total_steps"] = "env_steps",
    columns: int = 4,
    metrics: Sequence[str] = ("score", "return"),
    remark: str = "",
) -> Figure:
    """One panel a game setting: IQM over seeds with its interval, every run faint behind it.

    metrics: the first that is defined is drawn; remark: small print of its own.
    """
    metric = style.metric(data, *metrics)
    rows = data.rows[data.rows["metric"] == metric]
    rows = rows.assign(total_steps=rows["env_steps"] + rows["simulator_steps"])
    if budget == "total_steps" and (rows["env_steps"] > 0).any():
        rows = rows[rows["env_steps"] > 0]  # a logarithm has no place for the point before training
    cells, columns = _grid(data, columns)
    deep = -(-len(cells) // columns)
    width = style.PAGE if columns > 1 else style.COLUMN
    methods = style.looks(rows)
    entries = [look.line() for look in methods]
    side = min(4 if columns > 1 else 2, len(entries))
    height = deep * (1.3 if columns > 1 else 2.1) + 0.5 + 0.14 * -(-len(methods) // side)
    note = "Lines: IQM over seeds; bands: its 95% stratified bootstrap interval at each point; faint lines: single runs"
    note += "; a line ends with its shortest run" * _unequal(rows) + remark
    figure, body = style.page(width, height, data, note)
    panels = body.subplots(deep, columns, squeeze=False, sharex=True, sharey=True)
    for k, axes in enumerate(panels.flat):
        if k >= len(cells):
            axes.set_axis_off()
            continue
        game, knobs, label = cells[k]
        here = rows[(rows["game"] == game) & (rows["knobs"] == knobs)]
        for look in methods:
            _curve(axes, here[here["method"] == look.name], look, budget)
        axes.set_title(style.wrap(label, 34))
        axes.tick_params(labelbottom=k + columns >= len(cells))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="y", linewidth=0.3, color="#dddddd")
        if budget == "total_steps" and (rows["total_steps"] > 0).any():
            axes.set_xscale("log")
    body.supxlabel(LABELS[budget], fontsize=7)
    body.supylabel(LABELS[str(metric)], fontsize=7)
    body.legend(handles=entries, loc="outside upper center", ncols=side, handlelength=3)
    return figure


def _grid(data: Data, columns: int) -> tuple[list[tuple[str, str, str]], int]:
    """The settings in panel order and the number of columns; a full n_agents x delay grid lies as in the phase map."""
    cells = style.settings(data)
    if set(style.varying(data.configs)) == {"n_agents", "delay"} and data.rows["game"].nunique() == 1:
        knobs = {text: json.loads(text) for _, text, _ in cells}
        sizes, delays = ({k[name] for k in knobs.values() if name in k} for name in ("n_agents", "delay"))
        if len(cells) == len(sizes) * len(delays):
            return sorted(cells, key=lambda cell: (-knobs[cell[1]]["delay"], knobs[cell[1]]["n_agents"])), len(sizes)
    return cells, min(columns, len(cells))


def _reached(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Of each point of a method's curve: have all its runs come so far?"""
    return rows.groupby("env_steps")["seed"].nunique().to_numpy() == rows["seed"].nunique()


def _unequal(rows: pd.DataFrame) -> bool:
    """Do some runs of one method on one game end before others?"""
    return any(not _reached(part).all() for _, part in rows.groupby(["game", "knobs", "method"]))


def _curve(axes: Axes, rows: pd.DataFrame, look: style.Look, budget: str) -> None:
    """One method in one panel."""
    if rows.empty:
        return
    steps = np.sort(rows["env_steps"].unique())
    runs = style.table(rows, "env_steps")
    asked = (
        rows.groupby("env_steps")[budget].median().to_numpy(dtype=float)
    )  # seeds may be charged slightly different counts
    band = statistics.bands(np.where(_reached(rows), runs, np.nan))  # the survivors alone would be another population
    single = [np.column_stack([asked, run]) for run in runs]
    axes.add_collection(LineCollection(single, colors=look.colour, linewidths=0.35, alpha=0.25))
    axes.fill_between(asked, band.low, band.high, color=look.colour, alpha=0.18, linewidth=0)
    every = (look.rank % 3, max(1, len(steps) // 5))
    axes.plot(
        asked, band.value, color=look.colour, linestyle=look.dash, marker=look.marker, markersize=2.5, markevery=every
    )


FIGURES = {"learning_curves": draw, "learning_curves_simulator": partial(draw, budget="total_steps")}
