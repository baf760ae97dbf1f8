"""STAS and TAR2: what is divided adds up, by Shapley's weights or by shares of one, and each claim has its control."""

from __future__ import annotations

from functools import partial
from itertools import permutations
from math import comb
from typing import Any

import pytest
import torch
from test_credit import RETURN
from test_redistribution import given, lived, single, stream
from tiny_mdp import (
    TinyMdp,
    acting,
    every_noise,
    expected_gradient,
    lopsided,
    rows_of,
    true_gradient,
)
from torch import Tensor

from envs.base import Env
from envs.walking_robot import WalkingRobot
from marl.credit.base import Chain, ChainError, Context, Signal, check_chain
from marl.credit.joint.stas import Stas, fixed_orders, joining, some_agents
from marl.credit.joint.tar2 import Tar2, weights
from marl.credit.spatial.shapley import coalitions
from marl.credit.spatial.team import Team
from marl.credit.temporal.monte_carlo import MonteCarlo
from marl.credit.temporal.rudder import Rudder
from marl.critic import Fit
from marl.oracle import shapley
from marl.rollout import play, rollout
from marl.types import Trajectory

SEEDS = (3, 8)
ROBOT = WalkingRobot(3, 12, 4, 5, 2, 1, n_cues=3)
TINY = TinyMdp(2, 4, ends=0.4)
SMALL = Fit(hidden=(8,))
both = pytest.mark.parametrize("operator", [Stas, Tar2], ids=lambda op: op.__name__)
games = pytest.mark.parametrize("game", [TINY, ROBOT], ids=["tiny", "robot"])


