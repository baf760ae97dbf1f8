"""Only rewards that an action can reach may teach about it: the rest of the return is noise to it."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import HasLightCone
from marl.credit.base import ChainError, Context, Credit, Signal, centred
from marl.types import Trajectory


class LightCone(Credit):
    """c_it = sum of r_k over the steps k that a_it can reach, minus its mean over the seed's live episodes at t.

    What reaches what is declared by the game (`light_cone`). A reward outside the cone does not depend on a_it given
    the past, so leaving it out keeps the mean gradient and takes its variance away: the exact form of what Freed et
    al. (2021, partial reward decoupling) learn with attention.
    """

    signals = {Signal.RAW: Signal.ADVANTAGE}
    aligned, efficient = True, False
    needs = ("light cone",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if not isinstance(context.game, HasLightCone):
            raise ChainError(f"LightCone needs light_cone, and {type(context.game).__name__} does not declare it")
        self.cone = context.game.light_cone().to(context.device)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        reached = torch.einsum("tki,kb->tbi", self.cone.to(signal), signal)
        return centred(reached, trajectory.alive, self.context.n_seeds)
