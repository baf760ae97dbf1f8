"""Do we reproduce what papers report? A fixed list: published value, ours with its interval over seeds, verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

import marl
from benchmarks import report
from benchmarks.asking import Progress, check_counts, guarded
from benchmarks.claims import ENTRIES
from benchmarks.claims.base import Measure
from benchmarks.claims.variants import KNOWN
from benchmarks.engine import Engine, side_by_side
from benchmarks.plot import UsageError, commands, parse, remember
from benchmarks.sweep import game_knobs, missing
from envs.base import Env
from marl.results import FIGURES, Row, cell_id, configs, prepare, read, write_cell
from marl.statistics import Estimate, interval

SEEDS = (10, 4)  # full, quick


@dataclass(frozen=True)
class Options:
    """Do we reproduce what papers report? Rows of a fixed list, each stored as soon as it is known."""

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW ...")] = ()
    """rows by name, separated by commas or given one by one (default: all; see --list)"""
    list: bool = False
    """list the rows and stop"""
    quick: bool = False
    """4 seeds in place of 10, and smaller budgets where a row has such: minutes on two cores"""
    seeds: int | None = None
    """how many seeds, 0, 1, ... (default: 10; with --quick 4)"""
    out: Path | None = None
    """folder for the rows; the table goes to its subfolder figures (default: results/published)"""
    engine: Literal["local", "ray"] = "local"
    """where rows run: on this machine, or on a Ray cluster that shares the folder (needs the extra ray)"""
    address: str | None = None
    """of the Ray cluster, HOST:PORT (default: RAY_ADDRESS, or the one that was started on this machine)"""
    workers: int | None = None
    """rows that run side by side (default: all cores, or all CPUs of the cluster, divided by --threads)"""
    threads: int = 1
    """torch threads per row"""
    force: bool = False
    """compute rows again that are already on disk"""


@dataclass(frozen=True)
class Cell:
    """One row of the list, all seeds."""

    entry: str
    seeds: int
    threads: int = 1
    quick: bool = False

    @property
    def measure(self) -> Measure:
        """The entry's, or its cheaper version."""
        entry = ENTRIES[self.entry]
        return entry.quick if self.quick and entry.quick is not None else entry.measure

    @property
    def name(self) -> str:
        """The entry's."""
        return self.entry

    @property
    def game(self) -> Env[Any]:
        """The entry's game."""
        entry = ENTRIES[self.entry]
        return marl.load(entry.id, **entry.knobs)

    @property
    def config(self) -> dict[str, Any]:
        """All that its numbers depend on; what is claimed of them may change."""
        entry = ENTRIES[self.entry]
        named = [v for v in _strings(asdict(self.measure)) if v in KNOWN]
        return {
            "question": "published",
            "game": entry.id,
            "knobs": game_knobs(self.game, entry.knobs),
            "method": {"name": self.entry, "family": "baseline", "rank": 0, "privileged": False},
            "measure": [type(self.measure).__name__, asdict(self.measure)],
            "methods": {name: KNOWN[name].describe() | {"learner": str(KNOWN[name].learner)} for name in named},
            "seeds": list(range(self.seeds)),
            "threads": self.threads,
            "device": "cpu",
        }


