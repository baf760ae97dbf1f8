"""What all questions share: common options, the choice of methods and games, running with progress, reporting."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

import envs
from benchmarks.engine import AnyCell, Engine, Lost, side_by_side
from benchmarks.methods import METHODS, pick
from benchmarks.plot import UsageError, parse, redraw
from marl.credit.base import Chain, ChainError
from marl.experiment import Method
from marl.results import cell_id

OptionsT = TypeVar("OptionsT")
GRACE = 10.0  # seconds between Ctrl-C and the end, at most


@dataclass(frozen=True)
class Common:
    """Options that questions share."""

    list: bool = False
    """list the methods, what each needs and what it costs, and stop"""
    quick: bool = False
    """minutes on two cores instead of the full protocol"""
    methods: tuple[str, ...] = ()
    """legend names, separated by commas or given one by one (default: the question's own)"""
    seeds: int | None = None
    """how many seeds, 0, 1, ... (default: the question's own)"""
    env: str | None = None
    """another game instead of the question's own: credit/NAME-v0, or package.module:ns/name-v0 and the like"""
    env_args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """knobs of --env, values in JSON, for example n_agents=12 observe_damage='"all"' (a bare word is a string)"""
    out: Path | None = None
    """folder for the cells; figures go to its subfolder figures (default: results/QUESTION)"""
    engine: Literal["local", "ray"] = "local"
    """where cells run: on this machine, or on a Ray cluster that shares the folder (needs the extra ray)"""
    address: str | None = None
    """of the Ray cluster, HOST:PORT (default: RAY_ADDRESS, or the one that was started on this machine)"""
    workers: int | None = None
    """cells that run side by side (default: all cores, or all CPUs of the cluster, divided by --threads)"""
    threads: int = 1
    """torch threads per cell; part of a cell's configuration"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where tensors live; part of a cell's configuration"""
    force: bool = False
    """compute cells again that are already on disk"""


def chosen_methods(options: Common, methods: Mapping[str, Method] = METHODS) -> list[str]:
    """The methods that were asked for by name; none: the question's own. Raises UsageError or ValueError."""
    names = [name.strip() for text in options.methods for name in text.split(",") if name.strip()]
    if options.methods and not names:
        raise UsageError(f"--methods {' '.join(options.methods)!r} names no method (see --list)")
    return pick(names, methods)


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


def machines(options: Common, devices: Sequence[str] = ("cpu",)) -> Engine:
    """The engine that was asked for. Raises ValueError for an engine or a device that is not there.

    devices: those that the question can run on.
    """
    if options.device not in devices:
        raise UsageError(f"--device {options.device} is not allowed; this question runs on {' or '.join(devices)}")
    if options.device == "cuda" and options.engine == "local" and not torch.cuda.is_available():
        raise UsageError("--device cuda is not allowed; torch finds no CUDA device on this machine")
    return Engine(options.workers, options.threads, options.engine, options.address)


def work_through(
    todo: Sequence[AnyCell],
    work: Callable[[AnyCell], object],
    seconds: Mapping[str, float],
    engine: Engine,
    folder: Path,
) -> None:
    """work(cell) for every cell, the longest first, with an estimate before and the time left beside.

    seconds: of each cell alone, by its id. Raises Lost, after all others are done.
    """
    todo = sorted(todo, key=lambda cell: -seconds[cell_id(cell.config)])
    workers, total = engine.at_once(len(todo)), sum(seconds.values())
    told = clock(makespan(list(seconds.values()), workers))
    print(f"  estimate: {told} with {workers} cells side by side\n", flush=True)
    progress = Progress(total, len(todo))

    def done(cell: AnyCell) -> None:
        progress.finished(seconds[cell_id(cell.config)], cell.name)

    try:
        side_by_side(todo, work, engine, folder, done)
    finally:
        progress.close()


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Wall-clock of so many workers, where whoever is free takes the longest cell that waits (Graham 1969)."""
    busy = [0.0] * workers
    for duration in sorted(seconds, reverse=True):
        heapreplace(busy, busy[0] + duration)
    return max(busy)


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


def report(folder: Path, cells: set[str], table: str) -> None:
    """The table, the figures, and how to draw them again."""
    print(table)
    paths = redraw(folder, cells=cells, say=lambda line: print(f"  {line}"))
    say_where(folder, paths)


def say_where(folder: Path, paths: Sequence[Path]) -> None:
    """What lies where, and how to draw it again."""
    print(f"\ncells:   {folder}/*.parquet\nfigures:")
    for path in paths:
        if path.suffix == ".png":
            print(f"  {path} (and .pdf)")
        elif path.suffix == ".html":
            print(f"report:  {path}")
    print(f"redraw:  python -m benchmarks.plot {folder}")


def run_main(
    kind: type[OptionsT], answer: Callable[[OptionsT], object], program: str, arguments: Sequence[str] | None
) -> int:
    """The command line of a question; returns the exit status."""

    def act() -> None:
        options = parse(kind, arguments, program)
        if isinstance(options, Common) and options.list:
            print(listing())
        else:
            answer(options)

    return guarded(act)


_said = threading.Event()  # that we stop: once


def _say_stopped() -> None:
    if not _said.is_set():
        _said.set()
        kept = "finished cells are kept, others up to their last checkpoint"
        print(f"\nstopped; {kept}: run the same command again to go on", file=sys.stderr, flush=True)


def _end_on_interrupt() -> None:
    """As a command, leave GRACE seconds after Ctrl-C at the latest: a library may wait for workers that heed no Ctrl-C.

    Those end with us (`engine._end_with`).
    """
    command = getattr(sys.modules["__main__"], "__spec__", None)
    if command is None or not command.name.startswith("benchmarks"):
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts jobs in the background: so be it
        return

    def leave() -> None:
        _say_stopped()
        os._exit(130)

    def interrupted(signum: int, frame: object) -> None:
        timer = threading.Timer(GRACE, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)


def guarded(act: Callable[[], object]) -> int:
    """0; 2 for input that cannot be or a disk that takes nothing; 1 where cells are lost; 130 when stopped.

    Each with one sentence (a lost cell each has one) on stderr, never a traceback.
    """
    _said.clear()
    _end_on_interrupt()
    try:
        act()
    except Lost as lost:
        for sentence in lost.sentences:
            print(f"error: {sentence}", file=sys.stderr)
        print(f"{len(lost.sentences)} cells are lost, all others are kept: run the same command again", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:  # every refusal of ours is a ValueError with one sentence
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _say_stopped()
        return 130
    return 0
