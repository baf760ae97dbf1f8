"""Looking back: hindsight, contribution and the luck of the episode, against every future of enumerable games."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from tiny_mdp import (
    MaskedTiny,
    TinyMdp,
    acting,
    every_noise,
    expected_gradient,
    lopsided,
    rows_of,
    solve,
    true_gradient,
)
from torch import Tensor

from envs.base import Env, Step
from marl.credit.base import Chain, ChainError, Context, LearnsEpisodes, Operator, reward_to_go
from marl.credit.joint.agent_cocoa import AgentCocoa, AgentCocoaTaken
from marl.credit.spatial.team import Team
from marl.credit.temporal.cocoa import Cocoa
from marl.credit.temporal.hca import HcaReturn, HcaState, binned
from marl.credit.temporal.monte_carlo import MonteCarlo
from marl.credit.temporal.n_step import NStep
from marl.credit.temporal.noise_baseline import NoiseBaseline, to_come
from marl.critic import Fit
from marl.experiment import Method
from marl.rollout import play, rollout
from marl.types import Noise, Trajectory

RETURN = partial(MonteCarlo, baseline="none")


@dataclass(frozen=True)
class Soft(TinyMdp):
    """Every place and every reward can follow every action, only more or less often: outcomes reveal no action."""

    n_places: int = 2
    ends: float = 0.0
    atoms: ClassVar[int] = 4

    @cached_property
    @torch.inference_mode(False)
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of four atoms one to three lead to place 1, and one to three are paid 1 in place of -1."""
        g = torch.Generator().manual_seed(self.seed)
        shape = (self.n_places, self.n_actions**self.n_agents, 1)
        rank = torch.stack([torch.randperm(4, generator=g) for _ in range(shape[0] * shape[1])]).reshape(*shape[:2], 4)
        follow = (torch.arange(4) < torch.randint(1, 4, shape, generator=g)).long()
        paid = 2.0 * (rank < torch.randint(1, 4, shape, generator=g)) - 1
        shares = torch.nn.functional.pad(paid.double()[..., None], (0, self.n_agents - 1))
        return follow, shares, torch.zeros_like(follow)


@dataclass(frozen=True)
class Telltale(TinyMdp):
    """One agent: the first action leads to a place, and the second step is paid 1 or 0 there, whatever is done."""

    n_agents: int = 1
    horizon: int = 2
    n_places: int = 3

    @cached_property
    @torch.inference_mode(False)
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Place 0 leads to place 1 + a; place 1 pays 1."""
        follow = torch.tensor([[1, 2], [1, 1], [2, 2]])[..., None].repeat(1, 1, 2)
        shares = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]).double()[..., None, None].repeat(1, 1, 2, 1)
        return follow, shares, torch.zeros_like(follow)


def everything(game: TinyMdp, seed: int = 0) -> tuple[Tensor, Trajectory, Context]:
    """A policy's table and every episode that it can live, each equally likely."""
    table = lopsided(game, seed)
    policy = acting(game, table)
    return table, play(game, policy, every_noise(game)), Context(game, (0,), policy)