def stirred(part: Any, seed: int = 0) -> Any:
    """The same operator with other weights."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in part.parameters():
            p.add_(torch.randn(p.shape, generator=g).to(p))
    return part


def tokens(agents: int, rows: int = 5, seed: int = 0) -> Tensor:
    """u [S,N,H,R] of two seeds."""
    return torch.randn(2, agents, 8, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(agents: int, **knobs: Any) -> Any:
    """STAS for so many agents, in float64, with weights of its own."""
    return stirred(Stas(Context(TinyMdp(agents, 4), SEEDS, fit=SMALL), **knobs)).double()


# What both of them keep.


@both
@games
def test_shape_dead_steps_and_seeds(operator: Any, game: Env[Any]) -> None:
    """A stream per agent, 0 at dead steps whatever stood there; each seed and each episode as if it were alone."""
    tau = lived(game)
    signal = stream(tau, "team")
    found = given(operator(Context(game, SEEDS)), tau, signal)
    assert found.shape == tau.action.shape and found.dtype == torch.float64
    assert bool(found.isfinite().all()) and not found[~tau.alive].any() and bool(found.any())
    alone = given(operator(Context(game, SEEDS[1:])), rows_of(tau, range(8, 16)), signal[:, 8:])
    assert torch.allclose(alone, found[:, 8:], atol=1e-12)
    rows = torch.tensor([3, 1, 2, 0, 7, 6, 5, 4, 9, 8, 11, 10, 15, 14, 12, 13])
    moved = given(operator(Context(game, SEEDS)), rows_of(tau, rows), signal[:, rows])
    assert torch.allclose(moved, found[:, rows], atol=1e-12)
    assert operator(Context(game, SEEDS))(single(tau), signal.float()).dtype == torch.float32


def learnt(operator: Any, game: Env[Any], tau: Trajectory, updates: int, seeds: Any = SEEDS, lr: float = 0.02) -> Any:
    """An operator after some updates of a chain on one batch, as training fits it."""
    chain = Chain((operator,), Context(game, tuple(seeds)), (Signal.AGENT,))
    optimizer = torch.optim.Adam(chain.parameters(), lr)
    for update in range(updates):
        chain.fit(optimizer, single(tau), [tau.reward.float()], update)
    return chain.parts[0]


@both
def test_seeds_are_fitted_apart(operator: Any) -> None:
    """What seed 8 learns is the same alone and beside seed 3; every weight moves."""
    tau = lived(TINY)
    together, fresh = learnt(operator, TINY, tau, 3), operator(Context(TINY, SEEDS))
    assert all(not torch.equal(p, q) for p, q in zip(together.parameters(), fresh.parameters(), strict=True))
    mine = rows_of(tau, range(8, 16))
    alone = learnt(operator, TINY, mine, 3, SEEDS[1:])
    apart = given(alone, mine, mine.reward) - given(together, tau, tau.reward)[:, 8:]
    assert apart.abs().max() < 1e-5
    assert (given(fresh, tau, tau.reward) - given(together, tau, tau.reward)).abs().max() > 1e-3


@games
@pytest.mark.parametrize("updates", [0, 5])
def test_return_equivalence(game: Env[Any], updates: int) -> None:
    """TAR2 keeps every return to 1e-5 (in float64 1e-12) however little was fitted, and says so; STAS does neither."""
    tau = lived(game)
    want = tau.reward.sum(0)
    for operator in (Tar2, Stas):
        part: Any = learnt(operator, game, tau, updates)
        with torch.no_grad():
            rough = part(single(tau), tau.reward.float()).sum((0, 2)) - want
        exact = given(part, tau, stream(tau, "team")).sum((0, 2)) - want
        if part.efficient:
            assert rough.abs().max() < 1e-5 and exact.abs().max() < 1e-12
        else:
            assert exact.abs().max() > 0.1
        assert part.efficient == (operator is Tar2) and not part.aligned


@both
def test_the_sum_is_fitted_to_the_return(operator: Any) -> None:
    """On episodes that it was not fitted to, what is summed tells the return; before the fit it does not."""
    train, test = (rollout(ROBOT, None, 200, 0, first, dtype=torch.float64) for first in (0, 1000))
    left = []
    for updates in (0, 10):
        part = learnt(operator, ROBOT, train, updates, (0,)).double()
        with torch.no_grad():
            found = part.scores(test) if operator is Tar2 else part(test, test.reward)
        total = torch.where(test.alive[..., None], found, 0).sum((0, 2))
        left.append(float((total - test.reward.sum(0)).square().mean() / test.reward.sum(0).var()))
    assert left[0] > 0.5 and left[1] < 0.1, left


@both
def test_symmetric_agents(operator: Any) -> None:
    """A network that does not read who is who: agents that swap what they saw and did swap their credit."""
    part = stirred(operator(Context(ROBOT, SEEDS))).double()
    with torch.no_grad():
        part.memory.see.weights[0][:, :, -ROBOT.n_agents :] = 0
    tau = lived(ROBOT)
    order = torch.tensor([2, 0, 1])
    swapped = tau._replace(obs=tau.obs[:, :, order], action=tau.action[..., order])
    found = given(part, tau, tau.reward)
    assert torch.allclose(given(part, swapped, tau.reward), found[..., order], atol=1e-12)
    assert (found[..., order] - found).abs().max() > 1e-3


@both
def test_one_agent_leaves_only_time(operator: Any) -> None:
    """N = 1: TAR2 is G softmax_t(c L / G), STAS the whole team's v_t; nothing is left to divide among agents."""
    game = TinyMdp(1, 4, ends=0.4)
    tau = lived(game)
    part = stirred(operator(Context(game, SEEDS))).double()
    found = given(part, tau, tau.reward)[..., 0]
    G, L = tau.reward.sum(0), tau.alive.sum(0)
    with torch.no_grad():
        if operator is Tar2:
            x = torch.where(tau.alive, part.scores(tau)[..., 0] * L / G, -torch.inf)
            want = torch.where(G != 0, G * x.softmax(0), 0)
        else:
            u = part.tokens(tau)
            want = part.worth(u)[:, 0].unflatten(1, (4, 8)).transpose(0, 1).flatten(1)
    assert (found - want)[tau.alive].abs().max() < 1e-9 and found.any()


