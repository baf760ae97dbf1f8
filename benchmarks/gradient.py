"""Where does each credit pull the policy? Bias, variance and signal-to-noise of its gradient against the true one."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import envs
import marl
from benchmarks.cli import Progress, clock, knobs_from, listing
from benchmarks.methods import METHODS, pick, rank
from benchmarks.plot import UsageError, parse, redraw
from benchmarks.sweep import game_knobs, missing, side_by_side
from envs.base import Env
from marl import metrics
from marl.credit.base import ChainError
from marl.experiment import Experiment, learn
from marl.gradient import Pulls, estimates, fit, pulls
from marl.learn.policy_gradient import Ppo
from marl.policy import Actor
from marl.results import Row, cell_id, prepare, read, write_cell

NEUTRAL = "team + return"  # unbiased, and nobody's favourite: trains the policies that all methods are asked about
TRAINED = 60  # updates of it before the second stage: the return is about half-way up
TUNING = 1_000_000  # policies come from seeds that no other question reports
FITTING = 100  # batches of the frozen policy's episodes on which critics are fitted first
PPO_METHODS = "IPPO and MAPPO are GAE credit under another learner"


@dataclass(frozen=True)
class Options:
    """Bias, variance and signal-to-noise of every method's gradient, against the exact one, on games small enough."""

    list: bool = False
    """list the methods, what each needs and what it costs, and stop"""
    quick: bool = False
    """minutes on two cores instead of the full protocol"""
    methods: tuple[str, ...] = ()
    """legend names, separated by commas or given one by one (default: all that follow credit by REINFORCE)"""
    seeds: int | None = None
    """how many policies, each with critics and episodes of its own (default: 30; with --quick 5)"""
    batches: int | None = None
    """batches of episodes per policy; each gives one sample of the gradient (default: 512; with --quick 128)"""
    episodes: int = 32
    """episodes in a batch"""
    env: str | None = None
    """another game instead of the question's sweep, small enough to be enumerated"""
    env_args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """knobs of --env, values in JSON"""
    out: Path | None = None
    """folder for the cells; figures go to its subfolder figures (default: results/gradient)"""
    workers: int = os.cpu_count() or 1
    """cells that run side by side"""
    threads: int = 1
    """torch threads per cell; part of a cell's configuration"""
    force: bool = False
    """compute cells again that are already on disk"""


@dataclass(frozen=True)
class Cell:
    """One game with its knobs x one method, all policies."""

    game: str
    knobs: dict[str, Any]
    method: str
    seeds: int
    batches: int
    episodes: int
    threads: int = 1

    @cached_property
    def loaded(self) -> Env[Any]:
        """Raises ValueError, one sentence, for a game that cannot be or a method that it cannot serve."""
        game = marl.load(self.game, **self.knobs)
        METHODS[self.method].credit(game)
        return game

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its results depend on."""
        method = METHODS[self.method]
        about = {"name": self.method, "family": method.family, "rank": rank(self.method)}
        return {
            "question": "gradient",
            "game": self.game,
            "knobs": game_knobs(self.loaded, self.knobs),
            "method": {**about, "privileged": method.privileged, **method.describe()},
            "seeds": list(range(self.seeds)),
            "evaluation": {
                "batches": self.batches,
                "episodes": self.episodes,
                "policies": [0, TRAINED],
                "trained by": NEUTRAL,
                "fitted on": FITTING,
            },
            "threads": self.threads,
            "device": "cpu",
        }

    @property
    def name(self) -> str:
        """For people: the method and the knobs that were given."""
        return f"{self.method} ({', '.join(f'{k}={v}' for k, v in self.knobs.items())})"


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """walking_robot, small enough that every state can be listed: team size at one delay, delay at one team size."""
    base = {"horizon": 7, "window": 3, "n_cues": 2, "n_actions": 3} if quick else {"horizon": 8, "window": 4, "n_cues": 2}
    both = [(n, 2) for n in (2, 3, 4)] + [(3, d) for d in (0, 1, 3, *(() if quick else (4,)))]
    return [("credit/walking_robot-v0", {"n_agents": n, "delay": d, **base}) for n, d in sorted(both)]


@lru_cache(maxsize=4)
def stages(game: str, knobs: str, seeds: int) -> list[tuple[int, Actor, Pulls]]:
    """(environment steps, policy, exact pulls) before training and after a little of it; the same for all methods."""
    loaded = marl.load(game, **json.loads(knobs))
    method = METHODS[NEUTRAL]
    steps = TRAINED * loaded.horizon * method.learner.episodes
    names = range(TUNING, TUNING + seeds)
    found = []
    for stage in learn(Experiment(loaded, method, names, steps, points=1, judge=False)):
        actor = copy.deepcopy(stage.actor)
        done = stage.update * loaded.horizon * method.learner.episodes
        found.append((done, actor, pulls(loaded, actor)))
    return found


def measure(cell: Cell) -> Iterator[Row]:
    """Every policy's scores at every stage."""
    started = time.perf_counter()
    for steps, actor, exact in stages(cell.game, json.dumps(cell.knobs), cell.seeds):
        chain = METHODS[cell.method].credit(cell.loaded, actor.seeds, actor)
        fit(chain, cell.loaded, actor, cell.episodes, FITTING)
        chain.context.simulator.steps.zero_()
        g = estimates(cell.loaded, actor, chain, cell.episodes, cell.batches)
        spent, seconds = chain.context.simulator.steps, time.perf_counter() - started
        for metric, values in scored(g.double().numpy(), exact).items():
            for seed, value in enumerate(values):
                yield Row(seed, steps, int(spent[seed]), seconds, metric, float(value))
