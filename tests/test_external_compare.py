"""Games from outside reach the whole benchmark; `test_guides.py` does the same with packages that are not ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_external import GlobalLuck, LastStepPays

import marl
from benchmarks.cli import OUTSIDE_EVALUATION, Options, plan
from benchmarks.external import METHODS as EXTERNAL
from benchmarks.external import QUESTION
from benchmarks.methods import METHODS
from envs.base import MayRefuseBranches
from marl.credit.base import ChainError


def compare(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks.compare` from another folder, one worker."""
    command = [sys.executable, "-m", "benchmarks.compare", "--workers", "1", "--out", "out", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_compare_on_the_real_mpe2(tmp_path: Path) -> None:
    """Critics, simulator counterfactuals and COMA on mpe2's own simple_spread; curves also go to TensorBoard."""
    words = ("--env", "mpe2.simple_spread_v3", "--env-args", "local_ratio=0", "max_cycles=6", "--seeds", "1")
    methods = "team + GAE, difference + return, COMA"
    done = compare(tmp_path, *words, "--steps", "192", "--methods", methods, "--tensorboard", "curves")
    assert done.returncode == 0, done.stderr
    table = marl.results.read(tmp_path / "out")
    assert set(table["method"]) == set(methods.split(", "))
    last = table[table["metric"] == "final_return"].set_index("method")
    assert last["value"].between(-50, 0).all()
    # One update of 32 whole episodes of 6 steps; a difference asks one step for each of 3 agents.
    assert last["simulator_steps"].to_dict() == {"team + GAE": 0, "difference + return": 192 * 3, "COMA": 0}
    assert len(list((tmp_path / "curves").rglob("events.out*"))) == 3


def test_the_question_about_games_of_others() -> None:
    """Every method of `benchmarks.external` fits every game of it, and each game is a real peer's."""
    cells = plan(QUESTION, Options())
    assert len(cells) == 3 * len(EXTERNAL) and all(isinstance(c.experiment.game, MayRefuseBranches) for c in cells)
    assert {c.seeds for c in cells} == {10} and {c.evaluation for c in cells} == {OUTSIDE_EVALUATION}
    assert len(plan(QUESTION, Options(quick=True))) == 6


def test_methods_that_go_back_are_refused_where_a_game_cannot() -> None:
    """Ordinary methods run on a game that cannot be taken back; the others say why they do not."""
    game = marl.load(GlobalLuck)
    with pytest.raises(ChainError, match=r"Difference needs counterfactuals, which this game cannot give"):
        METHODS["difference + return"].credit(game)
    walks = marl.rollout(game, episodes=3)
    assert METHODS["team + return"].credit(game).assign(walks).shape == walks.action.shape


def test_replays_of_the_real_mpe2_are_given_the_noise() -> None:
    """O8 of the default action against itself is exactly 0; O6 has mean 0 over an agent's own action when alone."""
    game = marl.load("mpe2.simple_spread_v3", local_ratio=0, max_cycles=4)
    walks = marl.rollout(game, episodes=2, seed=5)
    truth = marl.oracle(game, None, walks, "O8 simulated")
    waited = walks.action == 0
    assert waited.any() and torch.equal(truth.values[waited], torch.zeros_like(truth.values[waited]))
    assert (truth.values[~waited] != 0).any()
    assert truth.cost == 2 * 3 * 4 * 5 // 2


def test_the_last_reward_is_learnt_from() -> None:
    """A toy game that pays on its last step only: the return that credit sees is that reward."""
    game = marl.load(LastStepPays)
    walks = marl.rollout(game, episodes=8)
    credit = METHODS["team + return"].credit(game).assign(walks)
    paid = walks.reward[-1]
    assert (paid != 0).any() and (walks.reward[:-1] == 0).all()
    torch.testing.assert_close(credit[0, :, 0], paid - paid.mean(), atol=1e-6, rtol=0)
