"""Who copies a guide's game into a package of their own gets a checked game and a comparison of methods on it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from test_readme import ROOT, blocks

import marl
from envs.external import External, GameError, open_game

GUIDES = {"any ParallelEnv": "envs/EXTERNAL.md", "pure rules": "envs/README.md"}


class Guide(NamedTuple):
    """What a page tells the reader to do."""

    file: str  # where the game is to be saved
    game: str  # what is to be saved there
    commands: list[list[str]]  # what is then to be run


def read(page: str) -> Guide:
    """The game that a page says to save, and the commands that follow it."""
    text = (ROOT / page).read_text()
    file = re.findall(r"[Ss]ave it as `([^`]+)`", text)
    assert len(file) == 1, "one game a guide"
    after = text.index(f"`{file[0]}` in any folder")
    game = next(block for block in blocks(page, "python") if text.index(block) > after)
    shell = next(block for block in blocks(page, "sh") if text.index(block) > text.index(game))
    return Guide(file[0], game, [shlex.split(line) for line in shell.splitlines()])


@pytest.mark.parametrize("page", GUIDES.values(), ids=GUIDES)
def test_a_guide_followed_literally(page: str, tmp_path: Path) -> None:
    """Its one file, in a package outside this project, passes check_env and is compared by difference and COMA."""
    guide = read(page)
    package = tmp_path / "theirs" / guide.file
    package.parent.mkdir(parents=True)
    package.write_text(guide.game)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    check, compare = guide.commands
    name = check[3]
    assert name.startswith(f"{package.parent.name}:") and name in compare, "both commands name the game by its id"
    assert compare[2] == "benchmarks.compare" and check[2] == "envs.check"
    less = ["--seeds", "1", "--steps", "32", "--workers", "1", "--out", "out"]  # the last word on an option counts
    for command in (check, compare + less):
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(package.parent.parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    table = marl.results.read(elsewhere / "out")
    assert set(table["game"]) == {name}
    assert {"difference + return", "COMA"} <= set(table["method"])
    last = table[table["metric"] == "final_return"]
    assert len(last) == table["method"].nunique()
    assert last["value"].notna().all()
    truth = table[(table["metric"] == "credit_pearson") & (table["method"] == "difference + return")]
    assert truth["value"].notna().any(), "credit was held against the truth"


@pytest.mark.parametrize("page", GUIDES.values(), ids=GUIDES)
def test_the_package_is_what_makes_it_work(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the path there is no such game; on it, version (a) is played through the adapter and (b) by its own rules."""
    guide = read(page)
    name = guide.commands[0][3]
    package = name.partition(":")[0]
    monkeypatch.delitem(sys.modules, package, raising=False)  # another test may have followed the guide in this process
    with pytest.raises(GameError, match=f"there is no module '{package}'"):
        open_game(name)
    (tmp_path / guide.file).parent.mkdir()
    (tmp_path / guide.file).write_text(guide.game)
    monkeypatch.syspath_prepend(tmp_path)
    game = open_game(name, n_agents=2)
    assert isinstance(game, External) == (page == GUIDES["any ParallelEnv"])
    if isinstance(game, External):
        assert game.counterfactuals == "copy"
    with pytest.raises(GameError, match="has no knob 'n_agent'"):
        open_game(name, n_agent=2)
    del sys.modules[package]
