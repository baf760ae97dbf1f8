"""The truth by living it again: replays that differ from the fact in one action, with all luck kept."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.rollout import Simulator, others, swapped
from marl.types import Policy, Trajectory


def returns_to_go(reward: Tensor) -> Tensor:
    """G_t = r_t + r_{t+1} + ..., added in the order in which a branch from t adds, so that equal lives differ by 0."""
    total = torch.zeros_like(reward)
    for t in range(len(reward)):
        total[: t + 1] += reward[t]
    return total


def unit_effect(simulator: Simulator, policy: Policy, trajectory: Trajectory) -> Tensor:
    """O6: G_t(tau) - sum_c pi_i(c|o_it) G_t(tau with do(a_it = c)), everyone reacting after t.

    The replays share the exogenous noise and every agent's policy noise, which inverse CDF in action order turns
    into actions; a value (not its mean) depends on that order. [T,B,N], 0 at dead steps. Exact given the noise.
    Cost: at most B N (A-1) T(T+1)/2 steps, dead ones not counted.
    """
    T, B, N = trajectory.action.shape
    choice = others(trajectory.action, trajectory.probs.shape[-1])
    weight = trajectory.probs.gather(-1, choice)
    if trajectory.mask is not None:  # an illegal action has probability 0: live the fact again in its place
        choice = torch.where(trajectory.mask.gather(-1, choice), choice, trajectory.action[..., None])
    fact = returns_to_go(trajectory.reward)[..., None, None]
    lived = simulator.branches(trajectory, swapped(trajectory.action, choice), policy).reshape(T, B, N, -1)
    return (weight * (fact - lived)).sum(-1) * trajectory.alive[..., None]


def frozen_unit(simulator: Simulator, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    """O8 by simulation: G_t(tau) - G_t(tau[a_it <- c_i]), all other actions as recorded; baseline c [N].

    [T,B,N], 0 at dead steps. Cost: at most B N T(T+1)/2 steps.
    """
    choice = baseline[:, None].expand(*trajectory.action.shape, 1)
    fact = returns_to_go(trajectory.reward)[..., None]
    return (fact - simulator.branches(trajectory, swapped(trajectory.action, choice))) * trajectory.alive[..., None]


def agent_total(simulator: Simulator, trajectory: Trajectory, baseline: Tensor) -> Tensor:
    """O7: G(tau) - G(tau with agent i on its baseline throughout), the others frozen, [T,B,N] the same at all steps.

    Cost: at most B N T steps.
    """
    T, B, N = trajectory.action.shape
    me = torch.eye(N, dtype=torch.bool, device=baseline.device)
    plans = torch.where(me, baseline, trajectory.action[:, :, None].expand(T, B, N, N))
    gap = trajectory.reward.sum(0)[:, None] - simulator.totals(trajectory, plans)
    return gap.expand(T, B, N) * trajectory.alive[..., None]
