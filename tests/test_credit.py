"""Credit: which chains fit, what every method keeps, and what each operator's mean gradient really is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import brute
import pytest
import torch
from tiny_mdp import (
    LimitedTiny,
    MaskedTiny,
    TinyMdp,
    acting,
    by_place,
    every_noise,
    expected_gradient,
    given_joint,
    joint_index,
    lopsided,
    rows_of,
    solve,
    true_gradient,
)
from torch import Tensor, nn

from benchmarks.methods import METHODS
from envs.base import (
    Env,
    HasLightCone,
    HasLocalRewards,
    HasOptimalValue,
    HasRewardWith,
    HasSafeAction,
    HasStepWith,
    default_actions,
    map_state,
)
from envs.el_farol import ElFarol
from envs.matrix_game import MatrixGame
from envs.walking_robot import WalkingRobot
from marl.credit.base import Chain, ChainError, Context, Credit, Learned, Operator, Signal, check_chain, operator_class
from marl.credit.joint.agent_total import AgentTotal
from marl.credit.joint.first_step import FirstStep
from marl.credit.joint.reference import Reference
from marl.credit.joint.simulated_q import SimulatedQ
from marl.credit.spatial.aristocrat import Aristocrat
from marl.credit.spatial.coma import Coma
from marl.credit.spatial.difference import Difference
from marl.credit.spatial.local import Local
from marl.credit.spatial.team import Team
from marl.credit.temporal.gae import Gae
from marl.credit.temporal.immediate import Immediate
from marl.credit.temporal.monte_carlo import MonteCarlo
from marl.credit.temporal.n_step import NStep
from marl.experiment import Method, assign_uncounted
from marl.learn.policy_gradient import Ppo
from marl.oracle.sampled import unit_effect
from marl.policy import Actor
from marl.rollout import Simulator, draw_noise, play, rollout
from marl.types import Policy, Trajectory

# Chains.


class Uniform(Credit):
    """A redistribution, to compose with: every step is paid the episode's mean reward."""

    signals = {Signal.RAW: Signal.TEAM, Signal.AGENT: Signal.AGENT}
    aligned, efficient = True, True

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        return signal.mean(0, keepdim=True).expand_as(signal)


class EveryAction(Credit):
    """An operator whose credit is of every action."""

    signals = {Signal.AGENT: Signal.ACTIONS}
    aligned, efficient = False, False

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        return signal[..., None] * (1 + torch.arange(trajectory.probs.shape[-1]))


RETURN = partial(MonteCarlo, baseline="none")
SPATIAL: list[Operator] = [Difference, Aristocrat, AgentTotal, FirstStep, SimulatedQ, Local]
ESTIMATES: list[Operator] = [MonteCarlo, Immediate, NStep, Gae]


@pytest.mark.parametrize(
    ("chain", "gives"),
    [
        ((Team, MonteCarlo), Signal.ADVANTAGE),
        ((Uniform, Team, MonteCarlo), Signal.ADVANTAGE),
        ((Difference, Uniform, Gae), Signal.ADVANTAGE),
        ((Uniform, Coma), Signal.ADVANTAGE),
        ((Team, EveryAction), Signal.ACTIONS),
    ],
)
def test_chains_that_fit(chain: tuple[Operator, ...], gives: Signal) -> None:
    """Redistribute, then team, then estimate; spatial, then redistribute per agent, then estimate."""
    assert check_chain(chain) is gives
    game = TinyMdp()
    assert Chain(chain, Context(game)).gives is gives
    Method(chain, "joint")


@pytest.mark.parametrize("spatial", SPATIAL)
def test_a_simulator_cannot_correct_a_redistributed_reward(spatial: Any) -> None:
    """Only the environment's own reward is what a counterfactual may be subtracted from: both operators are named."""
    with pytest.raises(ChainError, match=f"^{spatial.__name__} takes RAW and cannot follow Uniform, which gives TEAM$"):
        check_chain((Uniform, spatial, MonteCarlo))


