"""A minibatch is a choice of (step, episode) rows or of whole episodes, drawn for every seed and taken by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from envs.base import map_state
from envs.noise import BITS, uniform
from marl.types import Trajectory


def schedule(
    seeds: Sequence[int],
    trajectory: Trajectory,
    update: int,
    passes: int,
    pieces: int,
    purpose: str,
    whole: bool = False,
) -> Iterator[Tensor | None]:
    """`passes` times over all rows in `pieces` minibatches, shuffled anew each time: [S, M] row numbers t * E + e.

    None stands for all rows at once (pieces = 1). The shuffle of (seed, update, pass) never depends on other seeds.
    whole: minibatches of whole episodes, [S, T, M] row numbers; no more minibatches than a seed has episodes.
    """
    T, B = trajectory.reward.shape
    E = B // len(seeds)
    rows, pieces = (E, min(pieces, E)) if whole else (T * E, pieces)
    steps = torch.arange(T, device=trajectory.reward.device)[:, None] * E
    for k in range(passes):
        if pieces == 1:
            yield None
        else:
            for part in shuffled(seeds, rows, update * passes + k, purpose, steps.device).tensor_split(pieces, 1):
                yield part[:, None] + steps if whole else part


def shuffled(seeds: Sequence[int], rows: int, number: int, purpose: str, device: torch.device | str = "cpu") -> Tensor:
    """[S, rows] row numbers of each seed, in the order of pass `number`."""
    return uniform(f"{purpose}/shuffle", list(seeds), number, (rows,), device=device).argsort(stable=True, dim=1)


def orders(seeds: Sequence[int], rows: int, update: int, passes: int, pieces: int, purpose: str) -> Tensor:
    """[passes, S, rows] of a whole `schedule` of single steps: minibatch m of a pass is its m-th of `pieces` parts."""
    if pieces == 1:
        return torch.arange(rows).expand(passes, len(seeds), rows)
    numbers = torch.arange(update * passes, (update + 1) * passes).repeat_interleave(len(seeds))
    u = uniform(f"{purpose}/shuffle", list(seeds) * passes, numbers, (rows,))
    # Sorting whole numbers that hold their own place is several times quicker than `argsort`, ties included.
    keys = (u * 2.0**BITS).long() * rows + torch.arange(rows)
    keys.numpy().sort(1)
    return (keys % rows).unflatten(0, (passes, -1))


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows index [S, M] of x [T, B, ...], as [1, S * M, ...], seed-major; or [S, K, M], as [K, S * M, ...]."""
    return _take(x, _rows(index, x.shape[1]))


def _rows(index: Tensor, B: int) -> Tensor:
    """Where the rows [S, (K,) M] of each seed lie among all T * B: [K, S * M]."""
    index = (index if index.dim() == 3 else index[:, None]).transpose(0, 1)  # [K, S, M]
    S = index.shape[1]
    E = B // S
    first = torch.arange(S, device=index.device)[:, None] * E
    return (index + torch.div(index, E, rounding_mode="floor") * (B - E) + first).flatten(1)  # t E + e -> t B + s E + e


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def subset(trajectory: Trajectory, index: Tensor | None) -> Trajectory:
    """What learners read of the chosen rows, as if one step of S * M episodes; all of it for None.

    Rows do not follow one another in time, but for those of an index [S, T, M], which are whole episodes. Rewards
    and noise stay those of the whole.
    """
    if index is None:
        return trajectory
    rows = _rows(index, trajectory.alive.shape[1])
    return trajectory._replace(
        state=map_state(lambda x: _take(x, rows), trajectory.state),
        obs=_take(trajectory.obs, rows),
        mask=None if trajectory.mask is None else _take(trajectory.mask, rows),
        action=_take(trajectory.action, rows),
        probs=_take(trajectory.probs, rows),
        alive=_take(trajectory.alive, rows),
    )
