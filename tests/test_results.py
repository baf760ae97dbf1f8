"""What is on disk is whole, says what it is, and is never mistaken for something else."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marl import results
from marl.results import ResultsError, Row

CONFIG: dict[str, Any] = {
    "question": "compare",
    "game": "credit/walking_robot-v0",
    "knobs": {"n_agents": 3, "delay": 24, "fall_penalty": 0.1},
    "method": {
        "name": "difference + return",
        "family": "spatial",
        "rank": 0,
        "privileged": False,
        "needs": ["simulator"],
    },
    "learner": {"lr": 0.01},
    "seeds": [0, 1],
    "steps": 1000,
}
ROWS = [
    Row(seed, steps, 3 * steps, 0.5 + seed, metric, float("nan") if metric == "culprit_auc" else seed + steps / 7)
    for seed in (0, 1)
    for steps in (0, 1000)
    for metric in ("score", "culprit_auc")
]


def changed(**knobs: Any) -> dict[str, Any]:
    """The configuration with other knobs."""
    return CONFIG | {"knobs": CONFIG["knobs"] | knobs}


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    """Every number to the last bit, NaN included, with what the configuration says about them."""
    assert not results.done(tmp_path, CONFIG)
    path = results.write_cell(tmp_path, CONFIG, iter(ROWS))
    assert results.done(tmp_path, CONFIG) and path == tmp_path / f"{results.cell_id(CONFIG)}.parquet"
    table = results.read(tmp_path)
    assert tuple(table.columns[:10]) == results.COLUMNS
    for field, sent in zip(Row._fields, zip(*ROWS, strict=True), strict=True):
        np.testing.assert_array_equal(table[field], sent)
    first = table.iloc[0]
    assert (first["question"], first["method"], first["family"], first["rank"]) == (
        "compare",
        "difference + return",
        "spatial",
        0,
    )
    assert not first["privileged"] and (first["n_agents"], first["delay"]) == (3, 24)
    assert json.loads(first["knobs"]) == CONFIG["knobs"] and first["cell"] == results.cell_id(CONFIG)


def test_cells_of_different_games_share_a_table(tmp_path: Path) -> None:
    """A knob that a cell lacks is NaN; a list is kept in `knobs`; a knob named like a column does not overwrite it."""
    results.write_cell(tmp_path, CONFIG, ROWS)
    results.write_cell(tmp_path, CONFIG | {"game": "g", "knobs": {"payoff": [[1, 2], [3, 4]], "seed": 9, "n": 5}}, ROWS)
    table = results.read(tmp_path)
    other = table[table["game"] == "g"]
    assert set(other["seed"]) == {0, 1} and other["delay"].isna().all() and (other["n"] == 5).all()
    assert "payoff" not in table and json.loads(other["knobs"].iloc[0])["payoff"] == [[1, 2], [3, 4]]
    assert len(results.read(tmp_path, [results.cell_id(CONFIG)])) == len(ROWS)


def test_credit_maps_come_back(tmp_path: Path) -> None:
    """[T,B,N] maps survive as tidy rows, dead steps as NaN; cells without maps do not matter."""
    rng = np.random.default_rng(0)
    value, truth = rng.normal(size=(2, 5, 2, 3))
    alive = np.ones((5, 2), dtype=bool)
    alive[3:, 1] = False
    columns = results.credit_columns([0, 1], [7, 8], value, truth, alive)
    results.write_cell(tmp_path, changed(delay=0), ROWS)
    assert results.read_credit(tmp_path).empty
    results.write_cell(tmp_path, CONFIG, ROWS, columns)
    table = results.read_credit(tmp_path)
    assert tuple(table.columns[:6]) == results.CREDIT_COLUMNS and {"cell", "method", "family", "delay"} <= set(
        table.columns
    )
    second = table[(table["seed"] == 1) & (table["episode"] == 8)].pivot(index="t", columns="agent", values="value")
    np.testing.assert_array_equal(second.to_numpy(), np.where(alive[:, 1, None], value[:, 1], np.nan))
    results.write_cell(tmp_path, CONFIG, ROWS)
    assert results.read_credit(tmp_path).empty, "a rewritten cell must not keep maps that it no longer has"


def test_the_id_is_the_configuration() -> None:
    """Any change gives another id; order of keys, tuples for lists, provenance and format do not."""
    base = results.cell_id(CONFIG)
    assert len(base) == 16 and int(base, 16) >= 0
    shuffled = dict(reversed(list(CONFIG.items()))) | {"seeds": (0, 1), "format": 9, "provenance": {"date": "x"}}
    assert results.cell_id(shuffled) == base
    others = [changed(delay=25), CONFIG | {"seeds": [0]}, CONFIG | {"threads": 2}, CONFIG | {"learner": {"lr": 0.02}}]
    assert len({results.cell_id(config) for config in others} | {base}) == 5
    for wrong in (float("nan"), np.float32(1), object()):
        with pytest.raises(ResultsError, match="plain JSON"):
            results.cell_id(CONFIG | {"steps": wrong})


def test_the_configuration_lies_beside_the_rows(tmp_path: Path) -> None:
    """Enough to believe a result later: everything it depends on, versions, commit and date; its hash is its name."""
    results.write_cell(tmp_path, CONFIG, ROWS)
    (stored,) = results.configs(tmp_path)
    assert {key: stored[key] for key in CONFIG} == CONFIG and stored["format"] == results.FORMAT
    assert {"python", "torch", "numpy", "pettingzoo", "credit-sandbox", "commit", "date"} <= set(stored["provenance"])
    assert stored["provenance"]["numpy"] == np.__version__
    assert results.cell_id(stored) == results.cell_id(CONFIG)


def test_foreign_old_and_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    """One sentence that names the file: never a silent mixture, never a traceback from a library."""
    cell = results.cell_id(CONFIG)

    def fresh(name: str) -> Path:
        results.prepare(tmp_path / name)
        return results.write_cell(tmp_path / name, CONFIG, ROWS).parent

    with pytest.raises(ResultsError, match="no such folder"):
        results.read(tmp_path / "none")
    results.prepare(tmp_path / "empty")
    with pytest.raises(ResultsError, match="no finished cell"):
        results.read(tmp_path / "empty")
    damages: tuple[tuple[Callable[[str], str], str], ...] = (
        (lambda text: text.replace('"format": 1', '"format": 2'), "is of format 2"),
        (lambda text: text[:40], "is not a configuration"),
        (lambda text: "[]", "is not a configuration"),
        (lambda text: text.replace('"steps": 1000', '"steps": 9999'), "was changed after"),
    )
    for k, (damage, sentence) in enumerate(damages):
        folder = fresh(f"damage{k}")
        file = folder / f"{cell}.json"
        file.write_text(damage(file.read_text()))
        for ask in (results.read, results.prepare, results.configs, results.read_credit):
            with pytest.raises(ResultsError, match=sentence):
                ask(folder)
    torn = fresh("torn")
    (torn / f"{cell}.parquet").write_bytes((torn / f"{cell}.parquet").read_bytes()[:200])
    with pytest.raises(ResultsError, match=r"\.parquet is broken"):
        results.read(torn)
    alone = fresh("alone")
    (alone / f"{cell}.json").unlink()
    with pytest.raises(ResultsError, match="is missing"):
        results.read(alone)
    foreign = fresh("foreign")
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match=r"holds thesis\.tex"):
        results.prepare(foreign)
    assert (foreign / "thesis.tex").read_text() == "mine"


def test_figures_and_hidden_files_may_lie_beside_the_cells(tmp_path: Path) -> None:
    """Redrawing into the folder, or an editor's hidden file, does not spoil it; stale temporary files go."""
    results.prepare(tmp_path)
    results.write_cell(tmp_path, CONFIG, ROWS)
    (tmp_path / results.FIGURES).mkdir()
    (tmp_path / ".hidden").touch()
    old, new = (tmp_path / f"{'a' * 16}.parquet.tmp.{pid}" for pid in (1, 2))
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    marks = [tmp_path / f".{name}.running" for name in (results.cell_id(CONFIG), "b" * 16)]
    kept = [tmp_path / f"{name}.checkpoint.pt" for name in (results.cell_id(CONFIG), "b" * 16)]
    for file in (*marks, *kept):
        file.touch()
    results.prepare(tmp_path)
    assert not old.exists() and new.exists() and len(results.read(tmp_path)) == len(ROWS)
    assert [file.exists() for file in (*marks, *kept)] == [False, True] * 2, "what is done is no longer under way"