@pytest.mark.parametrize(("estimate", "spatial"), product(ESTIMATES, SPATIAL))
def test_a_simulator_cannot_correct_an_estimate(estimate: Any, spatial: Any) -> None:
    """Estimate, then difference, is refused at construction of a method and of a chain."""
    words = f"^{spatial.__name__} takes RAW and cannot follow {estimate.__name__}, which gives ADVANTAGE$"
    for build in (lambda c: Method(c, "spatial"), lambda c: Chain(c, Context(TinyMdp()))):
        with pytest.raises(ChainError, match=words):
            build((Team, estimate, spatial))


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ((), "a chain needs at least one operator, from RAW to ADVANTAGE or ACTIONS"),
        ((Team,), "a chain must end in ADVANTAGE or ACTIONS, but Team gives AGENT"),
        ((Uniform,), "a chain must end in ADVANTAGE or ACTIONS, but Uniform gives TEAM"),
        ((MonteCarlo,), "MonteCarlo takes AGENT and cannot follow the environment's reward, which gives RAW"),
        ((Difference, Team, MonteCarlo), "Team takes RAW or TEAM and cannot follow Difference, which gives AGENT"),
        ((Team, partial(Gae, lambda_=0.9)), "Gae has no knob 'lambda_'; its knobs are: lam, gamma, central"),
        ((Team, partial(MonteCarlo, n=3)), "MonteCarlo has no knob 'n'; its knobs are: discount, baseline"),
    ],
)
def test_chains_that_do_not_fit(chain: tuple[Operator, ...], words: str) -> None:
    """One sentence naming the operators, or the knob and those there are."""
    with pytest.raises(ChainError) as refused:
        Method(chain, "joint")
    assert str(refused.value) == words


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (partial(MonteCarlo, discount=1.5), "MonteCarlo: discount=1.5 is not allowed; it must be a number in 0..1"),
        (
            partial(MonteCarlo, baseline="best"),
            "MonteCarlo: baseline='best' is not allowed; it must be one of mean, none",
        ),
        (partial(Immediate, baseline="V"), "Immediate: baseline='V' is not allowed; it must be one of mean, none"),
        (partial(NStep, n=0), "NStep: n=0 is not allowed; it must be 1 or more"),
        (partial(NStep, gamma=-1), "NStep: gamma=-1 is not allowed; it must be a number in 0..1"),
        (partial(Gae, lam=float("nan")), "Gae: lam=nan is not allowed; it must be a number in 0..1"),
        (partial(Coma, lam=2), "Coma: lam=2 is not allowed; it must be a number in 0..1"),
        (partial(SimulatedQ, at_most=0), "SimulatedQ: at_most=0 is not allowed; it must be 1 or more"),
        (partial(SimulatedQ, replays=0), "SimulatedQ: replays=0 is not allowed; it must be 1 or more"),
        (
            partial(SimulatedQ, kind="Q"),
            "SimulatedQ: kind='Q' is not allowed; it must be one of aristocrat, difference",
        ),
        (partial(FirstStep, kind="q"), "FirstStep: kind='q' is not allowed; it must be one of aristocrat, difference"),
        (partial(Difference, baseline="0"), "Difference: baseline='0' is not allowed; it must be one of default, safe"),
        (partial(AgentTotal, baseline=None), "AgentTotal: baseline=None is not allowed; it must be one of mean, none"),
    ],
)
def test_knobs_out_of_range(operator: Any, words: str) -> None:
    """One sentence: operator, knob, value, what is allowed."""
    with pytest.raises(ChainError) as refused:
        operator(Context(TinyMdp()))
    assert str(refused.value) == words


def test_ppo_needs_the_action_taken() -> None:
    """A learner that cannot follow credit of every action says so when the method is made, naming both."""
    with pytest.raises(ChainError, match="must end in ADVANTAGE, but EveryAction gives ACTIONS"):
        Method((Team, EveryAction), "joint", Ppo())


# Every method, on every kind of game.

GAMES: dict[str, Env[Any]] = {
    "walking_robot": WalkingRobot(3, 10, 3, 5, 2, 2, n_cues=3, decoys=2, stagger=2, wobble=0.5),
    "one joint": WalkingRobot(1, 6, 0, 4, 2, 1),
    "el_farol": ElFarol(5, 2, 2.0),
    "two_step": MatrixGame("two_step"),
    "tiny": TinyMdp(3, 4, ends=0.3),
    "masked": MaskedTiny(),
    "limited": LimitedTiny(ends=0.5),
}
SEEDS, EPISODES = (2, 5, 9), 4
every_method = pytest.mark.parametrize("name", METHODS)
every_game = pytest.mark.parametrize("game", GAMES.values(), ids=list(GAMES))


PARTS: dict[str, tuple[set[str], type]] = {
    "reward_with": ({"DPlusPlus"}, HasRewardWith),
    "optimal_value": ({"DifferencePotential", "OptimalShaping"}, HasOptimalValue),
    "light_cone": ({"LightCone"}, HasLightCone),
    "step_with": ({"EpisodeDPlusPlus"}, HasStepWith),
}  # optional part of a game -> the operators that cannot do without it


def lacking(method: Method, game: Env[Any]) -> str | None:
    """What the method needs and the game does not know."""
    if "local rewards" in method.needs and not isinstance(game, HasLocalRewards):
        return "local rewards"
    if "safe action" in method.needs and not isinstance(game, HasSafeAction):
        return "safe actions"
    used = {operator_class(op).__name__ for op in method.chain}
    for name, (operators, kind) in PARTS.items():
        one_shot = name == "step_with" and game.horizon == 1 and isinstance(game, HasRewardWith)  # then it is enough
        if operators & used and not isinstance(game, kind) and not one_shot:
            return name
    return None


def lived(game: Env[Any], seeds: Sequence[int] = SEEDS) -> tuple[Actor, Trajectory]:
    """Episodes of opinionated actors."""
    actor = Actor(game, seeds)
    with torch.no_grad():
        for p in actor.parameters():
            p.mul_(3.0 if p is not actor.net.weights[-1] else 100.0)
    return actor, rollout(game, actor, EPISODES, seeds)


def shape_of(kind: Signal, tau: Trajectory, game: Env[Any]) -> torch.Size:
    """What a kind of signal looks like."""
    if kind in (Signal.RAW, Signal.TEAM):
        return tau.reward.shape
    return torch.Size((*tau.action.shape, *((game.n_actions,) if kind is Signal.ACTIONS else ())))


def judges_some(method: Method, game: Env[Any]) -> bool:
    """Does it judge a random choice of steps, which the episodes themselves draw?"""
    return any(
        isinstance(op, partial) and (op.keywords.get("at_most") or game.horizon) < game.horizon for op in method.chain
    )


