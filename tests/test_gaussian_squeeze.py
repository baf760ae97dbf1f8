"""gaussian_squeeze: the closed forms are what brute force finds, for any baseline, and stay exact in large teams."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import brute
import pytest
import torch
from torch import Tensor

from envs.base import KnobError
from envs.gaussian_squeeze import GaussianSqueeze, total_chances

SMALL = [
    GaussianSqueeze(5),
    GaussianSqueeze(6, mu=40, sigma=2.0),
    GaussianSqueeze(4, mu=0, sigma=0.1),
    GaussianSqueeze(3, mu=27, sigma=100),
    GaussianSqueeze(1),
]


def baselines(game: GaussianSqueeze, seed: int) -> list[Tensor]:
    """The default, and any other."""
    random = torch.randint(10, (game.n_agents,), generator=torch.Generator().manual_seed(seed))
    return [torch.zeros(game.n_agents, dtype=torch.int64), random, torch.full((game.n_agents,), 9)]


@pytest.mark.parametrize("game", SMALL, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_differences_equal_brute_force(game: GaussianSqueeze, seed: int) -> None:
    """To 1e-9, whatever the baseline."""
    noise, plan = brute.noise_of(game, 20), brute.random_plan(game, 20, seed)
    recorded = brute.record(game, noise, plan)
    for baseline in baselines(game, seed):
        truth = brute.unit_differences(game, noise, plan, baseline)
        assert (game.unit_differences(recorded, baseline) - truth).abs().max() < 1e-9


def test_difference_is_the_stated_formula() -> None:
    """D_i = G(x) - G(x - a_i) with G(x) = x exp(-(x - mu)^2 / sigma^2); too much effort earns blame."""
    game = GaussianSqueeze(3, mu=6, sigma=2.0)
    recorded = brute.record(game, brute.noise_of(game, 1), torch.tensor([[[0, 3, 5]]]))
    found = game.unit_differences(recorded, torch.zeros(3, dtype=torch.int64))[0, 0].tolist()
    worth = {x: x * math.exp(-((x - 6) ** 2) / 4) for x in (3, 5, 8)}
    assert found == pytest.approx([0, worth[8] - worth[5], worth[8] - worth[3]], abs=1e-12)
    assert found[1] < 0 < found[2]


@pytest.mark.parametrize("game", SMALL, ids=repr)
@pytest.mark.parametrize("seed", range(2))
def test_shapley_equals_all_orders(game: GaussianSqueeze, seed: int) -> None:
    """To 1e-9, for any baseline, and what is shared out is the return less the baseline's return."""
    noise, plan = brute.noise_of(game, 10), brute.random_plan(game, 10, seed)
    recorded = brute.record(game, noise, plan)
    for baseline in baselines(game, seed):
        shares = game.unit_shapley(recorded, baseline)
        assert (shares - brute.unit_shapley(game, noise, plan, baseline)).abs().max() < 1e-9
        without = brute.frozen_return(game, noise, baseline.expand_as(plan))
        assert (shares.sum((0, 2)) - recorded.reward.sum(0) + without).abs().max() < 1e-9


def test_shapley_of_twelve_equals_the_sum_over_coalitions() -> None:
    """phi_i = sum over C without i of |C|! (n-|C|-1)! / n! (v(C+i) - v(C)), all 2^11 of them, at N = 12."""
    game = GaussianSqueeze(12, sigma=5.0)
    plan = brute.random_plan(game, 1, 5)
    efforts = plan[0, 0].tolist()

    def worth(total: int) -> float:
        return total * math.exp(-(((total - 36) / 5) ** 2))

    truth = []
    for i, mine in enumerate(efforts):
        others = efforts[:i] + efforts[i + 1 :]
        gains = (
            sum(worth(sum(c) + mine) - worth(sum(c)) for c in combinations(others, size)) / math.comb(11, size) / 12
            for size in range(12)
        )
        truth.append(sum(gains))
    recorded = brute.record(game, brute.noise_of(game, 1), plan)
    found = game.unit_shapley(recorded, torch.zeros(12, dtype=torch.int64))
    assert found[0, 0].tolist() == pytest.approx(truth, abs=1e-9)


