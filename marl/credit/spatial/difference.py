"""An agent's credit is what the team would have lost this very step, had the agent done its default action."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Context, Credit, Signal
from marl.credit.counterfactual import baseline_actions, reward_without
from marl.types import Trajectory


class Difference(Credit):
    """Difference reward D_i = r(s, a, xi) - r(s, a[i <- c_i], xi) (Wolpert & Tumer 2002), the noise xi kept.

    baseline: "default" takes c_i from the game; "safe" takes the action that is right when it matters, a privilege.
    Every stage game with these rewards has the team's as a potential, yet D summed over time does not: what an agent
    changes in s_{t+1} is credited to nobody, so difference, then return, optimises sum_t D_t and is biased.
    """

    signals = {Signal.RAW: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("simulator",)
    cost = "B N T"

    def __init__(self, context: Context, baseline: str = "default") -> None:
        super().__init__(context)
        self.baseline = baseline_actions(self, context, baseline)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N] in one batched call of the simulator."""
        return signal[..., None] - reward_without(self.context.simulator, trajectory, self.baseline)
