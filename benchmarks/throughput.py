"""How fast? Steps per second of every game's rules beside mpe2's own stepping, of training, and what credit costs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

import envs
import marl
from benchmarks import timing
from benchmarks.methods import METHODS, pick
from benchmarks.plot import UsageError, parse
from envs.base import Env
from envs.noise import uniform
from marl.credit.base import Context
from marl.credit.spatial.difference import Difference
from marl.experiment import Experiment, learn
from marl.networks import tier
from marl.oracle import baseline_of, closed, natural_baseline
from marl.rollout import rollout

PARTS = ("rules", "rollout", "training", "where", "growth", "cost", "oracles")
STEPS = 200  # steps of a small batch that one timing takes
ROWS = 1 << 17  # ... and rows of a large one, so that every timing has some milliseconds
AT = 1024  # the batch at which games are compared
COST_ROWS = 500  # environment steps of a batch whose credit is timed
COSTED = (
    ("el_farol", "replayed"),
    ("el_farol", "closed form"),
    ("walking_robot", "replayed"),
    ("walking_robot", "closed form"),
)
"""Games and ways whose cost is measured against N: a one-shot game and one of a hundred steps."""


@dataclass(frozen=True)
class Arguments:
    """Time the rules of games (a step and what all agents then see), updates of training, and credit against N."""

    what: tuple[str, ...] = PARTS
    """rules, rollout, training, where (the time goes), growth, cost, oracles"""
    games: tuple[str, ...] = tuple(envs.GAMES)
    """games whose rules are timed, with their default knobs"""
    batches: tuple[int, ...] = (1, 64, 1024, 4096)
    """episodes side by side in the rules"""
    methods: tuple[str, ...] = ("team + return",)
    """legend names, trained on walking_robot, T=100, D=40, 32 episodes a seed"""
    n_agents: tuple[int, ...] = (3, 12)
    """team sizes in training"""
    seeds: tuple[int, ...] = (1, 5, 10)
    """numbers of seeds trained at once"""
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    """team sizes at which the cost of credit is measured"""
    figure: Path | None = None
    """PNG file for the figure of the cost part (default: none is drawn)"""
    growth_figure: Path | None = None
    """PNG file for the figure of the growth part (default: none is drawn)"""
    quick: bool = False
    """ask the oracles about less: a few episodes of three agents"""
    updates: int = 20
    """updates timed in each repeat of training"""
    repeats: int = 5
    """repeats, interleaved over what is compared; medians are printed"""
    threads: int = 2
    """torch threads"""


def rules_timer(game: Env[Any], batch: int) -> Callable[[], float]:
    """A function that times random play: env-steps/s of `step` and then `observe`, noise and actions at hand."""
    steps = max(1, min(STEPS, ROWS // batch))
    rows = torch.arange(batch)
    first = uniform("throughput/reset", 0, rows, (game.reset_noise_size,))
    later = uniform("throughput/step", 0, rows, (game.horizon, game.step_noise_size)).transpose(0, 1).contiguous()
    u = uniform("throughput/action", 0, rows, (game.horizon, game.n_agents)).transpose(0, 1)
    plan = (u * game.n_actions).long().contiguous()

    def rate() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            for k in range(steps):
                if k % game.horizon == 0:
                    state = game.reset(first)
                    game.observe(state)
                state = game.step(state, plan[k % game.horizon], later[k % game.horizon]).state
                game.observe(state)
            return steps * batch / (time.perf_counter() - start)

    return rate


def mpe2_timer() -> Callable[[], float]:
    """mpe2's simple_spread_v3 stepping itself, one episode at a time: env-steps per second."""
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env(local_ratio=0.0)
    env.reset(seed=0)
    space = env.action_space(env.possible_agents[0])
    plans = [{agent: space.sample() for agent in env.possible_agents} for _ in range(STEPS)]

    def rate() -> float:
        start = time.perf_counter()
        for plan in plans:
            if not env.agents:
                env.reset()
            env.step(plan)
        return STEPS / (time.perf_counter() - start)

    return rate


def report_rules(arguments: Arguments) -> None:
    """A line a game: env-steps per second at each batch, against mpe2, and time an agent-step against spread's."""
    games = {name: envs.rules(name) for name in dict.fromkeys((*arguments.games, "spread"))}
    timers = {(name, b): rules_timer(game, b) for name, game in games.items() for b in {*arguments.batches, AT}}
    mpe2 = mpe2_timer()
    rates: dict[Any, list[float]] = {key: [] for key in (*timers, "mpe2")}
    for timer in (mpe2, *timers.values()):
        timer()  # warm up
    for _ in range(arguments.repeats):
        for key, timer in timers.items():
            rates[key].append(timer())
        rates["mpe2"].append(mpe2())
    peer = median(rates["mpe2"])
    print(timing.jaxmarl_line())
    if find_spec("jaxmarl") is not None:
        jax = {b: median(timing.jaxmarl_timer(b)() for _ in range(arguments.repeats)) for b in arguments.batches}
        print("JaxMARL, env-steps/s: " + ", ".join(f"B={b} {rate:,.0f}" for b, rate in jax.items()))
    print("rules: env-steps/s (times mpe2's simple_spread_v3 stepping in brackets), median of interleaved repeats")
    heads = "".join(f"{f'B={b}':>21s}" for b in arguments.batches)
    print(f"{'game':18s} {'N':>3s}{heads}  time of an agent-step at B={AT} / spread's")
    print(f"{'mpe2 itself':18s} {3:3d}{f'{peer:,.0f} (1)':>21s}")
    spread = median(rates["spread", AT]) * games["spread"].n_agents
    for name in arguments.games:
        middle = {b: median(rates[name, b]) for b in {*arguments.batches, AT}}
        cells = "".join(f"{f'{middle[b]:,.0f} ({middle[b] / peer:,.3g})':>21s}" for b in arguments.batches)
        slower = spread / (middle[AT] * games[name].n_agents)
        print(f"{name:18s} {games[name].n_agents:3d}{cells}  {slower:.2f}", flush=True)
    print()


