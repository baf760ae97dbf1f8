"""Agents that remember: a textbook GRU, exact replays and oracles, and games that hide the past are learnt."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from test_networks import separate
from tiny_atoms import FiniteMasked, FiniteTiny
from tiny_mdp import LimitedTiny, MaskedTiny, TinyMdp
from torch import Tensor, nn

from benchmarks.methods import METHODS
from envs.base import Env, Step, repeat, take
from envs.walking_robot import WalkingRobot
from marl import oracle
from marl.credit.base import Chain, Context
from marl.credit.spatial.team import Team
from marl.credit.temporal.gae import Gae
from marl.critic import Fit, Value, next_values
from marl.experiment import Experiment, learn, run
from marl.gradient import batch_gradients
from marl.learn.policy_gradient import Ppo, Reinforce, adam, loss
from marl.minibatch import schedule, subset
from marl.oracle import exact
from marl.oracle.sampled import returns_to_go
from marl.policy import Actor
from marl.recurrent import Gru
from marl.rollout import Simulator, greedy, legal, rollout, sample
from marl.types import Trajectory

ROBOT = WalkingRobot(3, 8, 3, 3, 2, 1, n_cues=3)
SEEDS, EPISODES, H = (3, 8), 4, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def actor_of(game: Env[Any], seeds: tuple[int, ...] = SEEDS, shared: bool = False, scale: float = 30.0) -> Actor:
    """Actors in float64, far from uniform, whose memory matters."""
    actor = Actor(game, seeds, (6,), shared, memory=H).double()
    assert actor.gru is not None
    with torch.no_grad():
        actor.net.weights[-1].mul_(5 * scale)
        actor.gru.see.weights[-1].mul_(2)
    return actor


def lived(game: Env[Any], shared: bool = False, episodes: int = EPISODES) -> tuple[Actor, Trajectory]:
    """Such actors and their episodes."""
    actor = actor_of(game, shared=shared)
    return actor, rollout(game, actor, episodes, SEEDS, dtype=torch.float64)


class Plain(nn.Module):
    """One member of a population of actors, in plain torch: hidden layers, torch.nn.GRUCell, one linear layer."""

    def __init__(self, actor: Actor, member: int) -> None:
        super().__init__()
        assert actor.gru is not None
        *hidden, last = separate(actor.gru.see, member)
        self.hidden, self.head = nn.Sequential(*hidden), separate(actor.net, member)
        self.cell = nn.GRUCell(last.in_features, actor.memory, dtype=last.weight.dtype)
        with torch.no_grad():
            self.cell.weight_ih.copy_(last.weight)
            self.cell.bias_ih.copy_(last.bias)
            self.cell.weight_hh.copy_(actor.gru.recall[member])
            self.cell.bias_hh.copy_(actor.gru.bias[member, :, 0])

    def part(self, name: str) -> Tensor:
        """What a parameter of the actor is here."""
        kind = "weight" if "weights" in name or "recall" in name else "bias"
        if name in ("gru.recall", "gru.bias"):
            return getattr(self.cell, f"{kind}_hh")
        layers = [layer for layer in self.hidden if isinstance(layer, nn.Linear)]
        layer = int(name.split(".")[-1])
        if name.startswith("net"):
            return getattr(self.head[layer], kind)
        return getattr(layers[layer], kind) if layer < len(layers) else getattr(self.cell, f"{kind}_ih")

    def forward(self, x: Tensor) -> Tensor:
        """[T,E,F] -> logits [T,E,A], one step at a time."""
        memory, out = x.new_zeros(x.shape[1], self.cell.hidden_size), []
        for seen in x:
            memory = self.cell(self.hidden(seen), memory)
            out.append(self.head(memory))
        return torch.stack(out)


def plain_logits(actor: Actor, obs: Tensor, nets: list[Plain]) -> Tensor:
    """[T,B,N,A] of the separate networks."""
    T, B, N, _ = obs.shape
    S, E = actor.n_seeds, B // actor.n_seeds
    out = [[torch.empty(0)] * N for _ in range(S)]
    for s in range(S):
        for i in range(N):
            x = obs[:, s * E : (s + 1) * E, i]
            if actor.shared:
                x = torch.cat((x, torch.eye(N, dtype=x.dtype)[i].expand(T, E, N)), -1)
            out[s][i] = nets[s if actor.shared else s * N + i](x)
    return torch.cat([torch.stack(agents, 2) for agents in out], 1)


# The layer.


@pytest.mark.parametrize("together", [False, True], ids=["a network at a time", "all at once"])
def test_gru_equals_torch(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All S * C members: outputs, and gradients of every weight and of the input, torch.nn.GRUCell's to 1e-12."""
    S, C, F, T, M = 2, 3, 4, 6, 5
    if not together:
        monkeypatch.setattr(sys.modules["marl.recurrent"], "CACHE_UNITS", 1)
    gru = Gru("test", (1, 7), C, (F, H)).double()
    x = random(S, C, F, T * M).requires_grad_()
    weight = random(S, C, H, T * M, seed=1)
    out = gru(x, T)
    (out * weight).sum().backward()
    assert x.grad is not None
    for member in range(S * C):
        s, c = divmod(member, C)
        cell = nn.GRUCell(F, H, dtype=torch.float64)
        ours = (gru.see.weights[0], gru.see.biases[0], gru.recall, gru.bias)
        theirs = (cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh)
        for p, q in zip(theirs, ours, strict=True):
            p.data = q.detach()[member].reshape(p.shape).clone()
        seen = x.detach()[s, c].unflatten(1, (T, M)).permute(1, 2, 0).clone().requires_grad_()
        memory, kept = torch.zeros(M, H, dtype=torch.float64), []
        for o in seen:
            memory = cell(o, memory)
            kept.append(memory)
        same = out[s, c].unflatten(1, (T, M)).permute(1, 2, 0)
        assert (torch.stack(kept) - same).abs().max() < 1e-12
        (torch.stack(kept) * weight[s, c].unflatten(1, (T, M)).permute(1, 2, 0)).sum().backward()
        for p, q in zip(theirs, ours, strict=True):
            assert q.grad is not None and p.grad is not None
            assert (q.grad[member].reshape(p.shape) - p.grad).abs().max() < 1e-12
        assert seen.grad is not None
        assert (x.grad[s, c].unflatten(1, (T, M)).permute(1, 2, 0) - seen.grad).abs().max() < 1e-12