def _strings(value: Any) -> list[str]:
    """Every text within nested lists and dictionaries, each once."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return list(dict.fromkeys(text for part in parts for text in _strings(part)))


def run_cell(cell: Cell, folder: Path) -> None:
    """Measure one row of the list and write it; a number without luck is one value, of seed 0."""
    torch.set_num_threads(cell.threads)
    found = cell.measure(cell.game, range(cell.seeds))
    rows = [Row(s, 0, 0, 0.0, name, float(v)) for name, vs in found.items() for s, v in enumerate(vs)]
    write_cell(folder, cell.config, rows)


def estimate(values: NDArray[np.float64], exact: bool = False) -> Estimate:
    """Mean over seeds with its 95% interval: bootstrap; Wilson's where all values are 0 or 1; a point where exact."""
    n = len(values)
    if exact:
        return Estimate(values[0], values[0], values[0], np.asarray(1))
    if np.isin(values, (0.0, 1.0)).all():  # a bootstrap of ten times 0 would be sure
        p, z2 = values.mean(), 1.959964**2
        middle, half = p + z2 / (2 * n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
        return Estimate(p, (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n), np.asarray(n))
    return interval(values, np.mean)


def table(cells: Sequence[Cell], folder: Path) -> list[tuple[str, ...]]:
    """One line a number: row, claim, source, number, published, agrees if, ours, 95% interval, seeds, verdict."""
    rows = read(folder, {cell_id(cell.config) for cell in cells})
    out: list[tuple[str, ...]] = []
    for cell in cells:
        entry = ENTRIES[cell.entry]
        mine = rows[rows["method"] == cell.entry]
        for number in entry.numbers:
            values = mine[mine["metric"] == number.name].sort_values("seed")["value"].to_numpy(dtype=float)
            ours = estimate(values, entry.measure.exact)
            low, high = float(ours.low), float(ours.high)
            shown = "exact" if entry.measure.exact else f"{low:.3f} .. {high:.3f}"
            head = (cell.entry, entry.claim, entry.source, number.name, number.published, number.rule.text)
            out.append((*head, f"{float(ours.value):.4g}", shown, str(ours.runs), number.rule.verdict(low, high)))
    return out


HEADS = ("row", "claim", "source", "number", "published", "agrees if", "ours", "95% interval", "seeds", "reproduced")
PRINTED = ("row", "number", "published", "agrees if", "ours", "95% interval", "seeds", "reproduced")


def text_table(lines: Sequence[tuple[str, ...]]) -> str:
    """For a terminal: without the sentences."""
    shown = [[line[HEADS.index(head)] for head in PRINTED] for line in [HEADS, *lines]]
    widths = [max(len(line[k]) for line in shown) for k in range(len(PRINTED))]
    return "\n".join("  ".join(f"{word:{w}s}" for word, w in zip(line, widths, strict=True)).rstrip() for line in shown)


def markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """For a page: everything."""
    body = [HEADS, ("---",) * len(HEADS), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in body)


def plan(options: Options) -> list[Cell]:
    """The rows that are asked for. Raises UsageError for what cannot be."""
    check_counts(options, "seeds", "workers", "threads")
    names = [name.strip() for text in options.only for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ENTRIES]
    if unknown or (options.only and not names):
        said = repr(unknown[0]) if unknown else "nothing"
        raise UsageError(f"--only names {said}; the rows are: {', '.join(ENTRIES)}")
    seeds = options.seeds or SEEDS[options.quick]
    return [Cell(name, seeds, options.threads, options.quick) for name in dict.fromkeys(names or ENTRIES)]


def answer(options: Options) -> None:
    """Measure what is missing, print the table and store it, as a page and as a report."""
    cells = plan(options)
    engine = Engine(options.workers, options.threads, options.engine, options.address)
    folder = options.out or Path("results") / ("published" + "-quick" * options.quick)
    prepare(folder)
    remember(folder)
    todo = missing(cells, folder, options.force)
    print(f"published: {len(cells)} rows, {cells[0].seeds} seeds; {len(todo)} to measure, in {folder}\n", flush=True)
    if todo:
        progress = Progress(len(todo), len(todo))
        each = partial(_finished, progress)
        try:
            side_by_side(todo, partial(run_cell, folder=folder.resolve()), engine, folder, each)
        finally:
            progress.close()
    lines = table(cells, folder)
    print(text_table(lines))
    kept = folder / FIGURES / "published.md"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(markdown(lines))
    counts = ", ".join(f"{sum(line[-1] == word for line in lines)} {word}" for word in ("yes", "no", "unclear"))
    page = _report(cells, folder, lines, counts)
    print(f"\nreproduced: {counts}\ncells:   {folder}/*.parquet\ntable:   {kept}\nreport:  {page}")


def _report(cells: Sequence[Cell], folder: Path, lines: Sequence[tuple[str, ...]], counts: str) -> Path:
    """The same table as a page that opens offline, with the command and the versions."""
    ids = {cell_id(cell.config) for cell in cells}
    stored = [config for config in configs(folder) if cell_id(config) in ids]
    caption = "What papers report, and ours: mean over seeds with its 95% interval. 'yes': all of the interval agrees."
    order = sorted(range(len(HEADS)), key=lambda k: HEADS[k] not in PRINTED)  # verdicts first, sentences after
    head, *body = ([line[k] for k in order] for line in (HEADS, *lines))
    said = report.Table(caption, head, body)
    summary = f"{len(cells)} rows, {cells[0].seeds} seeds. Reproduced: {counts}."
    return report.write_plain(folder / FIGURES, "published", summary, commands(folder), said, configs=stored)


def _finished(progress: Progress, cell: Cell) -> None:
    progress.finished(1.0, cell.entry)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""

    def act() -> None:
        options = parse(Options, arguments, "python -m benchmarks.published")
        if options.list:
            for name, entry in ENTRIES.items():
                print(f"{name:24s} {entry.claim} ({entry.source})")
        else:
            answer(options)

    return guarded(act)


if __name__ == "__main__":
    from benchmarks import published  # cells travel to other processes under their module's name, not as __main__'s

    sys.exit(published.main())
