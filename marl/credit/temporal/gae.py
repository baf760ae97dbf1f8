"""An action is credited with the surprises that follow it, each fading with its distance: bootstrapping on a value."""

from __future__ import annotations

from torch import Tensor

from marl.credit.base import Context, Credit, Signal, check_fraction
from marl.critic import Value, lambda_returns, next_values
from marl.types import Trajectory


class Gae(Credit):
    """Generalised advantage estimation (Schulman et al. 2016), with V learned from the incoming stream.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t);  c_t = sum_k (gamma lam)^k delta_{t+k} = y_t - V(s_t),
    y the lambda-return, which is also what V is fitted to. lam=0 is one-step TD. central=False: V_i(o_i) of each
    agent's own observation; central=True: V(critic_view).
    """

    signals = {Signal.AGENT: Signal.ADVANTAGE}
    aligned, efficient = False, False
    needs = ("critic",)

    def __init__(self, context: Context, lam: float = 0.95, gamma: float = 1.0, central: bool = False) -> None:
        super().__init__(context)
        check_fraction(self, "lam", lam)
        check_fraction(self, "gamma", gamma)
        self.lam, self.gamma = lam, gamma
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
        after = next_values(self.value, trajectory, now)
        return lambda_returns(signal, after, trajectory.done, self.gamma, self.lam)
