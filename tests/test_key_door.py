"""key_door: the key's worth is what replays find, its whisper under the apples is .049 deviations, as published."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import brute
import pytest
import torch
from torch import Tensor

from envs.base import KnobError, take
from envs.key_door import EAT, SCALE, TAKE, WAIT, KeyDoor, KeyDoorState

SMALL = [
    KeyDoor(3, 2, 5),
    KeyDoor(2, 1, 4, 0.3, (2.0, 0.5), 3.0, True),
    KeyDoor(4, 4, 3, 1.0, (0, 1), 0.7),
    KeyDoor(1, 1, 2),
    KeyDoor(2, 2, 6, 0.0, treasure=0),
]
every_size = pytest.mark.parametrize(
    "game", SMALL, ids=lambda game: f"N{game.n_agents}m{game.keys_needed}T{game.horizon}"
)


def few_deviations(game: KeyDoor, base: int, episodes: int, seed: int) -> Tensor:
    """[T,B,N] the same 6 units or fewer leave the baseline in every row: keys first, then anything."""
    g = torch.Generator().manual_seed(seed)
    plan = torch.full((game.horizon, episodes, game.n_agents), base)
    keys = torch.randint(3, (episodes, min(3, game.n_agents)), generator=g)
    plan[0, :, : keys.shape[1]] = keys
    for k in torch.randperm((game.horizon - 1) * game.n_agents, generator=g)[:3].tolist():
        t, i = divmod(k, game.n_agents)
        plan[t + 1, :, i] = torch.randint(3, (episodes,), generator=g)
    return plan


def everything(game: KeyDoor, state: KeyDoorState) -> tuple[Tensor, Tensor, KeyDoorState]:
    """Of one state: reward [A^N,K] and next states [A^N * K] of every joint action and case of luck; chances [K]."""
    luck, plans = game.step_atoms(), torch.tensor(list(product(range(3), repeat=game.n_agents)))
    A, K = len(plans), len(luck.noise)
    many = take(state, torch.zeros(A * K, dtype=torch.int64))
    step = game.step(many, plans.repeat_interleave(K, 0), luck.noise.repeat(A, 1))
    return step.reward.reshape(A, K), luck.probability, step.state


def value(game: KeyDoor, state: KeyDoorState, best: bool, known: dict[tuple[int, ...], float]) -> float:
    """Of one state, by backward induction: of the best play, or of uniformly random play."""
    name = (int(state.t), *state.key[0].tolist(), *state.apple[0].tolist())  # all that the future needs
    if int(state.t) == game.horizon:
        return 0.0
    if name not in known:
        reward, chance, after = everything(game, state)
        rows = [value(game, take(after, torch.tensor([b])), best, known) for b in range(len(after.t))]
        worth = ((reward + torch.tensor(rows, dtype=torch.float64).reshape(reward.shape)) * chance).sum(1)
        known[name] = float(worth.max() if best else worth.mean())
    return known[name]


def start(game: KeyDoor) -> KeyDoorState:
    """The key room, which is always the same."""
    return game.reset(torch.zeros(1, 0, dtype=torch.float64))


@every_size
@pytest.mark.parametrize("seed", range(3))
def test_differences_equal_brute_force(game: KeyDoor, seed: int) -> None:
    """Every uniform baseline and a mixed one, to 1e-9."""
    noise, plan = brute.noise_of(game, 20, seed), brute.random_plan(game, 20, seed)
    recorded = brute.record(game, noise, plan)
    mixed = torch.arange(game.n_agents) % 3
    for baseline in (*(torch.full((game.n_agents,), a) for a in (WAIT, EAT, TAKE)), mixed):
        truth = brute.unit_differences(game, noise, plan, baseline)
        found = game.unit_differences(recorded, baseline)
        assert found.dtype == torch.float64
        assert (found - truth).abs().max() < 1e-9


@every_size
@pytest.mark.parametrize("base", [WAIT, EAT, TAKE])
def test_shapley_equals_all_orders(game: KeyDoor, base: int) -> None:
    """To 1e-9; and the shares of random plans sum to G less the baseline's return."""
    baseline = torch.full((game.n_agents,), base)
    noise, plan = brute.noise_of(game, 16), few_deviations(game, base, 16, seed=base)
    found = game.unit_shapley(brute.record(game, noise, plan), baseline)
    assert (found - brute.unit_shapley(game, noise, plan, baseline)).abs().max() < 1e-9
    plan = brute.random_plan(game, 16, seed=5)
    recorded = brute.record(game, noise, plan)
    whole = recorded.reward.sum(0) - brute.frozen_return(game, noise, baseline.expand_as(plan))
    assert (game.unit_shapley(recorded, baseline).sum((0, 2)) - whole).abs().max() < 1e-9