def group_mean(x: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    """x [B,...] replaced by its mean over the rows (bool [B]) of equal key [B,F]; 0 elsewhere."""
    _, code = key[rows].mul(1e9).round().unique(dim=0, return_inverse=True)
    total = x.new_zeros(int(code.max()) + 1, *x.shape[1:]).index_add(0, code, x[rows])
    count = torch.bincount(code).reshape(-1, *[1] * (x.dim() - 1))
    out = torch.zeros_like(x)
    out[rows] = (total / count)[code]
    return out


def exact(game: TinyMdp) -> Callable[[Trajectory, Tensor], Tensor]:
    """h [T,T,B,N,A] counted over all futures: how often c was done among those that met s_t and, alive, u_k."""

    def h(tau: Trajectory, u: Tensor) -> Tensor:
        T, B, N = tau.action.shape
        taken = torch.nn.functional.one_hot(tau.action, game.n_actions).double()
        out = torch.zeros(T, T, B, N, game.n_actions, dtype=torch.float64)
        for t, k, i in product(range(T), range(T), range(N)):
            if k > t and bool(tau.alive[k].any()):
                key = torch.cat((tau.state.place[t].double()[:, None], u[k, :, i].double()), -1)
                out[t, k, :, i] = group_mean(taken[t, :, i], key, tau.alive[k])
        return out

    return h


def exact_return(game: TinyMdp) -> Callable[[Trajectory, Tensor], Tensor]:
    """h [T,B,N,A] given s_t and the return from t on."""

    def h(tau: Trajectory, z: Tensor) -> Tensor:
        out = torch.zeros_like(tau.probs)
        taken = torch.nn.functional.one_hot(tau.action, game.n_actions).double()
        for t, i in product(range(game.horizon), range(game.n_agents)):
            key = torch.stack((tau.state.place[t].double(), z[t, :, i]), -1)
            out[t, :, i] = group_mean(taken[t, :, i], key, tau.alive[t])
        return out

    return h


def gradient(game: TinyMdp, operators: tuple[Operator, ...]) -> tuple[Tensor, Tensor]:
    """(mean gradient of the chain's credit, true gradient), [T,S,N,A]."""
    table, tau, context = everything(game)
    credit = Chain(operators, context).double().assign(tau)
    return expected_gradient(game, table, tau, credit), true_gradient(game, table)


def gap(game: TinyMdp, *operators: Operator) -> float:
    """Largest error of the mean gradient."""
    found, truth = gradient(game, operators)
    return float((found - truth).abs().max())


TINY = [TinyMdp(), TinyMdp(3, 2), TinyMdp(2, 2, 3, seed=4), TinyMdp(1, 4), Soft(horizon=2), Telltale()]
tiny_games = pytest.mark.parametrize("game", TINY, ids=repr)


# Exact hindsight, against the true gradient.


@tiny_games
@pytest.mark.parametrize("outcome", ["reward", "features"])
def test_exact_cocoa_is_unbiased_everywhere(outcome: str, game: TinyMdp) -> None:
    """All-action COCOA, of the team as a stream and agent by agent: no support is asked for."""
    h = exact(game)
    assert gap(game, Team, partial(Cocoa, outcome=outcome, exact=h)) < 1e-9
    assert gap(game, partial(AgentCocoa, outcome=outcome, exact=h)) < 1e-9


@tiny_games
def test_exact_state_hca_is_unbiased_everywhere(game: TinyMdp) -> None:
    """All-action HCA given the later state, in both views (here each is the whole state)."""
    for central in (False, True):
        assert gap(game, Team, partial(HcaState, central=central, exact=exact(game))) < 1e-9


@pytest.mark.parametrize("game", [Soft(1, 3), Soft(horizon=2), Soft(horizon=2, seed=3)], ids=repr)
def test_exact_sampled_forms_are_unbiased_under_full_support(game: TinyMdp) -> None:
    """1 - pi/h on the action taken, where every outcome can follow every action; the gradient is not 0 there."""
    h = exact(game)
    table, tau, _ = everything(game)
    u = tau.reward[..., None, None].expand(*tau.action.shape, 1)
    assert all(bool((h(tau, u)[t, k] > 0).all()) for t, k in product(range(game.horizon), repeat=2) if k > t)
    assert true_gradient(game, table).abs().max() > 0.01
    assert gap(game, partial(AgentCocoaTaken, floor=0.0, exact=h)) < 1e-9
    assert gap(game, Team, partial(HcaReturn, floor=0.0, exact=exact_return(game))) < 1e-9


@pytest.mark.parametrize("game", [TinyMdp(), TinyMdp(1, 4), Telltale()], ids=repr)
def test_sampled_forms_are_biased_where_support_fails(game: TinyMdp) -> None:
    """The same h, the same outcomes: what the sampled form loses, the all-action form keeps."""
    h = exact(game)
    assert gap(game, partial(AgentCocoaTaken, floor=0.0, exact=h)) > 1e-3
    assert gap(game, partial(AgentCocoa, exact=h)) < 1e-9
    assert gap(game, Team, partial(HcaReturn, floor=0.0, exact=exact_return(game))) > 1e-3


def test_the_trap_in_numbers() -> None:
    """pi = (.9, .1), Z = (1, 0): .009 from the sampled forms, .01 from (h/pi - 1) r, where the truth is .09."""
    game = Telltale()
    table = torch.tensor([0.9, 0.1]).double().expand(2, 3, 1, 2)
    u = (torch.arange(10).double() + 0.5) / 10
    luck = torch.cartesian_prod(u, u)
    noise = Noise(torch.zeros(100, 1).double(), torch.zeros(2, 100, 1).double(), luck.T[..., None].contiguous())
    policy = acting(game, table)
    tau, context = play(game, policy, noise), Context(game, (0,), policy)

    def first(*operators: Operator) -> float:
        return float(expected_gradient(game, table, tau, Chain(operators, context).assign(tau))[0, 0, 0, 0])

    assert first(Team, RETURN) == pytest.approx(0.09)
    assert first(Team, partial(HcaReturn, floor=0.0, exact=exact_return(game))) == pytest.approx(0.009)
    assert first(partial(AgentCocoaTaken, floor=0.0, exact=exact(game))) == pytest.approx(0.009)
    wrong = expected_gradient(game, table, tau, twice_weighed(game, tau, context))
    assert float(wrong[0, 0, 0, 0]) == pytest.approx(0.01)
    assert first(partial(AgentCocoa, exact=exact(game))) == pytest.approx(0.09)
    assert first(Team, partial(HcaState, exact=exact(game))) == pytest.approx(0.09)


def twice_weighed(game: TinyMdp, tau: Trajectory, context: Context) -> Tensor:
    """r_t + sum_{k>t} (h/pi - 1) r_k of the action taken."""
    w = AgentCocoa(context, exact=exact(game))(tau, tau.reward).gather(-1, tau.action[..., None])[..., 0]
    r = tau.reward[..., None]
    return w - r / tau.probs.gather(-1, tau.action[..., None])[..., 0] + r


def test_weighing_the_action_taken_by_its_contribution_is_biased() -> None:
    """(h/pi - 1) r on the sampled action's score is biased even under full support and exact h; 1 - pi/h is not."""
    game = Soft(1, 3)
    table, tau, context = everything(game)
    truth = true_gradient(game, table)
    assert (expected_gradient(game, table, tau, twice_weighed(game, tau, context)) - truth).abs().max() > 1e-5
    assert gap(game, partial(AgentCocoaTaken, floor=0.0, exact=exact(game))) < 1e-9


def test_agent_cocoa_is_cocoa_of_the_team_s_stream() -> None:
    """J3 on r is T9 with a central view on the broadcast reward, learned networks included."""
    game = TinyMdp(2, 3)
    _, tau, context = everything(game)
    one = stirred(Chain((AgentCocoa,), context).double())
    two = stirred(Chain((Team, partial(Cocoa, central=True)), context).double())
    assert torch.equal(one.assign(tau), two.assign(tau)) and bool(one.assign(tau).any())


def test_exact_hindsight_is_a_privilege() -> None:
    """Whoever is handed the exact distribution says so; who learns it asks for nothing."""
    h = exact(TinyMdp())
    for operators in ((Team, Cocoa), (Team, HcaState), (AgentCocoa,), (AgentCocoaTaken,), (Team, HcaReturn)):
        given = (*operators[:-1], partial(operators[-1], exact=h))
        assert "exact hindsight" in Method(given, "joint").needs and Method(given, "joint").privileged
        assert not Method(operators, "joint").privileged


def test_contributions_without_contribution() -> None:
    """Telltale: w_c = (1[c leads there] / pi(c) - 1) r of the first step; nothing at all for the second's."""
    game = Telltale()
    _, tau, context = everything(game)
    tau = rows_of(tau, (tau.state.place[0] == 0).nonzero()[:, 0])
    w = AgentCocoa(context, exact=exact(game))(tau, tau.reward)
    paid = tau.reward[1]
    want = torch.stack((1 / tau.probs[0, :, 0, 0] - 1, torch.full_like(paid, -1)), -1) * paid[:, None]
    assert (w[0, :, 0] - want).abs().max() < 1e-9
    taken = AgentCocoaTaken(context, floor=0.0, exact=exact(game))(tau, tau.reward)
    assert torch.equal(taken[1], tau.reward[1, :, None])


# Learned hindsight.


def stirred(chain: Any, size: float = 1.0) -> Any:
    """The same module with weights that are not those of the beginning."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in chain.parameters():
            p.add_(size * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return chain


def fitted(chain: Chain, tau: Trajectory, updates: int, lr: float = 0.02) -> Chain:
    """The chain after so many fits to one batch."""
    optimizer = torch.optim.Adam(chain.parameters(), lr=lr)
    for update in range(updates):
        chain.fit(optimizer, tau, chain.trace(tau)[1], update)
    return chain


LEARNED: dict[str, tuple[Operator, ...]] = {
    "HCA return": (Team, HcaReturn),
    "HCA state": (Team, HcaState),
    "COCOA reward": (Team, Cocoa),
    "COCOA features": (Team, partial(Cocoa, outcome="features")),
    "agent COCOA": (AgentCocoa,),
    "agent COCOA, taken": (AgentCocoaTaken,),
    "noise baseline": (Team, NoiseBaseline),
}
every_learned = pytest.mark.parametrize("name", LEARNED)


@every_learned
def test_seeds_are_fitted_apart(name: str) -> None:
    """What seed 5 learns from its episodes is the same alone and beside seed 2, and every weight moves."""
    game, said = TinyMdp(2, 4, ends=0.3), []
    for seeds in ((5,), (2, 5)):
        tau = rollout(game, None, 6, seeds)
        chain = Chain(LEARNED[name], Context(game, seeds))
        assert chain.learns and isinstance(chain.parts[-1], LearnsEpisodes)
        before = [p.clone() for p in chain.parameters()]
        fitted(chain, tau, 3)
        assert all(not torch.equal(p, q) for p, q in zip(chain.parameters(), before, strict=True))
        said.append(chain.assign(tau))
    assert said[0].any() and torch.allclose(said[0], said[1][:, 6:], atol=1e-4)


@every_learned
def test_rows_are_judged_by_themselves(name: str) -> None:
    """Whatever it has learned: the order of episodes does not matter, and nothing comes at dead steps."""
    game = TinyMdp(2, 4, ends=0.3)
    tau = rollout(game, None, 8, (2, 5))
    chain = stirred(Chain(LEARNED[name], Context(game, (2, 5))))
    credit, rows = chain.assign(tau), torch.tensor([3, 1, 2, 0, 7, 6, 5, 4, 9, 8, 11, 10, 15, 14, 12, 13])
    assert torch.allclose(chain.assign(rows_of(tau, rows)), credit[:, rows], atol=1e-4)
    assert bool(credit.isfinite().all()) and credit.any() and not credit[~tau.alive].any()


def test_nothing_is_known_before_something_is_learned() -> None:
    """h starts as the policy, exactly: HCA credits nothing, COCOA the immediate reward alone."""
    game = TinyMdp(2, 3)
    _, tau, context = everything(game)
    assert not Chain(LEARNED["HCA return"], context).double().assign(tau).any()
    own = torch.nn.functional.one_hot(tau.action, 2) * tau.reward[..., None, None] / tau.probs
    for name in ("HCA state", "COCOA reward", "COCOA features", "agent COCOA"):
        assert torch.equal(Chain(LEARNED[name], context).double().assign(tau), own * tau.alive[..., None, None])


def test_forbidden_actions_get_no_credit() -> None:
    """Where pi(c) = 0, w_c is 0 and h gives c no weight, whatever the network says."""
    game = MaskedTiny(horizon=4)
    tau = rollout(game, None, 20)
    assert tau.mask is not None and not bool(tau.mask.all())
    for name in ("HCA state", "COCOA reward", "COCOA features", "agent COCOA"):
        credit = stirred(Chain(LEARNED[name], Context(game))).assign(tau)
        assert not credit[~tau.mask].any() and credit[tau.mask].any() and bool(credit.isfinite().all())


@pytest.mark.parametrize("outcome", ["state", "reward", "features"])
def test_the_classifier_finds_the_exact_distribution(outcome: str) -> None:
    """Fitted to all that can happen, h is near the counted one, pair by pair; h sums to 1 and starts far away."""
    game = TinyMdp(1, 2) if outcome == "state" else TinyMdp(1, 2, seed=1)
    table, tau, _ = everything(game)
    context = Context(game, (0,), acting(game, table))
    owner: Any = HcaState(context, central=True) if outcome == "state" else AgentCocoa(context, outcome)
    part = owner.contribution.double()
    reward = tau.reward[..., None].expand(tau.action.shape)
    optimizer, errors = torch.optim.Adam(part.parameters(), lr=0.02), []
    for step in range(301):
        if step in (0, 300):
            ratio = later_ratios(part, tau, reward)[0, 1]
            with torch.no_grad():
                truth = exact(game)(tau, part.outcomes(tau, reward))[0, 1] / tau.probs[0]
            assert ((ratio * tau.probs[0]).sum(-1) - 1).abs().max() < 1e-9
            errors.append(float((ratio - truth)[tau.alive[1]].square().mean().sqrt()))
        optimizer.zero_grad()
        part.loss(tau, reward).sum().backward()
        optimizer.step()
    assert errors[1] < 0.2 * errors[0] and errors[0] > 0.1, errors


def test_features_tell_the_reward() -> None:
    """Fitted, they leave of the reward what only chance decides; before, most of it."""
    game = TinyMdp(2, 1, ends=0.0)
    _, tau, context = everything(game)
    chain = Chain((partial(AgentCocoa, outcome="features"),), context).double()
    features: Any = chain.parts[0].contribution.features  # type: ignore[union-attr]
    reward = tau.reward[..., None].expand(tau.action.shape)
    shares = game.tables[1]
    luck = shares.sum(-1).var(-1, correction=0)[tau.state.place, tau.action[..., 0] * 2 + tau.action[..., 1]].mean()
    before = float(features.loss(tau, reward).detach() - luck)
    fitted(chain, tau, 40)
    assert 0 <= float(features.loss(tau, reward).detach() - luck) < 0.1 * before


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)], ids=str)
def test_pairs_are_rows(hidden: tuple[int, ...]) -> None:
    """All pairs at once, some pairs in a fit, and one pair by hand: h/pi = e^f / sum_c pi_c e^f_c, f = p . q."""
    game = TinyMdp(2, 20, ends=0.0)
    tau = rollout(game, None, 3, (2, 5), dtype=torch.float64)
    part: Any = stirred(Cocoa(Context(game, (2, 5), fit=Fit(hidden=hidden))).double()).contribution
    reward = tau.reward[..., None].expand(tau.action.shape)
    found = later_ratios(part, tau, reward)
    p, q = part.hindsight.factors(tau.obs, part.outcomes(tau, reward))  # [S,N,A,D,T,E], [S,N,D,T,E]
    f = torch.einsum("snadte,sndke->tksena", p, q).flatten(2, 3).clamp(-32, 32)
    want = f.exp() / (tau.probs[:, None] * f.exp()).sum(-1, keepdim=True)
    drawn, _ = part._drawn(tau)
    some = part.hindsight(p, q, drawn[:, 0], tau.action, tau.probs).exp()
    b = torch.arange(6)
    for t, k in product(range(20), range(20)):
        if k > t:
            assert torch.allclose(found[t, k], want[t, k], rtol=1e-9)
    for t in range(19):
        own = want[t, drawn[t, 0], b].gather(-1, tau.action[t, ..., None])[..., 0]
        assert torch.allclose(some[t], own, rtol=1e-9)
    assert (want - 1).abs().max() > 0.1


def later_ratios(part: Any, tau: Trajectory, reward: Tensor) -> Tensor:
    """h/pi [T,T,B,N,A] of all k > t, 0 elsewhere."""
    T, B, N = tau.action.shape
    out = torch.zeros(T, T, B * N, tau.probs.shape[-1], dtype=torch.float64)
    with torch.no_grad():
        for rows, steps, ratio in part._ratios(tau, reward):
            out[steps, steps.start + 1 :, rows] = ratio.permute(1, 3, 0, 2)
    later = torch.arange(T)[:, None] < torch.arange(T)
    return (out * later[..., None, None]).unflatten(2, (B, N))


def test_pairs_are_later_live_steps() -> None:
    """Every t is fitted to live steps behind it, all of them in the long run; the last live step to none."""
    game = TinyMdp(1, 5, ends=0.3)
    tau = rollout(game, None, 300)
    k, real = Cocoa(Context(game), pairs=4).contribution._drawn(tau)
    assert k.shape == real.shape == (5, 4, 300)
    seen = set()
    for t, p, b in real.nonzero().tolist():
        assert k[t, p, b] > t and bool(tau.alive[k[t, p, b], b])
        seen.add((t, int(k[t, p, b])))
    assert seen == {(t, j) for t in range(5) for j in range(t + 1, 5)}
    length = tau.alive.sum(0)
    assert torch.equal(real[:, 0], torch.arange(5)[:, None] < length - 1)


def test_bins() -> None:
    """Nine bins of half a deviation about a seed's own mean over live steps, the outer ones open."""
    z = torch.tensor([[[-1.0], [1.0], [0.0], [10.0], [10.0], [10.0]]])
    alive = torch.tensor([[True, True, False, True, True, True]])
    assert binned(z, alive, 2, 9)[0, :, 0].tolist() == [2, 6, 4, 4, 4, 4]
    far = torch.cat((torch.zeros(1, 99, 1), torch.full((1, 1, 1), -50.0)), 1)
    assert binned(far, torch.ones(1, 100, dtype=torch.bool), 1, 9)[0, 98:, 0].tolist() == [4, 0]


def test_the_floor_bounds_the_credit() -> None:
    """pi/h is 1/floor at most: 1 - pi/h lies in 1 - 1/floor .. 1."""
    game = TinyMdp(2, 3, ends=0.0)
    tau = rollout(game, None, 50, dtype=torch.float64)
    r = torch.ones(tau.action.shape, dtype=torch.float64)
    for floor in (0.1, 0.5, 1.0):
        weight = stirred(HcaReturn(Context(game), floor=floor).double(), 3.0)(tau, r).detach() / reward_to_go(r)
        assert float(weight.min()) >= 1 - 1 / floor - 1e-9 and float(weight.max()) < 1
        assert floor == 1 or float(weight.min()) == pytest.approx(1 - 1 / floor)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (partial(HcaReturn, bins=4), "HcaReturn: bins=4 is not allowed; it must be an odd number, 3 or more"),
        (partial(HcaReturn, floor=2), "HcaReturn: floor=2 is not allowed; it must be a number in 0..1"),
        (partial(Cocoa, outcome="state"), "Cocoa: outcome='state' is not allowed; it must be one of reward, features"),
        (
            partial(AgentCocoa, outcome="r"),
            "AgentCocoa: outcome='r' is not allowed; it must be one of reward, features",
        ),
        (partial(AgentCocoaTaken, floor=-1), "AgentCocoaTaken: floor=-1 is not allowed; it must be a number in 0..1"),
        (partial(HcaState, pairs=0), "HcaState: pairs=0 is not allowed; it must be 1 or more"),
    ],
)
def test_knobs_out_of_range(operator: Any, words: str) -> None:
    """One sentence: operator, knob, value, what is allowed."""
    with pytest.raises(ChainError) as refused:
        operator(Context(TinyMdp()))
    assert str(refused.value) == words


