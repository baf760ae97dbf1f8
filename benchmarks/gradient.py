"""Where does each credit pull the policy? Bias, variance and signal-to-noise of its gradient against the true one."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import marl
from benchmarks.asking import (
    Common,
    check_counts,
    chosen_game,
    chosen_methods,
    machines,
    report,
    run_main,
    work_through,
)
from benchmarks.methods import METHODS, rank
from benchmarks.plot import UsageError
from benchmarks.sweep import game_knobs, missing
from envs.base import Env
from marl import metrics
from marl.credit.base import ChainError
from marl.expected_gradient import Pulls, pulls
from marl.experiment import Experiment, learn
from marl.gradient import estimates, fit
from marl.learn.policy_gradient import PolicyGradient, Reinforce
from marl.oracle.exact import reach
from marl.policy import Actor
from marl.results import Row, cell_id, prepare, read, write_cell
from marl.statistics import iqm

NEUTRAL = "team + return"  # unbiased, and nobody's favourite: trains the policies that all methods are asked about
TRAINED = 60  # updates of it before the second stage: the return is about half-way up
TUNING = 1_000_000  # policies come from seeds that no other question reports
FITTING = 100  # batches of the frozen policy's episodes on which critics are fitted first
CALIBRATION = 4  # batches that are timed to estimate the rest
STAGES = 2  # before training and after a little of it


@dataclass(frozen=True)
class Options(Common):
    """Bias, variance and signal-to-noise of every method's gradient, against the exact one, on games small enough.

    Default: all methods that REINFORCE follows (--quick: 15), 30 policies (--quick: 5), each with critics and episodes
    of its own.
    """

    batches: int | None = None
    """batches of episodes per policy; each gives one sample of the gradient (default: 512; with --quick 96)"""
    episodes: int = 32
    """episodes in a batch"""


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


# PPO follows the credit of GAE with another learner, Q-learners follow none: REINFORCE's methods are what is asked.
ASKED = tuple(name for name, method in METHODS.items() if isinstance(method.learner, Reinforce))
QUICK = (
    "team + return",
    "team + immediate",
    "team + recency",
    "team + TD",
    "team + GAE",
    "difference + return",
    "aristocrat + return",
    "difference + GAE",
    "COMA",
    "agent total",
    "first step aristocrat",
    "difference on Q",
    "aristocrat on Q",
    "reference O8",
    "reference O6",
)


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """walking_robot, small enough to list every state: team size at one delay, delay at one team size."""
    base = {"horizon": 7, "window": 3, "n_cues": 2} if quick else {"horizon": 8, "window": 4, "n_cues": 3}
    delay, delays = (1, (0, 1, 3)) if quick else (2, (0, 1, 2, 3, 4))
    grid = {(n, delay) for n in (2, 3, 4)} | {(3, d) for d in delays}
    return [("credit/walking_robot-v0", {"n_agents": n, "delay": d, **base}) for n, d in sorted(grid)]


@lru_cache(maxsize=8)
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
    """Every policy's scores at every stage; `simulator_steps` are those that the batches asked for."""
    started = time.perf_counter()
    for steps, actor, exact in stages(cell.game, json.dumps(cell.knobs), cell.seeds):
        chain = METHODS[cell.method].credit(cell.loaded, actor.seeds, actor)
        fit(chain, cell.loaded, actor, cell.episodes, FITTING)
        before = chain.context.simulator.steps
        samples = estimates(cell.loaded, actor, chain, cell.episodes, cell.batches)
        spent, seconds = chain.context.simulator.steps - before, time.perf_counter() - started
        for metric, values in scored(samples.double().numpy(), exact).items():
            for seed, value in enumerate(values):
                yield Row(seed, steps, int(spent[seed]), seconds, metric, float(value))


def scored(samples: NDArray[np.float64], exact: Pulls) -> dict[str, NDArray[np.float64]]:
    """Samples [S,n,P] against the true gradient, and against what order predicts; [S] each."""
    true, myopic, differences = (x.numpy() for x in exact)
    found = {f"gradient_{name}": value for name, value in metrics.gradient(samples, true)._asdict().items()}
    for name, prediction in (("myopic", myopic), ("differences", differences)):
        told = metrics.gradient(samples, prediction)
        found |= {f"{name}_cosine": told.cosine, f"{name}_bias": told.bias}
        found[f"{name}_cosine_with_truth"] = metrics.gradient(prediction[:, None], true).cosine
    return found


def run_cell(cell: Cell, folder: Path) -> None:
    """Measure, and write the cell."""
    torch.set_num_threads(cell.threads)
    write_cell(folder, cell.config, list(measure(cell)))