@every_game
@every_method
def test_contract(name: str, game: Env[Any]) -> None:
    """Shape, finiteness, 0 at dead steps, determinism, purity, order of episodes, independence of seeds.

    Where a game lacks what a method needs, that is what the refusal says.
    """
    method, want = METHODS[name], lacking(METHODS[name], game)
    if want is not None:
        with pytest.raises(ChainError, match=f"needs .*{want}.*{type(game).__name__} (does not|has none)") as refused:
            method.credit(game)
        assert "\n" not in str(refused.value)
        return
    actor, tau = lived(game)
    chain = method.credit(game, SEEDS, actor)
    kept = {
        k: map_state(torch.clone, v) if isinstance(v, tuple) else v.clone()
        for k, v in tau._asdict().items()
        if v is not None
    }
    weights = [p.clone() for p in chain.parameters()]
    credit = chain.assign(tau)

    assert credit.shape == shape_of(chain.gives, tau, game)
    assert credit.dtype == torch.float32 and not credit.requires_grad
    assert bool(credit.isfinite().all()) and not credit[~tau.alive].any()
    assert torch.equal(credit, chain.assign(tau))
    assert torch.equal(credit, method.credit(game, SEEDS, actor).assign(tau))
    for field, before in kept.items():
        after = getattr(tau, field)
        pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
        assert all(torch.equal(x, y) for x, y in pairs)
    assert all(torch.equal(p, w) for p, w in zip(chain.parameters(), weights, strict=True))
    if judges_some(method, game):
        return

    rows = torch.tensor([2, 0, 3, 1, 4, 7, 6, 5, 9, 11, 8, 10])  # shuffled within each seed
    assert torch.allclose(chain.assign(rows_of(tau, rows)), credit[:, rows], atol=1e-4)
    mine = range(EPISODES, 2 * EPISODES)
    alone_actor, alone = lived(game, [5])
    part = method.credit(game, [5], alone_actor).assign(alone)
    assert torch.equal(alone.action, tau.action[:, mine])
    assert torch.allclose(part, credit[:, mine], atol=1e-4)


@every_method
def test_measuring_costs_training_nothing(name: str) -> None:
    """Credit asked for measuring leaves the meter as it was; asked for training, a simulator's work is on it."""
    method = METHODS[name]
    served = [game for game in (GAMES["walking_robot"], *GAMES.values()) if lacking(method, game) is None]
    game = served[0]
    actor, tau = lived(game)
    chain = method.credit(game, SEEDS, actor)
    measured = assign_uncounted(chain, tau)
    assert not chain.context.simulator.steps.any()
    whole = chain.assign(tau)
    if chain.gives is Signal.ACTIONS:  # what multiplies grad log pi of the action taken
        whole = (tau.probs * whole).gather(-1, tau.action[..., None])[..., 0]
    assert torch.equal(measured, whole)
    asks = bool({"simulator", "truth"} & set(method.needs))
    assert bool((chain.context.simulator.steps > 0).all()) == asks


def test_every_need_is_met_somewhere() -> None:
    """No method is refused by all games of the contract above."""
    for name, method in METHODS.items():
        assert any(lacking(method, game) is None for game in GAMES.values()), name


ASKING = [n for n, m in METHODS.items() if {"simulator", "truth"} & set(m.needs)]
FROZEN = {"agent total", "reference O8"}  # recorded actions may be forbidden in a state that a change led to


@pytest.mark.parametrize("name", [n for n in METHODS if n not in FROZEN])
def test_no_method_asks_for_a_forbidden_move(name: str) -> None:
    """Masked actions are never tried: the game raises where a live agent takes one."""
    game = MaskedTiny(strict=True, seed=2)
    if lacking(METHODS[name], game):
        return
    actor, tau = lived(game)
    METHODS[name].credit(game, SEEDS, actor).assign(tau)
    assert tau.mask is not None and not bool(tau.mask.all())


# What methods ask of the simulator.


def bill(operators: tuple[Operator, ...], game: Env[Any], tau: Trajectory, policy: Policy | None = None) -> int:
    context = Context(game, (0,), policy)
    Chain(operators, context).assign(tau)
    return int(context.simulator.steps.sum())


def test_bills_are_what_is_declared() -> None:
    """Without early ends: B N T, B N (A-1) T, and T(T+1)/2 a branch, as the operators' `cost` says."""
    game = TinyMdp(3, 4, 3, ends=0.0)
    T, B, N, A = 4, 5, 3, 3
    tau = rollout(game, None, B)
    half = T * (T + 1) // 2
    for chain, steps in (
        ((Difference, RETURN), B * N * T),
        ((Aristocrat, RETURN), B * N * (A - 1) * T),
        ((AgentTotal,), B * N * T),
        ((FirstStep,), B * N * (A - 1) * T),
        ((partial(FirstStep, kind="difference"),), B * N * T),
        ((SimulatedQ,), B * (1 + N * (A - 1)) * half),
        ((partial(SimulatedQ, kind="difference", replays=3),), 3 * B * (1 + N) * half),
        (METHODS["reference O6"].chain, B * N * (A - 1) * half),
        (METHODS["reference O8"].chain, B * N * half),
        ((Team, Gae), 0),
    ):
        assert bill(chain, game, tau) == steps


def test_dead_steps_are_free() -> None:
    """With early ends: N (or N (A-1)) steps for every live (t, b), whole plans to their own end."""
    game = GAMES["walking_robot"]
    tau = rollout(game, None, 9)
    live = int(tau.alive.sum())
    assert live < tau.alive.numel()
    assert bill((Difference, RETURN), game, tau) == 3 * live
    assert bill((Aristocrat, RETURN), game, tau) == 6 * live
    assert bill((FirstStep,), game, tau) == 6 * live
    without = 0
    for i in range(3):
        plan = tau.action.clone()
        plan[..., i] = 0
        alone = tau.action[:, :, None].clone()
        alone[:, :, 0] = plan
        simulator = Simulator(game)
        simulator.totals(tau, alone)
        without += int(simulator.steps)
    assert bill((AgentTotal,), game, tau) == without