# The luck of the episode.


@tiny_games
def test_any_noise_baseline_is_unbiased(game: TinyMdp) -> None:
    """Whatever V says of the state and the noise, the mean gradient is the team's true gradient."""
    table, tau, context = everything(game)
    chain = stirred(Chain((Team, NoiseBaseline), context).double())
    assert (chain.assign(tau) - Chain((Team, RETURN), context).assign(tau)).abs().max() > 0.1
    credit = expected_gradient(game, table, tau, chain.assign(tau))
    assert (credit - true_gradient(game, table)).abs().max() < 1e-12


def test_a_baseline_that_knows_the_policy_s_luck_is_biased() -> None:
    """The negative control: the agents' own luck tells the action, and is no noise of the world."""
    game = TinyMdp()
    table, tau, context = everything(game)
    chain = stirred(Chain((Team, NoiseBaseline), context).double())
    leaked = tau._replace(noise=tau.policy_noise[..., :1])
    wrong = expected_gradient(game, table, tau, chain.assign(leaked))
    assert (wrong - true_gradient(game, table)).abs().max() > 1e-3


def test_knowing_the_luck_lowers_the_variance() -> None:
    """With V(s, noise) of all futures the credit's mean square is below that with V(s)."""
    game = TinyMdp(2, 3, seed=2)
    table, tau, _ = everything(game)
    returns, t = reward_to_go(tau.reward), torch.arange(3)[:, None]
    told = torch.stack(
        [
            group_mean(returns[t], torch.cat((tau.state.place[t][:, None], tau.noise[t:, :, 0].T), -1), tau.alive[t])
            for t in range(3)
        ]
    )
    plain = returns - solve(game, table).v[t, tau.state.place]

    def power(x: Tensor) -> float:
        return float(x[tau.alive].square().mean())

    assert power(returns - told) < 0.9 * power(plain)


