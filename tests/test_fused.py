"""The fused tier is the torch tier, computed in another order: outputs, losses and gradients are the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from tiny_mdp import MaskedTiny, TinyMdp
from torch import Tensor

from marl import networks
from marl.credit.base import Chain, Context
from marl.credit.spatial.team import Team
from marl.credit.temporal.gae import Gae
from marl.critic import Fit
from marl.learn.policy_gradient import Ppo, adam, loss
from marl.learn.q_learning import Explorer, QLearning
from marl.networks import Population, multilayer
from marl.policy import Actor
from marl.rollout import rollout, sample

fused = pytest.importorskip("marl.fused", reason="the fused tier needs numba: pip install 'credit-sandbox[fast]'")

SHAPES = [  # seeds, copies, widths, rows: part of a block, whole blocks, blocks and a rest, odd widths
    (1, 1, (5, 3), 1),
    (2, 3, (4, 32, 3), 37),
    (1, 1, (21, 64, 64, 5), 128),
    (2, 1, (7, 20, 33, 1), 201),
    (1, 2, (130, 70, 17), 65),
]
MOODS = ((1.0, -1.0), (0.3, -1.0), (1.0, 0.0), (1.0, 0.3))  # temperature, epsilon


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distance(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|, both as vectors."""
    return float(((one - other).norm() / other.norm().clamp(min=1e-30)).detach())


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_network_is_the_torch_tiers(
    shape: tuple[int, int, tuple[int, ...], int], activation: str, threads: None
) -> None:
    """Outputs and all gradients to 1e-6, for inputs in either memory order, wanted or not."""
    S, C, sizes, R = shape
    net, direction = Population("test", range(S), C, sizes, activation, 1.0), random(S, C, sizes[-1], R, seed=1)
    for rows_last, wanted in product((True, False), (True, False)):
        x = random(S, C, sizes[0], R) if rows_last else random(S, C, R, sizes[0]).transpose(2, 3)
        x.requires_grad_(wanted)
        asked = [*net.layers, x] if wanted else net.layers
        one = fused.network(x, net.layers, activation)
        other = multilayer((x.flatten(0, 1),), net.layers, activation).unflatten(0, (S, C))
        assert one.shape == other.shape and distance(one, other) < 1e-6
        found = torch.autograd.grad(one, asked, direction)
        for mine, theirs in zip(found, torch.autograd.grad(other, asked, direction), strict=True):
            assert mine.shape == theirs.shape and distance(mine, theirs) < 1e-6


def test_a_network_serves_several_groups() -> None:
    """One network a seed and three groups: its gradient is the sum over them."""
    net, x = Population("test", range(2), 1, (4, 8, 3), "tanh"), random(2, 3, 4, 70)
    one = fused.network(x, net.layers, "tanh")
    other = multilayer((x.flatten(0, 1),), [p.repeat_interleave(3, 0) for p in net.layers], "tanh").unflatten(0, (2, 3))
    assert distance(one, other) < 1e-6
    found = torch.autograd.grad(one.square().sum(), net.layers)
    for mine, theirs in zip(found, torch.autograd.grad(other.square().sum(), net.layers), strict=True):
        assert distance(mine, theirs) < 1e-6


def test_tanh_is_accurate() -> None:
    """Within 4e-7 of tanh over its whole range and monotone in its tails, unlike a first-order fit."""
    x = torch.linspace(-12, 12, 20001)
    eye = [torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)]
    said = fused.network(x[None, None, None], eye, "tanh")[0, 0, 0]
    assert float((said.double() - x.double().tanh()).abs().max()) < 4e-7 and float(said.abs().max()) <= 1