def test_a_step_at_a_time_is_the_whole() -> None:
    """`step` after `step` gives what `forward` gives, and the same gradients through the memory it is handed."""
    T, M = 5, 4
    gru = Gru("test", SEEDS, 2, (3, 6, H)).double()
    x, weight = random(2, 2, 3, T * M), random(2, 2, H, T * M, seed=1)
    found = []
    for whole in (True, False):
        gru.zero_grad()
        if whole:
            out = gru(x, T)
        else:
            memory, kept = x.new_zeros(2, 2, H, M), []
            for seen in x.unflatten(3, (T, M)).unbind(3):
                memory = gru.step(seen, memory)
                kept.append(memory)
            out = torch.stack(kept, 3).flatten(3)
        (out * weight).sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in gru.parameters() if p.grad is not None)])
    assert len(found[0]) == 1 + 6
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found, strict=True))


def test_seeds_never_meet() -> None:
    """Seed k's first weights ignore who is beside it; no seed's memory moves with another's weights."""
    both, alone = (Actor(ROBOT, seeds, memory=H) for seeds in ((3, 8), (8,)))
    for p, q in zip(both.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p[len(q) :], q) and not torch.equal(p[: len(q)], q)
    actor, tau = lived(ROBOT)
    out = actor(tau.obs, tau.mask)[:, EPISODES:, :, 0].sum()
    for g in torch.autograd.grad(out, list(actor.parameters())):
        first, second = g.unflatten(0, (2, -1))
        assert not first.any() and bool(second.any())