def test_a_key_is_worth_what_the_design_says() -> None:
    """Against wait: D = R 1[keys = m] and Shapley R/keys when keys >= m, for 0..4 keys of 4 agents and m = 2."""
    game = KeyDoor(4, 2, 6, treasure=0.9)
    R, wait = SCALE * 0.9 / 6, torch.zeros(4, dtype=torch.int64)
    plan = torch.full((6, 5, 4), WAIT)
    for keys in range(5):
        plan[0, keys, :keys] = TAKE
    recorded = brute.record(game, brute.noise_of(game, 5), plan)
    difference, share = game.unit_differences(recorded, wait), game.unit_shapley(recorded, wait)
    assert not difference[1:].any() and not share[1:].any()
    for keys in range(5):
        held = [1.0] * keys + [0.0] * (4 - keys)
        assert difference[0, keys].tolist() == pytest.approx([R * (keys == 2) * h for h in held], abs=1e-12)
        assert share[0, keys].tolist() == pytest.approx([R / max(keys, 1) * (keys >= 2) * h for h in held], abs=1e-12)


def test_a_mixed_baseline_has_no_closed_shapley_value() -> None:
    """Where some would take the key anyway and others not, the sentence names the baseline."""
    game = KeyDoor(2, 1, 3)
    recorded = brute.record(game, brute.noise_of(game, 1), brute.random_plan(game, 1))
    with pytest.raises(ValueError, match=r"baseline=\[0, 2\] has no closed Shapley value in key_door"):
        game.unit_shapley(recorded, torch.tensor([WAIT, TAKE]))


def test_the_key_whispers() -> None:
    """T = 103, N = 1: the treasure is .049 standard deviations of the apples' return, falling like 1/sqrt(T)."""
    game = KeyDoor()
    luck = KeyDoor(horizon=4).step_atoms()  # one apple: exact moments over the cases of two steps
    values = []
    for (_, sight), p in zip(luck.noise.tolist(), luck.probability.tolist(), strict=True):
        for (worth, _), q in zip(luck.noise.tolist(), luck.probability.tolist(), strict=True):
            values.append((p * q, (sight < 0.8) * (0.1 if worth < 0.5 else 0.9)))
    mean = sum(p * v for p, v in values)
    spread = math.sqrt(101 * sum(p * (v - mean) ** 2 for p, v in values))
    assert game.treasure_in_deviations == pytest.approx(0.2 / spread, rel=1e-12)
    assert round(game.treasure_in_deviations, 3) == 0.049
    ratio = KeyDoor(horizon=402).treasure_in_deviations / KeyDoor(horizon=102).treasure_in_deviations
    assert ratio == pytest.approx(math.sqrt(100 / 400))
    noise = brute.noise_of(game, 4000)
    eat = torch.full((103, 4000, 1), EAT)
    sampled = float(brute.frozen_return(game, noise, eat).std())
    assert SCALE * 0.2 / 103 / sampled == pytest.approx(0.0486, rel=0.05)


def test_apples_pay_as_much_on_every_length() -> None:
    """The factor 23/T: the apples' part of the optimum is 23 p v in the limit, the treasure's falls like 1/T."""
    for T in (13, 53, 403):
        with_it, without = KeyDoor(horizon=T), KeyDoor(horizon=T, treasure=0)
        assert without.optimal_return == pytest.approx(23 * 0.4 * (T - 2) / T)
        assert with_it.optimal_return - without.optimal_return == pytest.approx(23 * 0.2 / T)


