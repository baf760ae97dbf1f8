"""Full disks, foreign folders, broken files and clocks that run back: one sentence each, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kill_sweep import table
from test_checkpoint import Killed, Mortal, comparable, config, experiment

import benchmarks.cli as cli
from benchmarks.cli import main
from benchmarks.compare import QUESTION
from marl import checkpoint, results
from marl.checkpoint import Checkpoint
from marl.experiment import run

SMALL = ["--env", "credit/matrix_game-v0", "--seeds", "2", "--steps", "960", "--workers", "1"]
TWO = ["--methods", "team + return, VDN"]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, and no estimate: both are tested elsewhere."""
    monkeypatch.setattr(cli, "redraw", lambda *_, **__: [Path("report.html")])
    monkeypatch.setattr(cli, "estimate", lambda cells, engine: {results.cell_id(c.config): 1.0 for c in cells})


def compare(folder: Path, *words: str) -> int:
    return main(QUESTION, [*SMALL, *TWO, *words, "--out", str(folder)])


def finished(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.parquet") if ".credit" not in p.name)


# No file may become larger than so many bytes. A write that would is refused where SIGXFSZ is ignored.
FULL = """
import resource, signal, sys
import benchmarks.cli as cli
from benchmarks.compare import QUESTION
from marl import results
import pandas, pyarrow.parquet
cli.estimate = lambda cells, engine: {results.cell_id(c.config): 1.0 for c in cells}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(cli.main(QUESTION, sys.argv[2:]))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """Neither checkpoint nor cell can be written: a warning, one error, exit 2. With room again the rows are right."""
    folder, whole = tmp_path / "full", tmp_path / "whole"
    words = [*SMALL, *TWO, "--checkpoint", "0", "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", FULL, "2000", *words]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 2, ran.stderr
    first, last = ran.stderr.splitlines()
    assert first.startswith("warning: cannot write ") and first.endswith("the run goes on: File too large")
    assert last.startswith("error: cannot write ") and last.endswith("File too large")
    assert {p.name for p in folder.iterdir()} <= {results.FIGURES}, "nothing half-written stays"
    assert compare(folder) == 0 and compare(whole) == 0
    assert table(folder).equals(table(whole))


def damaged(folder: Path, damage: str) -> None:
    """Spoil a folder of two finished cells."""
    file = finished(folder)[0]
    content = bytearray(file.read_bytes())
    middle = len(content) // 3
    if damage == "torn":
        file.write_bytes(content[:middle])
    elif damage == "a flipped byte":
        content[middle] ^= 0xFF
        file.write_bytes(content)
    else:
        file.write_bytes(b"mine")


@pytest.mark.parametrize("damage", ["torn", "a flipped byte", "not ours"])
def test_a_corrupted_cell(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, the file is named, nothing is overwritten; without it the same command mends the folder."""
    folder = tmp_path / "res"
    assert compare(folder) == 0
    right, (bad, good) = table(folder), finished(folder)
    kept = good.read_bytes()
    damaged(folder, damage)
    capsys.readouterr()
    assert compare(folder) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {bad} is broken or not ours") and said.count("\n") == 1
    bad.unlink()
    assert compare(folder) == 0 and table(folder).equals(right) and good.read_bytes() == kept


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a regular file": (lambda place: place.write_text("mine"), "cannot write results to"),
    "below a regular file": (lambda place: place.parent.write_text("mine"), "cannot write results to"),
    "somebody's folder": (lambda place: (place.mkdir(parents=True), (place / "x.tex").touch()), "holds x.tex"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_used(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 and one sentence before any work."""
    spoil, words = PLACES[place]
    folder = tmp_path / "there" / "res"
    if place == "a regular file":
        folder.parent.mkdir()
    spoil(folder)
    assert compare(folder) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped byte": lambda content: content[:400] + bytes([content[400] ^ 0xFF]) + content[401:],
    "not ours": lambda content: b"mine" * 100,
}


@pytest.mark.parametrize("damage", [*DAMAGES, "of another version"])
def test_a_corrupted_checkpoint(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that names it; the run starts over and its rows are right."""
    name, said = "team + GAE", list[str]()
    whole = comparable(run(experiment(name)))
    with pytest.raises(Killed):
        list(run(experiment(name), Mortal(tmp_path, config(name), every=0.0)))
    (file,) = tmp_path.iterdir()
    if damage == "of another version":
        monkeypatch.setattr(checkpoint, "provenance", lambda: {"torch": "0.1", "commit": None})
    else:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    kept = Checkpoint(tmp_path, config(name), say=said.append)
    assert comparable(run(experiment(name), kept)) == whole
    (sentence,) = said
    assert sentence.startswith(f"{file} is of no use, its run starts over: ") and "\n" not in sentence
    assert not file.exists()


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    """Below a regular file: the run goes on and says so once."""
    (tmp_path / "file").touch()
    said: list[str] = []
    kept = Checkpoint(tmp_path / "file", config("team + return"), every=0.0, say=said.append)
    assert comparable(run(experiment("team + return"), kept)) == comparable(run(experiment("team + return")))
    (sentence,) = said
    assert sentence.startswith("cannot write ") and sentence.endswith("the run goes on: Not a directory")


def test_a_clock_that_runs_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day goes back an hour at every look: rows are right, and nobody's fresh file is swept away."""
    whole, folder = tmp_path / "whole", tmp_path / "res"
    assert compare(whole) == 0
    now = itertools.count(time.time(), -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(now))
    folder.mkdir()
    fresh = folder / f"{'a' * 16}.parquet.tmp.1"
    fresh.touch()
    assert compare(folder, "--checkpoint", "0") == 0
    assert fresh.exists() and table(folder).equals(table(whole))
    assert (results.read(folder)["seconds"] >= 0).all()


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    """The script that kills a sweep at random moments finds its rows untouched."""
    script = Path(__file__).with_name("kill_sweep.py")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run([sys.executable, script, tmp_path, "20"], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "equal: " in ran.stdout, ran.stdout + ran.stderr
