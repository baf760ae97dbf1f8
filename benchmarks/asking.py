"""What questions with cells of their own share: common options, the choice of methods and games, running, reporting."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import tyro

import envs
from benchmarks.cli import Progress, clock, knobs_from, listing
from benchmarks.methods import pick
from benchmarks.plot import UsageError, parse, redraw
from benchmarks.sweep import Configured, side_by_side
from marl.results import cell_id


@dataclass(frozen=True)
class Common:
    """Options that such questions share."""

    list: bool = False
    """list the methods, what each needs and what it costs, and stop"""
    quick: bool = False
    """minutes on two cores instead of the full protocol"""
    methods: tuple[str, ...] = ()
    """legend names, separated by commas or given one by one (default: the question's own)"""
    seeds: int | None = None
    """how many seeds, 0, 1, ... (default: the question's own)"""
    env: str | None = None
    """another game instead of the question's own"""
    env_args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """knobs of --env, values in JSON"""
    out: Path | None = None
    """folder for the cells; figures go to its subfolder figures (default: results/QUESTION)"""
    workers: int = os.cpu_count() or 1
    """cells that run side by side"""
    threads: int = 1
    """torch threads per cell; part of a cell's configuration"""
    force: bool = False
    """compute cells again that are already on disk"""


class NamedCell(Configured, Protocol):
    """A cell that says its name to people."""

    @property
    def name(self) -> str: ...


CellT = TypeVar("CellT", bound=NamedCell)
OptionsT = TypeVar("OptionsT")


def chosen_methods(options: Common) -> list[str]:
    """The methods that were asked for by name; none: the question's own. Raises UsageError or ValueError."""
    names = [name.strip() for text in options.methods for name in text.split(",") if name.strip()]
    if options.methods and not names:
        raise UsageError(f"--methods {' '.join(options.methods)!r} names no method (see --list)")
    return pick(names)


def chosen_game(options: Common) -> tuple[str, dict[str, Any]] | None:
    """--env and its knobs, if given. Raises UsageError."""
    if options.env is None:
        if options.env_args:
            raise UsageError("--env-args needs --env: it gives the knobs of another game than the question's own")
        return None
    name = envs.game_id(options.env) if options.env in envs.GAMES else options.env
    return name, knobs_from(options.env_args)


def check_counts(options: object, *knobs: str) -> None:
    """Raise UsageError where one of these options is below 1."""
    for knob in knobs:
        value = getattr(options, knob)
        if value is not None and value < 1:
            raise UsageError(f"--{knob} {value} is not allowed; it must be 1 or more")


def work_through(
    todo: Sequence[CellT], work: Callable[[CellT], object], seconds: Mapping[str, float], workers: int
) -> None:
    """work(cell) for every cell, with an estimate before and the time left beside. seconds: of each cell, by its id."""
    workers = min(workers, len(todo))
    total = sum(seconds.values())
    print(f"  estimate: {clock(total / workers)} with {workers} cells side by side\n", flush=True)
    progress = Progress(total, len(todo))

    def done(cell: CellT) -> None:
        progress.finished(seconds[cell_id(cell.config)], cell.name)

    try:
        side_by_side(todo, work, workers, done)
    finally:
        progress.close()


def report(folder: Path, cells: set[str], table: str) -> None:
    """The table, the figures, and how to draw them again."""
    print(table)
    paths = redraw(folder, cells=cells, say=lambda line: print(f"  {line}"))
    print(f"\ncells:   {folder}/*.parquet\nfigures:")
    for path in paths:
        if path.suffix == ".png":
            print(f"  {path} (and .pdf)")
    print(f"redraw:  python -m benchmarks.plot {folder}")


def run_main(
    kind: type[OptionsT], answer: Callable[[OptionsT], None], program: str, arguments: Sequence[str] | None
) -> int:
    """The command line of such a question; returns the exit status, 2 for input that cannot be."""
    try:
        options = parse(kind, arguments, program)
        if isinstance(options, Common) and options.list:
            print(listing())
            return 0
        answer(options)
    except ValueError as error:  # every refusal of ours is a ValueError with one sentence
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished cells are kept: run the same command again to go on", file=sys.stderr)
        return 130
    return 0