def test_kinds() -> None:
    """From the raw or a redistributed reward to streams per agent, then a return; never behind a spatial operator."""
    for operator in (Stas, Tar2):
        assert check_chain((operator, MonteCarlo)) is Signal.ADVANTAGE
        assert check_chain((Rudder, operator, MonteCarlo)) is Signal.ADVANTAGE
        with pytest.raises(ChainError, match=rf"{operator.__name__} takes RAW or TEAM and cannot follow Team"):
            check_chain((Team, operator, MonteCarlo))


# STAS.


def by_orders(part: Any, u: Tensor, orders: list[tuple[int, ...]]) -> Tensor:
    """Mean gain [S,N,R] on joining, one order and one agent at a time."""
    out = torch.zeros(u.shape[0], u.shape[1], u.shape[3], dtype=u.dtype)
    for order in orders:
        together = torch.zeros_like(u[:, :1])
        for agent in order:
            before, together = together, together + u[:, agent : agent + 1]
            out[:, agent] += (part.worth(together) - part.worth(before))[:, 0] / len(orders)
    return out


@pytest.mark.parametrize("agents", [1, 2, 3, 4])
def test_all_orders_are_shapley(agents: int) -> None:
    """The shares that are given out, all N! orders by hand, and the oracle's formula for v(C): the same numbers."""
    part, u = built(agents), tokens(agents)
    with torch.no_grad():
        found = part.shares(u)
        assert (found - by_orders(part, u, list(permutations(range(agents))))).abs().max() < 1e-12

        def worth(present: Tensor) -> Tensor:  # [S*R,K,N] -> [S*R,K]
            members = present[0].double() @ u.flatten(2)
            return part.worth(members.unflatten(2, u.shape[2:])).transpose(1, 2).flatten(0, 1)

        told = shapley.exact(worth, 10, agents).values.unflatten(0, (2, 5)).transpose(1, 2)
    assert (found - told).abs().max() < 1e-12
    every = torch.tensor(list(permutations(range(agents))))
    for (member, weight), (others, want) in ((joining(every), coalitions(agents, torch.device("cpu"))),):
        key = 2 ** torch.arange(agents)
        assert torch.allclose(weight[(member * key).sum(1).argsort()], want[(others * key).sum(1).argsort()])


def test_coin_flips_are_not_shapley() -> None:
    """The control: masks that keep each teammate by a coin flip give other numbers, and they do not add up."""
    part, u, N = built(4), tokens(4), 4
    member, weight = coalitions(N, torch.device("cpu"))
    coin = weight.sign() / 2 ** (N - 1)
    with torch.no_grad():
        value = part.worth((member.double() @ u.flatten(2)).unflatten(2, u.shape[2:]))
        gain = (value[:, -1] - value[:, 0])[:, None]
        right, wrong = weight.T @ value, coin.T @ value
    assert (part.shares(u).detach() - right).abs().max() < 1e-12
    assert (right.sum(1, keepdim=True) - gain).abs().max() < 1e-12
    assert (wrong.sum(1, keepdim=True) - gain).abs().max() > 1e-3 and (wrong - right).abs().max() > 1e-3


@pytest.mark.parametrize(("agents", "orders"), [(4, None), (4, 1), (7, None), (7, 3)])
def test_axioms(agents: int, orders: int | None) -> None:
    """Shares add up to v(all) - v({}); who adds nothing gets exactly 0; exact shares of twins are the same."""
    part, u = built(agents, orders=orders), tokens(agents)
    u[:, 1] = 0
    u[:, 2] = u[:, 0]
    with torch.no_grad():
        found = part.shares(u)
        gain = part.worth(u.sum(1, keepdim=True)) - part.worth(u[:, :1] * 0)
    assert (found.sum(1, keepdim=True) - gain).abs().max() < 1e-12
    assert not found[:, 1].abs().gt(1e-15).any() and found[:, 0].abs().max() > 1e-3
    twins = (found[:, 0] - found[:, 2]).abs().max()
    assert twins < 1e-12 if orders is None and agents == 4 else twins > 1e-6


