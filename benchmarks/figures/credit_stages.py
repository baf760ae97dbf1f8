"""Credit is a function of the policy: how right is each method's credit before, half-way through and near training?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from benchmarks.figures import Data, style
from benchmarks.figures.credit_scoreboard import QUESTION, STAGES, at_stage, shared
from marl import statistics

__all__ = ["FIGURES", "QUESTION", "needs"]
ROWS = (
    (("O3_credit_pearson",), "Pearson with O3\n(learning)"),
    (("O5_split_which",), "which: correlation\nwith O5"),
    (("O8_culprit_auc", "O6_culprit_auc"), "culprit AUC\n(this episode)"),
)
MOST = 12  # lines in a panel


def needs(data: Data) -> str:
    """Scores of credit at several stages."""
    return "" if style.metric(data, "O3_credit_pearson") else "needs the metric O3_credit_pearson"


@style.styled
def draw(data: Data) -> Figure:
    """A line a method, over stages; the methods by family in as many columns as they need."""
    methods = [look for look in style.looks(data.rows) if look.family != "control"]
    across = -(-len(methods) // MOST)
    each = -(-len(methods) // across)
    told = (
        f"{shared(data)}. IQM over seeds and {len(style.settings(data))} games and its 95% stratified "
        "bootstrap interval; marks are moved aside lest they hide others; stages: the policy as it begins, with half "
        f"and with nine tenths of the gain in return of training by {data.configs[0]['evaluation']['trained by']}"
    )
    figure, body = style.page(style.PAGE, 1.35 * len(ROWS) + 0.11 * each + 0.2, data, told)
    panels = body.subplots(len(ROWS), across, squeeze=False, sharex=True, sharey="row")
    stages = [at_stage(data.rows, k) for k in range(len(STAGES))]
    for j in range(across):
        mine = methods[j * each : (j + 1) * each]
        for i, (names, label) in enumerate(ROWS):
            axes = panels[i, j]
            for k, look in enumerate(mine):
                found = []
                for rows in stages:
                    rows = rows[(rows["method"] == look.name) & rows["metric"].isin(names)]
                    found.append(statistics.interval(style.table(rows, "cell")))
                middle, low, high = (
                    np.array([getattr(e, f) for e in found], dtype=float) for f in ("value", "low", "high")
                )
                where = np.arange(len(STAGES)) + 0.3 * (k - (len(mine) - 1) / 2) / len(mine)
                errors = np.nan_to_num(np.stack([middle - low, high - middle])).clip(min=0)
                axes.errorbar(
                    where,
                    middle,
                    errors,
                    color=look.colour,
                    marker=look.marker,
                    markersize=2.8,
                    linestyle=look.dash,
                    linewidth=0.9,
                    elinewidth=0.5,
                )
            axes.grid(axis="y", linewidth=0.3, color="#dddddd")
            axes.axhline(0.5 if "culprit" in label else 0, color="#888888", linewidth=0.6, linestyle=":", zorder=0)
            axes.set_xticks(range(len(STAGES)), [style.wrap(name, 9) for name in STAGES], fontsize=5.5)
            axes.set_ylabel(label if j == 0 else "")
        handles = [look.line() for look in mine]
        panels[0, j].legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=5, handlelength=2.4)
    return figure


FIGURES = {"credit_stages": draw}
