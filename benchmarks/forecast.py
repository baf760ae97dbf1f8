"""How long will a sweep take? Each method's parts are timed briefly, warmed up, before any of it is run.

What happens only once is left out of the timing: machine code that is compiled, libraries that load parts on first use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import isnan, log
from statistics import median
from typing import Any

import torch

from benchmarks.engine import Engine, answers
from benchmarks.sweep import Cell, walk_sizes
from envs.base import MayRefuseBranches
from marl.experiment import Experiment, Stage, evaluation_marks, final_measure, has_truth, judge_walks, learn, measure
from marl.networks import tier
from marl.results import cell_id

FIXED = 4.0  # seconds, about, of a cell that is too short to be timed
BESIDE = 0.1  # seconds to build, write and fetch a cell, about
MOST = 60  # calibrations before a sweep
SHORT = 4  # updates; a calibration would take as long as such a run
UPDATES = (2, 8)  # timed at least and at most
SHARE = 32  # one update of so many is timed
FITS = 3  # timed, of the many before walks are judged
ONE = Engine(1)  # cell at a time, here

Times = dict[tuple[str, str], list[float]]  # (method, game) -> seconds on its smallest game and, if larger, its largest


def compile_once(cells: Sequence[Cell], say: Callable[[str], None]) -> None:
    """One update of every kind of learner, here: machine code is then on disk before workers look for it.

    The fused tier compiles on the first use after it was installed or changed; `say` is told when that begins. Where
    the code is there already this takes about a second.
    """
    if tier() != "fused":
        return
    from numba.core import event

    class Told(event.Listener):
        """Says it once."""

        def on_start(self, _: object) -> None:
            if not said:
                said.append("compiling the fast network kernels, once (a minute or so)")
                say(said[0])

        def on_end(self, _: object) -> None:
            """Needs no word."""

    said: list[str] = []
    kinds: dict[Any, Cell] = {}
    for cell in sorted((c for c in cells if c.device == "cpu"), key=_size):
        method = cell.experiment.method
        kinds.setdefault((type(method.learner), method.credit(cell.experiment.game).learns, cell.threads), cell)
    with event.install_listener("numba:compile", Told()):
        for cell in kinds.values():
            torch.set_num_threads(cell.threads)
            for _ in _updates(replace(cell.experiment, seeds=[0]), 1):
                pass


def calibrate(cell: Cell) -> float:
    """Seconds that this cell takes on this machine now, from some of its parts: updates, evaluations, the walks."""
    torch.set_num_threads(cell.threads)
    return BESIDE + seconds_of(cell.experiment) + _walks(cell)


def seconds_of(experiment: Experiment) -> float:
    """Seconds that `run` takes here and now. Of equal parts a few are timed, each after one that is not timed.

    updates x (median of a few) + evaluations x (the second) + the final figures.
    """
    E, outside = experiment, isinstance(experiment.game, MayRefuseBranches)  # those are slow: nothing is done twice
    warm = 0 if outside else 1
    count = 1 if outside else min(E.updates, max(UPDATES[0], min(UPDATES[1], E.updates // SHARE)))
    marks = [(time.perf_counter(), stage) for stage in _updates(E, warm + count)]
    update, stage = median(b - a for (a, _), (b, _) in pairwise(marks[warm:])), marks[-1][1]
    for _ in range(1 + warm):
        evaluation = _timed(partial(measure, E, stage))
    final = _timed(partial(final_measure, replace(E, final_episodes=E.episodes), stage.actor))
    points = len(evaluation_marks(E)) + 1
    return E.updates * update + points * evaluation + final * E.final_episodes / E.episodes


def _updates(experiment: Experiment, count: int) -> Iterator[Stage]:
    """So many updates: a stage before each and one at the end."""
    E = experiment
    return learn(replace(E, steps=count * E.game.horizon * E.method.learner.episodes, points=count))


def _walks(cell: Cell) -> float:
    """Seconds for `judge_walks`; of many equal fits a few are timed, and judged on one episode."""
    game, method, seeds = cell.experiment.game, cell.experiment.method, range(cell.judges)
    judged = partial(judge_walks, game, method, seeds=seeds)
    episodes, batches = walk_sizes(game)
    if not has_truth(game, episodes * len(seeds)):
        return 0.0
    few = min(FITS, batches)
    judged(1, 1)
    all_walks = _timed(partial(judged, episodes, 0))
    none, some = (_timed(partial(judged, 1, n)) for n in (0, few))
    return all_walks + max(0.0, some - none) * batches / few


def _timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def estimate(cells: Sequence[Cell], engine: Engine = ONE) -> dict[str, float]:
    """Seconds each cell will take beside others, by cell id.

    Each method is timed on the smallest and the largest game of a name, on the engine and as many at a time as will
    run; in between, time follows agents x horizon (`_between`). Where that is more than MOST calibrations, every method
    is timed on one game and the first method on all: time is then taken to be (of the method) x (of the game). A cell
    that fails here is met again when it runs.
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
            out[cell_id(c.config)] = _between(_size(c), (_size(group[0]), low), (_size(group[-1]), high))
    return out


def _between(size: int, small: tuple[int, float], large: tuple[int, float]) -> float:
    """Seconds of a game between two: overhead + rate x size, or a power of the size where that grows faster."""
    (a, low), (b, high) = small, large
    if a == b:
        return low
    if high / low <= b / a:
        return low + (high - low) * (size - a) / (b - a)
    return float(low * (high / low) ** (log(size / a) / log(b / a)))


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
