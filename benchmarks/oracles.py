"""Do the oracles agree with each other, cost what their formulas say, and answer in seconds?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import marl
from benchmarks.asking import check_counts, report, run_main, work_through
from benchmarks.engine import Engine
from benchmarks.sweep import game_knobs, missing
from envs.base import Env, default_actions
from marl.oracle import oracle
from marl.results import Row, cell_id, prepare, read, write_cell
from marl.rollout import rollout
from marl.types import Truth

ROUNDING = 1e-9  # of float64, in which agreement is checked
REPLAYS = (4, 16, 64, 256, 1024)
ORDERS = (4, 16, 64)  # of players in a sampled Shapley value: each asks about as many plans as there are units


@dataclass(frozen=True)
class Options:
    """Do the oracles agree with each other, cost what their formulas say, and answer in seconds?"""

    quick: bool = False
    """a quarter of the replays"""
    memory: int = 1024
    """MiB that an oracle may hold at once"""
    out: Path | None = None
    """folder for the cells; figures go to its subfolder figures (default: results/oracles)"""
    engine: Literal["local", "ray"] = "local"
    """where cells run: on this machine, or on a Ray cluster that shares the folder (needs the extra ray)"""
    address: str | None = None
    """of the Ray cluster, HOST:PORT (default: RAY_ADDRESS, or the one that was started on this machine)"""
    workers: int = 1
    """cells that run side by side; what is timed is slower beside another"""
    force: bool = False
    """compute cells again that are already on disk"""


@dataclass(frozen=True)
class Cell:
    """One check: a kind of truth on a game, by two ways or against its price or clock."""

    check: str  # "agreement", "cost" or "time"
    kind: str
    game: str
    knobs: dict[str, Any]
    ways: tuple[str, ...] = ("exact", "sampled")  # agreement: the first is taken as true
    replays: tuple[int, ...] = REPLAYS
    episodes: tuple[int, ...] = (256,)
    memory: int = 1024  # MiB

    @cached_property
    def loaded(self) -> Env[Any]:
        """The game."""
        return marl.load(f"credit/{self.game}-v0", **self.knobs)

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its results depend on."""
        about = {"name": self.name, "family": "reference", "rank": 0, "privileged": False}
        return {
            "question": "oracles",
            "game": f"credit/{self.game}-v0",
            "knobs": game_knobs(self.loaded, self.knobs),
            "method": about,
            "check": self.check,
            "kind": self.kind,
            "ways": list(self.ways),
            "replays": list(self.replays),
            "memory": self.memory,
            "episodes": list(self.episodes),
            "seeds": [0],
            "threads": 1,
            "device": "cpu",
        }

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind}: {' and '.join(self.ways) if self.check == 'agreement' else self.check}"


SMALL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("matrix_game", {"payoff": "two_step"}),
    ("el_farol", {"n_agents": 3, "n_nights": 2, "capacity": 2.0}),
    ("quorum", {"n_agents": 4, "quorum": 2}),
    ("walking_robot", {"n_agents": 2, "horizon": 6, "delay": 2, "window": 3, "n_cues": 2, "fall_penalty": 1.0}),
)
"""Games on which the means over luck are known by enumeration."""

CLOSED: tuple[tuple[str, str, dict[str, Any], tuple[str, str]], ...] = (
    ("O8", "walking_robot", {"n_agents": 6, "horizon": 60, "delay": 20, "window": 12}, ("closed", "exact")),
    ("O8", "el_farol", {"n_agents": 12, "capacity": 2.0}, ("closed", "exact")),
    ("O8", "gaussian_squeeze", {"n_agents": 10}, ("closed", "exact")),
    ("O8", "quorum", {}, ("closed", "exact")),
    ("O8 Shapley", "el_farol", {"n_agents": 8, "capacity": 2.0}, ("closed", "exact")),
    ("O8 Shapley", "el_farol", {"n_agents": 10, "capacity": 2.0}, ("closed", "sampled")),
    ("O8 Shapley", "walking_robot", {"n_agents": 2, "horizon": 6, "delay": 2, "window": 3}, ("closed", "exact")),
    ("O1 Shapley", "el_farol", {"n_agents": 6, "capacity": 2.0}, ("exact", "sampled")),
)
"""Where a game knows its own truth, or an exact Shapley value meets its estimate by random orders."""

PRICED = ("spread", {"n_agents": 3, "horizon": 12})  # no episode ends early, so that formulas hold without "at most"