@pytest.mark.parametrize("shared", [False, True], ids=["one an agent", "shared"])
def test_actors_equal_plain_torch(shared: bool) -> None:
    """Probabilities of whole episodes, recorded ones included, are those of GRUCells stepped one by one."""
    for game in (ROBOT, MaskedTiny()):
        actor, tau = lived(game, shared)
        nets = [Plain(actor, k) for k in range(2 if shared else 2 * game.n_agents)]
        with torch.no_grad():
            logits = plain_logits(actor, tau.obs, nets)
            logits = logits if tau.mask is None else logits.masked_fill(~tau.mask, -torch.inf)
            assert (logits.softmax(-1) - tau.probs).abs().max() < 1e-12
            assert (actor(tau.obs, tau.mask) - tau.probs).abs().max() < 1e-12
            forgets = torch.stack(
                [actor(o[None], None if tau.mask is None else tau.mask[t, None])[0] for t, o in enumerate(tau.obs)]
            )
        assert (forgets[1:] - tau.probs[1:]).abs().max() > 0.05, "memory must matter in these tests"


def test_a_single_step_is_refused() -> None:
    """Probabilities of an observation alone would silently forget: an error in one sentence says so."""
    actor, tau = lived(ROBOT)
    with pytest.raises(ValueError, match=r"whole episodes \[T,B,N,O\], not \[8, 3, ") as refused:
        actor(tau.obs[0])
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="give the episodes before it"):
        Value(ROBOT, SEEDS, False, Fit(memory=H)).double().final(tau.final)
    with pytest.raises(ValueError, match="s includes its memory"):
        exact.solve(FiniteTiny(), actor_of(FiniteTiny(), (0,)))


# Living again.


@pytest.mark.parametrize("game", [ROBOT, TinyMdp(3, 5, ends=0.3), MaskedTiny()], ids=["robot", "ends", "masked"])
def test_replays_are_exact(game: Env[Any]) -> None:
    """The recorded action, lived again with everyone reacting from memory, gives the recorded return bit for bit."""
    actor, tau = lived(game)
    for policy, episodes in (
        (actor, tau),
        (greedy(actor), rollout(game, greedy(actor), EPISODES, SEEDS, dtype=torch.float64)),
    ):
        go = returns_to_go(episodes.reward) * episodes.alive
        for simulator in (Simulator(game, 2), Simulator(game, 2, max_rows=10), Simulator(game, 2, memory=1 << 13)):
            joint = episodes.action[:, :, None].expand(-1, -1, 3, -1)
            assert torch.equal(simulator.branches(episodes, joint, policy), go[..., None].expand(-1, -1, 3))
            at = [1, game.horizon - 1]
            assert torch.equal(
                simulator.branches(episodes, joint[at], policy, at=at),
                go[at, :, None].expand(-1, -1, 3),
            )
            reacting = torch.full((*episodes.action.shape[:2], 1, game.n_agents), -1)
            assert torch.equal(simulator.totals(episodes, reacting, policy)[:, 0], go[0])


def one_life(
    game: Env[Any], nets: list[Plain], tau: Trajectory, b: int, t: int, i: int, c: int, throughout: bool
) -> float:
    """Episode b from its first step, agent i doing c at t (or throughout), everyone else reacting, in plain torch.

    Before t all do as recorded; one row, one step, one cell at a time. The return from t on.
    """
    N, total, over = game.n_agents, 0.0, False
    state = take(type(tau.state)(*(x[0] for x in tau.state)), torch.tensor([b]))
    memory = [torch.zeros(1, H, dtype=torch.float64) for _ in range(N)]
    for k in range(game.horizon):
        obs, mask = game.observe(state), legal(game, state)
        action = tau.action[k, [b]].clone()
        for j in range(N):
            memory[j] = nets[j].cell(nets[j].hidden(obs[:, j]), memory[j])
            logits = nets[j].head(memory[j])
            probs = (logits if mask is None else logits.masked_fill(~mask[:, j], -torch.inf)).softmax(-1)
            if k > t or throughout:
                action[0, j] = sample(probs, tau.policy_noise[k, [b], j])[0]
        if k == t or throughout:
            action[0, i] = c
            if not throughout:
                action[0, [j for j in range(N) if j != i]] = tau.action[k, b, [j for j in range(N) if j != i]]
        step = game.step(state, action, tau.noise[k, [b]])
        if (k >= t or throughout) and not over:
            total += float(step.reward)
        state, over = step.state, over or bool(step.done)
    return total