@pytest.mark.parametrize("agents", [2, 7])
def test_steps_add_up_to_the_whole_team_s_worth(agents: int) -> None:
    """sum_i r_it = v_t(everyone), with v_t({}) shared equally; the same at every asking."""
    game = TinyMdp(agents, 3, ends=0.3)
    tau = lived(game)
    part = stirred(Stas(Context(game, SEEDS))).double()
    found = given(part, tau, tau.reward)
    with torch.no_grad():
        whole = part.worth(part.tokens(tau).sum(1, keepdim=True))[:, 0].unflatten(1, (3, 8)).transpose(0, 1).flatten(1)
    assert (found.sum(-1) - whole)[tau.alive].abs().max() < 1e-9
    assert torch.equal(found, given(part, tau, tau.reward))


def test_orders_are_balanced() -> None:
    """Everyone joins at every place equally often: sizes of the coalitions met are uniform, for each agent exactly."""
    for agents, orders in ((3, 1), (7, 2)):
        drawn = fixed_orders(agents, orders)
        assert drawn.shape == (agents * orders, agents) and torch.equal(drawn, fixed_orders(agents, orders))
        for place in range(agents):
            assert torch.equal(torch.bincount(drawn[:, place], minlength=agents), torch.full((agents,), orders))


def test_coalitions_of_a_fit_have_uniform_sizes() -> None:
    """Each size 0..N as often as any other, each set of a size too; named by the episode and redrawn every batch."""
    game = TinyMdp(3, 2)
    tau = rollout(game, None, 4000)
    some = some_agents(tau, torch.tensor(1))
    size = torch.bincount(some.sum(1), minlength=4) / 4000
    assert (size - 1 / 4).abs().max() < 0.03
    number = torch.bincount((some * 2 ** torch.arange(3)).sum(1), minlength=8) / 4000
    want = torch.tensor([1 / (4 * comb(3, bin(c).count("1"))) for c in range(8)])
    assert (number - want).abs().max() < 0.03
    assert torch.equal(some, some_agents(tau, torch.tensor(1)))
    assert not torch.equal(some, some_agents(tau, torch.tensor(2)))
    rows = torch.arange(3999, -1, -1)
    assert torch.equal(some[rows], some_agents(rows_of(tau, rows), torch.tensor(1)))


def test_parts_of_a_team_tell_what_they_know() -> None:
    """v is fitted for coalitions too: with nobody's deeds told it is the mean return; without `parts` it is not."""
    tau = rollout(TINY, None, 50, 0, dtype=torch.float64)
    gaps = []
    for parts in (0.0, 1.0):
        part = learnt(partial(Stas, parts=parts), TINY, tau, 30, (0,)).double()
        with torch.no_grad():
            nobody = part.worth(part.tokens(tau)[:, :1] * 0).unflatten(2, (4, 50))[0, 0]
        told = torch.where(tau.alive, nobody, 0).sum(0)
        length = tau.alive.sum(0).double()
        best = (tau.reward.sum(0) @ length) / (length @ length)  # least squares of G = L v({})
        gaps.append(float((told / length - best).abs().mean()))
    assert gaps[1] < 0.5 * gaps[0], gaps


@both
def test_culprits_stand_out(operator: Any) -> None:
    """walking_robot: fitted on other walks, the error behind a fall is paid less than most other units are."""
    game = WalkingRobot(3, 12, 5, 4, n_cues=3, temptation=0.0)
    train, test = (rollout(game, None, 200, 0, first, dtype=torch.float64) for first in (0, 1000))
    error = (test.state.decisive & (test.action != torch.tensor(game.safe_action))) & test.alive[..., None]
    live = test.alive[..., None].expand_as(error)
    auc = []
    for updates in (0, 15):
        found = given(learnt(operator, game, train, updates, (0,)), test, test.reward)
        each = [
            (found[:, b][error[:, b], None] < found[:, b][live[:, b] & ~error[:, b]]).double().mean()
            for b in error.any(0).any(-1).nonzero()[:, 0].tolist()
        ]
        auc.append(float(torch.stack(each).mean()))
    assert auc[0] < 0.65 and auc[1] > 0.7, auc


