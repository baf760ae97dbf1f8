"""The benchmark command: it runs end to end, resumes what was killed, and refuses nonsense in one line before work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import benchmarks.cli as cli
from benchmarks.cli import Options, knobs_from, main, plan
from benchmarks.compare import METHODS as COMPARED
from benchmarks.compare import QUESTION, settings
from benchmarks.methods import METHODS, pick
from marl import results
from marl.results import COLUMNS, cell_id

MATRIX = ["--env", "credit/matrix_game-v0", "--seeds", "2", "--steps", "2000", "--workers", "1"]
ROBOT = ["n_agents=2", "horizon=12", "delay=3", "window=5"]
TWO = ["--methods", "team + return, difference + return"]


def compare(*arguments: str) -> int:
    return main(QUESTION, list(arguments))


def without_clock(folder: Path) -> pd.DataFrame:
    """Every column but `seconds`, in a fixed order."""
    table = results.read(folder)[[c for c in COLUMNS if c != "seconds"]]
    return table.sort_values([c for c in table if c != "value"], ignore_index=True)


def test_end_to_end_in_a_new_process(tmp_path: Path) -> None:
    """The command as a newcomer types it: exit 0, rows, configurations, figures in PNG and PDF, how to redraw."""
    command = [sys.executable, "-m", "benchmarks.compare", *MATRIX, *TWO, "--out", "res"]
    root = str(Path(__file__).parents[1])
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for words in ("1 games x 2 methods = 2 cells", "2 seeds x 2,000 environment steps = 62 updates", "estimate:"):
        assert words in ran.stdout
    assert "redraw:  python -m benchmarks.plot res" in ran.stdout and "team + return  " in ran.stdout
    folder = tmp_path / "res"
    table = results.read(folder)
    assert list(table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert set(table["method"]) == {"team + return", "difference + return"} and set(table["seed"]) == {0, 1}
    assert {"return", "score", "final_score", "final_return"} <= set(table["metric"])
    assert table["env_steps"].max() == 62 * 32 and not table["value"][table["metric"] == "score"].isna().any()
    bill = table[table["metric"] == "final_score"].groupby("method")["simulator_steps"].max()
    assert bill.to_dict() == {"team + return": 0, "difference + return": 62 * 32 * 2}
    stored = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    assert {config["method"]["name"] for config in stored} == set(table["method"])
    assert all(config["knobs"] == {"payoff": "climbing", "penalty": -100.0} for config in stored)
    drawn = {path.name for path in (folder / "figures").iterdir()}
    for figure in ("learning_curves", "credit_heatmap", "bars"):
        assert {f"{figure}.png", f"{figure}.pdf"} <= drawn
    assert not list(folder.glob("*.tmp.*"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the pictures, which tests/test_figures.py looks at."""
    monkeypatch.setattr(cli, "redraw", lambda *_, **__: [Path("report.html")])


@pytest.mark.usefixtures("undrawn")
def test_the_same_command_again_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done is done; --force computes again, to the same numbers; one more method adds its cell alone."""
    folder = tmp_path / "res"
    assert compare(*MATRIX, *TWO, "--out", str(folder)) == 0
    first, kept = without_clock(folder), {p.name: p.read_bytes() for p in folder.glob("*.parquet")}
    capsys.readouterr()
    with monkeypatch.context() as nothing:
        nothing.setattr(cli, "_run", lambda *_: pytest.fail("nothing was missing"))
        assert compare(*MATRIX, *TWO, "--out", str(folder)) == 0
    said = capsys.readouterr().out.splitlines()
    assert any("2 cells done, 0 to run" in line for line in said)
    (title,) = (k for k, line in enumerate(said) if "interquartile mean over seeds" in line)
    assert said[title].startswith("final score") and said[title + 1].split() == ["matrix_game-v0"]
    assert said[title + 2].startswith("team + return ")
    assert {p.name: p.read_bytes() for p in folder.glob("*.parquet")} == kept
    assert compare(*MATRIX, *TWO, "--out", str(folder), "--force") == 0
    pd.testing.assert_frame_equal(without_clock(folder), first, check_exact=True)
    assert compare(*MATRIX, "--methods", "team + return", "agent total", "--out", str(folder)) == 0
    assert "1 cells done, 1 to run" in capsys.readouterr().out
    assert len(list(folder.glob("*.json"))) == 3


def killed_midway(folder: Path, arguments: list[str], workers: int) -> int:
    """Start the command, SIGKILL it once a cell is on disk, and say how many cells it had finished."""
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compare", *arguments, "--workers", str(workers), "--out", str(folder)],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not finished(folder):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 10
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = members(process.pid)
    if left:
        os.killpg(process.pid, signal.SIGKILL)
    assert not left, "workers outlive their parent"
    return len(finished(folder))


def finished(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*.parquet") if ".credit" not in p.name]


def members(session: int) -> list[str]:
    """Live processes of a session (after the state, /proc/PID/stat gives parent, group, session)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().rpartition(") ")
        except OSError:  # it ended while we looked
            continue
        state, _, _, its_session = fields.split()[:4]
        if int(its_session) == session and state != "Z":
            found.append(name)
    return found


