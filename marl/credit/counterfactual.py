"""What would the team have been paid, had one agent acted otherwise? Shared by the methods that ask a simulator."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import HasSafeAction, default_actions
from marl.credit.base import ChainError, Context, Credit, check_choice
from marl.rollout import Simulator, others
from marl.types import Trajectory


def baseline_actions(owner: Credit, context: Context, baseline: str) -> Tensor:
    """[N] the action that stands for "agent i did nothing": "default", or the privileged "safe"."""
    check_choice(owner, "baseline", baseline, ("default", "safe"))
    if baseline == "default":
        return default_actions(context.game, context.device)
    if not isinstance(context.game, HasSafeAction):
        raise ChainError(
            f"{type(owner).__name__}: baseline='safe' needs a game that knows its safe actions, "
            f"and {type(context.game).__name__} does not"
        )
    return torch.tensor(context.game.safe_action, device=context.device)


def reward_without(simulator: Simulator, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    """r(s, a[i <- c_i], xi) for every agent, [T,B,N]; baseline c [N]."""
    return simulator.rewards(trajectory, baseline[:, None].expand(*trajectory.action.shape, 1))[..., 0]


def legal_others(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """Every agent's other actions [T,B,N,A-1] and their probabilities; an illegal one is replaced by the action taken.

    Its probability is 0 then, and the simulator is never asked for a move that the rules forbid.
    """
    choice = others(trajectory.action, trajectory.probs.shape[-1])
    weight = trajectory.probs.gather(-1, choice)
    if trajectory.mask is not None:
        choice = torch.where(trajectory.mask.gather(-1, choice), choice, trajectory.action[..., None])
    return choice, weight


def expected_over_own_action(simulator: Simulator, trajectory: Trajectory, reward: Tensor) -> Tensor:
    """sum_c pi_i(c|o_i) r(s, a[i <- c], xi), [T,B,N]: the action taken costs nothing, the others one step each."""
    choice, weight = legal_others(trajectory)
    answers = simulator.rewards(trajectory, choice)
    # Probabilities sum to 1 up to rounding; where no action matters the mean must be the reward itself, or a learner
    # that scales its credit would follow the rounding.
    return reward[..., None] + (weight * (answers - reward[..., None, None])).sum(-1)


def episode_names(trajectory: Trajectory) -> Tensor:
    """[B] a number for each recorded episode, read from the first two numbers of its policy noise."""
    luck = trajectory.policy_noise.transpose(0, 1).flatten(1)
    first, second = luck[:, 0], luck[:, -1]
    return (first.double() * 2**24).long() * 2**24 + (second.double() * 2**24).long()
