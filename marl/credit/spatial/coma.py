"""A critic is asked what the team's future would be worth, had this agent alone chosen otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.credit.base import Context, Credit, Signal, check_fraction
from marl.critic import ActionValue, lambda_returns, squared_error
from marl.types import Trajectory


class Coma(Credit):
    """COMA (Foerster et al. 2018): A_i = Q(s, a) - sum_c pi_i(c|o_i) Q(s, (a_-i, c)).

    Q is a central critic fitted by TD(lambda) to the incoming team signal after each update of the actor, never
    under it. On-policy data need no target network. With lambda .8 it looks about five steps ahead: .8^40 is 1e-4.
    """

    signals = {Signal.RAW: Signal.ADVANTAGE, Signal.TEAM: Signal.ADVANTAGE}
    aligned, efficient = True, False
    needs = ("critic", "policy")

    def __init__(self, context: Context, lam: float = 0.8, gamma: float = 1.0) -> None:
        super().__init__(context)
        check_fraction(self, "lam", lam)
        check_fraction(self, "gamma", gamma)
        self.lam, self.gamma = lam, gamma
        self.critic = ActionValue(context.game, context.seeds, context.hidden)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        q = self.critic(trajectory)
        return _taken(q, trajectory) - (trajectory.probs * q).sum(-1)

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S]: TD(lambda) error of Q at the actions taken."""
        q = _taken(self.critic(trajectory), trajectory)
        now = q.detach()
        after = torch.cat((now[1:], torch.zeros_like(now[:1])))
        after = torch.where(trajectory.done[..., None], torch.zeros_like(after), after)
        reward = signal[..., None].expand_as(now)
        target = lambda_returns(reward, after, trajectory.done, self.gamma, self.lam)
        return squared_error(q, target, trajectory.alive, self.context.n_seeds)


def _taken(q: Tensor, trajectory: Trajectory) -> Tensor:
    """Q of the actions taken, [T,B,N]."""
    return q.gather(-1, trajectory.action[..., None])[..., 0]
