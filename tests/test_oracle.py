"""The truth is true: replays, closed forms and brute force agree, and means over luck are what induction says."""

from __future__ import annotations

from itertools import product
from typing import Any

import brute
import pytest
import torch
from tiny_mdp import (
    MaskedTiny,
    TinyMdp,
    acting,
    every_noise,
    given_joint,
    given_own,
    joint_index,
    lopsided,
    solve,
    true_gradient,
)
from tiny_mdp import expected_gradient as expected
from torch import Tensor

from envs.base import Env, HasActionMask, HasUnitDifferences, HasUnitShapley, map_state, take
from envs.el_farol import ElFarol
from envs.matrix_game import MatrixGame
from envs.walking_robot import WalkingRobot
from marl.oracle import KINDS, baseline_of, natural_baseline, oracle
from marl.oracle.closed import unit_difference
from marl.oracle.sampled import agent_total, frozen_unit, unit_effect
from marl.policy import Actor
from marl.rollout import Simulator, play, rollout, sample
from marl.types import Policy, Trajectory

ROBOT = WalkingRobot(3, 12, 4, 5, 2, 2, n_cues=3, decoys=2, stagger=2, temptation=0.3)
GAMES: list[Env[Any]] = [
    ROBOT,
    WalkingRobot(2, 8, 0, 5, 3, 1, temptation=0.3),
    ElFarol(5, 2, 2.0),
    MatrixGame("two_step"),
    MatrixGame("climbing"),
    TinyMdp(3, 4, ends=0.3),
    MaskedTiny(),
    TinyMdp(1, 4),
]
every_game = pytest.mark.parametrize("game", GAMES, ids=repr)


def lived(game: Env[Any], episodes: int = 6) -> tuple[Actor, Trajectory]:
    """Episodes of a policy that reads what it sees and is far from uniform."""
    actor = Actor(game, (0,)).double()
    with torch.no_grad():
        for p in actor.parameters():
            p.mul_(3.0 if p is not actor.net.weights[-1] else 200.0)
    return actor, rollout(game, actor, episodes, dtype=torch.float64)


def relive(game: Env[Any], tau: Trajectory, b: int, t: int, plan: dict[int, Tensor], policy: Policy | None) -> Any:
    """(return from t, live steps) of episode b alone: planned joint actions, else recorded, or by the policy."""
    state, total, steps = take(map_state(lambda x: x[t], tau.state), torch.tensor([b])), 0.0, 0
    for u in range(t, game.horizon):
        if u in plan:
            action = plan[u][None]
        elif policy is None:
            action = tau.action[u, b][None]
        else:
            mask = game.action_mask(state) if isinstance(game, HasActionMask) else None
            action = sample(policy(game.observe(state), mask), tau.policy_noise[u, b][None])
        outcome = game.step(state, action, tau.noise[u, b][None])
        total, steps, state = total + float(outcome.reward), steps + 1, outcome.state
        if bool(outcome.done):
            break
    return total, steps


def live_units(tau: Trajectory) -> list[tuple[int, int, int]]:
    T, B, N = tau.action.shape
    return [(t, b, i) for t, b, i in product(range(T), range(B), range(N)) if bool(tau.alive[t, b])]


# Replays against single lives.


@every_game
def test_unit_effect_equals_single_lives(game: Env[Any]) -> None:
    """O6 = G_t minus its mean over c ~ pi_i, same luck, all reacting; and the simulator's bill is counted by hand."""
    actor, tau = lived(game)
    truth, steps = torch.zeros(tau.action.shape, dtype=torch.float64), 0
    for t, b, i in live_units(tau):
        fact = float(tau.reward[t:, b].sum())
        for c in range(game.n_actions):
            own = c == int(tau.action[t, b, i])
            if own or (tau.mask is not None and not bool(tau.mask[t, b, i, c])):
                if not own:  # a forbidden action is never lived; the fact takes its place, and weighs nothing
                    steps += relive(game, tau, b, t, {}, actor)[1]
                continue
            joint = tau.action[t, b].clone()
            joint[i] = c
            total, spent = relive(game, tau, b, t, {t: joint}, actor)
            truth[t, b, i] += float(tau.probs[t, b, i, c]) * (fact - total)
            steps += spent
    found = oracle(game, actor, tau, "O6")
    assert (found.values - truth).abs().max() < 1e-9
    assert found.cost == steps
    assert not found.values[~tau.alive].any() and not found.error.any()


