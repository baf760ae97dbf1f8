"""A step earned what it changed in the forecast of the return: the reward is moved to where it became certain."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.credit.base import (
    ChainError,
    Context,
    Credit,
    Signal,
    as_signal,
    live_only,
    mean_over_episodes,
)
from marl.credit.temporal.uniform import spread, total
from marl.critic import situation
from marl.sequence import Memory
from marl.types import Trajectory


class Rudder(Credit):
    """RUDDER (Arjona-Medina et al. 2019): r'_t = g_t - g_{t-1} + (G - g_L) / L, with g_{-1} = 0 and L live steps.

    g_t(s_0, a_0, ..., s_t, a_t) is a sequence network's forecast of the return G. Its loss is (g_L - G)^2 plus
    `auxiliary` times the mean of (g_t - G)^2 over all prefixes, which draws g_t to E[G | s_0, a_0, ..., s_t, a_t]:
    where all episodes are equally long, the expected future redistributed reward is then 0 at every step, whatever the
    delay was (an end that comes as a surprise has no step behind it to be paid at). The end correction
    (G - g_L) / L keeps the return exactly however wrong the network is. It reads critic_view and all actions, and is
    fitted on the batches that train, without the paper's lessons buffer.
    """

    signals = {Signal.RAW: Signal.TEAM, Signal.TEAM: Signal.TEAM, Signal.AGENT: Signal.AGENT}
    aligned, efficient = False, True
    needs = ("model",)

    def __init__(self, context: Context, auxiliary: float = 0.5) -> None:
        super().__init__(context)
        if not 0 <= auxiliary < float("inf"):
            raise ChainError(f"Rudder: auxiliary={auxiliary!r} is not allowed; it must be a number, 0 or more")
        game, how = context.game, context.fit
        inputs = game.critic_size + game.n_agents * game.n_actions
        sizes = (inputs, *how.hidden, how.hidden[-1])
        self.auxiliary = auxiliary
        self.memory = Memory("rudder", context.seeds, sizes, game.n_agents, game.horizon, how.activation)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B], or [T,B,N] -> [T,B,N]."""
        told = self.forecast(trajectory, signal)
        gain = live_only(told - torch.cat((torch.zeros_like(told[:1]), told[:-1])), trajectory.alive)
        return gain + spread(total(signal, trajectory) - gain.sum(0), trajectory.alive)

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S]."""
        alive = trajectory.alive
        miss = live_only((self.forecast(trajectory, signal) - total(signal, trajectory)).square(), alive)
        ends = alive & ~torch.cat((alive[1:], torch.zeros_like(alive[:1])))
        every_prefix = spread(miss.sum(0), alive)[0]  # a sum shared equally by the live steps is their mean
        whole = live_only(miss, ends).sum(0)
        return mean_over_episodes(whole + self.auxiliary * every_prefix, self.context.n_seeds)

    def forecast(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """g_t, of the signal's shape."""
        return as_signal(self.memory(situation(self.context.game, trajectory)), signal)
