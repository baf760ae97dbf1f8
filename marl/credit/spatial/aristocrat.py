"""An agent's credit is what its action added to what it would have added on average under its own policy."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Credit, Signal
from marl.credit.counterfactual import expected_over_own_action
from marl.types import Trajectory


class Aristocrat(Credit):
    """Aristocrat utility r(s,a,xi) - sum_c pi_i(c|o_i) r(s, a[i <- c], xi) (Wolpert & Tumer 2002).

    Given (s_t, a_-i) its mean over a_i is zero, so of rewards summed over time only the present step has an expected
    gradient: aristocrat, then return, is myopic, and the rest of the sum is variance.
    """

    signals = {Signal.RAW: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("simulator", "policy")
    cost = "B N (A-1) T"

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N] in one batched call of the simulator."""
        return signal[..., None] - expected_over_own_action(self.context.simulator, trajectory, signal)
