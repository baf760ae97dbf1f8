"""The return is shared out: so much of it to each step, and so much of a step's part to each agent."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.credit.base import Context, Credit, Signal, live_only, mean_over_episodes
from marl.credit.joint.stas import deeds
from marl.credit.temporal.uniform import total
from marl.networks import Population, from_per_agent, per_agent
from marl.sequence import Memory
from marl.types import Trajectory

SMALLEST = 1e-6  # a return nearer to 0 than this has nothing to share


class Tar2(Credit):
    """Temporal-agent reward redistribution (Kapoor et al. 2025, "TAR2"): r_it = G w_t w_{i|t},

    w_t = softmax over an episode's L live steps of mean_i x_it,   w_{i|t} = softmax over agents of x_it,
    x_it = c_it L N / G,   c the scores of a network that is fitted so that sum_{t,i} c_it predicts the return G.

    Weights are normalised after the fit, so the return is kept however wrong c is. The paper's: scores by regression
    on G, weights by softmax over steps and over agents, their product with G. Ours: scores are counted in equal shares
    of G, which makes the softmax free of units and gives most of a negative return to those who brought it about;
    `Memory` of each agent's own past beside the team's mean of it stands for the two attentions; no inverse dynamics,
    and no look at the outcome (a score that knows it fits G by sharing it equally).

    All agents' shares have the sign of G: none is blamed in an episode that went well. Agent i is made to follow
    G W_i(tau), W_i = sum_t w_it, and not G; and since w_kt of steps before t depend on what is done at t, the sum from
    t on does not even follow that. The mean gradient is biased; scores say how much.
    """

    signals = {Signal.RAW: Signal.AGENT, Signal.TEAM: Signal.AGENT}
    aligned, efficient = False, True
    needs = ("model",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        game, how, seeds = context.game, context.fit, context.seeds
        width = how.hidden[-1]
        sizes = (game.obs_size + game.n_actions + game.n_agents, *how.hidden, width)
        self.memory = Memory("tar2", seeds, sizes, width, game.horizon, how.activation)
        self.score = Population("tar2/score", seeds, 1, (2 * width, *how.hidden, 1), how.activation)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        G = total(signal, trajectory)
        return live_only(G[:, None] * weights(self.scores(trajectory), G, trajectory.alive), trajectory.alive)

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S]."""
        told = live_only(self.scores(trajectory), trajectory.alive).sum((0, 2))
        return mean_over_episodes((told - total(signal, trajectory)).square(), self.context.n_seeds)

    def scores(self, trajectory: Trajectory) -> Tensor:
        """c [T,B,N], in units of 1/(T N), so that a fresh network's sum is near 1."""
        T, B, N = trajectory.action.shape
        own = self.memory(deeds(trajectory).flatten(1, 2)).unflatten(1, (B, N))
        rows = torch.cat((own, own.mean(2, keepdim=True).expand_as(own)), -1)
        return from_per_agent(self.score(per_agent(rows, self.context.n_seeds)), (T,), B)[..., 0] / (T * N)


def weights(scores: Tensor, returns: Tensor, alive: Tensor) -> Tensor:
    """w_t w_{i|t} [T,B,N] of scores c [T,B,N] and returns [B]: positive, 0 at dead steps, of sum 1."""
    share = returns.abs().clamp(min=SMALLEST).copysign(returns) / (alive.sum(0) * scores.shape[2])
    x = scores / share[:, None]
    when = torch.where(alive, x.mean(-1), -torch.inf).softmax(0)
    return live_only(when[..., None] * x.softmax(-1), alive)
