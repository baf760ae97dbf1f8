"""Where a game knows its own truth in closed form, the truth is read off instead of simulated, at the same price."""

from __future__ import annotations

from torch import Tensor

from envs.base import HasUnitDifferences
from marl.oracle.sampled import frozen_unit
from marl.rollout import Simulator
from marl.types import Trajectory


def unit_difference(simulator: Simulator, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    """O8 in the game's closed form where it holds for this baseline, else by simulation. [T,B,N], 0 at dead steps.

    A closed form is charged the steps it replaces: for each unit one for every live step from it to the end.
    """
    game = simulator.game
    if not isinstance(game, HasUnitDifferences):
        return frozen_unit(simulator, trajectory, baseline)
    try:
        values = game.unit_differences(trajectory, baseline)
    except ValueError:  # the game names a baseline for which it knows no closed form
        return frozen_unit(simulator, trajectory, baseline)
    simulator.steps = simulator.steps + replaced_steps(trajectory.alive, simulator.n_seeds) * values.shape[-1]
    return values * trajectory.alive[..., None]


def replaced_steps(alive: Tensor, n_seeds: int) -> Tensor:
    """[S]: sum over episodes of L(L+1)/2, L the live steps: one branch from each step to the recorded end."""
    length = alive.sum(0)
    return (length * (length + 1) // 2).reshape(n_seeds, -1).sum(1).cpu()