ROBOTS = ["--env", "credit/walking_robot-v0", "--seeds", "2", "--steps", "9000", "--env-args", *ROBOT]
FOUR = ["--methods", "team + return, team + GAE, aristocrat on Q, reference O8"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_is_finished_by_the_same_command(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL midway: what was finished stays, the rest runs, and every row but its clock is as if unharmed."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    before = killed_midway(folder, [*ROBOTS, *FOUR], workers)
    assert 1 <= before < 4
    kept = {p: p.read_bytes() for p in finished(folder)}
    assert compare(*ROBOTS, *FOUR, "--workers", "1", "--out", str(folder)) == 0
    assert f"{before} cells done, {4 - before} to run" in capsys.readouterr().out
    assert all(p.read_bytes() == content for p, content in kept.items())
    assert compare(*ROBOTS, *FOUR, "--workers", "1", "--out", str(whole)) == 0
    pd.testing.assert_frame_equal(without_clock(folder), without_clock(whole), check_exact=True)
    maps = [
        results.read_credit(f).sort_values(["method", "episode", "t", "agent"], ignore_index=True)
        for f in (folder, whole)
    ]
    pd.testing.assert_frame_equal(*maps, check_exact=True)


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space when the second cell is written: one line, exit 2; the first cell stays, and the next run goes on."""
    folder, sync = tmp_path / "res", os.fsync

    def full(handle: int) -> None:
        if len(finished(folder)):
            raise OSError(28, "No space left on device")
        sync(handle)

    with monkeypatch.context() as disk:
        disk.setattr(results.os, "fsync", full)
        assert compare(*MATRIX, *TWO, "--out", str(folder)) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("error: cannot write") and said.endswith("No space left on device\n") and said.count("\n") == 1
    )
    assert len(finished(folder)) == 1 and not list(folder.glob("*.tmp.*"))
    assert compare(*MATRIX, *TWO, "--out", str(folder)) == 0
    assert len(finished(folder)) == 2


# Refusals.

BAD: dict[str, tuple[list[str], str]] = {
    "unknown game": (["--env", "credit/walkin_robot-v0"], "walkin_robot"),
    "unknown namespace": (["--env", "nosuch/game-v0"], "nosuch/game-v0"),
    "unknown version": (["--env", "credit/el_farol-v7"], "v7"),
    "unknown module": (["--env", "no_such_module:ns/game-v0"], "no_such_module"),
    "module without a game": (["--env", "json"], "json"),
    "unknown method": ([*MATRIX, "--methods", "team + retrun"], "did you mean 'team + return'?"),
    "one unknown method of two": ([*MATRIX, "--methods", "COMA, VDN+"], "no method 'VDN+'"),
    "unknown knob": ([*MATRIX, "--env-args", "n_agent=3"], "has no knob 'n_agent'"),
    "knob out of range": (["--env", "credit/walking_robot-v0", "--env-args", "delay=99"], "window=20 is not allowed"),
    "knob of a wrong type": (["--env", "credit/el_farol-v0", "--env-args", "n_agents=many"], "n_agents='many'"),
    "knob without value": ([*MATRIX, "--env-args", "payoff"], "give knobs as key=value"),
    "knobs without game": (["--env-args", "n_agents=3"], "--env-args needs --env"),
    "method that does not fit": ([*MATRIX, "--methods", "safe difference + return"], "does not"),
    "local rewards missing": ([*MATRIX, "--methods", "local + return"], "MatrixGame has none"),
    "no seeds": ([*MATRIX[:2], "--seeds", "0"], "--seeds 0 is not allowed; it must be 1 or more"),
    "negative seeds": ([*MATRIX[:2], "--seeds", "-3"], "--seeds -3 is not allowed; it must be 1 or more"),
    "seeds no number": ([*MATRIX[:2], "--seeds", "ten"], "--seeds"),
    "no steps": ([*MATRIX[:2], "--steps", "0"], "--steps 0 is not allowed; it must be 1 or more"),
    "no workers": ([*MATRIX[:2], "--workers", "0"], "--workers 0 is not allowed; it must be 1 or more"),
    "no threads": ([*MATRIX[:2], "--threads", "0"], "--threads 0 is not allowed; it must be 1 or more"),
    "unknown option": ([*MATRIX, "--sedes", "3"], "--sedes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_any_work(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, exactly one line on stderr that names the trouble, no folder, no training."""
    arguments, words = BAD[case]
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("work began"))
    monkeypatch.chdir(tmp_path)
    assert compare(*arguments, "--out", "res") == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and words in said.err
    assert "Traceback" not in said.err and len(said.err) < 700
    assert not (tmp_path / "res").exists()


def bad_folder(kind: str, tmp_path: Path) -> Path:
    """A results folder that cannot be used."""
    folder = tmp_path / "res"
    if kind == "a file":
        folder.write_text("mine")
    elif kind == "below a file":
        (tmp_path / "file").write_text("mine")
        return tmp_path / "file" / "res"
    elif kind == "not writable":
        return Path("/proc/no-such-folder")
    else:
        folder.mkdir()
        name = "thesis.tex" if kind == "foreign" else f"{'ab' * 8}.json"
        content = {"another version": '{"format": 99}', "broken": "{", "foreign": "\\documentclass{book}"}[kind]
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("kind", ["a file", "below a file", "not writable", "foreign", "another version", "broken"])
def test_bad_folders_are_one_line_before_any_work(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, one line that names the folder or file; what lies there is not touched."""
    folder = bad_folder(kind, tmp_path)
    before = {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("work began"))
    assert compare(*MATRIX, *TWO, "--out", str(folder)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(folder) in said
    if kind == "another version":
        assert "format 99" in said and "reads format" in said
    assert {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_process_that_refuses_exits_with_2() -> None:
    """The exit status reaches the shell, and nothing but the one line reaches stderr."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.compare", "--methods", "tam + return"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.count("\n") == 1 and "did you mean 'team + return'?" in ran.stderr


# Plans.


def test_the_main_question() -> None:
    """At least eight methods, every family; team size x delay at a fixed window, in both protocols."""
    assert len(COMPARED) >= 8 and len(set(COMPARED)) == len(COMPARED)
    assert {METHODS[name].family for name in COMPARED} == {"baseline", "temporal", "spatial", "joint", "reference"}
    for quick in (True, False):
        cells = plan(QUESTION, Options(quick=quick))
        games, asked = settings(quick), {c.method for c in cells}
        assert asked == set(COMPARED) - ({"COMA"} if quick else set())  # its critic takes longer than all the others
        assert len(cells) == len(games) * len(asked) == len({cell_id(c.config) for c in cells})
        assert len({knobs["window"] for _, knobs in games}) == len({knobs["horizon"] for _, knobs in games}) == 1
        sizes, delays = {k["n_agents"] for _, k in games}, {k["delay"] for _, k in games}
        assert len(games) == len(sizes) * len(delays) and 0 in delays
        assert all(cell.experiment.updates > 100 for cell in cells)


def test_methods_may_come_in_commas_or_one_by_one() -> None:
    """Both spellings plan the same cells; a method named twice runs once."""
    env = {"env": "credit/el_farol-v0", "seeds": 2}
    spelt: list[tuple[str, ...]] = [
        ("team + return, COMA",),
        ("team + return", "COMA"),
        ("team + return,", "COMA", "COMA"),
    ]
    plans = [[cell_id(c.config) for c in plan(QUESTION, Options(methods=m, **env))] for m in spelt]  # type: ignore[arg-type]
    assert plans[0] == plans[1] == plans[2] and len(plans[0]) == 2
    assert pick(["COMA", "COMA"]) == ["COMA"]


def test_a_default_choice_leaves_out_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """On another game, methods it cannot serve are named and left out, the others stay."""
    question = replace(QUESTION, methods=("team + return", "safe difference + return", "local + return"))
    cells = plan(question, Options(env="credit/matrix_game-v0"))
    assert [c.method for c in cells] == ["team + return"]
    said = capsys.readouterr().out
    assert "left out: safe difference + return: " in said and "left out: local + return: " in said


def test_a_cell_is_named_by_all_it_depends_on() -> None:
    """Seeds, steps, threads, methods and knobs make other cells; spelling out a default does not."""
    base: dict[str, Any] = {"env": "credit/matrix_game-v0", "methods": ("COMA",), "seeds": 2, "steps": 2000}

    def name(**more: Any) -> str:
        (cell,) = plan(QUESTION, Options(**{**base, **more}))
        return cell_id(cell.config)

    others = [
        {"seeds": 3},
        {"steps": 3000},
        {"threads": 2},
        {"methods": ("team + TD",)},
        {"env_args": ("payoff=qtran",)},
    ]
    names = [name(), *(name(**other) for other in others)]
    assert len(set(names)) == len(names)
    assert name(env_args=("payoff=climbing",)) == name() == name(workers=2) == name(quick=True)


def test_knobs_are_json_or_words() -> None:
    """Numbers, lists and truth values as JSON; what is no JSON is a string."""
    found = knobs_from(["n=3", "c=.5", "x=1.5", "on=true", "safe=hold", 'word="all"', "table=[[1,2],[3,4]]", "empty="])
    assert found == {
        "n": 3,
        "c": ".5",
        "x": 1.5,
        "on": True,
        "safe": "hold",
        "word": "all",
        "table": [[1, 2], [3, 4]],
        "empty": "",
    }


def test_every_name_can_be_given_on_the_command_line() -> None:
    """--methods takes names separated by commas."""
    assert not [name for name in METHODS if "," in name]


def test_the_list_is_the_code_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    """--list names every method with its needs, its privilege and its price, and runs nothing."""
    assert compare("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(METHODS)
    for line, (name, method) in zip(lines[1:], METHODS.items(), strict=True):
        assert line.startswith(name) and method.family in line and line.endswith(method.cost)
        assert ("+; " in line) == method.privileged
        assert all(need in line for need in method.needs)