@pytest.mark.parametrize("game", [ROBOT, TinyMdp(2, 4, n_actions=3, ends=0.3)], ids=["robot", "ends"])
def test_unit_effects_and_totals_equal_brute_force(game: Env[Any]) -> None:
    """O6 and reacting O7 of a recurrent population: one life at a time in plain torch, to 1e-9."""
    actor, tau = lived(game, episodes=2)
    (T, B, N), A = tau.action.shape, game.n_actions
    o6, o7 = oracle(game, actor, tau, "O6").values, oracle(game, actor, tau, "O7 reacting", [1] * N).values
    checked = 0
    with torch.no_grad():
        nets = [Plain(actor, k) for k in range(2 * N)]
        for b in range(B):
            mine = nets[b // 2 * N : (b // 2 + 1) * N]
            for i in range(N):
                without = one_life(game, mine, tau, b, 0, i, 1, True)
                assert abs(float(o7[0, b, i]) - float(tau.reward[:, b].sum()) + without) < 1e-9
                for t in range(0, T, 2):
                    if tau.alive[t, b]:
                        lives = o6.new_tensor([one_life(game, mine, tau, b, t, i, c, False) for c in range(A)])
                        want = float(tau.reward[t:, b].sum() - (tau.probs[t, b, i] * lives).sum())
                        assert abs(float(o6[t, b, i]) - want) < 1e-9
                        checked += 1
    assert checked > 6 and bool(o6.abs().max() > 0.01)


def worth(game: Env[Any], nets: list[Plain], state: Any, memory: list[Tensor], left: int) -> tuple[Tensor, Tensor]:
    """(pi [K,N,A], Q [K,J]) of K histories with `left` steps to go, by every history that may follow, none merged."""
    obs, mask = game.observe(state), legal(game, state)
    memory = [net.cell(net.hidden(obs[:, i]), m) for i, (net, m) in enumerate(zip(nets, memory, strict=True))]
    logits = torch.stack([net.head(m) for net, m in zip(nets, memory, strict=True)], 1)
    probs = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    luck, joint = game.step_atoms(), every_joint(game)  # type: ignore[attr-defined]
    K, J, Z = len(probs), len(joint), len(luck.noise)
    action = joint.repeat_interleave(Z, 0).repeat(K, 1)
    step = game.step(repeat(state, J * Z), action, luck.noise.repeat(K * J, 1))
    q, live = step.reward, ~step.done
    if left > 1 and bool(live.any()):
        later = [m.repeat_interleave(J * Z, 0)[live] for m in memory]
        then, after = worth(game, nets, take(step.state, live), later, left - 1)
        q = q.index_add(0, live.nonzero()[:, 0], (of_joint(game, then) * after).sum(1))
    return probs, q.reshape(K, J, Z) @ luck.probability


def every_joint(game: Env[Any]) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(game.n_actions)] * game.n_agents)


def of_joint(game: Env[Any], probs: Tensor) -> Tensor:
    """[K,J] the probability of each joint action."""
    return torch.stack([probs[:, i, every_joint(game)[:, i]] for i in range(game.n_agents)]).prod(0)


SMALL = [FiniteTiny(2, 3, ends=0.2), FiniteMasked(2, 2, seed=1)]
small = pytest.mark.parametrize("game", SMALL, ids=["tiny", "masked"])


