"""Every step of a good episode is a little good: the normalised return is handed to each of them."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.credit.base import Context, Credit, Signal, live_only
from marl.credit.temporal.uniform import total
from marl.types import Trajectory


class Ircr(Credit):
    """Iterative relative credit refinement (Gangwani, Zhou & Peng 2020): r'_t = (G - G_min) / (G_max - G_min).

    G_min and G_max run over all returns seen in training and in the batch at hand. Each is a seed's own (and an
    agent's, for streams of agents). The paper averages r' over the episodes that pass through (s, a); whoever learns
    from these rewards does that. The reward is in [0, 1], the same at all live steps of an episode (0 for all while
    no two returns differ), and rises with its return. The return itself is not kept: L r' also pays for long episodes.
    Known drift: a new best or worst episode rescales the rewards of all others.
    """

    signals = {Signal.RAW: Signal.TEAM, Signal.TEAM: Signal.TEAM, Signal.AGENT: Signal.AGENT}
    aligned, efficient = False, False
    low: Tensor
    high: Tensor

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        unseen = torch.full((context.n_seeds, context.game.n_agents), torch.inf, dtype=torch.float64)
        self.register_buffer("low", unseen.to(context.device))  # [S,N]; a team's return fills every column
        self.register_buffer("high", -unseen.to(context.device))

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B], or [T,B,N] -> [T,B,N]."""
        returns = self._returns(trajectory, signal)
        low, high = self._range(returns)
        share = ((returns - low) / (high - low).where(high > low, 1)).flatten(0, 1).to(signal.dtype)
        if signal.dim() == 2:
            share = share[:, 0]
        return live_only(share.expand_as(signal), trajectory.alive)

    def track(self, trajectory: Trajectory, signal: Tensor) -> None:
        """Remember the best and the worst return."""
        low, high = self._range(self._returns(trajectory, signal))
        self.low, self.high = low[:, 0], high[:, 0]

    def _returns(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S,E,N]."""
        returns = total(signal, trajectory).double()
        returns = returns[:, None].expand(-1, self.low.shape[1]) if signal.dim() == 2 else returns
        return returns.unflatten(0, (self.context.n_seeds, -1))

    def _range(self, returns: Tensor) -> tuple[Tensor, Tensor]:
        """([S,1,N], [S,1,N]): the least and the greatest return so far, these included."""
        low = torch.minimum(self.low[:, None], returns.amin(1, keepdim=True))
        return low, torch.maximum(self.high[:, None], returns.amax(1, keepdim=True))
