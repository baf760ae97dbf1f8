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
from marl.oracle import KINDS, baseline_of, natural_baseline, oracle, ways
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
LONG = WalkingRobot()
every_game = pytest.mark.parametrize("game", GAMES, ids=repr)


class Stranger(TinyMdp):
    """A game that is stepped one episode at a time and keeps its luck to itself."""

    counterfactuals: str | None = "copy"
    why = "deep copies of it continue exactly as the original"


class Bolted(Stranger):
    """... and cannot be taken back."""

    counterfactuals = None
    why = "two games with the same seed differed"


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
    """Every answer carries its definition with the baseline, and how it was had."""
    tau = rollout(ROBOT, None, 3, dtype=torch.float64)
    said = {
        "O1 difference": ("same state and noise", "baseline safe"),
        "O1 aristocrat": ("mean over a_it", "same state and noise"),
        "O1 Shapley": ("Shapley", "all 8 coalitions", "baseline safe"),
        "O2": ("Q(s,a) - V(s)", "sampled, 2 replays with fresh noise"),
        "O3": ("teammates", "sampled, 2 replays with fresh noise"),
        "O4": ("given teammates' actions", "sampled, 2 replays with fresh noise"),
        "O5": ("ledger", "sampled, 2 replays with fresh noise, one order each"),
        "O6": ("everyone reacting", "same noise", "inverse CDF"),
        "O7": ("throughout", "frozen", "baseline safe"),
        "O7 reacting": ("throughout", "reacting", "inverse CDF", "baseline safe"),
        "O8": ("frozen", "closed form", "baseline safe"),
        "O8 simulated": ("replays", "baseline safe"),
        "O8 Shapley": ("Shapley", "closed form", "baseline safe"),
    }
    for kind, words in said.items():
        definition = oracle(ROBOT, None, tau, kind, replays=2).definition
        assert all(word in definition for word in (kind.split()[0], *words)), definition
    assert set(KINDS) == {*said, "O3 observed"}
    assert oracle(ROBOT, None, tau, "O8", "default").definition.endswith("baseline default")
    assert "by replays with the recorded noise" in oracle(ROBOT, None, tau, "O8", how="exact").definition
    assert oracle(ElFarol(), None, rollout(ElFarol(), None, 3), "O8").definition.endswith("baseline default")
    bar = ElFarol(3, 2, 2.0)
    assert "exact by enumeration" in oracle(bar, None, rollout(bar, None, 3), "O5").definition


