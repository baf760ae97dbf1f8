"""assembly_line: every part's worth, its own delay, and the shares of a spoilt product are what replays find."""

from __future__ import annotations

from itertools import product
from typing import Any

import brute
import pytest
import torch
from torch import Tensor

from envs.assembly_line import AssemblyLine
from envs.base import KnobError, take

SMALL = [
    AssemblyLine(mode=mode, **knobs)
    for mode in ("sum", "and")
    for knobs in (
        {"n_agents": 3, "spacing": 1, "inspection": 2, "horizon": 7, "n_cues": 2},
        {"n_agents": 2, "spacing": 2, "inspection": 0, "horizon": 6, "n_cues": 3},
        {"n_agents": 3, "spacing": 0, "inspection": 1, "horizon": 4, "n_cues": 2},
        {"n_agents": 1, "spacing": 5, "inspection": 0, "horizon": 3, "n_cues": 4},
    )
]
every_size = pytest.mark.parametrize("game", SMALL, ids=lambda g: f"{g.mode}-N{g.n_agents}L{g.spacing}E{g.inspection}")


def skilled_plan(game: AssemblyLine, noise: tuple[Tensor, Tensor], seed: int = 0) -> Tensor:
    """[T,B,N] mostly right actions (the cues are no one's doing), each row with its own chance of slips."""
    g = torch.Generator().manual_seed(seed)
    state, plan = game.reset(noise[0]), []
    slips = torch.linspace(0, 0.9, len(noise[0]))[:, None]
    for t in range(game.horizon):
        right = game.scripted_action(state)
        other = torch.randint(game.n_actions, right.shape, generator=g)
        plan.append(torch.where(torch.rand(right.shape, generator=g) < slips, other, right))
        state = game.step(state, plan[-1], noise[1][:, t]).state
    return torch.stack(plan)


def qualities(game: AssemblyLine, noise: tuple[Tensor, Tensor], plan: Tensor) -> Tensor:
    """[J,B,N] from the rules as the design words them: station i meets product p at step p + i L."""
    luck = torch.cat((noise[0][None], noise[1].transpose(0, 1)))  # cues of step t are drawn one step before
    out = torch.zeros(game.n_products, plan.shape[1], game.n_agents, dtype=torch.float64)
    for p, i in product(range(game.n_products), range(game.n_agents)):
        t = p + i * game.spacing
        cue = (luck[t, :, i] * game.n_cues).long()
        out[p, :, i] = (plan[t, :, i] == (cue + i) % game.n_cues).double()
    return out


def baselines(game: AssemblyLine) -> list[Tensor]:
    """Idle, one work for all, and a mixed one."""
    N = game.n_agents
    return [torch.full((N,), game.n_cues), torch.zeros(N, dtype=torch.int64), torch.arange(N) % game.n_actions]


@every_size
def test_rewards_are_the_stated_formula(game: AssemblyLine) -> None:
    """Product p pays its mean, or its product, over J at step p + (N-1) L + E, and nothing else pays."""
    noise = brute.noise_of(game, 30)
    plan = skilled_plan(game, noise)
    q = qualities(game, noise, plan)
    worth = (q.mean(-1) if game.mode == "sum" else q.prod(-1)) / game.n_products
    expected = torch.zeros(game.horizon, 30, dtype=torch.float64)
    last = (game.n_agents - 1) * game.spacing + game.inspection
    expected[last : last + game.n_products] = worth
    assert last + game.n_products == game.horizon
    assert (brute.record(game, noise, plan).reward - expected).abs().max() < 1e-12


@every_size
@pytest.mark.parametrize("seed", range(3))
def test_differences_equal_brute_force(game: AssemblyLine, seed: int) -> None:
    """Default idle, and other baselines, to 1e-9."""
    noise = brute.noise_of(game, 16, seed)
    plan = skilled_plan(game, noise, seed)
    recorded = brute.record(game, noise, plan)
    for baseline in baselines(game):
        found = game.unit_differences(recorded, baseline)
        assert found.dtype == torch.float64
        assert (found - brute.unit_differences(game, noise, plan, baseline)).abs().max() < 1e-9


def closed_shapley(game: AssemblyLine, recorded: Any, baseline: Tensor) -> Tensor | None:
    """None where the game names the baseline as one without a closed form; idle always has one."""
    try:
        return game.unit_shapley(recorded, baseline)
    except ValueError as error:
        assert str(baseline.tolist()) in str(error)
        assert game.mode == "and" and bool((baseline != game.n_cues).any())
        return None


