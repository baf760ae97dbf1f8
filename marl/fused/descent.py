"""Minibatch after minibatch without leaving compiled code: rows by index, loss, backward pass, clipping, Adam.

For small networks the words between two matrix products cost more than the products. Here one call takes all gradient
steps that a learner takes on one batch: PPO's and REINFORCE's for actors, squared errors for critics. Built on
`blocks`; the equal in plain torch are the loops of `learn.policy_gradient` and `Chain.fit`.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numba.core import types
from torch import Tensor

from marl.fused.adam import follow, in_steps
from marl.fused.blocks import BLOCK, CODES, SLOPES, UNITS, WIDTH, go_down, go_up, inner, read, share, tiled, write
from marl.fused.kernels import SIGNATURES, pack, parts_of, plan_of, run, unflat
from marl.fused.objective import NEVER, gap_of, slopes

POLICY, SQUARES = 0, 1


@inner
def _see(work, start, width, x, picked):
    """The picked rows of x [R,in] into the workspace; the last again up to a multiple of HIGH."""
    for r in range(tiled(len(picked))):
        place, seen = work[start + r * width :][:width], x[picked[min(r, len(picked) - 1)]]
        for i in range(len(seen)):  # over slices: a loop over sums of indices would not run in vector registers
            place[i] = seen[i]


@inner
def _follow(z, dz, wide, A, aim, old, action, legal, alive, picked, unit, entropy, clip, scratch, taken):
    """Slopes of a policy's loss at its outputs z for the picked rows; scratch [8, BLOCK], taken [BLOCK]."""
    credit, before, weight = scratch[5], scratch[6], scratch[7]
    rows = tiled(len(picked))
    for r in range(rows):
        k = picked[min(r, len(picked) - 1)]
        weight[r] = unit if r < len(picked) and alive[k] else np.float32(0)
        credit[r], before[r], taken[r] = aim[0, k], old[0, k], action[k]
        for a in range(len(legal)):
            if not legal[a, k]:
                z[r * wide + a] = NEVER
    slopes(z, dz, rows, wide, A, taken, credit, before, weight, scratch, entropy, clip)


@inner
def _approach(z, dz, wide, A, aim, old, alive, picked, unit, clip):
    """Slopes of squared errors at the outputs z of the picked rows."""
    for r in range(tiled(len(picked))):
        k = picked[min(r, len(picked) - 1)]
        weight = unit if r < len(picked) and alive[k] else np.float32(0)
        for a in range(A):
            gap = gap_of(z[r * wide + a], aim[a, k], old[a, k], clip)
            dz[r * wide + a] = weight * 2 * gap


