"""Which agent's which action contributed to a later reward of the team? Each agent's own h, all others environment."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Context, Credit, Signal, check_choice, check_fraction
from marl.credit.contribution import Contribution, Exact
from marl.types import Trajectory

OUTCOMES = ("reward", "features")


class AgentCocoa(Credit):
    """Contribution analysis (Meulemans et al. 2023) of every agent's every action, its teammates being environment:

    w_ic = 1[c = a_it] r_t / pi_i(c) + sum_{k>t} (h_i(c|s_t, u_k) / pi_i(c) - 1) r_k,   r the team's reward.

    h_i(c|s_t, u_k) = P(a_it = c | s_t, u_k) under everyone's policy, s_t being critic_view, u_k the reward or learned
    features that tell it. With exact h, E[sum_c grad pi_i(c) w_ic | s_t] = E[grad log pi_i O3]: unbiased everywhere.
    The immediate reward is shared with the others as it is; it needs no hindsight.
    """

    signals = {Signal.RAW: Signal.ACTIONS, Signal.TEAM: Signal.ACTIONS}
    aligned, efficient = False, False
    needs = ("model", "policy")

    def __init__(self, context: Context, outcome: str = "reward", pairs: int = 1, exact: Exact | None = None) -> None:
        super().__init__(context)
        check_choice(self, "outcome", outcome, OUTCOMES)
        self.contribution = Contribution(self, outcome, True, pairs, exact)
        self.aligned = exact is not None

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N,A]."""
        return self.contribution.every_action(trajectory, _everyone(trajectory, signal))

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S] of the classifier, and of the features."""
        return self.contribution.loss(trajectory, _everyone(trajectory, signal))


class AgentCocoaTaken(Credit):
    """The form of `AgentCocoa` for the action taken: c_i = r_t + sum_{k>t} (1 - pi_i(a_it) / h_i(a_it|s_t, u_k)) r_k.

    Not (h / pi - 1) r_k, which weighs the action taken twice. With exact h it is unbiased only where h_i(c|s_t, u) > 0
    for every c with pi_i(c) > 0: outcomes that reveal the action break it. h is kept at `floor` pi at the least.
    """

    signals = {Signal.RAW: Signal.ADVANTAGE, Signal.TEAM: Signal.ADVANTAGE}
    aligned, efficient = False, False
    needs = ("model", "policy")

    def __init__(
        self,
        context: Context,
        outcome: str = "reward",
        floor: float = 0.1,
        pairs: int = 1,
        exact: Exact | None = None,
    ) -> None:
        super().__init__(context)
        check_choice(self, "outcome", outcome, OUTCOMES)
        check_fraction(self, "floor", floor)
        self.contribution, self.floor = Contribution(self, outcome, True, pairs, exact), floor

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        return self.contribution.taken(trajectory, _everyone(trajectory, signal), self.floor)

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S] of the classifier, and of the features."""
        return self.contribution.loss(trajectory, _everyone(trajectory, signal))


def _everyone(trajectory: Trajectory, signal: Tensor) -> Tensor:
    """[T,B] -> [T,B,N]."""
    return signal[..., None].expand(trajectory.action.shape)
