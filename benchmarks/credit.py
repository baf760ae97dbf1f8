"""How right is each method's credit, on the same trajectories? Every score against the truth, at three stages."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import marl
from benchmarks import oracles
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
from benchmarks.figures.credit_scoreboard import MIDDLE, PARTS, TRUTH, at_stage, defined
from benchmarks.methods import METHODS, rank
from benchmarks.sweep import game_knobs, missing
from benchmarks.trial import CONTROLS, MARKS, NEUTRAL, PROGRESS, Stage, control_fits, fitted, kinds, stages
from envs.base import Env, MayRefuseBranches
from marl import metrics
from marl.credit.base import ChainError
from marl.experiment import Experiment, run
from marl.oracle import ways
from marl.policy import Actor
from marl.results import Row, cell_id, credit_columns, prepare, read, write_cell
from marl.rollout import rollout
from marl.statistics import iqm

Scores = dict[str, NDArray[np.float64]]

ROUNDING = 1e-6  # of the largest number that a credit is computed from, in float32
SHOWN = 3  # failed episodes whose credit maps are stored
FINAL_EPISODES = 320
CALIBRATION = 2  # batches that are timed to estimate the rest
TRUTH_SECONDS = 4.0  # policies and truths of a game, about; the larger games of the table take more


@dataclass(frozen=True)
class Options(Common):
    """How right is each method's credit? Every score against the truth, on trajectories that all methods share."""

    episodes: int = 32
    """episodes that are judged, per seed and stage"""
    fits: int = 40
    """batches of as many episodes on which a method's critics and models are fitted first"""
    updates: int | None = None
    """updates of training, of judged policies and of each method for its final score (default: 80; with --quick 60)"""
    replays: int = 32
    """replays of each value of the truth, where it cannot be had exactly"""
    memory: int = 1024
    """MiB that an oracle may hold at once; a game that does not fit is sampled instead of enumerated"""
    oracles: bool = False
    """check the oracles themselves instead, as python -m benchmarks.oracles does"""


class Protocol(NamedTuple):
    """Everything but the game and the method."""

    seeds: int
    episodes: int
    fits: int
    updates: int
    replays: int
    memory: int
    threads: int


@dataclass(frozen=True)
class Cell:
    """One game with its knobs x one method or control, all seeds and stages."""

    game: str
    knobs: dict[str, Any]
    method: str
    protocol: Protocol

    @cached_property
    def loaded(self) -> Env[Any]:
        """Raises ValueError, one sentence, for a game that cannot be or a method that it cannot serve."""
        game = marl.load(self.game, **self.knobs)
        if self.method in METHODS:
            METHODS[self.method].credit(game)
        return game

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What all methods of this game are asked about."""
        how = self.protocol
        return stages(self.game, json.dumps(self.knobs), how.updates, how.seeds, how.episodes, how.replays, how.memory)

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its results depend on."""
        how = self.protocol
        return {
            "question": "credit",
            "game": self.game,
            "knobs": game_knobs(self.loaded, self.knobs),
            "method": about(self.method),
            "seeds": list(range(how.seeds)),
            "budget": f"{how.updates} updates",
            "evaluation": {
                "episodes": how.episodes,
                "fitted on": how.fits,
                "replays": how.replays,
                "memory": how.memory,
                "stages": [0, *PROGRESS],
                "marks": MARKS,
                "trained by": NEUTRAL,
                "final episodes": FINAL_EPISODES,
            },
            "truths": list(kinds(self.loaded)),
            "threads": how.threads,
            "device": "cpu",
        }

    @property
    def name(self) -> str:
        """For people: the method, the game and the knobs that were given."""
        knobs = ", ".join(f"{k}={v}" for k, v in self.knobs.items())
        return f"{self.method} ({self.game.removeprefix('credit/')} {knobs})"


def about(name: str) -> dict[str, Any]:
    """A method's description, or a control's."""
    if name in CONTROLS:
        place = list(CONTROLS).index(name)
        return {"name": name, "family": "control", "rank": place, "privileged": False, "chain": [], "needs": []}
    method = METHODS[name]
    found = {"name": name, "family": method.family, "rank": rank(name), "privileged": method.privileged}
    return {**found, **method.describe()}