def test_an_unwritable_folder_is_one_sentence_before_work_starts(tmp_path: Path) -> None:
    """A file in the way stands for every reason that a folder cannot be written."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ResultsError, match="cannot write results to"):
            results.prepare(folder)
        with pytest.raises(ResultsError, match="cannot write"):
            results.write_cell(folder, CONFIG, ROWS)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The system refuses bytes in the middle of a file: one sentence, no leftovers, and the older copy still reads."""
    results.write_cell(tmp_path, CONFIG, ROWS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".parquet"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    results.read(tmp_path)  # everything that writes files on import has been imported
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
        with pytest.raises(ResultsError, match=r"cannot write .*File too large"):
            results.write_cell(tmp_path, CONFIG, ROWS * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".parquet"}
    assert not list(tmp_path.glob("*.tmp.*")) and len(results.read(tmp_path)) == len(ROWS)


@pytest.mark.parametrize("missing", ["game", "method"])
def test_an_incomplete_configuration_or_no_rows_is_refused(tmp_path: Path, missing: str) -> None:
    """A cell that could not be read back is not written in the first place."""
    with pytest.raises(ResultsError, match=f"lacks {missing}"):
        results.write_cell(tmp_path, {key: value for key, value in CONFIG.items() if key != missing}, ROWS)
    with pytest.raises(ResultsError, match="no rows"):
        results.write_cell(tmp_path, CONFIG, [])
    with pytest.raises(ResultsError, match="lack the columns truth"):
        results.write_cell(tmp_path, CONFIG, ROWS, {name: [0] for name in results.CREDIT_COLUMNS[:-1]})
    assert not list(tmp_path.iterdir())


KILL = """
import os, signal, sys, types
from pathlib import Path
marl = sys.modules["marl"] = types.ModuleType("marl")  # the package without torch: forking it hundreds of times is slow
marl.__path__ = [sys.argv[2]]
from marl import results
from test_results import CONFIG, ROWS
import pandas, pyarrow.parquet

def die_at(line):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename == results.__file__:
            seen += event == "line"
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
    sys.settrace(trace)

results.provenance()
credit = {name: [0] * 4 for name in results.CREDIT_COLUMNS}
for line in range(1, 1000):
    folder = Path(sys.argv[1]) / str(line)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        die_at(line)
        results.write_cell(folder, CONFIG, ROWS, credit)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_a_kill_at_any_line_leaves_whole_files_or_none(tmp_path: Path) -> None:
    """SIGKILL at every line of writing a cell: a file that has its name is whole, rows exist only with the rest."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    home = str(Path(results.__file__).parent)
    subprocess.run([sys.executable, "-c", KILL, str(tmp_path), home], check=True, env=environment, timeout=120)
    folders = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(folders) > 50, "the writer has that many lines, or nothing was killed"
    states = []
    for folder in folders:
        whole = sorted(path.name[16:] for path in folder.iterdir() if ".tmp." not in path.name)
        states.append(len(whole))
        assert whole in (
            [],
            [".credit.parquet"],
            [".credit.parquet", ".json"],
            [".credit.parquet", ".json", ".parquet"],
        )
        if ".json" in whole:
            json.loads(next(folder.glob("*.json")).read_text())
        if ".parquet" in whole:
            assert results.done(folder, CONFIG) and len(results.read(folder)) == len(ROWS)
            assert len(results.read_credit(folder)) == 4
        results.prepare(folder)  # what a kill leaves never bars the next run
    results.write_cell(folders[-2], CONFIG, ROWS)
    assert len(results.read(folders[-2])) == len(ROWS)
    assert states == sorted(states) and {*states} == {0, 1, 2, 3}
