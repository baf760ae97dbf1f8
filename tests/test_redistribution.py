"""When was it earned: each redistribution keeps what its source claims, the return, its optimum or its fit."""

from __future__ import annotations

from functools import cached_property, partial
from itertools import combinations
from typing import Any

import pytest
import torch
from test_credit import RETURN, bias, everything, narrow
from tiny_mdp import LimitedTiny, TinyMdp, TinyState, joint_index, rows_of, solve
from torch import Tensor

from envs.base import Env
from envs.walking_robot import WalkingRobot
from marl.credit.base import Chain, ChainError, Context, Credit, LearnsEpisodes, Signal
from marl.credit.spatial.team import Team
from marl.credit.temporal.decomposition import ReturnDecomposition, some_steps, subset_loss
from marl.credit.temporal.ircr import Ircr
from marl.credit.temporal.potential import OptimalShaping, PotentialShaping
from marl.credit.temporal.rudder import Rudder
from marl.credit.temporal.uniform import Uniform
from marl.learn.policy_gradient import adam
from marl.rollout import rollout
from marl.sequence import Memory
from marl.types import Trajectory

SEEDS = (3, 8)
ROBOT = WalkingRobot(3, 12, 4, 5, 2, 1, n_cues=3)
TINY = TinyMdp(2, 4, ends=0.4)
ALL: list[Any] = [Uniform, Ircr, Rudder, ReturnDecomposition, PotentialShaping]
kinds = pytest.mark.parametrize("kind", ["team", "agents"])
games = pytest.mark.parametrize("game", [TINY, ROBOT], ids=["tiny", "robot"])


def lived(game: Env[Any], episodes: int = 8, first: int = 0) -> Trajectory:
    return rollout(game, None, episodes, SEEDS, first, dtype=torch.float64)


