"""What would learning look like if someone told every agent, at every step, the truth? The line to hold methods to."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from marl.credit.base import Context, Credit, Signal
from marl.rollout import Simulator
from marl.types import Policy, Trajectory

Oracle = Callable[[Simulator, Policy | None, Trajectory], Tensor]
"""(simulator, behaviour policy, trajectory) -> true credit [T,B,N]; charges the simulator what it spends."""


class Reference(Credit):
    """An oracle used as credit. It is handed in as a callable: credit and its judge share no code."""

    signals = {Signal.RAW: Signal.ADVANTAGE}
    aligned, efficient = False, False  # O6 has the team's gradient as its mean; O8, which freezes the others, has not
    needs = ("truth",)
    cost = "that of the oracle; a closed form is charged the steps it replaces"

    def __init__(self, context: Context, oracle: Oracle) -> None:
        super().__init__(context)
        self.oracle = oracle

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        return self.oracle(self.context.simulator, self.context.policy, trajectory).to(signal.dtype)
