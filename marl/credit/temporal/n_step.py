"""An action is credited with n steps of reward and a guess at the rest: n=1 is TD, n=T is Monte Carlo."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.credit.base import ChainError, Context, Credit, Signal, check_fraction
from marl.critic import Value, next_values
from marl.types import Trajectory


class NStep(Credit):
    """c_t = sum_{k < n} gamma^k r_{t+k} + gamma^n V(s_{t+n}) - V(s_t) (Sutton & Barto 2018, chapter 7).

    V is fitted to the n-step target; a sum that meets the end of the episode stops there.
    """

    signals = {Signal.AGENT: Signal.ADVANTAGE}
    aligned, efficient = False, False
    needs = ("critic",)

    def __init__(self, context: Context, n: int = 1, gamma: float = 1.0, central: bool = False) -> None:
        super().__init__(context)
        if n < 1:
            raise ChainError(f"NStep: n={n} is not allowed; it must be 1 or more")
        check_fraction(self, "gamma", gamma)
        self.n, self.gamma = n, gamma
        self.value = Value(context.game, context.seeds, central, context.fit)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] -> [T,B,N]."""
        now = self.value(trajectory)
        return self._returns(trajectory, signal, now) - now

    def target(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] the return that V is fitted to, in the network's units."""
        return self.value.track(trajectory, self._returns(trajectory, signal, self.value(trajectory)))

    def predict(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N] V, in the network's units."""
        return self.value.raw(trajectory)

    def _returns(self, trajectory: Trajectory, signal: Tensor, now: Tensor) -> Tensor:
        """y^(1)_t = r_t + gamma v_{t+1}; y^(m)_t = r_t + gamma y^(m-1)_{t+1} where the episode goes on after t."""
        after = next_values(self.value, trajectory, now)
        ends = trajectory.done[..., None].clone()
        ends[-1] = True  # nothing is recorded behind the horizon
        one = signal + self.gamma * after
        target = one
        for _ in range(min(self.n, len(signal)) - 1):
            later = torch.cat((target[1:], torch.zeros_like(target[:1])))
            target = torch.where(ends, one, signal + self.gamma * later)
        return target
