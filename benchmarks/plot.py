"""Redraw every figure that applies, and the report, from disk alone: `python -m benchmarks.plot RESULTS`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import tyro

from benchmarks import figures, report
from benchmarks.figures import Data, style
from marl.results import FIGURES, ResultsError, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

COMMANDS = "commands.json"
"""The command lines that computed a folder's cells, oldest first: [{"command", "started"}]; in the folder `figures`."""

_asked: dict[str, str] = {}  # the command line of this process, once `parse` has understood it


@dataclass(frozen=True)
class Arguments:
    """Redraw every figure that applies from stored results alone."""

    results: tyro.conf.Positional[Path]
    """folder of cells, for example results/compare"""
    figures: Path | None = None
    """folder for the figures (default: RESULTS/figures)"""


def available(question: str | None = None) -> dict[str, tuple[Callable[[Data], str], Callable[[Data], Figure]]]:
    """{file name: (needs, draw)} of the figures in `benchmarks/figures/`: all, or those that a question may draw.

    A figure's file that names a QUESTION is for that question's cells alone.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(figures.__path__) if module.name != "style")
    modules = [importlib.import_module(f"{figures.__name__}.{name}") for name in names]
    mine = [m for m in modules if question is None or getattr(m, "QUESTION", question) == question]
    return {stem: (module.needs, draw) for module in mine for stem, draw in module.FIGURES.items()}


def redraw(
    results: str | Path,
    folder: str | Path | None = None,
    cells: Collection[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Draw into `folder` (None: `results`/figures); the paths written: PNG and PDF of each figure, the report.

    Args:
        cells: ids to draw, those of the question that is asked: its command is remembered; None: the latest protocol
            in the folder.
        say: is told, a line each, which figures were not drawn and why.
    Raises:
        ResultsError: the results cannot be read or the figures not written.
    """
    target = Path(results) / FIGURES if folder is None else Path(folder)
    data = figures.load(results, cells)
    if data.left_out and cells is None:
        say(f"{data.left_out} cell{'s' * (data.left_out > 1)} of other runs in {results} not drawn")
    paths: list[Path] = []
    pictures: list[report.Picture] = []
    left: list[str] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        if cells is not None:
            remember(results)
        for stem, (needs, draw) in available(str(data.configs[0].get("question"))).items():
            missing = needs(data)
            if missing:
                left.append(f"{stem} is not drawn: it {missing}")
                say(left[-1])
            else:
                paths += style.save(draw(data), target / stem)
                own = hasattr(source(draw), "QUESTION")
                pictures.append(report.Picture(stem, caption(draw), paths[-2], own))
    except OSError as error:
        raise ResultsError(f"cannot write figures to {target}: {error.strerror or error}") from error
    return [*paths, report.write(target, data, pictures, commands(results), left)]


def source(draw: Callable[..., object]) -> ModuleType | None:
    """The figure's file."""
    while isinstance(draw, partial):
        draw = draw.func
    return inspect.getmodule(draw)


def caption(draw: Callable[..., object]) -> str:
    """The sentence that a figure's file opens with."""
    said = inspect.getdoc(source(draw)) or ""
    return " ".join(said.split("\n\n")[0].split())


def remember(results: str | Path) -> None:
    """Store the command line of this process beside the cells that it computes; once, however often it is said.

    Raises ResultsError: the folder is not writable, or what is stored there is broken.
    """
    known = commands(results)
    if not _asked or any(one["command"] == _asked["command"] for one in known):
        return
    folder = Path(results) / FIGURES
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot write to {folder}: {error.strerror or error}") from error
    write_file(folder / COMMANDS, (json.dumps([*known, _asked], indent=1) + "\n").encode())


def commands(results: str | Path) -> list[dict[str, str]]:
    """What `remember` stored. Raises ResultsError for a file that it did not write."""
    path = Path(results) / FIGURES / COMMANDS
    try:
        stored = json.loads(path.read_text())
        return [{"command": str(one["command"]), "started": str(one["started"])} for one in stored]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        raise ResultsError(f"{path} is not a list of commands that this program wrote; remove it") from None


def note(results: Path, title: str, summary: str, said: str, pictures: Sequence[tuple[str, Path | None]] = ()) -> Path:
    """A report of what this process printed: `results`/figures/report.html, for a question that stores no cells.

    pictures: (caption, PNG file) each; None: not drawn. Raises ResultsError: the folder is not writable.
    """
    drawn = [report.Picture(path.stem, words, path) for words, path in pictures if path is not None]
    try:
        (results / FIGURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot write to {results / FIGURES}: {error.strerror or error}") from error
    return report.write_plain(results / FIGURES, title, summary, [_asked] if _asked else [], said, drawn)


class UsageError(ValueError):
    """The command line cannot be understood."""


def parse(kind: type[T], arguments: Sequence[str] | None, program: str) -> T:
    """An instance of the dataclass `kind` from the command line; UsageError, one line, where tyro would print a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            understood = tyro.cli(kind, args=arguments, prog=program)
        typed = shlex.join(sys.argv[1:] if arguments is None else arguments)
        _asked.update(command=f"{program} {typed}".strip(), started=datetime.now(UTC).isoformat(timespec="seconds"))
        return understood
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        words = re.sub(r"[\u2500-\u257f]+|\x1b\[[0-9;]*m", " ", said.getvalue()).split("For full helptext")[0].split()
        raise UsageError(f"{' '.join(words)} (see {program} --help)") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        chosen = parse(Arguments, arguments, "python -m benchmarks.plot")
        for path in redraw(chosen.results, chosen.figures, say=lambda line: print(line, file=sys.stderr)):
            print(path)
    except (ResultsError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
