"""A counterfactual can shape the reward without moving the optimum: it enters as a potential (Devlin et al. 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import HasOptimalValue, flatten
from marl.credit.base import ChainError, Context, Credit, Signal
from marl.credit.counterfactual import baseline_actions, reward_without
from marl.types import Trajectory


class CounterfactualPotential(Credit):
    """CaP: r + Phi_i(t+1) - Phi_i(t), Phi_i(t+1) = r(s_t, a_t[i <- default], xi_t), Phi_i(0) = 0, terminal 0.

    The potential of what a step led to is what the team would have been paid in it without agent i (Devlin, Yliniemi,
    Kudenko & Tumer 2014). The terms telescope: every agent's shaped return is the team's, so optima stay, and so does
    what whole returns teach; what changes is what a learner sees early. gamma = 1.
    """

    signals = {Signal.RAW: Signal.AGENT}
    aligned, efficient = True, False
    needs = ("simulator",)
    cost = "B N T"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.baseline = baseline_actions(self, context, "default")

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        potential = reward_without(self.context.simulator, trajectory, self.baseline)
        return signal[..., None] + shaping(potential, trajectory)


class DifferencePotential(Credit):
    """DRiP: D_i + Phi(s_{t+1}) - Phi(s_t), D_i the difference reward, Phi = V* known by the game, terminal 0.

    Difference rewards say who, the potential says how good the state is that a step led to (Devlin et al. 2014, whose
    potentials are written by hand). Each agent's return is that of its differences less Phi(s_0).
    """

    signals = {Signal.RAW: Signal.AGENT}
    aligned, efficient = False, False
    needs = ("simulator", "truth")
    cost = "B N T"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if not isinstance(context.game, HasOptimalValue):
            raise ChainError(f"DifferencePotential needs optimal_value, and {type(context.game).__name__} has none")
        self.value, self.baseline = context.game.optimal_value, baseline_actions(self, context, "default")

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        without = reward_without(self.context.simulator, trajectory, self.baseline)
        T, B = signal.shape
        value = self.value(flatten(trajectory.state)).reshape(T, B, 1)
        return signal[..., None] - without + shaping(value[1:], trajectory) - first(value)


def shaping(after: Tensor, trajectory: Trajectory) -> Tensor:
    """Phi(t+1) - Phi(t), given Phi of what each step led to, [T or T-1, B, N]; 0 behind the last live step."""
    T = len(trajectory.alive)
    goes_on = torch.cat((trajectory.alive[1:], torch.zeros_like(trajectory.alive[:1])))[..., None]
    after = torch.cat((after[: T - 1], torch.zeros_like(after[:1]) if T > 1 else after.new_zeros(1, *after.shape[1:])))
    after = torch.where(goes_on, after, torch.zeros_like(after))
    return after - torch.cat((torch.zeros_like(after[:1]), after[:-1]))


def first(value: Tensor) -> Tensor:
    """Phi(s_0) at the first step, 0 later."""
    return torch.cat((value[:1], torch.zeros_like(value[1:])))
