"""`python -m benchmarks.tune`: equal budgets, seeds of its own, grids that grow at their edges, and stored searches."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import cli, compare, tune
from benchmarks.figures import Data, style
from benchmarks.methods import METHODS
from benchmarks.plot import parse
from benchmarks.sweep import Cell
from benchmarks.tune import Axis, Grid, TuneError, apply, first_points, grid, more_points, start
from marl import results, statistics
from marl.experiment import Experiment
from marl.results import Row

NAMES = ("team + return", "COMA", "VDN")
GAME = ["--env", "quorum", "--env-args", "n_agents=3", "quorum=2"]
SMALL = ["--methods", ",".join(NAMES), *GAME, "--seeds", "2", "--steps", "64", "--workers", "1"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few episodes at the end, and no calibration."""
    monkeypatch.setattr(tune, "EVALUATION", (1, 1, 8))
    monkeypatch.setattr(tune, "answers", lambda trials, ask, engine: [1.0] * len(trials))


def pretend(monkeypatch: pytest.MonkeyPatch, score: Callable[[Experiment], float]) -> None:
    """Trials that score what a function says, in place of training."""

    def run(experiment: Experiment) -> Iterator[Row]:
        for k, seed in enumerate(experiment.seeds):
            yield Row(seed, 64, 0, 0.1, "final_score", score(experiment) + 0.001 * k)

    monkeypatch.setattr(tune, "run", run)


def stored(folder: Path) -> Any:
    """The one search in a folder."""
    (path,) = folder.glob("figures/tuned-*.json")
    return json.loads(path.read_text()) | {"path": path}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_grid_around_its_own_values(name: str) -> None:
    """The grid holds the METHODS entry, which is no edge of what can be searched, and only fields that exist."""
    for learns in (False, True):
        where = grid(METHODS[name], learns)
        point = start(METHODS[name], where)
        assert point in set(where.points()) and apply(METHODS[name], where.named(point)) == METHODS[name]
        assert all(list(axis.values) == sorted(set(axis.values)) for axis in where.axes)
        assert {a.name for a in where.axes if a.name.startswith("fit")} == (
            {"fit.lr", "fit.passes"} if learns else set()
        )
        assert 0 not in where.edges(point), "the step size can go either way"


def test_grids_grow_at_their_edges() -> None:
    """One value more at the same ratio; below the least there is nothing; whole numbers stay whole."""
    lr, passes = Axis("learner.lr", (0.1, 0.2, 0.4)), Axis("fit.passes", (1, 2, 4), least=1)
    assert lr.wider(1).values == (0.1, 0.2, 0.4, 0.8) and lr.wider(-1).values == (0.05, 0.1, 0.2, 0.4)
    assert [lr.edge(v) for v in lr.values] == [-1, 0, 1] and [passes.edge(v) for v in passes.values] == [0, 0, 1]
    wider = passes.wider(1).values
    assert wider == (1, 2, 4, 8) and all(type(v) is int for v in wider)


@pytest.mark.parametrize("count", [1, 4, 15, 40])
def test_first_points(count: int) -> None:
    """As many as asked, each once, the method's own values first, the same every time; small grids grow."""
    for method in (METHODS["team + return"], METHODS["COMA"]):
        where = grid(method, method is METHODS["COMA"])
        wider, points = first_points(where, start(method, where), count)
        assert points[0] == start(method, where) and len(set(points)) == len(points) == count
        assert set(points) <= set(wider.points()) and first_points(where, points[0], count)[1] == points


