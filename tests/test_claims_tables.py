"""The published race of RUDDER, Monte Carlo and TD: what a decision is said to be worth, and when it is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.claims import tables
from benchmarks.claims.redistribution import ENTRIES
from benchmarks.claims.tables import HOPE, MonteCarloTable, OneStepTable, RudderTable, TableLearning
from benchmarks.claims.watch_repair import LEAVE, REPAIR, WatchRepair
from marl.rollout import rollout

SEEDS = (100, 103)
GAME = WatchRepair(horizon=6)


def test_a_block_holds_both_actions_under_the_same_luck() -> None:
    """Rewards are those of the game's own rollouts; a watch that is left pays nothing; jams and tires are shared."""
    block = tables.block(GAME, SEEDS, 5, 7)
    for s, seed in enumerate(SEEDS):
        repaired = rollout(GAME, tables.always(REPAIR), 7, seed, 5, "tables")
        assert np.allclose(block.rewards[s, REPAIR], repaired.reward.T) and not block.rewards[s, LEAVE].any()
        assert np.array_equal(block.events[s], repaired.state.events.transpose(0, 1).long())
        assert np.array_equal(block.brand[s], repaired.state.brand[0])
    assert (block.played.action[0].reshape(2, 2, 7) == torch.tensor([REPAIR, LEAVE])[:, None]).all()


def test_monte_carlo_is_told_the_return() -> None:
    """Sum of the rewards of the action taken."""
    block, teacher = tables.block(GAME, SEEDS, 0, 4), MonteCarloTable()
    teacher.begin(block)
    told = teacher.worth(2, np.array([REPAIR, LEAVE]))
    assert told == pytest.approx([block.rewards[0, REPAIR, 2].sum(), 0.0])


def test_one_step_learning_is_that_of_a_plain_loop() -> None:
    """Q-learning written with a dictionary, one state at a time, on the same episodes."""
    block, teacher = tables.block(GAME, SEEDS, 0, 60), OneStepTable(GAME, 2, 0.1)
    teacher.begin(block)
    T = GAME.horizon
    values: list[dict[Any, float]] = [{}, {}]
    for k in range(60):
        action = np.array([k % 2, k // 2 % 2])
        told = teacher.worth(k, action)
        for s in range(2):
            names = [(action[s], t, block.brand[s, k], *block.events[s, k, t]) for t in range(1, T)]
            now = [values[s].get(name, HOPE) for name in names] + [0.0]
            rewards = block.rewards[s, action[s], k]
            assert told[s] == pytest.approx(rewards[0] + now[0], abs=1e-5)
            for t, name in enumerate(names, 1):
                values[s][name] = now[t - 1] + 0.1 * (rewards[t] + now[t] - now[t - 1])
    assert max(map(len, values)) > 20, "the control: many states were met"


def test_rudder_is_told_the_first_share_of_a_return_that_it_keeps() -> None:
    """Before the first fit the reward itself; then its first share, and shares of an episode sum to the return."""
    teacher = RudderTable(GAME, SEEDS, 0.5, lessons=300, steps=2)
    first = tables.block(GAME, SEEDS, 0, 270)
    teacher.begin(first)
    assert teacher.worth(3, np.array([REPAIR, REPAIR])) == pytest.approx(first.rewards[:, REPAIR, 3, 0])
    taken = np.arange(540).reshape(2, 270) % 2
    teacher.end(first, taken)
    assert teacher.fits == 2 and teacher.kept is not None
    assert np.array_equal(teacher.kept.action[0, :, 0].reshape(2, 270), taken)
    lived = np.take_along_axis(first.rewards, taken[:, None, :, None], 1)[:, 0]
    assert np.allclose(teacher.kept.reward.T.reshape(2, 270, -1), lived)
    teacher.end(first, 1 - taken)
    assert teacher.kept.reward.shape[1] == 600, "the oldest lessons go"
    assert np.array_equal(teacher.kept.action[0, :, 0].reshape(2, 300)[:, -270:], 1 - taken)
    teacher.begin(first)
    shares = teacher.rudder.forward(first.played, first.played.reward).detach()
    assert torch.allclose(shares.sum(0), first.played.reward.sum(0), atol=1e-5)
    assert teacher.worth(3, np.array([LEAVE, REPAIR]))[1] == pytest.approx(float(shares[0, 540 + 3]), abs=1e-6)


def test_the_goal_is_reached_at_the_end_of_the_first_good_window() -> None:
    """Counted by hand."""
    right = np.array([[1, 0, 1, 1, 1, 0], [0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]], bool)
    assert tables.reached(right, 3, 1.0).tolist() == [5, np.inf, 3]
    assert tables.reached(right, 2, 0.5).tolist() == [2, 2, 2]
    assert tables.reached(right[:, :2], 3, 0.1).tolist() == [np.inf] * 3


def test_seeds_do_not_meet_and_easy_goals_come_first() -> None:
    """Two seeds together learn as each by itself; an impossible goal counts as the budget."""
    race = TableLearning((("RUDDER", 350), ("MC", 2000), ("TD", 2000)), goal=0.6, window=40, fits=2)
    both = race(GAME, SEEDS)
    for s, seed in enumerate(SEEDS):
        alone = race(GAME, [seed])
        assert all(alone[name] == pytest.approx(both[name][s : s + 1]) for name in both)
    assert both["MC learned"].all() and (both["MC"] >= 40).all() and (both["MC"] < 2000).all()
    never = TableLearning((("RUDDER", 50), ("MC", 50)), goal=1.1, window=40)(GAME, SEEDS)
    assert never["MC"].tolist() == [50, 50] and never["MC / RUDDER"].tolist() == [1, 1]


def test_the_row_asks_the_published_program() -> None:
    """Its constants: step .1, a tenth of random actions, 95% of 750, 2,048 lessons."""
    measure = ENTRIES["watch-repair"].measure
    assert isinstance(measure, TableLearning)
    assert (measure.step, measure.epsilon, measure.goal, measure.window, measure.lessons) == (0.1, 0.1, 0.95, 750, 2048)
