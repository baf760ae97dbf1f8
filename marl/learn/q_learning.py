"""Instead of following credit, learn what each action is worth to its agent, and do what is worth most.

Value decomposition hides its credit assignment in Q_tot: agent i is credited with what its Q_i adds there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from envs.base import Env, HasActionMask, HasTimeLimit, flatten
from envs.noise import uniform
from marl.critic import mean_over_live
from marl.mixing import MIXERS
from marl.networks import clip_per_seed, fused_for
from marl.policy import Actor
from marl.rollout import greedy
from marl.types import Act, Policy, Trajectory

EXPLORATION = ("epsilon", "boltzmann")


@dataclass(frozen=True)
class QLearning:
    """Deep Q-learning on whole episodes with a replay buffer, target networks and double Q, all seeds at once.

    mixer "none": independent learners (IQL, Tan 1993), y_i = r_i + gamma max_c Q_i^-(o_i', c) on any AGENT signal r_i.
    mixer "vdn", "qmix", "qplex": y = r + gamma Q_tot^-(s', argmax_c Q_i(o_i', c) of each agent) on the team's reward.
    Q^- is a copy renewed every `target` updates; with `double` the online networks choose the next action and the
    copy values it (van Hasselt et al. 2016). Exploration falls linearly from `start` to `end`: epsilon-greedy
    (a random legal action with probability epsilon), or Boltzmann, pi(a) ~ exp(Q(a) / temperature), thermal noise.
    """

    mixer: str = "none"  # none, vdn, qmix or qplex
    lr: float = 3e-3  # Adam step size
    episodes: int = 32  # played per seed and update
    steps: int = 4  # gradient steps after them
    batch: int = 32  # episodes of the buffer in each
    capacity: int = 512  # episodes that the buffer of a seed holds
    target: int = 5  # updates between two copies of the networks
    double: bool = True
    gamma: float = 1.0
    exploration: str = "epsilon"
    start: float = 1.0  # epsilon, or temperature in units of return
    end: float = 0.05
    over: float = 0.6  # the part of training in which exploration falls
    hidden: tuple[int, ...] = (32,)  # units of each hidden layer of Q_i
    activation: str = "relu"
    shared: bool = False  # one network for all agents instead of one each
    embed: int = 32  # units inside the mixer
    max_grad_norm: float | None = 10.0  # per seed

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing, one sentence each."""
        for knob, allowed in (("mixer", ("none", *MIXERS)), ("exploration", EXPLORATION)):
            if getattr(self, knob) not in allowed:
                names = ", ".join(allowed)
                raise ValueError(f"{knob}={getattr(self, knob)!r} is not allowed; it must be one of {names}")
        least = {"episodes": 1, "steps": 1, "batch": 1, "target": 1, "capacity": self.episodes}
        for knob, low in least.items():
            if getattr(self, knob) < low:
                raise ValueError(f"{knob}={getattr(self, knob)!r} is not allowed; it must be {low} or more")

    @property
    def follows(self) -> tuple[str, ...]:
        """The kinds of signal that it learns from."""
        return ("AGENT",) if self.mixer == "none" else ("RAW", "TEAM")

    def begin(self, game: Env[Any], seeds: Sequence[int]) -> QTraining:
        """New networks, an empty buffer."""
        return QTraining(self, game, tuple(seeds))

    def level(self, done: float) -> float:
        """Epsilon or temperature at a fraction `done` of training."""
        return self.start + (self.end - self.start) * min(1.0, done / self.over if self.over else 1.0)