@every_size
def test_shapley_equals_all_orders(game: AssemblyLine) -> None:
    """To 1e-9 with six units at most off the baseline; and the shares of whole plans sum to what the plan earned."""
    noise = brute.noise_of(game, 12)
    good = skilled_plan(game, noise)
    order = torch.randperm(game.horizon * game.n_agents, generator=torch.Generator().manual_seed(1)).tolist()
    first = [i * game.spacing * game.n_agents + i for i in range(game.n_agents)]  # every part of product 0
    chosen = list(dict.fromkeys(first + order))[: min(6, len(order))]
    for baseline in baselines(game):
        plan = baseline.expand_as(good).clone()
        for unit in chosen:
            t, i = divmod(unit, game.n_agents)
            plan[t, :, i] = good[t, :, i]
        found = closed_shapley(game, brute.record(game, noise, plan), baseline)
        if found is not None:
            assert (found - brute.unit_shapley(game, noise, plan, baseline)).abs().max() < 1e-9
        recorded = brute.record(game, noise, good)
        shares = closed_shapley(game, recorded, baseline)
        if shares is not None:
            whole = recorded.reward.sum(0) - brute.frozen_return(game, noise, baseline.expand_as(good))
            assert (shares.sum((0, 2)) - whole).abs().max() < 1e-9


@every_size
def test_truth_against_idle_is_the_designs(game: AssemblyLine) -> None:
    """D = q_i/(N J) or prod q/J; Shapley q_i/(N J) or prod q/(N J); 0 wherever a station has no product."""
    noise = brute.noise_of(game, 30)
    plan = skilled_plan(game, noise)
    recorded, idle = brute.record(game, noise, plan), torch.full((game.n_agents,), game.n_cues)
    q, N, J = qualities(game, noise, plan), game.n_agents, game.n_products
    every = q.prod(-1, keepdim=True).expand_as(q)
    difference = q / (N * J) if game.mode == "sum" else every / J
    share = q / (N * J) if game.mode == "sum" else every / (N * J)
    for found, expected in ((game.unit_differences, difference), (game.unit_shapley, share)):
        truth = torch.zeros(plan.shape, dtype=torch.float64)
        for p, i in product(range(J), range(N)):
            truth[p + i * game.spacing, :, i] = expected[p, :, i]
        assert (found(recorded, idle) - truth).abs().max() < 1e-12


@every_size
def test_each_station_has_its_own_delay(game: AssemblyLine) -> None:
    """A change of station i's work moves exactly the reward (N-1-i) L + E steps later, in no row another one."""
    noise = brute.noise_of(game, 40)
    state = game.reset(noise[0])
    perfect = []
    for t in range(game.horizon):
        perfect.append(game.scripted_action(state))
        state = game.step(state, perfect[-1], noise[1][:, t]).state
    plan = torch.stack(perfect)
    fact = brute.record(game, noise, plan).reward
    reached = torch.zeros(game.horizon, game.horizon, game.n_agents, dtype=torch.bool)
    for t, i in brute.units(game):
        other = plan.clone()
        other[t, :, i] = game.n_cues
        moved = brute.record(game, noise, other).reward != fact
        delay = (game.n_agents - 1 - i) * game.spacing + game.inspection
        works = 0 <= t - i * game.spacing < game.n_products
        assert moved.any(1).nonzero()[:, 0].tolist() == ([t + delay] if works else [])
        reached[t, :, i] = moved.any(1)
    assert torch.equal(game.light_cone(), reached)


@every_size
def test_scripted_policy_is_perfect_and_chance_is_as_stated(game: AssemblyLine) -> None:
    """The script earns 1 in every episode, no plan earns more; 1/(K+1) or its N-th power is the mean over all plans."""
    noise = brute.noise_of(game, 20)
    state, total = game.reset(noise[0]), torch.zeros(20, dtype=torch.float64)
    for t in range(game.horizon):
        assert (game.optimal_value(state) + total - 1).abs().max() < 1e-12  # the potential never falls
        step = game.step(state, game.scripted_action(state), noise[1][:, t])
        state, total = step.state, total + step.reward
    assert (total - 1).abs().max() < 1e-12 and game.optimal_return == 1
    assert not game.optimal_value(state).any()
    chance = (1 / (game.n_cues + 1)) ** (1 if game.mode == "sum" else game.n_agents)
    assert game.random_return == pytest.approx(chance, abs=1e-12)


