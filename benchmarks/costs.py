"""What does credit cost as the team grows? Simulator steps and time of difference rewards against N.

A part of `benchmarks.throughput`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import envs
from envs.base import Env
from marl.credit.base import Context
from marl.credit.spatial.difference import Difference
from marl.oracle import baseline_of, closed, natural_baseline
from marl.rollout import rollout

COST_ROWS = 500  # environment steps of a batch whose credit is timed
COSTED = (
    ("el_farol", "replayed"),
    ("el_farol", "closed form"),
    ("walking_robot", "replayed"),
    ("walking_robot", "closed form"),
)
"""Games and ways whose cost is measured against N: a one-shot game and one of a hundred steps."""


class Cost(NamedTuple):
    """What credit for one batch of episodes took, an environment step."""

    seconds: float  # wall-clock, the fastest of the repeats: the least disturbed
    steps: float  # simulator steps charged


def cost_timer(game: Env[Any], way: str) -> tuple[Callable[[], float], Callable[[], float]]:
    """(seconds an environment step, simulator steps an environment step) of one way to difference rewards.

    Ways: "replayed", the operator: r_t with each agent's action replaced by its default, asked of the simulator.
    "closed form": the game's own answer, to the end of the episode (O8) where there is more than one step.
    """
    trajectory = rollout(game, None, max(4, COST_ROWS // game.horizon))
    context, alive = Context(game), int(trajectory.alive.sum())
    simulator, credit = context.simulator, Difference(context)
    baseline = baseline_of(game, natural_baseline(game), trajectory.action.device)
    asked: list[float] = []

    def seconds() -> float:
        before, start = int(simulator.steps.sum()), time.perf_counter()
        with torch.inference_mode():
            if way == "closed form":
                closed.closed_difference(simulator, trajectory, baseline)
            else:
                credit(trajectory, trajectory.reward)
        spent = time.perf_counter() - start
        asked.append((int(simulator.steps.sum()) - before) / alive)
        return spent / alive

    return seconds, lambda: asked[-1]


def costs(sizes: Sequence[int], repeats: int) -> dict[tuple[str, str], list[Cost]]:
    """(game, way) -> one Cost a team size; repeats are interleaved over sizes."""
    out: dict[tuple[str, str], list[Cost]] = {}
    for name, way in COSTED:
        timers = [cost_timer(envs.rules(name, n_agents=n), way) for n in sizes]
        for seconds, _ in timers:
            seconds()  # warm up
        times = [[seconds() for seconds, _ in timers] for _ in range(repeats)]
        least = [min(column) for column in zip(*times, strict=True)]
        out[name, way] = [Cost(m, steps()) for m, (_, steps) in zip(least, timers, strict=True)]
    return out


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """p of the power law c N^p nearest to the values on a log-log scale; NaN for a single size."""
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def report_costs(sizes: Sequence[int], repeats: int, figure: Path | None, threads: int) -> None:
    """Difference rewards against N: simulator steps and time an environment step, each with its fitted exponent."""
    sizes = sorted(set(sizes))
    found = costs(sizes, repeats)
    print("cost of difference rewards an environment step, and p in cost ~ N^p")
    heads = "".join(f"{f'N={n}':>10s}" for n in sizes)
    print(f"{'game':18s} {'way':12s} {'':16s}{heads}{'p':>8s}")
    for (name, way), line in found.items():
        for what, unit in (("steps", 1.0), ("seconds", 1e6)):
            numbers = [getattr(cost, what) * unit for cost in line]
            label = "simulator steps" if what == "steps" else "microseconds"
            cells = "".join(f"{x:10,.4g}" for x in numbers)
            print(f"{name:18s} {way:12s} {label:16s}{cells}{exponent(sizes, numbers):8.2f}", flush=True)
    print()
    if figure is not None:
        draw_costs(sizes, found, f"{repeats} interleaved repeats, torch {torch.__version__}, {threads} threads", figure)
        print(f"figure: {figure}")


def draw_costs(sizes: Sequence[int], found: dict[tuple[str, str], list[Cost]], how_often: str, path: Path) -> None:
    """Two panels, simulator steps and time, on log-log scales; the slope is the exponent."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from benchmarks.figures import style

    hues = {"replayed": style.COLOURS["spatial"][0], "closed form": style.COLOURS["joint"][0]}
    marks = dict(zip(dict.fromkeys(name for name, _ in found), "os^", strict=False))
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE, 3.0), layout="constrained")
        panels = figure.subplots(1, 2)
        titles = ("simulator steps charged an environment step", "microseconds an environment step")
        for axes, what, unit, title in zip(panels, ("steps", "seconds"), (1.0, 1e6), titles, strict=True):
            for (name, way), line in found.items():
                numbers = [getattr(cost, what) * unit for cost in line]
                label = f"{name}, {way}: N^{exponent(sizes, numbers):.2f}"
                how: dict[str, Any] = {"color": hues[way], "marker": marks[name], "label": label}
                size = 3.0 + 2.5 * (way == "closed form") + 1.5 * (name == "walking_robot")  # equal lines stay visible
                how |= {"markersize": size, "markerfacecolor": "none"}
                axes.plot(sizes, numbers, linestyle="-" if way == "replayed" else "--", **how)
            axes.set(xscale="log", yscale="log", xlabel="agents N", ylabel=title)
            axes.set_xticks(sizes, [str(n) for n in sizes])
            axes.minorticks_off()
            axes.grid(linewidth=0.3, color="#dddddd")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=6, handlelength=3)
        about = (
            f"Difference rewards of uniformly random play, about {COST_ROWS:,} environment steps a batch; the fastest "
            f"of {how_often}. Replayed:\n"
            "reward differences r(a) - r(a with i on its default). Closed form: the game's own, charged the "
            "steps that it replaces;\nin walking_robot, differences of all that is left of the episode."
            " On the left three lines coincide."
        )
        figure.supxlabel(about, fontsize=5, color="#555555")
        figure.savefig(path, dpi=200)
