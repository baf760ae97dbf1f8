"""One command-line manner for every question: plan, estimate, progress, table, figures, and how to redraw them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import marl
from benchmarks import figures
from benchmarks.asking import (
    Common,
    Progress,
    check_counts,
    chosen_game,
    chosen_methods,
    clock,
    guarded,
    knobs_from,
    listing,
    machines,
    say_where,
    work_through,
)
from benchmarks.engine import Lost
from benchmarks.figures import style
from benchmarks.forecast import compile_once, estimate
from benchmarks.methods import METHODS
from benchmarks.plot import UsageError, parse, redraw, remember
from benchmarks.sweep import Cell, missing, run_cell
from benchmarks.tune import tuned_by
from envs.base import MayRefuseBranches
from marl import tensorboard
from marl.checkpoint import EVERY, forget
from marl.credit.base import ChainError
from marl.experiment import Method
from marl.networks import tier
from marl.results import ResultsError, canonical, cell_id, done, prepare

if TYPE_CHECKING:
    import pandas as pd

EVALUATION = (16, 32, 320)  # points, episodes at each, episodes at the end
OUTSIDE_EVALUATION = (8, 16, 64)  # games from outside are stepped one episode at a time
OUTSIDE_SEEDS = 10
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Options(Common):
    """Options of questions that train methods on a sweep of games (seeds: 30 by default, 5 with --quick)."""

    steps: int | None = None
    """environment steps per seed, counted as whole episodes (default: the question's own)"""
    tuned: str | None = None
    """FILE of a search that benchmarks.tune stored (or walking_robot, the one that comes with the package): the best
    settings it found take the place of the methods' own"""
    checkpoint: float = EVERY
    """seconds between two checkpoints of a cell that is under way"""
    tensorboard: Path | None = None
    """folder for TensorBoard curves while training (needs the extra tensorboard)"""


@dataclass(frozen=True)
class Question:
    """What a benchmark asks: its name, its settings as (game, knobs), its methods and its budgets."""

    name: str
    program: str
    settings: Callable[[bool], list[tuple[str, dict[str, Any]]]]  # quick -> settings of the sweep
    methods: tuple[str, ...]
    steps: tuple[int, int] = (500_000, 200_000)  # full, quick
    episodes: tuple[int, int] | None = None  # in place of steps, where horizons differ: equally many whole episodes
    seeds: tuple[int, int] = (30, 5)
    quick_methods: tuple[str, ...] = ()  # in place of `methods` with --quick; none: the same
    too_much: Callable[[str, dict[str, Any], str], str] = lambda game, knobs, method: ""  # why a default is left out
    judges: int = 1  # seeds on which credit for random walks is judged; more of them give it an interval
    own: Mapping[str, Method] = field(default_factory=dict)  # methods that it brings, by legend names that are free

    @property
    def catalogue(self) -> dict[str, Method]:
        """Every method that it can be asked about, by legend name; its own come last, so they change no colour."""
        return {**METHODS, **self.own}


def main(question: Question, arguments: Sequence[str] | None = None) -> int:
    """Run a question from the command line; returns the exit status, see `guarded`."""

    def act() -> None:
        options = parse(Options, arguments, question.program)
        if options.list:
            print(listing(question.catalogue))
        else:
            answer(question, options)

    return guarded(act)


def answer(question: Question, options: Options) -> list[Path]:
    """Plan, run what is missing, print the table, draw the figures; returns the figures' paths.

    Raises Lost after all that: where a cell is lost, the others still have their table and figures.
    """
    folder = options.out or Path("results") / (question.name + ("-quick" if options.quick else ""))
    cells = plan(question, options)
    prepare(folder)
    remember(folder)
    todo = missing(cells, folder, options.force)
    _print_plan(question, cells, todo, folder)
    lost = _run(todo, folder, options) if todo else None
    ids = {cell_id(c.config) for c in cells if done(folder, c.config)}
    if lost is not None and not ids:
        raise lost
    print(final_table(folder, ids))
    paths = redraw(folder, cells=ids, say=lambda line: print(f"  {line}"))
    say_where(folder, paths)
    if lost is not None:
        raise lost
    return paths


def plan(question: Question, options: Options) -> list[Cell]:
    """Every cell of the run. Raises ValueError, one sentence, for anything in it that cannot be."""
    check_counts(options, "seeds", "steps", "workers", "threads")
    if not options.checkpoint >= 0:
        raise UsageError(f"--checkpoint {options.checkpoint} is not allowed; it must be 0 or more seconds")
    machines(options, DEVICES)
    if options.tensorboard is not None:
        tensorboard.check()
    chosen = chosen_methods(options, question.catalogue)
    names = chosen or list((options.quick and question.quick_methods) or question.methods)
    search, tuned = ("", {}) if options.tuned is None else tuned_by(options.tuned)
    if tuned and not any(name in tuned for name in names):
        raise UsageError(f"--tuned {options.tuned} has settings of none of these methods; it has {', '.join(tuned)}")
    catalogue = question.catalogue | tuned
    asked = chosen_game(options)
    settings = question.settings(options.quick) if asked is None else [asked]
    cells = []
    for game, knobs in settings:
        loaded = marl.load(game, **knobs)
        outside = isinstance(loaded, MayRefuseBranches)
        seeds = options.seeds or (OUTSIDE_SEEDS if outside and not options.quick else question.seeds[options.quick])
        steps, budget = options.steps or question.steps[options.quick], ""
        if question.episodes is not None and options.steps is None:
            episodes = question.episodes[options.quick]
            steps, budget = episodes * loaded.horizon, f"{episodes} episodes"
        evaluation = OUTSIDE_EVALUATION if outside else EVALUATION
        mine = [m for m in names if chosen or not question.too_much(game, knobs, m)]
        shared = (seeds, steps, options.threads, evaluation, budget, options.device, min(seeds, question.judges))
        found = {m: search if m in tuned else "" for m in mine}
        cells += [Cell(question.name, game, knobs, m, *shared, catalogue, by) for m, by in found.items()]
    if not chosen:
        return _fitting(cells)
    for cell in cells:
        cell.experiment  # noqa: B018  building it is the check
    return cells


def _fitting(cells: list[Cell]) -> list[Cell]:
    """Of a default choice of methods, those that the game can serve; the others are named and left out."""
    kept = []
    for cell in cells:
        try:
            cell.experiment  # noqa: B018  building it is the check
            kept.append(cell)
        except ChainError as error:
            print(f"left out: {cell.method}: {error}")
    return kept


def _print_plan(question: Question, cells: list[Cell], todo: list[Cell], folder: Path) -> None:
    settings = {json.dumps([c.game, c.knobs]): c for c in cells}
    methods = list(dict.fromkeys(c.method for c in cells))
    seeds, steps = cells[0].seeds, sorted({c.steps for c in cells})
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    updates = sorted({c.experiment.updates for c in cells})
    print(f"{question.name}: {len(settings)} games x {len(methods)} methods = {len(cells)} cells")
    print(f"  games:    {'; '.join(_about(c) for c in settings.values())}")
    print(f"  methods:  {'; '.join(methods)}")
    print(f"  budget:   {seeds} seeds x {span} environment steps = {'-'.join(map(str, updates))} updates a cell")
    if any(c.tuned for c in cells):
        mine = list(dict.fromkeys(c.method for c in cells if c.tuned))
        print(
            f"  tuned:    {len(mine)} of {len(methods)} methods have settings of search {max(c.tuned for c in cells)}"
        )
    print(f"  networks: the {tier()} tier on CPUs")
    print(f"  on disk:  {len(cells) - len(todo)} cells done, {len(todo)} to run, in {folder}")


def _about(cell: Cell) -> str:
    return f"{cell.game} {' '.join(f'{k}={v}' for k, v in cell.knobs.items())}".strip()


def _run(todo: list[Cell], folder: Path, options: Options) -> Lost | None:
    """Run the missing cells; returns those that are lost, if any."""
    engine = machines(options, DEVICES)
    work = partial(run_cell, folder=folder.resolve(), tensorboard=options.tensorboard, every=options.checkpoint)
    for cell in todo if options.force else []:
        forget(folder, cell.config)
    if engine.kind == "local":
        compile_once(todo, lambda line: print(f"  {line}", flush=True))
    try:
        work_through(todo, work, estimate(todo, engine), engine, folder)
    except Lost as lost:
        return lost
    return None


def final_table(folder: Path, cells: set[str]) -> str:
    """Methods x games (the longer list downwards): interquartile mean over seeds of the final score.

    Where a game has no score, its final return, said beside it.
    """
    data = figures.load(folder, cells)
    rows = data.rows[data.rows["metric"].isin(("final_score", "final_return"))]
    label = {(game, knobs): words for game, knobs, words in style.settings(data)}
    place = {cell_id(c): (c["game"], canonical(c["knobs"])) for c in data.configs}
    found = {(m, place[cell], metric): float(marl.statistics.iqm(v)) for (m, cell, metric), v in _runs(rows)}
    scored = {(setting, metric) for _, setting, metric in found}
    metric_of = {s: "final_score" if (s, "final_score") in scored else "final_return" for s in label}
    only = set(metric_of.values()) if len(set(metric_of.values())) == 1 else {"final_score"}
    named = {s: label[s] + ("" if metric_of[s] in only else " (return)") for s in label}
    ranks = {c["method"]["name"]: c["method"]["rank"] for c in data.configs}
    listed = list(METHODS)
    own = len(listed)  # methods that a question brought come after, as they stand there
    methods = {m: m for m in sorted(ranks, key=lambda m: (listed.index(m) if m in listed else own, ranks[m]))}
    down: dict[Any, str] = methods
    across: dict[Any, str] = named
    value: dict[Any, float] = {(m, s): found.get((m, s, metric_of[s]), float("nan")) for m in methods for s in named}
    if len(named) > len(methods):
        down, across, value = named, methods, {(s, m): v for (m, s), v in value.items()}
    first = 2 + max(24, *map(len, down.values()))
    width = max(12, *(len(head) + 2 for head in across.values()))
    title = f"{min(only).replace('_', ' ')}, interquartile mean over seeds"
    lines = ["", title, " " * first + "".join(f"{head:>{width}s}" for head in across.values())]
    lines += [f"{words:{first}s}" + "".join(f"{value[d, a]:>{width}.2f}" for a in across) for d, words in down.items()]
    return "\n".join(lines)


def _runs(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], Any]]:
    """((method, cell, metric), values over seeds)."""
    for key, part in rows.groupby(["method", "cell", "metric"]):
        yield key, part["value"]


__all__ = ["Options", "Progress", "Question", "ResultsError", "clock", "knobs_from", "listing", "main"]
