"""Which of the rewards that followed did an action contribute to? Shared by the methods that look back from outcomes.

Hindsight credit assignment (Harutyunyan et al. 2019) and counterfactual contribution analysis (Meulemans et al. 2023)
weigh a later reward r_k by how much likelier its outcome u_k makes an action than the policy did, h(c|x_t,u_k) / pi(c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from envs.noise import uniform
from marl.credit.base import ChainError, Credit, live_only
from marl.credit.counterfactual import episode_names
from marl.critic import mean_over_live
from marl.hindsight import FEATURES, PairHindsight, RewardFeatures, by_row, views
from marl.types import Trajectory

Exact: TypeAlias = Callable[[Trajectory, Tensor], Tensor]
"""(trajectory, outcomes u [T,B,N,U]) -> h [T,T,B,N,A]: h[t,k] = P(a_it = c | x_t, u_k) for k > t; the rest is not read.

Privileged: it comes from whoever can list all futures, and is handed in.
"""
OUTCOMES = ("state", "reward", "features")


class Contribution(nn.Module):
    """h / pi for every pair (t, k > t), learned or handed in, and the credit that follows from it.

    Outcomes: "state", what h may see of step k; "reward", r_k; "features" of step k that tell its reward. x_t and a
    "state" are each agent's own observation, or critic_view where `central`. The learned h also reads t/T and k/T. It
    is fitted to `pairs` later steps k of every t, drawn by the episode.
    """

    def __init__(self, owner: Credit, outcome: str, central: bool, pairs: int, exact: Exact | None) -> None:
        super().__init__()
        if pairs < 1:
            raise ChainError(f"{type(owner).__name__}: pairs={pairs} is not allowed; it must be 1 or more")
        context = owner.context
        game = self.game = context.game
        self.outcome, self.central, self.pairs, self.exact = outcome, central, pairs, exact
        self.n_seeds = context.n_seeds
        self.features = RewardFeatures(game, context.seeds, context.fit) if outcome == "features" else None
        seen = game.critic_size if central else game.obs_size
        told = {"state": seen, "reward": 2, "features": FEATURES}[outcome]
        self.hindsight = None if exact else PairHindsight(game, context.seeds, seen, told, context.fit)

    def outcomes(self, trajectory: Trajectory, reward: Tensor) -> Tensor:
        """u [T,B,N,U] of rewards [T,B,N]."""
        if self.features is not None:
            return self.features(trajectory).detach()[:, :, None].expand(*reward.shape, -1)
        if self.outcome == "state":
            return views(self.game, trajectory, self.central)
        return torch.stack((reward.sign(), reward.sign() * reward.abs().log1p()), -1)

    def every_action(self, trajectory: Trajectory, reward: Tensor) -> Tensor:
        """w_c = 1[c = a_t] r_t / pi(c) + sum_{k>t} (h(c|x_t,u_k) / pi(c) - 1) r_k; 0 where pi(c) is. [T,B,N,A]."""
        probs, taken = trajectory.probs, nn.functional.one_hot(trajectory.action, trajectory.probs.shape[-1])
        now = taken * reward[..., None] / probs.where(probs > 0, 1)
        return torch.where(probs > 0, now + self._later(trajectory, reward, lambda ratio: ratio - 1), 0)

    def taken(self, trajectory: Trajectory, reward: Tensor, floor: float) -> Tensor:
        """c = r_t + sum_{k>t} (1 - pi(a_t) / h(a_t|x_t,u_k)) r_k, h being `floor` pi at the least. [T,B,N]."""
        later = self._later(trajectory, reward, lambda ratio: 1 - 1 / ratio.clamp(min=floor))
        return reward + later.gather(-1, trajectory.action[..., None])[..., 0]

    def loss(self, trajectory: Trajectory, reward: Tensor) -> Tensor:
        """[S] cross-entropy of h, above that of the policy, over the drawn pairs; plus the error of the features."""
        S = self.n_seeds
        total = reward.new_zeros(S) if self.features is None else self.features.loss(trajectory, reward)
        if self.hindsight is None:
            return total
        k, real = self._drawn(trajectory)
        p, q = self.hindsight.factors(views(self.game, trajectory, self.central), self.outcomes(trajectory, reward))
        for pair, is_one in zip(k.unbind(1), real.unbind(1), strict=True):
            said = self.hindsight(p, q, pair, trajectory.action, trajectory.probs)
            total = total - mean_over_live(said, is_one, S) / self.pairs
        return total

    def _later(self, trajectory: Trajectory, reward: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        """sum_{k>t} weigh(h(c|x_t,u_k) / pi(c)) r_k over live steps k, [T,B,N,A]."""
        T, B, N = trajectory.action.shape
        t = torch.arange(T, device=reward.device)
        paid, out = by_row(live_only(reward, trajectory.alive)), torch.zeros_like(by_row(trajectory.probs))
        for rows, steps, ratio in self._ratios(trajectory, reward):
            behind = slice(steps.start + 1, T)
            amount = torch.where(t[behind] > t[steps, None], paid[rows, None, behind], 0)
            out[rows, steps] = (weigh(ratio) @ amount[..., None])[..., 0]
        return out.transpose(0, 1).unflatten(1, (B, N))

    def _ratios(self, trajectory: Trajectory, reward: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, steps t, h / pi [rows,steps,A,K]), k = steps.start + 1 .. T - 1; see `PairHindsight.ratios`."""
        T, probs = len(reward), trajectory.probs
        u = self.outcomes(trajectory, reward)
        if self.hindsight is not None:
            yield from self.hindsight.ratios(views(self.game, trajectory, self.central), u, probs)
            return
        assert self.exact is not None
        ratio = self.exact(trajectory, u) / probs.where(probs > 0, 1)[:, None]  # [T,T,B,N,A]
        ratio = ratio.where(trajectory.alive[:, :, None, None], 1)  # nothing is known of what follows the end
        for t in range(T - 1):
            told = ratio[t, t + 1 :].permute(1, 2, 3, 0).flatten(0, 1)[:, None]
            yield slice(0, len(told)), slice(t, t + 1), told

    def _drawn(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Later live steps k [T,pairs,B] of every t, each equally likely, and whether there is one."""
        T = len(trajectory.reward)
        u = uniform("hindsight/pairs", 0, episode_names(trajectory), (T, self.pairs), device=trajectory.reward.device)
        t = torch.arange(T, device=u.device)[:, None, None]
        left = (trajectory.alive.sum(0) - 1 - t).clamp(min=0)  # [T,1,B] live steps after t
        k = t + 1 + (u.permute(1, 2, 0) * left).long()
        return k.clamp(max=T - 1), (left > 0).expand_as(k)