def stream(tau: Trajectory, kind: str) -> Tensor:
    """A signal of either kind, with nonsense at dead steps, which nobody may read."""
    own = torch.randn(tau.action.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if kind == "team":
        return torch.where(tau.alive, tau.reward, torch.nan)
    return torch.where(tau.alive[..., None], own, torch.nan)


def given(part: Credit, tau: Trajectory, signal: Tensor) -> Tensor:
    """What an operator makes of a signal, in float64."""
    with torch.no_grad():
        out: Tensor = part.double()(tau, signal)
    return out


def late(tau: Trajectory) -> Tensor:
    """[T,B] the whole return, paid in the last live step."""
    last = tau.alive & ~torch.cat((tau.alive[1:], torch.zeros_like(tau.alive[:1])))
    return torch.where(last, tau.reward.sum(0), torch.zeros_like(tau.reward))


def single(tau: Trajectory) -> Trajectory:
    """In float32, as in training."""
    return Trajectory(**{k: narrow(v) for k, v in tau._asdict().items()})


def fitted(operator: Any, game: Env[Any], tau: Trajectory, signal: Tensor, updates: int, seeds: Any = SEEDS) -> Any:
    """An operator after some updates of a chain on one batch, as training fits it."""
    chain = Chain((operator,), Context(game, tuple(seeds)), (Signal.TEAM,))
    optimizer = adam(chain.parameters(), 0.02)
    for update in range(updates):
        chain.fit(optimizer, single(tau), [signal.float()], update)
    return chain.parts[0]


# What all of them keep.


@kinds
@games
@pytest.mark.parametrize("operator", ALL, ids=lambda op: op.__name__)
def test_shape_dead_steps_and_seeds(operator: Any, game: Env[Any], kind: str) -> None:
    """A signal of the incoming kind and dtype, 0 at dead steps whatever stood there; each seed as if it were alone."""
    tau = lived(game)
    signal = stream(tau, kind)
    found = given(operator(Context(game, SEEDS)), tau, signal)
    assert found.shape == signal.shape and found.dtype == torch.float64
    assert bool(found.isfinite().all()) and not found[~tau.alive].any() and bool(found.any())
    alone = given(operator(Context(game, SEEDS[1:])), rows_of(tau, range(8, 16)), signal[:, 8:])
    assert torch.allclose(alone, found[:, 8:], atol=1e-12)
    assert operator(Context(game, SEEDS))(single(tau), signal.float()).dtype == torch.float32


@pytest.mark.parametrize("operator", [Rudder, ReturnDecomposition, PotentialShaping], ids=lambda op: op.__name__)
def test_seeds_are_fitted_apart(operator: Any) -> None:
    """What seed 8 learns is the same alone and beside seed 3; every weight moves."""
    tau = lived(TINY)
    both = fitted(operator, TINY, tau, tau.reward, 3)
    fresh = operator(Context(TINY, SEEDS))
    assert all(not torch.equal(p, q) for p, q in zip(both.parameters(), fresh.parameters(), strict=True))
    mine = rows_of(tau, range(8, 16))
    alone = fitted(operator, TINY, mine, mine.reward, 3, SEEDS[1:])
    apart = given(alone, mine, mine.reward) - given(both, tau, tau.reward)[:, 8:]
    assert apart.abs().max() < 1e-5
    assert (given(fresh, tau, tau.reward) - given(both, tau, tau.reward)).abs().max() > 1e-3


@kinds
@games
@pytest.mark.parametrize("steps", [0, 5])
def test_return_equivalence(game: Env[Any], kind: str, steps: int) -> None:
    """Uniform and RUDDER keep every return to 1e-5 (in float64 1e-12), however little was fitted; the others do not."""
    tau = lived(game)
    signal = stream(tau, kind)
    want = signal.nan_to_num().sum(0)
    for operator in (Uniform, Rudder, Ircr, ReturnDecomposition):
        part: Any = operator(Context(game, SEEDS))
        if isinstance(part, LearnsEpisodes):
            optimizer = torch.optim.Adam(part.parameters(), 0.01)
            for _ in range(steps):
                optimizer.zero_grad()
                part.loss(single(tau), signal.float()).sum().backward()
                optimizer.step()
        with torch.no_grad():
            rough = part(single(tau), signal.float()).sum(0) - want
        exact = given(part, tau, signal).sum(0) - want
        if operator in (Uniform, Rudder):
            assert rough.abs().max() < 1e-5 and exact.abs().max() < 1e-12
        else:
            assert exact.abs().max() > 0.1


def test_knobs_out_of_range() -> None:
    """One sentence: operator, knob, value, what is allowed."""
    for operator, words in (
        (partial(ReturnDecomposition, steps=0), "ReturnDecomposition: steps=0 is not allowed; it must be 1 or more"),
        (
            partial(ReturnDecomposition, steps=1, correct=True),
            "ReturnDecomposition: steps=1 is not allowed; it must be 2 or more with correct=True",
        ),
        (partial(Rudder, auxiliary=-1.0), "Rudder: auxiliary=-1.0 is not allowed; it must be a number, 0 or more"),
        (partial(PotentialShaping, gamma=2), "PotentialShaping: gamma=2 is not allowed; it must be a number in 0..1"),
        (OptimalShaping, "OptimalShaping needs optimal_value, and TinyMdp has none"),
    ):
        with pytest.raises(ChainError) as refused:
            operator(Context(TinyMdp()))
        assert str(refused.value) == words


def test_nonsense_at_dead_steps_goes_no_further() -> None:
    """Between the operators of a chain dead steps are emptied, so that a sum over time never meets them."""

    class Chatty(Credit):
        signals = {Signal.RAW: Signal.TEAM}
        aligned, efficient = True, True

        def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
            return torch.where(trajectory.alive, signal, 99.0)

    tau, context = lived(TINY), Context(TINY, SEEDS)
    assert not bool(tau.alive.all())
    assert torch.equal(Chain((Chatty, Team, RETURN), context).assign(tau), Chain((Team, RETURN), context).assign(tau))


# Potentials.


@kinds
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("game", [TINY, LimitedTiny(horizon=4, ends=0.6), ROBOT], ids=["ends", "limits", "robot"])
def test_shaping_shifts_the_return_by_the_first_potential(game: Env[Any], gamma: float, kind: str) -> None:
    """sum_t gamma^t r'_t = sum_t gamma^t r_t - Phi(s_0), however an episode ended; single rewards do move."""
    tau = lived(game)
    signal = stream(tau, kind)
    part = PotentialShaping(Context(game, SEEDS), gamma=gamma).double()
    with torch.no_grad():
        value = part.value(tau)
    first = value[0].mean(-1) if kind == "team" else value[0]
    fade = gamma ** torch.arange(len(signal)).double().reshape(-1, *[1] * (signal.dim() - 1))
    plain, found = signal.nan_to_num(), given(part, tau, signal)
    assert ((fade * found).sum(0) - ((fade * plain).sum(0) - first)).abs().max() < 1e-12
    assert (found - plain).abs().max() > 0.1 and first.abs().max() > 0.01


class KnownTiny(TinyMdp):
    """A tiny game that knows V*, by backward induction over joint actions."""

    @cached_property
    def best(self) -> Tensor:
        """[T+1,S]."""
        follow, shares, ends = self.tables
        later = [torch.zeros(self.n_places, dtype=torch.float64)]
        for _ in range(self.horizon):
            q = (shares.sum(-1) + (ends == 0).double() * later[0][follow]).mean(-1)
            later.insert(0, q.amax(-1))
        return torch.stack(later)

    def optimal_value(self, state: TinyState) -> Tensor:
        value = self.best[state.t.clamp(max=self.horizon), state.place]
        return torch.where(state.over, torch.zeros_like(value), value).to(state.paid.dtype)


def test_shaping_leaves_the_gradient_and_the_optimum() -> None:
    """Any Phi: the mean gradient of whole returns is the team's. V*: the best joint action earns 0, others less."""
    game = KnownTiny()
    for operator in (PotentialShaping, OptimalShaping):
        assert bias(game, (operator, Team, RETURN)) < 1e-12
    assert bias(game, (Uniform, Team, RETURN)) > 1e-3
    _, _, tau = everything(game)
    shaped = given(OptimalShaping(Context(game)), tau, tau.reward)
    assert (shaped.sum(0) - (tau.reward.sum(0) - game.best[0, tau.state.place[0]])).abs().max() < 1e-12
    j = joint_index(game, tau.action)
    for t in range(game.horizon):
        for s in range(game.n_places):
            here = tau.alive[t] & (tau.state.place[t] == s)
            means = torch.stack([shaped[t, here & (j[t] == k)].mean() for k in range(len(game.joints))])
            assert means.max().abs() < 1e-12 and means.min() < -1e-3


@pytest.mark.parametrize("delay", [0, 4])
def test_the_optimal_potential_finds_the_culprit_s_step(delay: int) -> None:
    """walking_robot, kappa = 0: r' is -((T-t-D)/T + P) where the first error is made, and 0 everywhere else."""
    game = WalkingRobot(3, 12, delay, 5, 2, 1, n_cues=3, temptation=0.0, fall_penalty=0.7)
    tau = rollout(game, None, 60, dtype=torch.float64)
    found = given(OptimalShaping(Context(game)), tau, tau.reward)
    error = (tau.state.decisive & (tau.action != torch.tensor(game.safe_action))).any(-1) & tau.alive
    first = error & (error.cumsum(0) == 1)
    t = torch.arange(12)[:, None].double()
    assert (found - torch.where(first, -((12 - t - delay) / 12 + 0.7), 0.0 * t)).abs().max() < 1e-12
    assert 10 < int(first.sum()) < 60
    tempted = WalkingRobot(3, 12, delay, 5, 2, 1, n_cues=3, temptation=0.5)  # the control: holding costs something
    tau = rollout(tempted, None, 60, dtype=torch.float64)
    found = given(OptimalShaping(Context(tempted)), tau, tau.reward)
    assert int((found.abs() > 1e-9).sum()) > 100


def test_a_learned_potential_comes_to_the_value() -> None:
    """Fitted to all that can happen, Phi is near V of the policy; before, it was not."""
    game = TinyMdp(2, 2)
    table, _, tau = everything(game)
    truth = solve(game, table).v[torch.arange(2)[:, None], tau.state.place]
    gaps = []
    for updates in (0, 60):
        part = fitted(partial(PotentialShaping, lam=1.0), game, tau, tau.reward, updates, (0,))
        with torch.no_grad():
            gaps.append(float((part.value(single(tau)).mean(-1) - truth)[tau.alive].abs().max()))
    assert gaps[1] < 0.1 < gaps[0]


# Uniform and IRCR.


def test_uniform_pays_every_live_step_the_same() -> None:
    """G / L: one number an episode, and it does not depend on when the reward came."""
    tau = lived(TINY)
    found = given(Uniform(Context(TINY)), tau, tau.reward)
    share = tau.reward.sum(0) / tau.alive.sum(0)
    assert torch.equal(found, share * tau.alive)
    assert (found - given(Uniform(Context(TINY)), tau, late(tau))).abs().max() < 1e-12


def test_ircr_is_the_normalised_return() -> None:
    """(G - min) / (max - min) of the seed at each live step, rising with the return; 0 where no two returns differ."""
    tau = lived(TINY)
    part = Ircr(Context(TINY, SEEDS))
    found, returns = given(part, tau, tau.reward), tau.reward.sum(0).reshape(2, -1)
    low, high = returns.amin(1, keepdim=True), returns.amax(1, keepdim=True)
    assert (found - ((returns - low) / (high - low)).flatten() * tau.alive).abs().max() < 1e-12
    assert float(found.min()) == 0 and float(found.max()) == 1
    assert not given(part, tau, torch.ones_like(tau.reward) / tau.alive.sum(0)).abs().max() > 1e-9


def test_ircr_remembers_extremes_and_drifts() -> None:
    """Only batches that train are remembered; a new best episode rescales the same episodes' rewards."""
    tau, more = lived(TINY, 4), lived(TINY, 64, 100)
    chain = Chain((Ircr, Team, RETURN), Context(TINY, SEEDS))
    before = chain.assign(tau)
    chain.assign(more)
    assert torch.equal(chain.assign(tau), before), "asking is not training"
    assert chain.learns and not list(chain.parameters())
    chain.fit(adam(chain.parameters(), 0.01), more, chain.trace(more)[1], 0)
    after = chain.assign(tau)
    assert (after - before).abs().max() > 0.1
    part: Any = chain.parts[0]
    reached = more.reward.sum(0).reshape(2, -1)
    assert torch.equal(part.low, reached.amin(1)[:, None].expand(2, 2))
    assert torch.equal(part.high, reached.amax(1)[:, None].expand(2, 2))
    chain.fit(adam(chain.parameters(), 0.01), tau, chain.trace(tau)[1], 1)
    assert torch.equal(chain.assign(tau), after), "a narrower batch narrows nothing"


# Randomised return decomposition.


def test_subsets_are_fair_and_named_by_the_episode() -> None:
    """Exactly K live steps, each as likely as any; an episode's own, wherever it stands; others in the next batch."""
    tau = lived(TINY, 600)
    draw = torch.tensor(0)
    chosen, length = some_steps(tau, 2, draw), tau.alive.sum(0)
    assert torch.equal(chosen.sum(0), length.clamp(max=2)) and not bool((chosen & ~tau.alive).any())
    whole = length == 4
    often = chosen[:, whole].double().mean(1)
    assert (often - 0.5).abs().max() < 4.5 * 0.5 / int(whole.sum()) ** 0.5
    rows = torch.randperm(1200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(some_steps(rows_of(tau, rows), 2, draw), chosen[:, rows])
    assert not torch.equal(some_steps(tau, 2, draw + 1), chosen)


def test_the_mean_over_subsets_is_least_squares_and_a_variance() -> None:
    """Over all subsets: mean loss = (G - sum R)^2 + Var of the scaled sum; corrected: (G - sum R)^2 itself."""
    L, K = 5, 3
    paid = torch.randn(L + 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alive = torch.tensor([True] * L + [False] * 2)[:, None].expand(-1, 4)
    returns = torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain, corrected, sums = [], [], []
    for subset in combinations(range(L), K):
        chosen = torch.zeros_like(alive)
        chosen[list(subset)] = True
        plain.append(subset_loss(paid, returns, chosen, alive, False))
        corrected.append(subset_loss(paid, returns, chosen, alive, True))
        sums.append(L / K * paid[list(subset)].sum(0))
    whole, scaled = (returns - paid[:L].sum(0)).square(), torch.stack(sums)
    assert (scaled.mean(0) - paid[:L].sum(0)).abs().max() < 1e-12
    assert (torch.stack(plain).mean(0) - whole - scaled.var(0, correction=0)).abs().max() < 1e-12
    assert (torch.stack(corrected).mean(0) - whole).abs().max() < 1e-12
    assert scaled.var(0).min() > 0.01
    for correct in (False, True):
        assert (subset_loss(paid, returns, alive, alive, correct) - whole).abs().max() < 1e-12


class Drawn(TinyMdp):
    """Places are drawn afresh at every step whatever anyone does, so that rewards are identified by their sums."""

    @cached_property
    @torch.inference_mode(False)
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        follow, shares, ends = TinyMdp(self.n_agents, 1, self.n_actions, self.n_places, seed=self.seed).tables
        fresh = torch.arange(self.atoms).expand_as(follow)
        return fresh, shares.mean(2, keepdim=True).expand_as(shares), torch.zeros_like(ends)


def test_additive_rewards_are_recovered_from_their_sum() -> None:
    """Only the sum is told, at the end: with all steps or the corrected loss R is r up to a clock; before, it is not.

    The control: uncorrected, small subsets draw the rewards of an episode together.
    """
    game = Drawn(2, 4, 2, 2)
    tau = rollout(game, None, 200, 0, dtype=torch.float64)
    truth = tau.reward - tau.reward.mean(1, keepdim=True)

    def learned(updates: int, **knobs: Any) -> Tensor:
        part = fitted(partial(ReturnDecomposition, **knobs), game, tau, late(tau), updates, (0,))
        found = given(part, tau, late(tau))
        return found - found.mean(1, keepdim=True)

    def miss(found: Tensor) -> float:
        return float((found - truth).square().mean().sqrt() / truth.std())

    assert miss(learned(0)) > 0.7
    assert miss(learned(50)) < 0.05
    assert miss(learned(50, steps=2, correct=True)) < 0.3
    together = learned(50, steps=2)
    assert float((together * truth).sum() / truth.square().sum()) < 0.6


# RUDDER.


def test_memory_equals_a_loop_of_its_own() -> None:
    """Outputs and gradients of all seeds are those of the equations, one seed, episode and step at a time."""
    net = Memory("m", SEEDS, (3, 5, 4), 2, horizon=6).double()
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = net(x)
    by_hand = []
    for b in range(4):
        s = b // 2
        (w0, w1), (b0, b1) = ([p[s] for p in net.see.weights], [p[s, :, 0] for p in net.see.biases])
        cell, told = torch.zeros(4, dtype=torch.float64), []
        for t in range(6):
            z, g = (w1 @ torch.relu(w0 @ x[t, b] + b0) + b1).split(4)
            gate = torch.sigmoid(g + net.recall[s] @ torch.tanh(cell) - torch.log(torch.tensor(6.0).double()))
            cell = cell + gate * torch.tanh(z)
            told.append(net.say.weights[0][s] @ cell + net.say.biases[0][s, :, 0])
        by_hand.append(torch.stack(told))
    want = torch.stack(by_hand, 1)
    assert (out - want).abs().max() < 1e-12
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads, wanted = (torch.autograd.grad((weight * y).sum(), list(net.parameters())) for y in (out, want))
    assert max(float((g - h).abs().max()) for g, h in zip(grads, wanted, strict=True)) < 1e-12


def test_memory_sees_no_future_and_no_other_episode() -> None:
    """Later inputs and other rows change nothing; an early input changes all that is said after it."""
    net = Memory("m", SEEDS, (3, 5, 4), 2, horizon=6)
    x = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[2:, 1] += 1
    moved = (net(changed) - net(x)).abs().amax(-1) > 1e-6
    assert bool(moved[2:, 1].all()) and not moved[:2].any() and not moved[:, [0, 2, 3]].any()


def prefixes(game: TinyMdp, tau: Trajectory) -> Tensor:
    """[T,B] the number of each episode's past up to its action at t, one for all episodes that share it."""
    seen = torch.where(tau.alive, tau.state.place * len(game.joints) + joint_index(game, tau.action), -1)
    return torch.stack([seen[: t + 1].T.unique(dim=0, return_inverse=True)[1] for t in range(len(seen))])


def mean_by(group: Tensor, x: Tensor) -> Tensor:
    """[B] the mean of x [B] over those of the same group [B]."""
    size = int(group.max()) + 1
    total = torch.zeros(size, dtype=x.dtype).index_add_(0, group, x)
    return (total / torch.bincount(group, minlength=size).clamp(min=1))[group]


def expected_future(game: TinyMdp, tau: Trajectory, found: Tensor) -> Tensor:
    """[T,B] E[sum_{k > t} r'_k | s_0, a_0, ..., s_t, a_t]."""
    later = found.flip(0).cumsum(0).flip(0) - found
    return torch.stack([mean_by(g, x) for g, x in zip(prefixes(game, tau), later, strict=True)])


def test_an_exact_forecast_leaves_nothing_to_expect() -> None:
    """g_t = E[G | past]: the expected future redistributed reward is 0 at all steps; that of the delayed reward is not.

    What is left at a step is then, in the mean, that step's Q - V and the luck before it.
    """
    game = TinyMdp(1, 3, ends=0.0)
    table, _, tau = everything(game)
    part: Any = Rudder(Context(game))
    exact = torch.stack([mean_by(g, tau.reward.sum(0)) for g in prefixes(game, tau)])
    part.forecast = lambda trajectory, signal: exact
    found = given(part, tau, late(tau))
    assert expected_future(game, tau, found).abs().max() < 1e-12
    assert expected_future(game, tau, late(tau)).abs().max() > 0.5
    truth, j = solve(game, table), joint_index(game, tau.action)
    for s in range(3):
        for k in range(2):
            rows = (tau.state.place[0] == s) & (j[0] == k)
            assert abs(float(found[0, rows].mean() - truth.q[0, s, k])) < 1e-12


def test_rudder_is_fitted_to_its_optimum() -> None:
    """A delayed tiny game: after the fit little future reward is left to expect; fresh, or without prefixes, much."""
    game = TinyMdp(1, 3, ends=0.0, seed=1)
    _, _, tau = everything(game)
    left = {}
    for name, updates, auxiliary in (("fresh", 0, 0.5), ("fitted", 60, 0.5), ("no prefixes", 30, 0.0)):
        part = fitted(partial(Rudder, auxiliary=auxiliary), game, tau, late(tau), updates, (0,))
        left[name] = float(expected_future(game, tau, given(part, tau, late(tau))).square().mean().sqrt())
    delayed = float(expected_future(game, tau, late(tau)).square().mean().sqrt())
    assert left["fitted"] < 0.1 * delayed and left["fitted"] < 0.2 * min(left["fresh"], left["no prefixes"])


def test_rudder_finds_the_culprit_s_step() -> None:
    """walking_robot: fitted on other walks, its worst step of a fall is the first error's; fresh, it is not."""
    game = WalkingRobot(2, 12, 5, 4, n_cues=3, temptation=0.0)
    train, test = (rollout(game, None, 200, 0, first) for first in (0, 1000))
    error = (test.state.decisive & (test.action != torch.tensor(game.safe_action))).any(-1) & test.alive
    fell = error.any(0)
    hits = []
    for updates in (0, 20):
        part = fitted(Rudder, game, train, train.reward, updates, (0,))
        with torch.no_grad():
            worst = part(test, test.reward).argmin(0)
        hits.append(float((worst == error.int().argmax(0))[fell].double().mean()))
    assert hits[0] < 0.5 < 0.9 < hits[1]
