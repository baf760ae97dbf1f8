"""Our results in marl-eval's file format: the documented schema, our numbers, and a sentence where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import export as command
from marl import export, results
from marl.export import ExportError
from marl.results import ResultsError, Row

GAMES: dict[str, list[dict[str, Any]]] = {
    "credit/walking_robot-v0": [{"n_agents": 3, "delay": d, "cues": "own"} for d in (0, 24)],
    "credit/spread-v0": [{}],
}
METHODS = ("COMA", "IQL Boltzmann")
SEEDS, POINTS = 3, 4


def value(metric: str, seed: int, steps: int) -> float:
    """A number that says where it belongs."""
    return len(metric) + seed / 8 + steps / 4096


def rows_of(seeds: int = SEEDS, points: int = POINTS, hole: bool = False) -> list[Row]:
    """A cell: score and return along training and at the end, credit along training alone, one hole in `split_who`."""
    along = ("score", "return", "split_who", "culprit_auc")
    out = []
    for seed in range(seeds):
        for steps in (1024 * k for k in range(points)):
            out += [Row(seed, steps, 0, 0.1, m, value(m, seed, steps)) for m in along]
        final = [f"final_{m}" for m in ("score", "return", "greedy_return", "split_who")]
        out += [Row(seed, 1024 * points, 0, 0.2, m, value(m, seed, 0)) for m in final]
    return [r._replace(value=np.nan) if hole and r.metric == "score" and r.seed == 1 else r for r in out]


def fill(folder: Path, change: Callable[[str, dict[str, Any], str], list[Row] | None] = lambda *_: rows_of()) -> Path:
    """A results folder with every method on every setting; `change` gives the rows, or None for no such cell."""
    results.prepare(folder)
    for game, settings in GAMES.items():
        for knobs in settings:
            for rank, name in enumerate(METHODS):
                about = {"name": name, "family": "spatial", "rank": rank, "privileged": False}
                config = {"question": "compare", "game": game, "knobs": knobs, "method": about, "steps": 4096}
                rows = change(game, knobs, name)
                if rows is not None:
                    rows = [r._replace(value=np.nan) if (r.metric, r.seed) == ("split_who", 2) else r for r in rows]
                    results.write_cell(folder, config, rows)
    return folder


def check_schema(nested: Any) -> None:
    """marl-eval's README: names -> runs -> steps with a step_count and lists, absolute_metrics last; all alike."""
    assert isinstance(nested, dict) and nested
    for tasks in nested.values():
        sizes = set()
        algorithms = [sorted(task) for task in tasks.values()]
        assert algorithms == algorithms[:1] * len(algorithms)
        for task in tasks.values():
            for algorithm, runs in task.items():
                assert "," not in algorithm
                for run in runs.values():
                    *steps, last = run
                    assert steps == [f"step_{k}" for k in range(len(steps))] and last == "absolute_metrics"
                    counts = [run[step]["step_count"] for step in steps]
                    assert all(type(c) is int for c in counts) and counts == sorted(set(counts))
                    metrics = [sorted(set(point) - {"step_count"}) for point in run.values()]
                    assert metrics == metrics[:1] * len(metrics) and metrics[0]
                    lists = [v for point in run.values() for k, v in point.items() if k != "step_count"]
                    assert all(isinstance(v, list) and len(v) == 1 and type(v[0]) is float for v in lists)
                    sizes.add((len(runs), len(steps), tuple(metrics[0])))
        assert len(sizes) == 1


def test_schema_and_numbers(tmp_path: Path) -> None:
    """Every number stands where it belongs, and comes back from JSON to the last bit."""
    nested = export.marl_eval(results.read(fill(tmp_path)))
    check_schema(nested)
    assert json.loads(json.dumps(nested, allow_nan=False)) == nested
    assert {game: sorted(tasks) for game, tasks in nested.items()} == {
        "credit/walking_robot-v0": ["delay=0", "delay=24"],
        "credit/spread-v0": ["default"],
    }
    task = nested["credit/walking_robot-v0"]["delay=24"]
    assert set(task) == {"COMA", "IQL Boltzmann"} and list(task["COMA"]) == ["seed_0", "seed_1", "seed_2"]
    run = task["IQL Boltzmann"]["seed_2"]
    assert run["step_3"] == {"step_count": 3072, "return": [6 + 0.25 + 0.75], "score": [5 + 0.25 + 0.75]}
    assert run["absolute_metrics"] == {"return": [12.25], "score": [11.25]}


