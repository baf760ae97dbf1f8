"""Order matters: a counterfactual of the reward that is then summed pulls elsewhere than the same of Q."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from benchmarks.figures import Data, gradient, style
from marl import statistics

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "gradient"
FOLLOWS = {  # method -> the prediction that its mean gradient must follow
    "team + return": "gradient",
    "aristocrat + return": "myopic",
    "difference + return": "differences",
    "aristocrat on Q": "gradient",
    "difference on Q": "gradient",
}
PREDICTIONS: dict[str, tuple[str, str, Any]] = {  # what it is, its name in the legend, its dash
    "gradient": ("the true\ngradient", "exact: the truth", "-"),
    "myopic": ("immediate\nrewards only", "exact: aristocrat, then sum", (0, (4, 1.5))),
    "differences": ("own sum of\ndifferences", "exact: difference, then sum", (0, (1, 1))),
}
GREY = "#555555"


def needs(data: Data) -> str:
    """The methods of both orders, along the delay."""
    missing = gradient.needs(data)
    lacking = [name for name in FOLLOWS if name not in set(data.rows["method"])]
    if missing or lacking:
        return missing or f"needs the methods {', '.join(lacking)}"
    return "" if "delay" in style.varying(data.configs) else "needs more than one delay"


@style.styled
def draw(data: Data) -> Figure:
    """Left: cosine with the truth along the delay, proofs as lines. Right: which prediction each method follows."""
    rows = gradient.line_of(data, "delay")
    rows = rows[rows["method"].isin(FOLLOWS) & (rows["env_steps"] == rows["env_steps"].max())]
    evaluation = data.configs[0]["evaluation"]
    note = (
        f"Policies after {evaluation['policies'][-1]} updates of {evaluation['trained by']}. Grey lines: IQM of what "
        "the proofs predict for these policies, computed by listing every state. Marks: measured mean gradient, IQM "
        "over policies with its 95% bootstrap interval. Right: relative bias |E g - prediction| / |prediction| at the "
        "longest delay, boxed where the proof says 0 (a batch's mean as baseline holds the episode itself, and so "
        f"shortens by 1/{evaluation['episodes']})"
    )
    methods = sorted((m for m in style.looks(rows)), key=lambda look: list(FOLLOWS).index(look.name))
    figure, body = style.page(style.PAGE, 2.6, data, note)
    left, right = body.subplots(1, 2, width_ratios=[1.1, 1])
    _along_delay(left, rows, methods)
    _which(right, rows[rows["delay"] == rows["delay"].max()], methods)
    lines = [Line2D([], [], linestyle=dash, color=GREY, linewidth=0.9, label=w) for _, w, dash in PREDICTIONS.values()]
    seen = [
        Line2D([], [], linestyle="none", color=m.colour, marker=m.marker, markersize=4, label=m.label) for m in methods
    ]
    body.legend(handles=[*lines, *seen], loc="outside upper center", ncols=4)
    return figure


def _along_delay(axes: Axes, rows: pd.DataFrame, methods: list[style.Look]) -> None:
    delays = sorted(rows["delay"].unique())
    for name, (_, _, dash) in PREDICTIONS.items():
        exact = rows[rows["metric"] == f"{name}_cosine_with_truth"]
        heights = [
            1.0
            if name == "gradient"
            else float(statistics.iqm(exact[exact["delay"] == d].drop_duplicates("seed")["value"]))
            for d in delays
        ]
        axes.plot(delays, heights, linestyle=dash, color=GREY, linewidth=0.9, zorder=1)
    for k, look in enumerate(methods):
        mine = rows[(rows["method"] == look.name) & (rows["metric"] == gradient.COSINE)]
        gradient.marks(axes, mine, "delay", look, 0.07 * (k - (len(methods) - 1) / 2))
    gradient.furnish(axes, True, rows["delay"])
    axes.set_xlabel(gradient.NAMES["delay"])
    axes.set_ylabel("cosine with the true gradient")


def _which(axes: Axes, rows: pd.DataFrame, methods: list[style.Look]) -> None:
    """Numbers: relative bias of each method's mean gradient against each prediction."""
    bias = np.array(
        [
            [
                statistics.iqm(rows[(rows["method"] == m.name) & (rows["metric"] == f"{p}_bias")]["value"])
                for p in PREDICTIONS
            ]
            for m in methods
        ]
    )
    axes.imshow(np.log10(bias.clip(0.01, 10)), cmap="Greys", vmin=-2, vmax=3, aspect="auto")
    for i, look in enumerate(methods):
        for j, name in enumerate(PREDICTIONS):
            axes.text(j, i, f"{bias[i, j]:.2f}", ha="center", va="center", fontsize=6.5)
            if FOLLOWS[look.name] == name:
                axes.add_patch(Rectangle((j - 0.46, i - 0.42), 0.92, 0.84, fill=False, ec=look.colour, lw=1.4))
    axes.set_xticks(range(len(PREDICTIONS)), [words for words, _, _ in PREDICTIONS.values()])
    axes.set_yticks(range(len(methods)), [look.label for look in methods])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("relative bias of the mean gradient, against")
    axes.xaxis.tick_top()


FIGURES = {"gradient_order": draw}
