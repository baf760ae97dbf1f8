"""Does better credit learn more? Quality of each method's credit against its own final score, game by game."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures import Data, style
from benchmarks.figures.credit_scoreboard import MIDDLE, QUESTION, at_stage, games, note
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FIGURES", "QUESTION", "needs"]
COLUMNS = 4
QUALITY = {
    "learning": (("O3_credit_pearson",), "Pearson correlation with O3, the learning truth"),
    "culprit": (("O8_culprit_auc", "O6_culprit_auc"), "culprit AUC against O8 or O6, this episode (.5 is chance)"),
}


def needs(data: Data) -> str:
    """Final scores or returns beside scores of credit."""
    found = style.metric(data, "final_score", "final_return") and style.metric(data, "O3_credit_pearson")
    return "" if found else "needs final scores beside O3_credit_pearson (python -m benchmarks.credit)"


def points(cell_rows: pd.DataFrame, quality: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """method -> (quality of credit, final score or return), IQM over seeds, of one game."""
    judged, reached = at_stage(cell_rows, MIDDLE), final_metric(cell_rows)
    found = {}
    for look in style.looks(cell_rows):
        mine, ended = judged[judged["method"] == look.name], cell_rows[cell_rows["method"] == look.name]
        x = float(statistics.iqm(mine[mine["metric"].isin(quality)]["value"]))
        y = float(statistics.iqm(ended[ended["metric"] == reached]["value"]))
        if not np.isnan(x + y):
            found[look.name] = (x, y)
    return found


def final_metric(rows: pd.DataFrame) -> str:
    """The score where the game has one, else the return."""
    return "final_score" if (rows["metric"] == "final_score").any() else "final_return"


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's, over methods; NaN for fewer than three or without variation."""
    from scipy.stats import rankdata

    if len(pairs) < 3:
        return float("nan")
    x, y = (rankdata(np.round(column, 9)) for column in zip(*pairs, strict=True))
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")


@style.styled
def draw(data: Data, quality: str) -> Figure:
    """One mark a method; a panel a game, with the rank correlation over methods."""
    names, label = QUALITY[quality]
    panels, left_out = [], []
    for game, knobs, words in games(data):
        rows = data.rows[(data.rows["game"] == game) & (data.rows["knobs"] == knobs)]
        rows = rows[rows["family"] != "control"]
        found = points(rows, names)
        if found:
            panels.append((words, found, final_metric(rows)))
        else:
            left_out.append(words)
    methods = [look for look in style.looks(data.rows) if look.family != "control"]
    how = data.configs[0]
    told = (
        f"{note(data)}. Final score: of the method's own training, {how['budget']}, the learner's own policy (greedy "
        f"for Q-learners) on {how['evaluation']['final episodes']} fresh episodes. Marks: IQM over seeds, no interval; "
        "rho: Spearman over methods; methods whose score is undefined in a game are not in its panel"
    )
    if left_out:
        told += f". Defined for no method, so not shown: {', '.join(left_out)}"
    deep, legend = -(-len(panels) // COLUMNS), -(-len(methods) // 5)
    figure, body = style.page(style.PAGE, 1.75 * deep + 0.13 * legend + 0.3, data, told)
    grid = body.subplots(deep, min(COLUMNS, len(panels)), squeeze=False)
    looks = {look.name: look for look in methods}
    for k, axes in enumerate(grid.flat):
        if k >= len(panels):
            axes.set_axis_off()
            continue
        words, found, reached = panels[k]
        _panel(axes, found, looks)
        axes.set_title(f"{style.wrap(words, 30)}\nrho = {rank_correlation(list(found.values())):.2f}")
        axes.set_ylabel(reached.replace("_", " "))
    body.supxlabel(label, fontsize=7)
    entries = [_mark(look) for look in methods]
    body.legend(handles=entries, loc="outside upper center", ncols=5, fontsize=5.5, columnspacing=1, handletextpad=0.2)
    return figure


def _mark(look: style.Look) -> Line2D:
    """A method's mark in the legend."""
    line = look.line()
    line.set_linestyle("none")
    line.set_markerfacecolor(_face(look))
    return line


def _face(look: style.Look) -> str:
    """Filled, or white where the family has one colour and another of its methods has it already."""
    return "white" if look.rank % 2 and len(style.COLOURS.get(look.family, "12")) == 1 else look.colour


def _panel(axes: Axes, found: dict[str, tuple[float, float]], looks: dict[str, style.Look]) -> None:
    for name, (x, y) in found.items():
        look = looks[name]
        axes.plot(x, y, look.marker, color=look.colour, markerfacecolor=_face(look), markersize=4.5, alpha=0.9)
    axes.margins(0.08)


FIGURES = {f"credit_scatter_{name}": partial(draw, quality=name) for name in QUALITY}
