"""An action is credited with all that follows it: unbiased however long the delay, and as noisy as the future."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import BASELINES, Context, Credit, Signal, centred, check_choice, check_fraction, reward_to_go
from marl.types import Trajectory


class MonteCarlo(Credit):
    """c_t = G_t = sum_{k >= t} discount^(k-t) r_k (Williams 1992), minus the mean over the seed's live episodes at t.

    discount < 1 makes it a recency trace: credit that fades with distance, and at long delay points at the wrong
    moment.
    """

    signals = {Signal.AGENT: Signal.ADVANTAGE}
    aligned, efficient = True, False

    def __init__(self, context: Context, discount: float = 1.0, baseline: str = "mean") -> None:
        super().__init__(context)
        check_fraction(self, "discount", discount)
        check_choice(self, "baseline", baseline, BASELINES)
        self.discount, self.baseline = discount, baseline
        self.aligned = discount == 1

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] -> [T,B,N]."""
        returns = reward_to_go(signal, self.discount)
        return centred(returns, trajectory.alive, self.context.n_seeds) if self.baseline == "mean" else returns
