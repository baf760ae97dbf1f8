"""A question is a list of cells; a sweep runs what is missing, side by side, and keeps whatever is done.

A cell is one game with its knobs x one method, all seeds. Cells are written whole or not at all, so a sweep that was
killed is finished by running the same command again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from math import isnan, log
from pathlib import Path
from typing import Any, TypeVar

import torch

import marl
from benchmarks.engine import Configured, Engine, answers
from benchmarks.methods import METHODS, rank
from envs.base import Env, MayRefuseBranches
from marl.checkpoint import EVERY, Checkpoint
from marl.experiment import Experiment, Method, evaluation_marks, failed, judge_walks, learn, measure, run
from marl.networks import tier
from marl.results import cell_id, credit_columns, done, write_cell
from marl.rollout import rollout
from marl.tensorboard import logged

FIXED = 4.0  # seconds, about, of a cell that is too short to be timed
BESIDE = 0.1  # seconds to build, write and fetch a cell, about
MOST = 60  # calibrations before a sweep
SHORT = 4  # updates; a calibration would take as long as such a run
ONE = Engine(1)  # cell at a time, here
SHOWN_WALKS = 3  # failed episodes whose credit maps are stored

ConfiguredT = TypeVar("ConfiguredT", bound=Configured)


@dataclass(frozen=True)
class Cell:
    """One game with its knobs x one method, all seeds."""

    question: str
    game: str  # as `--env` takes it
    knobs: dict[str, Any]
    method: str  # legend name
    seeds: int  # how many: 0, 1, ...
    steps: int
    threads: int = 1  # torch threads: part of the configuration, for floating point depends on it
    evaluation: tuple[int, int, int] = (16, 32, 320)  # points, episodes at each, episodes at the end
    budget: str = ""  # what games of different horizons have in common, where that is not `steps`
    device: str = "cpu"  # where tensors live
    judges: int = 1  # seeds on which its credit for random walks is judged, each with episodes and fits of its own
    methods: Mapping[str, Method] = field(default_factory=lambda: METHODS)  # where the legend name is looked up

    @cached_property
    def experiment(self) -> Experiment:
        """Raises ValueError, one sentence, for whatever in it cannot be."""
        game = marl.load(self.game, **self.knobs)
        experiment = Experiment(
            game, self.methods[self.method], range(self.seeds), self.steps, *self.evaluation, device=self.device
        )
        experiment.method.credit(game)  # refuses a game that lacks what the method needs
        return experiment

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its results depend on."""
        method = self.methods[self.method]
        about = {"name": self.method, "family": method.family, "rank": rank(self.method, self.methods)}
        return {
            "question": self.question,
            "game": self.game,
            "knobs": game_knobs(self.experiment.game, self.knobs),
            "method": {**about, "privileged": method.privileged, **method.describe()},
            **self.experiment.describe(),
            "threads": self.threads,
            "device": self.device,
            "tier": tier(),
            **({"budget": self.budget} if self.budget else {}),
            **({"judges": self.judges} if self.judges != 1 else {}),
        }

    @property
    def name(self) -> str:
        """For people: the method and the knobs that were given."""
        return f"{self.method} ({', '.join(f'{k}={v}' for k, v in self.knobs.items())})"


