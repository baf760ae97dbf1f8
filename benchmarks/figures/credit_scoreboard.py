"""The scoreboard: does credit follow the truth over agents (who), over steps (when), and beyond both (which)?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "credit"
TRUTH = "truth itself"
PARTS = {"who": "O5_split_who", "when": "O5_split_when", "which": "O5_split_which"}
SAYS = {"who": "who: over agents", "when": "when: over steps", "which": "which agent's which action"}
STAGES = ("before training", "half-way", "nearly trained")
MIDDLE = 1


def needs(data: Data) -> str:
    """Cells of the question `credit`."""
    return "" if style.metric(data, *PARTS.values()) else "needs the metric O5_split_who (python -m benchmarks.credit)"


def at_stage(rows: pd.DataFrame, stage: int) -> pd.DataFrame:
    """The rows of each game's stage 0, 1 or 2; final scores belong to none."""
    judged = rows[~rows["metric"].str.startswith("final_")]
    return judged[judged.groupby(["game", "knobs"])["env_steps"].rank("dense") == 1 + stage]


def defined(rows: pd.DataFrame, method: str, metric: str) -> float:
    """Of the episodes in which the truth's own score is defined, the share in which the method's is, in its games."""
    rows = rows[rows["metric"] == f"{metric}_defined"]
    mine, truth = rows[rows["method"] == method], rows[rows["method"] == TRUTH]
    possible = truth[truth["knobs"].isin(set(mine["knobs"]))]["value"].sum()
    return float(mine["value"].sum() / possible) if possible else float("nan")


def games(data: Data) -> list[tuple[str, str, str]]:
    """(game, knobs as JSON text, a name): its game's, with the first knob that tells it from others of that game."""
    found = [(game, json.loads(knobs), knobs) for game, knobs, _ in style.settings(data)]
    named = []
    for game, values, text in found:
        rivals = [other for its, other, its_text in found if its == game and its_text != text]
        telling = [k for k, v in values.items() if rivals and all(other.get(k) != v for other in rivals)]
        name = game.removeprefix("credit/").rsplit("-v", 1)[0].replace("_", " ")
        named.append((game, text, " ".join([name, *(f"{k}={style.short(values[k])}" for k in telling[:1])])))
    return named


def shared(data: Data) -> str:
    """What all methods were given, in the words of the cells."""
    how = data.configs[0]["evaluation"]
    return (
        f"Every method judges the same {how['episodes']} episodes of each policy; critics, models and Q-learners were "
        f"first fitted on {how['fitted on']} batches of the same policy's episodes; each seed has a policy, episodes "
        "and critics of its own"
    )


def note(data: Data) -> str:
    """The same, of the middle stage."""
    how = data.configs[0]["evaluation"]
    return f"Policies {STAGES[MIDDLE]} through training by {how['trained by']}. {shared(data)}"


@style.styled
def draw(data: Data) -> Figure:
    """Correlation of each part with O5's, over all games; percentages where it is not defined in every episode."""
    rows, methods = at_stage(data.rows, MIDDLE), style.looks(data.rows)
    count = len(style.settings(data))
    told = (
        f"{note(data)}. Marks: IQM over seeds and {count} games, black: its 95% stratified bootstrap interval; small "
        "dots: single games; in per cent: episodes in which the score is defined, of those in which the truth's is "
        "(a credit without any variation over agents names nobody); grey names: controls, made of the truth itself"
    )
    figure, body = style.page(style.PAGE, 0.135 * len(methods) + 0.55, data, told)
    panels = body.subplots(1, len(PARTS), sharey=True)
    for axes, (part, metric) in zip(panels, PARTS.items(), strict=True):
        for k, look in enumerate(methods):
            _score(axes, k, look, rows[(rows["method"] == look.name) & (rows["metric"] == metric)])
            share = defined(rows, look.name, metric)
            if share < 0.995:
                axes.annotate(
                    f"{share:.0%}",
                    (1.0, k),
                    xycoords=axes.get_yaxis_transform(),
                    ha="right",
                    va="center",
                    fontsize=5,
                    color="#666666",
                )
        axes.set_title(SAYS[part], fontweight="bold")
        axes.set_xlim(-1.05, 1.4)
        axes.set_xticks([-1, -0.5, 0, 0.5, 1])
        for level in (0, 1):
            axes.axvline(level, color="#888888", linewidth=0.6, linestyle=":", zorder=0)
        axes.set_xlabel("correlation with the truth (O5)")
    panels[0].set_yticks(range(len(methods)), [look.label for look in methods])
    for text, look in zip(panels[0].get_yticklabels(), methods, strict=True):
        text.set_color("#777777" if look.family == "control" else look.family_colour)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    return figure


def _score(axes: Axes, k: int, look: style.Look, rows: pd.DataFrame) -> None:
    """One method's mark, its interval and its games."""
    if rows["value"].notna().sum() == 0:
        return
    runs = style.table(rows, "cell")
    both = statistics.interval(runs)
    each = statistics.iqm(runs, axis=0)
    axes.plot(each, np.full(each.size, k), ".", color=look.colour, markersize=2.5, alpha=0.5, markeredgewidth=0)
    axes.plot([both.low, both.high], [k, k], color="#222222", linewidth=1.0, solid_capstyle="butt")
    axes.plot(float(both.value), k, look.marker, color=look.colour, markersize=4)


@style.styled
def by_game(data: Data) -> Figure:
    """The same correlations game by game, as numbers on one diverging scale."""
    rows, methods, across = at_stage(data.rows, MIDDLE), style.looks(data.rows), games(data)
    told = (
        f"{note(data)}. Numbers: IQM over seeds of the correlation with O5's part, no interval; grey: "
        "undefined for the truth or for the method; hatched: the method does not fit the game"
    )
    figure, body = style.page(style.PAGE, 0.12 * len(methods) + 1.5, data, told)
    panels = body.subplots(1, len(PARTS), sharey=True)
    for axes, (part, metric) in zip(panels, PARTS.items(), strict=True):
        table = np.full((len(methods), len(across)), np.nan)
        found = rows[rows["metric"] == metric]
        for k, look in enumerate(methods):
            for j, (game, knobs, _) in enumerate(across):
                mine = found[(found["method"] == look.name) & (found["game"] == game) & (found["knobs"] == knobs)]
                if mine.empty:
                    axes.fill_between(
                        [j - 0.5, j + 0.5],
                        k - 0.5,
                        k + 0.5,
                        facecolor="none",
                        edgecolor="#bbbbbb",
                        hatch="////",
                        linewidth=0,
                    )
                else:
                    table[k, j] = statistics.iqm(mine["value"])
        _numbers(axes, table)
        axes.set_title(SAYS[part], fontweight="bold")
        axes.set_xticks(range(len(across)), [name for *_, name in across], rotation=90, fontsize=5.5)
    panels[0].set_yticks(range(len(methods)), [look.label for look in methods])
    for text, look in zip(panels[0].get_yticklabels(), methods, strict=True):
        text.set_color("#777777" if look.family == "control" else look.family_colour)
    return figure


def _numbers(axes: Axes, table: Any) -> None:
    """Colours from -1 to 1 with the numbers on them."""
    axes.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_facecolor("#e6e6e6")
    for (k, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j, k, f"{value:z.1f}".replace("0.", "."), ha="center", va="center", fontsize=4.5, color=colour)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


FIGURES = {"credit_scoreboard": draw, "credit_by_game": by_game}
