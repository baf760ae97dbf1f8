"""Where the cells of a sweep run: side by side on this machine, or on a Ray cluster; either way the files are the same.

Both go through joblib, one call a round. A worker that dies ends the whole call: what was running then is run again,
by itself, so that a second death has one name; all that only waited is submitted again.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from marl.results import ResultsError, cell_id

ENGINES = ("local", "ray")
DEATHS = 2  # of its worker, before a cell is given up
POLL = 0.5  # seconds between two looks at the cell files of a cluster


class Configured(Protocol):
    """A cell of any question: a frozen dataclass that knows all that its results depend on."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]: ...


class Named(Configured, Protocol):
    """A cell that says its name to people."""

    @property
    def name(self) -> str: ...


AnyCell = TypeVar("AnyCell", bound=Named)


class Lost(Exception):
    """Cells that could not be computed, a sentence each; all others are on disk."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = tuple(sentences)


@dataclass(frozen=True)
class Engine:
    """How many cells run at a time, and where."""

    workers: int | None = None  # None: all cores, or all CPUs of the cluster, divided by `threads`
    threads: int = 1  # torch threads of each
    kind: str = "local"
    address: str | None = None  # of the cluster; None: RAY_ADDRESS, or one that was started on this machine

    def __post_init__(self) -> None:
        """Raise ValueError, one sentence, for what cannot be."""
        if self.kind not in ENGINES:
            raise ValueError(f"--engine {self.kind} is not allowed; it must be one of {', '.join(ENGINES)}")
        if self.kind == "local" and self.address is not None:
            raise ValueError(f"--address {self.address} needs --engine ray: it is where the cluster is")
        if self.kind == "ray" and find_spec("ray") is None:
            raise ValueError("Ray is not installed; pip install 'credit-sandbox[ray]'")

    def at_once(self, cells: int) -> int:
        """Cells that run at a time, of so many. Raises ValueError where no cluster answers."""
        if self.kind == "ray":
            free = max(1, _cluster_cpus(self.address) // self.threads)
            return min(cells, free, self.workers or free)
        return min(cells, self.workers or max(1, _cores() // self.threads))


def _cores() -> int:
    """Of this machine, as many as we may use."""
    from joblib import cpu_count

    return int(cpu_count())


def side_by_side(
    cells: Sequence[AnyCell],
    work: Callable[[AnyCell], object],
    engine: Engine,
    folder: Path,
    each: Callable[[AnyCell], None],
) -> None:
    """work(cell) for every cell, as the engine says; `each` is told of every cell whose files are in the folder.

    Raises:
        Lost: some cells failed or killed their worker twice; the others are done.
        ResultsError: the folder takes no more files; nothing else could be stored either, so the sweep ends at once.
    """
    folder = folder.resolve()  # workers elsewhere stand in another folder
    marks = [folder / f".{cell_id(cell.config)}.running" for cell in cells]
    _remove(marks)  # of workers that were killed
    if engine.kind == "local" and engine.at_once(len(cells)) == 1:
        outcomes: Iterator[Outcome] = (attempt(work, cell, k) for k, cell in enumerate(cells))
        lost = [f"{cells[o.cell].name}: {o.why}" for o in outcomes if not _told(o, cells, each)]
    else:
        lost = _Sweep(cells, work, engine, folder, marks, each).run()
    if lost:
        raise Lost(lost)


def answers(cells: Sequence[AnyCell], ask: Callable[[AnyCell], float], engine: Engine) -> list[float]:
    """ask(cell) of every cell, as the engine runs them; NaN where that fails: whoever runs the cell will hear why."""
    if not cells:
        return []
    workers = engine.at_once(len(cells))
    if engine.kind == "local" and workers == 1:
        return [_answer(ask, cell) for cell in cells]
    parent = os.getpid() if engine.kind == "local" else None
    try:
        found = _pool(engine, workers, "list")(_delayed(_answer)(ask, replace(cell), parent) for cell in cells)
    except _deaths():
        return [math.nan] * len(cells)
    return [float(x) for x in found]


def _answer(ask: Callable[[AnyCell], float], cell: AnyCell, parent: int | None = None) -> float:
    if parent is not None:
        _end_with(parent)
    try:
        return ask(cell)
    except Exception:
        return math.nan


class Outcome(NamedTuple):
    """What became of a cell."""

    cell: int  # its place in the list
    why: str = ""  # it failed; empty: its files are there
    final: bool = False  # no other cell could be stored either


def _told(outcome: Outcome, cells: Sequence[AnyCell], each: Callable[[AnyCell], None]) -> bool:
    """Tell `each` of a cell that is done; False for one that failed. Raises ResultsError where nothing can go on."""
    if outcome.final:
        raise ResultsError(outcome.why)
    if not outcome.why:
        each(cells[outcome.cell])
    return not outcome.why


def attempt(
    work: Callable[[AnyCell], object], cell: AnyCell, number: int, mark: Path | None = None, parent: int | None = None
) -> Outcome:
    """work(cell), whatever comes of it. While it runs, the file `mark` says so."""
    if parent is not None:
        _end_with(parent)
    if mark is not None:
        with suppress(OSError):
            mark.touch()
    try:
        work(cell)
        return Outcome(number)
    except ResultsError as error:
        return Outcome(number, str(error), final=True)
    except Exception as error:
        return Outcome(number, _sentence(error))
    finally:
        if mark is not None:
            with suppress(OSError):
                mark.unlink()


def _sentence(error: Exception) -> str:
    """What went wrong, and where."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said} ({Path(where.filename).name}, line {where.lineno})"


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """In a worker: end when the process that started it is gone, however it was killed; Ctrl-C is the parent's."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Sweep:
    """Rounds of a sweep in other processes: what waits, what died with its worker, what is lost."""

    def __init__(
        self,
        cells: Sequence[Any],
        work: Callable[[Any], object],
        engine: Engine,
        folder: Path,
        marks: Sequence[Path],
        each: Callable[[Any], None],
    ) -> None:
        self.cells, self.work, self.engine, self.marks, self.each = cells, work, engine, marks, each
        self.workers = engine.at_once(len(cells))
        self.files = [folder / f"{cell_id(cell.config)}.parquet" for cell in cells]
        self.before = [_stamp(file) for file in self.files]  # with --force they may be there already
        self.deaths: Counter[int] = Counter()
        self.lost: dict[int, str] = {}
        self.done: set[int] = set()

    def run(self) -> list[str]:
        """All rounds; returns a sentence for every cell that is lost."""
        waiting, alone, idle = list(range(len(self.cells))), list[int](), 0
        try:
            while waiting or alone:
                batch = (waiting if self.workers > 1 else waiting[:1]) or alone[:1]
                died = self._round(batch)
                running = [k for k in self._left(batch) if self.marks[k].exists()] if died else []
                self._mourn(running)
                idle = idle + 1 if died and not running else 0
                if idle == DEATHS:
                    self.lost |= dict.fromkeys(self._left(batch), f"workers end before they begin: {died}")
                alone = self._left([*alone, *running])
                waiting = [k for k in self._left(waiting) if k not in alone]
        finally:
            _remove(self.marks)
        return [f"{self.cells[k].name}: {why}" for k, why in sorted(self.lost.items())]

    def _round(self, batch: list[int]) -> str:
        """One call of joblib; returns why it ended early, or nothing."""
        try:
            for outcome in _on_ray(self, batch) if self.engine.kind == "ray" else _on_this_machine(self, batch):
                if outcome.final:
                    raise ResultsError(outcome.why)
                if outcome.why:
                    self.lost[outcome.cell] = outcome.why
                self._finished(outcome.cell)
        except _deaths() as error:
            self.look(batch)  # some were done, and only their word was lost
            return " ".join(str(error).split())[:160] or type(error).__name__
        return ""

    def _left(self, cells: list[int]) -> list[int]:
        return [k for k in cells if k not in self.done and k not in self.lost]

    def look(self, batch: list[int]) -> None:
        """Tell of every cell whose files are new."""
        for k in batch:
            if _stamp(self.files[k]) != self.before[k]:
                self._finished(k)

    def _finished(self, cell: int) -> None:
        if cell not in self.lost and cell not in self.done:
            self.done.add(cell)
            self.each(self.cells[cell])

    def _mourn(self, running: list[int]) -> None:
        """Count a death for each cell that was running; give up those that have had theirs."""
        for k in running:
            self.deaths[k] += 1
            if self.deaths[k] >= DEATHS:
                self.lost[k] = f"its worker died {DEATHS} times (killed, out of memory, or a crash of a library)"
        _remove(self.marks)

    def jobs(self, batch: list[int], parent: int | None) -> Iterator[Any]:
        """The calls of a batch, for joblib."""
        for k in batch:
            # replace(): without what the cell has cached, for live games of others do not travel.
            yield _delayed(attempt)(self.work, replace(self.cells[k]), k, self.marks[k], parent)

    @contextmanager
    def watched(self, batch: list[int]) -> Iterator[None]:
        """Tell of cells as soon as their files are new: joblib on Ray gives nothing back before all is done."""
        stopped = threading.Event()

        def watch() -> None:
            while not stopped.wait(POLL):
                self.look(batch)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stopped.set()
            watcher.join()


def _remove(marks: Sequence[Path]) -> None:
    for mark in marks:
        with suppress(OSError):
            mark.unlink()


def _stamp(file: Path) -> tuple[int, int] | None:
    """Which file lies there: it is replaced as a whole."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _deaths() -> tuple[type[Exception], ...]:
    """What joblib raises when a worker is gone."""
    from concurrent.futures.process import BrokenProcessPool

    if find_spec("ray") is None:
        return (BrokenProcessPool,)
    from ray.exceptions import RayError

    return BrokenProcessPool, RayError


