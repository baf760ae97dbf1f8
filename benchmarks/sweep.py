"""A question is a list of cells; a sweep runs what is missing, side by side, and keeps whatever is done.

A cell is one game with its knobs x one method, all seeds. Cells are written whole or not at all, so a sweep that was
killed is finished by running the same command again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

import marl
from benchmarks.engine import Configured
from benchmarks.methods import METHODS, rank
from envs.base import Env, MayRefuseBranches
from marl.checkpoint import EVERY, Checkpoint
from marl.experiment import Experiment, Method, failed, judge_walks, run
from marl.networks import tier
from marl.results import cell_id, credit_columns, done, write_cell
from marl.tensorboard import logged

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
    tuned: str = ""  # the stored search (`benchmarks.tune`) that its method's settings are from

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
            **({"tuned": self.tuned} if self.tuned else {}),
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