def test_the_baseline_is_fitted_to_the_return_given_the_luck() -> None:
    """Fitted, V explains more of the return than V(s) of backward induction can."""
    game = TinyMdp(2, 2, seed=2)
    table, tau, context = everything(game)
    chain = fitted(Chain((Team, NoiseBaseline), context).double(), tau, 60)
    plain = reward_to_go(tau.reward) - solve(game, table).v[torch.arange(2)[:, None], tau.state.place]
    left = chain.assign(tau)[..., 0][tau.alive].square().mean()
    assert left < 0.8 * plain[tau.alive].square().mean()


def test_the_noise_to_come() -> None:
    """Row t holds the noise of t, t+1, ... in -1..1, and 0 beyond the horizon."""
    noise = torch.rand(4, 3, 2)
    found = to_come(noise).unflatten(-1, (4, 2))
    for t, k in product(range(4), range(4)):
        want = 2 * noise[t + k] - 1 if t + k < 4 else torch.zeros(3, 2)
        assert torch.equal(found[t, :, k], want)


# The toys of Harutyunyan et al. 2019.


class Fork(NamedTuple):
    """Where the first action led."""

    t: Tensor  # [B] int64
    good: Tensor  # [B] bool
    shown: Tensor  # [B] what later steps show of it, its dtype is the game's