@small
def test_enumeration_equals_every_history(game: Any) -> None:
    """O3 and O5 of recorded actions of two seeds, by the oracle and by `exact`: sums over all histories, to 1e-9."""
    actor, tau = lived(game)
    found = {kind: oracle(game, actor, tau, kind, how="exact").values for kind in ("O3", "O5")}
    again = exact.truth(game, actor, tau, "O3")
    assert torch.equal(again.values, found["O3"]) and again.cost > 0
    joint, A = every_joint(game), game.n_actions
    with torch.no_grad():
        for s in range(2):
            nets, rows = [Plain(actor, 2 * s + i) for i in range(2)], slice(s * EPISODES, (s + 1) * EPISODES)
            memory = [torch.zeros(EPISODES, H, dtype=torch.float64)] * 2
            for t in range(game.horizon):
                state = type(tau.state)(*(x[t, rows] for x in tau.state))
                probs, q = worth(game, nets, state, memory, game.horizon - t)
                value = (of_joint(game, probs) * q).sum(1)
                q = torch.where(of_joint(game, probs) > 0, q, 0).unflatten(1, (A, A))
                first, second = tau.action[t, rows].unbind(-1)
                e = torch.arange(EPISODES)
                alone = torch.stack(((q[e, first] * probs[:, 1]).sum(1), (q[e, :, second] * probs[:, 0]).sum(1)), -1)
                o3, both = alone - value[:, None], q[e, first, second]
                o5 = (o3 + both[:, None] - alone.flip(-1)) / 2
                live = tau.alive[t, rows, None]
                for kind, want in (("O3", o3), ("O5", o5)):
                    assert ((found[kind][t, rows] - want) * live).abs().max() < 1e-9
                memory = [net.cell(net.hidden(tau.obs[t, rows, i]), memory[i]) for i, net in enumerate(nets)]
    assert len(joint) == A**2 and found["O3"].abs().max() > 0.1


@small
def test_true_gradient_equals_every_history(game: Any) -> None:
    """The gradient of the expected return through all memories, to 1e-9; the value to 1e-12."""
    actor = actor_of(game, scale=5.0)
    found = exact.true_gradient(game, actor)
    for s in range(2):
        nets, first = [Plain(actor, 2 * s + i) for i in range(2)], game.reset_atoms()
        nothing = [torch.zeros(len(first.noise), H, dtype=torch.float64)] * 2
        probs, q = worth(game, nets, game.reset(first.noise), nothing, game.horizon)
        value = (first.probability[:, None] * of_joint(game, probs) * q).sum()
        own = exact.Remembering(game, actor, s)
        assert abs(float(exact.solve(own, own.policy).value - value.detach())) < 1e-12
        value.backward()
        assert (found[s] - gradient_of(actor, nets)).abs().max() < 1e-9
    assert found.abs().max() > 0.01


def gradient_of(actor: Actor, nets: list[Plain]) -> Tensor:
    """[P] gradients of one seed's separate networks, in the order of `actor.parameters()`."""
    return torch.cat([torch.stack([net.part(n).grad for net in nets]).flatten() for n, _ in actor.named_parameters()])  # type: ignore[misc]


def test_sampled_oracles_agree_with_enumeration() -> None:
    """O3 and O5 by replays with fresh luck are within five standard errors of the exact ones, and not all equal."""
    game = FiniteTiny(2, 3, ends=0.2)
    actor, tau = lived(game)
    for kind in ("O3", "O5"):
        truth = oracle(game, actor, tau, kind, how="exact").values
        found = oracle(game, actor, tau, kind, how="sampled", replays=400)
        assert ((found.values - truth).abs() <= 5 * found.error + 1e-9).all()
        assert 0 < found.error.max() < 0.2


# Learning.


