"""All gradient steps of a Q-learner on its buffer in one call: what comes next, what was said, the miss, and back.

For independent learners and sums of them (IQL, VDN). Built on the blocks of `marl.fused`; the equal in plain torch is
`QTraining.loss` in a loop. Episodes are read where they lie in the buffer, none is copied.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from numba.core import types
from torch import Tensor

from marl import fused
from marl.descent import _adam
from marl.fused import BLOCK, SLOPES, UNITS, WIDTH, _down, _high, _inner, _read, _share, _up, _write


@_inner
def _views(work, at, sizes, obs, n, places):
    """What agent n saw at some places of the buffer."""
    O, start, wide = obs.shape[2], at[UNITS, 0], at[WIDTH, 0]
    for r in range(len(places)):
        x, seen = work[start + r * wide :][: sizes[0]], obs[places[r], n]
        for i in range(O):  # over slices, for such a loop runs in vector registers
            x[i] = seen[i]
        for i in range(O, sizes[0]):
            x[i] = np.float32(i - O == n)
    for r in range(len(places), _high(len(places))):
        work[start + r * wide : start + r * wide + sizes[0]] = 0


@_inner
def _chosen(q, legal):
    """The legal action of greatest value, the first among equals."""
    best, top = 0, np.float32(-np.inf)
    for a in range(len(q)):
        if (not len(legal) or legal[a]) and q[a] > top:
            best, top = a, q[a]
    return best


@_inner
def _foresee(work, at, sizes, code, obs, n, places, now, old, mask, action, double, stale, said, after):
    """said [R] value of the action taken, after [R] what the old network says of the best one; stale [R,A] is scratch.

    With `double` the present network chooses what is best, else the old one.
    """
    R, A, wide = len(places), sizes[-1], at[WIDTH, -1]
    for k in range(2):
        _read(work, at, sizes, old if k == 0 else now)
        for first in range(0, R, BLOCK):
            rows = min(BLOCK, R - first)
            _views(work, at, sizes, obs, n, places[first : first + rows])
            _up(work, at, sizes, _high(rows), code)
            for r in range(rows):
                q, row, place = at[UNITS, -1] + r * wide, first + r, places[first + r]
                if k == 0:
                    for a in range(A):
                        stale[row, a] = work[q + a]
                else:
                    judge = work[q : q + A] if double else stale[row]
                    after[row] = stale[row, _chosen(judge, mask[place, n] if mask.size else mask[0, 0])]
                    said[row] = work[q + action[place, n]] if place < len(action) else np.float32(0)


@_inner
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


@_inner
def _learn(work, at, sizes, code, obs, n, places, now, action, slopes, gradient):
    """The gradient of one network on some rows."""
    wide = at[WIDTH, -1]
    _read(work, at, sizes, now)
    for first in range(0, len(places), BLOCK):
        rows = min(BLOCK, len(places) - first)
        _views(work, at, sizes, obs, n, places[first : first + rows])
        _up(work, at, sizes, _high(rows), code)
        work[at[SLOPES, -1] : at[SLOPES, -1] + _high(rows) * wide] = 0
        for r in range(rows):
            place = places[first + r]
            if place < len(action):
                work[at[SLOPES, -1] + r * wide + action[place, n]] = slopes[first + r]
        _down(work, at, sizes, _high(rows), code, False)
    _write(work, at, sizes, gradient)


@_inner
def follow(parameters, gradients, S, norm, rates, step, mean, square):
    """Adam's step from gradients [P,G,.], summed over G and clipped seed by seed; S seeds, rates as of `in_steps`."""
    lr, beta1, beta2, epsilon, t = rates[0], rates[1], rates[2], rates[3], rates[4] + step + 1
    rate, lift, C = lr / (1 - beta1**t), np.sqrt(1 - beta2**t), len(parameters) // S
    for s in range(S):
        total = np.float32(0)
        for p in range(s * C, (s + 1) * C):
            for g in range(1, gradients.shape[1]):
                gradients[p, 0] += gradients[p, g]
            total += (gradients[p, 0] * gradients[p, 0]).sum()
        fade = np.float32(min(1.0, norm / (np.sqrt(total) + 1e-6))) if norm > 0 else np.float32(1)
        for p in range(s * C, (s + 1) * C):
            _adam(
                parameters[p], gradients[p, 0], mean[p], square[p], np.float32(rate), fade, np.float32(lift),
                np.float32(1 - beta1), np.float32(1 - beta2), np.float32(epsilon),
            )  # fmt: skip


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
                p, (b, e) = task // parts, _share(R, task % parts, parts)
                s, n, net = p // N, p % N, p // groups
                _foresee(
                    space[worker], at, sizes, code, obs, n, places[step, s, b:e], parameters[net], old[net],
                    mask, action, double, stale[p, b:e], said[s, n, b:e], after[s, n, b:e],
                )  # fmt: skip
        for s in range(S):
            _misses(said[s], after[s], places[step, s], signal, goes_on, alive, mixed, gamma)
        for worker in numba.prange(len(space)):
            for task in range(worker, S * N * parts, len(space)):
                p, (b, e) = task // parts, _share(R, task % parts, parts)
                s, n, net = p // N, p % N, p // groups
                gradient = gradients[net, task % (groups * parts)]
                rows = places[step, s, b:e]
                _learn(space[worker], at, sizes, code, obs, n, rows, parameters[net], action, said[s, n, b:e], gradient)
        follow(parameters, gradients, S, norm, rates, step, mean, square)


