"""walking_robot: what is declared of culprits, delays and shares is what living the walk again finds."""

from __future__ import annotations

from itertools import combinations, permutations, product
from math import comb
from typing import Any

import brute
import pytest
import torch
from brute import Recording
from torch import Tensor

from envs.base import KnobError, flatten, take
from envs.walking_robot import WalkingRobot
from marl.rollout import draw_noise, play, rollout, uniform_policy

BODY = {"n_agents": 3, "horizon": 14, "window": 6, "n_cues": 3}
MOMENTS = list(product((1, 3), (1, 2), (0, 4), ((0, 0), (5, 0), (5, 3))))  # M, m, decoys, (D, stagger)


def walk(moments: tuple[int, int, int, tuple[int, int]], **more: Any) -> WalkingRobot:
    """A small robot with the given moments."""
    M, m, decoys, (delay, stagger) = moments
    knobs = {"n_decisive": M, "joints_per_moment": m, "decoys": decoys, "delay": delay, "stagger": stagger}
    return WalkingRobot(**{**BODY, **knobs, **more})


def careless_plan(game: WalkingRobot, episodes: int, seed: int = 0) -> Tensor:
    """[T,B,N] random actions, each row safe with its own chance, so that walks with 0, 1, 2, ... errors all occur."""
    g = torch.Generator().manual_seed(seed)
    plan = torch.randint(game.n_actions, (game.horizon, episodes, game.n_agents), generator=g)
    careful = torch.rand(plan.shape, generator=g) < torch.linspace(0, 1, episodes)[:, None]
    return torch.where(careful, torch.tensor(game.safe_action), plan)


def walked(game: WalkingRobot, episodes: int = 24, seed: int = 0) -> tuple[tuple[Tensor, Tensor], Recording]:
    """Recorded walks in float64, and their noise."""
    noise = brute.noise_of(game, episodes, seed)
    return noise, brute.record(game, noise, careless_plan(game, episodes, seed))


def replays(game: WalkingRobot, noise: tuple[Tensor, Tensor], plan: Tensor, instead: Tensor) -> Tensor:
    """[T,B,N] returns of the plan with one unit (t,i) on instead[t,b,i], every unit a replay of its own."""
    T, B, N = plan.shape
    plans = plan.repeat(1, T * N, 1)
    for k, (t, i) in enumerate(brute.units(game)):
        plans[t, k * B : (k + 1) * B, i] = instead[t, :, i]
    again = (noise[0].repeat(T * N, 1), noise[1].repeat(T * N, 1, 1))
    return brute.frozen_return(game, again, plans).reshape(T, N, B).transpose(1, 2)


def errors_of(game: WalkingRobot, episode: Recording) -> Tensor:
    """[T,B,N] bool: a scheduled joint off its safe action, read from the schedule in the first state."""
    wrong = torch.zeros(episode.action.shape, dtype=torch.bool)
    for b, units in enumerate(episode.state.danger[0].tolist()):
        for unit in units:
            t, i = divmod(unit, game.n_agents)
            wrong[t, b, i] = int(episode.action[t, b, i]) != game.safe_action[i]
    return wrong


def first_error(errors: Tensor) -> Tensor:
    """[B] the earliest step with an error, T where there is none."""
    T = len(errors)
    return torch.where(errors.any(-1), torch.arange(T)[:, None], T).amin(0)


# Unit differences and shares against replays.


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_unit_differences_equal_replays(moments: Any) -> None:
    """The closed form of O8 is what one replay a unit finds, under the safe, hold, swing and mixed baselines."""
    for kappa, wobble in ((0.0, 0.0), (0.3, 0.7)):
        game = walk(moments, temptation=kappa, wobble=wobble)
        noise, episode = walked(game)
        swing = game.n_actions - 1
        for instead in (game.safe_action, (0,) * 3, (swing,) * 3, (swing, 1, 0)):
            baseline = torch.tensor(instead)
            fact = brute.frozen_return(game, noise, episode.action)
            found = fact[:, None] - replays(game, noise, episode.action, baseline.expand_as(episode.action))
            closed = game.unit_differences(episode, baseline)
            assert closed.dtype == torch.float64
            assert (closed - found).abs().max() < 1e-9