@pytest.mark.parametrize(
    "game",
    [KeyDoor(2, 1, 4, 0.3, (2.0, 0.5), 3.0), KeyDoor(2, 2, 3, treasure=1), KeyDoor(1, 1, 5), KeyDoor(3, 2, 2)],
    ids=["N2m1T4", "N2m2T3", "N1m1T5", "N3m2T2"],
)
def test_random_return_equals_enumeration(game: KeyDoor) -> None:
    """Every joint action against every case of luck."""
    assert game.random_return == pytest.approx(value(game, start(game), False, {}), abs=1e-12)


@pytest.mark.parametrize(
    "game", [KeyDoor(1, 1, 4), KeyDoor(2, 2, 3, 0.5, (0, 1), 3.0), KeyDoor(1, 1, 3, treasure=0)], ids=["T4", "N2", "no"]
)
def test_nothing_beats_the_optimum(game: KeyDoor) -> None:
    """Backward induction over every action and case of luck finds `optimal_return`, and `optimal_value` later on."""
    known: dict[tuple[int, ...], float] = {}
    assert value(game, start(game), True, known) == pytest.approx(game.optimal_return, abs=1e-12)
    assert len(known) > game.horizon
    for name, best in known.items():
        t, flags = name[0], torch.tensor([name[1:]], dtype=torch.bool)
        key, apple = flags.chunk(2, 1)
        state = KeyDoorState(torch.tensor([t]), key, apple, torch.zeros(1, game.n_agents, dtype=torch.float64))
        assert float(game.optimal_value(state)) == pytest.approx(best, abs=1e-12)


@every_size
def test_optimal_value_is_a_potential(game: KeyDoor) -> None:
    """Under the script, reward plus the next value averages to the value, over all cases of luck; 0 at the horizon."""
    luck = game.step_atoms()
    state = start(game)
    for _ in range(game.horizon):
        many = take(state, torch.zeros(len(luck.noise), dtype=torch.int64))
        step = game.step(many, game.scripted_action(many), luck.noise)
        ahead = ((step.reward + game.optimal_value(step.state)) * luck.probability).sum()
        assert float(ahead) == pytest.approx(float(game.optimal_value(state)), abs=1e-12)
        state = take(step.state, torch.tensor([len(luck.noise) - 1]))
    assert float(game.optimal_value(state)) == 0


def test_the_script_makes_every_key_pivotal() -> None:
    """Exactly keys_needed agents take one; with one fewer the treasure is lost, exactly R."""
    game = KeyDoor(4, 3, 8, treasure=2.0)
    noise = brute.noise_of(game, 10)
    state, plan = game.reset(noise[0]), []
    for t in range(game.horizon):
        plan.append(game.scripted_action(state))
        state = game.step(state, plan[-1], noise[1][:, t]).state
    frozen = torch.stack(plan)
    assert (frozen[0] == TAKE).sum(-1).tolist() == [3] * 10
    found = game.unit_differences(brute.record(game, noise, frozen), torch.full((4,), WAIT))
    assert found[0].tolist() == [pytest.approx([SCALE * 2 / 8] * 3 + [0.0])] * 10


def test_nothing_but_an_open_door_shows_the_key() -> None:
    """Without observe_key neither agents nor critic see any trace of it before the pay; with it, both do."""
    for seen in (False, True):
        game = KeyDoor(2, 1, 6, observe_key=seen)
        noise = brute.noise_of(game, 8)
        views = []
        for first in (WAIT, TAKE):
            plan = torch.full((6, 8, 2), EAT)
            plan[0] = first
            recorded = brute.record(game, noise, plan)
            later = [take(recorded.state, torch.tensor(t)) for t in range(1, 6)]
            shown = torch.cat([torch.cat((game.observe(s).flatten(1), game.critic_view(s)), 1) for s in later])
            views.append((shown, recorded.reward))
        assert torch.equal(views[0][0], views[1][0]) != seen
        assert torch.equal(views[0][1][:-1], views[1][1][:-1])
        assert (views[1][1][-1] - views[0][1][-1]).tolist() == pytest.approx([SCALE * 0.2 / 6] * 8)


