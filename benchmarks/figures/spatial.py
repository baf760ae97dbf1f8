"""The price of team size: score, credit quality and simulator steps against N, a column a game, a line a method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "spatial"
SHOWN = (
    "team + return",
    "difference + return",
    "aristocrat + return",
    "D++ + return",
    "Shapley + return",
    "Dr.ReinforceR",
    "COMA",
    "D++ on episodes",
    "IQL on difference",
    "QMIX",
)
"""The lines of the figure; the table that the question prints has all methods."""
QUALITY = "walk_credit_pearson"
ROWS = (
    ("final_score", "final score\n(0 random, 1 best)"),
    (QUALITY, "correlation of credit\nwith the true credit"),
    ("asked", "all steps /\nenvironment steps"),
)


def needs(data: Data) -> str:
    """Cells of the question `spatial` that differ in n_agents."""
    asked = {str(config.get("question")) for config in data.configs}
    if asked != {QUESTION}:
        return f"needs cells of the question {QUESTION}"
    return "" if "n_agents" in style.varying(data.configs) else "needs more than one n_agents"


@style.styled
def draw(data: Data) -> Figure:
    """IQM over seeds with its interval; quality is of one seed's 64 episodes of uniformly random play."""
    rows = data.rows[data.rows["method"].isin(SHOWN)]
    methods = style.looks(rows)
    games = sorted(rows["game"].unique())
    left = len(set(data.rows["method"])) - len(methods)
    note = (
        "Score: IQM over seeds with its 95% bootstrap interval. Correlation: Pearson's with each agent's difference "
        "from its default action (O8), on 64 episodes of uniformly random play, the same for all methods, no interval; "
        "undefined where the credit is constant. Steps: environment plus counterfactual ones, per environment step. "
        "A line ends where its method became too dear; scores below -0.3 lie beneath the panel"
        + (f". {left} more methods are in the table" if left else "")
    )
    figure, body = style.page(style.PAGE, 3 * 1.2 + 0.7, data, note)
    panels = body.subplots(len(ROWS), len(games), squeeze=False, sharex="col", sharey="row")
    for j, game in enumerate(games):
        here = rows[rows["game"] == game]
        for i, (metric, label) in enumerate(ROWS):
            axes = panels[i, j]
            for k, look in enumerate(methods):
                aside = 1 + 0.02 * (k - (len(methods) - 1) / 2)
                _line(axes, here[here["method"] == look.name], look, metric, aside)
            _furnish(axes, metric, sorted(here["n_agents"].unique()))
            axes.set_ylabel(label if j == 0 else "")
        panels[0, j].set_title(game.removeprefix("credit/").rsplit("-v", 1)[0], fontweight="bold", fontsize=6.5)
        panels[-1, j].set_xlabel("agents N", labelpad=1)
    body.legend(handles=[look.line() for look in methods], loc="outside upper center", ncols=4, handlelength=3)
    return figure


def _line(axes: Axes, rows: pd.DataFrame, look: style.Look, metric: str, aside: float) -> None:
    """One method in one panel; `aside` moves its marks, lest they hide others."""
    if metric == "asked":
        last = rows[rows["env_steps"] > 0].groupby("n_agents")[["env_steps", "simulator_steps"]].max()
        ratio = 1 + last["simulator_steps"] / last["env_steps"]
        sizes, middle, errors = ratio.index.to_numpy(dtype=float), ratio.to_numpy(dtype=float), None
    else:
        mine = rows[rows["metric"] == metric]
        sizes = np.array(sorted(mine["n_agents"].unique()), dtype=float)
        found = [statistics.interval(mine[mine["n_agents"] == n]["value"].to_numpy()) for n in sizes]
        middle = np.array([float(e.value) for e in found])
        ends = np.array([[float(e.low), float(e.high)] for e in found]).reshape(-1, 2).T
        errors = np.nan_to_num(np.abs(ends - middle))
    if len(sizes):
        how = {"color": look.colour, "linestyle": look.dash, "marker": look.marker}
        axes.errorbar(sizes * aside, middle, errors, markersize=2.6, linewidth=0.9, elinewidth=0.6, **how)


def _furnish(axes: Axes, metric: str, sizes: list[int]) -> None:
    """Scales and the lines that mean something."""
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.grid(axis="y", linewidth=0.3, color="#dddddd")
    if metric == "asked":
        axes.set_yscale("log")
        return
    axes.set_ylim(-0.3, 1.1)
    axes.set_yticks([0, 0.5, 1])
    for level in (0, 1):
        axes.axhline(level, color="#888888", linewidth=0.6, linestyle=":", zorder=0)


FIGURES = {"spatial": draw}
