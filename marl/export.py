"""Results in the file format of marl-eval, so that other people's evaluation tools read ours.

marl-eval (Gorsane et al. 2022, "Towards a standardised performance evaluation protocol for cooperative MARL") reads

    {environment: {task: {algorithm: {run: {"step_0": {"step_count": int, metric: [float]}, ...,
                                            "absolute_metrics": {metric: [float]}}}}}}

Here an environment is a game, a task its knobs, an algorithm a method and a run a seed. Lists have one element, the
mean over the evaluation episodes. The absolute metrics are our final figures, of the policy at the end of training on
fresh episodes (marl-eval's authors take the best policy on the way). Its tools turn every name to lower case, know no
comma in the name of an algorithm, and want equally many tasks, runs and evaluation points for all methods of a game.

Do not let them normalise `score`: they do so by observed extremes, and it is normalised already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from marl.results import write_file

if TYPE_CHECKING:
    import pandas as pd

FINAL = "final_"  # before the name of a metric: its figure at the end of training

Nested = dict[str, Any]


class ExportError(ValueError):
    """The rows do not fit the format; the message says what is missing or unequal, in one sentence."""


def marl_eval(rows: pd.DataFrame, metrics: Sequence[str] | None = None) -> Nested:
    """Rows (as `marl.results.read`) as marl-eval's nested dictionary.

    Args:
        rows: of one protocol: each method once on each setting.
        metrics: names as along training, such as "score"; None: all that have a final figure and are defined
            everywhere.
    Raises:
        ExportError: nothing to export, a setting with two runs of one method, a metric that is undefined somewhere,
            names that differ in case alone, or unequal methods, seeds or evaluation points within a game.
    """
    if rows.empty:
        raise ExportError("there are no rows to export")
    chosen = _metrics(rows, metrics)
    out: Nested = {}
    for game, mine in rows.groupby("game", sort=False):
        names = task_names(mine["knobs"].unique())
        methods = plain_names(mine["method"].unique())
        tasks: Nested = {names[knobs]: {} for knobs in names}
        for (knobs, method), cell in mine.groupby(["knobs", "method"], sort=False):
            if cell["cell"].nunique() > 1:
                raise ExportError(f"{_words(game, knobs)} was run by {method} more than once; export one protocol")
            tasks[names[knobs]][methods[method]] = _runs(cell, chosen)
        _check_equal(str(game), tasks)
        out[str(game)] = tasks
    return out


FORMATS: dict[str, Callable[[pd.DataFrame, Sequence[str] | None], Nested]] = {"marl-eval": marl_eval}


def write(rows: pd.DataFrame, file: str | os.PathLike[str], to: str, metrics: Sequence[str] | None = None) -> Nested:
    """Put rows into a JSON file of a format in FORMATS, all or nothing, and return what is in it.

    Raises ExportError, and ResultsError where the file cannot be written.
    """
    if to not in FORMATS:
        raise ExportError(f"there is no format {to!r}; it must be one of {', '.join(FORMATS)}")
    nested = FORMATS[to](rows, metrics)
    write_file(file, (json.dumps(nested, indent=1, allow_nan=False) + "\n").encode())
    return nested


def task_names(settings: Iterable[str]) -> dict[str, str]:
    """{knobs as JSON: name}: `key=value` words of the knobs in which a game's settings differ, else "default"."""
    knobs = {text: json.loads(text) for text in settings}
    keys = dict.fromkeys(key for values in knobs.values() for key in values)
    moved = [k for k in keys if len({json.dumps(values.get(k), sort_keys=True) for values in knobs.values()}) > 1]
    named = {
        text: " ".join(f"{key}={json.dumps(values[key])}" for key in moved if key in values) or "default"
        for text, values in knobs.items()
    }
    return _told_apart(named)


def plain_names(methods: Iterable[str]) -> dict[str, str]:
    """{legend name: the same without commas}."""
    return _told_apart({name: " ".join(name.replace(",", " ").split()) for name in methods})