@pytest.mark.parametrize("mode", ["sum", "and"])
def test_every_plan_there_is(mode: str) -> None:
    """On a tiny line, for each luck: the best plan earns exactly 1, and all plans together average `random_return`."""
    game = AssemblyLine(2, 1, 1, 4, 2, mode)
    plans = brute.every_joint_action(game)
    for episode in range(3):
        first, later = brute.noise_of(game, 1, seed=episode)
        same = first.expand(plans.shape[1], -1), later.expand(plans.shape[1], -1, -1)
        earned = brute.frozen_return(game, same, plans)
        assert float(earned.max()) == pytest.approx(1, abs=1e-12)
        assert float(earned.mean()) == pytest.approx(game.random_return, abs=1e-12)


@every_size
def test_optimal_value_after_slips(game: AssemblyLine) -> None:
    """From any state of a careless episode, playing on by the script earns exactly `optimal_value`."""
    noise = brute.noise_of(game, 12)
    recorded = brute.record(game, noise, skilled_plan(game, noise, 3))
    for begin in range(game.horizon):
        state, total = take(recorded.state, torch.tensor(begin)), torch.zeros(12, dtype=torch.float64)
        value = game.optimal_value(state)
        for t in range(begin, game.horizon):
            step = game.step(state, game.scripted_action(state), noise[1][:, t])
            state, total = step.state, total + step.reward
        assert (total - value).abs().max() < 1e-12


@every_size
def test_local_rewards_sum_to_the_teams(game: AssemblyLine) -> None:
    """Also in float64."""
    noise = brute.noise_of(game, 12)
    recorded = brute.record(game, noise, skilled_plan(game, noise, 2))
    for t in range(game.horizon):
        state = take(recorded.state, torch.tensor(t))
        own = game.local_rewards(state, recorded.action[t], noise[1][:, t])
        assert (own.sum(-1) - recorded.reward[t]).abs().max() < 1e-12


def test_stations_without_a_product_see_a_blank() -> None:
    """The last slot of the cue is on exactly where no product stands; agents see nothing of the belt."""
    game = AssemblyLine(3, 2, 1, 9, 3)
    noise = brute.noise_of(game, 6)
    views = []
    for plan in (skilled_plan(game, noise), torch.full((9, 6, 3), game.n_cues)):
        recorded = brute.record(game, noise, plan)
        views.append(torch.stack([game.observe(take(recorded.state, torch.tensor(t))) for t in range(9)]))
    assert torch.equal(*views)
    for t, i in brute.units(game):
        blank = views[0][t, :, i, game.n_cues]
        assert bool((blank == float(not 0 <= t - 2 * i < game.n_products)).all())
        assert bool((views[0][t, :, i, : game.n_cues + 1].sum(-1) == 1).all())


def test_the_horizon_is_no_end() -> None:
    """`done` stays False up to the horizon and past it, where nothing is paid any more."""
    game = AssemblyLine(2, 1, 1, 5, 2)
    first, later = brute.noise_of(game, 3)
    state, earned = game.reset(first), []
    for t in range(game.horizon + 2):
        step = game.step(state, game.scripted_action(state), later[:, min(t, game.horizon - 1)])
        assert not step.done.any()
        state = step.state
        earned.append(step.reward)
    assert torch.allclose(torch.stack(earned)[:, 0], torch.tensor([0, 0, 1, 1, 1, 0, 0]).double() / 3)
    assert (torch.stack(earned).std(1) < 1e-12).all()


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed"),
        ({"spacing": -1}, "spacing=-1 is not allowed"),
        ({"inspection": 0.5}, "inspection=0.5 is not allowed"),
        ({"horizon": 14}, "horizon=14 is not allowed; it must be .* 1[45]"),
        ({"n_cues": 1}, "n_cues=1 is not allowed"),
        ({"mode": "or"}, "mode='or' is not allowed; it must be one of sum, and"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence; a horizon in which no product would leave is one of them (15 steps are enough by default)."""
    with pytest.raises(KnobError, match=words):
        AssemblyLine(**knobs)
    assert AssemblyLine(horizon=15).n_products == 1