class Explorer(nn.Module):
    """The behaviour policy: what Q says, disturbed."""

    def __init__(self, net: Actor, how: QLearning) -> None:
        super().__init__()
        self.net, self.how, self.level = net, how, how.start

    def forward(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """[..., B, N, A] probabilities."""
        q = values(self.net, obs, mask)
        if self.how.exploration == "boltzmann":
            return (q / max(self.level, 1e-6)).softmax(-1)
        legal = torch.ones_like(q) if mask is None else mask.to(q.dtype)
        best = torch.zeros_like(q).scatter(-1, q.max(-1, keepdim=True).indices, 1.0)
        return (1 - self.level) * best + self.level * legal / legal.sum(-1, keepdim=True)

    def acting(self, luck: Tensor) -> Act | None:
        """As `marl.rollout.ActsAtOnce` says."""
        if self.how.exploration == "boltzmann":
            return self.net.acting(luck, max(self.level, 1e-6))
        return self.net.acting(luck, epsilon=self.level)


def values(net: Actor, obs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Q_i(o_i, .) [..., B, N, A], minus infinity where illegal; the network is an actor's, its outputs are values."""
    *lead, B, _, _ = obs.shape
    return net.unfold(net.folded_logits(obs, mask), lead, B)


class Memory(NamedTuple):
    """Episodes of a buffer, [T, S, K, ...]; what a step leads to stands one later: obs, view and mask have T + 1."""

    obs: Tensor  # [T+1, S, K, N, O]
    view: Tensor  # [T+1, S, K, C]; of size 0 where no mixer reads it
    mask: Tensor  # [T+1, S, K, N, A] bool; of size 0 where all actions are legal
    action: Tensor  # [T, S, K, N]
    signal: Tensor  # [T, S, K] or [T, S, K, N]
    goes_on: Tensor  # [T, S, K] 1 where the next state has a value, 0 after an end and at the horizon
    alive: Tensor  # [T, S, K] bool


def memory_of(game: Env[Any], trajectory: Trajectory, signal: Tensor, n_seeds: int, viewed: bool = True) -> Memory:
    """What is kept of a batch of episodes; what a central critic sees only where someone looks at it (`viewed`)."""
    T, B = trajectory.reward.shape
    last = trajectory.done.clone()
    last[-1] = True
    closing = last & trajectory.alive
    cut = closing & game.truncated(trajectory.final) if isinstance(game, HasTimeLimit) else torch.zeros_like(closing)

    def following(now: Tensor, final: Tensor) -> Tensor:
        """Append the state after the last step; a time limit's own last state replaces the dead step behind it."""
        out = torch.cat((now, final[None]))
        where = cut.reshape(T, B, *[1] * (now.dim() - 2))
        out[1:] = torch.where(where, final, out[1:])
        return out

    view = trajectory.obs.new_zeros((T + 1, B, 0))
    if viewed:
        views = game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        view = following(views, game.critic_view(trajectory.final))
    mask = trajectory.obs.new_zeros((T + 1, B, 0), dtype=torch.bool)
    if trajectory.mask is not None and isinstance(game, HasActionMask):
        mask = following(trajectory.mask, game.action_mask(trajectory.final))
    kept = Memory(
        following(trajectory.obs, game.observe(trajectory.final)),
        view,
        mask,
        trajectory.action,
        signal,
        (~closing | cut).to(signal.dtype),
        trajectory.alive,
    )
    return Memory(*(x.unflatten(1, (n_seeds, -1)) for x in kept))


class QTraining:
    """Q-learning under way: networks, their copies, the buffer."""

    def __init__(self, how: QLearning, game: Env[Any], seeds: tuple[int, ...]) -> None:
        self.how, self.game, self.seeds = how, game, seeds
        self.net = Actor(game, seeds, how.hidden, how.shared, how.activation, name="q", last_gain=1.0)
        self.mixer = None if how.mixer == "none" else MIXERS[how.mixer](game, seeds, how.embed)
        self.old_net, self.old_mixer = copy.deepcopy(self.net), copy.deepcopy(self.mixer)
        learned = [*self.net.parameters(), *(() if self.mixer is None else self.mixer.parameters())]
        self.parameters, self.optimizer = learned, torch.optim.Adam(learned, lr=how.lr, fused=True)
        self.policy = Explorer(self.net, how)
        self.buffer: Memory | None = None
        self.seen = 0  # episodes a seed
        self.viewed = how.mixer not in ("none", "vdn")  # does anyone read what a central critic sees?

    @property
    def evaluated(self) -> Policy:
        """Q-learners are judged by what they hold for best, however much they explore."""
        return greedy(lambda obs, mask: values(self.net, obs, mask))

    def update(self, trajectory: Trajectory, signal: Tensor, update: int, done: float) -> None:
        """Keep the episodes, take the gradient steps, renew the copies, cool down."""
        self._keep(memory_of(self.game, trajectory, signal, len(self.seeds), self.viewed))
        which = self._choice(update)
        if not self._descended(which):
            for some in which:
                self.optimizer.zero_grad(set_to_none=True)
                self.loss(self._drawn(some)).sum().backward()
                if self.how.max_grad_norm is not None:
                    clip_per_seed(self.parameters, len(self.seeds), self.how.max_grad_norm)
                self.optimizer.step()
        if (update + 1) % self.how.target == 0:
            self.old_net.load_state_dict(self.net.state_dict())
            if self.mixer is not None and self.old_mixer is not None:
                self.old_mixer.load_state_dict(self.mixer.state_dict())
        self.policy.level = self.how.level(done)

    def loss(self, rows: Memory) -> Tensor:
        """[S] mean squared temporal-difference error over live steps; rows [T, S * K, ...]."""
        how, mask = self.how, rows.mask if rows.mask.shape[-1] else None
        q = values(self.net, rows.obs[:-1], None if mask is None else mask[:-1])
        taken = q.gather(-1, rows.action[..., None])[..., 0]
        with torch.no_grad():
            later = None if mask is None else mask[1:]
            old = values(self.old_net, rows.obs[1:], later)
            # On a CPU `max` is many times quicker than `argmax` along an axis whose numbers lie apart.
            chosen = (values(self.net, rows.obs[1:], later) if how.double else old).max(-1).indices
            after = old.gather(-1, chosen[..., None])[..., 0]
            if self.old_mixer is not None:
                after = self.old_mixer(after, old.max(-1).values, rows.view[1:], chosen)
            goes_on = rows.goes_on if after.dim() == 2 else rows.goes_on[..., None]
            aim = rows.signal + how.gamma * goes_on * after
        said = taken if self.mixer is None else self.mixer(taken, q.max(-1).values, rows.view[:-1], rows.action)
        miss = (said - aim).square()
        return mean_over_live(miss if miss.dim() == 3 else miss[..., None], rows.alive, len(self.seeds))

    def credit(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N] what Q_i sees in the action taken, above its mean over all actions.

        The mean under the policy would not do: a greedy policy always does as expected.
        """
        with torch.no_grad():
            q = values(self.net, trajectory.obs)
            own = q.gather(-1, trajectory.action[..., None])[..., 0] - q.mean(-1)
        return own * trajectory.alive[..., None]

    def to(self, device: str) -> None:
        """Live there; the optimiser follows its parameters, the buffer its episodes."""
        for part in self._parts().values():
            if isinstance(part, nn.Module):
                part.to(device)

    def state(self) -> dict[str, Any]:
        """Networks, their copies, optimiser, buffer and exploration."""
        kept = {name: part.state_dict() for name, part in self._parts().items()}
        return {**kept, "level": self.policy.level, "seen": self.seen, "buffer": self.buffer and list(self.buffer)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.policy.level, self.seen = state["level"], state["seen"]
        self.buffer = None if state["buffer"] is None else Memory(*state["buffer"])

    def _parts(self) -> dict[str, Any]:
        parts = {"net": self.net, "mixer": self.mixer, "old_net": self.old_net, "old_mixer": self.old_mixer}
        return {name: part for name, part in {**parts, "optimizer": self.optimizer}.items() if part is not None}

    def _keep(self, new: Memory) -> None:
        """Write the episodes over the oldest ones."""
        count, room = new.action.shape[2], self.how.capacity
        if self.buffer is None:
            self.buffer = Memory(*(x.new_zeros((*x.shape[:2], room, *x.shape[3:])) for x in new))
        done = max(0, count - room)  # who would be written over at once
        while done < count:
            place = (self.seen + done) % room
            many = min(count - done, room - place)
            for kept, fresh in zip(self.buffer, new, strict=True):
                kept[:, :, place : place + many] = fresh[:, :, done : done + many]
            done += many
        self.seen += count

    def _choice(self, update: int) -> Tensor:
        """[steps, S, batch] episodes, with replacement; seed k's never depend on which seeds train beside it."""
        assert self.buffer is not None
        steps, S, device = self.how.steps, len(self.seeds), self.buffer.action.device
        numbers = torch.arange(update * steps, (update + 1) * steps).repeat_interleave(S)
        u = uniform("q/draw", list(self.seeds) * steps, numbers, (self.how.batch,), device=device)
        return (u * min(self.seen, self.how.capacity)).long().unflatten(0, (steps, S))

    def _drawn(self, which: Tensor) -> Memory:
        """The episodes `which` [S, M] as rows [T, S * M, ...]."""
        assert self.buffer is not None
        rows = (which + torch.arange(len(which), device=which.device)[:, None] * self.how.capacity).flatten()
        return Memory(*(x.flatten(1, 2).index_select(1, rows) for x in self.buffer))

    def _descended(self, which: Tensor) -> bool:
        """Take all gradient steps in one call, where the fused tier can (`fused.q_descent`); False where it cannot."""
        how, buffer = self.how, self.buffer
        assert buffer is not None
        if self.viewed or fused_for(buffer.obs) is None or buffer.signal.dtype != torch.float32:
            return False
        from marl.fused.q_descent import q_descend  # on use: compiled code takes its time to load

        net, old, mixed = self.net.net, self.old_net.net, self.mixer is not None
        about = (mixed, how.double, how.gamma, how.max_grad_norm)
        q_descend(net.layers, old.layers, net.activation, self.optimizer, buffer, which, *about)
        return True