@pytest.mark.parametrize("kind", ["aristocrat", "difference"])
def test_judging_some_steps_is_a_fair_sample(kind: str) -> None:
    """`at_most` K: exactly K steps are judged, with T/K times the credit that judging all gives; the rest is 0."""
    game = TinyMdp(2, 6, ends=0.0)
    chosen = set()
    for first in range(40):
        tau = rollout(game, None, 3, first_episode=3 * first, dtype=torch.float64)
        whole = Chain((partial(SimulatedQ, kind=kind),), Context(game)).assign(tau)
        some = Chain((partial(SimulatedQ, kind=kind, at_most=2),), Context(game)).assign(tau)
        judged = [t for t in range(6) if bool(some[t].any())]
        assert len(judged) <= 2
        assert torch.allclose(some[judged], 3 * whole[judged])
        chosen |= set(judged)
    assert chosen == set(range(6))


# Mean gradients, over everything chance can bring.

TINY = [TinyMdp(), TinyMdp(3, 2), TinyMdp(2, 2, 3, seed=4), TinyMdp(1, 4)]
tiny_games = pytest.mark.parametrize("game", TINY, ids=repr)


def everything(game: TinyMdp, times: int = 1) -> tuple[Tensor, Policy, Trajectory]:
    """A policy's table, the policy, and every episode it can live, equally likely, in float64."""
    table = lopsided(game)
    policy = acting(game, table)
    return table, policy, play(game, policy, every_noise(game, times))


def bias(game: TinyMdp, chain: tuple[Operator, ...], times: int = 1) -> float:
    """Largest difference between the mean gradient of a chain's credit and the true gradient, over the largest true."""
    table, policy, tau = everything(game, times)
    torch.manual_seed(0)
    credit = Chain(chain, Context(game, (0,), policy)).double().assign(tau)
    truth = true_gradient(game, table)
    return float((expected_gradient(game, table, tau, credit) - truth).abs().max() / truth.abs().max())


UNBIASED: dict[str, tuple[Operator, ...]] = {
    "team, return": (Team, RETURN),
    "team, return minus mean": (Team, MonteCarlo),
    "team, any V, all n steps": (Team, partial(NStep, n=99)),
    "team, any V, lambda 1": (Team, partial(Gae, lam=1.0)),
    "team, any central V, lambda 1": (Team, partial(Gae, lam=1.0, central=True)),
    "first step aristocrat": (FirstStep,),
    "first step difference": (partial(FirstStep, kind="difference"),),
    "unit effect": (partial(Reference, oracle=lambda simulator, policy, tau: unit_effect(simulator, policy, tau)),),
}
BIASED: dict[str, tuple[Operator, ...]] = {
    "immediate": (Team, Immediate),
    "recency": (Team, partial(MonteCarlo, discount=0.9)),
    "any V, one step": (Team, NStep),
    "any V, lambda .95": (Team, Gae),
    "difference, return": (Difference, RETURN),
    "aristocrat, return": (Aristocrat, RETURN),
    "uniform, return": (Uniform, Team, RETURN),
}


@tiny_games
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased(name: str, game: TinyMdp) -> None:
    """The mean gradient is the team's true gradient, to 1e-12."""
    assert bias(game, UNBIASED[name]) < 1e-12


@tiny_games
@pytest.mark.parametrize("name", BIASED)
def test_biased(name: str, game: TinyMdp) -> None:
    """The negative control: these are not, and this is how the test above would look if it could not tell."""
    assert bias(game, BIASED[name]) > 1e-3


