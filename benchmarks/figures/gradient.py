"""Which way, and how loud: cosine and signal-to-noise of every credit's gradient, against the exact one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "gradient"
COSINE = "gradient_cosine"
COLUMNS = (("baseline", "temporal"), ("spatial",), ("joint", "reference"))
ROWS = ((COSINE, "cosine with\nthe true gradient"), ("gradient_snr", "signal-to-noise\nof one batch"))
NAMES = {"n_agents": "agents N", "delay": "delay D (steps)"}


def needs(data: Data) -> str:
    """Cells of the question `gradient`, with a knob that is a number."""
    if style.metric(data, COSINE) is None:
        return "needs the metric gradient_cosine (python -m benchmarks.gradient)"
    return "" if knobs_of(data) else "needs a game with a knob that is a number"


def knobs_of(data: Data) -> list[str]:
    """The knobs to draw along: those that vary, else the first that is a number."""
    first = data.configs[0]["knobs"]
    numbers = [k for k, v in first.items() if isinstance(v, int | float) and not isinstance(v, bool) and k in data.rows]
    return [k for k in style.varying(data.configs) if k in numbers] or numbers[:1]


def line_of(data: Data, knob: str) -> pd.DataFrame:
    """The rows in which the game and every other knob are what most settings have: one line along `knob`."""
    rows = data.rows[data.rows["game"] == data.rows["game"].mode().iloc[0]]
    for name in style.varying(data.configs):
        if name != knob and name in rows:
            commonest = rows.drop_duplicates("knobs")[name].mode().iloc[0]
            rows = rows[rows[name] == commonest]
    return rows


def marks(
    axes: Axes, rows: pd.DataFrame, knob: str, look: style.Look, aside: float = 0.0, linestyle: Any = "none"
) -> None:
    """One method's IQM over policies with its interval; `aside` moves the marks, lest they hide others."""
    values = sorted(rows[knob].unique())
    found = [statistics.interval(rows[rows[knob] == v]["value"].to_numpy()) for v in values]
    middle, low, high = (np.array([getattr(e, f) for e in found]) for f in ("value", "low", "high"))
    errors = np.nan_to_num(np.stack([middle - low, high - middle])).clip(min=0)
    where = np.asarray(values, dtype=float) + aside
    how: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 2.8, "linestyle": linestyle}
    axes.errorbar(where, middle, errors, linewidth=0.9, elinewidth=0.6, **how)


def furnish(axes: Axes, cosine: bool, values: pd.Series[Any]) -> None:
    """Scales, grid and the line of no signal."""
    axes.set_xticks(sorted(values.unique()))
    axes.grid(axis="y", linewidth=0.3, color="#dddddd")
    axes.axhline(0, color="#888888", linewidth=0.6, linestyle=":", zorder=0)
    if cosine:
        axes.set_ylim(-1.05, 1.1)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
    else:
        axes.set_yscale("symlog", linthresh=0.01)  # without signal the estimate falls on either side of 0


@style.styled
def sweep(data: Data, stage: int) -> Figure:
    """Cosine and SNR of every method along each knob; stage 0: before training, -1: after a little of it."""
    evaluation = data.configs[0]["evaluation"]
    steps = sorted(data.rows["env_steps"].unique())[stage]
    trained = (
        f"after {evaluation['policies'][-1]} updates of {evaluation['trained by']}" if stage else "before training"
    )
    note = (
        f"Policies {trained}. IQM over policies and its 95% bootstrap interval; each policy has critics and batches of "
        f"its own; cosine: of the mean of {evaluation['batches']} batches of {evaluation['episodes']} episodes; truth: "
        "every state listed; a knob that is not shown has the value that most settings have"
    )
    knobs, methods = knobs_of(data)[:2], style.looks(data.rows)
    families = [c for c in COLUMNS if any(look.family in c for look in methods)]
    most = max(sum(look.family in c for look in methods) for c in families)
    figure, body = style.page(style.PAGE, 1.2 * len(ROWS) * len(knobs) + 0.12 * most + 0.3, data, note)
    panels = body.subplots(len(ROWS) * len(knobs), len(families), squeeze=False, sharex="row", sharey="row")
    for j, column in enumerate(families):
        mine = [look for look in methods if look.family in column]
        for i, (knob, (metric, label)) in enumerate((k, m) for k in knobs for m in ROWS):
            axes, rows = panels[i, j], line_of(data, knob)
            rows = rows[(rows["env_steps"] == steps) & (rows["metric"] == metric)]
            for k, look in enumerate(mine):
                aside = 0.3 * (k - (len(mine) - 1) / 2) / len(mine)
                marks(axes, rows[rows["method"] == look.name], knob, look, aside, look.dash)
            furnish(axes, metric == COSINE, rows[knob])
            axes.set_xlabel(NAMES.get(knob, knob), labelpad=1)
            axes.set_ylabel(label if j == 0 else "")
        handles = [look.line() for look in mine]
        panels[0, j].legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=6, handlelength=3)
    return figure


FIGURES = {"gradient_before": partial(sweep, stage=0), "gradient_after": partial(sweep, stage=-1)}