def plan(options: Options) -> list[Cell]:
    """Every cell of the run. Raises ValueError, one sentence, for anything in it that cannot be."""
    check_counts(options, "seeds", "batches", "episodes", "workers", "threads")
    machines(options)
    chosen = chosen_methods(options)
    names = chosen or list(QUICK if options.quick else ASKED)
    for name in names:
        if not isinstance(METHODS[name].learner, PolicyGradient):
            raise UsageError(f"{name!r} learns action values and follows no policy gradient; choose another method")
    asked = chosen_game(options)
    games = settings(options.quick) if asked is None else [asked]
    size = (options.seeds or (5 if options.quick else 30), options.batches or (96 if options.quick else 512))
    cells, left_out = [], {}
    for game, knobs in games:
        reach(marl.load(game, **knobs))  # refuses a game that cannot be listed, before anything is run
        for method in names:
            cell = Cell(game, knobs, method, *size, options.episodes, options.threads)
            try:
                cell.loaded  # noqa: B018  building it is the check
                cells.append(cell)
            except ChainError as error:
                if chosen:
                    raise
                left_out[method] = f"left out: {method}: {error}"
    for line in left_out.values():
        print(line)
    return cells


def estimate(cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds each cell will take alone, by cell id: each method is timed for a few batches on its largest game."""
    seconds: dict[str, float] = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        mine = [cell for cell in cells if cell.method == method]
        largest = max(mine, key=lambda cell: cell.loaded.n_agents * cell.loaded.horizon)
        seconds |= dict.fromkeys((cell_id(cell.config) for cell in mine), _seconds(largest))
    return seconds


def _seconds(cell: Cell) -> float:
    """A short calibration: fitting and asking grow with the batches."""
    torch.set_num_threads(cell.threads)
    actor = Actor(cell.loaded, range(cell.seeds))
    chain = METHODS[cell.method].credit(cell.loaded, actor.seeds, actor)
    marks = [time.perf_counter()]
    fit(chain, cell.loaded, actor, cell.episodes, CALIBRATION)
    marks.append(time.perf_counter())
    estimates(cell.loaded, actor, chain, cell.episodes, CALIBRATION)
    marks.append(time.perf_counter())
    fitting, asking = marks[1] - marks[0], marks[2] - marks[1]
    return STAGES * (fitting * FITTING + asking * cell.batches) / CALIBRATION


def answer(options: Options) -> None:
    """Plan, run what is missing, print the table, draw the figures."""
    folder = options.out or Path("results") / ("gradient" + "-quick" * options.quick)
    cells = plan(options)
    prepare(folder)
    todo = missing(cells, folder, options.force)
    games = list(dict.fromkeys(f"{c.game} {' '.join(f'{k}={v}' for k, v in c.knobs.items())}" for c in cells))
    names = list(dict.fromkeys(c.method for c in cells))
    one = cells[0]
    print(f"gradient: {len(games)} games x {len(names)} methods = {len(cells)} cells")
    print(f"  games:    {'; '.join(games)}")
    print(f"  methods:  {'; '.join(names)}")
    print(f"  budget:   {one.seeds} policies x {STAGES} stages x {one.batches} batches of {one.episodes} episodes")
    print(f"  on disk:  {len(cells) - len(todo)} cells done, {len(todo)} to run, in {folder}")
    if todo:
        work_through(todo, partial(run_cell, folder=folder.resolve()), estimate(todo), machines(options), folder)
    ids = {cell_id(c.config) for c in cells}
    report(folder, ids, final_table(folder, ids))


def final_table(folder: Path, cells: set[str]) -> str:
    """Methods x games: interquartile mean over policies of cosine and signal-to-noise, after a little training."""
    rows = read(folder, cells)
    rows = rows[rows["env_steps"] == rows.groupby("cell")["env_steps"].transform("max")]
    varying = [k for k in ("game", "n_agents", "delay") if k in rows and rows[k].nunique() > 1] or ["game"]
    columns = list(rows.groupby(varying, sort=True))
    heads = [", ".join(f"{k}={v}" for k, v in zip(varying, key, strict=True)) for key, _ in columns]
    width = max(12, *(len(head) + 2 for head in heads))
    lines = ["", "cosine with the true gradient / signal-to-noise of a batch, interquartile means over policies"]
    lines.append(f"{'':26s}" + "".join(f"{head:>{width}s}" for head in heads))
    for method in [name for name in METHODS if name in set(rows["method"])]:
        cells_of = []
        for _, part in columns:
            mine = part[part["method"] == method]
            both = [iqm(mine[mine["metric"] == m]["value"]) for m in ("gradient_cosine", "gradient_snr")]
            cells_of.append(f"{both[0]:.2f} /{both[1]:6.2f}")
        lines.append(f"{method:26s}" + "".join(f"{text:>{width}s}" for text in cells_of))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return run_main(Options, answer, "python -m benchmarks.gradient", arguments)


if __name__ == "__main__":
    from benchmarks import gradient  # cells travel to other processes under their module's name, not as __main__'s

    sys.exit(gradient.main())