def test_replays_agree_with_the_plain_loop() -> None:
    """The batched replays of this file are those of tests/brute.py, one at a time."""
    game = walk((3, 2, 0, (5, 0)))
    noise, episode = walked(game, 6)
    baseline = torch.tensor([0, 2, 1])
    truth = brute.unit_differences(game, noise, episode.action, baseline)
    fact = brute.frozen_return(game, noise, episode.action)[:, None]
    found = fact - replays(game, noise, episode.action, baseline.expand_as(episode.action))
    assert (truth - found).abs().max() < 1e-12


def coalition_shapley(game: WalkingRobot, noise: tuple[Tensor, Tensor], plan: Tensor, base: Tensor) -> Tensor:
    """[T,1,N] sum over coalitions C without u of |C|! (n-|C|-1)! / n! (v(C+u) - v(C)) for one walk, all T N units."""
    T, _, N = plan.shape
    n = T * N
    member = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1 == 1
    plans = torch.where(member.T.reshape(T, N, -1).transpose(1, 2), plan, base)
    value = brute.frozen_return(game, (noise[0].expand(2**n, -1), noise[1].expand(2**n, -1, -1)), plans)
    size = member.sum(1)
    weight = torch.tensor([1 / (n * comb(n - 1, k)) for k in range(n)], dtype=torch.float64)
    shares = torch.zeros(n, dtype=torch.float64)
    for u in range(n):
        without = (~member[:, u]).nonzero()[:, 0]
        shares[u] = (weight[size[without]] * (value[without + 2**u] - value[without])).sum()
    return shares.reshape(T, 1, N)


TINY_WALKS: list[dict[str, Any]] = [
    {"n_agents": 2, "horizon": 4, "window": 3, "delay": 1, "n_decisive": 2},
    {"n_agents": 2, "horizon": 4, "window": 3, "delay": 0, "n_decisive": 3, "joints_per_moment": 2},
    {"n_agents": 2, "horizon": 5, "window": 3, "delay": 2, "n_decisive": 3, "joints_per_moment": 2, "decoys": 0},
    {"n_agents": 3, "horizon": 3, "window": 2, "delay": 1, "n_decisive": 1, "joints_per_moment": 2, "decoys": 2},
    {"n_agents": 1, "horizon": 8, "window": 4, "delay": 3, "n_decisive": 3, "stagger": 2, "n_actions": 2},
]


@pytest.mark.parametrize("knobs", TINY_WALKS, ids=range(len(TINY_WALKS)))
@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_unit_shapley_equals_all_coalitions(knobs: dict[str, Any], kappa: float) -> None:
    """The closed shares are those of 2^(T N) coalitions of units; they sum to G minus the return of the safe plan."""
    game = WalkingRobot(temptation=kappa, **knobs)
    safe = torch.tensor(game.safe_action)
    noise, episode = walked(game, 10)
    closed = game.unit_shapley(episode, safe)
    for b in range(10):
        one = noise[0][b : b + 1], noise[1][b : b + 1]
        truth = coalition_shapley(game, one, episode.action[:, b : b + 1], safe)
        assert (closed[:, b : b + 1] - truth).abs().max() < 1e-9
    whole = episode.reward.sum(0) - brute.frozen_return(game, noise, safe.expand_as(episode.action))
    assert (closed.sum((0, 2)) - whole).abs().max() < 1e-9


def test_coalitions_equal_permutations() -> None:
    """The coalition formula of this file is the mean over all orders, on a walk small enough for both."""
    game = WalkingRobot(2, 3, 1, 2, 2, 1, temptation=0.5)
    noise, episode = walked(game, 3, 4)
    safe = torch.tensor(game.safe_action)
    for b in range(3):
        one = noise[0][b : b + 1], noise[1][b : b + 1]
        plan = episode.action[:, b : b + 1]
        truth = brute.unit_shapley(game, one, plan, safe)
        assert (truth - coalition_shapley(game, one, plan, safe)).abs().max() < 1e-12


