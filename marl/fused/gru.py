"""A memory in compiled code: a block of episodes walks through time, and back, while its gates lie in the cache.

Built on `blocks`; the equal in plain torch is the rest of `marl.recurrent`. What becomes of an input
(a perceptron) and what is recalled (U h + b) are two networks of that tier, "see" and "recall": a step is one pass of
each, rows by features, and the gates between them. Gates are computed again on the way back rather than kept.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from numba.core import types
from torch import Tensor

from marl.fused.blocks import (
    BLOCK,
    CODES,
    SLOPES,
    UNITS,
    WIDTH,
    gather,
    go_down,
    go_up,
    inner,
    read,
    scatter,
    share,
    squash,
    tiled,
    write,
)
from marl.fused.kernels import SIGNATURES, flat, parts_of, run, unflat

PARTS = 5  # what a tape holds of a unit and step: r, z, n, U_n h + b'_n, and the memory before


@inner
def _step(see, at, sizes, code, recall, at1, sizes1, x, first, rows):
    """Gates from what is seen at columns first .. of x [in,R] and what is remembered; r, z, n before the last squash.

    Leaves r, z, and n in the outputs of `see`, U h + b in those of `recall`.
    """
    H, half = sizes1[0], np.float32(0.5)
    gather(see, at[UNITS, 0], at[WIDTH, 0], x, first, rows)
    go_up(see, at, sizes, tiled(rows), code)
    go_up(recall, at1, sizes1, tiled(rows), 0)
    for b in range(rows):
        g, said = (
            see[at[UNITS, -1] + b * at[WIDTH, -1] :][: 3 * H],
            recall[at1[UNITS, 1] + b * at1[WIDTH, 1] :][: 3 * H],
        )
        for k in range(2 * H):
            g[k] = half * (g[k] + said[k])
        squash(g[: 2 * H], 1)  # sigmoid(x) = (1 + tanh(x / 2)) / 2
        for k in range(2 * H):
            g[k] = half + half * g[k]
        r, n, heard = g[:H], g[2 * H :], said[2 * H :]
        for k in range(H):
            n[k] += r[k] * heard[k]
        squash(n, 1)


@inner
def _remember(see, at, recall, at1, H, rows):
    """h = (1 - z) n + z h, in the inputs of `recall`."""
    for b in range(rows):
        g, h = see[at[UNITS, -1] + b * at[WIDTH, -1] :][: 3 * H], recall[at1[UNITS, 0] + b * at1[WIDTH, 0] :][:H]
        z, n = g[H : 2 * H], g[2 * H :]
        for k in range(H):
            h[k] = n[k] + z[k] * (h[k] - n[k])


@inner
def _tape(see, at, recall, at1, H, rows, tape):
    """Keep what the way back needs of a step, before the memory changes."""
    for b in range(rows):
        g, said = (
            see[at[UNITS, -1] + b * at[WIDTH, -1] :][: 3 * H],
            recall[at1[UNITS, 1] + b * at1[WIDTH, 1] :][: 3 * H],
        )
        h, kept, heard = recall[at1[UNITS, 0] + b * at1[WIDTH, 0] :][:H], tape[b], said[2 * H :]
        for k in range(3 * H):
            kept[k] = g[k]
        fourth, fifth = kept[3 * H : 4 * H], kept[4 * H :]
        for k in range(H):
            fourth[k] = heard[k]
            fifth[k] = h[k]


@inner
def _step_back(see, at, sizes, code, recall, at1, sizes1, x, dy, first, rows, tape, carry, to_inputs):
    """The chain rule through one step; carry [rows,H] is the slope in the memory after it, and then before it."""
    H, one, wide, high = sizes1[0], np.float32(1), at[WIDTH, -1], at1[WIDTH, 1]
    gather(see, at[UNITS, 0], at[WIDTH, 0], x, first, rows)
    go_up(see, at, sizes, tiled(rows), code)
    see[at[SLOPES, -1] : at[SLOPES, -1] + tiled(rows) * wide] = 0
    recall[at1[SLOPES, 1] : at1[SLOPES, 1] + tiled(rows) * high] = 0
    recall[at1[UNITS, 0] : at1[UNITS, 0] + tiled(rows) * at1[WIDTH, 0]] = 0
    for b in range(rows):
        outer, inner = see[at[SLOPES, -1] + b * wide :][: 3 * H], recall[at1[SLOPES, 1] + b * high :][: 3 * H]
        kept, dh, h = tape[b], carry[b], recall[at1[UNITS, 0] + b * at1[WIDTH, 0] :][:H]
        r, z, n, heard, past = kept[:H], kept[H : 2 * H], kept[2 * H : 3 * H], kept[3 * H : 4 * H], kept[4 * H :]
        dr, dz, dn, dm = outer[:H], outer[H : 2 * H], outer[2 * H :], inner[2 * H :]
        for k in range(H):
            dh[k] += dy[k, first + b]
        for k in range(H):
            h[k] = past[k]
            dz[k] = dh[k] * (past[k] - n[k]) * z[k] * (one - z[k])
        for k in range(H):
            dn[k] = dh[k] * (one - z[k]) * (one - n[k] * n[k])
        for k in range(H):
            dr[k] = dn[k] * heard[k] * r[k] * (one - r[k])
            dm[k] = dn[k] * r[k]
            dh[k] *= z[k]
        for k in range(2 * H):
            inner[k] = outer[k]
    go_down(recall, at1, sizes1, tiled(rows), 0, True)
    go_down(see, at, sizes, tiled(rows), code, to_inputs)
    for b in range(rows):
        dh, dx = carry[b], recall[at1[SLOPES, 0] + b * at1[WIDTH, 0] :][:H]
        for k in range(H):
            dh[k] += dx[k]


def _forward(x, parameters, sizes, at, space, code, recalls, sizes1, at1, space1, before, parts, y):
    """x [S,C,in,T M], before [S,C,H,M] -> y [S,C,H,T M]."""
    (S, C, H, M), R = before.shape, x.shape[3]
    for worker in numba.prange(len(space)):
        see, recall = space[worker], space1[worker]
        for task in range(worker, S * C * parts, len(space)):
            p, (begin, end) = task // parts, share(M, task % parts, parts)
            s, c = p // C, p % C
            read(see, at, sizes, parameters[p])
            read(recall, at1, sizes1, recalls[p])
            for m in range(begin, end, BLOCK):
                rows = min(BLOCK, end - m)
                gather(recall, at1[UNITS, 0], at1[WIDTH, 0], before[s, c], m, rows)
                for first in range(m, R, M):
                    _step(see, at, sizes, code, recall, at1, sizes1, x[s, c], first, rows)
                    _remember(see, at, recall, at1, H, rows)
                    scatter(recall, at1[UNITS, 0], at1[WIDTH, 0], y[s, c], first, rows)


def _backward(
    x,
    parameters,
    sizes,
    at,
    space,
    code,
    recalls,
    sizes1,
    at1,
    space1,
    M,
    dy,
    dx,
    gradients,
    gradients1,
    tapes,
    carries,
):
    """dy [S,C,H,T M] -> gradients [P,parts,.] of both networks and dx [S,C,in,T M] (of size 0 where not asked for)."""
    (S, C, H, R), parts, to_inputs = dy.shape, gradients.shape[1], dx.size > 0
    for worker in numba.prange(len(space)):
        see, recall, tape, carry = space[worker], space1[worker], tapes[worker], carries[worker]
        for task in range(worker, S * C * parts, len(space)):
            p, (begin, end) = task // parts, share(M, task % parts, parts)
            s, c = p // C, p % C
            read(see, at, sizes, parameters[p])
            read(recall, at1, sizes1, recalls[p])
            for m in range(begin, end, BLOCK):
                rows = min(BLOCK, end - m)
                recall[at1[UNITS, 0] : at1[UNITS, 0] + BLOCK * at1[WIDTH, 0]] = 0
                for t in range(R // M):
                    _step(see, at, sizes, code, recall, at1, sizes1, x[s, c], t * M + m, rows)
                    _tape(see, at, recall, at1, H, rows, tape[t])
                    _remember(see, at, recall, at1, H, rows)
                carry[:] = 0
                for t in range(R // M - 1, -1, -1):
                    first = t * M + m
                    _step_back(
                        see, at, sizes, code, recall, at1, sizes1, x[s, c], dy[s, c], first, rows, tape[t], carry,
                        to_inputs,
                    )  # fmt: skip
                    if to_inputs:
                        scatter(see, at[SLOPES, 0], at[WIDTH, 0], dx[s, c], first, rows)
            write(see, at, sizes, gradients[p, task % parts])
            write(recall, at1, sizes1, gradients1[p, task % parts])


_F, _I = types.float32, types.int64
_2, _3, _4 = _F[:, ::1], _F[:, :, ::1], _F[:, :, :, :]
_PLANS = (_4, _2, _I[::1], _I[:, ::1], _2, _I, _2, _I[::1], _I[:, ::1], _2)  # x, see and its plan, recall and its plan
SIGNATURES[_forward] = types.void(*_PLANS, _4, _I, _4)
SIGNATURES[_backward] = types.void(*_PLANS, _I, _4, _4, _3, _3, _F[:, :, :, ::1], _3)


def _networks(layers: Sequence[Tensor]) -> tuple[Any, Any, tuple[Any, ...]]:
    """(numbers of "see", its plan, numbers of "recall" and its plan) of U, b and then all W and b of the perceptron."""
    recalls, plan1 = flat(layers[:2])
    parameters, plan = flat(layers[2:])
    return parameters, plan, (recalls, *plan1)


@lru_cache(maxsize=8)
def _tapes(workers: int, steps: int, H: int) -> tuple[Tensor, Tensor]:
    """Room for a block of episodes and for the slope in its memory; kept, for fresh pages cost as much as the gates."""
    return torch.empty(workers, steps, BLOCK, PARTS * H), torch.empty(workers, BLOCK, H)


def remembered(x: Tensor, before: Tensor, layers: Sequence[Tensor], activation: str) -> Tensor:
    """x [S,C,in,T M], step by step, and memory [S,C,H,M] -> memory after each step [S,C,H,T M], with no gradient.

    layers: U [P,3H,H], b [P,3H,1], all W and then all b of the perceptron; a network for each of the P = S C.
    """
    (S, C, H, M), (parameters, plan, about) = before.shape, _networks(layers)
    parts, y = parts_of(M), x.new_empty(S, C, H, x.shape[3])
    run(_forward, S * C * parts, x, parameters, plan, CODES[activation], *about, before, parts, y)
    return y


class Remembered(torch.autograd.Function):
    """`remembered` from an empty memory, and its gradient; called with (activation, M, x, *layers)."""

    @staticmethod
    def forward(ctx: Any, activation: str, M: int, x: Tensor, *layers: Tensor) -> Tensor:
        """Keep the inputs only."""
        ctx.activation, ctx.M = activation, M
        ctx.save_for_backward(x, *layers)
        return remembered(x, x.new_zeros(1, 1, 1, 1).expand(*x.shape[:2], layers[0].shape[2], M), layers, activation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gates anew, and the chain rule through time, block by block."""
        x, *layers = ctx.saved_tensors
        parameters, plan, about = _networks(layers)
        (S, C, H, R), M, P = grad.shape, ctx.M, len(parameters)
        parts = parts_of(M)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[2] else x[:0]
        found = [x.new_empty(P, parts, table.shape[1]) for table in (parameters, about[0])]
        scratch = _tapes(len(plan[2]), R // M, H)
        code = CODES[ctx.activation]
        run(_backward, S * C * parts, x, parameters, plan, code, *about, M, grad, dx, *found, *scratch)
        see, recall = (f.sum(1) for f in found)
        slopes = (*unflat(recall, layers[:2]), *unflat(see, layers[2:]))
        return None, None, dx if ctx.needs_input_grad[2] else None, *slopes