def _steps(
    x, parameters, sizes, at, space, code, order, pieces, each, kind, aim, old, action, legal, alive, entropy, clip,
    norm, rates, mean, square, gradients,
):  # fmt: skip
    """All gradient steps of one batch; see `descend`. gradients [P, parts, .] is scratch."""
    (S, C), (passes, _, cells) = x.shape[:2], order.shape
    parts = gradients.shape[1]
    picked, unit = np.empty((S, (cells // pieces + 1) * each), np.int64), np.empty(S, np.float32)
    for step in range(passes * pieces):
        piece = step % pieces
        begin = cells // pieces * piece + min(piece, cells % pieces)
        M = cells // pieces + (piece < cells % pieces)
        R = M * each
        for s in range(S):
            live = 0
            for m in range(M):
                for n in range(each):
                    picked[s, m * each + n] = order[step // pieces, s, begin + m] * each + n
                live += alive[s, 0, picked[s, m * each]]
            unit[s] = 1 / max(1, live * (C * each * sizes[-1] if kind == SQUARES else 1))
        for worker in numba.prange(len(space)):
            work = space[worker]
            for task in range(worker, S * C * parts, len(space)):
                p, part = task // parts, task % parts
                s, c = p // C, p % C
                read(work, at, sizes, parameters[p])
                first, end = share(R, part, parts)
                scratch, taken = np.empty((8, BLOCK), np.float32), np.empty(BLOCK, np.int64)
                for begun in range(first, end, BLOCK):
                    some = picked[s, begun : min(begun + BLOCK, end)]
                    rows, wide = tiled(len(some)), at[WIDTH, -1]
                    _see(work, at[UNITS, 0], at[WIDTH, 0], x[s, c], some)
                    go_up(work, at, sizes, rows, code)
                    z = work[at[UNITS, -1] : at[UNITS, -1] + rows * wide]
                    dz = work[at[SLOPES, -1] : at[SLOPES, -1] + rows * wide]
                    if kind == POLICY:
                        _follow(
                            z, dz, wide, sizes[-1], aim[s, c], old[s, c], action[s, c], legal[s, c], alive[s, c],
                            some, unit[s], entropy, clip, scratch, taken,
                        )  # fmt: skip
                    else:
                        _approach(z, dz, wide, sizes[-1], aim[s, c], old[s, c], alive[s, c], some, unit[s], clip)
                    go_down(work, at, sizes, rows, code, False)
                write(work, at, sizes, gradients[p, part])
        follow(parameters, gradients, S, norm, rates, step, mean, square)


_F, _I, _B = types.float32, types.int64, types.boolean
_2, _4 = _F[:, ::1], _F[:, :, :, :]
SIGNATURES[_steps] = types.void(
    *(_F[:, :, :, ::1], _2, _I[::1], _I[:, ::1], _2, _I),  # x [S,C,R,in], parameters, plan, activation
    *(_I[:, :, ::1], _I, _I, _I),  # order, pieces, each, kind
    *(_4, _4, _I[:, :, :], _B[:, :, :, :], _B[:, :, :]),  # aim, old, action, legal, alive
    *(_F, _F, _F, types.float64[::1], _2, _2, _F[:, :, ::1]),  # entropy, clip, norm, rates, Adam's memory, gradients
)


def descend(
    layers: Sequence[Tensor],
    activation: str,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    order: Tensor,
    pieces: int,
    aim: Tensor,
    old: Tensor | None,
    alive: Tensor,
    action: Tensor | None = None,
    legal: Tensor | None = None,
    entropy: float = 0.0,
    clip: float | None = None,
    max_norm: float | None = None,
) -> None:
    """Take passes x pieces gradient steps on the networks whose parameters are `layers`, in place.

    With an action, a policy follows credit `aim` (`learn.policy_gradient.loss`); without, outputs
    come nearer to `aim` (`critic.error`). Seeds stay apart: minibatches, means, clipping.

    Args:
        x: [S,C,in,R] inputs, one network for each (s, c); aim and old [S,C,1 or out,R], action and alive [S,C,R],
            legal [S,C,A,R].
        order: [passes,S,cells] shuffled numbers of cells; R / cells rows that lie together make a cell.
        old: log probabilities of the actions when they were taken (PPO), or old predictions (value clipping).
    """
    (S, C, _, R), cells, plan = x.shape, order.shape[2], plan_of(layers)
    parts = parts_of(R // pieces)

    def work(parameters: Tensor, rates: Tensor, mean: Tensor, square: Tensor) -> None:
        run(
            *(_steps, S * C * parts, x.transpose(2, 3).contiguous(), parameters, plan),
            *(CODES[activation], order.contiguous(), pieces, R // cells, SQUARES if action is None else POLICY),
            *(aim, aim if old is None else old),
            torch.zeros(S, C, 1, dtype=torch.int64).expand(S, C, R) if action is None else action,
            torch.ones(1, 1, 0, 1, dtype=torch.bool).expand(S, C, 0, R) if legal is None else legal,
            *(alive, entropy, -1.0 if clip is None else clip, 0.0 if max_norm is None else max_norm),
            *(rates, mean, square, parameters.new_empty((S * C, parts, parameters.shape[1]))),
        )

    in_steps(optimizer, layers, order.shape[0] * pieces, pack, lambda table: unflat(table, layers), work)
