"""Value is potential energy: an action is paid at once for raising it, and whole returns are only shifted."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import HasOptimalValue, flatten
from marl.credit.base import ChainError, Context, Credit, Signal, as_signal, check_fraction, live_only
from marl.critic import Value, lambda_returns, next_values
from marl.types import Trajectory

SIGNALS = {Signal.RAW: Signal.TEAM, Signal.TEAM: Signal.TEAM, Signal.AGENT: Signal.AGENT}


def shaped(signal: Tensor, potential: Tensor, trajectory: Trajectory, gamma: float) -> Tensor:
    """r'_t = r_t + gamma Phi(s_{t+1}) - Phi(s_t) (Ng, Harada & Russell 1999), signal and Phi [T,B] or [T,B,N].

    Phi is 0 behind the last step of every episode, however it ended (Grzes 2017), so that
    sum_t gamma^t r'_t = sum_t gamma^t r_t - Phi(s_0) and optimal policies stay optimal.
    """
    now = live_only(potential, trajectory.alive)
    after = live_only(torch.cat((now[1:], torch.zeros_like(now[:1]))), ~trajectory.done)
    return live_only(signal + gamma * after - now, trajectory.alive)


class PotentialShaping(Credit):
    """Shaping with Phi = V(critic_view), a central critic fitted to the lambda-returns of the incoming signal.

    r'_t = r_t + gamma V(s_{t+1}) - V(s_t) is the one-step TD error; summed by Monte Carlo it is G_t - V(s_t), so the
    value is a baseline. Returns shift by -V(s_0). Streams of agents have a V each.
    """

    signals = SIGNALS
    aligned, efficient = True, False
    needs = ("critic",)

    def __init__(self, context: Context, lam: float = 0.95, gamma: float = 1.0) -> None:
        super().__init__(context)
        check_fraction(self, "lam", lam)
        check_fraction(self, "gamma", gamma)
        self.lam, self.gamma = lam, gamma
        self.value = Value(context.game, context.seeds, True, context.fit)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B], or [T,B,N] -> [T,B,N]."""
        return shaped(signal, as_signal(self.value(trajectory), signal), trajectory, self.gamma)

    def target(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] the return that V is fitted to, in the network's units; a team's is every head's."""
        now = self.value(trajectory)
        stream = signal[..., None].expand_as(now) if signal.dim() == 2 else signal
        after = next_values(self.value, trajectory, now)
        returns = lambda_returns(stream, after, trajectory.done, self.gamma, self.lam)
        return self.value.track(trajectory, returns)

    def predict(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N] V, in the network's units."""
        return self.value.raw(trajectory)


class OptimalShaping(Credit):
    """Shaping with Phi = V*, the best expected return from a state, which the game knows: privileged.

    Optimal play is then paid nothing on average at any step, and a mistake what it costs, at once: on walking_robot
    (kappa = 0) r' is -((T-t-D)/T + P) at the culprit's step and 0 at all others. Returns shift by -V*(s_0).
    """

    signals = SIGNALS
    aligned, efficient = True, False
    needs = ("optimal value",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if not isinstance(context.game, HasOptimalValue):
            raise ChainError(f"OptimalShaping needs optimal_value, and {type(context.game).__name__} has none")
        self.value = context.game.optimal_value

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B], or [T,B,N] -> [T,B,N], the team's V* for every agent."""
        potential = self.value(flatten(trajectory.state)).reshape(trajectory.alive.shape)
        return shaped(signal, potential if signal.dim() == 2 else potential[..., None], trajectory, 1.0)
