"""What learners of values do in one compiled call is the readable loop in torch, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_fused import distance, random, threads
from tiny_mdp import LimitedTiny, MaskedTiny, TinyMdp
from torch import Tensor

import marl
from envs.base import Env
from marl import networks
from marl.credit.base import Chain, Context
from marl.credit.spatial.coma import Coma
from marl.critic import ActionValue, Fit
from marl.learn.policy_gradient import adam
from marl.learn.q_learning import QLearning, QTraining
from marl.rollout import rollout

pytest.importorskip("marl.fused", reason="the fused tier needs numba: pip install 'credit-sandbox[fast]'")

__all__ = ["threads"]  # a fixture
SEEDS = (3, 5)


def remembered(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that Adam keeps."""
    return [x for state in optimizer.state.values() for x in state.values()]


def q_trained(
    tier: str, how: QLearning, game: Env[Any], monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...] = SEEDS
) -> tuple[QTraining, list[Tensor]]:
    """Three updates under a tier, with an epsilon large enough that rounding decides no step; what was learnt."""
    monkeypatch.setattr(networks, "tier", lambda: tier)
    training = how.begin(game, seeds)
    training.optimizer.param_groups[0]["eps"] = 1e-3
    for p in training.old_net.parameters():
        p.data += 0.3 * random(*p.shape[1:])
    for update in range(3):
        trajectory = rollout(game, None, how.episodes, seeds, update * how.episodes)
        own = 1.0 + torch.arange(game.n_agents)
        signal = trajectory.reward if how.mixer != "none" else trajectory.reward[..., None] * own
        training.update(trajectory, signal, update, 0.0)
    return training, [*(p.detach() for p in training.parameters), *remembered(training.optimizer)]


