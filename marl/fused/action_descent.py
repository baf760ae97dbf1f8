"""COMA's critic in compiled code: what every own action would be worth, and all gradient steps of its fit in one call.

Built on `blocks`; the equal in plain torch is `critic.ActionValue` and the loop of `Chain.fit`. Here
as there the first layer is computed once for all agents of a cell, a (step, episode) pair: h = W_v view + b +
sum_j W_a[j, a_j], and agent i reads squash(h - W_a[i, a_i] + who_i). Of a one-hot action only a row of W_a is added.
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
from marl.fused.blocks import (
    BLOCK,
    CODES,
    SLOPES,
    UNITS,
    WIDTH,
    go_down,
    go_up,
    inner,
    read,
    share,
    squash,
    tiled,
    unsquash,
    write,
)
from marl.fused.kernels import SIGNATURES, parts_of, plan_of, run
from marl.fused.objective import gap_of


@numba.njit(inline="always")
def _sections(sizes1, sizes):
    """Where in a network's numbers the layers behind the first begin, then W_a [N,A,H], who [N,H] and its bias [H]."""
    first, rest = (sizes1[0] + 1) * sizes1[1], 0
    for k in range(len(sizes) - 1):
        rest += (sizes[k] + 1) * sizes[k + 1]
    return first, first + rest


@numba.njit(inline="always")
def _add(to, at, what, begin, size, times):
    """to[at : at + size] += times what[begin : begin + size]; a loop over slices runs in vector registers."""
    a, b = to[at : at + size], what[begin : begin + size]
    for k in range(size):
        a[k] += times * b[k]


@inner
def _joint(work, at, sizes, view, action, cells, numbers, tables, A):
    """h [cells, H] of some cells and the bias of `who`, where the outputs of the first layer lie."""
    V, H, wide = sizes[0], sizes[1], at[WIDTH, 1]
    N, start = action.shape[1], at[UNITS, 0]
    for c in range(len(cells)):
        x, seen = work[start + c * at[WIDTH, 0] :][:V], view[cells[c]]
        for i in range(V):
            x[i] = seen[i]
    work[start + len(cells) * at[WIDTH, 0] : start + tiled(len(cells)) * at[WIDTH, 0]] = 0
    go_up(work, at, sizes, tiled(len(cells)), 0)
    for c in range(len(cells)):
        h = at[UNITS, 1] + c * wide
        _add(work, h, numbers, tables + N * (A + 1) * H, H, np.float32(1))
        for j in range(N):
            _add(work, h, numbers, tables + (j * A + action[cells[c], j]) * H, H, np.float32(1))


@inner
def _answers(work, at, sizes, code, joint, at1, action, cells, first, rows, numbers, tables):
    """Q of all own actions in rows (cell, agent) first .. first + rows of the cells whose h is known."""
    N, H, A, wide = action.shape[1], sizes[0], sizes[-1], at[WIDTH, 0]
    who = tables + N * A * H
    for r in range(rows):
        c, i = (first + r) // N, (first + r) % N
        x, h = work[at[UNITS, 0] + r * wide :][:H], joint[at1[UNITS, 1] + c * at1[WIDTH, 1] :][:H]
        own, one = numbers[tables + (i * A + action[cells[c], i]) * H :][:H], numbers[who + i * H :][:H]
        for k in range(H):
            x[k] = h[k] - own[k] + one[k]
    work[at[UNITS, 0] + rows * wide : at[UNITS, 0] + tiled(rows) * wide] = 0
    squash(work[at[UNITS, 0] : at[UNITS, 0] + rows * wide], code)
    go_up(work, at, sizes, tiled(rows), code)