_F, _I, _B = types.float32, types.int64, types.boolean
_2, _3 = _F[:, ::1], _F[:, :, ::1]
fused.SIGNATURES[_q_steps] = types.void(
    *(_3, _2, _I[::1], _I[:, ::1], _2, _I),  # obs, parameters, plan, activation
    *(_2, _I[:, :, ::1], _B[:, :, ::1]),  # old, places, mask
    *(_I[:, ::1], _F[:, :], _F[::1], _B[::1]),  # action, signal, goes_on, alive
    *(_B, _B, _F, _F, types.float64[::1], _2, _2),  # mixed, double, gamma, norm, rates, Adam's memory
    *(_3, _3, _3, _3),  # stale, said, after, gradients
)


def in_steps(
    optimizer: torch.optim.Optimizer,
    layers: Sequence[Tensor],
    count: int,
    pack: Callable[[Sequence[Tensor]], Tensor],
    unpack: Callable[[Tensor], Sequence[Tensor]],
    work: Callable[[Tensor, Tensor, Tensor, Tensor], None],
) -> None:
    """Let work(parameters, rates, mean, square) take `count` of Adam's steps in place, on tables that pack makes.

    rates: lr, beta1, beta2, epsilon and the steps taken before. `unpack` turns a table into what `layers` are.
    """
    group, memory = optimizer.param_groups[0], [optimizer.state[p] for p in layers]
    for p, kept in zip(layers, memory, strict=True):
        if not kept:
            kept |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    tables = [[p.detach() for p in layers], *([kept[k] for kept in memory] for k in ("exp_avg", "exp_avg_sq"))]
    parameters, mean, square = map(pack, tables)
    numbers = [group["lr"], *group["betas"], group["eps"], float(memory[0]["step"])]
    work(parameters, torch.tensor(numbers, dtype=torch.float64), mean, square)
    for table, new in zip(tables, (parameters, mean, square), strict=True):
        for kept, changed in zip(table, unpack(new), strict=True):
            kept.copy_(changed)
    for kept in memory:
        kept["step"] += count


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
    plan, signal, R = fused.plan_of(layers), memory.signal.flatten(0, 2), M * steps
    parts, signal = fused.parts_of(R), signal if signal.dim() == 2 else signal[:, None].expand(-1, N)
    mask = memory.mask.flatten(0, 2) if memory.mask.dim() == 5 else torch.ones(1, 1, 0, dtype=torch.bool)
    # Step t of episode k of seed s lies at (t S + s) K + k; all T + 1 steps of an episode are rows one after the other.
    seed, time = torch.arange(S)[:, None, None] * K, torch.arange(steps) * (S * K)
    places = (which[..., None] + seed + time).flatten(2)
    scratch = [torch.empty(shape) for shape in ((S * N, R, int(plan[0][-1])), (S, N, R), (S, N, R))]
    kept = (memory.action.flatten(0, 2), signal, memory.goes_on.flatten(), memory.alive.flatten())

    def work(parameters: Tensor, rates: Tensor, mean: Tensor, square: Tensor) -> None:
        gradients = parameters.new_empty((len(parameters), S * N // len(parameters) * parts, parameters.shape[1]))
        fused.run(
            *(_q_steps, S * N * parts, memory.obs.flatten(0, 2), parameters, plan, fused.CODES[activation]),
            *(fused.flat(old)[0], places, mask, *kept, mixed, double, gamma),
            *(0.0 if max_norm is None else max_norm, rates, mean, square, *scratch, gradients),
        )

    def pack(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([p.flatten(1) for p in parts], 1)

    in_steps(optimizer, layers, count, pack, lambda table: fused.unflat(table, layers), work)