def test_shapley_in_large_teams() -> None:
    """N = 200: efficient, equal efforts share equally, no effort gets nothing; D would not even sum to the return."""
    game = GaussianSqueeze(200)
    plan = brute.random_plan(game, 2, 1)
    recorded = brute.record(game, brute.noise_of(game, 2), plan)
    home = torch.zeros(200, dtype=torch.int64)
    shares = game.unit_shapley(recorded, home)
    assert (shares.sum((0, 2)) - recorded.reward.sum(0)).abs().max() < 1e-9
    for row in range(2):
        for effort in range(10):
            alike = shares[0, row][plan[0, row] == effort]
            assert alike.max() - alike.min() == 0
        assert shares[0, row][plan[0, row] == 0].abs().max() < 1e-9
    differences = game.unit_differences(recorded, home)
    assert (differences.sum((0, 2)) - recorded.reward.sum(0)).abs().min() > 1


def test_shapley_follows_the_dtype() -> None:
    """Summed in float64, told in the game's own."""
    game = GaussianSqueeze(4)
    plan = brute.random_plan(game, 3)
    recorded = brute.record(game, (torch.zeros(3, 0), torch.zeros(3, 1, 0)), plan)
    assert game.unit_shapley(recorded, torch.zeros(4, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize("game", [GaussianSqueeze(3), GaussianSqueeze(2, mu=15, sigma=3.0)], ids=repr)
def test_optimum_and_chance_equal_enumeration(game: GaussianSqueeze) -> None:
    """Over every joint action: the largest reward, and the mean; the script earns the largest."""
    plans = brute.every_joint_action(game)
    rewards = brute.frozen_return(game, brute.noise_of(game, plans.shape[1]), plans)
    assert game.optimal_return == pytest.approx(float(rewards.max()), abs=1e-12)
    assert game.random_return == pytest.approx(float(rewards.mean()), abs=1e-12)
    script = game.scripted_action(game.reset(torch.zeros(1, 0)))[None]
    assert float(brute.frozen_return(game, brute.noise_of(game, 1), script)) == game.optimal_return


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_defaults_scale_with_the_team(n: int) -> None:
    """mu = 3 N and sigma = N; the best total solves 2 x (x - mu) = sigma^2 to the nearest whole numbers."""
    game = GaussianSqueeze(n)
    assert (game.target, game.width) == (3 * n, n)
    peak = (3 * n + math.sqrt((3 * n) ** 2 + 2 * n**2)) / 2
    assert abs(game.best_total - peak) < 1
    each = game.scripted_action(game.reset(torch.zeros(1, 0)))
    assert int(each.sum()) == game.best_total and int(each.max() - each.min()) <= 1
    chances = total_chances(n)
    assert chances.sum() == pytest.approx(1, abs=1e-9) and chances @ range(9 * n + 1) == pytest.approx(4.5 * n)


def test_one_agent_matters_less_in_a_larger_team() -> None:
    """Dilution: what one random agent's action changes, against what all the others' change, falls with N."""
    ratio = []
    for n in (5, 20, 80):
        game = GaussianSqueeze(n)
        recorded = brute.record(game, brute.noise_of(game, 400), brute.random_plan(game, 400))
        own = game.unit_differences(recorded, torch.zeros(n, dtype=torch.int64))
        ratio.append(float(own.std() / recorded.reward.std()))
    assert ratio[0] > 1.5 * ratio[1] > 2.2 * ratio[2]


def test_clones_and_removals() -> None:
    """reward_with counts copies: removing an agent is its idling, cloning it doubles its effort."""
    game = GaussianSqueeze(4, mu=12, sigma=6.0)
    plan = brute.random_plan(game, 8).clamp(max=4)
    start, empty = game.reset(torch.zeros(8, 0, dtype=torch.float64)), torch.zeros(8, 0)
    for i in range(4):
        for times in (0, 2):
            copies = torch.ones(8, 4)
            copies[:, i] = times
            changed = plan.clone()
            changed[0, :, i] *= times
            found = game.reward_with(start, plan[0], empty, copies)
            assert (found - game.step(start, changed[0], empty).reward).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed"),
        ({"n_agents": 3.0}, "n_agents=3.0 is not allowed"),
        ({"mu": -1}, r"mu=-1 is not allowed; it must be a number in 0\.\.90"),
        ({"mu": 91}, "mu=91 is not allowed"),
        ({"sigma": 0}, "sigma=0 is not allowed; it must be a number, 0.1 or more"),
        ({"sigma": float("inf")}, "sigma=inf is not allowed"),
        ({"sigma": "N"}, "sigma='N' is not allowed"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence: the knob, its value, what is allowed."""
    with pytest.raises(KnobError, match=words):
        GaussianSqueeze(**knobs)