@pytest.mark.parametrize("shared", [False, True], ids=["one an agent", "shared"])
def test_reinforce_goes_back_through_time(shared: bool) -> None:
    """The gradient of the learner's loss is that of plain GRUCells over whole episodes, to 1e-9."""
    for game in (TinyMdp(2, 4, ends=0.3), MaskedTiny(2, 3)):
        actor, tau = lived(game, shared)
        nets = [Plain(actor, k) for k in range(2 if shared else 4)]
        credit = random(*tau.action.shape)
        loss(actor, tau, credit, entropy=0.3).sum().backward()
        logits = plain_logits(actor, tau.obs, nets)
        mask = torch.ones_like(logits, dtype=torch.bool) if tau.mask is None else tau.mask
        log_pi = logits.masked_fill(~mask, -1e9).log_softmax(-1)
        gain = credit * log_pi.gather(-1, tau.action[..., None])[..., 0]
        gain = gain - 0.3 * (log_pi.exp() * log_pi * mask).sum(-1)
        count = tau.alive.unflatten(1, (2, -1)).sum((0, 2)).repeat_interleave(EPISODES)
        (-(gain.sum(-1) * tau.alive / count).sum()).backward()
        for n, p in actor.named_parameters():
            assert p.grad is not None
            assert (torch.stack([net.part(n).grad for net in nets]).reshape(p.shape) - p.grad).abs().max() < 1e-9  # type: ignore[misc]