@every_game
@pytest.mark.parametrize("baseline", [0, 1], ids=["all 0", "mixed"])
def test_frozen_unit_equals_closed_form_and_single_lives(game: Env[Any], baseline: int) -> None:
    """O8 simulated = O8 closed = one episode lived alone a unit; costs by hand (a closed form pays for L (L+1) / 2)."""
    _, tau = lived(game)
    named = [(k * baseline) % game.n_actions for k in range(game.n_agents)]
    truth, steps = torch.zeros(tau.action.shape, dtype=torch.float64), 0
    for t, b, i in live_units(tau):
        joint = tau.action[t, b].clone()
        joint[i] = named[i]
        total, spent = relive(game, tau, b, t, {t: joint}, None)
        truth[t, b, i] = float(tau.reward[t:, b].sum()) - total
        steps += spent
    simulated, closed = oracle(game, None, tau, "O8 simulated", named), oracle(game, None, tau, "O8", named)
    assert (simulated.values - truth).abs().max() < 1e-9 and (closed.values - truth).abs().max() < 1e-9
    assert simulated.cost == steps
    length = tau.alive.sum(0)
    replaced = int((length * (length + 1) // 2).sum()) * game.n_agents
    assert closed.cost == (replaced if isinstance(game, HasUnitDifferences) else steps)
    assert not simulated.values[~tau.alive].any() and not closed.values[~tau.alive].any()


@every_game
def test_agent_total_equals_single_lives(game: Env[Any]) -> None:
    """O7 = G - G with agent i on its baseline throughout, the others frozen; the same number at all its live steps."""
    _, tau = lived(game)
    found, steps = oracle(game, None, tau, "O7", "default"), 0
    default = [game.default_action] * game.n_agents if isinstance(game.default_action, int) else game.default_action
    for b, i in product(range(6), range(game.n_agents)):
        plan = tau.action[:, b].clone()
        plan[:, i] = default[i]
        total, spent = relive(game, tau, b, 0, dict(enumerate(plan)), None)
        steps += spent
        gap = float(tau.reward[:, b].sum()) - total
        assert (found.values[:, b, i] - gap * tau.alive[:, b].double()).abs().max() < 1e-9
    assert found.cost == steps


@pytest.mark.parametrize("game", [g for g in GAMES if isinstance(g, HasUnitShapley)], ids=repr)
def test_oracle_shapley_conserves(game: Any) -> None:
    """Shares of all units, those after an early end included, sum to G minus the baseline plan's."""
    _, tau = lived(game, 30)
    baseline = baseline_of(game, natural_baseline(game))
    found, shares = oracle(game, None, tau, "O8 Shapley").values, game.unit_shapley(tau, baseline)
    assert torch.equal(found, shares)
    idle = torch.stack([relive_total(game, tau, b, baseline) for b in range(30)])
    assert (shares.sum((0, 2)) - (tau.reward.sum(0) - idle)).abs().max() < 1e-9


def relive_total(game: Env[Any], tau: Trajectory, b: int, baseline: Tensor) -> Tensor:
    """Return of the plan in which everyone is on the baseline throughout."""
    return torch.tensor(
        relive(game, tau, b, 0, dict.fromkeys(range(game.horizon), baseline), None)[0], dtype=torch.float64
    )


@every_game
def test_doing_what_was_done_makes_no_difference_at_all(game: Env[Any]) -> None:
    """A unit that is on the baseline already is worth exactly 0, not a rounding error, simulated or closed."""
    _, tau = lived(game, 20)
    named = tau.action[0, 0].tolist()
    same = tau.action == tau.action[0, 0]
    assert not oracle(game, None, tau, "O8 simulated", named).values[same].any()
    assert oracle(game, None, tau, "O8", named).values[same].abs().max() < 1e-12


def test_a_plain_loop_agrees() -> None:
    """`relive` itself is what tests/brute.py finds: two independent brute forces."""
    game = WalkingRobot(2, 6, 2, 4, 2, 1, temptation=0.3)
    noise, plan = brute.noise_of(game, 3), brute.random_plan(game, 3)
    truth = brute.unit_differences(game, noise, plan, torch.tensor([1, 0]))
    recorded = brute.record(game, noise, plan)
    tau = rollout(game, None, 3, dtype=torch.float64)._replace(**recorded._asdict())
    for t, b, i in live_units(tau):
        joint = plan[t, b].clone()
        joint[i] = (1, 0)[i]
        total, _ = relive(game, tau, b, t, {t: joint}, None)
        assert float(recorded.reward[t:, b].sum()) - total == pytest.approx(float(truth[t, b, i]), abs=1e-12)


# Means over luck.


@pytest.mark.parametrize("game", [TinyMdp(), TinyMdp(3, 2), TinyMdp(2, 2, 3, seed=4)], ids=repr)
def test_unit_effect_averages_to_the_advantages(game: TinyMdp) -> None:
    """E[O6 | s, a] = O4, E[O4 | s, a_i] = O3 and E[O6 | s, a_i] = O3, over everything chance can bring, to 1e-12."""
    table = lopsided(game)
    policy, exact = acting(game, table), solve(game, table)
    tau = play(game, policy, every_noise(game))
    effect = unit_effect(Simulator(game), policy, tau)
    o4, o3 = given_joint(game, table, exact.q), given_own(game, table, exact)
    j = joint_index(game, tau.action)
    spread = 0.0
    for t, s in product(range(game.horizon), range(game.n_places)):
        here = tau.alive[t] & (tau.state.place[t] == s)
        for k in range(len(game.joints)):
            group = effect[t, here & (j[t] == k)]
            assert (group.mean(0) - o4[t, s, k]).abs().max() < 1e-12
            spread = max(spread, float(group.std(0).max()))
        for i, c in product(range(game.n_agents), range(game.n_actions)):
            rows = here & (tau.action[t, :, i] == c)
            assert abs(float(effect[t, rows, i].mean() - o3[t, s, i, c])) < 1e-12
            assert abs(float(o4[t, s, j[t, rows], i].mean() - o3[t, s, i, c])) < 1e-12
    assert spread > 0.1  # single values are not their mean: they tell what caused this episode
    gradient = expected(game, table, tau, effect)
    assert (gradient - true_gradient(game, table)).abs().max() < 1e-12


def test_the_ledger_balances() -> None:
    """G_0 - V(s_0) = sum_t (Q - V)(s_t, a_t) + luck_t; luck_t = r_t + V(s_{t+1}) - Q(s_t, a_t) averages to 0."""
    game = TinyMdp()
    table = lopsided(game)
    exact = solve(game, table)
    tau = play(game, acting(game, table), every_noise(game))
    t = torch.arange(3)[:, None]
    q, v = exact.q[t, tau.state.place, joint_index(game, tau.action)], exact.v[t, tau.state.place]
    after = torch.cat((v[1:], torch.zeros_like(v[:1]))) * ~tau.done
    luck = (tau.reward + after - q) * tau.alive
    whole = ((q - v) * tau.alive + luck).sum(0)
    assert (tau.reward.sum(0) - v[0] - whole).abs().max() < 1e-12
    assert luck.mean(1).abs().max() < 1e-12 and float(luck.abs().max()) > 0.1


def test_exact_values_are_means_of_returns() -> None:
    """The induction of tests/tiny_mdp.py is right: V and Q are mean returns of the listed futures; its gradient too."""
    game = TinyMdp(seed=2)
    table = lopsided(game, 3)
    exact = solve(game, table)
    tau = play(game, acting(game, table), every_noise(game))
    to_go, j = tau.reward.flip(0).cumsum(0).flip(0), joint_index(game, tau.action)
    for t, s in product(range(3), range(3)):
        here = tau.alive[t] & (tau.state.place[t] == s)
        assert float(to_go[t, here].mean() - exact.v[t, s]) == pytest.approx(0, abs=1e-12)
        for k in range(4):
            assert float(to_go[t, here & (j[t] == k)].mean() - exact.q[t, s, k]) == pytest.approx(0, abs=1e-12)
    logits, step = table.log(), 1e-5
    for index in ((0, 1, 0, 1), (2, 2, 1, 0)):
        up, down = logits.clone(), logits.clone()
        up[index] += step
        down[index] -= step
        slope = (solve(game, up.softmax(-1)).start - solve(game, down.softmax(-1)).start) / (2 * step)
        assert float(true_gradient(game, table)[index] - slope) == pytest.approx(0, abs=1e-9)


# What an oracle says of itself.


def test_definitions_name_what_was_held_fixed() -> None:
    """Every answer carries its definition with the baseline, and its cost in steps."""
    tau = rollout(ROBOT, None, 3, dtype=torch.float64)
    for kind, words in {
        "O6": ("everyone reacting", "same noise", "inverse CDF"),
        "O7": ("throughout", "frozen"),
        "O8": ("frozen", "baseline safe"),
        "O8 simulated": ("replays", "baseline safe"),
        "O8 Shapley": ("Shapley", "baseline safe"),
    }.items():
        said = oracle(ROBOT, None, tau, kind).definition
        assert all(word in said for word in words), said
    assert set(KINDS) == {"O6", "O7", "O8", "O8 simulated", "O8 Shapley"}
    assert oracle(ROBOT, None, tau, "O8", "default").definition.endswith("baseline default")
    assert oracle(ElFarol(), None, rollout(ElFarol(), None, 3), "O8").definition.endswith("baseline default")


@pytest.mark.parametrize(
    ("game", "kind", "baseline", "words"),
    [
        (ROBOT, "O9", None, "there is no oracle 'O9'; the oracles are: O6, O7, O8, O8 simulated, O8 Shapley"),
        (ElFarol(3), "O8", "safe", "baseline='safe' is not allowed; it must be 'default' or 3 actions"),
        (ROBOT, "O8", "hold", "baseline='hold' is not allowed; it must be 'default', 'safe' or 3 actions"),
        (ROBOT, "O8", [0, 1], r"baseline=\[0, 1\] is not allowed; it must be 'default', 'safe' or 3 actions"),
        (TinyMdp(), "O8 Shapley", None, "TinyMdp knows no closed form of the Shapley value over units"),
        (ROBOT, "O8 Shapley", "default", "no closed-form Shapley value for the baseline"),
    ],
)
def test_refusals_are_one_sentence(game: Env[Any], kind: str, baseline: Any, words: str) -> None:
    """An unknown oracle or baseline, or a closed form that does not exist."""
    tau = rollout(game, None, 2)
    with pytest.raises(ValueError, match=words) as refused:
        oracle(game, None, tau, kind, baseline)
    assert "\n" not in str(refused.value)


def test_closed_forms_step_aside_where_they_do_not_hold() -> None:
    """A game that refuses a baseline is simulated, and charged for the simulation."""

    class Picky(MatrixGame):
        def unit_differences(self, episode: Any, baseline: Tensor) -> Tensor:
            raise ValueError("no closed form for this baseline")

    game = Picky("two_step")
    tau = rollout(game, None, 20, dtype=torch.float64)
    asked, simulated = Simulator(game), Simulator(game)
    found = unit_difference(asked, tau, torch.tensor([1, 0]))
    assert torch.equal(found, frozen_unit(simulated, tau, torch.tensor([1, 0])))
    assert int(asked.steps) == int(simulated.steps) > 0


def test_costs_are_counted_per_seed() -> None:
    """A closed form and a replay charge each seed for its own episodes."""
    tau = rollout(ROBOT, None, 5, [0, 1], dtype=torch.float64)
    baseline = torch.tensor(ROBOT.safe_action)
    for ask in (unit_difference, agent_total):
        both, alone = Simulator(ROBOT, 2), []
        ask(both, tau, baseline)
        for s in range(2):
            one = Simulator(ROBOT)
            ask(one, rollout(ROBOT, None, 5, [s], dtype=torch.float64), baseline)
            alone += one.steps.tolist()
        assert both.steps.tolist() == alone