def test_metrics_are_those_asked_for(tmp_path: Path) -> None:
    """By default what has a final figure and is defined everywhere; asked for by name, a hole is a sentence."""
    rows = results.read(fill(tmp_path))
    only = export.marl_eval(rows, ["score"])
    check_schema(only)
    assert list(only["credit/spread-v0"]["default"]["COMA"]["seed_0"]["absolute_metrics"]) == ["score"]
    for metric in ("split_who", "culprit_auc", "greedy_return", "scroe"):
        with pytest.raises(ExportError, match=f"'{metric}' is undefined for COMA|IQL, Boltzmann on credit/"):
            export.marl_eval(rows, [metric])
    with pytest.raises(ExportError, match="no metric has a final figure"):
        export.marl_eval(rows[~rows["metric"].str.startswith("final")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda game, knobs, name: None if knobs.get("delay") and name == "COMA" else rows_of(), "lacks COMA"),
        (lambda game, knobs, name: rows_of(seeds=2 if name == "COMA" else 3), "2 seeds at 4 points for COMA"),
        (lambda game, knobs, name: rows_of(points=3 if name == "COMA" else 4), "3 seeds at 3 points for COMA"),
        (lambda game, knobs, name: [r for r in rows_of() if r.env_steps or r.metric != "score"], "not measured at 0"),
    ],
    ids=["method", "seeds", "points", "point"],
)
def test_what_its_tools_cannot_stack_is_refused(
    tmp_path: Path, change: Callable[..., list[Row] | None], words: str
) -> None:
    """Unequal methods, seeds or points within a game: one sentence that names them."""
    with pytest.raises(ExportError, match=words) as refused:
        export.marl_eval(results.read(fill(tmp_path, change)))
    assert "\n" not in str(refused.value)


def test_two_runs_of_one_method_are_refused(tmp_path: Path) -> None:
    """Two budgets of one method must not become one run; nor may nothing at all be exported."""
    rows = results.read(fill(tmp_path))
    twice = pd.concat([rows, rows.assign(cell="another")])
    with pytest.raises(ExportError, match="more than once"):
        export.marl_eval(twice)
    with pytest.raises(ExportError, match="no rows"):
        export.marl_eval(rows[:0])


def test_names_stay_apart_in_lower_case() -> None:
    """Its tools know no case and no comma: names that would become one are refused."""
    assert export.plain_names(["IQL, Boltzmann", "VDN"]) == {"IQL, Boltzmann": "IQL Boltzmann", "VDN": "VDN"}
    for names in (["a, b", "a b"], ["Vdn", "VDN"]):
        with pytest.raises(ExportError, match="would both be called"):
            export.plain_names(names)
    knobs = ['{"a":1,"b":2}', '{"a":1,"b":3}', '{"a":1}']
    assert list(export.task_names(knobs).values()) == ["b=2", "b=3", "default"]
    with pytest.raises(ExportError, match="upper case"):
        export.task_names(['{"a":"X"}', '{"a":"x"}'])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes what the function gives, chooses methods (one with a comma in its name too), and says what it wrote."""
    folder, out = fill(tmp_path / "cells"), tmp_path / "out.json"
    assert command.main([str(folder), "--to", "marl-eval", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == export.marl_eval(results.read(folder))
    said = capsys.readouterr().out
    assert "credit/walking_robot-v0: 2 methods, 3 seeds, 4 points" in said and "metrics: return, score" in said
    assert command.main([str(folder), "--out", str(out), "--methods", "IQL Boltzmann", "--metrics", "score"]) == 0
    check_schema(json.loads(out.read_text()))
    assert list(json.loads(out.read_text())["credit/spread-v0"]["default"]) == ["IQL Boltzmann"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "COMA,QMIX"], "holds no method 'QMIX'"),
        (["--metrics", "culprit_auc"], "undefined"),
        (["--to", "csv"], "marl-eval"),
        (["--out", "{file}/below.json"], "cannot write"),
    ],
    ids=["method", "metric", "format", "place"],
)
def test_bad_input_leaves_the_old_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], words: str
) -> None:
    """One line on stderr, status 2, and what was there before is still there."""
    folder, out = fill(tmp_path / "cells"), tmp_path / "out.json"
    out.write_text("before")
    given = [a.format(file=out) for a in arguments]
    assert command.main([str(folder), "--out", str(out), *given]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells", "out.json"]


def test_unknown_format() -> None:
    """The function refuses it too, and a missing folder is a ResultsError."""
    with pytest.raises(ExportError, match="one of marl-eval"):
        export.write(pd.DataFrame(), "x.json", "csv")
    with pytest.raises(ResultsError):
        results.read("no such folder")