@pytest.mark.parametrize("pieces", [2, 3, 9])
def test_minibatches_of_whole_episodes(pieces: int) -> None:
    """Every pass takes each episode of each seed once, whole, in time order; a seed's shuffle ignores the others."""
    tau = rollout(TinyMdp(), None, 5, SEEDS)
    found = [b for b in schedule(SEEDS, tau, 2, 2, pieces, "test", whole=True) if b is not None]
    alone = [
        b for b in schedule(SEEDS[1:], rollout(TinyMdp(), None, 5, 8), 2, 2, pieces, "test", True) if b is not None
    ]
    assert len(found) == 2 * min(pieces, 5)
    assert all(torch.equal(one[0], both[1]) for one, both in zip(alone, found, strict=True))
    for half in (found[: len(found) // 2], found[len(found) // 2 :]):
        assert torch.equal(torch.cat(half, 2).flatten(1).sort(1).values, torch.arange(15).expand(2, -1))
    for index in found:
        part, M = subset(tau, index), index.shape[2]
        episodes = torch.cat([s * 5 + index[s, 0] for s in range(2)])
        assert part.obs.shape[:2] == (3, 2 * M)
        for name in ("obs", "action", "probs", "alive"):
            assert torch.equal(getattr(part, name), getattr(tau, name)[:, episodes])


def test_ppo_learns_from_whole_episodes() -> None:
    """One minibatch: REINFORCE's step. Several: each step is the clipped loss of the episodes drawn, as by hand."""
    game, ends = TinyMdp(2, 4, ends=0.3), []
    credit = random(4, 2 * EPISODES, 2)
    for how in (Reinforce(memory=H), Ppo(memory=H, passes=1, minibatches=1)):
        actor, tau = lived(game)
        how.update(actor, adam(actor.parameters(), 0.01), tau, credit * tau.alive[..., None], 0)
        ends.append(torch.cat([p.detach().flatten() for p in actor.parameters()]))
    assert torch.allclose(*ends, atol=1e-9)
    ends, how = [], Ppo(memory=H, passes=2, minibatches=2, scale=False)
    for by_hand in (False, True):
        actor, tau = lived(game)
        optimizer = adam(actor.parameters(), 0.01)
        if by_hand:
            for index in schedule(SEEDS, tau, 5, 2, 2, "ppo", whole=True):
                assert index is not None
                b = torch.cat([s * EPISODES + index[s, 0] for s in range(2)])
                part = tau._replace(**{k: getattr(tau, k)[:, b] for k in ("obs", "action", "probs", "alive")})
                optimizer.zero_grad()
                loss(actor, part, credit[:, b], clip=how.clip).sum().backward()
                optimizer.step()
        else:
            how.update(actor, optimizer, tau, credit, 5)
        ends.append(torch.cat([p.detach().flatten() for p in actor.parameters()]))
    assert torch.allclose(*ends, atol=1e-9)


def test_gradients_of_batches_remember() -> None:
    """The instrument that measures a method's gradient follows memories: the batches' mean is the learner's ascent."""
    actor, tau = lived(ROBOT)
    credit = random(*tau.action.shape)
    parts = batch_gradients(actor, tau, credit, 2)
    steps = tau.alive.unflatten(1, (2, -1)).sum((0, 2)) / EPISODES
    loss(actor, tau, credit).sum().backward()
    own = torch.cat([p.grad.reshape(2, -1) for p in actor.parameters() if p.grad is not None], 1)
    assert torch.allclose(parts.mean(1), -own * steps[:, None], atol=1e-9)


# Critics.


@pytest.mark.parametrize("central", [False, True], ids=["V(o_i)", "V(critic_view)"])
def test_values_remember(central: bool) -> None:
    """V of a whole episode is a GRUCell's, its last state included where a time limit bootstraps; it can be fitted."""
    game, fit = LimitedTiny(2, 4, ends=0.6), Fit(memory=H, hidden=(6,))
    value = Value(game, SEEDS, central, fit).double()
    assert value.gru is not None
    tau = rollout(game, None, 30, SEEDS, dtype=torch.float64)
    with torch.no_grad():
        now = value(tau)
        after = next_values(value, tau, now)
    view = torch.stack([game.critic_view(type(tau.state)(*(x[t] for x in tau.state))) for t in range(4)])
    cut = game.truncated(tau.final)
    assert bool(cut.any()) and not bool(cut.all())
    for b in range(0, 60, 7):
        last = int(tau.alive[:, b].sum()) - 1
        for i in range(2):
            member = b // 30 if central else b // 30 * 2 + i
            *hidden, top = separate(value.gru.see, member)
            cell, head = nn.GRUCell(6, H, dtype=torch.float64), separate(value.net, member)
            cell.load_state_dict(
                {
                    "weight_ih": top.weight,
                    "bias_ih": top.bias,
                    "weight_hh": value.gru.recall[member],
                    "bias_hh": value.gru.bias[member, :, 0],
                }
            )
            memory = torch.zeros(1, H, dtype=torch.float64)
            closing = game.critic_view(tau.final) if central else game.observe(tau.final)[:, i]
            for t in range(last + 1):
                memory = cell(nn.Sequential(*hidden)((view if central else tau.obs[:, :, i])[t, b : b + 1]), memory)
                said = head(memory)[0, i if central else 0]
                assert abs(float(now[t, b, i] - said)) < 1e-12
            if cut[b]:
                memory = cell(nn.Sequential(*hidden)(closing[b : b + 1]), memory)
                assert abs(float(after[last, b, i] - head(memory)[0, i if central else 0])) < 1e-12
            else:
                assert not after[last, b, i]


# A game that hides the past.


class CueState(NamedTuple):
    """What was shown at the first step, and the step about to be taken."""

    t: Tensor  # [B] int64
    cue: Tensor  # [B,N] int64; never shown again
    paid: Tensor  # [B], its dtype is the game's


@dataclass(frozen=True)
class Recall(Env[CueState]):
    """Each agent is shown one of two cues at step 0 and asked for it at step T-1; steps between show nothing.

    r = share of agents that are right, at T-1. Who remembers gets 1; who does not, 1/2, whatever it does.
    """

    n_agents: int = 2
    horizon: int = 4

    n_actions: ClassVar[int] = 2
    obs_size: ClassVar[int] = 4
    critic_size: ClassVar[int] = 4
    step_noise_size: ClassVar[int] = 0
    default_action: ClassVar[int] = 0
    optimal_return: ClassVar[float] = 1.0
    random_return: ClassVar[float] = 0.5
    reset_noise_size = property(lambda self: self.n_agents)

    def reset(self, noise: Tensor) -> CueState:
        return CueState(torch.zeros(len(noise), dtype=torch.int64), (2 * noise).long(), noise.new_zeros(len(noise)))

    def step(self, state: CueState, action: Tensor, noise: Tensor) -> Step[CueState]:
        asked = state.t == self.horizon - 1
        right = (action == state.cue).to(state.paid.dtype).mean(1)
        reward = torch.where(asked, right, 0)
        return Step(CueState(state.t + 1, state.cue, state.paid + reward), reward, torch.zeros_like(asked))

    def observe(self, state: CueState) -> Tensor:
        shown = nn.functional.one_hot(state.cue, 2).to(state.paid.dtype) * (state.t == 0)[:, None, None]
        asked = torch.stack((state.t == 0, state.t == self.horizon - 1), -1).to(state.paid.dtype)
        return torch.cat((shown, asked[:, None].expand(-1, self.n_agents, -1)), -1)

    def critic_view(self, state: CueState) -> Tensor:
        return self.observe(state)[:, 0]


@pytest.mark.parametrize("name", ["team + return", "IPPO"])
def test_only_who_remembers_can_tell(name: str) -> None:
    """Three seeds each: with a GRU nearly always right, without one at chance, whatever the learner."""
    for memory in (True, False):
        method = METHODS[f"{name} GRU" if memory else name]
        fewer: dict[str, Any] = {"hidden": (32,), "lr": 0.01, "anneal": False, "memory": 16 if memory else 0}
        passes = {"passes": 4, "minibatches": 1} if name == "IPPO" else {}
        method = replace(method, learner=replace(method.learner, episodes=32, entropy=0.05, **fewer, **passes))
        method = replace(method, fit=replace(method.fit, **fewer, **passes))
        experiment = Experiment(Recall(), method, range(3), 60 * 32 * 4, 1, 8, 512)
        final = [r.value for r in run(experiment) if r.metric == "final_return"]
        assert len(final) == 3
        assert min(final) > 0.9 if memory else max(abs(x - 0.5) for x in final) < 0.06


def test_a_critic_that_remembers_knows_more() -> None:
    """Random play after a cue that decides the pay: V with a memory explains it to the end, V without only at t = 0."""
    tau = rollout(Recall(1, 5), None, 64, range(2))
    paid = tau._replace(reward=tau.state.cue[..., 0] * (torch.arange(5) == 4)[:, None].float())
    errors = []
    for memory in (16, 0):
        how = Fit(lr=0.02, minibatches=2, memory=memory)
        chain = Chain((Team, partial(Gae, lam=1.0)), Context(Recall(1, 5), (0, 1), fit=how))
        optimizer = adam(chain.parameters(), how.lr)
        for k in range(60):
            chain.fit(optimizer, paid, chain.trace(paid)[1], k)
        errors.append(chain.assign(paid).square().mean((1, 2)))
    assert errors[0].max() < 0.02 and errors[1][0] < 0.02 and errors[1][1:].min() > 0.2


def test_trained_together_as_alone() -> None:
    """Recurrent actors and critics: after some updates a seed's policy does not know who trained beside it."""
    method = METHODS["IPPO GRU"]
    method = replace(method, learner=replace(method.learner, episodes=4, lr=0.01, memory=8))
    found = []
    for seeds in ((3, 8), (8,)):
        *_, last = learn(Experiment(ROBOT, method, seeds, 4 * 4 * ROBOT.horizon, points=1, judge=False))
        tau = rollout(ROBOT, None, 4, seeds, purpose="probe")
        with torch.no_grad():
            found.append(last.actor(tau.obs, tau.mask)[:, -4:])
    assert torch.allclose(*found, atol=1e-4)


def test_methods_without_memory_keep_their_names() -> None:
    """Configurations name a memory only where there is one, so that stored results of the other methods are found."""
    told = {name: Experiment(ROBOT, METHODS[name]).describe()["learner"] for name in ("IPPO", "IPPO GRU")}
    assert "memory" not in told["IPPO"] and told["IPPO GRU"] == told["IPPO"] | {"memory": 64}
    fits = {name: METHODS[name].describe()["fit"] for name in told}
    assert "memory" not in fits["IPPO"] and fits["IPPO GRU"] == fits["IPPO"] | {"memory": 64}
