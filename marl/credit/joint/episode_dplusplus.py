"""What would clones of an agent, walking beside it all the way, have added to the team's return?"""

from __future__ import annotations

from torch import Tensor

from envs.base import HasRewardWith, HasStepWith
from marl.credit.base import BASELINES, ChainError, Context, Credit, Signal, centred, check_choice
from marl.credit.spatial.dplusplus import clone_counts, first_that_helps
from marl.types import Trajectory


class EpisodeDPlusPlus(Credit):
    """D++ as published (Rahmattalabi, Chung, Colby & Tumer 2016): f is the return of the whole episode.

    c_it = [G(tau with n clones of i) - G(tau)] / n for the first n that helps, else D_i = G(tau) - G(tau without i),
    the same at all of an agent's steps. The recorded actions of the others are frozen; clones do what i does, from the
    first step on, and what they bring about stays so: a point that they get paid is paid only once. Sums of the
    step's own D++ (`DPlusPlus`, then a return) pay for every step that an agent spends beside an unpaid point. Minus
    the mean over the seed's live episodes at t.
    """

    signals = {Signal.RAW: Signal.ADVANTAGE}
    aligned, efficient = False, False
    needs = ("simulator",)
    cost = "B N^2 T"

    def __init__(self, context: Context, baseline: str = "mean") -> None:
        super().__init__(context)
        check_choice(self, "baseline", baseline, BASELINES)
        game = context.game
        if not isinstance(game, HasStepWith) and not (isinstance(game, HasRewardWith) and game.horizon == 1):
            raise ChainError(f"EpisodeDPlusPlus needs step_with, and {type(game).__name__} does not have it")
        self.baseline = baseline

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        N = trajectory.action.shape[-1]
        fact = signal.sum(0)[:, None]
        found = self.context.simulator.totals_with(trajectory, clone_counts(N, signal.device)).unflatten(1, (N, N))
        total = first_that_helps(fact - found[..., 0], found[..., 1:] - fact[..., None])
        credit = total.expand(trajectory.action.shape)
        return centred(credit, trajectory.alive, self.context.n_seeds) if self.baseline == "mean" else credit
