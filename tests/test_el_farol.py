"""el_farol: the closed forms are what brute force finds, and the optimum is the one the design states."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import brute
import pytest
import torch

from envs.base import KnobError
from envs.el_farol import HOME, ElFarol, best_attendance, best_nights

SMALL = [ElFarol(5, 2, 2.0), ElFarol(4, 3, 0.7), ElFarol(6, 1, 1.5), ElFarol(1, 4, 6.0)]


@pytest.mark.parametrize("game", SMALL, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_differences_equal_brute_force(game: ElFarol, seed: int) -> None:
    """Default home, and any other baseline, to 1e-9."""
    noise, plan = brute.noise_of(game, 20), brute.random_plan(game, 20, seed)
    recorded = brute.record(game, noise, plan)
    random = torch.randint(game.n_actions, (game.n_agents,), generator=torch.Generator().manual_seed(seed))
    for baseline in (torch.full((game.n_agents,), HOME), random):
        truth = brute.unit_differences(game, noise, plan, baseline)
        assert (game.unit_differences(recorded, baseline) - truth).abs().max() < 1e-9


def test_difference_is_the_stated_formula() -> None:
    """x e^(-x/c) - (x-1) e^(-(x-1)/c) on one's own night, 0 at home: three guests on night 1, one on night 2."""
    game = ElFarol(5, 2, 2.0)
    plan = torch.tensor([[[1, 1, 1, 2, HOME]]])
    recorded = brute.record(game, brute.noise_of(game, 1), plan)
    found = game.unit_differences(recorded, torch.zeros(5, dtype=torch.int64))[0, 0].tolist()
    crowd = 3 * math.exp(-1.5) - 2 * math.exp(-1.0)
    assert found == pytest.approx([crowd, crowd, crowd, math.exp(-0.5), 0.0], abs=1e-12)
    assert crowd < 0  # one too many: the team reward would still praise them


@pytest.mark.parametrize("game", SMALL, ids=repr)
def test_shapley_equals_all_orders(game: ElFarol) -> None:
    """Equal shares of each night are the Shapley value, to 1e-9, and sum to the reward."""
    home = torch.full((game.n_agents,), HOME)
    noise, plan = brute.noise_of(game, 12), brute.random_plan(game, 12, 7)
    recorded = brute.record(game, noise, plan)
    shares = game.unit_shapley(recorded, home)
    assert (shares - brute.unit_shapley(game, noise, plan, home)).abs().max() < 1e-9
    assert (shares.sum((0, 2)) - recorded.reward.sum(0)).abs().max() < 1e-9
    assert torch.equal(game.local_rewards(game.reset(noise[0]), plan[0], noise[1][:, 0]), shares[0])


def test_shapley_of_another_baseline_is_refused() -> None:
    """The caller learns which baseline has no closed form."""
    game = ElFarol(2, 2, 2.0)
    recorded = brute.record(game, brute.noise_of(game, 1), brute.random_plan(game, 1))
    with pytest.raises(ValueError, match=r"baseline=\[0, 1\] has no closed Shapley value"):
        game.unit_shapley(recorded, torch.tensor([0, 1]))


def test_optimum_of_the_design() -> None:
    """7 nights, 168 agents, c = 6: 13.2437 when all must attend, 15.4509 with home."""
    values = best_attendance(168, 7, 6.0)
    assert values[-1] == pytest.approx(13.2437, abs=5e-5)
    assert max(values) == pytest.approx(15.4509, abs=5e-5)
    assert ElFarol(168, 7, 6.0).optimal_return == max(values)


@pytest.mark.parametrize("game", SMALL, ids=repr)
def test_optimum_and_chance_equal_enumeration(game: ElFarol) -> None:
    """Over every joint action: the largest reward, and the mean."""
    plans = brute.every_joint_action(game)
    rewards = brute.frozen_return(game, brute.noise_of(game, plans.shape[1]), plans)
    assert game.optimal_return == pytest.approx(float(rewards.max()), abs=1e-12)
    assert game.random_return == pytest.approx(float(rewards.mean()), abs=1e-12)


def test_best_nights_are_best() -> None:
    """The attendance that the script follows pays what the dynamic programme promises, and no move improves it."""
    for n_agents, n_nights, capacity in [(60, 7, 6.0), (9, 4, 3.0), (5, 5, 0.4)]:
        guests = best_nights(n_agents, n_nights, capacity)
        worth = [x * math.exp(-x / capacity) for x in range(n_agents + 2)]
        assert sum(worth[x] for x in guests) == pytest.approx(max(best_attendance(n_agents, n_nights, capacity)))
        assert sum(guests) <= n_agents
        for here, there in product(guests, repeat=2):
            if here and here != there:
                assert worth[here - 1] + worth[there + 1] <= worth[here] + worth[there] + 1e-12


def test_clones_and_removals() -> None:
    """reward_with counts copies: removing an agent is sending it home, cloning it one more guest."""
    game = ElFarol(5, 3, 2.0)
    noise, plan = brute.noise_of(game, 8), brute.random_plan(game, 8)
    start, reward = game.reset(noise[0]), brute.frozen_return(game, noise, plan)
    for i in range(5):
        copies = torch.ones(8, 5)
        copies[:, i] = 0
        gone = plan.clone()
        gone[0, :, i] = HOME
        less = game.reward_with(start, plan[0], noise[1][:, 0], copies)
        assert (less - brute.frozen_return(game, noise, gone)).abs().max() < 1e-12
        copies[:, i] = 2
        more = game.reward_with(start, plan[0], noise[1][:, 0], copies)
        six = ElFarol(6, 3, 2.0)
        joined = torch.cat((plan, plan[:, :, i : i + 1]), -1)
        assert (more - brute.frozen_return(six, noise, joined)).abs().max() < 1e-12
    assert not torch.equal(less, reward)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed"),
        ({"n_nights": 2.5}, "n_nights=2.5 is not allowed"),
        ({"capacity": 0}, "capacity=0 is not allowed"),
        ({"capacity": float("nan")}, "capacity=nan is not allowed"),
        ({"capacity": "6"}, "capacity='6' is not allowed"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence: the knob, its value, what is allowed."""
    with pytest.raises(KnobError, match=words):
        ElFarol(**knobs)
