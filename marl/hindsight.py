"""Knowing how it came out, what had probably been done? A classifier of past actions, and outcomes worth knowing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env, flatten
from marl.critic import Fit, mean_over_live
from marl.networks import Population, from_per_agent, from_per_seed, per_agent, per_seed
from marl.types import Trajectory

FEATURES = 8  # units that an outcome is told by


class Hindsight(nn.Module):
    """h_i(c | x, y), the chance that agent i had done c before y came out of x; S seeds at once, a network an agent.

    h(c | x, y) = softmax_c(log pi(c) + f_c(x, y)), f the network, fitted by cross-entropy to the actions taken. f
    starts at 0: until something has been learned h is the policy and nothing is credited. h follows the policy as it
    moves and gives no weight to what the policy cannot do.
    """

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], inputs: int, how: Fit) -> None:
        super().__init__()
        self.n_seeds = len(seeds)
        sizes = (inputs, *how.hidden, game.n_actions)
        self.net = Population("hindsight", seeds, game.n_agents, sizes, how.activation, last_gain=0.0)

    def forward(self, inputs: Tensor, probs: Tensor) -> Tensor:
        """log h/pi [...,B,N,A], finite where pi is 0 too; inputs [...,B,N,F], probs pi [...,B,N,A]."""
        *lead, B, _, _ = inputs.shape
        f = from_per_agent(self.net(per_agent(inputs, self.n_seeds)), lead, B)
        prior = probs.log()
        return f - (prior + f).logsumexp(-1, keepdim=True) + prior.logsumexp(-1, keepdim=True)  # exactly 0 where f is


class RewardFeatures(nn.Module):
    """Features u of (critic_view, joint action) that tell the reward: r_i = w_i u + b_i, u the tanh of a network.

    One network a seed, N readouts, fitted to the incoming stream. Reads what a central critic may see, in training
    only.
    """

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], how: Fit) -> None:
        super().__init__()
        self.game, self.n_seeds = game, len(seeds)
        inputs = game.critic_size + game.n_agents * game.n_actions
        self.net = Population("reward features", seeds, 1, (inputs, *how.hidden, FEATURES), how.activation)
        self.readout = Population("reward readout", seeds, 1, (FEATURES, game.n_agents))

    def forward(self, trajectory: Trajectory) -> Tensor:
        """u [T,B,FEATURES]."""
        T, B, _ = trajectory.action.shape
        return from_per_seed(self._features(trajectory), (T,), B)

    def loss(self, trajectory: Trajectory, reward: Tensor) -> Tensor:
        """[S] mean squared error of the reward [T,B,N] that the features tell, over live steps."""
        T, B, _ = trajectory.action.shape
        told = from_per_seed(self.readout(self._features(trajectory)), (T,), B)
        return mean_over_live((told - reward).square(), trajectory.alive, self.n_seeds)

    def _features(self, trajectory: Trajectory) -> Tensor:
        T, B, _ = trajectory.action.shape
        view = self.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        taken = nn.functional.one_hot(trajectory.action, self.game.n_actions).to(view.dtype).flatten(2)
        return torch.tanh(self.net(per_seed(torch.cat((view, taken), -1), self.n_seeds)))


def views(game: Env[Any], trajectory: Trajectory, central: bool) -> Tensor:
    """[T,B,N,F] what h reads of a step: each agent's own observation, or critic_view for all."""
    if not central:
        return trajectory.obs
    T, B, N = trajectory.action.shape
    return game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))[:, :, None].expand(-1, -1, N, -1)
