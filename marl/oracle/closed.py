"""Where a game knows its own truth in closed form, the truth is read off instead of simulated, at the same price."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import HasUnitDifferences, HasUnitShapley
from marl.oracle.sampled import frozen_unit
from marl.rollout import Simulator
from marl.types import Trajectory


class NoClosedForm(ValueError):
    """The game knows no closed form, or none for this baseline; the message says so."""


def unit_difference(simulator: Simulator, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    """O8 in the game's closed form where it holds for this baseline, else by simulation. [T,B,N], 0 at dead steps."""
    try:
        return closed_difference(simulator, trajectory, baseline)
    except NoClosedForm:
        return frozen_unit(simulator, trajectory, baseline)


def closed_difference(simulator: Simulator, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    """O8 in the game's closed form, [T,B,N], 0 at dead steps.

    It is charged the steps it replaces: for each unit one for every live step from it to the end.
    Raises NoClosedForm.
    """
    game = simulator.game
    if not isinstance(game, HasUnitDifferences):
        raise NoClosedForm(f"{type(game).__name__} knows no closed form of unit differences")
    try:
        values = game.unit_differences(trajectory, baseline)
    except ValueError as error:  # the game names a baseline for which it knows no closed form
        raise NoClosedForm(str(error)) from error
    simulator.steps = simulator.steps + replaced_steps(trajectory.alive, simulator.n_seeds) * values.shape[-1]
    return values * trajectory.alive[..., None]


def closed_shapley(simulator: Simulator, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    """O8 Shapley in the game's closed form, [T,B,N]; units after an early end share the blame too.

    What it replaces, 2^units plans, nobody could simulate; it is charged the least that an unbiased estimate costs:
    one order of the u units off the baseline, u + 1 plans of as many steps as the episode lived.
    Raises NoClosedForm.
    """
    game = simulator.game
    if not isinstance(game, HasUnitShapley):
        raise NoClosedForm(f"{type(game).__name__} knows no closed form of the Shapley value over units")
    try:
        values = game.unit_shapley(trajectory, baseline)
    except ValueError as error:
        raise NoClosedForm(str(error)) from error
    plans = 1 + (trajectory.action != baseline).flatten(2).sum((0, 2))
    rows = torch.arange(len(plans), device=plans.device)
    simulator.charge(rows, plans * trajectory.alive.sum(0), len(plans))
    return values


def replaced_steps(alive: Tensor, n_seeds: int) -> Tensor:
    """[S]: sum over episodes of L(L+1)/2, L the live steps: one branch from each step to the recorded end."""
    length = alive.sum(0)
    return (length * (length + 1) // 2).reshape(n_seeds, -1).sum(1).cpu()
