"""Difficulty: along one knob at a time, how far and how fast does learning get from random play to the best?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import results, statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "difficulty"
COLUMNS = 6
EARLY = 1 / 8  # of the budget: where learning is still under way, so that what slows it down shows
EARLY_DASH: Any = (0, (5, 1.5))
Panel = tuple[str, str, list[tuple[Any, str]]]  # game, knob, [(value, cell id)] in order


def needs(data: Data) -> str:
    """Cells of the question `difficulty`."""
    asked = {str(config.get("question")) for config in data.configs}
    return "" if asked == {QUESTION} else f"needs cells of the question {QUESTION}"


def panels(data: Data) -> list[Panel]:
    """One a (game, knob): the cells that differ from the game's commonest knobs in that knob alone.

    A knob that is None in some cells stands for a rule of the game; it counts as a value of its own.
    """
    out: list[Panel] = []
    for game in sorted({config["game"] for config in data.configs}):
        mine = [config for config in data.configs if config["game"] == game]
        names = [k for k in mine[0]["knobs"] if len({str(c["knobs"][k]) for c in mine}) > 1]
        base = {k: _commonest([c["knobs"][k] for c in mine]) for k in names}
        for name in names:
            cells = [c for c in mine if all(c["knobs"][k] == base[k] for k in names if k != name)]
            found = [(c["knobs"][name], results.cell_id(c)) for c in cells]
            out.append((game, name, sorted(found, key=lambda pair: style.order(pair[0]))))
    return out


def _commonest(values: list[Any]) -> Any:
    return max(values, key=values.count)


@style.styled
def draw(data: Data, columns: int = COLUMNS) -> Figure:
    """IQM over seeds along each knob, at the end, early and before learning; raw return where there is no score."""
    found = panels(data)
    deep = -(-len(found) // columns)
    note = (
        "Lines: IQM over seeds and its 95% bootstrap interval, at the end of learning, after an eighth of it, and "
        "before it (nearly uniform play); the other knobs keep their commonest values; dotted: best reachable (1) and "
        "random play (0)"
    )
    figure, body = style.page(style.PAGE, 1.12 * deep + 0.3, data, note)
    axes_of = body.subplots(deep, columns, squeeze=False)
    learner = style.looks(data.rows)[0]
    for k, axes in enumerate(axes_of.flat):
        if k < len(found):
            _panel(axes, data.rows, found[k], learner)
        else:
            axes.set_axis_off()
    entries = [
        learner.line(f"{learner.label}, whole budget", "-"),
        learner.line(f"{learner.label}, an eighth of it", EARLY_DASH),
        style.plain_line("before learning"),
    ]
    body.legend(handles=entries, loc="outside upper center", ncols=3)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, panel: Panel, learner: style.Look) -> None:
    """One knob of one game: the values in order, evenly spaced."""
    game, knob, cells = panel
    mine = rows[rows["cell"].isin([cell for _, cell in cells])]
    scored = bool((mine["metric"] == "final_score").any())
    running = mine[mine["metric"] == ("score" if scored else "return")]
    wanted = EARLY * running.groupby("cell")["env_steps"].transform("max")
    away = (running["env_steps"] - wanted).abs()
    early = running[away == away.groupby(running["cell"]).transform("min")]
    last = mine[mine["metric"] == ("final_score" if scored else "final_return")]
    lines = (
        (running[running["env_steps"] == 0], "#888888", "o", (0, (2, 1))),
        (early, learner.colour, learner.marker, EARLY_DASH),
        (last, learner.colour, learner.marker, "-"),
    )
    for part, colour, marker, dash in lines:
        estimates = [statistics.interval(part[part["cell"] == cell]["value"].to_numpy()) for _, cell in cells]
        middle, low, high = (np.array([getattr(e, f) for e in estimates]) for f in ("value", "low", "high"))
        errors = np.stack([middle - low, high - middle])
        axes.errorbar(range(len(cells)), middle, errors, color=colour, marker=marker, markersize=3, linestyle=dash)
    axes.set_xticks(range(len(cells)), [style.short(value) for value, _ in cells])
    axes.set_xlim(-0.3, len(cells) - 0.7)
    axes.set_xlabel(knob, labelpad=1)
    axes.set_title(game.removeprefix("credit/").rsplit("-v", 1)[0], fontsize=5.8, fontweight="bold")
    if scored:
        axes.set_ylim(-0.3, 1.1)
        axes.set_yticks([0, 0.5, 1])
        for level in (0, 1):
            axes.axhline(level, color="#888888", linewidth=0.6, linestyle=":", zorder=0)
    axes.set_ylabel("score" if scored else "return", labelpad=1)


FIGURES = {"difficulty": draw}
