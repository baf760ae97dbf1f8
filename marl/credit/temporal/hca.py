"""Seen from how it came out, how much likelier had the action been? Hindsight given the return, or a later state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from marl.credit.base import ChainError, Context, Credit, Signal, check_fraction, reward_to_go
from marl.credit.contribution import Contribution, Exact
from marl.critic import mean_over_live
from marl.hindsight import Hindsight, views
from marl.types import Trajectory

WIDEST = 2.0  # standard deviations at which the outer bins lie


class HcaState(Credit):
    """State-conditional hindsight credit (Harutyunyan et al. 2019, theorem 1), as credit of every action:

    w_c = 1[c = a_t] r_t / pi(c) + sum_{k>t} (h(c|x_t, x_k) / pi(c) - 1) r_k.

    In place of the paper's learned model of the immediate reward stands its unbiased single sample. x is each agent's
    own observation, or critic_view where `central`; where it is not the whole state (observations seldom are), what
    is paid at k may depend on a_t in ways that x_k does not tell, and the credit is biased even with exact h.
    """

    signals = {Signal.AGENT: Signal.ACTIONS}
    aligned, efficient = False, False
    needs = ("model", "policy")

    def __init__(self, context: Context, central: bool = False, pairs: int = 1, exact: Exact | None = None) -> None:
        super().__init__(context)
        self.contribution = Contribution(self, "state", central, pairs, exact)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] -> [T,B,N,A]."""
        return self.contribution.every_action(trajectory, signal)

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S] of the classifier."""
        return self.contribution.loss(trajectory, signal)


ExactReturn = Callable[[Trajectory, Tensor], Tensor]
"""(trajectory, returns Z [T,B,N]) -> h [T,B,N,A] = P(a_it = c | x_t, Z_t), whole. Privileged."""


class HcaReturn(Credit):
    """Return-conditional hindsight credit (Harutyunyan et al. 2019, theorem 2): c = (1 - pi(a) / h(a|x, Z)) Z.

    Z is the return from t on; the learned h reads its bin. Unbiased with exact h only where h(c|x, z) > 0 for every c
    with pi(c) > 0: an action that the return reveals is credited with next to nothing. Hence the bins (`bins` of equal
    width, to two standard deviations about the mean of the seed's live returns) and the floor, h >= floor pi. Both
    trade that bias for another.
    """

    signals = {Signal.AGENT: Signal.ADVANTAGE}
    aligned, efficient = False, False
    needs = ("model", "policy")

    def __init__(
        self,
        context: Context,
        bins: int = 9,
        floor: float = 0.1,
        central: bool = False,
        exact: ExactReturn | None = None,
    ) -> None:
        super().__init__(context)
        if bins < 3 or bins % 2 == 0:
            raise ChainError(f"HcaReturn: bins={bins} is not allowed; it must be an odd number, 3 or more")
        check_fraction(self, "floor", floor)
        game = context.game
        self.bins, self.floor, self.central, self.exact = bins, floor, central, exact
        inputs = (game.critic_size if central else game.obs_size) + bins + 1
        self.hindsight = None if exact else Hindsight(game, context.seeds, inputs, context.fit)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] -> [T,B,N]."""
        z = reward_to_go(signal)
        return (1 - 1 / self._taken(trajectory, z).clamp(min=self.floor)) * z

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S] cross-entropy of h, above that of the policy."""
        if self.hindsight is None:
            return signal.new_zeros(self.context.n_seeds)
        said = self._taken(trajectory, reward_to_go(signal)).log()
        return -mean_over_live(said, trajectory.alive, self.context.n_seeds)

    def _taken(self, trajectory: Trajectory, z: Tensor) -> Tensor:
        """h / pi [T,B,N] of the actions taken."""
        action = trajectory.action[..., None]
        if self.exact is not None:
            return (self.exact(trajectory, z).gather(-1, action) / trajectory.probs.gather(-1, action))[..., 0]
        assert self.hindsight is not None
        bin_of = nn.functional.one_hot(binned(z, trajectory.alive, self.context.n_seeds, self.bins), self.bins)
        x = views(self.context.game, trajectory, self.central)
        t = torch.arange(len(z), device=z.device)[:, None, None, None].expand_as(action) / len(z)
        rows = torch.cat((x, bin_of.to(x.dtype), t.to(x.dtype)), -1)
        return self.hindsight(rows, trajectory.probs).gather(-1, action)[..., 0].exp()


def binned(z: Tensor, alive: Tensor, n_seeds: int, bins: int) -> Tensor:
    """[T,B,N] int64 bin of z, in standard deviations from the mean over the (seed, agent)'s live steps.

    The outer bins are open. An odd number of them keeps the mean, and +-1 where bins = 9, inside a bin.
    """
    z_ = z.double().unflatten(1, (n_seeds, -1))
    weight = alive[..., None].unflatten(1, (n_seeds, -1)).double()
    count = weight.sum((0, 2), keepdim=True).clamp(min=1)
    gap = z_ - (z_ * weight).sum((0, 2), keepdim=True) / count
    spread = ((gap.square() * weight).sum((0, 2), keepdim=True) / count).sqrt().clamp(min=1e-6)
    half = (bins - 1) // 2
    return ((gap / spread).flatten(1, 2) * half / WIDEST).round().long().clamp(-half, half) + half