def _told_apart(named: dict[str, str]) -> dict[str, str]:
    """Refuse names that marl-eval, which knows no case, would take for one."""
    seen: dict[str, str] = {}
    for old, new in named.items():
        other = seen.setdefault(new.lower(), old)
        if other != old:
            raise ExportError(f"{other} and {old} would both be called {new!r}, for marl-eval knows no upper case")
    return named


def _metrics(rows: pd.DataFrame, asked: Sequence[str] | None) -> list[str]:
    """Those asked for, or all that have a final figure, and are defined in every cell."""
    there = set(rows["metric"])
    names = asked or sorted(m for m in there if FINAL + m in there)
    lacking = {m: where for m in names if (where := _undefined(rows, m))}
    if asked and lacking:
        metric, where = next(iter(lacking.items()))
        raise ExportError(f"the metric {metric!r} is undefined for {where}")
    chosen = [m for m in names if m not in lacking]
    if not chosen:
        why = "; ".join(f"{metric!r} is undefined for {where}" for metric, where in lacking.items())
        raise ExportError(f"no metric has a final figure everywhere{': ' + why if why else ''}")
    return chosen


def _undefined(rows: pd.DataFrame, metric: str) -> str:
    """A cell without this metric, along training or at the end, or with a NaN in it; empty where there is none."""
    known = rows[rows["value"].notna()]
    holes = rows[rows["value"].isna() & rows["metric"].isin((metric, FINAL + metric))]
    for (game, knobs, method, cell), part in rows.groupby(["game", "knobs", "method", "cell"], sort=False):
        has = set(known.loc[known["cell"] == cell, "metric"])
        seeds = part.groupby("metric")["seed"].nunique()
        pair = (metric, FINAL + metric)
        whole = set(pair) <= has and all(seeds[m] == part["seed"].nunique() for m in pair)
        if not whole or (holes["cell"] == cell).any():
            return f"{method} on {_words(game, knobs)}"
    return ""


def _runs(cell: pd.DataFrame, metrics: Sequence[str]) -> Nested:
    """{run: its evaluation points and final figures} of one cell."""
    runs: Nested = {}
    for seed, mine in cell.groupby("seed"):
        along = mine[mine["metric"].isin(metrics)]
        points = along.pivot(index="env_steps", columns="metric", values="value").sort_index()
        if points.isna().any(axis=None):
            name, at = points.columns[points.isna().any()][0], points.index[points.isna().any(axis=1)][0]
            raise ExportError(f"the metric {name!r} was not measured at {at} environment steps, where others were")
        final = mine.set_index("metric")["value"]
        runs[f"seed_{seed}"] = {
            f"step_{k}": {"step_count": int(steps)} | {m: [float(values[m])] for m in metrics}
            for k, (steps, values) in enumerate(points.iterrows())
        } | {"absolute_metrics": {m: [float(final[FINAL + m])] for m in metrics}}
    return runs


def _check_equal(game: str, tasks: Nested) -> None:
    """The tools stack a game's runs into one array: methods, seeds and evaluation points must be equally many."""
    methods = {method for task in tasks.values() for method in task}
    for task, mine in tasks.items():
        if len(mine) < len(methods):
            lacking = ", ".join(sorted(methods - set(mine)))
            raise ExportError(f"{game} ({task}) lacks {lacking}, unlike other settings; choose methods that all have")
    sizes = {
        (len(runs), len(run)): (method, task)
        for task, mine in tasks.items()
        for method, runs in mine.items()
        for run in runs.values()
    }
    if len(sizes) > 1:
        (a, at_a), (b, at_b) = list(sizes.items())[:2]
        told = " but ".join(
            f"{seeds} seeds at {points - 1} points for {method} ({task})"
            for (seeds, points), (method, task) in ((a, at_a), (b, at_b))
        )
        raise ExportError(f"{game} has {told}; marl-eval wants equally many")


def _words(game: object, knobs: str) -> str:
    words = " ".join(f"{k}={json.dumps(v)}" for k, v in json.loads(knobs).items())
    return f"{game} ({words or 'default'})"
