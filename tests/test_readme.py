"""What the guides tell a newcomer to type works as written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import marl

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [text for kind, text in found if kind == language]


def test_the_ten_lines_run_and_say_what_they_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's example: a recency trace's culprit AUC is far below chance."""
    scope: dict[str, object] = {}
    exec(blocks("README.md", "python")[0], scope)
    value = scope["marl"].metrics.average(scope["auc"]).value  # type: ignore[attr-defined]
    assert value < 0.4
    assert str(value)[:5] in capsys.readouterr().out


@pytest.mark.slow
def test_the_readmes_own_comparison(tmp_path: Path) -> None:
    """The two longer commands of the README, with fewer steps, end with figures."""
    for command in blocks("README.md", "")[1].splitlines()[:2]:
        out = tmp_path / str(len(command))
        words = [sys.executable, *shlex.split(command)[1:], "--steps", "4000", "--out", str(out)]
        subprocess.run(words, cwd=tmp_path, check=True)
        assert list((out / "figures").glob("*.png"))


def test_a_new_game_from_an_empty_file(tmp_path: Path) -> None:
    """The README's game is saved, checked and compared with the README's own commands."""
    (tmp_path / "relay.py").write_text(blocks("README.md", "python")[1])
    commands = [line for line in blocks("README.md", "")[2].splitlines() if line.startswith("python ")]
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            command.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    table = marl.results.read(tmp_path / "results" / "relay")
    assert set(table["method"]) >= {"team + return", "COMA", "reference O8"}
    assert (table[table["metric"] == "walk_culprit_auc"]["value"].notna()).any()
    assert (tmp_path / "results" / "relay" / "figures" / "credit_heatmap.png").is_file()


def test_the_guide_to_methods_runs_as_written() -> None:
    """marl/README.md: composing a chain, a new operator that equals its definition, and intervals."""
    compose, operator, sure = blocks("marl/README.md", "python")
    scope: dict[str, object] = {}
    exec(sure, scope)
    exec(compose, scope)
    assert scope["credit"].shape == (40, 8, 3)  # type: ignore[attr-defined]
    exec(operator, scope)
    game = scope["game"]
    walks = marl.rollout(game, episodes=4)  # type: ignore[arg-type]
    context = scope["Context"](game)  # type: ignore[operator]
    c = scope["Window"](context, width=7)(walks, walks.reward[..., None].expand(-1, -1, 3))  # type: ignore[operator]
    by_hand = torch.stack([walks.reward[t : t + 7].sum(0) for t in range(40)])
    torch.testing.assert_close(c[..., 0], by_hand, atol=1e-5, rtol=0)
