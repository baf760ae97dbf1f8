"""A counterfactual may baseline the step that the action is paid in, and must leave the future whole."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Context, Credit, Signal, centred, check_choice, reward_to_go
from marl.credit.counterfactual import baseline_actions, expected_over_own_action, reward_without
from marl.types import Trajectory


class FirstStep(Credit):
    """c_it = (r_t - b_it) + (G_{t+1} - mean over the seed's live episodes), the reward-level repair.

    b_it does not depend on a_it, so the expected gradient is the team's. kind="aristocrat":
    b_it = sum_c pi_i(c) r(s, a[i <- c], xi); kind="difference": b_it = r(s, a[i <- default], xi).
    """

    signals = {Signal.RAW: Signal.ADVANTAGE}
    aligned, efficient = True, False
    needs = ("simulator", "policy")
    cost = "B N (A-1) T (aristocrat), B N T (difference)"

    def __init__(self, context: Context, kind: str = "aristocrat") -> None:
        super().__init__(context)
        check_choice(self, "kind", kind, ("aristocrat", "difference"))
        self.kind, self.default = kind, baseline_actions(self, context, "default")

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        if self.kind == "aristocrat":
            instead = expected_over_own_action(self.context.simulator, trajectory, signal)
        else:
            instead = reward_without(self.context.simulator, trajectory, self.default)
        later = (reward_to_go(signal) - signal)[..., None]
        return signal[..., None] - instead + centred(later, trajectory.alive, self.context.n_seeds)
