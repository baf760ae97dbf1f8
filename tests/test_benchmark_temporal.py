"""`python -m benchmarks.temporal`: delay alone moves, every temporal method is asked, and a recency trace is caught."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_figures import check_text

import marl
from benchmarks import cli, figures, temporal
from benchmarks.figures import temporal as figure
from benchmarks.methods import METHODS
from envs.key_door import KeyDoor
from marl.experiment import judge_walks


def test_every_temporal_method_is_asked() -> None:
    """A new method of the family joins by itself; the figure names methods that exist."""
    family = {name for name, m in METHODS.items() if m.family == "temporal"}
    assert family - set(temporal.LEFT_OUT) <= set(temporal.ASKED) and set(temporal.LEFT_OUT) <= family
    assert set(figure.SHOWN) | set(temporal.QUICK) <= set(temporal.ASKED)


@pytest.mark.parametrize("quick", [False, True])
def test_sweeps_keep_what_they_promise_to_keep(quick: bool) -> None:
    """One agent; the window fixed over delays; the door as loud at every length."""
    windows = defaultdict(set)
    for name, knobs in temporal.settings(quick):
        game = marl.load(name, **knobs)
        assert game.n_agents == 1 and game.optimal_return is not None and game.random_return is not None
        if isinstance(game, KeyDoor):
            assert game.treasure_in_deviations == pytest.approx(temporal.LOUD)
        else:
            windows[knobs["window"]].add((knobs["horizon"], knobs["delay"]))
    assert {horizon for horizon, _ in windows[20]} == {100} and {delay for _, delay in windows[10]} == {20}
    assert max(delay for _, delay in windows[20]) == 80


def test_a_recency_trace_points_at_the_wrong_moment() -> None:
    """It finds the culprit without delay and is worse than chance at a long one; the truth minds neither."""
    found = {}
    for delay in (0, 80):
        game = marl.load("credit/walking_robot-v0", n_agents=1, horizon=100, window=20, delay=delay)
        for name in ("team + recency", "reference O8"):
            judged = judge_walks(game, METHODS[name], seeds=range(3))
            assert judged is not None
            found[name, delay] = np.array(judged.scores["culprit_auc"])
    assert (found["team + recency", 0] > 0.9).all() and (found["team + recency", 80] < 0.45).all()
    assert all((found["reference O8", delay] > 0.99).all() for delay in (0, 80))


def test_quick_run_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells, table and figure of short games."""
    robot = {"n_agents": 1, "window": 20, "horizon": 24}
    few = [("credit/walking_robot-v0", {**robot, "delay": d}) for d in (0, 3)]
    few.append(("credit/key_door-v0", {"n_agents": 1, "horizon": 6}))
    monkeypatch.setattr(cli, "EVALUATION", (2, 4, 8))
    monkeypatch.setattr(cli, "redraw", lambda *_, **__: [tmp_path])
    question = replace(temporal.QUESTION, settings=lambda quick: few, episodes=(64, 64))
    arguments = ["--methods", "team + return,team + recency", "--seeds", "2", "--workers", "1"]
    assert cli.main(question, [*arguments, "--out", str(tmp_path)]) == 0
    data = figures.load(tmp_path)
    assert figure.needs(data) == ""
    said = check_text(figure.draw(data))
    assert all(word in said for word in ("walking_robot", "key_door", "chance", "culprit AUC"))
