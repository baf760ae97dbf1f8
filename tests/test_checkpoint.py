"""A run that is interrupted and goes on is the run that was never interrupted, for every method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import marl
from benchmarks.methods import METHODS
from marl.checkpoint import Checkpoint
from marl.credit.base import ChainError
from marl.experiment import Experiment, run
from marl.results import Row

UPDATES = 3
# The first of these that a method fits: small, with an oracle, local rewards and light cones among them.
GAMES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("walking_robot", {"n_agents": 2, "horizon": 5, "delay": 2, "window": 2}),
    ("matrix_game", {}),
    ("key_door", {}),
    ("gaussian_squeeze", {"n_agents": 3}),
    ("spread", {"n_agents": 2, "horizon": 4}),
)


class Killed(Exception):
    """In place of SIGKILL."""


class Mortal(Checkpoint):
    """Writes after every update, and dies after the `last`-th."""

    last = 1

    def write(self, update: int, seconds: float, state: dict[str, Any]) -> None:
        super().write(update, seconds, state)
        self.last -= 1
        if self.last == 0:
            raise Killed


def config(name: str) -> dict[str, Any]:
    return {"question": "test", "name": name}


def experiment(name: str) -> Experiment:
    """`UPDATES` updates of two seeds on a tiny game, an evaluation point before each."""
    method = METHODS[name]
    for game, knobs in GAMES:
        loaded = marl.load(f"credit/{game}-v0", **knobs)
        try:
            method.credit(loaded)
        except ChainError:
            continue
        steps = UPDATES * loaded.horizon * method.learner.episodes
        return Experiment(loaded, method, (0, 3), steps, points=UPDATES, episodes=2, final_episodes=2)
    raise AssertionError(f"no game here fits {name}")


def comparable(rows: Iterator[Row]) -> list[str]:
    """Rows but for their clock, as text: NaN equals NaN."""
    return [repr(row._replace(seconds=0.0)) for row in rows]


@pytest.mark.parametrize("name", METHODS)
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """Killed after the first update, again after the second, then finished: every number but the clock is equal."""
    E = experiment(name)
    assert E.updates == UPDATES
    whole = comparable(run(E))
    for _ in range(UPDATES - 1):
        with pytest.raises(Killed):
            list(run(E, Mortal(tmp_path, config(name), every=0.0)))
    last = Checkpoint(tmp_path, config(name), every=0.0)
    assert comparable(run(E, last)) == whole
    assert last.file.is_file(), "whoever stores the rows removes it"
    assert not list(tmp_path.glob("*.tmp.*"))