def test_more_points_lie_beyond_the_edge_and_near_the_best() -> None:
    """New ones only: first one value beyond each edge, then neighbours; equally many where there is no edge."""
    where = Grid((Axis("learner.lr", (0.1, 0.2, 0.4)), Axis("learner.entropy", (0.0, 0.01, 0.03), least=0.0)))
    tried = list(where.points())
    wider, points = more_points(where, (0.4, 0.03), tried, 4)
    assert points[:2] == [(0.8, 0.03), (0.4, pytest.approx(0.09))] and not set(points) & set(tried) and len(points) == 4
    assert set(points) <= set(wider.points()) and all(wider.distance((0.4, 0.03), p) <= 2 for p in points)
    same, points = more_points(where, (0.2, 0.0), tried[:4], 3)
    assert same == where and len(points) == 3 and not set(points) & set(tried[:4])
    wider, points = more_points(where, (0.2, 0.0), tried, 3)  # nothing left of the old grid
    assert len(points) == 3 and set(points) <= set(wider.points())


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real training: equal trials, seeds of its own, all stored; again: nothing to run, the same search, usable."""
    few = ["--methods", "COMA,VDN", *SMALL[2:]]
    arguments = [*few, "--trials", "3", "--rounds", "1", "--extra", "1", "--out", str(tmp_path)]
    assert tune.main(arguments) == 0
    first = stored(tmp_path)
    assert {len(m["trials"]) for m in first["methods"].values()} in ({3}, {4})
    rows = results.read(tmp_path)
    assert rows["seed"].min() == tune.SEEDS and first["seeds"] == [tune.SEEDS, tune.SEEDS + 1]
    assert rows["cell"].nunique() == sum(len(m["trials"]) for m in first["methods"].values())
    for name, record in first["methods"].items():
        for trial in record["trials"]:
            mine = rows[(rows["cell"] == trial["cell"]) & (rows["metric"] == "final_score")].sort_values("seed")
            assert trial["runs"] == mine["value"].tolist() and trial["score"] == float(statistics.iqm(trial["runs"]))
        assert record["best"]["score"] == max(t["score"] for t in record["trials"])
        assert apply(METHODS[name], record["default"]["settings"]) == METHODS[name]
        assert tune.tuned(first["path"])[name] == apply(METHODS[name], record["best"]["settings"])
    assert {"commit", "torch"} <= set(first["provenance"]) and "use:" in capsys.readouterr().out
    assert tune.main(arguments) == 0
    said, again = capsys.readouterr().out, stored(tmp_path)
    assert " 0 to run" in said and "estimate" not in said
    assert {k: v for k, v in again.items() if k != "provenance"} == {
        k: v for k, v in first.items() if k != "provenance"
    }


def lr_of(experiment: Experiment) -> float:
    """In factors of two from the method's own in METHODS."""
    return math.log2(experiment.method.learner.lr / METHODS["VDN"].learner.lr)  # type: ignore[attr-defined]


def test_a_best_beyond_the_grid_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score peaks at 16 times the step size; the grid ends at 4 times and grows there; all methods pay the same."""
    pretend(monkeypatch, lambda e: 1 - 0.01 * (lr_of(e) - 4) ** 2 if "mixer" in str(e.method.learner) else 0.5)
    assert tune.main([*SMALL, "--trials", "15", "--rounds", "5", "--extra", "3", "--out", str(tmp_path)]) == 0
    found = stored(tmp_path)["methods"]
    vdn = found["VDN"]
    assert vdn["best"]["settings"]["learner.lr"] == pytest.approx(16 * METHODS["VDN"].learner.lr)  # type: ignore[attr-defined]
    assert not vdn["on_edge"] and len(vdn["grid"]["learner.lr"]) > len(vdn["first_grid"]["learner.lr"])
    assert len({len(m["trials"]) for m in found.values()}) == 1 and len(vdn["trials"]) > 15
    assert found["COMA"]["best"] == found["COMA"]["default"], "of equals the values that the method has"


def test_no_edge_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a best inside is not searched beyond; and a search that runs out of rounds says so."""
    pretend(monkeypatch, lambda e: 0.5)
    assert tune.main([*SMALL, "--trials", "4", "--rounds", "5", "--extra", "3", "--out", str(tmp_path / "a")]) == 0
    assert {len(m["trials"]) for m in stored(tmp_path / "a")["methods"].values()} == {4}
    pretend(monkeypatch, lambda e: e.method.learner.lr)  # type: ignore[attr-defined]
    assert tune.main([*SMALL, "--trials", "15", "--rounds", "1", "--extra", "2", "--out", str(tmp_path / "b")]) == 0
    found = stored(tmp_path / "b")["methods"]
    assert {len(m["trials"]) for m in found.values()} == {17} and "learner.lr" in found["VDN"]["on_edge"]


