"""Who needs a simulator may learn one: a network is fitted to the reward, and the counterfactual is asked of it."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Context, Credit, Signal, check_choice
from marl.credit.counterfactual import baseline_actions
from marl.critic import ActionValue
from marl.types import Trajectory


class LearnedDifference(Credit):
    """Dr.ReinforceR (Castellini et al. 2020): R(s, a) - sum_c pi_i(c|o_i) R(s, (a_-i, c)), R a network fitted to r.

    kind="aristocrat" is the paper's, summed over time by Monte Carlo; kind="default" takes the default action in place
    of the mean. R reads what a central critic may see and is used in training only: actors see their own
    observations. No simulator is ever asked. As with the simulator's aristocrat, the sum over time is myopic.
    """

    signals = {Signal.RAW: Signal.AGENT, Signal.TEAM: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("model", "policy")

    def __init__(self, context: Context, kind: str = "aristocrat") -> None:
        super().__init__(context)
        check_choice(self, "kind", kind, ("aristocrat", "default"))
        self.kind, self.default = kind, baseline_actions(self, context, "default")
        self.model = ActionValue(context.game, context.seeds, context.fit)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        paid = self.model(trajectory)
        if self.kind == "aristocrat":
            instead = (trajectory.probs * paid).sum(-1)
        else:
            instead = paid.gather(-1, self.default[:, None].expand(*trajectory.action.shape, 1))[..., 0]
        return paid.gather(-1, trajectory.action[..., None])[..., 0] - instead

    def target(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N]: the incoming reward, the same for all agents."""
        return signal[..., None].expand(trajectory.action.shape)

    def predict(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N]: R of the actions taken."""
        return self.model(trajectory).gather(-1, trajectory.action[..., None])[..., 0]
