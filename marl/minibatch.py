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
    """The chosen rows as a trajectory of one step; all of it for None. Its rows do not follow one another in time."""
    if index is None:
        return trajectory
    taken = {
        name: pick(x, index)
        for name, x in trajectory._asdict().items()
        if isinstance(x, Tensor) and name not in ("state", "final")
    }
    state = map_state(lambda x: pick(x, index), trajectory.state)
    return trajectory._replace(state=state, **taken)