def seconds(method: str, n_agents: int, seeds: int, updates: int) -> float:
    """Wall-clock of `updates` updates, nothing measured in between."""
    game = marl.load("credit/walking_robot-v0", n_agents=n_agents)
    steps = updates * game.horizon * METHODS[method].learner.episodes
    *_, last = learn(Experiment(game, METHODS[method], range(seeds), steps, points=1, judge=False))
    return last.seconds


def report_training(arguments: Arguments) -> None:
    """One line a (method, team size, number of seeds): steps per second, and time relative to one seed's."""
    print("training on walking_robot: env-steps/s of whole updates (rollout, credit, learning)")
    print(f"{'method':24s} {'N':>4s} {'seeds':>6s} {'env-steps/s':>12s}  time / time of {arguments.seeds[0]} seed(s)")
    for method in pick(list(arguments.methods)):
        for n in arguments.n_agents:
            for s in arguments.seeds:
                seconds(method, n, s, 2)  # warm up
            repeats = range(arguments.repeats)
            times = [{s: seconds(method, n, s, arguments.updates) for s in arguments.seeds} for _ in repeats]
            for s in arguments.seeds:
                rate = median(s * arguments.updates * 3200 / t[s] for t in times)
                ratio = median(t[s] / t[arguments.seeds[0]] for t in times)
                print(f"{method:24s} {n:4d} {s:6d} {rate:12,.0f}  {ratio:.2f}", flush=True)


def peer_rate(repeats: int) -> float:
    """mpe2's own stepping: median env-steps per second."""
    timer = mpe2_timer()
    timer()  # warm up
    return median(timer() for _ in range(repeats))


def report_growth(arguments: Arguments) -> None:
    """Updates of the first method against N, T, S and B, and their figure."""
    found = timing.report_growth(arguments.methods[0], arguments.repeats, exponent)
    if arguments.growth_figure is not None:
        about = (
            f"An update of {arguments.methods[0]!r} on walking_robot; where not varied N=3, T=50, one seed of 32\n"
            f"episodes. Median of {arguments.repeats} interleaved repeats, torch {torch.__version__}, "
            f"{arguments.threads} threads, tier {tier()}."
        )
        timing.draw_growth(found, exponent, about, arguments.growth_figure)
        print(f"figure: {arguments.growth_figure}")


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


def report_costs(arguments: Arguments) -> None:
    """Difference rewards against N: simulator steps and time an environment step, each with its fitted exponent."""
    sizes = sorted(set(arguments.sizes))
    found = costs(sizes, arguments.repeats)
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
    if arguments.figure is not None:
        draw_costs(sizes, found, arguments, arguments.figure)
        print(f"figure: {arguments.figure}")


def draw_costs(
    sizes: Sequence[int], found: dict[tuple[str, str], list[Cost]], arguments: Arguments, path: Path
) -> None:
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
            f"of {arguments.repeats} interleaved repeats, torch {torch.__version__}, {arguments.threads} threads. "
            "Replayed:\nreward differences r(a) - r(a with i on its default). Closed form: the game's own, charged the "
            "steps that it replaces;\nin walking_robot, differences of all that is left of the episode."
            " On the left three lines coincide."
        )
        figure.supxlabel(about, fontsize=5, color="#555555")
        figure.savefig(path, dpi=200)


def check(chosen: Arguments) -> None:
    """Refuse, before any work, what cannot be timed."""
    for knob in ("updates", "repeats", "threads"):
        if getattr(chosen, knob) < 1:
            raise UsageError(f"--{knob} {getattr(chosen, knob)} is not allowed; it must be 1 or more")
    for knob in ("batches", "n_agents", "sizes", "seeds"):
        if not getattr(chosen, knob) or min(getattr(chosen, knob)) < 1:
            raise UsageError(f"--{knob.replace('_', '-')} takes whole numbers, 1 or more")
    for word in chosen.what:
        if word not in PARTS:
            raise UsageError(f"--what {word} is not allowed; it must be one or more of {', '.join(PARTS)}")
    pick(list(chosen.methods))
    for name in chosen.games:
        envs.rules(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        chosen = parse(Arguments, arguments, "python -m benchmarks.throughput")
        check(chosen)
        torch.set_num_threads(chosen.threads)
        if "rules" in chosen.what:
            report_rules(chosen)
        if "rollout" in chosen.what:
            timing.report_rollout(envs.rules("spread"), chosen.batches, chosen.repeats, peer_rate(chosen.repeats))
        if "training" in chosen.what:
            report_training(chosen)
        if "where" in chosen.what:
            names = dict.fromkeys((*chosen.methods, "IPPO"))
            timing.report_where(tuple(names), envs.rules("spread"), chosen.seeds, chosen.updates, chosen.repeats)
        if "growth" in chosen.what:
            report_growth(chosen)
        if "cost" in chosen.what:
            report_costs(chosen)
        if "oracles" in chosen.what:
            timing.report_oracles(chosen.repeats, chosen.quick)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
