"""An action is credited with what is paid at once, and with nothing later."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import BASELINES, Context, Credit, Signal, centred, check_choice
from marl.types import Trajectory


class Immediate(Credit):
    """c_t = r_t, minus (baseline="mean") the mean over the seed's live episodes at t."""

    signals = {Signal.AGENT: Signal.ADVANTAGE}
    aligned, efficient = False, True

    def __init__(self, context: Context, baseline: str = "mean") -> None:
        super().__init__(context)
        check_choice(self, "baseline", baseline, BASELINES)
        self.baseline = baseline

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] -> [T,B,N]."""
        return centred(signal, trajectory.alive, self.context.n_seeds) if self.baseline == "mean" else signal
