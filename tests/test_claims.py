"""The tasks behind the published temporal claims: their rules are the papers', their hindsight is exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.claims import contribution, decisions
from benchmarks.claims.hindsight_toys import AmbiguousBandit, DelayedEffect, exact_return, exact_state
from benchmarks.claims.variants import KNOWN, PG
from benchmarks.claims.watch_repair import LEAVE, REPAIR, WatchRepair
from envs.base import Env, HasScriptedPolicy, KnobError
from envs.check import check_env
from envs.key_door import KeyDoor
from marl.credit.base import Chain, Context
from marl.credit.spatial.team import Team
from marl.credit.temporal.cocoa import Cocoa
from marl.oracle.exact import true_gradient
from marl.policy import Actor
from marl.rollout import rollout
from marl.types import Policy

TOYS: list[Env[Any]] = [
    WatchRepair(horizon=3),
    DelayedEffect(way=2),
    DelayedEffect(way=0, sigma=0.0),
    AmbiguousBandit(),
    AmbiguousBandit(hidden=True),
]


def always(actions: Tensor) -> Policy:
    """The action of each row, whatever is seen; illegal ones give way to the last."""

    def policy(obs: Tensor, mask: Tensor | None) -> Tensor:
        chosen = torch.nn.functional.one_hot(actions, 2).to(obs.dtype)[:, None]
        legal = chosen if mask is None else chosen * mask
        return torch.where(legal.sum(-1, keepdim=True) > 0, legal, obs.new_tensor([0.0, 1.0]))

    return policy


@pytest.mark.parametrize("game", TOYS, ids=repr)
def test_toys_keep_the_contract(game: Env[Any]) -> None:
    """Rules and PettingZoo face, declared returns and scripted policies included."""
    check_env(game)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: WatchRepair(horizon=0), "horizon=0"),
        (lambda: WatchRepair(unit=0.0), "unit=0.0"),
        (lambda: DelayedEffect(way=-1), "way=-1"),
        (lambda: AmbiguousBandit(epsilon=0.7), "epsilon=0.7"),
    ],
    ids=["horizon", "unit", "way", "epsilon"],
)
def test_knobs_out_of_range_are_refused(make: Callable[[], Any], sentence: str) -> None:
    """One sentence that names the knob and its value."""
    with pytest.raises(KnobError, match=sentence):
        make()


def test_profits_of_the_watches_are_the_published_ones() -> None:
    """-1.5, 3.5, 3.5, -1.5 in closed form and by play; a watch that is left pays nothing."""
    game = WatchRepair(unit=1.0)
    assert game.profits == pytest.approx((-1.5, 3.5, 3.5, -1.5))
    assert game.optimal_return == pytest.approx(1.75)
    lived = rollout(game, always(torch.full((8000,), REPAIR)), 8000, 0)
    for brand, profit in enumerate(game.profits):
        paid = lived.reward.sum(0)[lived.state.brand[0] == brand]
        assert abs(float(paid.mean()) - profit) < 4 * float(paid.std()) / len(paid) ** 0.5
    assert 9 < float(paid.std()) < 13, "the way is what makes it noisy: 50 x .05 x .95 x 49 and a little more"
    left = rollout(game, always(torch.full((50,), LEAVE)), 50, 0)
    assert not bool(left.reward.any())


def frequencies(taken: Tensor, group: Tensor) -> list[tuple[float, float, Tensor]]:
    """(share of the first action, its standard error, rows) of each group."""
    found = []
    for value in group.unique():
        rows = (group == value).nonzero()[:, 0]
        share = float((taken[rows] == 0).double().mean())
        found.append((share, (share * (1 - share) / len(rows)) ** 0.5 + 1e-9, rows))
    return found


@pytest.mark.parametrize("game", [DelayedEffect(way=2), AmbiguousBandit(epsilon=0.2)], ids=repr)
def test_exact_hindsight_of_the_toys_is_what_happens(game: DelayedEffect | AmbiguousBandit) -> None:
    """Among episodes of like outcome, the first action was taken as often as h says; elsewhere h is the policy."""
    lived = rollout(game, None, 20_000, 0)
    z = lived.reward.flip(0).cumsum(0).flip(0)[..., None]
    first = lived.action[0, :, 0]
    by_state = exact_state(game)(lived, z[..., None])
    for share, error, rows in frequencies(first, lived.state.good[-1]):
        assert abs(float(by_state[0, -1, rows, 0, 0].mean()) - share) < 4 * error
    assert torch.equal(by_state[1:-1, -1], lived.probs[1:-1])
    by_return = exact_return(game)(lived, z)
    for share, error, rows in frequencies(first, (2 * z[0, :, 0]).round().clamp(-4, 6)):
        assert abs(float(by_return[0, rows, 0, 0].mean()) - share) < 4 * error
    assert torch.equal(by_return[1:], lived.probs[1:])


def stirred(game: Env[Any], seeds: tuple[int, ...] = (0,)) -> Actor:
    """A policy that is far from uniform, and eats otherwise with a key in its hand."""
    actor, g = Actor(game, seeds, hidden=(8,)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in actor.parameters():
            p.add_(0.7 * torch.randn(p.shape, generator=g))
    return actor


def test_exact_hindsight_of_the_key_is_what_happens() -> None:
    """Among episodes with equal rewards, or key, at step k the key was taken as often as h says."""
    game = KeyDoor(horizon=4, observe_key=True)
    actor = stirred(game)
    lived = rollout(game, actor, 8_000, 0)
    u = lived.reward[..., None, None]
    took = 1 - (lived.action[0, :, 0] == 2).long()  # 0: took the key
    groups = {"reward": (1e4 * lived.reward).round(), "state": lived.state.key[..., 0].float()}
    for outcome, group in groups.items():
        h = contribution.exact_hindsight(game, actor, outcome)(lived, u)
        assert torch.allclose(h.sum(-1), torch.ones(()), atol=1e-5)
        for k in (1, 2, 3):
            for share, error, rows in frequencies(took, group[k]):
                assert abs(float(h[0, k, rows, 0, 2].mean()) - share) < 4 * error + 1e-4, (outcome, k)
    eats = contribution.chance_to_eat(game, actor)
    assert float((eats[0] - eats[1]).abs().max()) > 0.01, "else apples would tell nothing, and nothing was tested"


def test_the_gradient_of_the_first_decision_is_a_part_of_the_true_one() -> None:
    """All of it where nothing else can be decided (T = 2); and what exact COCOA gives on average."""
    short = KeyDoor(horizon=2, observe_key=True)
    actor = stirred(short, (0, 1))
    assert torch.allclose(contribution.first_decision(actor, short), true_gradient(short, actor), atol=1e-5)
    game = KeyDoor(horizon=6, observe_key=True)
    actor = stirred(game)
    truth = contribution.first_decision(actor, game)
    assert not torch.allclose(truth, true_gradient(game, actor), atol=1e-4), "the control: apples are decided too"
    exact = contribution.exact_hindsight(game, actor, "reward")
    chain = Chain((Team, partial(Cocoa, exact=exact)), Context(game, (0,), actor))
    samples = contribution.first_gradients(game, actor, chain, 200)[0]
    error = samples.std(0) / len(samples) ** 0.5
    assert bool(((samples.mean(0) - truth[0]).abs() < 5 * error + 1e-6).all())


def test_right_is_the_chance_of_the_scripted_action() -> None:
    """1 for the script itself, 1/2 for chance, over all four brands and every seed."""
    game = WatchRepair()
    assert isinstance(game, HasScriptedPolicy)

    def script(obs: Tensor, mask: Tensor | None) -> Tensor:
        brand = obs[..., :4].argmax(-1)
        good = (brand == 1) | (brand == 2)
        return torch.stack((good, ~good), -1).to(obs.dtype)

    assert decisions.right(game, script) == pytest.approx(1)
    assert decisions.right(game, lambda obs, mask: torch.full((*obs.shape[:-1], 2), 0.5)) == pytest.approx(0.5)


def test_learning_time_ends_with_the_goal_or_the_budget() -> None:
    """An easy goal is reached at once the window is full; an impossible one never, which counts as the budget."""
    game, method = AmbiguousBandit(), KNOWN[PG]
    easy = decisions.learning_time(game, method, (100, 101), 400, 0.0, 40)
    never = decisions.learning_time(game, method, (100, 101), 80, 1.1, 40)
    assert easy.tolist() == [32, 32] and never.tolist() == [80, 80]  # 5 looks at 8 episodes each, the first at 0
    same = decisions.LearningCurve(((PG, PG),), 3)(game, (100, 101))
    assert np.array_equal(same[f"{PG} - {PG}"], np.zeros(2)) and same[f"{PG} at last"].shape == (2,)