def test_take_and_eat_out_of_place_do_nothing() -> None:
    """A key only at step 0; no apple at the first and last step, none eaten where none is in sight."""
    game = KeyDoor(2, 1, 6, 0.5)
    noise = brute.noise_of(game, 40)
    late = torch.full((6, 40, 2), TAKE)
    late[0] = EAT
    recorded = brute.record(game, noise, late)
    assert not recorded.state.key.any() and not recorded.reward.any()
    assert not recorded.state.apple[0].any() and not recorded.state.apple[-1].any()
    assert recorded.state.apple[1:-1].double().mean() == pytest.approx(0.5, abs=0.1)
    eating = brute.record(game, noise, torch.full((6, 40, 2), EAT))
    assert not eating.reward[~eating.state.apple.any(-1)].any()
    assert (eating.reward[eating.state.apple.any(-1)] > 0).all()


@pytest.mark.parametrize("seen", [False, True])
def test_light_cone_is_exactly_what_moves(seen: bool) -> None:
    """Frozen plans find every pair of the cone and no other; seen keys add what reactions to them may move."""
    game = KeyDoor(2, 1, 5, observe_key=seen)
    noise, plan = brute.noise_of(game, 60), brute.random_plan(game, 60)
    fact = brute.record(game, noise, plan).reward
    moved = torch.zeros(5, 5, 2, dtype=torch.bool)
    for t, i in brute.units(game):
        for action in (WAIT, EAT, TAKE):
            other = plan.clone()
            other[t, :, i] = action
            moved[t, :, i] |= (brute.record(game, noise, other).reward != fact).any(1)
    cone = game.light_cone()
    assert not (moved & ~cone).any()
    assert torch.equal(moved, KeyDoor(2, 1, 5).light_cone())
    assert bool((cone[0, 1:] == seen)[:-1].all()) and bool(cone[0, -1].all())


@every_size
def test_local_rewards_and_clones(game: KeyDoor) -> None:
    """Own rewards sum to the team's; removing an agent at a step is what waiting without a key would have paid."""
    noise, plan = brute.noise_of(game, 12), brute.random_plan(game, 12)
    recorded = brute.record(game, noise, plan)
    for t in range(game.horizon):
        state = take(recorded.state, torch.tensor(t))
        own = game.local_rewards(state, plan[t], noise[1][:, t])
        assert (own.sum(-1) - recorded.reward[t]).abs().max() < 1e-12
        for i in range(game.n_agents):
            copies = torch.ones(12, game.n_agents)
            copies[:, i] = 0
            gone, idle = state.key.clone(), plan[t].clone()
            gone[:, i], idle[:, i] = False, WAIT
            less = game.step(state._replace(key=gone), idle, noise[1][:, t]).reward
            assert (game.reward_with(state, plan[t], noise[1][:, t], copies) - less).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed"),
        ({"n_agents": 2, "keys_needed": 3}, r"keys_needed=3 is not allowed; it must be a whole number in 1\.\.2"),
        ({"horizon": 1}, "horizon=1 is not allowed; it must be a whole number, 2 or more"),
        ({"apple_probability": 1.1}, "apple_probability=1.1 is not allowed"),
        ({"apple_values": (0.1,)}, r"apple_values=\(0.1,\) is not allowed; it must be two numbers"),
        ({"apple_values": (0.1, -0.9)}, "apple_values=.* is not allowed; it must be two numbers, 0 or more"),
        ({"apple_values": "ab"}, "apple_values='ab' is not allowed"),
        ({"treasure": -1}, "treasure=-1 is not allowed"),
        ({"observe_key": 1}, "observe_key=1 is not allowed; it must be True or False"),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], words: str) -> None:
    """One sentence: the knob, its value, what is allowed."""
    with pytest.raises(KnobError, match=words):
        KeyDoor(**knobs)


def test_knobs_given_as_lists_are_the_same_game() -> None:
    """A game stays hashable."""
    assert hash(KeyDoor(apple_values=[0.1, 0.9])) == hash(KeyDoor())  # type: ignore[arg-type]
