"""Do "who" and "when" compose? A grid of compositions a game: final score beside how well credit finds what matters.

The names are those of `benchmarks.spacetime`, whose test holds the two lists together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "spacetime"
WHO = ("team", "CaP", "difference", "aristocrat", "Shapley", "learned aristocrat", "VDN critic")
WHEN = ("immediate", "recency", "GAE", "return", "COCOA", "IRCR", "RUDDER", "potential V")
CRITICS = ("VDN critic",)
ESTIMATORS = ("immediate", "recency", "GAE", "return", "COCOA")
FORBIDDEN = tuple(f"{who} x {when}" for who in CRITICS for when in ESTIMATORS)
"""A critic gives an advantage; nothing that takes a stream of rewards can follow."""
YARDSTICKS = (
    "STAS + return",
    "TAR2 + return",
    "agent COCOA",
    "agent total",
    "first step aristocrat",
    "aristocrat on Q",
    "light cone",
    "reference O8",
)
STRIP = len(WHO) + 0.55  # where the yardsticks stand, in rows
SPATIAL, TEMPORAL = (style.COLOURS[family][0] for family in ("spatial", "temporal"))


class Quantity(NamedTuple):
    """What a column of panels shows, and where its colours end."""

    metric: str
    title: str
    scale: str
    low: float
    high: float
    colours: str


QUANTITIES = (
    Quantity("final_score", "final score", "0 random play, 1 best reachable", 0.0, 1.0, "viridis"),
    Quantity("walk_unit_auc", "credit AUC", "0.5 chance, 1 finds exactly the units that matter", 0.2, 0.8, "RdBu"),
)
NOTE = (
    "Rows: who, columns: when; a cell is their composition. Numbers: IQM over seeds and \N{PLUS-MINUS SIGN} half of "
    "its 95% bootstrap interval; colours end where their bar does, numbers do not. Credit AUC (unit_auc): area under "
    "the ROC curve of |credit| as a detector of the units (agent, step) that matter, |O8| > .05 of the episode's "
    "largest, on 64 episodes of uniformly random play a seed, after what a method learns was fitted to 100 batches of "
    "such play. Thick frame: best of the grid; thin frames: the 95% interval of the paired difference to it holds 0. "
    "\N{MULTIPLICATION SIGN}: refused by the types: a critic already ends in an advantage, and no estimator can follow "
    "it; a redistribution can precede it. \N{EN DASH}: the game does not offer what the method needs. Hatched: no "
    "such cell"
)


def needs(data: Data) -> str:
    """Cells of the question `spacetime`."""
    asked = {str(config.get("question")) for config in data.configs}
    if asked != {QUESTION}:
        return f"needs cells of the question {QUESTION}"
    return "" if style.metric(data, QUANTITIES[0].metric) else f"needs {QUANTITIES[0].metric}"


@style.styled
def draw(data: Data) -> Figure:
    """A row a game: score on the left, credit AUC on the right; below each grid the yardsticks."""
    order = ("walking_robot", "assembly_line", "cleanup")
    games = sorted(data.rows["game"].unique(), key=lambda g: (*(word not in g for word in order), g))
    figure, body = style.page(style.PAGE, 2.55 * len(games) + 0.45, data, NOTE)
    panels = body.subplots(len(games), len(QUANTITIES), squeeze=False, sharey=True)
    daggers = {
        name: any(look.privileged for look in style.looks(data.rows) if name == look.name.split(" x ")[0])
        for name in (*WHO, *YARDSTICKS)
    }
    for j, quantity in enumerate(QUANTITIES):
        shade = ScalarMappable(Normalize(quantity.low, quantity.high), quantity.colours)
        for i, game in enumerate(games):
            _panel(panels[i, j], _runs(data.rows, game, quantity.metric), shade)
            _furnish(panels[i, j], daggers, left=j == 0)
            panels[i, j].set_title(f"{_plain(game)}: {quantity.title}", loc="left", fontweight="bold", pad=3)
        bar = body.colorbar(
            shade,
            ax=panels[:, j],
            orientation="horizontal",
            extend="both",
            aspect=45,
            shrink=0.8,
            pad=0.015,
            fraction=0.03,
        )
        bar.set_label(f"{quantity.title}: {quantity.scale}", fontsize=6)
        bar.outline.set_linewidth(0.4)
    return figure


def _plain(game: str) -> str:
    return game.removeprefix("credit/").rsplit("-v", 1)[0]


def _runs(rows: pd.DataFrame, game: str, metric: str) -> dict[str, np.ndarray[Any, Any]]:
    """Method -> one number a seed, in the order of seeds."""
    mine = rows[(rows["game"] == game) & (rows["metric"] == metric)].sort_values("seed")
    return {str(name): runs["value"].to_numpy() for name, runs in mine.groupby("method")}


def _panel(axes: Axes, runs: dict[str, np.ndarray[Any, Any]], shade: ScalarMappable) -> None:
    """The grid, and the strip of yardsticks below it."""
    places = {f"{who} x {when}": (x, float(y)) for y, who in enumerate(WHO) for x, when in enumerate(WHEN)}
    found = {name: statistics.interval(runs[name]) for name in runs}
    known = {name: float(found[name].value) for name in places if name in found and not np.isnan(found[name].value)}
    best = max(known, key=lambda name: known[name]) if known else ""
    for name, (x, y) in places.items():
        if name in found:
            _cell(axes, x, y, found[name], shade)
        else:
            _empty(axes, x, y, "\N{MULTIPLICATION SIGN}" if name in FORBIDDEN else "")
        if name in known and (name == best or not _apart(runs[best], runs[name])):
            axes.add_patch(
                Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, fill=False, linewidth=1.6 if name == best else 0.6, zorder=3)
            )
    for x, name in enumerate(YARDSTICKS):
        if name in found:
            _cell(axes, x, STRIP, found[name], shade)
        else:
            _empty(axes, x, STRIP, "\N{EN DASH}")


def _apart(best: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Does the interval of the paired difference leave out 0? Without an interval nothing is told apart."""
    return len(best) == len(other) and float(statistics.paired_difference(best, other).low) > 0


