"""Knowing how it came out, what had probably been done? A classifier of past actions, and outcomes worth knowing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env, flatten
from marl.critic import Fit, mean_over_live, situation
from marl.networks import Population, from_per_agent, from_per_seed, per_agent, per_seed
from marl.types import Trajectory

FEATURES = 8  # units that an outcome is told by
FACTORS = 4  # units D in which what was seen and what came out meet
SHARPEST = 32.0  # bound on the log of how much likelier hindsight makes an action
CACHE = 1 << 18  # numbers that stay in the cache of one core
BLOCK = 8  # steps t that share their later steps k


class Hindsight(nn.Module):
    """h_i(c | y), the chance that agent i had done c in the light of y; S seeds at once, a network an agent.

    h(c | y) = softmax_c(log pi(c) + f_c(y)), f the network, fitted by cross-entropy to the actions taken. f starts at
    0: until something has been learned h is the policy and nothing is credited. h follows the policy as it moves and
    gives no weight to what the policy cannot do.
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


class PairHindsight(nn.Module):
    """h_i(c | x_t, u_k), the chance that agent i had done c at t before u came out at k; as `Hindsight`, but f factors:

    f_c(x_t, u_k) = sum_d p_cd(x_t, t/T) q_d(u_k, k/T), d = 1 .. D, kept within +-32.

    Two networks are asked T times each, and all T^2/2 pairs are one matmul. p starts at 0 and with it f; exp(f) needs
    no care.
    """

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], seen: int, told: int, how: Fit) -> None:
        super().__init__()
        self.n_seeds, self.n_actions = len(seeds), game.n_actions
        N, A = game.n_agents, game.n_actions
        before, after = (seen + 1, *how.hidden, A * FACTORS), (told + 1, *how.hidden, FACTORS)
        self.before = Population("hindsight/before", seeds, N, before, how.activation, last_gain=0.0)
        self.after = Population("hindsight/after", seeds, N, after, how.activation)

    def factors(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """(p [S,N,A,D,T,E], q [S,N,D,T,E]) of x and u [T,B,N,...]."""
        return self._ask(self.before, x).unflatten(2, (self.n_actions, FACTORS)), self._ask(self.after, u)

    def forward(self, p: Tensor, q: Tensor, k: Tensor, action: Tensor, probs: Tensor) -> Tensor:
        """log h/pi [T,B,N] of the actions taken, in the light of u_k, k [T,B]; p and q as of `factors`, probs pi."""
        T, B, _ = action.shape
        later = per_seed(k[..., None], self.n_seeds).unflatten(3, (T, -1))
        f = (p * q.gather(3, later.expand_as(q))[:, :, None]).sum(3).flatten(3).clamp(-SHARPEST, SHARPEST)
        mean = (per_agent(probs, self.n_seeds) * f.exp()).sum(2, keepdim=True)
        own = f.gather(2, per_agent(action[..., None], self.n_seeds)) - mean.log()
        return from_per_agent(own, (T,), B)[..., 0]

    def ratios(self, x: Tensor, u: Tensor, probs: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """h/pi of all pairs, a cacheful at a time: (rows, steps t, [rows,steps,A,K]), k = steps.start + 1 .. T - 1.

        Rows are agents within episodes (`by_row`); pairs with k <= t come along and mean nothing.
        """
        T, A, pi = len(x), self.n_actions, by_row(probs)[:, :, None]
        p, q = self.factors(x, u)
        p = p.permute(0, 5, 1, 4, 2, 3).flatten(0, 2)  # [B*N,T,A,D]
        q = q.permute(0, 4, 1, 2, 3).flatten(0, 2)  # [B*N,D,T]
        few = max(1, CACHE // (BLOCK * A * T))
        for first in range(0, len(p), few):
            rows = slice(first, min(first + few, len(p)))
            for t in range(0, T - 1, BLOCK):
                steps = slice(t, min(t + BLOCK, T))
                f = p[rows, steps].flatten(1, 2) @ q[rows, :, t + 1 :]
                likelier = f.clamp_(-SHARPEST, SHARPEST).exp_().unflatten(1, (-1, A))
                yield rows, steps, likelier.div_(pi[rows, steps] @ likelier)

    def _ask(self, net: Population, x: Tensor) -> Tensor:
        """[T,B,N,F] -> [S,N,outputs,T,E]."""
        T, B, N, _ = x.shape
        t = torch.arange(T, dtype=x.dtype, device=x.device)[:, None, None, None] / T
        rows = per_agent(torch.cat((x, t.expand(T, B, N, 1)), -1), self.n_seeds)
        return net(rows).unflatten(3, (T, -1))


def by_row(x: Tensor) -> Tensor:
    """[T,B,N,...] -> [B*N,T,...]."""
    return x.flatten(1, 2).transpose(0, 1)


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