@pytest.mark.parametrize("moments", MOMENTS[-6:], ids=str)
def test_unit_shapley_is_the_airport_game(moments: Any) -> None:
    """kappa = 0: phi_(k) = -sum_{j >= k} (l_(j) - l_(j+1)) / j over errors by falling loss, l = (T-t-D)/T + P."""
    game = walk(moments, temptation=0.0, fall_penalty=0.7)
    _, episode = walked(game, 60)
    errors, T, D = errors_of(game, episode), game.horizon, game.delay
    closed = game.unit_shapley(episode, torch.tensor(game.safe_action))
    sizes = set()
    for b in range(60):
        units = errors[:, b].nonzero().tolist()  # in time order: by falling loss
        losses = [(T - t - D) / T + 0.7 for t, _ in units] + [0.0]
        truth = torch.zeros(T, 3, dtype=torch.float64)
        for k, (t, i) in enumerate(units):
            truth[t, i] = -sum((losses[j] - losses[j + 1]) / (j + 1) for j in range(k, len(units)))
        assert (closed[:, b] - truth).abs().max() < 1e-12
        sizes.add(len(units))
    assert len(sizes) > 2  # walks with no, one and several errors were met


def test_unit_shapley_of_another_baseline_is_refused() -> None:
    """Absent units that err themselves have no closed form; the sentence names both baselines."""
    game = walk((1, 1, 0, (5, 0)))
    _, episode = walked(game, 2)
    with pytest.raises(ValueError, match=r"no closed-form Shapley value for the baseline \[2, 2, 2\].*safe actions \["):
        game.unit_shapley(episode, torch.tensor([2, 2, 2]))


# The culprit.


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_replaying_every_change_finds_the_culprit(moments: Any) -> None:
    """Of all single changes (t, i, other action), only the culprit's save anything; of several culprits, nobody's.

    Where several erred at the first error step, the Shapley value shares the blame evenly among them.
    """
    game = walk(moments, temptation=0.0)
    noise, episode = walked(game, 40)
    errors, fact = errors_of(game, episode), brute.frozen_return(game, noise, episode.action)
    saved = torch.zeros(errors.shape, dtype=torch.bool)
    for shift in range(1, game.n_actions):
        other = (episode.action + shift) % game.n_actions
        saved |= replays(game, noise, episode.action, other) > fact[:, None] + 1e-12
    first = first_error(errors)
    at_first = errors & (torch.arange(game.horizon)[:, None] == first)[..., None]
    culprits = at_first.sum((0, 2))
    assert torch.equal(saved, at_first & (culprits == 1)[:, None])
    shares = game.unit_shapley(episode, torch.tensor(game.safe_action))
    for b in (culprits > 1).nonzero()[:, 0].tolist():
        blame = shares[:, b][at_first[:, b]]
        assert bool((blame < -1e-6).all()) and torch.allclose(blame, blame[:1].expand_as(blame))
    assert {0, 1} <= set(culprits.tolist())
    assert (game.joints_per_moment == 2) == bool((culprits > 1).any())


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_falls_exactly_delay_steps_after_the_error(moments: Any) -> None:
    """alive until t_c + D, where -P is paid; 1/T plus the swings before, nothing after; no error, no fall."""
    game = walk(moments, fall_penalty=0.9, temptation=0.2, wobble=1.0, observe_damage="all")
    _, episode = walked(game, 30)
    T, N = game.horizon, game.n_agents
    first = first_error(errors_of(game, episode))
    fall = torch.where(first < T, first + game.delay, T)
    steps = torch.arange(T)[:, None]
    assert torch.equal(episode.alive, steps <= fall)
    swings = (episode.action == game.n_actions - 1).sum(-1)
    paid = torch.where(steps < fall, 1 / T + 0.2 * swings.double() / (N * T), 0.0)
    paid[steps == fall] = -0.9
    assert (episode.reward - paid).abs().max() < 1e-12
    assert bool((fall == T).any()) and bool((fall < T).any())


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_surprise_under_the_potential_marks_the_error(moments: Any) -> None:
    """kappa = 0: r_t + V*(s_{t+1}) - V*(s_t) is -((T-t-D)/T + P) at the error that lights the fuse, 0 elsewhere."""
    game = walk(moments, temptation=0.0, fall_penalty=0.6)
    noise, episode = walked(game, 30)
    T, D = game.horizon, game.delay
    last = game.step(take_last(episode), episode.action[-1], noise[1][:, -1]).state
    now = game.optimal_value(flatten(episode.state)).reshape(T, -1)
    after = torch.cat((now[1:], game.optimal_value(last)[None]))
    surprise = episode.reward + after - now
    first = first_error(errors_of(game, episode))
    truth = torch.zeros_like(surprise)
    for b, t in enumerate(first.tolist()):
        if t < T:
            truth[t, b] = -((T - t - D) / T + 0.6)
    assert (surprise - truth).abs().max() < 1e-12


