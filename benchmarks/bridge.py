"""Does our spread train what the field's does? IPPO as published, then the same policies in the real mpe2."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import marl
from benchmarks.asking import check_counts, guarded
from benchmarks.methods import METHODS
from benchmarks.plot import note, parse
from benchmarks.report import Tee
from envs.base import Env
from marl.experiment import Experiment, Stage, learn
from marl.statistics import Estimate, interval

SUMMARY = "IPPO trained on our spread, each agent on its own reward; the same policies evaluated there and in mpe2."


@dataclass(frozen=True)
class Arguments:
    """Train IPPO on each agent's own reward on spread (local_ratio .5), and evaluate it there and in the real mpe2."""

    seeds: int = 4
    """how many training seeds, 0, 1, ..."""
    steps: int = 1_000_000
    """environment steps per seed"""
    episodes: int = 100
    """evaluation episodes per seed, on each side"""
    threads: int = 2
    """torch threads"""
    out: Path = Path("results/bridge")
    """folder of the report, in its subfolder figures"""


def train(arguments: Arguments) -> tuple[Experiment, Stage]:
    """The trained population."""
    game = marl.load("credit/spread-v0", local_ratio=0.5)
    method = METHODS["IPPO on own reward"]
    experiment = Experiment(game, method, range(arguments.seeds), arguments.steps, points=1, judge=False)
    *_, last = learn(experiment)
    return experiment, last


def mean(values: np.ndarray, *, axis: int) -> np.ndarray:
    """The plain mean, as a statistic."""
    return np.asarray(np.mean(values, axis=axis))


def returns(game: Env[Any], experiment: Experiment, stage: Stage, episodes: int) -> Estimate:
    """Mean over agents of the return of a 25-step episode: mean over seeds with its 95% bootstrap interval."""
    played = marl.rollout(game, stage.actor, episodes, list(experiment.seeds), purpose="final")
    per_seed = played.reward.sum(0).reshape(len(experiment.seeds), -1).mean(1)
    return interval(per_seed.numpy(), statistic=mean)


def compare(chosen: Arguments, real: Env[Any]) -> None:
    """Train, evaluate on both sides, and print."""
    print(f"IPPO on own reward, spread, {chosen.seeds} seeds x {chosen.steps:,} environment steps")
    experiment, stage = train(chosen)
    total = experiment.updates * experiment.method.learner.episodes * experiment.game.horizon * chosen.seeds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"trained in {stage.seconds:.1f} s: {total / stage.seconds:,.0f} environment steps/s, peak {peak:,.0f} MiB")
    for name, game in (("spread", experiment.game), ("real mpe2", real)):
        value, low, high, runs = returns(game, experiment, stage, chosen.episodes)
        print(f"return per episode on {name:10s} {value:7.2f}  95% interval over {runs} seeds [{low:.2f}, {high:.2f}]")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""

    def act() -> None:
        chosen = parse(Arguments, arguments, "python -m benchmarks.bridge")
        check_counts(chosen, "seeds", "steps", "episodes", "threads")
        torch.set_num_threads(chosen.threads)
        real = marl.load("mpe2.simple_spread_v3", local_ratio=0.5, team_reward="mean")
        with redirect_stdout(Tee(sys.stdout)) as said:
            compare(chosen, real)
        print(f"report: {note(chosen.out, 'bridge', SUMMARY, said.getvalue())}")

    return guarded(act)


if __name__ == "__main__":
    sys.exit(main())
