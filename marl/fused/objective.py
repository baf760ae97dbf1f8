"""How much better would a policy do if its outputs moved? The slopes of a policy gradient's objective, row by row.

The equal in plain torch is `learn.policy_gradient.loss`. A row's outputs fill whole vector registers, so that
exponentials of all its actions, padding included, cost one evaluation.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic
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
    share,
    tiled,
    write,
)
from marl.fused.kernels import SIGNATURES, flat, parts_of, run, unflat

NEVER = np.float32(-1e30)  # the output of what is not allowed
LEAST = np.float32(-104)  # the log of the smallest number that is not 0, about
_small = numba.njit(fastmath=True, error_model="numpy", inline="always")


def _same_bits(source, target, kind):
    """The 32 bits of one type, read as another."""

    @intrinsic
    def cast(typingctx, value):
        def codegen(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], kind())

        return target(source), codegen

    return cast


_as_float = _same_bits(types.int32, types.float32, ir.FloatType)
_as_int = _same_bits(types.float32, types.int32, lambda: ir.IntType(32))


@_small
def exp(x):
    """e^x for x <= 88, from 2^n and a polynomial of the rest (Cephes expf), within 2 units in the last place."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    x = x - n * np.float32(0.693359375)
    x = x - n * np.float32(-2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * (x * x) + x + np.float32(1)
    return y * _as_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@_small
def log(x):
    """ln x for normal x > 0: exponent, and 2 artanh((m - 1) / (m + 1)) of the mantissa m in [.71, 1.42)."""
    bits = _as_int(x)
    n = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
    m = _as_float(np.int32(bits - np.int32(n << np.int32(23))))
    s = (m - np.float32(1)) / (m + np.float32(1))
    t = s * s
    y = np.float32(0.1111111111)
    y = y * t + np.float32(0.1428571429)
    y = y * t + np.float32(0.2)
    y = y * t + np.float32(0.3333333333)
    y = y * t + np.float32(1)
    return np.float32(2) * s * y + np.float32(n) * np.float32(0.69314718056)


@inner
def _exponentials(z, e, top, rows, wide):
    """e = exp(z - top of the row), 0 for what is never done."""
    for r in range(rows):
        best = top[r]
        said, out = z[r * wide :][:wide], e[r * wide :][:wide]
        for a in range(wide):  # over slices: a loop over sums of indices would not run in vector registers
            y = exp(said[a] - best)
            out[a] = y if said[a] > np.float32(-1e29) else np.float32(0)


@inner
def _logs(x, out, rows):
    for r in range(rows):
        out[r] = log(x[r])


@inner
def _ratios(taken, old, out, rows):
    """pi(a|o) / pi_old(a|o)."""
    for r in range(rows):
        out[r] = exp(min(taken[r] - old[r], np.float32(80)))


@inner
def _close(z, rows, wide, A):
    """Padding is never done."""
    for r in range(rows):
        for a in range(A, wide):
            z[r * wide + a] = NEVER


@inner
def _pulls(z, dz, total, rest, slope, weight, rows, wide, entropy):
    """dz = -weight times the slopes, but for the slope of the action taken; dz comes in as exponentials, total too.

    total goes out as sum_a p(a) log p(a).
    """
    for r in range(rows):
        inverse, last, spread = np.float32(1) / total[r], rest[r], np.float32(0)
        said, out = z[r * wide :][:wide], dz[r * wide :][:wide]
        if entropy:
            for a in range(wide):
                spread += out[a] * inverse * max(said[a] - last, LEAST)
        w, s = weight[r] * inverse, slope[r] - entropy * spread
        for a in range(wide):
            out[a] *= w * (s + entropy * max(said[a] - last, LEAST))
        total[r] = spread


@inner
def slopes(z, dz, rows, wide, A, action, credit, old, weight, scratch, entropy, clip):
    """The sum of weight (gain + entropy H(pi)) over rows, and -weight times its slopes at the outputs z in dz.

    z, dz [rows * wide], padded (z is changed there); action, credit, old, weight [rows]; illegal actions come with
    z = NEVER; scratch [5, BLOCK]. clip < 0: gain is REINFORCE's, else PPO's.
    """
    top, total, rest, taken, ratio = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    _close(z, rows, wide, A)
    for r in range(rows):
        best = NEVER
        for a in range(A):
            best = max(best, z[r * wide + a])
        top[r] = best
    _exponentials(z, dz, top, rows, wide)
    for r in range(rows):
        summed = np.float32(0)
        for a in range(A):
            summed += dz[r * wide + a]
        total[r] = summed
    _logs(total, rest, rows)
    for r in range(rows):
        rest[r] += top[r]
        taken[r] = z[r * wide + action[r]] - rest[r]
    gain = np.float32(0)
    if clip >= 0:
        _ratios(taken, old, ratio, rows)
        for r in range(rows):
            c, q = credit[r], ratio[r]
            kept = min(max(q, np.float32(1) - clip), np.float32(1) + clip)
            gain += weight[r] * min(q * c, kept * c)
            ratio[r] = q * c if kept == q or q * c < kept * c else np.float32(0)
    else:
        for r in range(rows):
            gain += weight[r] * taken[r] * credit[r]
            ratio[r] = credit[r]
    _pulls(z, dz, total, rest, ratio, weight, rows, wide, entropy)
    for r in range(rows):
        dz[r * wide + action[r]] -= weight[r] * ratio[r]
        gain -= weight[r] * entropy * total[r]
    return gain


@inner
def gap_of(said, aim, old, clip):
    """Half the slope of `critic.error` in what was said."""
    gap = said - aim
    if clip >= 0:
        moved = said - old
        kept = old + min(max(moved, -clip), clip) - aim
        if kept * kept > gap * gap:
            gap = kept if abs(moved) < clip else np.float32(0)
    return gap


def _policy(
    x, parameters, sizes, at, space, code, action, credit, old, weight, legal, entropy, clip, losses, gradients
):
    """Minus the objective of a policy gradient, and its gradient, in one go: see `policy_loss`."""
    S, C, _, R = x.shape
    groups, A = S * C // len(parameters), sizes[-1]
    parts = gradients.shape[1] // groups
    for worker in numba.prange(len(space)):
        work = space[worker]
        for task in range(worker, S * C * parts, len(space)):
            p, part = task // parts, task % parts
            s, c = p // C, p % C
            read(work, at, sizes, parameters[p // groups])
            begin, end = share(R, part, parts)
            total, scratch, weights = 0.0, np.empty((5, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
            taken, credits, before = np.zeros(BLOCK, np.int64), np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
            for first in range(begin, end, BLOCK):
                rows, wide = min(BLOCK, end - first), at[WIDTH, -1]
                high = tiled(rows)
                gather(work, at[UNITS, 0], at[WIDTH, 0], x[s, c], first, rows)
                go_up(work, at, sizes, high, code)
                z = work[at[UNITS, -1] : at[UNITS, -1] + high * wide]
                dz = work[at[SLOPES, -1] : at[SLOPES, -1] + high * wide]
                weights[rows:high] = 0
                for r in range(rows):
                    k = first + r
                    taken[r], credits[r], weights[r] = action[s, c, k], credit[s, c, k], weight[s, c, k]
                    before[r] = old[s, c, k] if clip >= 0 else np.float32(0)
                    if legal.size:
                        for a in range(A):
                            if not legal[s, c, a, k]:
                                z[r * wide + a] = NEVER
                total -= slopes(z, dz, high, wide, A, taken, credits, before, weights, scratch, entropy, clip)
                go_down(work, at, sizes, high, code, False)
            losses[s, c, part] = total
            write(work, at, sizes, gradients[p // groups, task % (groups * parts)])


_F, _I = types.float32, types.int64
_3 = _F[:, :, :]
SIGNATURES[_policy] = types.void(
    *(_F[:, :, :, :], _F[:, ::1], _I[::1], _I[:, ::1], _F[:, ::1], _I),  # x, parameters, plan, activation
    *(_I[:, :, :], _3, _3, _3, types.boolean[:, :, :, :], _F, _F),  # action, credit, old, weight, legal, entropy, clip
    *(types.float64[:, :, ::1], _F[:, :, ::1]),  # losses, gradients
)


class _Objective(torch.autograd.Function):
    """Losses [S] whose gradient was found with them."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, gradients: Sequence[Tensor], *layers: Tensor) -> Tensor:
        """Keep the gradients."""
        ctx.gradients = gradients
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Each seed's gradient times the slope of its own loss."""
        scale = grad.repeat_interleave(len(ctx.gradients[0]) // len(grad))[:, None, None]
        return None, None, *(g * scale for g in ctx.gradients)


def policy_loss(
    x: Tensor,
    layers: Sequence[Tensor],
    activation: str,
    action: Tensor,
    credit: Tensor,
    weight: Tensor,
    old: Tensor | None = None,
    legal: Tensor | None = None,
    entropy: float = 0.0,
    clip: float | None = None,
) -> Tensor:
    """[S] - sum weight (gain + entropy H(pi)), gain as in `learn.policy_gradient.loss`, its gradient in the same pass.

    x [S,C,in,R]; action, credit, weight, old (log probability when acting) [S,C,R]; legal [S,C,A,R] bool.
    """
    parameters, plan = flat(layers)
    S, C, _, R = x.shape
    groups = S * C // len(parameters)
    parts = parts_of(R)
    gradients = x.new_empty((len(parameters), groups * parts, parameters.shape[1]))
    losses = x.new_empty((S, C, parts), dtype=torch.float64)
    allowed = torch.ones(1, 1, 0, 1, dtype=torch.bool) if legal is None else legal
    arguments = (x, parameters, plan, CODES[activation], action, credit, credit if old is None else old, weight)
    run(_policy, S * C * parts, *arguments, allowed, entropy, -1.0 if clip is None else clip, losses, gradients)
    total = gradients[:, 0] if groups * parts == 1 else gradients.sum(1)
    return _Objective.apply(losses.sum((1, 2)).to(x.dtype), unflat(total, layers), *layers)
