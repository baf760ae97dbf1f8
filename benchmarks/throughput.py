"""How fast? Steps per second of every game's rules beside mpe2's own stepping, of training, and what credit costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

import envs
import marl
from benchmarks import costs, timing
from benchmarks.asking import check_counts, guarded
from benchmarks.methods import METHODS, pick
from benchmarks.plot import UsageError, note, parse
from benchmarks.report import Tee
from envs.base import Env
from envs.noise import uniform
from marl.experiment import Experiment, learn
from marl.networks import tier

PARTS = ("rules", "rollout", "training", "where", "growth", "cost", "oracles")
ABOUT = {
    "cost": "What difference rewards cost: simulator steps and seconds against the number of agents.",
    "growth": "Seconds of an update against N, T, S and B.",
}
STEPS = 200  # steps of a small batch that one timing takes
ROWS = 1 << 17  # ... and rows of a large one, so that every timing has some milliseconds
AT = 1024  # the batch at which games are compared


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
    out: Path = Path("results/throughput")
    """folder of the report, in its subfolder figures"""


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
    found = timing.report_growth(arguments.methods[0], arguments.repeats, costs.exponent)
    if arguments.growth_figure is not None:
        about = (
            f"An update of {arguments.methods[0]!r} on walking_robot; where not varied N=3, T=50, one seed of 32\n"
            f"episodes. Median of {arguments.repeats} interleaved repeats, torch {torch.__version__}, "
            f"{arguments.threads} threads, tier {tier()}."
        )
        timing.draw_growth(found, costs.exponent, about, arguments.growth_figure)
        print(f"figure: {arguments.growth_figure}")


def check(chosen: Arguments) -> None:
    """Refuse, before any work, what cannot be timed."""
    check_counts(chosen, "updates", "repeats", "threads")
    for knob in ("batches", "n_agents", "sizes", "seeds"):
        if not getattr(chosen, knob) or min(getattr(chosen, knob)) < 1:
            raise UsageError(f"--{knob.replace('_', '-')} takes whole numbers, 1 or more")
    for word in chosen.what:
        if word not in PARTS:
            raise UsageError(f"--what {word} is not allowed; it must be one or more of {', '.join(PARTS)}")
    pick(list(chosen.methods))
    for name in chosen.games:
        envs.rules(name)


def answer(chosen: Arguments) -> None:
    """Time the parts that are asked for and print them."""
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
        costs.report_costs(chosen.sizes, chosen.repeats, chosen.figure, chosen.threads)
    if "oracles" in chosen.what:
        timing.report_oracles(chosen.repeats, chosen.quick)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""

    def act() -> None:
        chosen = parse(Arguments, arguments, "python -m benchmarks.throughput")
        check(chosen)
        torch.set_num_threads(chosen.threads)
        with redirect_stdout(Tee(sys.stdout)) as said:
            answer(chosen)
        summary = (
            f"{', '.join(chosen.what)}; torch threads: {chosen.threads}. Timings mean something on an idle machine."
        )
        figures = {"cost": chosen.figure, "growth": chosen.growth_figure}
        pictures = [(ABOUT[part], figure) for part, figure in figures.items() if part in chosen.what]
        print(f"report: {note(chosen.out, 'throughput', summary, said.getvalue(), pictures)}")

    return guarded(act)


if __name__ == "__main__":
    sys.exit(main())
