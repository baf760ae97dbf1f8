"""Brute force for tests: one episode, one branch, one coalition at a time, sharing no code with what it checks.

Everything is float64 and frozen: all T recorded actions are replayed, the world reacts, the other actions do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import Env, stack
from envs.parallel import episode_noise


class Recording(NamedTuple):
    """What a closed form reads: state, action, noise, alive, time first; and the rewards."""

    state: Any
    action: Tensor
    noise: Tensor
    alive: Tensor
    reward: Tensor


def noise_of(env: Env[Any], episodes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Luck of episodes 0..episodes-1: [B,R] and [B,T,k], float64."""
    return episode_noise(env, seed, torch.arange(episodes), torch.float64)


def random_plan(env: Env[Any], episodes: int, seed: int = 0) -> Tensor:
    """[T,B,N] uniformly random actions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(env.n_actions, (env.horizon, episodes, env.n_agents), generator=generator)


def record(env: Env[Any], noise: tuple[Tensor, Tensor], plan: Tensor) -> Recording:
    """The plan [T,B,N] played to the horizon."""
    state = env.reset(noise[0])
    alive = torch.ones(plan.shape[1], dtype=torch.bool)
    states, alives, rewards = [], [], []
    for t in range(env.horizon):
        states.append(state)
        alives.append(alive)
        outcome = env.step(state, plan[t], noise[1][:, t])
        rewards.append(outcome.reward * alive)
        state, alive = outcome.state, alive & ~outcome.done
    later = noise[1].transpose(0, 1)
    return Recording(stack(states), plan, later, torch.stack(alives), torch.stack(rewards))


def frozen_return(env: Env[Any], noise: tuple[Tensor, Tensor], plan: Tensor) -> Tensor:
    """[B]: the return of a plan [T,B,N]."""
    return record(env, noise, plan).reward.sum(0)


def units(env: Env[Any]) -> Iterator[tuple[int, int]]:
    """Every (t, i)."""
    return product(range(env.horizon), range(env.n_agents))


def unit_differences(env: Env[Any], noise: tuple[Tensor, Tensor], plan: Tensor, baseline: Tensor) -> Tensor:
    """[T,B,N]: G - G[a_it <- baseline_i], one replay a unit."""
    fact = frozen_return(env, noise, plan)
    truth = torch.zeros(plan.shape, dtype=torch.float64)
    for t, i in units(env):
        branch = plan.clone()
        branch[t, :, i] = baseline[i]
        truth[t, :, i] = fact - frozen_return(env, noise, branch)
    return truth


def unit_shapley(env: Env[Any], noise: tuple[Tensor, Tensor], plan: Tensor, baseline: Tensor) -> Tensor:
    """[T,B,N]: the mean marginal gain over all orders in which the units leave the baseline.

    Units that stay on the baseline in every row are null players and left out; keep the others to 7 or fewer.
    """
    base = baseline.expand_as(plan)
    players = [(t, i) for t, i in units(env) if bool((plan[t, :, i] != base[t, :, i]).any())]
    value: dict[frozenset[tuple[int, int]], Tensor] = {}
    for members in product((False, True), repeat=len(players)):
        coalition = frozenset(unit for unit, member in zip(players, members, strict=True) if member)
        mixed = base.clone()
        for t, i in coalition:
            mixed[t, :, i] = plan[t, :, i]
        value[coalition] = frozen_return(env, noise, mixed)
    truth = torch.zeros(plan.shape, dtype=torch.float64)
    orders = list(permutations(players))
    for order in orders:
        present: frozenset[tuple[int, int]] = frozenset()
        for t, i in order:
            truth[t, :, i] += (value[present | {(t, i)}] - value[present]) / len(orders)
            present |= {(t, i)}
    return truth


def every_joint_action(env: Env[Any]) -> Tensor:
    """[T, A^(T N), N]: every plan there is, one a row."""
    plans = torch.tensor(list(product(range(env.n_actions), repeat=env.horizon * env.n_agents)))
    return plans.reshape(-1, env.horizon, env.n_agents).transpose(0, 1)
