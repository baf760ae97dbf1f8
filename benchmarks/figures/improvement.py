"""How often does a run of one method beat a run of another on the same game? Every pair of methods, in one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 500  # a pair: there are many
MOST = 24  # methods that fit on a page


def needs(data: Data) -> str:
    """Final scores or returns of two methods or more in one setting."""
    metric = style.metric(data, "final_score", "final_return")
    if metric is None:
        return "needs final_score or final_return"
    rows = data.rows[data.rows["metric"] == metric]
    count = rows["method"].nunique()
    if count > MOST:
        return f"needs {MOST} methods or fewer, not {count}"
    together = (rows.groupby(["game", "knobs"])["method"].nunique() > 1).any()
    return "" if together else "needs two methods or more on one game setting"


def matrix(rows: pd.DataFrame, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """P(X > Y) [M, M], NaN on the diagonal, and [M, M] bool: its interval does not hold one half."""
    tables = _tables(rows, names)
    value = np.full((len(names), len(names)), np.nan)
    clear = np.zeros_like(value, dtype=bool)
    for i in range(len(names)):
        for j in range(i):
            found = statistics.probability_of_improvement(tables[i], tables[j], resamples=RESAMPLES)
            value[i, j], value[j, i] = found.value, 1 - found.value
            clear[i, j] = clear[j, i] = bool(found.low > 0.5 or found.high < 0.5)
    return value, clear


def _tables(rows: pd.DataFrame, names: list[str]) -> list[np.ndarray]:
    """Of each method [seeds, settings], the same settings in the same order."""
    wide = rows.pivot_table(index="seed", columns=["method", "game", "knobs"], values="value", dropna=False)
    settings = sorted({(game, knobs) for _, game, knobs in wide.columns})
    nothing = np.full(len(wide), np.nan)
    column = {key: wide[key].to_numpy(dtype=float) for key in wide.columns}
    return [np.column_stack([column.get((name, *place), nothing) for place in settings]) for name in names]


@style.styled
def draw(data: Data) -> Figure:
    """Row against column: the share of pairs of runs that the row's method wins."""
    rows = data.rows[data.rows["metric"] == style.metric(data, "final_score", "final_return")]
    methods = style.looks(rows)
    value, clear = matrix(rows, [look.name for look in methods])
    count = len(methods)
    note = (
        "P(X > Y): a random run of the row's method beats one of the column's on the same game setting (ties count "
        "half), averaged over settings that both have. "
        f"Bold: the 95% stratified bootstrap interval ({RESAMPLES} draws) excludes .5"
    )
    width = style.COLUMN + 0.4 if count <= 6 else style.PAGE
    side = min(0.36, (width - 2.4) / count)
    figure, body = style.page(width, side * count + 1.6, data, note)
    axes = body.subplots()
    image = axes.imshow(value, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
    size = 6.0 if side > 0.28 else 4.6
    for i, j in np.argwhere(~np.isnan(value)):
        dark = abs(value[i, j] - 0.5) > 0.32
        weight = "bold" if clear[i, j] else "normal"
        words = f"{value[i, j]:.2f}".replace("0.", ".", 1) if value[i, j] < 1 else "1"
        axes.text(
            j, i, words, ha="center", va="center", color="white" if dark else "black", fontsize=size, weight=weight
        )
    labels = [look.label for look in methods]
    axes.set_yticks(range(count), labels)
    axes.set_xticks(range(count), labels, rotation=90)
    axes.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    for tick, look in zip([*axes.get_yticklabels(), *axes.get_xticklabels()], methods * 2, strict=True):
        tick.set_color(look.family_colour)
    axes.spines[:].set_visible(False)
    bar = body.colorbar(image, ax=axes, aspect=30, shrink=0.8, pad=0.02)
    bar.set_label("P(row's run beats column's run)")
    bar.outline.set_linewidth(0.4)
    return figure


FIGURES = {"improvement": draw}
