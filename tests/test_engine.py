"""Wherever cells run the files are the same; a worker that dies, a cell that fails and Ctrl-C cost nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
import torch

import benchmarks.cli as cli
from benchmarks import engine
from benchmarks.cli import Options, main, plan
from benchmarks.compare import QUESTION
from benchmarks.engine import Engine, Lost, side_by_side
from marl import results
from marl.results import COLUMNS, ResultsError, Row, write_cell

ROOT = Path(__file__).parents[1]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Toy:
    """A cell that does one thing."""

    name: str
    deed: str = "write"

    @property
    def config(self) -> dict[str, Any]:
        method = {"name": self.name, "family": "baseline", "rank": 0, "privileged": False}
        return {"question": "toy", "game": "none", "knobs": {"deed": self.deed}, "method": method}


def act(cell: Toy, folder: Path) -> None:
    """Do it; what was tried is kept in a hidden file."""
    with open(folder / f".tried {cell.name}", "a") as tried:
        tried.write(f"{os.environ.get('OMP_NUM_THREADS')}\n")
    dead = len(tries(folder, cell.name))
    if cell.deed == "die" or (cell.deed == "die once" and dead == 1):
        time.sleep(0.3)  # so that others are running, too
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.deed == "fail":
        raise ZeroDivisionError("one over\nnothing")
    if cell.deed == "full":
        raise ResultsError("cannot write here: No space left on device")
    if cell.deed == "wait":
        time.sleep(1.0)
    write_cell(folder, cell.config, [Row(0, 0, 0, 0.0, "value", 1.0)])


def tries(folder: Path, name: str) -> list[str]:
    """One line a try."""
    return (folder / f".tried {name}").read_text().splitlines()


def sweep(cells: list[Toy], folder: Path, how: Engine) -> list[str]:
    """Run them; returns the names that `each` was told."""
    told: list[str] = []
    try:
        side_by_side(cells, partial(act, folder=folder), how, folder, lambda cell: told.append(cell.name))
    finally:
        assert not list(folder.glob(".*.running")), "no mark outlives its sweep"
    return told


def stored(folder: Path) -> set[str]:
    return {config["method"]["name"] for config in results.configs(folder)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_that_fails_is_named_and_the_rest_goes_on(workers: int, tmp_path: Path) -> None:
    """One sentence with the name, the error and the line; both neighbours are on disk; it is not tried again."""
    cells = [Toy("first"), Toy("bad", "fail"), Toy("last")]
    with pytest.raises(Lost) as lost:
        sweep(cells, tmp_path, Engine(workers))
    (sentence,) = lost.value.sentences
    assert sentence.startswith("bad: ZeroDivisionError: one over nothing (test_engine.py, line ")
    assert stored(tmp_path) == {"first", "last"} and len(tries(tmp_path, "bad")) == 1


def test_a_worker_that_dies_costs_its_cell_a_try_and_the_others_nothing(tmp_path: Path) -> None:
    """Killed once: retried and done. Killed always: given up by name after two deaths. All others are done."""
    cells = [Toy("wait", "wait"), Toy("killer", "die"), Toy("unlucky", "die once"), Toy("x"), Toy("y")]
    with pytest.raises(Lost) as lost:
        sweep(cells, tmp_path, Engine(2, threads=3))
    (sentence,) = lost.value.sentences
    assert sentence.startswith("killer: its worker died 2 times")
    assert len(tries(tmp_path, "killer")) == 2, "the second death has one name"
    assert stored(tmp_path) == {"wait", "unlucky", "x", "y"}
    assert set(tries(tmp_path, "x")) == {"3"}, "other libraries get as many threads as torch"


def test_a_full_disk_ends_the_sweep(tmp_path: Path) -> None:
    """What cannot be stored need not be computed."""
    with pytest.raises(ResultsError, match="No space left"):
        sweep([Toy("first"), Toy("bad", "full"), Toy("last")], tmp_path, Engine(1))
    assert stored(tmp_path) == {"first"}


def test_workers_times_threads_do_not_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default; whoever names a number of workers gets it."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    assert [Engine(None, threads).at_once(100) for threads in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert Engine(5, 4).at_once(100) == 5 and Engine(5).at_once(3) == 3


if torch.cuda.is_available():
    NO_CUDA: dict[str, tuple[list[str], str]] = {}
else:
    NO_CUDA = {"no such device": (["--device", "cuda"], "torch finds no CUDA device on this machine")}
REFUSED = NO_CUDA | {
    "unknown engine": (["--engine", "slurm"], "--engine"),
    "an address of nothing": (["--address", "127.0.0.1:6379"], "--address 127.0.0.1:6379 needs --engine ray"),
    "a device of another kind": (["--device", "tpu"], "--device"),
    "checkpoints before they are due": (["--checkpoint", "-1"], "--checkpoint -1.0 is not allowed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_engines_that_cannot_be_are_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, one line, no folder."""
    words, said = REFUSED[case]
    assert main(QUESTION, [*SMALL, *words, "--out", str(tmp_path / "res")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "res").exists()


# The command line.

SMALL = ["--env", "credit/matrix_game-v0", "--seeds", "2", "--steps", "960"]
FEW = ["--methods", "team + return, team + GAE, difference + return"]


def without_clock(folder: Path) -> pd.DataFrame:
    """Every column but `seconds`, in a fixed order."""
    table = results.read(folder)[[c for c in COLUMNS if c != "seconds"]]
    return table.sort_values([c for c in table if c != "value"], ignore_index=True)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, and no estimate: both are tested elsewhere."""
    monkeypatch.setattr(cli, "redraw", lambda *_, **__: [Path("report.html")])
    monkeypatch.setattr(cli, "estimate", lambda cells, engine: {results.cell_id(c.config): 1.0 for c in cells})


def rows_of(folder: Path, *words: str) -> pd.DataFrame:
    assert main(QUESTION, [*SMALL, *FEW, *words, "--out", str(folder)]) == 0
    return without_clock(folder)


@pytest.mark.usefixtures("undrawn")
def test_one_worker_and_two_give_the_same_rows(tmp_path: Path) -> None:
    """Every column but the clock, to the last bit."""
    one, two = (rows_of(tmp_path / k, "--workers", k) for k in "12")
    assert len(one) and set(one["method"]) == {"team + return", "team + GAE", "difference + return"}
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert not list(tmp_path.glob("*/*.checkpoint.pt"))


@pytest.mark.usefixtures("undrawn")
def test_a_lost_cell_is_an_error_after_table_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1, its name on stderr; the table shows what there is; the same command again does the rest."""
    done = cli.run_cell

    def but_one(cell: Any, **how: Any) -> Any:
        if cell.method == "team + GAE":
            raise RuntimeError("no such luck")
        return done(cell, **how)

    command = [*SMALL, *FEW, "--workers", "1", "--out", str(tmp_path / "res")]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "run_cell", but_one)
        assert main(QUESTION, command) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: team + GAE (): RuntimeError: no such luck") and "Traceback" not in said.err
    assert "difference + return  " in said.out and "redraw:" in said.out
    assert main(QUESTION, command) == 0 and len(results.configs(tmp_path / "res")) == 3