@dataclass(frozen=True)
class Toy(Env[Fork]):
    """One agent chooses once, 1 being better; `wait` noisy steps later the place that it led to shows itself and pays.

    Delayed effect: places pay -1 and 1, and the waiting steps pay noise. Ambiguous bandit: wait=0, places pay 1 and 2
    with noise of their own, and with probability `slip` the action leads to the other one.
    """

    wait: int = 4
    pay: tuple[float, float] = (-1.0, 1.0)
    slip: float = 0.0
    noise_between: float = 0.0
    noise_at_end: float = 0.0

    n_agents: ClassVar[int] = 1
    n_actions: ClassVar[int] = 2
    default_action: ClassVar[int] = 0
    reset_noise_size: ClassVar[int] = 0
    step_noise_size: ClassVar[int] = 1
    horizon = property(lambda self: self.wait + 2)
    obs_size = property(lambda self: self.horizon + 2)
    critic_size = property(lambda self: self.horizon + 2)

    def reset(self, noise: Tensor) -> Fork:
        zero = noise.new_zeros(len(noise))
        return Fork(zero.long(), zero.bool(), zero)

    def step(self, state: Fork, action: Tensor, noise: Tensor) -> Step[Fork]:
        u, last = noise[:, 0], state.t == self.horizon - 1
        good = torch.where(state.t == 0, (action[:, 0] == 1) ^ (u < self.slip), state.good)
        luck = (u - 0.5) * 12**0.5  # of deviation 1
        mean = torch.where(good, self.pay[1], self.pay[0])
        paid = torch.where(last, mean + self.noise_at_end * luck, self.noise_between * luck)
        paid = torch.where((state.t == 0) | (state.t >= self.horizon), 0, paid).to(u.dtype)
        return Step(Fork(state.t + 1, good, state.shown), paid, state.t >= self.horizon)

    def observe(self, state: Fork) -> Tensor:
        return self.critic_view(state)[:, None]

    def critic_view(self, state: Fork) -> Tensor:
        when = torch.nn.functional.one_hot(state.t.clamp(max=self.horizon), self.horizon + 1)[:, :-1]
        place = torch.stack((state.good, ~state.good), -1) & (state.t == self.horizon - 1)[:, None]
        return torch.cat((when, place), -1).to(state.shown.dtype)