def prices(B: int, T: int, N: int, A: int, M: int, units: Tensor) -> dict[tuple[str, str], int]:
    """(kind, how) -> simulator steps of the design's formulas; units [B]: how many are off the baseline."""
    ahead = T * (T + 1) // 2
    return {
        ("O1 difference", "exact"): B * T * N,
        ("O1 aristocrat", "exact"): B * T * N * (A - 1),
        ("O1 Shapley", "exact"): B * T * 2**N,
        ("O1 Shapley", "sampled"): M * B * T * 2 * N,
        ("O2", "sampled"): M * B * 2 * ahead,
        ("O3", "sampled"): M * B * (1 + N * (A - 1)) * ahead,
        ("O4", "sampled"): M * B * (1 + N * (A - 1)) * ahead,
        ("O5", "sampled"): M * B * (N + 1) * ahead,
        ("O6", "exact"): B * N * (A - 1) * ahead,
        ("O7", "exact"): B * N * T,
        ("O7 reacting", "exact"): B * N * T,
        ("O8", "exact"): B * N * ahead,
        ("O8 Shapley", "sampled"): M * T * 2 * int(units.sum()),
    }


WALK = {"n_agents": 6, "delay": 10, "window": 10}
HEADLINE = {**WALK, "horizon": 100}
TIMED: tuple[tuple[str, str, dict[str, Any], tuple[int, ...]], ...] = (
    ("O6", "exact", {**WALK, "horizon": 25}, (8, 32)),
    ("O6", "exact", {**WALK, "horizon": 50}, (8, 32)),
    ("O6", "exact", HEADLINE, (8, 32)),
    ("O8 simulated", "exact", HEADLINE, (8, 32, 128)),
    ("O3", "sampled", {**WALK, "horizon": 50}, (4, 16)),
    ("O5", "sampled", {**WALK, "horizon": 50}, (4, 16)),
)
"""Questions that are timed, with how many episodes each."""
REPEATS = 3  # of what is timed, of which the fastest counts: other work on the machine can only slow it


def plan(quick: bool) -> list[Cell]:
    """Every check; quick: a quarter of the replays."""
    means, many = ("O2", "O3", "O4", "O5"), REPLAYS[:-1] if quick else REPLAYS
    cells = [Cell("agreement", kind, game, knobs, replays=many) for game, knobs in SMALL for kind in means]
    cells += [Cell("agreement", kind, game, knobs, both, ORDERS) for kind, game, knobs, both in CLOSED]
    game = marl.load(f"credit/{PRICED[0]}-v0", **PRICED[1])
    asked = prices(1, 1, game.n_agents, game.n_actions, 1, torch.ones(1))
    cells += [Cell("cost", kind, *PRICED, (how,), (3,), (4,)) for kind, how in asked]
    cells += [Cell("time", kind, "walking_robot", knobs, (how,), (4,), sizes) for kind, how, knobs, sizes in TIMED]
    return cells


def ask(cell: Cell, how: str, replays: int, episodes: int, dtype: torch.dtype = torch.float64) -> tuple[Truth, float]:
    """The oracle's answer about episodes of random play, and the seconds it took."""
    tau = rollout(cell.loaded, None, episodes, purpose="oracles", dtype=dtype)
    started = time.perf_counter()
    found = oracle(cell.loaded, None, tau, cell.kind, how=how, replays=replays, memory=cell.memory << 20)
    return found, time.perf_counter() - started


def agreement(cell: Cell) -> Iterator[Row]:
    """How far the second way is from the first, in units of its own standard errors, for each number of replays."""
    first, second = cell.ways
    truth, _ = ask(cell, first, cell.replays[-1], cell.episodes[0])
    tau = rollout(cell.loaded, None, cell.episodes[0], purpose="oracles", dtype=torch.float64)
    live = tau.alive[..., None].expand(truth.values.shape)
    for replays in cell.replays if second == "sampled" else cell.replays[-1:]:
        found, seconds = ask(cell, second, replays, cell.episodes[0])
        off, error = (found.values - truth.values).abs()[live], found.error[live]
        beyond = (off - ROUNDING).clamp(min=0)
        counted = {
            "cells": float(live.sum()),
            "outside_3": float((beyond > 3 * error).double().mean()),
            "outside_6": float((beyond > 6 * error).double().sum()),  # where no error is stated, any gap is outside
            "certain": float((error == 0).double().mean()),
            "largest_gap": float(off.max()),
            "rms_error": float(off.square().mean().sqrt()),
            "rms_stated": float(error.square().mean().sqrt()),
        }
        for name, value in counted.items():
            yield Row(0, 0, found.cost, seconds, f"{name}@{replays}", value)


def cost(cell: Cell) -> Iterator[Row]:
    """Simulator steps, predicted and counted."""
    game, replays, episodes = cell.loaded, cell.replays[0], cell.episodes[0]
    found, seconds = ask(cell, cell.ways[0], replays, episodes)
    tau = rollout(game, None, episodes, purpose="oracles", dtype=torch.float64)
    units = (tau.action != default_actions(game)).flatten(2).sum((0, 2))
    table = prices(episodes, game.horizon, game.n_agents, game.n_actions, replays, units)
    yield Row(0, 0, found.cost, seconds, "steps_predicted", table[cell.kind, cell.ways[0]])
    yield Row(0, 0, found.cost, seconds, "steps_counted", found.cost)


