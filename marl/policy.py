"""An actor turns what one agent sees into probabilities of its actions; a population of them acts at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env
from marl.networks import Population, Running, from_per_agent, from_per_seed, fused_for, per_agent, per_seed
from marl.recurrent import Gru
from marl.types import Act


class Actor(nn.Module):
    """pi_i(a | o_i) = softmax(f_i(o_i)) over legal actions, for S seeds.

    shared=False: every agent has its own f_i (independent learners). shared=True: one f a seed reads (o_i, one-hot i).
    With last_gain small it starts near uniform. What a Q-learner makes of f_i is a value of each action instead.

    memory=H: pi_i(a | m_i) = softmax(W m_i + b), where m_i is what a GRU of H units, behind the hidden layers, has
    kept of o_i0 .. o_it (see `marl.rollout.Remembers`). It then reads whole episodes [T,B,N,O] from their first step
    on, or one step at a time by `remember` and `act`.
    """

    def __init__(
        self,
        game: Env[Any],
        seeds: Sequence[int],
        hidden: Sequence[int] = (32,),
        shared: bool = False,
        activation: str = "relu",
        normalize: bool = False,
        name: str = "actor",
        last_gain: float = 0.01,
        memory: int = 0,
    ) -> None:
        super().__init__()
        self.seeds, self.n_seeds = tuple(seeds), len(seeds)
        self.n_agents, self.shared = game.n_agents, shared
        self.memory = memory
        inputs = game.obs_size + (game.n_agents if shared else 0)
        copies = 1 if shared else game.n_agents
        self.gru = Gru(f"{name}/memory", seeds, copies, (inputs, *hidden, memory), activation) if memory else None
        sizes = (memory, game.n_actions) if memory else (inputs, *hidden, game.n_actions)
        self.net = Population(name, seeds, copies, sizes, activation, last_gain)
        self.norm = Running(self.n_seeds, copies, game.obs_size) if normalize else None

    def folded_logits(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """[..., B, N, O] -> [S, C, A, R] in the network's own layout; minus infinity where illegal.

        Raises ValueError where an actor that remembers is shown anything but whole episodes [T,B,N,O].
        """
        x = self.inputs(obs)
        if self.gru is not None:
            if obs.dim() != 4:
                shown = list(obs.shape)
                raise ValueError(f"an actor with a memory reads whole episodes [T,B,N,O], not {shown}; see `remember`")
            x = self.gru(x, len(obs))
        return self._said(x, mask)

    def remember(self, obs: Tensor, before: Tensor) -> Tensor:
        """m_t [B,N,H] from o_t [B,N,O] and m_{t-1} [B,N,H] (0 at the first step)."""
        assert self.gru is not None
        return self.unfold(self.gru.step(self.inputs(obs), self.fold(before)), (), len(obs))

    def act(self, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probabilities [B,N,A] of one step, from what is remembered, [B,N,H]."""
        return self.unfold(self._said(self.fold(memory), mask).softmax(2), (), len(memory))

    def alone(self, seed: int) -> Actor:
        """A copy in float64 of the actors of one seed (by its place among them)."""
        one = copy.deepcopy(self).double()
        one.seeds, one.n_seeds = (self.seeds[seed],), 1
        for x in (*one.parameters(), *one.buffers()):
            x.data = x.data.unflatten(0, (self.n_seeds, -1))[seed]
        return one

    def inputs(self, obs: Tensor) -> Tensor:
        """[..., B, N, O] -> [S, C, inputs, R]."""
        x = self.fold(obs)
        x = x if self.norm is None else self.norm(x)
        if not self.shared:
            return x
        eye = torch.eye(self.n_agents, dtype=obs.dtype, device=obs.device)
        return torch.cat((x, self.fold(eye.expand(*obs.shape[:-1], -1))), 2)

    def _said(self, x: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self.net(x)
        return out if mask is None else out.masked_fill(~self.fold(mask), -torch.inf)

    def track(self, obs: Tensor, alive: Tensor) -> None:
        """Take observations [T,B,N,O] of live steps [T,B] into the running normalisation, if there is one."""
        if self.norm is not None:
            weight = alive[..., None, None].expand(*obs.shape[:-1], 1).to(obs.dtype)
            self.norm.track(self.fold(obs), self.fold(weight))

    def fold(self, x: Tensor) -> Tensor:
        """[..., B, N, F] -> [S, C, F, R], as the network reads it."""
        if self.shared:
            return per_seed(x.flatten(-3, -2), self.n_seeds)
        return per_agent(x, self.n_seeds)

    def unfold(self, y: Tensor, lead: Sequence[int], B: int) -> Tensor:
        """The inverse of `fold`."""
        if self.shared:
            return from_per_seed(y, lead, B * self.n_agents).unflatten(-2, (B, self.n_agents))
        return from_per_agent(y, lead, B)

    def acting(self, luck: Tensor, temperature: float = 1.0, epsilon: float = -1.0) -> Act | None:
        """See `marl.rollout.ActsAtOnce`; luck tells where and in which precision. epsilon >= 0: epsilon-greedy."""
        if self.gru is not None or self.norm is not None or fused_for(luck) is None:
            return None
        from marl.fused.acting import acting  # on use: compiled code takes its time to load

        return acting(self.net.layers, self.net.activation, self.shared, temperature, epsilon)

    def forward(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probabilities, [..., B, N, A]; B seed-major. Raises as `folded_logits`."""
        *lead, B, _, _ = obs.shape
        return self.unfold(self.folded_logits(obs, mask).softmax(2), lead, B)
