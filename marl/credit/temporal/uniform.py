"""Nobody knows when it was earned, so every step is paid the same share of the return."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Credit, Signal, live_only
from marl.types import Trajectory


class Uniform(Credit):
    """r'_t = G / L at each of an episode's L live steps, G = sum_t r_t.

    The trajectory-space smoothing that Gangwani, Zhou & Peng (2020) start from, in units of the return. The return is
    kept exactly; when something was done is forgotten, so an action is credited with what others did before it.
    """

    signals = {Signal.RAW: Signal.TEAM, Signal.TEAM: Signal.TEAM, Signal.AGENT: Signal.AGENT}
    aligned, efficient = False, True

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B], or [T,B,N] -> [T,B,N]."""
        return spread(total(signal, trajectory), trajectory.alive)


def total(signal: Tensor, trajectory: Trajectory) -> Tensor:
    """[B] or [B,N]: what a signal pays in a whole episode."""
    return live_only(signal, trajectory.alive).sum(0)


def spread(amount: Tensor, alive: Tensor) -> Tensor:
    """[T,B,...]: amount [B,...] in equal shares to an episode's live steps, alive [T,B]."""
    length = alive.sum(0).reshape(-1, *[1] * (amount.dim() - 1)).to(amount.dtype)
    return live_only((amount / length).expand(len(alive), *amount.shape), alive)