@pytest.mark.parametrize("shared", [False, True], ids=["one an agent", "shared"])
@pytest.mark.parametrize("clip", [None, 0.2], ids=["REINFORCE", "PPO"])
@pytest.mark.parametrize("entropy", [0.0, 0.01])
@pytest.mark.parametrize("game", [TinyMdp(3, n_actions=3), MaskedTiny()], ids=["tiny", "masked"])
def test_policy_loss_is_the_torch_tiers(
    game: TinyMdp, entropy: float, clip: float | None, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients of whole learners: dead steps, illegal actions, ratios inside and outside of the clip."""
    seeds = [3, 5]
    actor = Actor(game, seeds, (16, 16), shared, "tanh", last_gain=3.0)
    trajectory = rollout(game, actor, 30, seeds)
    trajectory.alive[-1, ::3] = False
    for p in actor.parameters():
        p.data += 0.3 * random(*p.shape)
    credit, scale = random(*trajectory.action.shape, seed=2), torch.tensor([1.0, -2.0])
    said = {}
    for name in ("fused", "torch"):
        monkeypatch.setattr(networks, "tier", lambda name=name: name)
        losses = loss(actor, trajectory, credit, entropy, clip)
        said[name] = [losses.detach(), *torch.autograd.grad((losses * scale).sum(), list(actor.parameters()))]
    for mine, theirs in zip(said["fused"], said["torch"], strict=True):
        assert mine.shape == theirs.shape and distance(mine, theirs) < 2e-6


def test_seeds_do_not_meet() -> None:
    """A seed's outputs and gradients are bitwise the same whatever trains beside it."""

    def of(seeds: list[int]) -> list[Tensor]:
        net, x = Population("test", seeds, 2, (6, 20, 3)), random(1, 2, 6, 150).expand(len(seeds), -1, -1, -1)
        out = net(x)
        grads = torch.autograd.grad(out.square().sum(), net.layers)
        return [out[:1], *(g[:2] for g in grads)]

    for alone, beside in zip(of([4]), of([4, 0, 9]), strict=True):
        assert torch.equal(alone, beside)


def test_float64_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference tier takes whatever is not float32; the chosen tier is asked by name and refused otherwise."""
    assert networks.fused_for(torch.zeros(1, dtype=torch.float64)) is None
    monkeypatch.setenv("MARL_TIER", "slow")
    networks.tier.cache_clear()
    with pytest.raises(ValueError, match="MARL_TIER=slow is not allowed; it must be one of fused, torch"):
        networks.tier()
    monkeypatch.setenv("MARL_TIER", "torch")
    assert networks.tier() == "torch" and networks.fused_for(torch.zeros(1)) is None
    networks.tier.cache_clear()


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("shared", [False, True], ids=["one an agent", "shared"])
@pytest.mark.parametrize("game", [TinyMdp(3, n_actions=3), MaskedTiny()], ids=["tiny", "masked"])
def test_a_whole_update_is_the_torch_loop(
    game: TinyMdp, shared: bool, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates of PPO and of its critic, uneven minibatches, clipping, Adam's memory: parameters to 1e-5."""
    seeds, said = [3, 5], {}
    for name in ("fused", "torch"):
        monkeypatch.setattr(networks, "tier", lambda name=name: name)
        how = Ppo(lr=1e-3, hidden=(16, 16), activation="tanh", shared=shared, entropy=0.01, max_grad_norm=0.1)
        fit = Fit(lr=1e-3, passes=2, minibatches=3, hidden=(9,), clip=0.05, max_grad_norm=0.5)
        training = how.begin(game, seeds)
        chain = Chain((Team, partial(Gae, central=shared)), Context(game, tuple(seeds), fit=fit))
        optimizer = adam(chain.parameters(), fit.lr)
        for update in range(2):
            trajectory = rollout(game, None, 11, seeds, update * 11)
            signal, incoming = chain.trace(trajectory)
            training.update(trajectory, signal, update, 0.0)
            chain.fit(optimizer, trajectory, incoming, update)
        kept = [x for o in (training.optimizer, optimizer) for s in o.state.values() for x in s.values()]
        said[name] = [p.detach() for p in (*training.policy.parameters(), *chain.parameters())] + kept
    assert len(said["fused"]) == len(said["torch"])
    for mine, theirs in zip(said["fused"], said["torch"], strict=True):
        assert mine.shape == theirs.shape and distance(mine, theirs) < 1e-5


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_step_of_play_is_the_torch_tiers(shared: bool, masked: bool, threads: None) -> None:
    """Probabilities to 1e-6, exactly the actions that `sample` draws from them, for views in either memory order."""
    S, E = 3, 230
    game = MaskedTiny(n_agents=3) if masked else TinyMdp(n_agents=3)
    actor = Actor(game, range(S), (20, 33), shared, "tanh", last_gain=3.0)
    u, seen = torch.rand(S * E, 3), random(S * E, 3, game.obs_size)
    mask = random(S * E, 3, game.n_actions) > 0 if masked else None
    if mask is not None:
        mask[..., 1] = True
    for obs, (temperature, epsilon) in product((seen, seen.permute(2, 1, 0).contiguous().permute(2, 1, 0)), MOODS):
        act = actor.acting(u, temperature, epsilon)
        assert act is not None
        probs, action = act(obs, mask, u)
        explorer = Explorer(actor, QLearning(exploration="boltzmann" if epsilon < 0 else "epsilon"))
        explorer.level = temperature if epsilon < 0 else epsilon
        with torch.no_grad():
            slow = explorer(obs, mask)
        assert distance(probs, slow) < 1e-6 and torch.equal(action, sample(probs, u))
        assert distance(probs, slow.roll(1, -1)) > 0.1 and torch.allclose(probs.sum(-1), torch.ones(S * E, 3))
    assert actor.acting(u.double()) is None


@pytest.mark.parametrize("method", ["actor", "q"])
def test_play_asks_in_one_call_what_torch_says_in_many(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole episodes under either tier are the same; parameters that change are seen at the next episode."""
    game, trajectories = TinyMdp(n_agents=2), []
    training = (Ppo(hidden=(16,), shared=True) if method == "actor" else QLearning(hidden=(16,))).begin(game, (0, 1))
    training.policy.level = 0.2  # of an explorer
    for asked in ("fused", "torch"):
        monkeypatch.setattr(networks, "tier", lambda asked=asked: asked)
        trajectories.append(rollout(game, training.policy, 40, (0, 1)))
    one, other = trajectories
    assert torch.equal(one.action, other.action) and distance(one.probs, other.probs) < 1e-6
    monkeypatch.setattr(networks, "tier", lambda: "fused")
    with torch.no_grad():
        for p in training.policy.parameters():
            p.data.neg_().add_(0.3 * torch.arange(p.numel()).reshape(p.shape) / p.numel())
    assert not torch.equal(rollout(game, training.policy, 40, (0, 1)).probs, one.probs)


def test_exponentials_and_logs_are_accurate() -> None:
    """Within 4e-7 of their size over the whole range that a policy meets."""
    import numba

    from marl.fused import objective

    @numba.njit(fastmath=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def many(x: Any, up: Any, down: Any) -> None:
        for k in range(len(x)):
            up[k] = objective.exp(x[k])
            down[k] = objective.log(up[k])

    x = np.linspace(-86, 80, 20011, dtype=np.float32)
    up, down = np.empty_like(x), np.empty_like(x)
    many(x, up, down)
    assert np.abs(up / np.exp(x.astype(np.float64)) - 1).max() < 4e-7
    logs = np.log(up.astype(np.float64))
    assert (np.abs(down - logs) / np.maximum(np.abs(logs), 1)).max() < 4e-7


def test_code_for_many_threads_is_kept_apart() -> None:
    """On disk it has a name of its own: else what was compiled first, for one thread, would serve both."""
    from pathlib import Path

    from marl.fused import autograd, kernels

    for parallel, name in ((False, "one"), (True, "many")):
        compiled = kernels._compiled(autograd._outputs, parallel)
        kept = {file.name for file in Path(compiled._cache.cache_path).glob(f"*_outputs_{kernels._sources()}_{name}-*")}
        assert kept, name
    kernels._compiled.cache_clear()