LEARNERS = [
    QLearning(batch=9, episodes=11, capacity=20, target=2),
    QLearning(mixer="vdn", batch=40, episodes=11, capacity=20, target=2, max_grad_norm=0.1, gamma=0.9),
    QLearning(mixer="vdn", batch=9, episodes=11, target=3, double=False, shared=True, activation="tanh"),
    QLearning(shared=True, batch=33, episodes=11, hidden=(), max_grad_norm=None, gamma=0.5),
]
GAMES = (TinyMdp(3, 4, ends=0.4), MaskedTiny(ends=0.3), LimitedTiny(ends=0.5))


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("number", range(len(LEARNERS)), ids=["IQL", "VDN", "VDN shared", "IQL linear"])
@pytest.mark.parametrize("game", GAMES, ids=["tiny", "masked", "limited"])
def test_q_learning_is_the_torch_loop(
    game: TinyMdp, number: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three updates: ends, time limits, masks, double Q, clipping, a buffer that wraps, Adam's memory."""
    how = LEARNERS[number]
    (_, mine), (_, theirs) = (q_trained(tier, how, game, monkeypatch) for tier in ("fused", "torch"))
    assert len(mine) == len(theirs)
    assert all(a.shape == b.shape and distance(a, b) < 2e-6 for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    "other", [{"double": False}, {"gamma": 0.8}, {"max_grad_norm": 0.2}, {"mixer": "none"}], ids=str
)
def test_q_learning_parity_notices_a_difference(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a wrong knob in one of the two is a thousand times what the parity test lets pass."""
    game, how = GAMES[0], {"mixer": "vdn", "gamma": 0.9, "episodes": 11, "max_grad_norm": 0.1}
    one = q_trained("fused", QLearning(**how), game, monkeypatch)[1]  # type: ignore[arg-type]
    two = q_trained("torch", QLearning(**{**how, **other}), game, monkeypatch)[1]
    assert max(distance(a, b) for a, b in zip(one, two, strict=True)) > 2e-3


def test_a_seed_learns_the_same_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, for buffers and networks lie seed by seed."""
    alone = q_trained("fused", QLearning(mixer="vdn", episodes=8), GAMES[0], monkeypatch, (5,))[0].net
    beside = q_trained("fused", QLearning(mixer="vdn", episodes=8), GAMES[0], monkeypatch, (3, 5))[0].net
    for a, b in zip(alone.parameters(), beside.parameters(), strict=True):
        assert torch.equal(a, b[len(b) // 2 :])


def test_a_batch_larger_than_the_buffer_leaves_its_last_episodes() -> None:
    """A ring written in slices: whoever would be written over at once is not written at all."""
    game = GAMES[0]
    training = QLearning(episodes=4, capacity=6, batch=2, steps=1).begin(game, SEEDS)
    for update, count in enumerate((4, 5, 17)):
        trajectory = rollout(game, None, count, SEEDS)
        signal = torch.arange(100.0 * update, 100.0 * update + count).repeat(2).expand(4, -1)
        training.update(trajectory, signal[..., None].expand(-1, -1, 3), update, 0.0)
    assert training.buffer is not None
    kept = training.buffer.signal[0, :, :, 0]
    assert sorted(kept[1].tolist()) == [211.0, 212.0, 213.0, 214.0, 215.0, 216.0] and torch.equal(*kept)
    assert kept[0, (4 + 5 + 16) % 6] == 216


# COMA's critic.

FITS = [
    Fit(passes=2, minibatches=3, hidden=(9, 17), activation="tanh", clip=0.05, max_grad_norm=0.5),
    Fit(passes=3, minibatches=1, hidden=(20,)),
]


def coma_fitted(tier: str, game: Env[Any], fit: Fit, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Two updates under a tier: the critic, what Adam keeps of it, and the credit of the last batch."""
    monkeypatch.setattr(networks, "tier", lambda: tier)
    chain = Chain((Coma,), Context(game, SEEDS, fit=fit))
    optimizer, signal = adam(chain.parameters(), fit.lr), torch.empty(0)
    optimizer.param_groups[0]["eps"] = 1e-3  # what should be 0 is a rounding error in either tier
    for update in range(2):
        trajectory = rollout(game, None, 23, SEEDS, update * 23)
        trajectory.alive[-1, ::3] = False
        signal, incoming = chain.trace(trajectory)
        chain.fit(optimizer, trajectory, incoming, update)
    return [*(p.detach() for p in chain.parameters()), *remembered(optimizer), signal]


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("number", range(len(FITS)), ids=["two layers", "one layer"])
@pytest.mark.parametrize("n_agents", [1, 3, 70])
def test_a_fit_of_coma_is_the_torch_loop(
    n_agents: int, number: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uneven minibatches, value clipping, dead steps, agents that fill less and more than a block."""
    game: Env[Any] = (
        TinyMdp(n_agents, n_actions=3) if n_agents < 9 else marl.load("gaussian_squeeze", n_agents=n_agents)
    )
    mine, theirs = (coma_fitted(tier, game, FITS[number], monkeypatch) for tier in ("fused", "torch"))
    assert len(mine) == len(theirs)
    assert all(a.shape == b.shape and distance(a, b) < 1e-5 for a, b in zip(mine, theirs, strict=True))


def test_coma_parity_notices_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: other minibatches, or no clipping, are seen at once."""
    game, fit = TinyMdp(3, n_actions=3), FITS[0]
    one = coma_fitted("fused", game, fit, monkeypatch)
    for other in (Fit(**{**vars(fit), "clip": None}), Fit(**{**vars(fit), "max_grad_norm": None})):
        two = coma_fitted("torch", game, other, monkeypatch)
        assert max(distance(a, b) for a, b in zip(one, two, strict=True)) > 1e-3


@pytest.mark.parametrize("hidden", [(6,), (33, 5)], ids=str)
@pytest.mark.parametrize("n_agents", [1, 3])
def test_counterfactual_values_are_torchs(n_agents: int, hidden: tuple[int, ...]) -> None:
    """Q of every own action without a gradient (compiled) and with one (torch), to 1e-6."""
    game = TinyMdp(n_agents, n_actions=3)
    q, tau = ActionValue(game, SEEDS, Fit(hidden=hidden, activation="tanh")), rollout(game, None, 50, SEEDS)
    with torch.no_grad():
        compiled = q(tau)
    assert compiled.shape == (3, 100, n_agents, 3) and distance(compiled, q(tau)) < 1e-6
    assert distance(compiled.roll(1, 1), q(tau)) > 1e-2