def test_nobody_beats_the_potential() -> None:
    """With temptation, V* is optimal: no action surprises upwards, and swinging where it is harmless not at all."""
    game = walk((3, 2, 0, (5, 3)), temptation=0.4)
    noise, episode = walked(game, 30)
    scheduled = torch.zeros(episode.action.shape, dtype=torch.bool)
    for b, units in enumerate(episode.state.danger[0].tolist()):
        for unit in units:
            scheduled[unit // 3, b, unit % 3] = True
    best = torch.where(scheduled, torch.tensor(game.safe_action), game.n_actions - 1)
    for plan in (episode.action, best):
        lived = brute.record(game, noise, plan)
        now = game.optimal_value(flatten(lived.state)).reshape(game.horizon, -1)
        surprise = lived.reward + torch.cat((now[1:], torch.zeros_like(now[:1]))) - now
        assert float(surprise.max()) < 1e-12
        assert (float(surprise.min()) > -1e-12) == (plan is best)


def take_last(episode: Recording) -> Any:
    """The state the last step began in."""
    return take(type(episode.state)(*(field[-1] for field in episode.state)), torch.arange(episode.action.shape[1]))


# What play earns.


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_the_script_earns_what_is_reachable(moments: Any) -> None:
    """Obeying danger cues, swinging otherwise, always earns `optimal_return` (with decoys `reachable_return`)."""
    game = walk(moments, temptation=0.3)
    noise = brute.noise_of(game, 20)
    state, total = game.reset(noise[0]), torch.zeros(20, dtype=torch.float64)
    for t in range(game.horizon):
        outcome = game.step(state, game.scripted_action(state), noise[1][:, t])
        state, total = outcome.state, total + outcome.reward
    best = game.optimal_return if game.reachable_return is None else game.reachable_return
    M, m, decoys, _ = moments
    assert best == pytest.approx(1 + 0.3 * (1 - (M * m + decoys) / (3 * 14)), abs=1e-12)
    assert (total - best).abs().max() < 1e-12
    assert (game.reachable_return is None) == (decoys == 0)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("moments", [(1, 1), (2, 1), (2, 2), (3, 1)], ids=str)
def test_random_return_equals_every_plan_of_every_schedule(moments: tuple[int, int], delay: int) -> None:
    """`random_return` is the mean over every plan and every equally likely schedule, to 1e-12."""
    M, m = moments
    game = WalkingRobot(2, 4, delay, 3, M, m, n_actions=2, temptation=0.7, fall_penalty=0.8)
    plans = brute.every_joint_action(game)
    orders = [torch.tensor(p).double() / 9 for p in permutations(range(3))]
    sides = [torch.tensor(p).double() / 9 for p in product((0, 1), (1, 0), repeat=M) if _each_differs(p)]
    means = []
    for steps, joints in product(orders, sides):
        reset = torch.cat((steps, joints, torch.zeros(2, dtype=torch.float64))).expand(plans.shape[1], -1)
        noise = reset, torch.zeros(plans.shape[1], 4, 2, dtype=torch.float64)
        means.append(brute.frozen_return(game, noise, plans).mean())
    assert game.random_return == pytest.approx(float(torch.stack(means).mean()), abs=1e-12)


def _each_differs(order: tuple[int, ...]) -> bool:
    """Each moment's two joints got different ranks."""
    return all(order[k] != order[k + 1] for k in range(0, len(order), 2))


def test_random_play_falls_as_often_as_declared() -> None:
    """1 - A^(-M m), and the mean return within four standard errors of `random_return`."""
    game = WalkingRobot(4, 30, 10, 8, 2, 2, n_cues=3, decoys=3)
    lived = rollout(game, episodes=4000, dtype=torch.float64)
    chance = 1 - 3.0**-4
    fallen = lived.done[-1].double()
    assert abs(float(fallen.mean()) - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5
    returns = lived.reward.sum(0)
    assert abs(float(returns.mean()) - game.random_return) < 4 * float(returns.std()) / 4000**0.5


# Layout, cues, and who sees what.


def test_layout_is_balanced_and_dealt_by_its_seed() -> None:
    """Each danger cue and safe action equally often, the swing never safe; another seed deals them otherwise."""
    layouts = set()
    for layout_seed in range(4):
        game = WalkingRobot(12, n_cues=4, n_actions=4, layout_seed=layout_seed)
        assert sorted(game.danger_cue) == sorted(list(range(4)) * 3)
        assert sorted(game.safe_action) == sorted(list(range(3)) * 4)
        layouts.add((game.danger_cue, game.safe_action))
    assert len(layouts) == 4
    assert WalkingRobot(12, safe="hold").safe_action == (0,) * 12


def test_cues_warn_exactly_where_they_should() -> None:
    """Danger shows at scheduled units and decoys, nowhere else; the schedule has M steps of m joints in the window."""
    game = walk((3, 2, 4, (5, 0)))
    _, episode = walked(game, 50)
    N = game.n_agents
    warned = episode.state.cue == torch.tensor(game.danger_cue)
    for b in range(50):
        real, false = episode.state.danger[0, b].tolist(), episode.state.decoy[0, b].tolist()
        assert len(set(real + false)) == 3 * 2 + 4 and max(real + false) < game.window * N
        steps = [unit // N for unit in real]
        assert sorted(steps.count(t) for t in set(steps)) == [2, 2, 2]
        shown = {t * N + i for t, i in warned[:, b].nonzero().tolist()}
        assert shown == set(real + false)
    others = torch.stack([(episode.state.cue == c).float().mean() for c in range(3)])
    assert bool((others > 0.2).all())  # all cues occur


def test_actions_never_move_the_cues() -> None:
    """Two plans on one noise meet the same cues until one of them panics."""
    game = walk((3, 1, 4, (5, 3)), wobble=1.0)
    noise, one = walked(game)
    two = brute.record(game, noise, careless_plan(game, 24, 9))
    assert torch.equal(one.state.cue, two.state.cue) and not torch.equal(one.state.wobble, two.state.wobble)


def test_panic_shows_in_the_last_stagger_steps_only() -> None:
    """With stagger h the extra cue symbol is seen by all joints exactly while 1..h steps are left before the fall."""
    game = walk((1, 1, 0, (5, 3)))
    _, episode = walked(game)
    T = game.horizon
    panic = game.observe(flatten(episode.state)).reshape(T, 24, 3, -1)[..., game.n_cues] == 1
    fall = first_error(errors_of(game, episode)) + game.delay
    left = fall - torch.arange(T)[:, None]
    expected = (left >= 1) & (left <= 3) & (fall < T + game.delay)
    assert torch.equal(panic, expected[..., None].expand_as(panic)) and bool(panic.any())


@pytest.mark.parametrize(("who", "actors", "critic"), [("none", 0, 0), ("critic", 0, 2), ("all", 2, 2)])
def test_damage_is_seen_by_whom_it_should(who: str, actors: int, critic: int) -> None:
    """The fuse adds two features, lit and steps left / D, to the views that may have it and to no other."""
    game = walk((1, 1, 0, (5, 0)), observe_damage=who)
    plain = walk((1, 1, 0, (5, 0)))
    assert game.obs_size == plain.obs_size + actors and game.critic_size == plain.critic_size + critic
    _, episode = walked(game)
    flat = flatten(episode.state)
    views = [game.critic_view(flat)] * (critic > 0) + [game.observe(flat)[:, 0]] * (actors > 0)
    for view in views:
        assert torch.equal(view[:, -2] == 1, flat.fuse >= 0)
        assert torch.allclose(view[:, -1] * 5, flat.fuse.clamp(min=0).double())
    assert torch.equal(game.observe(flat)[..., : plain.obs_size], plain.observe(flat))


def test_wobble_follows_its_rule_and_hides_at_zero() -> None:
    """w' = .8 w + #swings/N + .3 eps, shown scaled by the knob; with 0 it is neither state that moves nor seen."""
    game, calm = walk((1, 1, 0, (5, 0)), wobble=2.0), walk((1, 1, 0, (5, 0)))
    noise, episode = walked(game)
    w = torch.zeros(24, dtype=torch.float64)
    for t in range(game.horizon):
        assert (episode.state.wobble[t] - w).abs().max() < 1e-12
        swings = (episode.action[t] == game.n_actions - 1).double().sum(-1)
        w = 0.8 * w + swings / 3 + 0.3 * (noise[1][:, t, 3] - 0.5)
    seen = game.observe(flatten(episode.state))[:, 0, -1]
    assert torch.allclose(seen, 2.0 * episode.state.wobble.flatten())
    assert game.obs_size == calm.obs_size + 1 and calm.step_noise_size == 3
    assert not walked(calm)[1].state.wobble.any()


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"n_agents": 0}, "n_agents=0 is not allowed; it must be a whole number, 1 or more"),
        ({"horizon": 2.5}, "horizon=2.5 is not allowed; it must be a whole number, 1 or more"),
        ({"delay": 100}, "delay=100 is not allowed; it must be a whole number in 0..99"),
        ({"delay": -1}, "delay=-1 is not allowed; it must be a whole number in 0..99"),
        ({"delay": 90}, "window=20 is not allowed; it must be at most horizon - delay = 10, so that a fall fits"),
        ({"window": True}, "window=True is not allowed; it must be a whole number, 1 or more"),
        ({"n_decisive": 21}, "n_decisive=21 is not allowed; it must be at most window = 20, one moment a step"),
        ({"joints_per_moment": 7}, "joints_per_moment=7 is not allowed; it must be a whole number in 1..6"),
        ({"n_cues": 1}, "n_cues=1 is not allowed; it must be a whole number, 2 or more"),
        ({"n_actions": "3"}, "n_actions='3' is not allowed; it must be a whole number, 2 or more"),
        ({"temptation": -0.1}, "temptation=-0.1 is not allowed; it must be a number, 0 or more"),
        ({"fall_penalty": float("nan")}, "fall_penalty=nan is not allowed; it must be a number, 0 or more"),
        ({"wobble": float("inf")}, "wobble=inf is not allowed; it must be a number, 0 or more"),
        ({"stagger": 40}, "stagger=40 is not allowed; it must be 0, or below delay = 40"),
        (
            {"decoys": 120},
            "decoys=120 is not allowed; it must be at most window * n_agents - n_decisive * joints_per_moment = 119",
        ),
        ({"observe_damage": "me"}, "observe_damage='me' is not allowed; it must be one of none, critic, all"),
        ({"safe": "swing"}, "safe='swing' is not allowed; it must be one of balanced, hold"),
        ({"layout_seed": -1}, "layout_seed=-1 is not allowed; it must be a whole number, 0 or more"),
    ],
)
def test_bad_knobs_get_one_sentence(knobs: dict[str, Any], sentence: str) -> None:
    """The knob, its value, and what is allowed."""
    with pytest.raises(KnobError) as refused:
        WalkingRobot(**knobs)
    assert str(refused.value) == f"WalkingRobot: {sentence}"


