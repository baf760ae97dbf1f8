"""Networks of the fused tier as torch sees them: outputs, and gradients by autograd, as `marl.networks.multilayer`."""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
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
    read,
    scatter,
    share,
    tiled,
    write,
)
from marl.fused.kernels import SIGNATURES, flat, parts_of, run, unflat


def _outputs(x, parameters, sizes, at, space, code, y):
    """x [S,C,in,R], parameters [P,.] -> y [S,C,out,R]; a network serves S C / P groups."""
    S, C, _, R = x.shape
    groups, parts = S * C // len(parameters), max(1, (R + 511) // 512)
    for worker in numba.prange(len(space)):
        work = space[worker]
        for task in range(worker, S * C * parts, len(space)):
            p, part = task // parts, task % parts
            read(work, at, sizes, parameters[p // groups])
            begin, end = share(R, part, parts)
            for first in range(begin, end, BLOCK):
                rows = min(BLOCK, end - first)
                gather(work, at[UNITS, 0], at[WIDTH, 0], x[p // C, p % C], first, rows)
                go_up(work, at, sizes, tiled(rows), code)
                scatter(work, at[UNITS, -1], at[WIDTH, -1], y[p // C, p % C], first, rows)


def _gradients(x, parameters, sizes, at, space, code, dy, dx, gradients):
    """dy [S,C,out,R] -> gradients [P, groups * parts, .] and dx [S,C,in,R] (of size 0 where it is not asked for)."""
    S, C, _, R = x.shape
    groups = S * C // len(parameters)
    parts, to_inputs = gradients.shape[1] // groups, dx.size > 0
    for worker in numba.prange(len(space)):
        work = space[worker]
        for task in range(worker, S * C * parts, len(space)):
            p, part = task // parts, task % parts
            read(work, at, sizes, parameters[p // groups])
            begin, end = share(R, part, parts)
            for first in range(begin, end, BLOCK):
                rows = min(BLOCK, end - first)
                gather(work, at[UNITS, 0], at[WIDTH, 0], x[p // C, p % C], first, rows)
                go_up(work, at, sizes, tiled(rows), code)
                gather(work, at[SLOPES, -1], at[WIDTH, -1], dy[p // C, p % C], first, rows)
                go_down(work, at, sizes, tiled(rows), code, to_inputs)
                if to_inputs:
                    scatter(work, at[SLOPES, 0], at[WIDTH, 0], dx[p // C, p % C], first, rows)
            write(work, at, sizes, gradients[p // groups, task % (groups * parts)])


_F, _I = types.float32, types.int64
_4 = _F[:, :, :, :]
_PLAN = (_4, _F[:, ::1], _I[::1], _I[:, ::1], _F[:, ::1], _I)  # x, parameters, plan, activation
SIGNATURES[_outputs] = types.void(*_PLAN, _4)
SIGNATURES[_gradients] = types.void(*_PLAN, _4, _4, _F[:, :, ::1])


def network(x: Tensor, layers: Sequence[Tensor], activation: str) -> Tensor:
    """x [S,C,in,R] -> [S,C,out,R], as `multilayer`; layers [P, ...], each network serving S C / P groups in turn."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *layers)):
        return _Network.apply(activation, x, *layers)
    return _values(x, layers, activation)


def _values(x: Tensor, layers: Sequence[Tensor], activation: str) -> Tensor:
    parameters, plan = flat(layers)
    y = x.new_empty((*x.shape[:2], int(plan[0][-1]), x.shape[3]))
    tasks = x.shape[0] * x.shape[1] * ((x.shape[3] + 511) // 512)
    run(_outputs, tasks, x, parameters, plan, CODES[activation], y)
    return y


class _Network(torch.autograd.Function):
    """See `network`."""

    @staticmethod
    def forward(ctx: Any, activation: str, x: Tensor, *layers: Tensor) -> Tensor:
        """Keep the inputs only."""
        ctx.activation = activation
        ctx.save_for_backward(x, *layers)
        return _values(x, layers, activation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Hidden units anew, and the chain rule, block by block."""
        x, *layers = ctx.saved_tensors
        parameters, plan = flat(layers)
        groups = x.shape[0] * x.shape[1] // len(parameters)
        parts = groups * parts_of(x.shape[3])
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else x[:0]
        gradients = x.new_empty((len(parameters), parts, parameters.shape[1]))
        run(_gradients, parts * len(parameters), x, parameters, plan, CODES[ctx.activation], grad, dx, gradients)
        total = gradients[:, 0] if parts == 1 else gradients.sum(1)
        return None, dx if ctx.needs_input_grad[1] else None, *unflat(total, layers)