# The question.

GAMES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("matrix_game", {"payoff": "two_step"}),
    ("el_farol", {"n_agents": 4, "n_nights": 3, "capacity": 1.0}),
    ("gaussian_squeeze", {"n_agents": 4}),
    ("quorum", {"n_agents": 6, "quorum": 3}),
    ("key_door", {"n_agents": 2, "horizon": 9}),
    ("assembly_line", {"n_agents": 3, "spacing": 1, "inspection": 2, "horizon": 8, "n_cues": 2}),
    ("cleanup", {"n_agents": 2, "waste": 2, "apples": 2, "horizon": 10}),
    ("walking_robot", {"n_agents": 3, "horizon": 8, "delay": 2, "window": 4, "n_cues": 3}),
    ("walking_robot", {"n_agents": 6, "horizon": 16, "delay": 6, "window": 6}),
    ("rover_grid", {"n_agents": 2, "size": 4, "n_points": 2, "horizon": 8}),
    ("spread", {"n_agents": 2, "horizon": 10}),
)
"""Sizes at which the truth is exact, or sampled to within a few percent in seconds. A new game is one line here."""

QUICK_GAMES = ("matrix_game", "el_farol", "walking_robot")  # of each the first in the table
ASKED = tuple(name for name in METHODS if name != "IQL Boltzmann")  # explores otherwise than IQL, which plays no part
QUICK = (
    "team + return",
    "team + immediate",
    "team + recency",
    "team + GAE",
    "difference + return",
    "aristocrat + return",
    "COMA",
    "Shapley of Q",
    "QMIX",
    "agent total",
    "first step aristocrat",
    "aristocrat on Q",
    "reference O8",
    "reference O6",
)