def clocked(cell: Cell) -> Iterator[Row]:
    """Steps and seconds of one question, for growing numbers of episodes; single precision, as methods are judged."""
    for episodes in cell.episodes:
        several = [ask(cell, cell.ways[0], cell.replays[0], episodes, torch.float32) for _ in range(REPEATS)]
        found, seconds = min(several, key=lambda pair: pair[1])
        yield Row(0, 0, found.cost, seconds, f"steps_counted@{episodes}", found.cost)


CHECKS: dict[str, Callable[[Cell], Iterator[Row]]] = {"agreement": agreement, "cost": cost, "time": clocked}
ABOUT = {"agreement": 4.0, "cost": 0.2, "time": 8.0}  # seconds


def run_cell(cell: Cell, folder: Path) -> None:
    """Check, and write the cell."""
    torch.set_num_threads(1)
    write_cell(folder, cell.config, list(CHECKS[cell.check](cell)))


def answer(options: Options) -> None:
    """Plan, check what is missing, print the tables, draw the figures."""
    check_counts(options, "workers", "memory")
    engine = Engine(options.workers, kind=options.engine, address=options.address)
    cells = [replace(cell, memory=options.memory) for cell in plan(options.quick)]
    folder = options.out or Path("results") / ("oracles" + "-quick" * options.quick)
    prepare(folder)
    todo = missing(cells, folder, options.force)
    print(f"oracles: {len(cells)} checks")
    print(f"  on disk:  {len(cells) - len(todo)} cells done, {len(todo)} to run, in {folder}")
    if todo:
        seconds = {cell_id(c.config): ABOUT[c.check] for c in todo}
        work_through(todo, partial(run_cell, folder=folder.resolve()), seconds, engine, folder)
    report(folder, {cell_id(c.config) for c in cells}, tables(cells, folder))


def tables(cells: Sequence[Cell], folder: Path) -> str:
    """Agreement, prices, and the clock."""
    rows = read(folder, {cell_id(c.config) for c in cells})
    measured = {cell: part for cell, part in rows.groupby("cell")}
    lines = ["", "agreement: cells outside 3 and 6 standard errors (of a way without error: any gap at all)"]
    lines.append(
        f"  {'truth':12s}{'game':18s}{'taken as true':14s}{'checked':9s}{'replays':>8s}{'cells':>8s}",
    )
    lines[-1] += f"{'> 3 s.e.':>10s}{'> 6 s.e.':>9s}{'certain':>9s}{'largest gap':>13s}"
    for cell in (c for c in cells if c.check == "agreement"):
        found = dict(measured[cell_id(cell.config)][["metric", "value"]].itertuples(index=False, name=None))
        M = cell.replays[-1]
        lines.append(
            f"  {cell.kind:12s}{cell.game:18s}{cell.ways[0]:14s}{cell.ways[1]:9s}"
            f"{M if cell.ways[1] == 'sampled' else '-':>8}{found[f'cells@{M}']:>8,.0f}{found[f'outside_3@{M}']:>10.2%}"
            f"{found[f'outside_6@{M}']:>9.0f}{found[f'certain@{M}']:>9.0%}{found[f'largest_gap@{M}']:>13.2g}"
        )
    lines += ["", f"price: simulator steps of {PRICED[0]} {PRICED[1]}, where no episode ends early"]
    lines.append(f"  {'truth':14s}{'how':10s}{'by the formula':>16s}{'counted':>12s}")
    for cell in (c for c in cells if c.check == "cost"):
        found = dict(measured[cell_id(cell.config)][["metric", "value"]].itertuples(index=False, name=None))
        predicted, counted = found["steps_predicted"], found["steps_counted"]
        note = "" if predicted == counted else "  DIFFERS"
        lines.append(f"  {cell.kind:14s}{cell.ways[0]:10s}{predicted:>16,.0f}{counted:>12,.0f}{note}")
    lines += ["", f"clock: walking_robot N=6 on one core, the fastest of {REPEATS}"]
    lines.append(f"  {'truth':14s}{'T':>5s}{'episodes':>10s}{'steps':>12s}{'seconds':>9s}{'steps/s':>12s}")
    for cell in (c for c in cells if c.check == "time"):
        for row in measured[cell_id(cell.config)].itertuples(index=False):
            told = f"  {cell.kind:14s}{cell.knobs['horizon']:>5d}{row.metric.split('@')[1]:>10s}{row.value:>12,.0f}"
            lines.append(f"{told}{row.seconds:>9.2f}{row.value / row.seconds:>12,.0f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for input that cannot be."""
    return run_main(Options, answer, "python -m benchmarks.oracles", arguments)


if __name__ == "__main__":
    from benchmarks import oracles  # cells travel to other processes under their module's name, not as __main__'s

    sys.exit(oracles.main())
