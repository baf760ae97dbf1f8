"""Everyone is credited with the team's reward: right for all, telling for no one."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Credit, Signal
from marl.types import Trajectory


class Team(Credit):
    """r_i = r for every agent: [T,B] -> [T,B,N]."""

    signals = {Signal.RAW: Signal.AGENT, Signal.TEAM: Signal.AGENT}
    aligned, efficient = True, False

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        return signal[..., None].expand(trajectory.action.shape)
