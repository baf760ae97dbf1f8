"""Estimates of a sweep: what happens once is left out, parts are multiplied by how often they come, cells scheduled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from benchmarks import forecast
from benchmarks.asking import makespan
from benchmarks.engine import Engine
from benchmarks.sweep import Cell, walk_sizes
from marl.experiment import Experiment, Stage, evaluation_marks
from marl.results import cell_id

ONCE = 1000.0  # seconds of whatever is done for the first time


def cell(method: str = "team + GAE", n_agents: int = 3, steps: int = 64_000) -> Cell:
    """A small sweep's."""
    knobs = {"n_agents": n_agents, "horizon": 20, "delay": 5, "window": 5}
    return Cell("q", "credit/walking_robot-v0", knobs, method, 2, steps)


class Machine:
    """A clock that only the parts of a run move, each with its own price, and dearer on first use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, update: float, evaluation: float, episode: float) -> None:
        self.now, self.done = 0.0, set[str]()
        self.update, self.evaluation, self.episode = update, evaluation, episode
        monkeypatch.setattr(forecast, "time", self)
        monkeypatch.setattr(forecast, "learn", self.learn)
        monkeypatch.setattr(forecast, "measure", lambda E, stage: self.spend("measure", self.evaluation))
        monkeypatch.setattr(forecast, "final_measure", lambda E, actor: self.spend("", self.episode * E.final_episodes))

    def perf_counter(self) -> float:
        return self.now

    def spend(self, part: str, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds + ONCE * (part not in self.done and part != "")
        self.done.add(part)

    def learn(self, experiment: Experiment) -> Iterator[Stage]:
        class Training:
            evaluated = None

        for k in range(experiment.updates):
            yield Stage(k, Training(), None, 0.0)  # type: ignore[arg-type]
            self.spend("update", self.update if k != 2 else 50 * self.update)  # once somebody else had the core
        yield Stage(experiment.updates, Training(), None, 0.0)  # type: ignore[arg-type]


def test_a_run_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates x update + points x evaluation + final episodes, to rounding: no first use, no single slow update."""
    E = cell().experiment
    Machine(monkeypatch, update=0.25, evaluation=3.0, episode=0.01)
    expected = E.updates * 0.25 + (len(evaluation_marks(E)) + 1) * 3.0 + E.final_episodes * 0.01
    assert E.updates == 100 and forecast.seconds_of(E) == pytest.approx(expected)


def test_the_parts_that_are_timed_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long run a small share: two evaluations, at most eight updates and the one before them."""
    machine = Machine(monkeypatch, update=1.0, evaluation=1.0, episode=0.0)
    E = cell(steps=6_400_000).experiment
    told = forecast.seconds_of(E)
    assert machine.now - 2 * ONCE - 50 + 1 <= 9 + 2 and told > 10_000


@pytest.mark.parametrize("fit", [0.0, 0.5])
def test_walks_cost_their_judging_and_every_fit(monkeypatch: pytest.MonkeyPatch, fit: float) -> None:
    """A few fits stand for all of them, and what one call costs is not taken for a fit."""
    machine, c = Machine(monkeypatch, 0, 0, 0), cell()
    episodes, batches = walk_sizes(c.experiment.game)

    def judge(game: Any, method: Any, B: int, n: int, seeds: Sequence[int]) -> None:
        machine.spend("judge", 0.125 * B + fit * n)

    monkeypatch.setattr(forecast, "judge_walks", judge)
    assert forecast._walks(c) == pytest.approx(0.125 * episodes + fit * batches)
    monkeypatch.setattr(forecast, "has_truth", lambda game, B: False)
    assert forecast._walks(c) == 0, "nothing is judged where there is no truth"


LAWS: dict[str, Callable[[int], float]] = {
    "power": lambda n: 0.5 * n**1.5,
    "overhead": lambda n: 2.0 + 0.25 * n,
    "proportional": lambda n: 0.25 * n,
    "constant": lambda n: 2.0,
}


@pytest.mark.parametrize("law", LAWS)
def test_time_between_two_sizes_follows_the_size(monkeypatch: pytest.MonkeyPatch, law: str) -> None:
    """Two ends are asked; an overhead with a rate, and a power above one, come back exactly."""
    asked: list[int] = []

    def answers(cells: Sequence[Cell], ask: Any, engine: Engine) -> list[float]:
        asked.extend(c.knobs["n_agents"] for c in cells)
        return [LAWS[law](c.knobs["n_agents"]) for c in cells]

    monkeypatch.setattr(forecast, "answers", answers)
    cells = [cell(n_agents=n) for n in (3, 6, 12, 24)]
    found = forecast.estimate(cells)
    assert asked == [3, 24]
    for c in cells:
        assert found[cell_id(c.config)] == pytest.approx(LAWS[law](c.knobs["n_agents"]))


def test_wall_clock_is_that_of_the_longest_worker() -> None:
    """By hand; one worker takes the sum; never below the mean or the longest cell."""
    cells = [3.0, 3.0, 2.0, 2.0, 2.0]
    assert makespan(cells, 2) == 7.0 and makespan(cells, 1) == 12.0 and makespan(cells, 9) == 3.0
    assert makespan([10.0, 1.0, 1.0], 2) == 10.0


@pytest.mark.parametrize("fresh", [True, False])
def test_compilation_is_announced_once_and_only_where_it_happens(monkeypatch: pytest.MonkeyPatch, fresh: bool) -> None:
    """numba says when it compiles; code that comes from the disk is no word worth."""
    event = pytest.importorskip("numba.core.event")
    monkeypatch.setattr(forecast, "tier", lambda: "fused")
    ran: list[Experiment] = []

    def learn(experiment: Experiment) -> Iterator[Stage]:
        ran.append(experiment)
        for _ in range(2 * fresh):
            with event.trigger_event("numba:compile"):
                pass
        yield from ()

    monkeypatch.setattr(forecast, "learn", learn)
    said: list[str] = []
    forecast.compile_once(
        [cell(m, n) for m in ("team + return", "team + GAE", "IPPO", "VDN") for n in (6, 3)], said.append
    )
    assert len(said) == fresh and all("once" in line for line in said)
    assert len(ran) >= 3 and all(E.updates == 1 and E.game.n_agents == 3 for E in ran), "small games, one update each"
    monkeypatch.setattr(forecast, "tier", lambda: "torch")
    forecast.compile_once([cell()], said.append)
    assert len(said) == fresh