@pytest.mark.parametrize(
    ("game", "kind", "baseline", "words"),
    [
        (
            ROBOT,
            "O9",
            None,
            "there is no oracle 'O9'; the oracles are: O1 difference, O1 aristocrat, O1",
        ),
        (ElFarol(3), "O8", "safe", "baseline='safe' is not allowed; it must be 'default' or 3 actions"),
        (ROBOT, "O8", "hold", "baseline='hold' is not allowed; it must be 'default', 'safe' or 3 actions"),
        (ROBOT, "O8", [0, 1], r"baseline=\[0, 1\] is not allowed; it must be 'default', 'safe' or 3 actions"),
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


# One door: what is possible, and how it is had.


@pytest.mark.parametrize(
    ("game", "kind", "asked", "words"),
    [
        (
            ElFarol(3),
            "O4",
            {"how": "brute"},
            "how='brute' is not allowed; it must be one of auto, closed",
        ),
        (
            ElFarol(3),
            "O4",
            {"how": "closed"},
            "O4 of ElFarol cannot be had with how='closed'; possible are: auto",
        ),
        (
            TinyMdp(),
            "O8",
            {"how": "closed"},
            "O8 of TinyMdp cannot be had with how='closed'; possible are: auto",
        ),
        (ROBOT, "O3 observed", {"how": "sampled"}, "O3 observed of WalkingRobot .* possible are: auto, exact$"),
        (
            Stranger(),
            "O4",
            {"how": "exact"},
            "O4 of Stranger cannot be had with how='exact'; possible are: auto, sampled",
        ),
        (LONG, "O3", {"how": "exact", "memory": 1 << 20}, "is too large to be listed state by state"),
        (
            ROBOT,
            "O8 Shapley",
            {"baseline": "default", "how": "closed"},
            "no closed-form Shapley value for the baseline",
        ),
        (ROBOT, "O8 Shapley", {"how": "exact"}, "exact to 12 units off the baseline, and an episode has 2"),
        (ROBOT, "O3", {"replays": 1}, "replays=1 is not allowed; it must be a whole number, 2 or more"),
        (ROBOT, "O3", {"memory": 0}, "memory=0 is not allowed; it must be a whole number, 1 or more"),
    ],
)
def test_impossible_requests_say_what_is_possible(game: Env[Any], kind: str, asked: dict[str, Any], words: str) -> None:
    """One sentence, with what this kind of truth can be had by in this game."""
    tau = rollout(game, None, 2)
    with pytest.raises(ValueError, match=words) as refused:
        oracle(game, None, tau, kind, **asked)
    assert "\n" not in str(refused.value)


def test_a_policy_that_did_not_play_is_refused() -> None:
    """Episodes of one policy judged under another: the truth would be about other episodes."""
    actor, tau = lived(ROBOT)
    for kind in ("O2", "O3", "O4", "O5", "O6", "O7 reacting"):
        with pytest.raises(ValueError, match=r"the policy did not play this trajectory: .* give the behaviour policy"):
            oracle(ROBOT, None, tau, kind)
    oracle(ROBOT, None, tau, "O7")  # nobody reacts
    with pytest.raises(ValueError, match="the policy serves 4 seeds, and 6 episodes are no multiple of that"):
        oracle(ROBOT, Actor(ROBOT, range(4)), tau, "O6")
    assert oracle(ROBOT, actor, tau, "O6").cost > 0


def test_ways_are_the_ways_there_are() -> None:
    """`ways` lists what then works, best first; auto takes the first."""
    bar, tau = ElFarol(3, 2, 2.0), rollout(ElFarol(3, 2, 2.0), None, 4, dtype=torch.float64)
    assert ways(bar, "O8") == ("closed", "exact", "sampled") and ways(bar, "O3 observed") == ("exact",)
    for kind in KINDS:
        answers = [oracle(bar, None, tau, kind, how=how, replays=3) for how in ("auto", *ways(bar, kind))]
        assert answers[0].definition == answers[1].definition
        assert torch.equal(answers[0].values, answers[1].values)
        assert all(answer.values.shape == answer.error.shape == tau.action.shape for answer in answers)


def test_games_from_outside_are_judged_given_the_noise() -> None:
    """O4 is one replay of each action with the recorded luck; means over luck that cannot be drawn are refused."""
    game = Stranger(2, 3)
    table = lopsided(game)
    policy = acting(game, table)
    tau = rollout(game, policy, 6, dtype=torch.float64)
    found, effect = oracle(game, policy, tau, "O4"), oracle(game, policy, tau, "O6")
    assert torch.equal(found.values, effect.values) and found.cost == effect.cost and not found.error.any()
    assert "given the noise" in found.definition and "given the noise" in effect.definition
    for kind in ("O1 difference", "O1 aristocrat", "O1 Shapley", "O7", "O7 reacting", "O8", "O8 Shapley"):
        assert "given the noise" in oracle(game, policy, tau, kind).definition
    for kind in ("O2", "O3", "O3 observed", "O5"):
        with pytest.raises(ValueError, match=rf"{kind} is a mean over luck drawn anew .*: O1 difference, .* O4, O6"):
            oracle(game, policy, tau, kind)
    with pytest.raises(ValueError, match="O6 needs counterfactuals, which Bolted cannot give: two games"):
        oracle(Bolted(2, 3), policy, tau, "O6")


# Replays of other kinds.


@every_game
def test_reacting_total_equals_single_lives(game: Env[Any]) -> None:
    """O7 reacting: agent i on its baseline throughout, the others doing what the policy makes of the same luck."""
    actor, tau = lived(game, 4)
    named = [(i + 1) % game.n_actions for i in range(game.n_agents)]
    found, steps = oracle(game, actor, tau, "O7 reacting", named), 0
    for b, i in product(range(4), range(game.n_agents)):
        state, total = take(map_state(lambda x: x[0], tau.state), torch.tensor([b])), 0.0
        for t in range(game.horizon):
            mask = game.action_mask(state) if isinstance(game, HasActionMask) else None
            action = sample(actor(game.observe(state), mask), tau.policy_noise[t, b][None])
            action[:, i] = named[i]
            outcome = game.step(state, action, tau.noise[t, b][None])
            total, steps, state = total + float(outcome.reward), steps + 1, outcome.state
            if bool(outcome.done):
                break
        gap = float(tau.reward[:, b].sum()) - total
        assert (found.values[:, b, i] - gap * tau.alive[:, b].double()).abs().max() < 1e-9
    assert found.cost == steps


@every_game
def test_rewards_of_one_step(game: Env[Any]) -> None:
    """O1 difference and aristocrat against single steps; one step for every live unit and other action."""
    _, tau = lived(game, 5)
    named = [(i + 1) % game.n_actions for i in range(game.n_agents)]
    difference, aristocrat = (oracle(game, None, tau, f"O1 {kind}", named) for kind in ("difference", "aristocrat"))
    gaps = torch.zeros(*tau.action.shape, game.n_actions, dtype=torch.float64)
    for t, i, c in product(range(game.horizon), range(game.n_agents), range(game.n_actions)):
        action = tau.action[t].clone()
        action[:, i] = c
        state = map_state(lambda x, t=t: x[t], tau.state)
        gaps[t, :, i, c] = (tau.reward[t] - game.step(state, action, tau.noise[t]).reward) * tau.alive[t]
    for i, c in enumerate(named):
        assert (difference.values[..., i] - gaps[..., i, c]).abs().max() < 1e-9
    assert (aristocrat.values - (tau.probs * gaps).sum(-1)).abs().max() < 1e-9
    live = int(tau.alive.sum()) * game.n_agents
    assert difference.cost == live and aristocrat.cost == live * (game.n_actions - 1)


# Prices.


def test_costs_are_the_formulas_of_the_design() -> None:
    """Steps of every kind where nobody dies, in B, T, N, A, M replays and u units off the baseline."""
    B, T, N, A, M = 5, 4, 3, 3, 7
    game = TinyMdp(N, T, A, ends=0.0)
    tau = rollout(game, None, B, dtype=torch.float64)
    ahead = T * (T + 1) // 2
    units = (tau.action != torch.tensor(game.default_action)).flatten(2).sum((0, 2)).tolist()
    formulas = {
        ("O1 difference", "exact"): B * T * N,
        ("O1 aristocrat", "exact"): B * T * N * (A - 1),
        ("O1 Shapley", "exact"): B * T * 2**N,
        ("O1 Shapley", "sampled"): M * B * T * 2 * N,
        ("O2", "sampled"): M * B * 2 * ahead,
        ("O3", "sampled"): M * B * (1 + N * (A - 1)) * ahead,
        ("O4", "sampled"): M * B * (1 + N * (A - 1)) * ahead,
        ("O5", "sampled"): M * B * (N + 1) * ahead,
        ("O6", "exact"): B * N * (A - 1) * ahead,
        ("O7", "exact"): B * N * T,
        ("O7 reacting", "exact"): B * N * T,
        ("O8", "exact"): B * N * ahead,
        ("O8 Shapley", "exact"): T * sum(2**u for u in units),
        ("O8 Shapley", "sampled"): M * T * sum(2 * u for u in units),
    }
    for (kind, how), cost in formulas.items():
        assert oracle(game, None, tau, kind, how=how, replays=M).cost == cost, kind
    bar, walks = ElFarol(4, 3, 2.0), rollout(ElFarol(4, 3, 2.0), None, B)
    guests = int((walks.action != 0).sum())
    assert (
        oracle(bar, None, walks, "O8", how="closed").cost == oracle(bar, None, walks, "O8", how="exact").cost == B * 4
    )
    assert oracle(bar, None, walks, "O8 Shapley", how="closed").cost == guests + B  # one order of the units
