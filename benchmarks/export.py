"""Results for other people's tools: `python -m benchmarks.export RESULTS --to marl-eval --out FILE.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import figures
from benchmarks.plot import UsageError, parse
from marl import export

PROGRAM = "python -m benchmarks.export"


@dataclass(frozen=True)
class Arguments:
    """Write the latest runs of a results folder in another tool's file format, whole or not at all."""

    results: tyro.conf.Positional[Path]
    """folder of cells, for example results/compare"""
    out: Path
    """the file to write"""
    to: Literal["marl-eval"] = "marl-eval"
    """whose format"""
    methods: tuple[str, ...] = ()
    """legend names, separated by commas or given one by one (default: all in the folder)"""
    metrics: tuple[str, ...] = ()
    """metrics, separated by commas or given one by one (default: all with a final figure, defined everywhere)"""


def answer(chosen: Arguments) -> str:
    """Write the file and say what is in it. Raises ValueError, one sentence."""
    data = figures.load(chosen.results)
    rows, there = data.rows, list(data.rows["method"].unique())
    wanted = _names(chosen.methods, there)
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise UsageError(f"{chosen.results} holds no method {unknown[0]!r}; it holds {'; '.join(there)}")
    if wanted:
        rows = rows[rows["method"].isin(wanted)]
    nested = export.write(rows, chosen.out, chosen.to, _names(chosen.metrics) or None)
    run: dict[str, Any] = {}
    lines = [f"{data.left_out} cells of other runs in {chosen.results} left out"] if data.left_out else []
    for game, tasks in nested.items():
        runs = next(iter(next(iter(tasks.values())).values()))
        run = next(iter(runs.values()))
        lines.append(f"{game}: {len(next(iter(tasks.values())))} methods, {len(runs)} seeds, {len(run) - 1} points")
        lines += [f"  task {task!r}" for task in tasks]
    metrics = list(run["absolute_metrics"])
    return "\n".join([*lines, f"metrics: {', '.join(metrics)}", f"wrote {chosen.out}"])


def _names(words: Sequence[str], there: Sequence[str] = ()) -> list[str]:
    """Words split at commas, but for a name that has one."""
    return [n.strip() for text in words for n in ([text] if text in there else text.split(",")) if n.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for input that cannot be."""
    try:
        print(answer(parse(Arguments, arguments, PROGRAM)))
    except ValueError as error:  # every refusal of ours is a ValueError with one sentence
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
