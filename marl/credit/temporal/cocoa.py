"""An action is credited with the later rewards that it contributed to: would they have come without it?"""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Context, Credit, Signal, check_choice
from marl.credit.contribution import Contribution, Exact
from marl.types import Trajectory


class Cocoa(Credit):
    """Counterfactual contribution analysis (Meulemans et al. 2023), as credit of every action:

    w_c = 1[c = a_t] r_t / pi(c) + sum_{k>t} (h(c|x_t, u_k) / pi(c) - 1) r_k,   so that
    sum_c pi(c) w_c grad log pi(c) = r_t grad log pi(a_t) + sum_c grad pi(c) sum_{k>t} (h / pi - 1) r_k.

    u_k is what came out at k: the reward itself, or learned features of (state, joint action) that tell it. h is
    fitted by cross-entropy. With exact h the mean gradient is the true one, whatever the support of h, as long as
    E[r_k | x_t, u_k] does not depend on a_t.
    """

    signals = {Signal.AGENT: Signal.ACTIONS}
    aligned, efficient = False, False
    needs = ("model", "policy")

    def __init__(
        self,
        context: Context,
        outcome: str = "reward",
        central: bool = False,
        pairs: int = 1,
        exact: Exact | None = None,
    ) -> None:
        super().__init__(context)
        check_choice(self, "outcome", outcome, ("reward", "features"))
        self.contribution = Contribution(self, outcome, central, pairs, exact)
        self.aligned = exact is not None

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] -> [T,B,N,A]."""
        return self.contribution.every_action(trajectory, signal)

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S] of the classifier, and of the features."""
        return self.contribution.loss(trajectory, signal)