def game_knobs(game: Env[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Every knob of a game of rules, defaults included; for an external game what was given."""
    names = [f.name for f in fields(game) if f.init]  # type: ignore[arg-type]
    values = {name: getattr(game, name) for name in names}
    return given if any(not _json(v) for v in values.values()) else values


def _json(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_json(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)


def run_cell(cell: Cell, folder: Path, tensorboard: Path | None = None, every: float = EVERY) -> Path:
    """Train, measure, judge the stored walks, and write the cell; every so many seconds keep what there is of it."""
    torch.set_num_threads(cell.threads)
    kept = Checkpoint(folder, cell.config, every)
    measured = run(cell.experiment, kept)
    if tensorboard is not None:
        measured = logged(measured, tensorboard / f"{cell.name} {cell_id(cell.config)[:6]}")
    rows = list(measured)
    game, method = cell.experiment.game, cell.experiment.method
    size = walk_sizes(game)
    walks = judge_walks(game, method, *size, seeds=range(cell.judges))
    credit = None
    if walks is not None:
        last = rows[-1]
        for name, values in walks.scores.items():
            rows += [last._replace(seed=k, metric=f"walk_{name}", value=float(v)) for k, v in enumerate(values)]
        first = torch.from_numpy(failed(walks.trajectory, walks.truth))[: size[0]]  # episodes of the first seed
        wanted = first.nonzero()[:SHOWN_WALKS, 0]
        t = walks.trajectory
        if len(wanted):
            credit = credit_columns(0, wanted, walks.credit[:, wanted], walks.truth[:, wanted], t.alive[:, wanted])
    path = write_cell(folder, cell.config, rows, credit)
    kept.remove()
    return path


def walk_sizes(game: Env[Any]) -> tuple[int, int]:
    """(episodes, batches of fitting) of the stored walks; a game from outside is stepped one episode at a time."""
    return (8, 3) if isinstance(game, MayRefuseBranches) else (64, 100)


def missing(cells: Sequence[ConfiguredT], folder: Path, force: bool) -> list[ConfiguredT]:
    """The cells whose rows are not on disk (all of them with force)."""
    return [c for c in cells if force or not done(folder, c.config)]


def calibrate(cell: Cell) -> float:
    """Seconds that this cell takes on this machine now, from some of its parts: updates, one evaluation, the walks."""
    torch.set_num_threads(cell.threads)
    E, outside = cell.experiment, isinstance(cell.experiment.game, MayRefuseBranches)
    game, method = E.game, E.method
    first, count = (0, 1) if outside else (1, 2)  # the first update also wakes up what torch loads on use
    short = replace(E, steps=count * game.horizon * method.learner.episodes, points=count)
    stages = [(stage, time.perf_counter()) for stage in learn(short)]
    stage, marks = stages[-1][0], [mark for _, mark in stages]
    update = (marks[-1] - marks[first]) / (count - first)
    evaluation = _timed(lambda: measure(E, stage))
    if evaluation < 1.0:  # the first one also wakes things up
        evaluation = min(evaluation, _timed(lambda: measure(E, stage)))
    play = _timed(lambda: rollout(game, stage.actor, E.episodes, list(E.seeds), purpose="evaluation"))
    points = len(evaluation_marks(E)) + 1
    return BESIDE + E.updates * update + points * evaluation + 2 * play * E.final_episodes / E.episodes + _walks(cell)


def _walks(cell: Cell) -> float:
    """Seconds for `judge_walks`; of many equal fits a few are timed."""
    game, method = cell.experiment.game, cell.experiment.method
    (episodes, batches), seeds = walk_sizes(game), range(cell.judges)
    few = min(2, batches)
    none, some = (_timed(partial(judge_walks, game, method, episodes, n, seeds)) for n in (0, few))
    return none + max(0.0, some - none) * batches / few


def _timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def estimate(cells: Sequence[Cell], engine: Engine = ONE) -> dict[str, float]:
    """Seconds each cell will take beside others, by cell id.

    Each method is timed on the smallest and the largest game of a name, on the engine and as many at a time as will
    run; in between, the time is a power of agents x horizon. Where that is more than MOST calibrations, every method is
    timed on one game and the first method on all: time is then taken to be (of the method) x (of the game). A cell that
    fails here is met again when it runs.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=_size):
        groups.setdefault((cell.method, cell.game), []).append(cell)
    long = {key: g for key, g in groups.items() if g[-1].experiment.updates > SHORT}
    ends = {key: g[:1] if _size(g[0]) == _size(g[-1]) else [g[0], g[-1]] for key, g in long.items()}
    asked = _few(ends)
    flat = [c for key in asked for c in ends[key]]
    times = iter(answers(flat, calibrate, engine))
    found = {key: [next(times) for _ in ends[key]] for key in asked}
    known = [seconds for pair in found.values() for seconds in pair if not isnan(seconds)]
    out = {cell_id(c.config): FIXED for c in cells}
    for (method, game), group in long.items():
        low, high = _of(method, game, found, max(known, default=FIXED))
        for c in group:
            part = log(_size(c) / _size(group[0])) / max(1e-9, log(_size(group[-1]) / _size(group[0])))
            out[cell_id(c.config)] = low * (high / low) ** part
    return out


Times = dict[tuple[str, str], list[float]]  # (method, game) -> seconds on its smallest game and, if larger, its largest


def _few(ends: Mapping[tuple[str, str], Sequence[Cell]]) -> list[tuple[str, str]]:
    """The (method, game) to be timed: all, or a cross of one row and one column."""
    if sum(map(len, ends.values())) <= MOST:
        return list(ends)
    method, game = next(iter(ends))
    own = dict(reversed(list(ends)))  # a method that does not fit the first game is timed on its own first
    chosen = {(m, game if (m, game) in ends else g) for m, g in own.items()} | {key for key in ends if key[0] == method}
    return [key for key in ends if key in chosen]


def _of(method: str, game: str, found: Times, unknown: float) -> tuple[float, float]:
    """Seconds of a method on the smallest and the largest game of a name; from the cross where it was not timed."""
    if (method, game) not in found:
        first, other = next(iter(found))[0], next(g for m, g in found if m == method)
        mine, there, here = found[method, other], found.get((first, other)), found.get((first, game))
        if there is None or here is None:
            return _of(method, other, found, unknown)
        pair = [mine[0] / there[0] * seconds for seconds in here]
    else:
        pair = found[method, game]
    low, high = pair[0], pair[-1]
    return (unknown, unknown) if isnan(low + high) else (low, high)


def _size(cell: Cell) -> int:
    return cell.experiment.game.n_agents * cell.experiment.game.horizon
