"""Hot or cold: how much exploration a population can bear before nobody's credit tells who did what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import results, statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "exploration"
ROWS = {
    "culprit_auc": "culprit AUC\n(.5 is chance)",
    "unit_auc": "AUC of the units that\nmatter (.5 is chance)",
    "final_score": "final score\n(0 random, 1 best)",
}
AXES = {"boltzmann": "temperature\n(units of return)", "epsilon": "epsilon"}
LATE = 0.75  # credit is judged over the last quarter of training


class Level(NamedTuple):
    """How one cell explored."""

    base: str  # the method without its level
    kind: str
    value: float | None  # None: it falls during training


def needs(data: Data) -> str:
    """Cells of Q-learners at two levels of exploration or more."""
    levels = {level.value for level in _levels(data).values() if level.value is not None}
    if len(levels) < 2:
        return "needs Q-learners at two levels of exploration or more"
    return "" if style.metric(data, *ROWS) else f"needs one of the metrics {', '.join(ROWS)}"


def _levels(data: Data) -> dict[str, Level]:
    """{cell: how it explored}."""
    found = {}
    for config in data.configs:
        how: dict[str, Any] = config.get("learner", {})
        if "exploration" in how:
            base = str(config["method"]["name"]).split(",")[0]
            held = how["start"] == how["end"]
            found[results.cell_id(config)] = Level(base, how["exploration"], float(how["start"]) if held else None)
    return found


def _late(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One value a (cell, seed): at the end, or the mean over the last quarter of training where it is defined."""
    rows = rows[rows["metric"] == metric]
    if not metric.startswith("final"):
        rows = rows[rows["env_steps"] >= LATE * rows.groupby("cell")["env_steps"].transform("max")]
    return rows.groupby(["cell", "seed"], as_index=False)["value"].mean()


@style.styled
def draw(data: Data) -> Figure:
    """A row a quality, a column a game and kind of exploration; IQM over seeds with its interval."""
    levels = _levels(data)
    places = {results.cell_id(c): (c["game"], results.canonical(c["knobs"])) for c in data.configs}
    columns = [
        (game, knobs, label, kind)
        for game, knobs, label in style.settings(data)
        for kind in AXES
        if any(places[c] == (game, knobs) and at.kind == kind and at.value is not None for c, at in levels.items())
    ]
    metrics = [name for name in ROWS if style.metric(data, name)]
    looks = _looks(data)
    note = (
        "Points: IQM over seeds with its 95% bootstrap interval. AUC: the mean over the last quarter of training, on "
        "episodes of the greedy policy; none where it is undefined. Exploration is held at one level "
        "throughout training. Horizontal lines: the same method when its exploration falls"
    )
    figure, body = style.page(style.PAGE, 1.25 * len(metrics) + 0.8, data, note)
    panels = body.subplots(len(metrics), len(columns), squeeze=False, sharex="col", sharey="row")
    for i, metric in enumerate(metrics):
        late = _late(data.rows, metric)
        for j, (game, knobs, label, kind) in enumerate(columns):
            here = {
                c: levels[c]
                for c in levels
                if places[c] == (game, knobs) and (levels[c].kind == kind or levels[c].value is None)
            }
            for k, (base, look) in enumerate(looks.items()):
                runs = {at.value: late.loc[late["cell"] == c, "value"] for c, at in here.items() if at.base == base}
                _line(panels[i, j], runs, look, 1 + 0.06 * (k - (len(looks) - 1) / 2))
            _furnish(panels[i, j], metric, sorted({at.value for at in here.values() if at.value is not None}))
            if i == 0:
                panels[i, j].set_title(style.wrap(label, 24), fontweight="bold", fontsize=6.5)
            panels[-1, j].set_xlabel(AXES[kind])
        panels[i, 0].set_ylabel(ROWS[metric])
    entries = [look.line() for look in looks.values()]
    body.legend(handles=entries, loc="outside upper center", ncols=len(entries), handlelength=3)
    return figure


def _looks(data: Data) -> dict[str, style.Look]:
    """{method without its level: its look}: its own where it is among the cells, else one by its place."""
    found = style.looks(data.rows)
    bases = dict.fromkeys(level.base for level in _levels(data).values())
    first = {base: next(k for k in found if k.name.split(",")[0] == base) for base in bases}
    own = {look.name: look for look in found}
    mark = {base: f"{base}\N{NO-BREAK SPACE}{style.DAGGER}" if first[base].privileged else base for base in bases}
    return {
        base: own.get(base, first[base]._replace(rank=k))._replace(label=mark[base])
        for k, base in enumerate(sorted(bases))
    }


def _line(axes: Axes, runs: dict[float | None, pd.Series[float]], look: style.Look, aside: float) -> None:
    """One method in one panel; `aside` moves its marks, lest they hide others."""
    found = {x: statistics.interval(values.to_numpy()) for x, values in runs.items() if len(values)}
    falling = found.pop(None, None)
    if falling is not None:
        axes.axhline(float(falling.value), color=look.colour, linestyle=look.dash, linewidth=0.6, zorder=1)
    levels = sorted(x for x in found if x is not None)
    middle = np.array([float(found[x].value) for x in levels])
    ends = np.array([[float(found[x].low), float(found[x].high)] for x in levels]).reshape(-1, 2).T
    how = {"color": look.colour, "linestyle": look.dash, "marker": look.marker}
    errors = np.nan_to_num(np.abs(ends - middle))
    axes.errorbar(np.array(levels) * aside, middle, errors, markersize=3, linewidth=1, elinewidth=0.6, **how)


def _furnish(axes: Axes, metric: str, levels: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(levels, [f"{x:g}" for x in levels])
    axes.minorticks_off()
    axes.grid(axis="y", linewidth=0.3, color="#dddddd")
    axes.axhline(0.0 if metric == "final_score" else 0.5, color="#888888", linewidth=0.6, linestyle=":", zorder=0)


FIGURES = {"exploration": draw}