def settings(quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """The games of the question with their knobs."""
    named = [(f"credit/{name}-v0", knobs) for name, knobs in GAMES]
    if not quick:
        return named
    first = {name: k for k, (name, _) in reversed(list(enumerate(GAMES)))}
    return [named[first[name]] for name in QUICK_GAMES]


def plan(options: Options) -> list[Cell]:
    """Every cell of the run. Raises ValueError, one sentence, for anything in it that cannot be."""
    check_counts(options, "seeds", "episodes", "fits", "updates", "replays", "memory", "workers", "threads")
    machines(options)
    quick = options.quick
    protocol = Protocol(
        options.seeds or (3 if quick else 5),
        options.episodes,
        options.fits,
        options.updates or (60 if quick else 80),
        options.replays,
        options.memory,
        options.threads,
    )
    chosen, game = chosen_methods(options), chosen_game(options)
    cells, left_out = [], {}
    for name, knobs in settings(quick) if game is None else [game]:
        loaded = marl.load(name, **knobs)
        check_truth(loaded)
        mine = [Cell(name, knobs, control, protocol) for control in CONTROLS if control_fits(control, loaded)]
        for method in chosen or (QUICK if quick else ASKED):
            cell = Cell(name, knobs, method, protocol)
            try:
                cell.loaded  # noqa: B018  building it is the check
                mine.append(cell)
            except ChainError as error:
                if chosen:
                    raise
                left_out[method] = f"left out where it does not fit: {method}: {error}"
        cells += mine
    for line in left_out.values():
        print(line)
    return cells


def check_truth(game: Env[Any]) -> None:
    """Raise ValueError for a game whose truths cannot be had."""
    if isinstance(game, MayRefuseBranches) and not all(ways(game, kind) for kind in kinds(game)):
        raise ValueError(f"{type(game).__name__} has no truth of O3 and O5: its luck cannot be drawn anew")


# Measuring.


def run_cell(cell: Cell, folder: Path) -> None:
    """Measure, and write the cell."""
    torch.set_num_threads(cell.protocol.threads)
    rows: list[Row] = []
    shown: dict[str, Any] | None = None
    spent = 0.0
    for k, stage in enumerate(cell.stages):
        started = time.perf_counter()
        credits, steps, altered = given(cell, stage)
        spent += time.perf_counter() - started
        found = scored(stage, credits) | ({} if altered is None else agogino(stage, altered))
        for metric, values in found.items():
            for seed, value in enumerate(values):
                rows.append(Row(seed, stage.steps, int(steps[seed]), spent, metric, float(value)))
        if k == MIDDLE:
            shown = maps(stage, credits[kinds(cell.loaded)[2]])
    if cell.method in CONTROLS:
        shown = None  # on the same page as the methods they would only crowd it
    else:
        rows += final(cell)
    write_cell(folder, cell.config, rows, shown)


def given(cell: Cell, stage: Stage) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """(credit by truth that it is held against, simulator steps [S], credit of the changed lives or None).

    A method's credit is the same whatever it is held against; a control is made of that very truth.
    """
    if cell.method in CONTROLS:
        make, alive = CONTROLS[cell.method], stage.trajectory.alive
        made = {kind: make(truth.values, alive) for kind, truth in stage.truths.items()}
        return made, torch.zeros(cell.protocol.seeds), None
    method = fitted(METHODS[cell.method], cell.loaded, stage.actor, cell.protocol.episodes, cell.protocol.fits)
    credit, steps = method.credit(stage.trajectory)
    credit = without_rounding(credit, stage.trajectory.reward.sum(0), cell.protocol.seeds)
    return dict.fromkeys(stage.truths, credit), steps, method.credit(stage.changes.lives)[0]


def without_rounding(credit: Tensor, returns: Tensor, S: int) -> Tensor:
    """Credit in which agents are equal at a step where they differ by less than float32 can tell.

    Baselines are means over a batch, and rounding differs from agent to agent: a broadcast would else name someone in
    the few episodes in which it is nearly 0. The measure is each seed's largest credit or return.
    """
    largest = torch.maximum(credit.abs().amax((0, 2)), returns.abs()).reshape(S, -1).amax(1)
    least = (ROUNDING * largest.double()).repeat_interleave(len(returns) // S)[:, None]
    mean = credit.double().mean(-1, keepdim=True)
    apart = credit.double() - mean
    return mean + torch.where(apart.abs() < least, 0.0, apart)


def scored(stage: Stage, credits: dict[str, Tensor]) -> Scores:
    """name -> [S]: the mean of each score over the episodes where it is defined, and the share of these."""
    tau, S = stage.trajectory, stage.actor.n_seeds
    alive, action = tau.alive.numpy(), tau.action.numpy()
    state = metrics.state_keys([x.numpy() for x in tau.state])
    out: Scores = {}
    for kind, truth in stage.truths.items():
        c, o = credits[kind].double().numpy(), truth.values.double().numpy()
        for name, each in metrics.scores(c, o, alive, stage.failed).items():
            value, defined = zip(*(metrics.average(part) for part in each.reshape(S, -1)), strict=True)
            out[f"{kind}_{name}"] = np.array(value)
            out[f"{kind}_{name}_defined"] = np.array(defined) / each.reshape(S, -1).shape[1]
        centred = metrics.centred_rmse(c, o, alive, action, state, S)
        out |= {f"{kind}_centred_rmse": centred.value, f"{kind}_centred_coverage": centred.coverage}
        out[f"{kind}_reliability"] = reliability(o, truth.error.double().numpy(), alive, S)
        if kind == "O5" and not truth.error.any():  # the ledger: what there was to share
            gap = metrics.conservation_gap(c, (o * alive[..., None]).sum((0, 2)), alive)
            out["conservation_gap"] = np.array([metrics.average(part).value for part in np.abs(gap).reshape(S, -1)])
    return out


def reliability(truth: NDArray[np.float64], error: NDArray[np.float64], alive: NDArray[np.bool_], S: int) -> Any:
    """[S] sqrt(1 - mean error^2 / variance): the Pearson correlation with a sampled truth that the truth would get."""
    shape = (len(truth), S, -1, truth.shape[-1])
    parts = [
        (truth.reshape(shape)[:, s][m], error.reshape(shape)[:, s][m])
        for s, m in enumerate(np.moveaxis(alive.reshape(*shape[:3]), 1, 0))
    ]
    found = [1 - np.mean(e**2) / np.var(v) if np.var(v) > 0 else np.nan for v, e in parts]
    return np.sqrt(np.maximum(0.0, np.array(found)))


def agogino(stage: Stage, credit: Tensor) -> Scores:
    """Factoredness and learnability [S], from one unit an episode changed; credit [T, 3 B, N] of `stage.changes`."""
    S, (t, agent, lives) = stage.actor.n_seeds, stage.changes
    rows = torch.arange(credit.shape[1]).reshape(S, 3, -1)  # as it was, own action changed, others' changed
    E = rows.shape[-1]

    def at_unit(x: Tensor) -> list[NDArray[np.float64]]:
        """x [T, 3 B, ...] at each episode's unit, three times [E,S]."""
        here = [x[t.reshape(S, E), rows[:, k]] for k in range(3)]
        if x.dim() == 3:
            here = [y.gather(-1, agent.reshape(S, E, 1))[..., 0] for y in here]
        return [y.T.double().numpy() for y in here]

    to_go = lives.reward.flip(0).cumsum(0).flip(0)
    g, team, action = at_unit(credit), at_unit(to_go), at_unit(lives.action)
    factored = metrics.factoredness(g[0], g[1], team[0], team[1], action[0] != action[1])
    return {
        "factoredness": factored.value,
        "factored_strictly": factored.strict,
        "factored_ties": factored.ties,
        "learnability": metrics.learnability(*g),
    }


def maps(stage: Stage, credit: Tensor) -> dict[str, Any] | None:
    """Credit maps of the first failed episodes of seed 0."""
    tau = stage.trajectory
    wanted = torch.from_numpy(stage.failed[: len(stage.failed) // stage.actor.n_seeds]).nonzero()[:SHOWN, 0]
    if not len(wanted):
        return None
    truth = list(stage.truths.values())[-1].values
    return credit_columns(0, wanted, credit[:, wanted], truth[:, wanted], tau.alive[:, wanted])


def final(cell: Cell) -> Iterator[Row]:
    """What the method itself reaches in the same training: its final scores, from seeds of its own."""
    method, how = METHODS[cell.method], cell.protocol
    steps = how.updates * cell.loaded.horizon * METHODS[NEUTRAL].learner.episodes
    experiment = Experiment(
        cell.loaded, method, range(how.seeds), steps, 1, 1, final_episodes=FINAL_EPISODES, judge=False
    )
    return (row for row in run(experiment) if row.metric.startswith("final_"))


# Running.


def estimate(cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds each cell will take alone, by cell id: each method is timed for a few batches on its largest game."""
    seconds: dict[str, float] = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        mine = [cell for cell in cells if cell.method == method]
        size = {cell_id(c.config): c.loaded.n_agents * c.loaded.horizon for c in mine}
        largest = max(mine, key=lambda c: size[cell_id(c.config)])
        most = 0.0 if method in CONTROLS else _seconds(largest)
        top = max(size.values())
        for key, value in size.items():
            share = 0.3 + 0.7 * value / top  # networks cost their overhead however small the game is
            seconds[key] = 0.2 + share * most + TRUTH_SECONDS * (method == TRUTH)
    return seconds


def _seconds(cell: Cell) -> float:
    """A short calibration of fitting, asking and training."""
    torch.set_num_threads(cell.protocol.threads)
    how, game, method = cell.protocol, cell.loaded, METHODS[cell.method]
    actor = Actor(game, range(how.seeds))
    marks = [time.perf_counter()]
    judge = fitted(method, game, actor, how.episodes, CALIBRATION)
    marks.append(time.perf_counter())
    judge.credit(rollout(game, actor, how.episodes, list(range(how.seeds))))
    marks.append(time.perf_counter())
    steps = CALIBRATION * game.horizon * method.learner.episodes
    for _ in run(Experiment(game, method, range(how.seeds), steps, 1, 1, final_episodes=1, judge=False)):
        pass
    marks.append(time.perf_counter())
    fitting, asking, learning = np.diff(marks)
    updates = how.updates * METHODS[NEUTRAL].learner.episodes / method.learner.episodes
    return float(3 * (fitting * how.fits / CALIBRATION + 4 * asking) + learning * updates / CALIBRATION)


def answer(options: Options) -> None:
    """Plan, run what is missing, print the table, draw the figures."""
    if options.oracles:
        oracles.answer(
            oracles.Options(
                options.quick, options.memory, options.out, options.engine, options.address, force=options.force
            )
        )
        return
    folder = options.out or Path("results") / ("credit" + "-quick" * options.quick)
    cells = plan(options)
    prepare(folder)
    todo = missing(cells, folder, options.force)
    games = list(dict.fromkeys(f"{c.game} {' '.join(f'{k}={v}' for k, v in c.knobs.items())}" for c in cells))
    methods = [name for name in dict.fromkeys(c.method for c in cells) if name in METHODS]
    how = cells[0].protocol
    print(f"credit: {len(games)} games x ({len(methods)} methods + {len(CONTROLS)} controls) = {len(cells)} cells")
    print(f"  games:    {'; '.join(games)}")
    print(f"  methods:  {'; '.join(methods)}")
    print(
        f"  budget:   {how.seeds} seeds x {1 + len(PROGRESS)} stages x {how.episodes} episodes, after {how.fits} ",
        end="",
    )
    print(f"batches of fitting; {how.updates} updates of training")
    print(f"  on disk:  {len(cells) - len(todo)} cells done, {len(todo)} to run, in {folder}")
    if todo:
        work_through(todo, partial(run_cell, folder=folder.resolve()), estimate(todo), machines(options), folder)
    ids = {cell_id(c.config) for c in cells}
    report(folder, ids, final_table(folder, ids))


WHICH = PARTS["which"]
COLUMNS = {
    **PARTS,
    "learning": "O3_credit_pearson",
    "sign": "O3_sign_accuracy",
    "leak": "O3_null_leakage",
    "unit": "unit_auc",
    "culprit": "culprit_auc",
    "top-1": "top1_culprit",
    "factored": "factoredness",
}


def final_table(folder: Path, cells: set[str]) -> str:
    """Methods x scores, half-way through training: the interquartile mean over seeds and games."""
    rows = at_stage(read(folder, cells), MIDDLE)
    rows = rows.assign(metric=rows["metric"].str.replace(r"^O[68]_", "", regex=True))
    lines = ["", "half-way through training, interquartile means over seeds and games (-: undefined throughout);"]
    lines += [
        "who, when, which: attribution, correlations with O5; learning, sign, leak: with O3; unit to top-1: with O8"
    ]
    lines += [
        "or O6, this episode (.5 is chance for unit and culprit); defined: episodes where `which` is, of those in"
    ]
    lines += ["which the truth's is; steps: of the simulator, per seed, for the episodes that are judged"]
    lines.append(f"{'':26s}" + "".join(f"{head:>9s}" for head in (*COLUMNS, "defined", "steps")))
    for method in [name for name in (*CONTROLS, *METHODS) if name in set(rows["method"])]:
        mine = rows[rows["method"] == method]
        values = [float(iqm(mine[mine["metric"] == name]["value"])) for name in COLUMNS.values()]
        words = ["-" if np.isnan(v) else f"{v:z.2f}" for v in values]
        steps = mine[mine["metric"] == WHICH]["simulator_steps"].mean()
        words += [f"{defined(rows, method, WHICH):.0%}", f"{steps:,.0f}"]
        lines.append(f"{method:26s}" + "".join(f"{word:>9s}" for word in words))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for input that cannot be."""
    return run_main(Options, answer, "python -m benchmarks.credit", arguments)


if __name__ == "__main__":
    from benchmarks import credit  # cells travel to other processes under their module's name, not as __main__'s

    sys.exit(credit.main())