def heed_interrupts() -> None:
    """In a new process: tests may themselves run in the background, where shells have SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it: exit 130, one sentence, no traceback, no worker left."""
    command = [sys.executable, "-m", "benchmarks.compare", *SMALL[:4], "--steps", "3000000", *FEW, "--workers", "2"]
    folder = tmp_path / "res"
    process = subprocess.Popen(
        [*command, "--checkpoint", "0.2", "--out", str(folder)],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.checkpoint.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = said.strip().splitlines()
    assert len(lines) == 1 and lines[0].endswith("run the same command again to go on"), said
    assert list(folder.glob("*.checkpoint.pt")), "what was under way is kept"
    assert not list(folder.glob(".*.running"))
    deadline = time.monotonic() + 10
    while living(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living(process.pid)


def living(session: int) -> list[str]:
    """Command lines of live processes of a session, but for joblib's own caretakers of temporary files."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its = (place / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(its) == session and state != "Z":
                found.append((place / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended while we looked
            continue
    return found


# A cluster.


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of two nodes on this machine; nothing of it stays in the home folder."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    home = tmp_path / "home"
    home.mkdir()
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": str(home),
        "MPLCONFIGDIR": str(tmp_path / "matplotlib"),
        "PYTHONPATH": ENV["PYTHONPATH"],
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=small)
    nodes.add_node(num_cpus=1, object_store_memory=80 * 1024**2)
    nodes.wait_for_nodes()
    engine._cluster_cpus.cache_clear()
    try:
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()
        engine._cluster_cpus.cache_clear()
    assert not list(home.rglob("*")), "Ray leaves nothing in the home folder"


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_ray_cluster_gives_the_same_rows(tmp_path: Path, cluster: str) -> None:
    """Two nodes, cells of one sweep on both, rows as from one worker here; a death there has a name, too."""
    here = rows_of(tmp_path / "here", "--workers", "1")
    there = rows_of(tmp_path / "there", "--engine", "ray", "--address", cluster)
    pd.testing.assert_frame_equal(here, there, check_exact=True)
    toys = tmp_path / "toys"
    toys.mkdir()
    on_ray = Engine(kind="ray", address=cluster)
    assert on_ray.at_once(10) == 2
    with pytest.raises(Lost) as lost:
        sweep([Toy("a", "wait"), Toy("killer", "die"), Toy("bad", "fail"), Toy("b")], toys, on_ray)
    assert stored(toys) == {"a", "b"}
    assert [s.split(":")[0] for s in lost.value.sentences] == ["killer", "bad"]
    assert len(tries(toys, "killer")) == 2


def test_the_plan_knows_the_device() -> None:
    """It is part of a cell's configuration."""
    (cell,) = plan(QUESTION, Options(env="credit/matrix_game-v0", methods=("team + return",)))
    assert cell.config["device"] == "cpu"


HANGING = """
import sys, time, types
from benchmarks import asking

def act():
    print("running", flush=True)
    while True:
        try:
            time.sleep(100)
        except KeyboardInterrupt:
            pass

asking.GRACE = 0.5
sys.modules["__main__"].__spec__ = types.SimpleNamespace(name="benchmarks.compare")
sys.exit(asking.guarded(act))
"""


def test_ctrl_c_ends_even_where_a_library_hangs() -> None:
    """Whatever still waits after the time of grace is left behind: exit 130 and the sentence, once."""
    command = [sys.executable, "-c", HANGING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=ENV, text=True, preexec_fn=heed_interrupts, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.count("run the same command again to go on") == 1
