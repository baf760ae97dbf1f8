"""The oracles themselves: errors of sampled truths shrink as 1/sqrt(M), and time grows in line with steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.figures import Data, style
from marl import results

if TYPE_CHECKING:
    import pandas as pd

QUESTION = "oracles"
KINDS = {
    "O2": ("#d55e00", "s"),
    "O3": ("#009e73", "^"),
    "O4": ("#0072b2", "o"),
    "O5": ("#000000", "D"),
    "O6": ("#8a6fd8", "v"),
    "O8 simulated": ("#6e6e6e", "P"),
    "O1 Shapley": ("#e69f00", "X"),
    "O8 Shapley": ("#56b4e9", "h"),
}
ROUNDING = 1e-9  # errors below are of float64
COLUMNS = 4


def _needs(data: Data, check: str) -> str:
    asked = [c for c in data.configs if c.get("question") == QUESTION and c["check"] == check]
    return "" if asked else f"needs cells of the question {QUESTION}"


def needs(data: Data) -> str:
    """Cells of the question `oracles`: agreement of sampled truths, and times."""
    return _needs(data, "agreement") or _needs(data, "time")


def curves(data: Data) -> dict[str, list[tuple[str, pd.DataFrame]]]:
    """game -> [(kind, a table over replays M with the columns rms_error and rms_stated)], of sampled truths."""
    found: dict[str, list[tuple[str, Any]]] = {}
    configs = [c for c in data.configs if c["check"] == "agreement" and c["ways"][1] == "sampled"]
    for config in sorted(configs, key=lambda c: (c["game"], list(KINDS).index(c["kind"]))):
        rows = data.rows[data.rows["cell"] == results.cell_id(config)]
        parts = rows["metric"].str.split("@", expand=True)
        table = rows.assign(name=parts[0], replays=parts[1].astype(int)).pivot(
            index="replays", columns="name", values="value"
        )
        if table["rms_error"].max() > ROUNDING:
            found.setdefault(config["game"].removeprefix("credit/"), []).append((config["kind"], table))
    return found


def slope(table: pd.DataFrame) -> float:
    """Of log error over log M, by least squares; -.5 is 1/sqrt(M)."""
    return float(np.polyfit(np.log(table.index), np.log(table["rms_error"]), 1)[0])


@style.styled
def errors(data: Data) -> Figure:
    """Error against the exact truth, and the error stated, over replays M; thin grey: slope -1/2."""
    found = curves(data)
    data = data._replace(configs=[c for c in data.configs if c["ways"] == ["exact", "sampled"]])
    note = (
        "Marks: root mean square error of all live cells against the exact truth; dashed: the standard errors that the "
        "oracle states; grey: 1/sqrt(M). In brackets: fitted slopes. Truths whose estimates have no error at all are "
        "left out. One batch of episodes of random play, no interval"
    )
    deep = -(-len(found) // COLUMNS)
    figure, body = style.page(style.PAGE, 1.9 * deep + 0.2, data, note)
    grid = body.subplots(deep, min(COLUMNS, len(found)), squeeze=False)
    for k, axes in enumerate(grid.flat):
        if k >= len(found):
            axes.set_axis_off()
            continue
        game, lines = list(found.items())[k]
        _curves(axes, lines)
        axes.set_title(game, fontweight="bold")
        axes.set_xlabel("replays M")
        axes.set_ylabel("error (return)" if k % COLUMNS == 0 else "")
    return figure


def _curves(axes: Axes, lines: list[tuple[str, pd.DataFrame]]) -> None:
    """One game."""
    axes.set_xscale("log", base=4)
    axes.set_yscale("log")
    for kind, table in lines:
        colour, marker = KINDS[kind]
        M = table.index.to_numpy(float)
        label = f"{kind} [{slope(table):.2f}]"
        axes.plot(M, table["rms_error"], marker, color=colour, markersize=3.5, label=label)
        axes.plot(M, table["rms_stated"], color=colour, linestyle=(0, (4, 1.5)), linewidth=0.8)
        first = table["rms_stated"].iloc[0]
        axes.plot(M, first * np.sqrt(M[0] / M), color="#bbbbbb", linewidth=0.6, zorder=0)
    ticks = sorted({M for _, table in lines for M in table.index})
    axes.set_xticks(ticks, [str(M) for M in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low * (low / high) ** 0.45, high)  # room for the legend below the curves
    axes.legend(loc="lower left", fontsize=5.5, handletextpad=0.2, borderpad=0.2)


@style.styled
def clock(data: Data) -> Figure:
    """Seconds over simulator steps of one question on one core, with the line of one rate."""
    configs = [c for c in data.configs if c["check"] == "time"]
    parts = [(c, data.rows[data.rows["cell"] == results.cell_id(c)]) for c in configs]
    shown = data._replace(
        configs=configs, rows=data.rows[data.rows["cell"].isin([results.cell_id(c) for c in configs])]
    )
    rate = float(np.median(shown.rows["value"] / shown.rows["seconds"]))
    note = (
        "Each mark is one question about so many episodes, the fastest of three on one core; one machine, no interval"
    )
    figure, body = style.page(style.COLUMN, 2.5, shown, note)
    axes = body.subplots()
    for config, rows in sorted(parts, key=lambda part: part[0]["knobs"]["horizon"]):
        colour, marker = KINDS[config["kind"]]
        axes.plot(rows["value"], rows["seconds"], marker, color=colour, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = np.array(axes.get_xlim())
    axes.plot(ends, ends / rate, color="#888888", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=4, label=kind)
        for kind, (colour, marker) in KINDS.items()
        if kind in {c["kind"] for c in configs}
    ]
    handles.append(
        Line2D([], [], color="#888888", linewidth=0.8, linestyle=(0, (4, 2)), label=f"{rate:,.0f} steps a second")
    )
    axes.legend(handles=handles, loc="upper left")
    axes.set_xlabel("simulator steps")
    axes.set_ylabel("seconds")
    return figure


FIGURES = {"oracle_errors": errors, "oracle_clock": clock}
