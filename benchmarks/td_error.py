"""When does a value notice a mistake? TD error under V*, under a learned V, and the trace that spreads it backwards.

With delta_t = r_t + V(s_{t+1}) - V(s_t): V* falls at the culprit's step, where the walk is lost. A learned V can fall
there only if what it reads shows the damage; else it falls with the robot, D steps late. GAE's trace
sum_k lambda^k delta_{t+k} reaches back over that delay only as far as lambda^D does. All three judge the same episodes
of uniformly random play; what is learned is fitted to that policy first. Nobody is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import marl
from benchmarks.asking import check_counts, knobs_from, report, run_main
from benchmarks.methods import METHODS, rank
from benchmarks.sweep import game_knobs, missing
from envs.base import Env
from marl.credit.spatial.team import Team
from marl.credit.temporal.immediate import Immediate
from marl.credit.temporal.potential import OptimalShaping, PotentialShaping
from marl.experiment import Method, failed, judge_walks
from marl.results import ResultsError, Row, cell_id, credit_columns, prepare, write_cell

BARE = partial(Immediate, baseline="none")
# A reward shaped with a value is its TD error. Each signal looks like the method that learns from it.
SIGNALS: dict[str, tuple[Method, str]] = {
    "TD error of V*": (Method((OptimalShaping, Team, BARE), "temporal"), "potential V* + return"),
    "TD error of a learned V": (Method((PotentialShaping, Team, BARE), "temporal"), "potential V + return"),
    "trace of a learned V": (METHODS["team + central GAE"], "team + central GAE"),
}
GAME = "credit/walking_robot-v0"
KNOBS = {"n_agents": 6, "delay": 24, "horizon": 60, "window": 12}
SEES = ("none", "critic")  # who sees the damage: nobody, or the critic
EPISODES, SHOWN = 64, 3  # judged, and failed ones of them that are stored
SCORES = ("credit_pearson", "culprit_auc", "top1_culprit", "blame_mass")


@dataclass(frozen=True)
class Options:
    """Options of this question."""

    env_args: tuple[str, ...] = ()
    """knobs of walking_robot, values in JSON, for example n_agents=12 delay=40; observe_damage is both "none" and
    "critic" unless given"""
    batches: int = 100
    """batches of 32 episodes that the learned value is fitted to first"""
    out: Path | None = None
    """folder for the cells; figures go to its subfolder figures (default: results/td_error)"""
    force: bool = False
    """compute cells again that are already on disk"""


@dataclass(frozen=True)
class Cell:
    """One game with its knobs x one signal."""

    knobs: dict[str, Any]
    signal: str
    batches: int

    @cached_property
    def game(self) -> Env[Any]:
        return marl.load(GAME, **self.knobs)

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its results depend on."""
        method, like = SIGNALS[self.signal]
        about = {"name": self.signal, "family": method.family, "rank": rank(like), "privileged": method.privileged}
        where = {"question": "td_error", "game": GAME, "knobs": game_knobs(self.game, self.knobs)}
        judged = {"episodes": EPISODES, "batches": self.batches, "shown": SHOWN}
        return {**where, "method": about | method.describe(), "seeds": [0], "evaluation": judged, "threads": 1}


def run_cell(cell: Cell, folder: Path) -> Path:
    """Fit, judge, write. Raises ResultsError where no episode failed or the game has no truth."""
    torch.set_num_threads(1)
    walks = judge_walks(cell.game, SIGNALS[cell.signal][0], EPISODES, cell.batches)
    if walks is None:
        raise ResultsError(f"{GAME} with {cell.knobs} is too large for its truth to be simulated")
    t = walks.trajectory
    wanted = torch.from_numpy(failed(t, walks.truth)).nonzero()[:SHOWN, 0]
    if not len(wanted):
        raise ResultsError(f"none of {EPISODES} episodes of {GAME} with {cell.knobs} failed; there is no walk to show")
    rows = [Row(0, 0, 0, 0.0, f"walk_{name}", float(walks.scores[name][0])) for name in SCORES]
    credit = credit_columns(0, wanted, walks.credit[:, wanted], walks.truth[:, wanted], t.alive[:, wanted])
    return write_cell(folder, cell.config, rows, credit)


def answer(options: Options) -> None:
    """Compute what is missing, print the table, draw the figure."""
    check_counts(options, "batches")
    given = KNOBS | knobs_from(options.env_args)
    settings = [given] if "observe_damage" in given else [given | {"observe_damage": who} for who in SEES]
    cells = [Cell(knobs, signal, options.batches) for knobs in settings for signal in SIGNALS]
    folder = options.out or Path("results") / "td_error"
    for cell in cells:
        cell.config  # noqa: B018  building it is the check
    prepare(folder)
    for cell in missing(cells, folder, options.force):
        print(f"{cell.signal}, {', '.join(f'{k}={v}' for k, v in cell.knobs.items())}", flush=True)
        run_cell(cell, folder)
    ids = {cell_id(cell.config) for cell in cells}
    report(folder, ids, table(folder, ids))


def table(folder: Path, cells: set[str]) -> str:
    """Who is found by which signal: scores on failed episodes against the truth (O8)."""
    rows = marl.results.read(folder, cells)
    lines = ["", f"{'signal':26s}{'damage seen by':>16s}" + "".join(f"{name:>16s}" for name in SCORES)]
    for who in rows["observe_damage"].unique():
        for signal in SIGNALS:
            mine = rows[(rows["observe_damage"] == who) & (rows["method"] == signal)].set_index("metric")["value"]
            lines.append(f"{signal:26s}{who:>16s}" + "".join(f"{mine[f'walk_{name}']:16.2f}" for name in SCORES))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for input that cannot be."""
    return run_main(Options, answer, "python -m benchmarks.td_error", arguments)


if __name__ == "__main__":
    sys.exit(main())
