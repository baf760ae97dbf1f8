"""Which games does a method solve? The share of its seeds that end near the best reachable, a spoke a game setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import Data, style

if TYPE_CHECKING:
    import pandas as pd

METRIC = "final_score"
SOLVED = 0.9  # final score from which on a seed counts as solved
FEWEST, MOST = 3, 16  # spokes


def needs(data: Data) -> str:
    """Final scores on three game settings or more."""
    if style.metric(data, METRIC) is None:
        return f"needs {METRIC}"
    count = len(style.settings(data))
    return "" if FEWEST <= count <= MOST else f"needs {FEWEST} to {MOST} game settings, not {count}"


def solved(rows: pd.DataFrame, settings: list[tuple[str, str, str]]) -> np.ndarray:
    """[settings]: the share of defined seeds whose final score reaches SOLVED; NaN where there is no cell."""
    out = np.full(len(settings), np.nan)
    for k, (game, knobs, _) in enumerate(settings):
        runs = rows.loc[(rows["game"] == game) & (rows["knobs"] == knobs), "value"].dropna()
        if len(runs):
            out[k] = float((runs >= SOLVED).mean())
    return out


@style.styled
def draw(data: Data, columns: int = 4) -> Figure:
    """A panel a family, so that outlines stay apart; the reference is in all of them."""
    rows = data.rows[data.rows["metric"] == METRIC]
    settings = style.settings(data)
    methods = style.looks(rows)
    families = list(dict.fromkeys(look.family for look in methods if look.family != "reference")) or ["reference"]
    note = (
        f"Spokes: share of seeds with a final score of {SOLVED} or more, 0 in the middle, 1 at the rim. A gap: no "
        f"cell; no interval, for a share of few seeds is coarse. Numbers at the rim: "
        + "; ".join(f"{k + 1}: {label}" for k, (*_, label) in enumerate(settings))
    )
    columns = min(columns, len(families))
    deep = -(-len(families) // columns)
    side = -(-len(methods) // 4)
    figure, body = style.page(style.PAGE, 2.0 * deep + 0.14 * side + 0.2, data, note)
    panels = body.subplots(deep, columns, squeeze=False, subplot_kw={"projection": "polar"})
    angle = np.linspace(0, 2 * np.pi, len(settings), endpoint=False)
    for axes in panels.flat[len(families) :]:
        axes.set_axis_off()
    for axes, family in zip(panels.flat, families, strict=False):
        axes.set_theta_offset(np.pi / 2)
        axes.set_theta_direction(-1)
        for look in methods:
            if look.family not in (family, "reference"):
                continue
            share = solved(rows[rows["method"] == look.name], settings)
            how = {"color": look.colour, "linestyle": look.dash, "marker": look.marker, "markersize": 3}
            axes.plot([*angle, angle[0]], [*share, share[0]], linewidth=1, **how)
        axes.set_ylim(0, 1.08)
        axes.set_yticks([0.5, 1.0], [])
        axes.set_xticks(angle, [str(k + 1) for k in range(len(settings))])
        axes.tick_params(pad=-2)
        axes.grid(linewidth=0.3, color="#cccccc")
        axes.spines["polar"].set_visible(False)
        axes.set_title(family, color=style.COLOURS.get(family, ("black",))[0], fontweight="bold", fontsize=6.5)
    entries = [look.line() for look in methods]
    body.legend(handles=entries, loc="outside upper center", ncols=min(4, len(entries)), handlelength=3)
    return figure


FIGURES = {"radar": draw}
