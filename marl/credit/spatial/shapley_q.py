"""Shapley shares of a learned team value: who adds what to the whole future, without a simulator."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import flatten
from marl.credit.base import Context, Credit, Signal, check_choice, check_fraction
from marl.credit.counterfactual import baseline_actions
from marl.credit.spatial.shapley import absentees, orders_for, shares
from marl.critic import JointValue, lambda_returns
from marl.types import Trajectory


class ShapleyQ(Credit):
    """phi_i of v(C) = Q(s, (a_C, absent_-C)), Q a central critic of joint actions fitted by TD(lambda).

    After Wang et al. (2020), "Shapley Q-value", with absent agents on their default action or on their policy instead
    of left out. Exact or over random orders as `Shapley`. The shares sum to Q(s, a) - v({}).
    """

    signals = {Signal.RAW: Signal.ADVANTAGE, Signal.TEAM: Signal.ADVANTAGE}
    aligned, efficient = False, True
    needs = ("critic", "policy")

    def __init__(
        self,
        context: Context,
        absent: str = "policy",
        orders: int | None = None,
        lam: float = 0.8,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(context)
        check_choice(self, "absent", absent, ("default", "policy"))
        check_fraction(self, "lam", lam)
        check_fraction(self, "gamma", gamma)
        self.absent, self.lam, self.gamma = absent, lam, gamma
        self.default, self.orders = baseline_actions(self, context, "default"), orders_for(self, context, orders)
        self.critic = JointValue(context.game, context.seeds, context.fit)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        T, B, _ = trajectory.action.shape
        view = self.context.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))

        def worth(steps: slice, joint: Tensor) -> Tensor:
            return self.critic.of(view[steps], joint)

        return shares(trajectory, worth, absentees(self.absent, self.default, trajectory), self.orders)

    def target(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N]: TD(lambda) returns of Q at the actions taken, the same for all agents."""
        now = self.predict(trajectory)
        after = torch.cat((now[1:], torch.zeros_like(now[:1])))
        after = torch.where(trajectory.done[..., None], torch.zeros_like(after), after)
        return lambda_returns(signal[..., None].expand_as(now), after, trajectory.done, self.gamma, self.lam)

    def predict(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N]: Q at the actions taken, the same for all agents."""
        return self.critic(trajectory)[..., None].expand(trajectory.action.shape)
