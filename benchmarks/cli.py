"""One command-line manner for every question: plan, estimate, progress, table, figures, and how to redraw them."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import envs
import marl
from benchmarks import figures
from benchmarks.figures import style
from benchmarks.methods import METHODS, pick
from benchmarks.plot import UsageError, parse, redraw
from benchmarks.sweep import Cell, estimate, missing, run_cells
from envs.base import MayRefuseBranches
from marl import tensorboard
from marl.credit.base import Chain, ChainError
from marl.experiment import Method
from marl.results import ResultsError, canonical, cell_id, prepare

if TYPE_CHECKING:
    import pandas as pd

EVALUATION = (16, 32, 320)  # points, episodes at each, episodes at the end
OUTSIDE_EVALUATION = (8, 16, 64)  # games from outside are stepped one episode at a time
OUTSIDE_SEEDS = 10


@dataclass(frozen=True)
class Options:
    """Options that every question shares."""

    list: bool = False
    """list the methods, what each needs and what it costs, and stop"""
    quick: bool = False
    """minutes on two cores instead of the full protocol"""
    methods: tuple[str, ...] = ()
    """legend names, separated by commas or given one by one (default: the question's own)"""
    seeds: int | None = None
    """how many training seeds, 0, 1, ... (default: 30; with --quick 5)"""
    steps: int | None = None
    """environment steps per seed, counted as whole episodes (default: the question's own)"""
    env: str | None = None
    """another game instead of the question's sweep: credit/NAME-v0, or package.module:ns/name-v0 and the like"""
    env_args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """knobs of --env, values in JSON, for example n_agents=12 observe_damage='"all"' (a bare word is a string)"""
    out: Path | None = None
    """folder for the cells; figures go to its subfolder figures (default: results/QUESTION)"""
    workers: int = os.cpu_count() or 1
    """cells that run side by side"""
    threads: int = 1
    """torch threads per cell; part of a cell's configuration"""
    force: bool = False
    """compute cells again that are already on disk"""
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
    """Run a question from the command line; returns the exit status, 2 for input that cannot be."""
    try:
        options = parse(Options, arguments, question.program)
        if options.list:
            print(listing(question.catalogue))
            return 0
        answer(question, options)
    except (ValueError, UsageError) as error:  # every refusal of ours is a ValueError with one sentence
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished cells are kept: run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def listing(methods: Mapping[str, Method] = METHODS) -> str:
    """Every method with its family, what it needs and what it costs; from the code's own declarations."""
    lines = [f"{'method':26s} {'family':10s} chain; needs (+: privileged); counterfactual steps for B episodes"]
    for name, m in methods.items():
        parts = []
        for part in _somewhere(m).parts:
            flags = [word for word in ("aligned", "efficient") if getattr(part, word)]
            parts.append(f"{type(part).__name__} ({', '.join(flags) or '-'})")
        learner = type(m.learner).__name__
        chain = " > ".join(parts if learner == "Reinforce" else [*parts, learner])
        needs = ", ".join(m.needs) or "nothing"
        lines.append(f"{name:26s} {m.family:10s} {chain}; {needs}{'+' if m.privileged else ''}; {m.cost}")
    return "\n".join(lines)


def _somewhere(method: Method) -> Chain:
    """Its chain, built for a small game that offers what it needs."""
    refused: ChainError | None = None
    for name in envs.GAMES:
        try:
            return method.credit(envs.rules(name))
        except ChainError as error:
            refused = error
    assert refused is not None
    raise refused


def answer(question: Question, options: Options) -> list[Path]:
    """Plan, run what is missing, print the table, draw the figures; returns the figures' paths."""
    folder = options.out or Path("results") / (question.name + ("-quick" if options.quick else ""))
    cells = plan(question, options)
    prepare(folder)
    todo = missing(cells, folder, options.force)
    _print_plan(question, cells, todo, folder)
    if todo:
        _run(todo, folder, options)
    ids = {cell_id(c.config) for c in cells}
    print(final_table(folder, ids))
    paths = redraw(folder, cells=ids, say=lambda line: print(f"  {line}"))
    print(f"\ncells:   {folder}/*.parquet\nfigures:")
    for path in paths:
        if path.suffix == ".png":
            print(f"  {path} (and .pdf)")
    print(f"redraw:  python -m benchmarks.plot {folder}")
    return paths


def plan(question: Question, options: Options) -> list[Cell]:
    """Every cell of the run. Raises ValueError, one sentence, for anything in it that cannot be."""
    for knob in ("seeds", "steps", "workers", "threads"):
        value = getattr(options, knob)
        if value is not None and value < 1:
            raise UsageError(f"--{knob} {value} is not allowed; it must be 1 or more")
    if options.tensorboard is not None:
        tensorboard.check()
    if options.env_args and options.env is None:
        raise UsageError("--env-args needs --env: it gives the knobs of another game than the question's own")
    chosen = [name.strip() for text in options.methods for name in text.split(",") if name.strip()]
    if options.methods and not chosen:
        raise UsageError(f"--methods {' '.join(options.methods)!r} names no method (see --list)")
    own = (options.quick and question.quick_methods) or question.methods
    names = pick(chosen, question.catalogue) if chosen else list(own)
    settings = question.settings(options.quick)
    if options.env is not None:
        name = envs.game_id(options.env) if options.env in envs.GAMES else options.env
        settings = [(name, knobs_from(options.env_args))]
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
        shared = (seeds, steps, options.threads, evaluation, budget, min(seeds, question.judges))
        cells += [Cell(question.name, game, knobs, m, *shared, question.catalogue) for m in mine]
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


def knobs_from(words: Sequence[str]) -> dict[str, Any]:
    """key=value words with JSON values; a value that is no JSON is a string. Raises UsageError."""
    knobs = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--env-args {word!r} is not allowed; give knobs as key=value")
        if key in knobs:
            raise UsageError(f"--env-args gives {key} twice; give each knob once")
        try:
            knobs[key] = json.loads(text)
        except json.JSONDecodeError:
            knobs[key] = text
    return knobs


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
    print(f"  on disk:  {len(cells) - len(todo)} cells done, {len(todo)} to run, in {folder}")


def _about(cell: Cell) -> str:
    return f"{cell.game} {' '.join(f'{k}={v}' for k, v in cell.knobs.items())}".strip()


def _run(todo: list[Cell], folder: Path, options: Options) -> None:
    """Run the missing cells, the longest first, with an estimate before and the time left beside."""
    seconds = estimate(todo)
    workers = min(options.workers, len(todo))
    todo = sorted(todo, key=lambda c: -seconds[cell_id(c.config)])
    total = sum(seconds.values())
    print(f"  estimate: {clock(max(total / workers, max(seconds.values())))} with {workers} cells side by side\n")
    progress = Progress(total, len(todo))
    try:
        done = lambda cell: progress.finished(seconds[cell_id(cell.config)], cell.name)  # noqa: E731
        run_cells(todo, folder, workers, done, options.tensorboard)
    finally:
        progress.close()


def clock(seconds: float) -> str:
    """90 -> '1:30'."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """A bar with the time left on a terminal; off one, a plain line every 10 s."""

    def __init__(self, total: float, cells: int) -> None:
        self.total, self.cells, self.work, self.count, self.name = total, cells, 0.0, 0, ""
        self.started = time.monotonic()
        self.live = sys.stdout.isatty()
        self.stopped = threading.Event()
        self.clock = threading.Thread(target=self._tick, daemon=True)
        self.clock.start()

    def finished(self, work: float, name: str) -> None:
        """One more cell is on disk; `work` is what it was estimated at."""
        self.work, self.count, self.name = self.work + work, self.count + 1, name

    def _tick(self) -> None:
        while not self.stopped.wait(1 if self.live else 10):
            self.say()

    def say(self) -> None:
        """Show where we are."""
        spent, part = time.monotonic() - self.started, min(1.0, self.work / self.total)
        left = f"about {clock(spent / part * (1 - part))} left" if part else "no cell finished yet"
        text = f"{self.count}/{self.cells} cells, {clock(spent)} gone, {left}  {self.name}"
        if self.live:
            print(f"\r[{'#' * round(24 * part):24s}] {text[:90]:90s}", end="", flush=True)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Say the last word and stop the clock."""
        self.stopped.set()
        self.clock.join()
        self.say()
        print()


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


__all__ = ["Options", "Question", "ResultsError", "main"]