def _pool(engine: Engine, workers: int, answer: str) -> Any:
    """joblib's Parallel: at least two processes, for it runs one in this very process."""
    from joblib import Parallel, parallel_config

    if engine.kind == "local":  # threads of other libraries are bounded as torch's are
        with parallel_config(backend="loky", inner_max_num_threads=engine.threads):
            return Parallel(n_jobs=max(2, workers), return_as=answer, batch_size=1)
    from ray.util.joblib import register_ray

    register_ray()
    cpus = engine.threads / (2 if workers == 1 else 1)  # one cell at a time takes the CPUs of two halves
    with parallel_config(backend="ray", ray_remote_args={"num_cpus": cpus}):
        return Parallel(n_jobs=max(2, workers), batch_size=1)


def _delayed(function: Callable[..., Any]) -> Callable[..., Any]:
    from joblib import delayed

    return delayed(function)


def _on_this_machine(sweep: _Sweep, batch: list[int]) -> Iterator[Outcome]:
    pool = _pool(sweep.engine, min(sweep.workers, len(batch)), "generator_unordered")
    yield from pool(sweep.jobs(batch, os.getpid()))


def _on_ray(sweep: _Sweep, batch: list[int]) -> list[Outcome]:
    with sweep.watched(batch):
        return list(_pool(sweep.engine, min(sweep.workers, len(batch)), "list")(sweep.jobs(batch, None)))


@lru_cache(maxsize=1)
def _cluster_cpus(address: str | None) -> int:
    """Connect to the cluster, once, and say how many CPUs it has. Raises ValueError where none answers."""
    import ray

    try:
        if not ray.is_initialized():
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        return int(ray.cluster_resources().get("CPU", 1))
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "that runs" if address is None else f"at {address}"
        raise ValueError(f"there is no Ray cluster {where}: {' '.join(str(error).split())[:160]}") from error