@inner
def _back(work, at, sizes, code, joint, at1, action, cells, first, rows, aim, old, unit, clip, gradient, tables):
    """The chain rule for rows that were answered, down to h; adds to the gradients."""
    N, H, A, wide = action.shape[1], sizes[0], sizes[-1], at[WIDTH, -1]
    work[at[SLOPES, -1] : at[SLOPES, -1] + tiled(rows) * wide] = 0
    for r in range(rows):
        cell, i = cells[(first + r) // N], (first + r) % N
        taken = r * wide + action[cell, i]
        gap = gap_of(work[at[UNITS, -1] + taken], aim[cell, i], old[cell, i], clip)
        work[at[SLOPES, -1] + taken] = 2 * unit[cell] * gap
    go_down(work, at, sizes, tiled(rows), code, True)
    wide, x, dx = at[WIDTH, 0], at[UNITS, 0], at[SLOPES, 0]
    unsquash(work[dx : dx + rows * wide], work[x : x + rows * wide], code)
    for r in range(rows):
        c, i = (first + r) // N, (first + r) % N
        own, one = tables + (i * A + action[cells[c], i]) * H, tables + (N * A + i) * H
        _add(joint, at1[SLOPES, 1] + c * at1[WIDTH, 1], work, dx + r * wide, H, np.float32(1))
        _add(gradient, own, work, dx + r * wide, H, np.float32(-1))
        _add(gradient, one, work, dx + r * wide, H, np.float32(1))


@inner
def _learn(
    work, at, sizes, code, joint, at1, sizes1, view, action, cells, aim, old, unit, clip, numbers, gradient,
):  # fmt: skip
    """The gradient of one seed's networks on some cells."""
    N, H, A, wide = action.shape[1], sizes[0], sizes[-1], at1[WIDTH, 1]
    rest, tables = _sections(sizes1, sizes)
    gradient[tables:] = 0
    read(joint, at1, sizes1, numbers)
    read(work, at, sizes, numbers[rest:])
    for begin in range(0, len(cells), BLOCK):
        some = cells[begin : begin + BLOCK]
        _joint(joint, at1, sizes1, view, action, some, numbers, tables, A)
        joint[at1[SLOPES, 1] : at1[SLOPES, 1] + tiled(len(some)) * wide] = 0
        for first in range(0, len(some) * N, BLOCK):
            rows = min(BLOCK, len(some) * N - first)
            _answers(work, at, sizes, code, joint, at1, action, some, first, rows, numbers, tables)
            _back(work, at, sizes, code, joint, at1, action, some, first, rows, aim, old, unit, clip, gradient, tables)
        for c in range(len(some)):
            dh = at1[SLOPES, 1] + c * wide
            _add(gradient, tables + N * (A + 1) * H, joint, dh, H, np.float32(1))
            for j in range(N):
                _add(gradient, tables + (j * A + action[some[c], j]) * H, joint, dh, H, np.float32(1))
        go_down(joint, at1, sizes1, tiled(len(some)), 0, False)
    write(joint, at1, sizes1, gradient)
    write(work, at, sizes, gradient[rest:])


def _judge(view, parameters, sizes, at, space, code, sizes1, at1, space1, action, every, parts, y):
    """view [S,R,V], action [S,R,N] -> y [S,R,N,A]; every: 0 .. R - 1."""
    (S, R, N, A), (rest, tables) = y.shape, _sections(sizes1, sizes)
    for worker in numba.prange(len(space)):
        work, joint = space[worker], space1[worker]
        for task in range(worker, S * parts, len(space)):
            s, (b, e) = task // parts, share(R, task % parts, parts)
            numbers = parameters[s]
            read(joint, at1, sizes1, numbers)
            read(work, at, sizes, numbers[rest:])
            for begin in range(b, e, BLOCK):
                some = every[begin : min(begin + BLOCK, e)]
                _joint(joint, at1, sizes1, view[s], action[s], some, numbers, tables, A)
                for first in range(0, len(some) * N, BLOCK):
                    rows = min(BLOCK, len(some) * N - first)
                    _answers(work, at, sizes, code, joint, at1, action[s], some, first, rows, numbers, tables)
                    for r in range(rows):
                        for a in range(A):
                            q = work[at[UNITS, -1] + r * at[WIDTH, -1] + a]
                            y[s, some[(first + r) // N], (first + r) % N, a] = q


def _fit(
    view, parameters, sizes, at, space, code, sizes1, at1, space1, action, order, pieces, aim, old, alive, clip, norm,
    rates, mean, square, unit, gradients,
):  # fmt: skip
    """All gradient steps of one fit; see `descend`. unit [S,R] and gradients [S,parts,.] are scratch."""
    (passes, S, cells), parts, N = order.shape, gradients.shape[1], action.shape[2]
    for step in range(passes * pieces):
        piece = step % pieces
        begin = cells // pieces * piece + min(piece, cells % pieces)
        end = begin + cells // pieces + (piece < cells % pieces)
        for s in range(S):
            live = 0
            for cell in order[step // pieces, s, begin:end]:
                live += alive[s, cell]
            for cell in order[step // pieces, s, begin:end]:
                unit[s, cell] = alive[s, cell] / np.float32(max(1, live * N))
        for worker in numba.prange(len(space)):
            for task in range(worker, S * parts, len(space)):
                s, (b, e) = task // parts, share(end - begin, task % parts, parts)
                _learn(
                    space[worker], at, sizes, code, space1[worker], at1, sizes1, view[s], action[s],
                    order[step // pieces, s, begin + b : begin + e], aim[s], old[s], unit[s], clip,
                    parameters[s], gradients[s, task % parts],
                )  # fmt: skip
        follow(parameters, gradients, S, norm, rates, step, mean, square)


_F, _I, _B = types.float32, types.int64, types.boolean
_2, _3 = _F[:, ::1], _F[:, :, ::1]
_PLANS = (_3, _2, _I[::1], _I[:, ::1], _2, _I, _I[::1], _I[:, ::1], _2)  # view, parameters, plan, activation, plan
SIGNATURES[_judge] = types.void(*_PLANS, _I[:, :, ::1], _I[::1], _I, _F[:, :, :, ::1])
SIGNATURES[_fit] = types.void(
    *(*_PLANS, _I[:, :, ::1], _I[:, :, ::1], _I),  # action, order, pieces
    *(_3, _3, _B[:, ::1], _F, _F),  # aim, old, alive, clip, norm
    *(types.float64[::1], _2, _2, _2, _3),  # rates, Adam's memory, unit, gradients
)


def pack(layers: Sequence[Tensor]) -> Tensor:
    """[S, .] of W_1 [S,H,V+NA], b_1, W_who [S,H,N], b_who, then all W and all b of the rest, each [S,out,in or 1]."""
    first, bias, who, shift, *rest = (p.detach() for p in layers)
    V = first.shape[2] - who.shape[2] * rest[len(rest) // 2 - 1].shape[1]
    tables = (first[:, :, V:].transpose(1, 2), who.transpose(1, 2), shift)
    return torch.cat([p.flatten(1) for p in (first[:, :, :V], bias, *rest, *tables)], 1)


def unpack(table: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `pack`: tensors of the shapes that the layers have."""
    first, bias, who, shift, *rest = layers
    (S, H, F), N = first.shape, who.shape[2]
    NA = N * rest[len(rest) // 2 - 1].shape[1]
    sizes = [H * (F - NA), H, *(p[0].numel() for p in rest), NA * H, N * H, H]
    seen, b, *behind, actions, agents, own = table.split(sizes, 1)
    whole = torch.cat((seen.view(S, H, F - NA), actions.view(S, NA, H).transpose(1, 2)), 2)
    agents = agents.view(S, N, H).transpose(1, 2)
    small = [part.view(p.shape) for part, p in zip(behind, rest, strict=True)]
    return [whole, b.view(bias.shape), agents, own.view(shift.shape), *small]


def _plans(layers: Sequence[Tensor], V: int) -> tuple[Any, Any]:
    """Workspaces of the layers behind the first and of the first."""
    return plan_of(layers[4:]), plan_of((layers[0][:, :, :V], layers[1]))


def judge(layers: Sequence[Tensor], activation: str, view: Tensor, action: Tensor) -> Tensor:
    """Q [S,R,N,A] of every own action; view [S,R,V], action [S,R,N], layers as of `pack`."""
    (S, R, V), N = view.shape, action.shape[2]
    plan, plan1 = _plans(layers, V)
    y, parts = view.new_empty(S, R, N, int(plan[0][-1])), parts_of(R)
    about = (*plan1, action, torch.arange(R), parts, y)
    run(_judge, S * parts, view, pack(layers), plan, CODES[activation], *about)
    return y


def descend(
    layers: Sequence[Tensor],
    activation: str,
    optimizer: torch.optim.Optimizer,
    view: Tensor,
    action: Tensor,
    order: Tensor,
    pieces: int,
    aim: Tensor,
    old: Tensor,
    alive: Tensor,
    clip: float | None = None,
    max_norm: float | None = None,
) -> None:
    """Take passes x pieces gradient steps in place: Q of the actions taken comes nearer to `aim` (`critic.error`).

    Args: view [S,R,V], action, aim and old [S,R,N], alive [S,R], order [passes,S,R] shuffled numbers of rows.
    """
    S, R, V = view.shape
    plan, plan1 = _plans(layers, V)
    parts = parts_of(R // pieces)

    def work(parameters: Tensor, rates: Tensor, mean: Tensor, square: Tensor) -> None:
        scratch = (parameters.new_empty(S, R), parameters.new_empty(S, parts, parameters.shape[1]))
        run(
            *(_fit, S * parts, view, parameters, plan, CODES[activation]),
            *(*plan1, action, order.contiguous(), pieces, aim, old, alive, -1.0 if clip is None else clip),
            *(0.0 if max_norm is None else max_norm, rates, mean, square, *scratch),
        )

    in_steps(optimizer, layers, order.shape[0] * pieces, pack, lambda table: unpack(table, layers), work)
