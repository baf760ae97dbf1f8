"""Knowing how it came out, what had probably been done? A classifier of past actions, and outcomes worth knowing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env, flatten
from marl.critic import Fit, mean_over_live, situation
from marl.networks import ACTIVATIONS, Population, from_per_agent, from_per_seed, multilayer, per_agent, per_seed
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
        return _log_ratio(from_per_agent(self.net(per_agent(inputs, self.n_seeds)), lead, B), probs)

    def pairs(self, x: Tensor, u: Tensor, probs: Tensor) -> Iterator[Tensor]:
        """log h/pi [T-1-t,B,N,A] of the inputs (x_t, u_k, t/T, (k-t)/T), k > t, for t = 0, 1, ...; all [T,B,N,...].

        The first layer is linear in these, so it is computed once for every t and once for every k.
        """
        T, B, _, X = x.shape
        (weight, *weights), (bias, *biases) = self.net.weights, self.net.biases
        told = (weight[:, :, X:-2] @ self._rows(u)).unflatten(-1, (T, -1))  # [P,H,T,E]
        t = torch.arange(T, dtype=x.dtype, device=x.device)[:, None] / T
        seen = (weight[:, :, :X] @ self._rows(x)).unflatten(-1, (T, -1)) + (bias + weight[:, :, -2:-1] * t[:, 0])[
            ..., None
        ]
        for k in range(T - 1):
            first = told[:, :, k + 1 :] + seen[:, :, k : k + 1] + weight[:, :, -1:, None] * t[1 : T - k]
            first = first.flatten(2)
            if weights:
                squash = ACTIVATIONS[self.net.activation]
                first = multilayer((squash(first),), [*weights, *biases], self.net.activation)
            f = from_per_agent(first.unflatten(0, (self.n_seeds, -1)), (T - 1 - k,), B)
            yield _log_ratio(f, probs[k])
        yield probs[:0]  # nothing follows the last step

    def _rows(self, x: Tensor) -> Tensor:
        """[T,B,N,F] -> [S*N, F, T*E]."""
        return per_agent(x, self.n_seeds).flatten(0, 1)


def _log_ratio(f: Tensor, probs: Tensor) -> Tensor:
    """log softmax(log pi + f) - log pi, exactly 0 where f is."""
    prior = probs.log()
    return f - (prior + f).logsumexp(-1, keepdim=True) + prior.logsumexp(-1, keepdim=True)


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
        return torch.tanh(self.net(per_seed(situation(self.game, trajectory), self.n_seeds)))


def views(game: Env[Any], trajectory: Trajectory, central: bool) -> Tensor:
    """[T,B,N,F] what h reads of a step: each agent's own observation, or critic_view for all."""
    if not central:
        return trajectory.obs
    T, B, N = trajectory.action.shape
    return game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))[:, :, None].expand(-1, -1, N, -1)
