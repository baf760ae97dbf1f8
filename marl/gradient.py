"""Where does a batch of episodes pull the policy? The gradient that a method's credit gives, batch by batch.

The policy stands still and the batches are independent, so that a mean over them estimates the method's expected
gradient, and their spread its variance: with the true gradient beside them, `marl.metrics.gradient` tells bias,
variance and signal-to-noise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from envs.base import Env
from marl.credit.base import Chain
from marl.learn.policy_gradient import adam, loss, scaled
from marl.policy import Actor
from marl.rollout import rollout, some
from marl.types import Trajectory

TOGETHER = 64  # policies in one backward pass: more would leave few rows of each in the cache


def replicate(actor: Actor, times: int) -> Actor:
    """A population of S * times actors in which each seed's policy stands `times` times in a row."""
    many = copy.deepcopy(actor)
    many.seeds = tuple(seed for seed in actor.seeds for _ in range(times))
    many.n_seeds = actor.n_seeds * times
    for x in (*many.parameters(), *many.buffers()):
        x.data = x.data.unflatten(0, (actor.n_seeds, -1)).repeat_interleave(times, 0).flatten(0, 1)
    return many


def flat(gradients: Iterable[Tensor], n_seeds: int) -> Tensor:
    """[S, P]: one gradient a seed, from tensors in the order of `actor.parameters()`, each with S * C as first axis."""
    return torch.cat([g.reshape(n_seeds, -1) for g in gradients], 1)


def batch_gradients(
    actor: Actor, trajectory: Trajectory, credit: Tensor, batches: int = 1, scale: bool = False
) -> Tensor:
    """Each seed's episodes as `batches` equal batches, one gradient a batch:

        g = mean over the batch's episodes of sum_{t,i} c_it grad log pi_i(a_it | o_it)       credit [T,B,N]
        g = mean over the batch's episodes of sum_{t,i,c} pi_i(c) w_itc grad log pi_i(c | o_it)   credit [T,B,N,A]

    It is the ascent direction of the learner's own loss, which is a mean over live steps, times those live steps.

    Args:
        scale: divide credit by its root mean square per (batch, agent) first, as the learners do by default.
    Returns: [S, batches, P], P the parameters of one seed in the order of `actor.parameters()`, in return a parameter.
    Raises: ValueError if the episodes of a seed cannot be parted so.
    """
    S, B = actor.n_seeds, trajectory.action.shape[1]
    if batches < 1 or B % (S * batches):
        raise ValueError(f"batches={batches} is not allowed; it must divide the {B // S} episodes of each seed")
    parts = torch.arange(batches).split(max(1, TOGETHER // S))
    b = torch.arange(B, device=credit.device).reshape(S, batches, -1)
    found = []
    for part in parts:
        rows, many = b[:, part].flatten(), replicate(actor, len(part))
        found.append(_together(many, some(trajectory, rows), credit[:, rows], scale).unflatten(0, (S, -1)))
    return torch.cat(found, 1)


def _together(many: Actor, trajectory: Trajectory, credit: Tensor, scale: bool) -> Tensor:
    """[K, P] one gradient for each of the K seeds of `many`, all in one backward pass."""
    K = many.n_seeds
    live = trajectory.alive.unflatten(1, (K, -1)).sum(0).to(credit.dtype).mean(1)  # steps an episode
    gain = -loss(many, trajectory, scaled(credit, trajectory.alive, K) if scale else credit) * live
    return flat(torch.autograd.grad(gain.sum(), list(many.parameters())), K)


def estimates(
    game: Env[Any],
    actor: Actor,
    chain: Chain,
    episodes_each: int = 32,
    batches: int = 64,
    scale: bool = False,
    purpose: str = "gradient",
) -> Tensor:
    """[S, batches, P]: `batch_gradients` of a chain on fresh episodes of a frozen policy.

    The chain is asked batch by batch: its baselines are means over one batch, and what it draws for a batch is drawn
    anew for each. What it has learned stays as it is (`fit` first). The episodes are named by `purpose` and the
    actor's seeds, so that all methods are shown the same ones. Simulator steps are charged to the chain's simulator.
    """
    S, E = actor.n_seeds, episodes_each
    trajectory = rollout(game, actor, batches * E, list(actor.seeds), purpose=purpose)
    b = torch.arange(S * batches * E).reshape(S, batches, E)
    credit: Tensor | None = None
    for k in range(batches):
        rows = b[:, k].flatten()
        found = chain.assign(some(trajectory, rows))
        credit = found.new_zeros(len(found), S * batches * E, *found.shape[2:]) if credit is None else credit
        credit[:, rows] = found
    assert credit is not None
    return batch_gradients(actor, trajectory, credit, batches, scale)


def fit(chain: Chain, game: Env[Any], actor: Actor, episodes_each: int = 32, batches: int = 100) -> None:
    """Fit whatever a chain learns to a frozen policy, on `batches` batches of its episodes; nothing where none is."""
    if not chain.learns:
        return
    optimizer = adam(chain.parameters(), chain.context.fit.lr)
    for k in range(batches):
        batch = rollout(game, actor, episodes_each, list(actor.seeds), k * episodes_each, "gradient/fit")
        chain.fit(optimizer, batch, chain.trace(batch)[1], k)
