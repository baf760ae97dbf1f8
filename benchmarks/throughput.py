"""How fast? Environment steps per second of training on walking_robot, and what a batch of seeds saves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

import marl
from benchmarks.methods import METHODS, pick
from benchmarks.plot import UsageError, parse
from marl.experiment import Experiment, learn


@dataclass(frozen=True)
class Arguments:
    """Time whole updates (rollout, credit, learning) on walking_robot, T=100, D=40, 32 episodes a seed."""

    methods: tuple[str, ...] = ("team + return",)
    """legend names"""
    n_agents: tuple[int, ...] = (3, 12)
    """team sizes"""
    seeds: tuple[int, ...] = (1, 5, 10)
    """numbers of seeds trained at once"""
    updates: int = 20
    """updates timed in each repeat"""
    repeats: int = 5
    """repeats, interleaved over numbers of seeds; medians are printed"""
    threads: int = 2
    """torch threads"""


def seconds(method: str, n_agents: int, seeds: int, updates: int) -> float:
    """Wall-clock of `updates` updates, nothing measured in between."""
    game = marl.load("credit/walking_robot-v0", n_agents=n_agents)
    steps = updates * game.horizon * METHODS[method].learner.episodes
    *_, last = learn(Experiment(game, METHODS[method], range(seeds), steps, points=1, judge=False))
    return last.seconds


def report(arguments: Arguments) -> None:
    """One line a (method, team size, number of seeds): steps per second, and time relative to one seed's."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        chosen = parse(Arguments, arguments, "python -m benchmarks.throughput")
        for knob in ("updates", "repeats", "threads"):
            if getattr(chosen, knob) < 1:
                raise UsageError(f"--{knob} {getattr(chosen, knob)} is not allowed; it must be 1 or more")
        torch.set_num_threads(chosen.threads)
        report(chosen)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