def test_a_trial_that_diverged_is_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in any seed: never the best, null in JSON."""
    pretend(monkeypatch, lambda e: math.nan if lr_of(e) > 0 else lr_of(e))
    arguments = ["--methods", "VDN", *SMALL[2:], "--trials", "5", "--rounds", "0", "--out", str(tmp_path)]
    assert tune.main(arguments) == 0
    record = stored(tmp_path)["methods"]["VDN"]
    assert record["best"]["score"] == pytest.approx(0.0005) and None in [t["score"] for t in record["trials"]]


def test_stored_searches_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file, another format, and a METHODS entry that has changed since: one sentence each."""
    pretend(monkeypatch, lambda e: 0.5)
    assert tune.main([*SMALL, "--trials", "2", "--rounds", "0", "--out", str(tmp_path)]) == 0
    path = stored(tmp_path)["path"]
    assert set(tune.tuned(path)) == set(NAMES)
    broken = tmp_path / "broken.json"
    for text, words in (("{", "not a search"), ("[]", "not a search"), ('{"format": 9, "methods": {}}', "format 9")):
        broken.write_text(text)
        with pytest.raises(TuneError, match=words):
            tune.tuned(broken)
    with pytest.raises(TuneError, match="not a search"):
        tune.tuned(tmp_path / "none.json")
    changed = replace(METHODS["COMA"], fit=replace(METHODS["COMA"].fit, lr=0.5))
    monkeypatch.setitem(METHODS, "COMA", changed)
    with pytest.raises(TuneError, match="COMA has changed"):
        tune.tuned(path)
    for name in ("learner.lrr", "lr", "chain.lr"):
        with pytest.raises(TuneError, match="no hyperparameter"):
            apply(METHODS["VDN"], {name: 1.0})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trials", "0"], "--trials 0"),
        (["--rounds", "-1"], "--rounds -1"),
        (["--methods", "COMAA"], "did you mean 'COMA'"),
        (["--env", "quorum", "--methods", "local + return", "--env-args", "n_agents=0"], "n_agents"),
        (["--device", "cuda"], "--device cuda"),
    ],
    ids=["trials", "rounds", "method", "game", "device"],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, status 2."""
    assert tune.main([*arguments, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.slow
def test_two_workers_find_what_one_finds(tmp_path: Path) -> None:
    """As people run it, in a process of its own: rows equal in every column but seconds, and the same best."""
    tables, best = [], []
    for workers in ("1", "2"):
        out = tmp_path / workers
        less = ["--trials", "3", "--rounds", "0", "--workers", workers, "--out", str(out)]
        subprocess.run([sys.executable, "-m", "benchmarks.tune", *SMALL, *less], check=True, capture_output=True)
        tables.append(results.read(out).drop(columns="seconds"))
        best.append({name: record["best"] for name, record in stored(out)["methods"].items()})
    assert tables[0].equals(tables[1]) and best[0] == best[1]


def plan_of(*words: str) -> list[Cell]:
    """The cells of a comparison with these options."""
    return cli.plan(compare.QUESTION, parse(cli.Options, ["--quick", *words], "compare"))


def test_a_question_takes_tuned_settings() -> None:
    """The methods of a stored search get its best values, in cells of their own; others and all colours stay."""
    best, plain = tune.tuned("walking_robot"), {c.name: c for c in plan_of()}
    cells = plan_of("--tuned", "walking_robot")
    assert {c.method for c in cells if c.tuned} == set(best) < {c.method for c in cells}
    for c in cells:
        assert c.experiment.method == best.get(c.method, METHODS[c.method])
        config, before = c.config, plain[c.name].config
        assert (config == before) == (not c.tuned)
        assert all(config["method"][k] == before["method"][k] for k in ("name", "family", "rank", "privileged"))


def test_plan_and_small_print_say_what_is_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    """How many methods, and by which search; nothing where none is."""
    cells = plan_of("--tuned", "walking_robot")
    cli._print_plan(compare.QUESTION, cells, cells, Path("here"))
    name = json.loads((tune.STORED / "walking_robot.json").read_bytes())["search"]
    assert f"tuned:    8 of 10 methods have settings of search {name}" in capsys.readouterr().out
    for some, words in ((cells, f"8 of 10 methods with tuned settings (search {name})"), (plan_of(), "")):
        configs = [c.config | {"provenance": results.provenance()} for c in some]
        said = style.small_print(Data(pd.DataFrame(), pd.DataFrame(), configs), "")
        assert words in said and ("tuned" in said) == bool(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tuned", "none.json"], "none.json is not a search"),
        (["--tuned", "walking_robot", "--methods", "VDN"], "has settings of none of these methods"),
    ],
)
def test_a_bad_search_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, before anything runs."""
    assert cli.main(compare.QUESTION, arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_search_that_comes_with_the_package_is_fair() -> None:
    """Equally many trials for all, METHODS' own values among them, on seeds that nobody reports."""
    (path,) = tune.STORED.glob("*.json")
    search = json.loads(path.read_bytes())
    assert len({len(record["trials"]) for record in search["methods"].values()}) == 1
    assert min(search["seeds"]) == tune.SEEDS and "-dirty" not in search["provenance"]["commit"]
    for name, record in search["methods"].items():
        assert apply(METHODS[name], record["default"]["settings"]) == METHODS[name]
        assert record["best"]["score"] == max(t["score"] for t in record["trials"] if t["score"] is not None)