def _cell(axes: Axes, x: float, y: float, found: statistics.Estimate, shade: ScalarMappable) -> None:
    """A number on its colour, and half of its interval below it."""
    value, half = float(found.value), float(found.high - found.low) / 2
    if np.isnan(value):
        _empty(axes, x, y, "?")
        return
    red, green, blue, _ = colour = shade.to_rgba(np.array([value]))[0]
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.7))
    known = not np.isnan(half)
    how: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    axes.text(x, y - 0.13 * known, f"{value:z.2f}", fontsize=5.6, **how)
    if known:
        axes.text(x, y + 0.27, f"\N{PLUS-MINUS SIGN}{half:z.2f}", fontsize=3.9, **how)


def _empty(axes: Axes, x: float, y: float, mark: str) -> None:
    """No number: a mark that says why, or hatched."""
    hatch = None if mark else "////"
    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#efefef", edgecolor="white", linewidth=0.7, hatch=hatch)
    )
    axes.text(x, y, mark, ha="center", va="center", color="#8a8a8a", fontsize=7)


def _furnish(axes: Axes, daggers: dict[str, bool], left: bool) -> None:
    """Names around the grid: who beside it, when above it, yardsticks below."""

    def label(name: str) -> str:
        return name + f" {style.DAGGER}" * daggers[name]

    axes.set_xlim(-0.5, len(WHEN) - 0.5)
    axes.set_ylim(STRIP + 0.55, -0.55)
    axes.set_yticks([*range(len(WHO)), STRIP], [*map(label, WHO), "yardsticks"])
    axes.tick_params(length=0, pad=2, labelleft=left)
    for tick in axes.get_yticklabels()[:-1]:
        tick.set_color(SPATIAL)
    axes.set_xticks(range(len(YARDSTICKS)), [style.wrap(label(name), 10) for name in YARDSTICKS], fontsize=4.4)
    above = axes.secondary_xaxis("top")
    above.set_xticks(range(len(WHEN)), [style.wrap(name, 9) for name in WHEN], fontsize=5.2, color=TEMPORAL)
    above.tick_params(length=0, pad=1)
    for edge in (*axes.spines.values(), *above.spines.values()):
        edge.set_visible(False)


FIGURES = {"spacetime": draw}
