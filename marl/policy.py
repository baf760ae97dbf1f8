"""An actor turns what one agent sees into probabilities of its actions; a population of them acts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env
from marl.networks import Population, from_per_agent, from_per_seed, per_agent, per_seed


class Actor(nn.Module):
    """pi_i(a | o_i) = softmax(f_i(o_i)) over legal actions, for S seeds.

    shared=False: every agent has its own f_i (independent learners). shared=True: one f a seed reads (o_i, one-hot i).
    """

    def __init__(
        self,
        game: Env[Any],
        seeds: Sequence[int],
        hidden: Sequence[int] = (32,),
        shared: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.n_seeds, self.n_agents, self.shared = len(seeds), game.n_agents, shared
        inputs = game.obs_size + (game.n_agents if shared else 0)
        sizes = (inputs, *hidden, game.n_actions)
        self.net = Population("actor", seeds, 1 if shared else game.n_agents, sizes, activation, last_gain=0.01)

    def logits(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """[..., B, N, O] -> [..., B, N, A], minus infinity where illegal; B seed-major."""
        *lead, B, N, _ = obs.shape
        if self.shared:
            eye = torch.eye(N, dtype=obs.dtype, device=obs.device).expand(*obs.shape[:-1], N)
            rows = torch.cat((obs, eye), -1).flatten(-3, -2)
            out = from_per_seed(self.net(per_seed(rows, self.n_seeds)), lead, B * N).unflatten(-2, (B, N))
        else:
            out = from_per_agent(self.net(per_agent(obs, self.n_seeds)), lead, B)
        return out if mask is None else out.masked_fill(~mask, -torch.inf)

    def forward(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probabilities, [..., B, N, A]."""
        return self.logits(obs, mask).softmax(-1)
