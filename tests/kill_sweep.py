"""SIGKILL at random moments of a sweep, each followed by a resume: `python tests/kill_sweep.py FOLDER [KILLS]`.

Afterwards the rows must be those of a sweep that nobody disturbed, in every column but `seconds`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from marl import results
from marl.results import COLUMNS, CREDIT_COLUMNS

GAME = ["--env", "credit/walking_robot-v0", "--env-args", "n_agents=2", "horizon=12", "delay=3", "window=5"]
METHODS = "team + return, team + GAE, difference + return, VDN"
PROTOCOL = ["--seeds", "2", "--steps", "20000", "--methods", METHODS, "--checkpoint", "0.3"]
WAIT = 3.0  # seconds


def start(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command, in a session of its own."""
    words = ["-m", "benchmarks.compare", *GAME, *PROTOCOL, "--workers", str(workers), "--out", str(folder)]
    root = str(Path(__file__).parents[1])
    settings = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *words], env=settings, start_new_session=True, **quiet)


def look(folder: Path) -> tuple[int, int]:
    """(cells on disk, checkpoints beside them). Whatever has its name is whole."""
    done = [f for f in folder.glob("*.parquet") if ".credit" not in f.name]
    for file in done:
        assert len(pd.read_parquet(file)), file
        results.read(folder, {file.name[:16]})
    return len(done), len(list(folder.glob("*.checkpoint.pt")))


def table(folder: Path) -> pd.DataFrame:
    """Every column but `seconds`, in a fixed order."""
    rows = results.read(folder)[[c for c in COLUMNS if c != "seconds"]]
    return rows.sort_values([c for c in rows if c != "value"], ignore_index=True)


def maps(folder: Path) -> pd.DataFrame:
    """Credit maps in a fixed order."""
    order = ["cell", "seed", "episode", "t", "agent"]
    return results.read_credit(folder)[[*CREDIT_COLUMNS, "cell"]].sort_values(order, ignore_index=True)


def check(disturbed: Path, whole: Path) -> None:
    """Nothing lost, nothing twice, nothing torn, nothing left behind."""
    pd.testing.assert_frame_equal(table(disturbed), table(whole), check_exact=True)
    pd.testing.assert_frame_equal(maps(disturbed), maps(whole), check_exact=True)
    key = ["cell", "seed", "env_steps", "metric"]
    assert not results.read(disturbed).duplicated(key).any()
    left = [f.name for f in disturbed.iterdir() if f.suffix not in (".parquet", ".json") and f.name != results.FIGURES]
    assert not [name for name in left if "checkpoint" in name or "running" in name], left


def finish(folder: Path, workers: int) -> None:
    """Run the command to its end."""
    process = start(folder, workers)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()


def under_way(folder: Path) -> set[tuple[str, int]]:
    """What changes as soon as cells run."""
    found = set()
    for file in (*folder.glob("*.parquet"), *folder.glob("*.pt")):
        try:
            found.add((file.name, file.stat().st_mtime_ns))
        except OSError:  # renamed while we looked
            continue
    return found


def kill(process: subprocess.Popen[bytes], folder: Path, luck: random.Random) -> bool:
    """SIGKILL at some moment; False if the command had ended before. One in five falls into imports and estimate."""
    before, late = under_way(folder), luck.random() < 0.8
    while late and process.poll() is None and under_way(folder) == before:
        time.sleep(0.01)
    until = time.monotonic() + luck.uniform(0, WAIT)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    ended = process.poll() is not None
    os.kill(process.pid, signal.SIGKILL) if not ended else None
    _, said = process.communicate()
    assert not ended or process.returncode == 0, said.decode()
    return not ended


def main(folder: Path, kills: int, seed: int = 0) -> None:
    """An undisturbed sweep, then one that is killed so many times, and the comparison."""
    luck, disturbed, whole = random.Random(seed), folder / "disturbed", folder / "whole"
    started = time.monotonic()
    finish(whole, 1)
    print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
    for k in range(kills):
        workers, started = 1 + k % 2, time.monotonic()
        if not kill(start(disturbed, workers), disturbed, luck):
            print("it had finished: begin again with half of the cells")
            for file in sorted(disturbed.glob("*.json"))[::2]:
                for part in disturbed.glob(f"{file.name[:16]}.*"):
                    part.unlink()
        time.sleep(1.2)  # workers notice within a second
        done, kept = look(disturbed)
        spent = time.monotonic() - started
        print(f"kill {k + 1}, {workers} workers, {spent:.1f} s: {done} cells done, {kept} under way", flush=True)
    finish(disturbed, 2)
    check(disturbed, whole)
    print(f"equal: {len(table(whole))} rows, {len(maps(whole))} entries of credit maps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
