"""The return is a sum: rewards are fitted so that a random part of an episode's steps, scaled up, adds up to it."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.noise import uniform
from marl.credit.base import ChainError, Context, Credit, Signal, as_signal, live_only, mean_over_episodes
from marl.credit.counterfactual import episode_names
from marl.credit.temporal.uniform import total
from marl.critic import situation
from marl.networks import Population, from_per_seed, per_seed
from marl.types import Trajectory


class ReturnDecomposition(Credit):
    """Randomised return decomposition (Ren et al. 2022): r'_t = R(s_t, a_t), R fitted to whole returns.

    Loss (G - L/K sum_{t in I} R(s_t, a_t))^2, I a random choice of K of the L live steps (all where L <= K), another
    for every batch and episode. Its mean over I is the least squares loss (G - sum_t R)^2 plus the variance of the
    scaled sum, which draws the rewards of an episode together; `correct` subtracts an unbiased estimate of that
    variance. R reads critic_view and all actions. Returns are kept only as well as R fits them, and a reward that
    depends on the past beyond s_t cannot be said.
    """

    signals = {Signal.RAW: Signal.TEAM, Signal.TEAM: Signal.TEAM, Signal.AGENT: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("model",)
    batches: Tensor

    def __init__(self, context: Context, steps: int = 16, correct: bool = False) -> None:
        super().__init__(context)
        if steps < 1 + correct:
            raise ChainError(
                f"ReturnDecomposition: steps={steps} is not allowed; "
                f"it must be {1 + correct} or more{' with correct=True' if correct else ''}"
            )
        game, how = context.game, context.fit
        self.steps, self.correct = steps, correct
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64, device=context.device))
        inputs = game.critic_size + game.n_agents * game.n_actions
        self.net = Population(
            "return decomposition", context.seeds, 1, (inputs, *how.hidden, game.n_agents), how.activation
        )

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B], or [T,B,N] -> [T,B,N]."""
        T, B, _ = trajectory.action.shape
        rows = per_seed(situation(self.context.game, trajectory), self.context.n_seeds)
        return live_only(as_signal(from_per_seed(self.net(rows), (T,), B), signal), trajectory.alive)

    def track(self, trajectory: Trajectory, signal: Tensor) -> None:
        """Count the batch, so that the next fit draws other steps."""
        self.batches += 1

    def loss(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[S]."""
        chosen = some_steps(trajectory, self.steps, self.batches)
        losses = subset_loss(
            self(trajectory, signal), total(signal, trajectory), chosen, trajectory.alive, self.correct
        )
        return mean_over_episodes(losses, self.context.n_seeds)


def some_steps(trajectory: Trajectory, most: int, draw: Tensor) -> Tensor:
    """[T,B] bool: `most` of each episode's live steps (all where it has no more), every choice equally likely.

    The choice is named by the episode and by `draw`, a whole number.
    """
    alive = trajectory.alive
    u = uniform("return decomposition/steps", episode_names(trajectory), draw, (len(alive),), device=alive.device).T
    order = torch.where(alive, u, 2.0).argsort(dim=0, stable=True)  # 2 sorts behind every number in [0,1)
    rank = torch.empty_like(order).scatter_(
        0, order, torch.arange(len(alive), device=alive.device)[:, None].expand_as(order)
    )
    return alive & (rank < most)


def subset_loss(paid: Tensor, returns: Tensor, chosen: Tensor, alive: Tensor, correct: bool) -> Tensor:
    """[B,...] (G - L/K sum_I R)^2, with `correct` minus L^2/K (1 - K/L) s^2, s^2 the variance of R within I (over K-1).

    paid [T,B,...], returns [B,...], chosen and alive [T,B]. Without replacement L^2/K (1 - K/L) s^2 estimates the
    variance of the scaled sum without bias; it is 0 where all steps are chosen.
    """
    shape = (-1, *[1] * (paid.dim() - 2))
    L, K = (x.sum(0).reshape(shape).to(paid.dtype) for x in (alive, chosen))
    mean = live_only(paid, chosen).sum(0) / K
    loss = (returns - L * mean).square()
    if not correct:
        return loss
    spread = live_only((paid - mean).square(), chosen).sum(0) / (K - 1).clamp(min=1)
    return loss - L.square() / K * (1 - K / L) * spread
