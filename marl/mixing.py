"""A mixer says what the team's value is, given what each agent thinks of its own action: Q_tot = f(Q_1, ..., Q_N; s).

Value decomposition rests on one condition, IGM (Son et al. 2019): the joint action that is best for Q_tot consists of
each agent's own best action. A sum has it; so has whatever grows in every Q_i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env
from marl.networks import Population, from_per_seed, per_seed


class Mixer(nn.Module, ABC):
    """Q_tot of S seeds at once. Subclasses are final and are built with (game, seeds, embed)."""

    def __init__(self, game: Env[Any], seeds: Sequence[int], embed: int = 32) -> None:
        super().__init__()
        self.game, self.n_seeds, self.embed = game, len(seeds), embed
        self.build(tuple(seeds))

    @abstractmethod
    def build(self, seeds: tuple[int, ...]) -> None:
        """Make the networks that read the state."""

    @abstractmethod
    def forward(self, taken: Tensor, best: Tensor, view: Tensor, action: Tensor) -> Tensor:
        """[..., B] Q_tot from Q_i of the actions taken and V_i = max_c Q_i(c) [..., B, N].

        view [..., B, critic_size] is all that a central critic may see, action [..., B, N] int64.
        """

    def ask(self, net: Population, x: Tensor) -> Tensor:
        """One network a seed on rows [..., B, F] -> [..., B, out]."""
        *lead, B, _ = x.shape
        return from_per_seed(net(per_seed(x, self.n_seeds)), lead, B)


class Vdn(Mixer):
    """Value decomposition networks (Sunehag et al. 2018): Q_tot = sum_i Q_i. It can say only what is a sum."""

    def build(self, seeds: tuple[int, ...]) -> None:
        """Nothing to learn."""

    def forward(self, taken: Tensor, best: Tensor, view: Tensor, action: Tensor) -> Tensor:
        """[..., B]."""
        return taken.sum(-1)


class Qmix(Mixer):
    """QMIX (Rashid et al. 2018): a network whose weights the state chooses, and never below zero.

    Q_tot = |W_2(s)| ELU(|W_1(s)| q + b_1(s)) + b_2(s), with W_1, b_1, W_2 linear in s and b_2 a two-layer network.
    So dQ_tot/dQ_i >= 0, which gives IGM; what is not monotonic in some Q_i cannot be said.
    """

    def build(self, seeds: tuple[int, ...]) -> None:
        """Hypernetworks on critic_view."""
        C, N, H = self.game.critic_size, self.game.n_agents, self.embed
        self.first = Population("qmix/first", seeds, 1, (C, N * H))
        self.shift = Population("qmix/shift", seeds, 1, (C, H))
        self.second = Population("qmix/second", seeds, 1, (C, H))
        self.level = Population("qmix/level", seeds, 1, (C, H, 1))

    def forward(self, taken: Tensor, best: Tensor, view: Tensor, action: Tensor) -> Tensor:
        """[..., B]."""
        first = self.ask(self.first, view).abs().unflatten(-1, (self.game.n_agents, self.embed))
        hidden = nn.functional.elu((taken[..., None] * first).sum(-2) + self.ask(self.shift, view))
        return (hidden * self.ask(self.second, view).abs()).sum(-1) + self.ask(self.level, view)[..., 0]


class Qplex(Mixer):
    """QPLEX (Wang et al. 2021): what is best adds up, what is lost by another action is weighted by state and actions.

    With V_i = w_i(s) max_c Q_i(c) + b_i(s) and A_i = w_i(s) (Q_i(a_i) - max_c Q_i(c)) <= 0,
    Q_tot = sum_i V_i + sum_i lambda_i(s, a) A_i,  w_i > 0,
    lambda_i = sum_h |u_h(s)| sigmoid(x_hi(s)) sigmoid(y_hi(s, a)) > 0.
    lambda may depend on the joint action, so every game that has IGM can be said, monotonic or not.
    """

    HEADS = 4

    def build(self, seeds: tuple[int, ...]) -> None:
        """The transformation (w, b) and the attention lambda."""
        C, N, A, H = self.game.critic_size, self.game.n_agents, self.game.n_actions, self.embed
        self.scale = Population("qplex/scale", seeds, 1, (C, H, N))
        self.shift = Population("qplex/shift", seeds, 1, (C, H, N))
        self.heads = Population("qplex/heads", seeds, 1, (C, H, self.HEADS))
        self.agents = Population("qplex/agents", seeds, 1, (C, H, self.HEADS * N))
        self.actions = Population("qplex/actions", seeds, 1, (C + N * A, H, self.HEADS * N))

    def forward(self, taken: Tensor, best: Tensor, view: Tensor, action: Tensor) -> Tensor:
        """[..., B]."""
        N = self.game.n_agents
        joint = nn.functional.one_hot(action, self.game.n_actions).to(view.dtype).flatten(-2)
        weight = self.ask(self.scale, view).abs() + 1e-6
        heads = self.ask(self.heads, view).abs()[..., None]
        who = self.ask(self.agents, view).sigmoid().unflatten(-1, (self.HEADS, N))
        which = self.ask(self.actions, torch.cat((view, joint), -1)).sigmoid().unflatten(-1, (self.HEADS, N))
        importance = (heads * who * which).sum(-2) + 1e-6
        value = weight * best + self.ask(self.shift, view)
        return (value + importance * weight * (taken - best)).sum(-1)


MIXERS: dict[str, type[Mixer]] = {"vdn": Vdn, "qmix": Qmix, "qplex": Qplex}
