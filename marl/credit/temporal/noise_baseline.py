"""How much of the return was luck? A baseline that is told all that chance brings, and none of what the agents do."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import flatten
from marl.credit.base import Context, Credit, Signal, reward_to_go
from marl.critic import mean_over_live
from marl.networks import Population, from_per_seed, per_seed
from marl.types import Trajectory


class NoiseBaseline(Credit):
    """Counterfactual credit with Phi = the exogenous noise: c = G_t - V(s_t, xi_t, xi_{t+1}, ..., xi_{T-1}).

    A future-conditional baseline (Mesnard et al. 2021, FC-PG) is unbiased where Phi is independent of a_t given the
    state. They learn such a Phi; this is the variant of an oracle that reads the true exogenous noise off the record,
    which no action moves. V (of critic_view and that noise, an output an agent) is fitted to G_t; whatever it says,
    the mean gradient is the team's. Noise that the game reads but no later step records (the reset's) is left out.
    """

    signals = {Signal.AGENT: Signal.ADVANTAGE}
    aligned, efficient = True, False
    needs = ("model", "noise")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        game, how = context.game, context.fit
        inputs = game.critic_size + game.horizon * game.step_noise_size + 1
        self.net = Population("noise baseline", context.seeds, 1, (inputs, *how.hidden, game.n_agents), how.activation)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N] -> [T,B,N]."""
        return reward_to_go(signal) - self.value(trajectory)

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S] mean squared error of V over live steps."""
        error = (self.value(trajectory) - reward_to_go(signal)).square()
        return mean_over_live(error, trajectory.alive, self.context.n_seeds)

    def value(self, trajectory: Trajectory) -> Tensor:
        """V [T,B,N]."""
        T, B, _ = trajectory.action.shape
        view = self.context.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        t = torch.arange(T, dtype=view.dtype, device=view.device)[:, None, None].expand(T, B, 1) / T
        rows = torch.cat((view, t, to_come(trajectory.noise).to(view.dtype)), -1)
        return from_per_seed(self.net(per_seed(rows, self.context.n_seeds)), (T,), B)


def to_come(noise: Tensor) -> Tensor:
    """[T,B,T*size] in -1..1: the noise of steps t, t+1, ... in that order, 0 beyond the horizon; noise [T,B,size]."""
    T = len(noise)
    centred = torch.cat((2 * noise - 1, torch.zeros_like(noise)))
    return torch.stack([centred[t : t + T].transpose(0, 1).flatten(1) for t in range(T)])