def first_gradient(game: Toy, *chain: Operator) -> Tensor:
    """[S, episodes] each fresh episode's gradient in the log-odds of the first choice, at even odds.

    What the chain learns was fitted to other episodes of the same policy.
    """
    seeds = tuple(range(10))
    built = Chain(chain, Context(game, seeds))
    optimizer = torch.optim.Adam(built.parameters(), lr=0.01) if built.learns else None
    for k in range(40 if optimizer is not None else 0):
        batch = rollout(game, None, 32, seeds, first_episode=32 * k)
        built.fit(optimizer, batch, built.trace(batch)[1], k)  # type: ignore[arg-type]
    tau = rollout(game, None, 500, seeds, purpose="judge")
    w = built.assign(tau)[0, :, 0]
    g = (w[:, 1] - w[:, 0]) / 4 if w.dim() == 2 else w * (tau.action[0, :, 0] - 0.5)
    return g.unflatten(0, (len(seeds), -1))


def clarity(gradient: Tensor) -> Tensor:
    """[S] log of the signal-to-noise of one episode: (mean^2 / variance)."""
    return (gradient.mean(1).square() / gradient.var(1)).log()


def interval(x: Tensor) -> tuple[float, float]:
    """95 % of the mean over seeds."""
    half = 1.96 * float(x.std()) / len(x) ** 0.5
    return float(x.mean()) - half, float(x.mean()) + half


def test_delayed_effect() -> None:
    """Noise on the way drowns the return, not what the last place tells; and no value of a place that hides it helps.

    State HCA's gradient is clearer than the return's by an order of magnitude, and TD(0)'s has next to no mean.
    """
    game = Toy(4, noise_between=2.0)
    back, plain = first_gradient(game, Team, HcaState), first_gradient(game, Team, MonteCarlo)
    assert interval(clarity(back) - clarity(plain))[0] > 1.5
    td = first_gradient(game, Team, NStep)
    assert interval(back.mean(1))[0] > 0.3 and interval(plain.mean(1))[0] > 0.3  # the truth is 0.5
    assert interval(td.mean(1).abs())[1] < 0.1


def test_ambiguous_bandit() -> None:
    """Two places whose noisy pays overlap: hindsight given the return is clearer than the return minus its mean."""
    game = Toy(0, (1.0, 2.0), slip=0.1, noise_at_end=1.5)
    back, plain = first_gradient(game, Team, HcaReturn), first_gradient(game, Team, MonteCarlo)
    assert interval(clarity(back) - clarity(plain))[0] > 0
    assert interval(back.mean(1))[0] > 0.05 and interval(plain.mean(1))[0] > 0.1  # the truth is 0.2