def test_edges_are_allowed() -> None:
    """The ends of every range: a one-step walk, a full schedule, the longest delay and stagger, room for all decoys."""
    for knobs in (
        {"n_agents": 1, "horizon": 1, "delay": 0, "window": 1},
        {"n_agents": 2, "horizon": 6, "delay": 5, "window": 1, "stagger": 4},
        {"n_agents": 2, "horizon": 6, "delay": 0, "window": 6, "n_decisive": 6, "joints_per_moment": 2},
        {"n_agents": 2, "horizon": 6, "delay": 2, "window": 4, "decoys": 7},
    ):
        game = WalkingRobot(**knobs)
        lived = play(game, uniform_policy(3), draw_noise(game, torch.zeros(9).long(), torch.arange(9)))
        assert bool(lived.reward.isfinite().all())


def test_every_pair_of_moments_is_possible() -> None:
    """No step of the window and no joint is favoured: all pairs of decisive steps, all joints, about equally often."""
    game = WalkingRobot(3, 14, 5, 4, 2, 1)
    noise = draw_noise(game, torch.zeros(6000).long(), torch.arange(6000))
    danger = game.reset(noise.reset).danger
    pairs = [tuple(sorted(row)) for row in (danger // 3).tolist()]
    for pair in combinations(range(4), 2):
        assert abs(pairs.count(pair) / 6000 - 1 / 6) < 0.02
    for joint in range(3):
        assert abs(float((danger % 3 == joint).float().mean()) - 1 / 3) < 0.02