# TAR2.


def test_weights_are_shares_of_one() -> None:
    """Positive at live steps, of sum 1 in all, and within each step in the ratio that softmax gives agents."""
    g = torch.Generator().manual_seed(0)
    c, G = torch.randn(5, 4, 3, generator=g, dtype=torch.float64), torch.tensor([2.0, -1.0, 0.0, 1e-30]).double()
    alive = torch.arange(5)[:, None] < torch.tensor([5, 3, 1, 4])
    w = weights(c, G, alive)
    assert bool(w.isfinite().all()) and not w[~alive].any() and (w.sum((0, 2)) - 1).abs().max() < 1e-12
    assert bool((w[:, :2] > 0)[alive[:, :2]].all())
    x = c[:, 0] * 5 * 3 / 2
    assert torch.allclose(w[:, 0], x.mean(-1).softmax(0)[:, None] * x.softmax(-1))


def test_blame_goes_where_the_scores_are_worst() -> None:
    """Of a negative return the lowest score bears the most; of a positive one it gets the least."""
    c = torch.tensor([[0.1, -0.5], [0.2, 0.3]]).double()[:, None]
    alive = torch.ones(2, 1, dtype=torch.bool)
    for G in (-1.0, 1.0):
        w = weights(c, torch.tensor([G]).double(), alive)[:, 0]
        assert (w.argmax() if G < 0 else w.argmin()) == 1
    # The mean score of a step says how much the step gets, whatever is within it.
    assert weights(c, torch.tensor([-1.0]).double(), alive)[0].sum() > 0.5


def test_equal_scores_share_equally() -> None:
    """A network that says nothing gives everyone at every live step the same part of the return."""
    tau = lived(TINY)
    part: Any = Tar2(Context(TINY, SEEDS)).double()
    with torch.no_grad():
        part.score.weights[-1].zero_()
    want = tau.reward.sum(0) / (2 * tau.alive.sum(0))
    found = given(part, tau, tau.reward)
    assert torch.allclose(found, torch.where(tau.alive[..., None], want[:, None], 0), atol=1e-12)


def off(game: TinyMdp, table: Tensor, tau: Trajectory, credit: Tensor) -> Tensor:
    """[N] how far each agent's expected gradient points away from the team's: 1 - cosine."""
    found, want = (
        x.transpose(0, 2).flatten(1) for x in (expected_gradient(game, table, tau, credit), true_gradient(game, table))
    )
    return 1 - torch.nn.functional.cosine_similarity(found, want, dim=1)


@pytest.mark.parametrize("updates", [0, 5])
def test_the_gradient_of_tar2_is_biased(updates: int) -> None:
    """Agent i follows G W_i and not G: over all that can happen its gradient points elsewhere; the team's does not."""
    game = TinyMdp(2, 2)
    table = lopsided(game)
    policy = acting(game, table)
    tau = play(game, policy, every_noise(game))
    context = Context(game, (0,), policy)
    part = learnt(Tar2, game, tau, updates, (0,)).double()
    returns = MonteCarlo(context, baseline="none")
    credit = returns(tau, given(part, tau, tau.reward))
    assert bool((off(game, table, tau, credit) > 1e-3).all())
    assert off(game, table, tau, Chain((Team, RETURN), context).assign(tau)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (partial(Stas, orders=0), "Stas: orders=0 is not allowed; it must be 1 or more"),
        (partial(Stas, parts=-1.0), "Stas: parts=-1.0 is not allowed; it must be a number, 0 or more"),
    ],
    ids=["orders", "parts"],
)
def test_knobs_out_of_range(operator: Any, words: str) -> None:
    """One sentence: operator, knob, value, what is allowed."""
    with pytest.raises(ChainError) as refused:
        operator(Context(TinyMdp()))
    assert str(refused.value) == words