@tiny_games
@pytest.mark.parametrize("kind", ["aristocrat", "difference"])
def test_counterfactuals_of_q_are_unbiased(kind: str, game: TinyMdp) -> None:
    """Difference and aristocrat of simulated Q, with fresh noise: the bias shrinks to what chance leaves of it."""
    times = max(1, 100_000 // len(every_noise(game).reset))
    assert bias(game, (partial(SimulatedQ, kind=kind),), times) < 0.04
    assert bias(game, (Difference if kind == "difference" else Aristocrat, RETURN), 1) > 0.1


@tiny_games
def test_aristocrat_has_zero_mean_under_the_policy(game: TinyMdp) -> None:
    """Given (s_t, a_-i) the mean of D_i over a_i ~ pi_i is 0; that of the plain difference is not."""
    _, policy, tau = everything(game)
    context = Context(game, (0,), policy)
    aristocrat = Aristocrat(context)(tau, tau.reward)
    assert mean_given_the_others(game, tau, aristocrat) < 1e-12
    assert mean_given_the_others(game, tau, Difference(context)(tau, tau.reward)) > 0.05


def mean_given_the_others(game: TinyMdp, tau: Trajectory, credit: Tensor) -> float:
    """Largest |E[c_i | s_t, a_-i]|."""
    worst = 0.0
    for t, s, i in product(range(game.horizon), range(game.n_places), range(game.n_agents)):
        here = tau.alive[t] & (tau.state.place[t] == s)
        rest = tau.action[t].clone()
        rest[:, i] = 0
        for j in joint_index(game, rest)[here].unique():
            rows = here & (joint_index(game, rest) == j)
            worst = max(worst, abs(float(credit[t, rows, i].mean())))
    return worst


@tiny_games
def test_aristocrat_then_return_is_myopic(game: TinyMdp) -> None:
    """Its mean gradient is that of the present step's reward alone: future terms have zero mean given (s_t, a_it)."""
    table, policy, tau = everything(game)

    def gradient(*chain: Operator) -> Tensor:
        return expected_gradient(game, table, tau, Chain(chain, Context(game, (0,), policy)).assign(tau))

    myopic = gradient(Team, partial(Immediate, baseline="none"))
    assert (gradient(Aristocrat, RETURN) - myopic).abs().max() < 1e-12
    assert (gradient(Difference, RETURN) - myopic).abs().max() > 1e-3


def test_agent_total_is_unbiased_only_where_the_others_do_not_react() -> None:
    """Frozen teammates' later actions carry what agent i did: with N = 1, or one step, unbiased; else not."""
    total = (partial(AgentTotal, baseline="none"),)
    assert bias(TinyMdp(1, 4), total) < 1e-12
    assert bias(TinyMdp(3, 1), total) < 1e-12
    assert bias(TinyMdp(), total) > 0.1


def test_local_rewards_are_someone_elses_goal() -> None:
    """Each agent's own stream is unbiased for one agent alone, and biased for a team."""
    assert bias(TinyMdp(1, 3), (Local, RETURN)) < 1e-12
    assert bias(TinyMdp(), (Local, RETURN)) > 0.1


@pytest.mark.parametrize(
    "chain",
    [(Team, RETURN), (FirstStep,), (AgentTotal,), (Local, RETURN), (Difference, RETURN), (Aristocrat, RETURN)],
    ids=lambda chain: operator_class(chain[0]).__name__,
)
def test_declared_alignment_is_true(chain: tuple[Operator, ...]) -> None:
    """`aligned` says whether the mean gradient is the team's, the operator alone on the team's return."""
    declared = operator_class(chain[0]).aligned
    assert declared == (bias(TinyMdp(), chain) < 1e-9)


class ExactValue(nn.Module):
    """V of backward induction in place of a learned one."""

    def __init__(self, game: TinyMdp, table: Tensor, gamma: float = 1.0) -> None:
        super().__init__()
        self.game, self.v = game, solve(game, table, gamma).v

    def forward(self, tau: Trajectory) -> Tensor:
        return self.v[torch.arange(len(tau.reward))[:, None], tau.state.place][..., None].expand(tau.action.shape)


@tiny_games
@pytest.mark.parametrize("operator", [NStep, partial(NStep, n=2), partial(Gae, lam=0.0), partial(Gae, lam=0.7)])
def test_bootstrapping_on_the_true_value_is_unbiased(operator: Operator, game: TinyMdp) -> None:
    """TD, n-step and GAE with V of backward induction: E[c | s, a] = Q - V, so the mean gradient is the true one."""
    table, policy, tau = everything(game)
    part: Any = operator(Context(game, (0,), policy))
    part.value = ExactValue(game, table)
    credit = part(tau, Team(part.context)(tau, tau.reward)) * tau.alive[..., None]
    assert (expected_gradient(game, table, tau, credit) - true_gradient(game, table)).abs().max() < 1e-12
    exact, j = solve(game, table), joint_index(game, tau.action)
    for t, s, k in product(range(game.horizon), range(game.n_places), range(len(game.joints))):
        group = credit[t, tau.alive[t] & (tau.state.place[t] == s) & (j[t] == k)]
        assert (group.mean(0) - (exact.q[t, s, k] - exact.v[t, s])).abs().max() < 1e-12


class ExactQ(nn.Module):
    """Q_i(s, (a_-i, c)) of backward induction in place of COMA's critic."""

    def __init__(self, game: TinyMdp, table: Tensor) -> None:
        super().__init__()
        self.game, self.q = game, solve(game, table).q

    def forward(self, tau: Trajectory) -> Tensor:
        t, A = torch.arange(len(tau.reward))[:, None], self.game.n_actions
        out = torch.empty(*tau.action.shape, A, dtype=torch.float64)
        for i, c in product(range(self.game.n_agents), range(A)):
            action = tau.action.clone()
            action[..., i] = c
            out[..., i, c] = self.q[t, tau.state.place, joint_index(self.game, action)]
        return out


@tiny_games
def test_coma_with_the_true_q_is_the_advantage_given_the_others(game: TinyMdp) -> None:
    """COMA = O4 then, and unbiased; with any critic it has zero mean under pi."""
    table, policy, tau = everything(game)
    coma = Coma(Context(game, (0,), policy)).double()
    assert mean_given_the_others(game, tau, coma(tau, tau.reward).detach()) < 1e-12
    coma.critic = ExactQ(game, table)  # type: ignore[assignment]
    credit = coma(tau, tau.reward) * tau.alive[..., None]
    t, j = torch.arange(game.horizon)[:, None], joint_index(game, tau.action)
    truth = given_joint(game, table, solve(game, table).q)[t, tau.state.place, j] * tau.alive[..., None]
    assert (credit - truth).abs().max() < 1e-12
    assert (expected_gradient(game, table, tau, credit) - true_gradient(game, table)).abs().max() < 1e-12


# Formulas, one operator at a time.


def noise_like(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(tau: Trajectory, seed: int = 0) -> Tensor:
    """[T,B,N] a reward stream an agent, 0 at dead steps."""
    return noise_like(*tau.action.shape, seed=seed) * tau.alive[..., None]


def centred_by_hand(x: Tensor, alive: Tensor, n_seeds: int) -> Tensor:
    """x minus its mean over the seed's live episodes at t."""
    out, E = x.clone(), x.shape[1] // n_seeds
    for t, s in product(range(len(x)), range(n_seeds)):
        mine = torch.zeros(x.shape[1], dtype=torch.bool)
        mine[s * E : s * E + E] = True
        if bool((live := mine & alive[t]).any()):
            out[t, mine] -= x[t, live].mean(0)
    return out * alive[..., None]


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_monte_carlo_is_the_discounted_sum(discount: float, baseline: str) -> None:
    """c_t = sum_k discount^(k-t) r_k, whole rewards kept: c_t - discount c_{t+1} = r_t; the mean is a seed's own."""
    game = TinyMdp(horizon=4, ends=0.4)
    tau = rollout(game, None, 6, [0, 1], dtype=torch.float64)
    r = stream(tau)
    chain = MonteCarlo(Context(game, (0, 1)), discount, baseline)
    truth = torch.stack([sum(discount**k * r[t + k] for k in range(4 - t)) for t in range(4)])  # type: ignore[misc]
    assert (truth[:-1] - discount * truth[1:] - r[:-1]).abs().max() < 1e-12
    if baseline == "mean":
        truth = centred_by_hand(truth, tau.alive, 2)
    assert (chain(tau, r) * tau.alive[..., None] - truth * tau.alive[..., None]).abs().max() < 1e-12


def test_immediate_is_the_reward() -> None:
    """c_t = r_t, or minus the mean of the seed's live episodes at t."""
    tau = rollout(TinyMdp(horizon=4, ends=0.4), None, 6, [0, 1], dtype=torch.float64)
    r, context = stream(tau), Context(TinyMdp(horizon=4), (0, 1))
    assert torch.equal(Immediate(context, "none")(tau, r), r)
    found = Immediate(context)(tau, r) * tau.alive[..., None]
    assert (found - centred_by_hand(r, tau.alive, 2)).abs().max() < 1e-12


def double_loop_gae(r: Tensor, now: Tensor, beyond: Tensor, tau: Trajectory, gamma: float, lam: float) -> Tensor:
    """sum_k (gamma lam)^k delta_{t+k} within the episode; beyond [B,N] is the value where it stops."""
    out = torch.zeros_like(r)
    for b in range(r.shape[1]):
        length = int(tau.alive[:, b].sum())
        value = [*now[:length, b], beyond[b]]
        for t in range(length):
            for k in range(t, length):
                delta = r[k, b] + gamma * value[k + 1] - value[k]
                out[t, b] += (gamma * lam) ** (k - t) * delta
    return out


@pytest.mark.parametrize("central", [False, True], ids=["own view", "central"])
@pytest.mark.parametrize(
    "game", [TinyMdp(horizon=4, ends=0.4), LimitedTiny(horizon=4, ends=0.6)], ids=["ends", "limits"]
)
def test_gae_and_n_step_equal_double_loops(game: TinyMdp, central: bool) -> None:
    """GAE = sum (gamma lam)^k delta; TD = NStep(1) = Gae(0); MC - V = Gae(1) = NStep(T); all with one V, gamma .9."""
    context = Context(game, (0, 1))
    tau = rollout(game, None, 12, [0, 1], dtype=torch.float64)
    r, live = stream(tau), tau.alive[..., None]
    for gamma, lam in ((0.9, 0.7), (1.0, 0.95), (0.9, 0.0), (1.0, 1.0)):
        gae = Gae(context, lam, gamma, central).double()
        with torch.no_grad():
            now = gae.value(tau)
            ended = tau.done[-1] & ~(tau.final.cut if isinstance(game, LimitedTiny) else torch.zeros_like(tau.done[-1]))
            cut = tau.final.cut[:, None] if isinstance(game, LimitedTiny) else torch.zeros_like(ended)[:, None]
            beyond = torch.where(cut, gae.value.final(tau.final), 0.0)
            assert (gae(tau, r) * live - double_loop_gae(r, now, beyond, tau, gamma, lam)).abs().max() < 1e-12
        for n, same in ((1, 0.0), (99, 1.0)):
            step, other = NStep(context, n, gamma, central).double(), Gae(context, same, gamma, central).double()
            with torch.no_grad():
                assert ((step(tau, r) - other(tau, r)) * live).abs().max() < 1e-12
        two = NStep(context, 2, gamma, central).double()
        with torch.no_grad():
            found = two(tau, r)
        for b in range(24):
            length = int(tau.alive[:, b].sum())
            value = [*now[:length, b], beyond[b]]
            for t in range(length):
                end = min(t + 2, length)
                total = sum(gamma ** (k - t) * r[k, b] for k in range(t, end)) + gamma ** (end - t) * value[end]
                assert (found[t, b] - (total - now[t, b])).abs().max() < 1e-12


def test_monte_carlo_is_gae_and_n_step_without_a_value() -> None:
    """V = 0: Gae(1) and NStep(T) are the return; NStep(1) is the reward."""
    game = TinyMdp(horizon=4, ends=0.4)
    tau = rollout(game, None, 12, dtype=torch.float64)
    r, context = stream(tau), Context(game)
    returns = MonteCarlo(context, baseline="none")(tau, r)
    for part, truth in ((Gae(context, 1.0), returns), (NStep(context, 4), returns), (NStep(context, 1), r)):
        for p in part.parameters():
            nn.init.zeros_(p)
        with torch.no_grad():
            assert (part.double()(tau, r) - truth).abs().max() < 1e-12


@pytest.mark.parametrize("game", [ElFarol(5, 2, 2.0), MatrixGame("climbing"), MatrixGame("qtran")], ids=repr)
def test_differences_equal_closed_forms(game: Any) -> None:
    """T = 1: the difference reward, the agent's total and the closed unit difference are one number, to 1e-9."""
    tau = rollout(game, None, 20, dtype=torch.float64)
    context = Context(game)
    truth = game.unit_differences(tau, default_actions(game))
    assert (Difference(context)(tau, tau.reward) - truth).abs().max() < 1e-9
    assert (AgentTotal(context, baseline="none")(tau, tau.reward) - truth).abs().max() < 1e-9
    on_q = partial(SimulatedQ, kind="difference")(context)
    assert (on_q(tau, tau.reward) - truth).abs().max() < 1e-9
    aristocrat = Aristocrat(context)(tau, tau.reward)
    assert (SimulatedQ(context)(tau, tau.reward) - aristocrat).abs().max() < 1e-9


@every_game
def test_difference_and_aristocrat_equal_single_questions(game: Env[Any]) -> None:
    """r - r(a[i <- c]) and r - sum_c pi_i(c) r(a[i <- c]), the noise kept, one call of the rules an action."""
    actor, tau = lived(game)
    found = {op: op(Context(game, SEEDS, actor))(tau, tau.reward) for op in (Difference, Aristocrat)}
    default = default_actions(game)
    for t, i in product(range(game.horizon), range(game.n_agents)):
        state = map_state(lambda x, t=t: x[t], tau.state)
        instead = []
        for c in range(game.n_actions):
            action = tau.action[t].clone()
            action[:, i] = c
            instead.append(game.step(state, action, tau.noise[t]).reward)
        mean = sum(tau.probs[t, :, i, c] * r for c, r in enumerate(instead))
        live = tau.alive[t]
        assert torch.allclose(
            found[Difference][t, live, i], (tau.reward[t] - instead[int(default[i])])[live], atol=1e-5
        )
        assert torch.allclose(found[Aristocrat][t, live, i], (tau.reward[t] - mean)[live], atol=1e-5)


def test_safe_difference_uses_the_safe_actions() -> None:
    """At D = 0 the fall is paid at once, and the safe difference blames exactly whoever erred alone."""
    game = WalkingRobot(3, 10, 0, 5, 1, 1, temptation=0.0)
    tau = rollout(game, None, 40, dtype=torch.float64)
    found = Difference(Context(game), "safe")(tau, tau.reward) * tau.alive[..., None]
    truth = game.unit_differences(tau, torch.tensor(game.safe_action)) * tau.alive[..., None]
    assert torch.equal(found < -1e-9, truth < -1e-9) and bool((found < -0.5).any())


@pytest.mark.parametrize("default", ["default", "safe"])
@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_agent_total_equals_brute_force(default: str, baseline: str) -> None:
    """G - G(agent i on its default throughout, the others' actions frozen), minus the mean of live episodes."""
    game = WalkingRobot(3, 10, 3, 5, 2, 2, temptation=0.3)
    tau = rollout(game, None, 8, [0, 1], dtype=torch.float64)
    seeds, episodes = torch.tensor([0, 1]).repeat_interleave(8), torch.arange(8).repeat(2)
    drawn = draw_noise(game, seeds, episodes, dtype=torch.float64)
    noise = drawn.reset, drawn.step.transpose(0, 1)
    instead = default_actions(game) if default == "default" else torch.tensor(game.safe_action)
    truth = torch.zeros(tau.action.shape, dtype=torch.float64)
    for i in range(3):
        plan = tau.action.clone()
        plan[..., i] = instead[i]
        truth[..., i] = brute.frozen_return(game, noise, tau.action) - brute.frozen_return(game, noise, plan)
    if baseline == "mean":
        truth = centred_by_hand(truth, tau.alive, 2)
    found = AgentTotal(Context(game, (0, 1)), default, baseline)(tau, tau.reward)
    live = tau.alive[..., None]
    assert ((found - truth) * live).abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["aristocrat", "difference"])
def test_first_step_baselines_the_first_step_only(kind: str) -> None:
    """(r_t - b_it) + (G_{t+1} - mean): the spatial credit of r_t, and the future whole."""
    game = TinyMdp(3, 4, ends=0.3)
    actor, tau = lived(game)
    context = Context(game, SEEDS, actor)
    spatial = (Aristocrat if kind == "aristocrat" else Difference)(context)(tau, tau.reward)
    later = tau.reward.flip(0).cumsum(0).flip(0) - tau.reward
    truth = spatial + centred_by_hand(later[..., None].expand_as(spatial), tau.alive, 3)
    found = FirstStep(context, kind)(tau, tau.reward)
    assert torch.allclose(found[tau.alive], truth[tau.alive], atol=1e-5)


def test_simulated_q_of_a_lucky_game_is_the_advantage_in_the_mean() -> None:
    """Given (s, a), aristocrat on Q averages to O4 and difference on Q to Q - Q(a[i <- default]), within its error."""
    game = TinyMdp(2, 2)
    table, policy, tau = everything(game, 24)
    exact, j = solve(game, table), joint_index(game, tau.action)
    o4 = given_joint(game, table, exact.q)
    default = default_actions(game)
    for kind in ("aristocrat", "difference"):
        credit = SimulatedQ(Context(game, (0,), policy), kind)(tau, tau.reward)
        worst, groups = 0.0, 0
        for t, s, (k, joint), i in product(range(2), range(3), enumerate(game.joints), range(2)):
            group = credit[t, tau.alive[t] & (tau.state.place[t] == s) & (j[t] == k), i]
            swap = game.joints.index((*joint[:i], int(default[i]), *joint[i + 1 :]))
            truth = o4[t, s, k, i] if kind == "aristocrat" else exact.q[t, s, k] - exact.q[t, s, swap]
            error = group.std() / len(group) ** 0.5
            gap = abs(float(group.mean() - truth))
            worst, groups = max(worst, gap / max(float(error), 1e-9)) if gap > 1e-9 else worst, groups + 1
        assert worst < 4.5 and groups == 48


def test_replays_average() -> None:
    """More replays: less variance around the same truth."""
    game = TinyMdp(2, 3, ends=0.0)
    tau = rollout(game, None, 400, dtype=torch.float64)
    one, many = (SimulatedQ(Context(game), replays=m)(tau, tau.reward) for m in (1, 8))
    table = torch.full((3, 3, 2, 2), 0.5, dtype=torch.float64)
    o4 = given_joint(game, table, solve(game, table).q)
    truth = o4[torch.arange(3)[:, None], tau.state.place, joint_index(game, tau.action)]
    assert float((many - truth).square().mean()) < 0.25 * float((one - truth).square().mean())


def test_local_is_the_game_s_own_and_shares_it_out() -> None:
    """Shares sum to the team's reward in games whose reward they are."""
    for game in (TinyMdp(3, 4, ends=0.3), ElFarol(5, 2, 2.0)):
        tau = rollout(game, None, 10, dtype=torch.float64)
        shares = Local(Context(game))(tau, tau.reward)
        assert (shares.sum(-1) - tau.reward).abs().max() < 1e-12 and not shares[~tau.alive].any()


def test_team_gives_everyone_the_whole() -> None:
    """r_i = r, whichever reward comes in."""
    game = TinyMdp(3)
    tau = rollout(game, None, 4)
    for signal in (tau.reward, tau.reward * 0 + 7):
        assert torch.equal(Team(Context(game))(tau, signal), signal[..., None].expand(-1, -1, 3))


def test_for_one_agent_the_team_is_the_agent() -> None:
    """N = 1: difference and first step differ from the team's return only by what its action did not choose."""
    game = TinyMdp(1, 3, 3)
    _, policy, tau = everything(game)
    context = Context(game, (0,), policy)
    for op in (Difference, Aristocrat):
        baseline = tau.reward[..., None] - op(context)(tau, tau.reward)
        for t, s, k in product(range(3), range(3), range(game.atoms)):
            same = tau.alive[t] & (tau.state.place[t] == s) & ((tau.noise[t, :, 0] * game.atoms).long() == k)
            assert float(baseline[t, same].std()) < 1e-12
    total = AgentTotal(context, baseline="none")(tau, tau.reward)
    returns = tau.reward.sum(0)[None, :, None] - total
    luck = torch.cat((tau.state.place[:1], (tau.noise[..., 0] * 2).long()))
    for row in luck.unique(dim=1).T:
        assert float(returns[:, (luck == row[:, None]).all(0)].std()) < 1e-12
    assert float(by_place(game, tau, returns * 0 + 1).sum()) > 0


# Fitting what a chain learns.


def fitted(game: TinyMdp, chain: tuple[Operator, ...], updates: int) -> tuple[Chain, Tensor, Trajectory]:
    """A chain fitted to everything chance can bring, in float32 as in training."""
    table, policy, tau = everything(game)
    single = Trajectory(**{k: narrow(v) for k, v in tau._asdict().items()})
    built = Chain(chain, Context(game, (0,), policy))
    optimizer = torch.optim.Adam(built.parameters(), lr=0.02)
    for update in range(updates):
        built.fit(optimizer, single, built.trace(single)[1], update)
    return built, table, single


def narrow(field: Any) -> Any:
    """Floating fields as float32."""
    if isinstance(field, tuple):
        return map_state(narrow, field)
    return field.float() if isinstance(field, Tensor) and field.is_floating_point() else field


@pytest.mark.parametrize("operator", [partial(Gae, lam=1.0), Gae, partial(Gae, central=True), NStep], ids=str)
def test_values_are_fitted_to_the_true_value(operator: Operator) -> None:
    """After some passes over all that can happen, V is near backward induction's; before, it was not."""
    game = TinyMdp(2, 2)
    errors = []
    for updates in (0, 60):
        chain, table, tau = fitted(game, (Team, operator), updates)
        value: Any = chain.parts[1]
        truth = ExactValue(game, table)(tau)
        with torch.no_grad():
            errors.append(float((value.value(tau) - truth)[tau.alive].abs().max()))
    assert errors[1] < 0.1 < errors[0]


@pytest.mark.parametrize("lam", [0.8, 1.0])
def test_coma_s_critic_is_fitted_to_q(lam: float) -> None:
    """After some passes COMA's credit points with O4; before, it did not."""
    game = TinyMdp(2, 2)
    cosines = []
    for updates in (0, 100):
        chain, table, tau = fitted(game, (partial(Coma, lam=lam),), updates)
        credit = chain.assign(tau).double()
        t = torch.arange(2)[:, None]
        truth = given_joint(game, table, solve(game, table).q)[t, tau.state.place, joint_index(game, tau.action)]
        truth = truth * tau.alive[..., None]
        cosines.append(float((credit * truth).sum() / (credit.norm() * truth.norm())))
    assert cosines[1] > 0.97 > 0.6 > abs(cosines[0])


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if "critic" in m.needs])
def test_seeds_are_fitted_apart(name: str) -> None:
    """What seed 5's critic learns is the same alone and among others; every learned part moves."""
    game, method = TinyMdp(2, 4, ends=0.3), METHODS[name]
    said = []
    for seeds in ([5], [2, 5]):
        actor, tau = lived(game, seeds)
        chain = method.credit(game, seeds, actor)
        before = [p.clone() for p in chain.parameters()]
        optimizer = torch.optim.Adam(chain.parameters(), lr=0.01)
        for update in range(3):
            chain.fit(optimizer, tau, chain.trace(tau)[1], update)
        assert all(not torch.equal(p, q) for p, q in zip(chain.parameters(), before, strict=True))
        # Not the weights: one that no episode moves has a gradient of rounding, which Adam makes a whole step of.
        said.append(torch.stack([part.predict(tau).detach() for part in chain.parts if isinstance(part, Learned)]))
    assert torch.allclose(said[0], said[1][..., EPISODES:, :], atol=1e-5)


def test_fitting_asks_the_simulator_nothing() -> None:
    """difference + GAE: the simulator works once a batch, however many passes follow."""
    game = TinyMdp(2, 4, ends=0.3)
    actor, tau = lived(game)
    chain = METHODS["difference + GAE"].credit(game, SEEDS, actor)
    incoming = chain.trace(tau)[1]
    spent = chain.context.simulator.steps.clone()
    chain.fit(torch.optim.Adam(chain.parameters()), tau, incoming, 0)
    assert torch.equal(chain.context.simulator.steps, spent) and bool((spent > 0).all())
    assert torch.equal(incoming[0], tau.reward) and incoming[1].shape == tau.action.shape
