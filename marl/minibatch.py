"""A minibatch is a choice of (step, episode) rows, drawn for every seed by itself and taken by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from envs.base import map_state
from envs.noise import uniform
from marl.types import Trajectory


def schedule(
    seeds: Sequence[int], trajectory: Trajectory, update: int, passes: int, pieces: int, purpose: str
) -> Iterator[Tensor | None]:
    """`passes` times over all rows in `pieces` minibatches, shuffled anew each time: [S, M] row numbers t * E + e.

    None stands for all rows at once (pieces = 1). The shuffle of (seed, update, pass) never depends on other seeds.
    """
    T, B = trajectory.reward.shape
    rows = T * (B // len(seeds))
    for k in range(passes):
        if pieces == 1:
            yield None
        else:
            u = uniform(
                f"{purpose}/shuffle", list(seeds), update * passes + k, (rows,), device=trajectory.reward.device
            )
            yield from u.argsort(1).tensor_split(pieces, 1)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows index [S, M] of x [T, B, ...], as [1, S * M, ...], seed-major."""
    S = index.shape[0]
    E = x.shape[1] // S
    b = index % E + torch.arange(S, device=index.device)[:, None] * E
    return x[(index // E).flatten(), b.flatten()][None]


def subset(trajectory: Trajectory, index: Tensor | None) -> Trajectory:
    """What learners read of the chosen rows, as if one step of S * M episodes; all of it for None.

    Rows do not follow one another in time; rewards and noise stay those of the whole.
    """
    if index is None:
        return trajectory
    return trajectory._replace(
        state=map_state(lambda x: pick(x, index), trajectory.state),
        obs=pick(trajectory.obs, index),
        mask=None if trajectory.mask is None else pick(trajectory.mask, index),
        action=pick(trajectory.action, index),
        probs=pick(trajectory.probs, index),
        alive=pick(trajectory.alive, index),
    )
