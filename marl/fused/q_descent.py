"""All gradient steps of a Q-learner on its buffer in one call: what comes next, what was said, the miss, and back.

For independent learners and sums of them (IQL, VDN). Built on `blocks`; the equal in plain torch is
`QTraining.loss` in a loop. Episodes are read where they lie in the buffer, none is copied.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from numba.core import types
from torch import Tensor

from marl.fused.adam import follow, in_steps
from marl.fused.blocks import BLOCK, CODES, SLOPES, UNITS, WIDTH, go_down, go_up, inner, read, share, tiled, write
from marl.fused.kernels import SIGNATURES, flat, pack, parts_of, plan_of, run, unflat


@inner
def _views(work, at, sizes, obs, n, places):
    """What agent n saw at some places of the buffer."""
    O, start, wide = obs.shape[2], at[UNITS, 0], at[WIDTH, 0]
    for r in range(len(places)):
        x, seen = work[start + r * wide :][: sizes[0]], obs[places[r], n]
        for i in range(O):  # over slices, for such a loop runs in vector registers
            x[i] = seen[i]
        for i in range(O, sizes[0]):
            x[i] = np.float32(i - O == n)
    for r in range(len(places), tiled(len(places))):
        work[start + r * wide : start + r * wide + sizes[0]] = 0


@inner
def _chosen(q, legal):
    """The legal action of greatest value, the first among equals."""
    best, top = 0, np.float32(-np.inf)
    for a in range(len(q)):
        if (not len(legal) or legal[a]) and q[a] > top:
            best, top = a, q[a]
    return best


@inner
def _foresee(work, at, sizes, code, obs, n, places, now, old, mask, action, double, stale, said, after):
    """said [R] value of the action taken, after [R] what the old network says of the best one; stale [R,A] is scratch.

    With `double` the present network chooses what is best, else the old one.
    """
    R, A, wide = len(places), sizes[-1], at[WIDTH, -1]
    for k in range(2):
        read(work, at, sizes, old if k == 0 else now)
        for first in range(0, R, BLOCK):
            rows = min(BLOCK, R - first)
            _views(work, at, sizes, obs, n, places[first : first + rows])
            go_up(work, at, sizes, tiled(rows), code)
            for r in range(rows):
                q, row, place = at[UNITS, -1] + r * wide, first + r, places[first + r]
                if k == 0:
                    for a in range(A):
                        stale[row, a] = work[q + a]
                else:
                    judge = work[q : q + A] if double else stale[row]
                    after[row] = stale[row, _chosen(judge, mask[place, n] if mask.size else mask[0, 0])]
                    said[row] = work[q + action[place, n]] if place < len(action) else np.float32(0)


@inner
def _misses(said, after, places, signal, goes_on, alive, mixed, gamma):
    """said [N,R] becomes the slope of the loss in each value: 2 (said - aim) over the live, 0 elsewhere."""
    N, live = len(said), 0
    for place in places:
        live += place < len(alive) and alive[place]
    unit = np.float32(2) / np.float32(max(1, live * (1 if mixed else N)))
    for row in range(len(places)):
        place = places[row]
        if place >= len(alive) or not alive[place]:
            said[:, row] = 0
            continue
        follow, gap = gamma * goes_on[place], -signal[place, 0]
        for n in range(N):
            own = said[n, row] - follow * after[n, row + 1]
            gap += own
            said[n, row] = unit * (own - signal[place, n])
        if mixed:
            said[:, row] = unit * gap


@inner
def _learn(work, at, sizes, code, obs, n, places, now, action, slopes, gradient):
    """The gradient of one network on some rows."""
    wide = at[WIDTH, -1]
    read(work, at, sizes, now)
    for first in range(0, len(places), BLOCK):
        rows = min(BLOCK, len(places) - first)
        _views(work, at, sizes, obs, n, places[first : first + rows])
        go_up(work, at, sizes, tiled(rows), code)
        work[at[SLOPES, -1] : at[SLOPES, -1] + tiled(rows) * wide] = 0
        for r in range(rows):
            place = places[first + r]
            if place < len(action):
                work[at[SLOPES, -1] + r * wide + action[place, n]] = slopes[first + r]
        go_down(work, at, sizes, tiled(rows), code, False)
    write(work, at, sizes, gradient)


def _q_steps(
    obs, parameters, sizes, at, space, code, old, places, mask, action, signal, goes_on, alive, mixed, double, gamma,
    norm, rates, mean, square, stale, said, after, gradients,
):  # fmt: skip
    """All gradient steps of one update; see `q_descend`. A task is some rows of one agent of one seed."""
    (count, S, R), N = places.shape, obs.shape[1]
    groups = S * N // len(parameters)
    parts = gradients.shape[1] // groups
    for step in range(count):
        for worker in numba.prange(len(space)):
            for task in range(worker, S * N * parts, len(space)):
                p, (b, e) = task // parts, share(R, task % parts, parts)
                s, n, net = p // N, p % N, p // groups
                _foresee(
                    space[worker], at, sizes, code, obs, n, places[step, s, b:e], parameters[net], old[net],
                    mask, action, double, stale[p, b:e], said[s, n, b:e], after[s, n, b:e],
                )  # fmt: skip
        for s in range(S):
            _misses(said[s], after[s], places[step, s], signal, goes_on, alive, mixed, gamma)
        for worker in numba.prange(len(space)):
            for task in range(worker, S * N * parts, len(space)):
                p, (b, e) = task // parts, share(R, task % parts, parts)
                s, n, net = p // N, p % N, p // groups
                gradient = gradients[net, task % (groups * parts)]
                rows = places[step, s, b:e]
                _learn(space[worker], at, sizes, code, obs, n, rows, parameters[net], action, said[s, n, b:e], gradient)
        follow(parameters, gradients, S, norm, rates, step, mean, square)


_F, _I, _B = types.float32, types.int64, types.boolean
_2, _3 = _F[:, ::1], _F[:, :, ::1]
SIGNATURES[_q_steps] = types.void(
    *(_3, _2, _I[::1], _I[:, ::1], _2, _I),  # obs, parameters, plan, activation
    *(_2, _I[:, :, ::1], _B[:, :, ::1]),  # old, places, mask
    *(_I[:, ::1], _F[:, :], _F[::1], _B[::1]),  # action, signal, goes_on, alive
    *(_B, _B, _F, _F, types.float64[::1], _2, _2),  # mixed, double, gamma, norm, rates, Adam's memory
    *(_3, _3, _3, _3),  # stale, said, after, gradients
)


def q_descend(
    layers: Sequence[Tensor],
    old: Sequence[Tensor],
    activation: str,
    optimizer: torch.optim.Optimizer,
    memory: Any,
    which: Tensor,
    mixed: bool,
    double: bool,
    gamma: float,
    max_norm: float | None = None,
) -> None:
    """Take a gradient step on each choice of episodes, in place: the mean squared miss as `QTraining.loss` says.

    Args:
        layers, old: present networks and their copies, one a seed or one a seed and agent.
        memory: a buffer, [T(+1), S, K, ...] as in `learn.q_learning.Memory`.
        which: [steps, S, M] episodes of each gradient step.
        mixed: agents' values are summed (VDN), else each is held against its own aim (IQL).
    """
    (steps, S, K, N, _), (count, _, M) = memory.obs.shape, which.shape
    plan, signal, R = plan_of(layers), memory.signal.flatten(0, 2), M * steps
    parts, signal = parts_of(R), signal if signal.dim() == 2 else signal[:, None].expand(-1, N)
    mask = memory.mask.flatten(0, 2) if memory.mask.dim() == 5 else torch.ones(1, 1, 0, dtype=torch.bool)
    # Step t of episode k of seed s lies at (t S + s) K + k; all T + 1 steps of an episode are rows one after the other.
    seed, time = torch.arange(S)[:, None, None] * K, torch.arange(steps) * (S * K)
    places = (which[..., None] + seed + time).flatten(2)
    scratch = [torch.empty(shape) for shape in ((S * N, R, int(plan[0][-1])), (S, N, R), (S, N, R))]
    kept = (memory.action.flatten(0, 2), signal, memory.goes_on.flatten(), memory.alive.flatten())

    def work(parameters: Tensor, rates: Tensor, mean: Tensor, square: Tensor) -> None:
        gradients = parameters.new_empty((len(parameters), S * N // len(parameters) * parts, parameters.shape[1]))
        run(
            *(_q_steps, S * N * parts, memory.obs.flatten(0, 2), parameters, plan, CODES[activation]),
            *(flat(old)[0], places, mask, *kept, mixed, double, gamma),
            *(0.0 if max_norm is None else max_norm, rates, mean, square, *scratch, gradients),
        )

    in_steps(optimizer, layers, count, pack, lambda table: unflat(table, layers), work)
