"""Which credit works where: one small map a method, team size across, delay upwards, colour the final score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

METRIC = "final_score"
LOW, HIGH = 0.0, 1.0  # where the colours end, in every panel


def needs(data: Data) -> str:
    """Final scores of one game over two knobs, n_agents and delay, at least one of them varied and no other."""
    if style.metric(data, METRIC) is None or not {"n_agents", "delay"} <= set(data.rows.columns):
        return f"needs {METRIC} with the knobs n_agents and delay"
    others = [name for name in style.varying(data.configs) if name not in ("n_agents", "delay")]
    if others or data.rows["game"].nunique() > 1:
        return f"needs one game that differs in n_agents and delay only, not in {', '.join(others) or 'the game'}"
    return "" if style.varying(data.configs) else "needs more than one cell of n_agents x delay"


@style.styled
def draw(data: Data, x: str = "n_agents", y: str = "delay", columns: int = 4) -> Figure:
    """IQM over seeds of the final score of each method at each (x, y), with half the width of its interval."""
    rows = data.rows[data.rows["metric"] == METRIC]
    xs, ys = (sorted(rows[name].unique()) for name in (x, y))
    methods = style.looks(rows)
    columns = min(columns, len(methods))
    deep = -(-len(methods) // columns)
    cell = (style.PAGE - 1.2) / columns / len(xs)
    what = "Numbers: IQM over seeds and \N{PLUS-MINUS SIGN} half of its 95% stratified bootstrap interval"
    note = f"{what}; hatched: no cell"
    figure, body = style.page(style.PAGE, deep * (len(ys) * min(cell, 0.36) + 0.36) + 0.6, data, note)
    panels = body.subplots(deep, columns, squeeze=False, sharex=True, sharey=True)
    colours = ScalarMappable(Normalize(LOW, HIGH), "viridis")
    for k, axes in enumerate(panels.flat):
        if k >= len(methods):
            axes.set_axis_off()
            continue
        look = methods[k]
        _panel(axes, rows[rows["method"] == look.name], x, y, xs, ys, colours)
        axes.set_title(style.wrap(look.label, 28), color=look.family_colour, fontweight="bold", fontsize=6.5)
        below = k // columns == deep - 1
        axes.tick_params(labelbottom=below, length=0)
        axes.set_xlabel(x if below else "")
        axes.set_ylabel(y if k % columns == 0 else "")
    bar = body.colorbar(colours, ax=panels, extend="both", aspect=30, shrink=0.8, pad=0.02)
    bar.set_label("final score: 0 random, 1 best reachable\n(colours end there, numbers do not)", fontsize=6)
    bar.outline.set_linewidth(0.4)
    families = dict.fromkeys((look.family, look.family_colour) for look in methods)
    entries = [Patch(color=colour, label=family) for family, colour in families]
    body.legend(handles=entries, loc="outside upper center", ncols=len(entries), handlelength=0.8, handleheight=0.8)
    return figure


def _panel(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, xs: list[Any], ys: list[Any], colours: ScalarMappable
) -> None:
    """One method's map, with the numbers on it."""
    value = np.full((len(ys), len(xs)), np.nan)
    size = 6.0 if len(xs) <= 4 else 5.0
    for (here, there), runs in rows.groupby([x, y])["value"]:
        i, j = ys.index(there), xs.index(here)
        estimate = statistics.interval(runs.to_numpy())
        value[i, j] = estimate.value
        if np.isnan(value[i, j]):
            continue
        red, green, blue, _ = colours.to_rgba(value[i, j])
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        half = (estimate.high - estimate.low) / 2
        known = not np.isnan(half)
        axes.text(
            j, i + (0.14 if known else 0), f"{value[i, j]:z.2f}", ha="center", va="center", color=ink, fontsize=size
        )
        if known:
            spread = f"\N{PLUS-MINUS SIGN}{half:z.2f}"
            axes.text(j, i - 0.26, spread, ha="center", va="center", color=ink, fontsize=0.72 * size)
    axes.set_facecolor("#eeeeee")
    axes.patch.set(hatch="////", edgecolor="#cccccc")
    axes.imshow(value, vmin=LOW, vmax=HIGH, cmap=colours.cmap, origin="lower", aspect="auto")
    axes.set_xticks(range(len(xs)), [style.short(v) for v in xs])
    axes.set_yticks(range(len(ys)), [style.short(v) for v in ys])
    axes.spines[:].set_visible(False)


FIGURES = {"phase_map": draw}
