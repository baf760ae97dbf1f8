"""An agent is credited, at each of its steps alike, with what its whole part in the episode was worth."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.credit.base import BASELINES, Context, Credit, Signal, centred, check_choice
from marl.credit.counterfactual import baseline_actions
from marl.types import Trajectory


class AgentTotal(Credit):
    """c_it = G(tau) - G(tau with agent i on its default throughout, the others' actions frozen) (O7, frozen).

    The whole-episode difference reward (Wolpert & Tumer 2002): it says who and leaves when open. Minus the mean over
    the seed's live episodes at t. Frozen actions of others that reacted to agent i carry what it did into the
    subtracted term, so the expected gradient is the team's only where nobody reacts to it (or N = 1).
    """

    signals = {Signal.RAW: Signal.ADVANTAGE}
    aligned, efficient = False, False
    needs = ("simulator",)
    cost = "B N T"

    def __init__(self, context: Context, default: str = "default", baseline: str = "mean") -> None:
        super().__init__(context)
        check_choice(self, "baseline", baseline, BASELINES)
        self.default = baseline_actions(self, context, default)
        self.baseline = baseline

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        N = trajectory.action.shape[-1]
        me = torch.eye(N, dtype=torch.bool, device=signal.device)
        plans = torch.where(me, self.default, trajectory.action[:, :, None])
        without = self.context.simulator.totals(trajectory, plans)
        total = (signal.sum(0)[:, None] - without).expand(trajectory.action.shape)
        return centred(total, trajectory.alive, self.context.n_seeds) if self.baseline == "mean" else total
