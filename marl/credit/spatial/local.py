"""Each agent is credited with the reward that the field itself hands it, whatever that does to the team."""

from __future__ import annotations

from torch import Tensor

from envs.base import HasLocalRewards, flatten
from marl.credit.base import ChainError, Context, Credit, Signal
from marl.types import Trajectory


class Local(Credit):
    """r_i as the game defines it (`local_rewards`). Raises ChainError for a game that has none."""

    signals = {Signal.RAW: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("local rewards",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if not isinstance(context.game, HasLocalRewards):
            raise ChainError(f"Local needs local rewards, and {type(context.game).__name__} has none")
        self.game = context.game

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]; the incoming reward is replaced."""
        T, B, N = trajectory.action.shape
        flat = self.game.local_rewards(
            flatten(trajectory.state), trajectory.action.flatten(0, 1), trajectory.noise.flatten(0, 1)
        )
        return flat.reshape(T, B, N).to(signal.dtype) * trajectory.alive[..., None]
