"""A critic is asked what the team's future would be worth, had this agent alone chosen otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.credit.base import Context, Credit, Signal, check_fraction
from marl.critic import ActionValue, lambda_returns
from marl.types import Trajectory


class Coma(Credit):
    """COMA (Foerster et al. 2018): A_i = Q(s, a) - sum_c pi_i(c|o_i) Q(s, (a_-i, c)).

    Q is a central critic fitted by TD(lambda) to the incoming team signal after each update of the actor, never
    under it. Targets are fixed while it is fitted. With lambda .8 it looks about five steps ahead: .8^40 is 1e-4.
    """

    signals = {Signal.RAW: Signal.ADVANTAGE, Signal.TEAM: Signal.ADVANTAGE}
    aligned, efficient = True, False
    needs = ("critic", "policy")

    def __init__(self, context: Context, lam: float = 0.8, gamma: float = 1.0) -> None:
        super().__init__(context)
        check_fraction(self, "lam", lam)
        check_fraction(self, "gamma", gamma)
        self.lam, self.gamma = lam, gamma
        self.critic = ActionValue(context.game, context.seeds, context.fit)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        q = self.critic(trajectory)
        return _taken(q, trajectory) - (trajectory.probs * q).sum(-1)

    def target(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N]: TD(lambda) returns of Q at the actions taken."""
        now = self.predict(trajectory)
        after = torch.cat((now[1:], torch.zeros_like(now[:1])))
        after = torch.where(trajectory.done[..., None], torch.zeros_like(after), after)
        return lambda_returns(signal[..., None].expand_as(now), after, trajectory.done, self.gamma, self.lam)

    def predict(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N]: Q at the actions taken."""
        return _taken(self.critic(trajectory), trajectory)

    def descended(
        self, optimizer: torch.optim.Optimizer, trajectory: Trajectory, target: Tensor, old: Tensor, order: Tensor
    ) -> bool:
        """See `marl.credit.base.Descends`."""
        return self.critic.descended(optimizer, trajectory, target, old, order)


def _taken(q: Tensor, trajectory: Trajectory) -> Tensor:
    """Q of the actions taken, [T,B,N]."""
    return q.gather(-1, trajectory.action[..., None])[..., 0]
