"""quorum: pivots by difference, shares by Shapley, for any baseline what brute force finds."""

from __future__ import annotations

from typing import Any

import brute
import pytest
import torch
from torch import Tensor

from envs.base import KnobError
from envs.quorum import Quorum

SMALL = [Quorum(5, 3), Quorum(6, 2, 2.0), Quorum(6, 6, 0.1), Quorum(6, 1, 7.0), Quorum(1, 1, 0)]


def baselines(game: Quorum, seed: int) -> list[Tensor]:
    """Nobody, everybody, and some."""
    n = game.n_agents
    random = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))
    return [torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64), random]


@pytest.mark.parametrize("game", SMALL, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_differences_equal_brute_force(game: Quorum, seed: int) -> None:
    """To 1e-9, whatever the baseline."""
    noise, plan = brute.noise_of(game, 20), brute.random_plan(game, 20, seed)
    recorded = brute.record(game, noise, plan)
    for baseline in baselines(game, seed):
        truth = brute.unit_differences(game, noise, plan, baseline)
        assert (game.unit_differences(recorded, baseline) - truth).abs().max() < 1e-9


@pytest.mark.parametrize("game", SMALL, ids=repr)
@pytest.mark.parametrize("seed", range(2))
def test_shapley_equals_all_orders(game: Quorum, seed: int) -> None:
    """To 1e-9, for any baseline, and what is shared out is the return less the baseline's return."""
    noise, plan = brute.noise_of(game, 20), brute.random_plan(game, 20, seed)
    recorded = brute.record(game, noise, plan)
    for baseline in baselines(game, seed):
        shares = game.unit_shapley(recorded, baseline)
        assert (shares - brute.unit_shapley(game, noise, plan, baseline)).abs().max() < 1e-9
        without = brute.frozen_return(game, noise, baseline.expand_as(plan))
        assert (shares.sum((0, 2)) - recorded.reward.sum(0) + without).abs().max() < 1e-9


def test_shapley_in_a_team_of_a_thousand() -> None:
    """Mixed baselines stay efficient where factorials overflow."""
    game = Quorum(1000, 480)
    plan = brute.random_plan(game, 20)
    recorded = brute.record(game, brute.noise_of(game, 20), plan)
    baseline = baselines(game, 3)[2]
    shares = game.unit_shapley(recorded, baseline)
    without = brute.frozen_return(game, brute.noise_of(game, 20), baseline.expand_as(plan))
    assert (shares.sum((0, 2)) - recorded.reward.sum(0) + without).abs().max() < 1e-9


@pytest.mark.parametrize("n", range(9))
def test_forms_of_the_design(n: int) -> None:
    """A contributor's D = 1[n = k] - cost/N and Shapley value 1[n >= k]/n - cost/N; nothing for the others."""
    game = Quorum(8, 4, 0.5)
    plan = (torch.arange(8) < n).long()[None, None]
    recorded = brute.record(game, brute.noise_of(game, 1), plan)
    nobody = torch.zeros(8, dtype=torch.int64)
    pivot, share = float(n == 4) - 0.0625, (n >= 4) / max(n, 1) - 0.0625
    assert game.unit_differences(recorded, nobody)[0, 0].tolist() == pytest.approx([pivot] * n + [0.0] * (8 - n))
    assert game.unit_shapley(recorded, nobody)[0, 0].tolist() == pytest.approx([share] * n + [0.0] * (8 - n))


def test_pivots_become_rare() -> None:
    """.375 at (4, 2), 1.5e-5 at (32, 28): the first by listing what the other three do; a wrong N or k would show."""
    assert Quorum(4, 2).pivotal == 0.375
    assert Quorum(32, 28).pivotal == pytest.approx(1.5e-5, abs=5e-7)
    game = Quorum(4, 2)
    plans = brute.every_joint_action(game)
    plans = plans[:, plans[0, :, 0] == 1]
    recorded = brute.record(game, brute.noise_of(game, plans.shape[1]), plans)
    gains = game.unit_differences(recorded, torch.zeros(4, dtype=torch.int64))[0, :, 0] + game.cost / 4
    assert float(gains.mean()) == game.pivotal


@pytest.mark.parametrize("game", SMALL, ids=repr)
def test_optimum_and_chance_equal_enumeration(game: Quorum) -> None:
    """Over every joint action: the largest reward, and the mean; the script earns the largest."""
    plans = brute.every_joint_action(game)
    rewards = brute.frozen_return(game, brute.noise_of(game, plans.shape[1]), plans)
    assert game.optimal_return == pytest.approx(float(rewards.max()), abs=1e-12)
    assert game.random_return == pytest.approx(float(rewards.mean()), abs=1e-12)
    script = game.scripted_action(game.reset(torch.zeros(1, 0, dtype=torch.float64)))[None]
    earned = brute.frozen_return(game, brute.noise_of(game, 1), script)
    assert float(earned) == pytest.approx(game.optimal_return, abs=1e-12)


def test_too_dear_is_not_done() -> None:
    """At a cost above N/k nobody should contribute: the optimum is 0, not negative."""
    assert Quorum(6, 3, 2.0).optimal_return == 0 == Quorum(6, 3, 2.5).optimal_return
    assert Quorum(6, 3, 1.9).optimal_return == pytest.approx(0.05)
    assert int(Quorum(6, 3, 2.5).scripted_action(Quorum(6, 3).reset(torch.zeros(1, 0))).sum()) == 0


def test_local_rewards_tempt_to_ride_free() -> None:
    """They sum to the team reward, and whoever is not pivotal earns more by not contributing."""
    game = Quorum(5, 3, 0.5)
    plan = brute.random_plan(game, 30)
    start, empty = game.reset(torch.zeros(30, 0, dtype=torch.float64)), torch.zeros(30, 0)
    own = game.local_rewards(start, plan[0], empty)
    assert (own.sum(-1) - game.step(start, plan[0], empty).reward).abs().max() < 1e-12
    lazy = plan[0].clone()
    lazy[:, 0] = 0
    gain = game.local_rewards(start, lazy, empty)[:, 0] - own[:, 0]
    free = (plan[0, :, 0] == 1) & (plan[0].sum(-1) != 3)
    pivotal = (plan[0, :, 0] == 1) & (plan[0].sum(-1) == 3)
    assert bool(free.any()) and bool((gain[free] > 0).all())
    assert bool(pivotal.any()) and bool((gain[pivotal] < 0).all())


def test_clones_and_removals() -> None:
    """reward_with counts copies: removing a contributor is its not contributing, a clone is one more of them."""
    game = Quorum(5, 3)
    plan = brute.random_plan(game, 30)
    start, empty = game.reset(torch.zeros(30, 0, dtype=torch.float64)), torch.zeros(30, 0)
    total = plan[0].sum(-1)
    for times in (0, 2):
        copies = torch.ones(30, 5)
        copies[:, 1] = times
        contributors = (total + (times - 1) * plan[0, :, 1]).double()
        expected = (contributors >= 3).double() - 0.1 * contributors
        assert (game.reward_with(start, plan[0], empty, copies) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed"),
        ({"quorum": 0}, r"quorum=0 is not allowed; it must be a whole number in 1\.\.8"),
        ({"n_agents": 3}, r"quorum=4 is not allowed; it must be a whole number in 1\.\.3"),
        ({"quorum": 2.0}, "quorum=2.0 is not allowed"),
        ({"cost": -0.1}, "cost=-0.1 is not allowed; it must be a number, 0 or more"),
        ({"cost": None}, "cost=None is not allowed"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence: the knob, its value, what is allowed."""
    with pytest.raises(KnobError, match=words):
        Quorum(**knobs)
