"""How much better would a policy do if its outputs moved? The slopes of a policy gradient's objective, row by row.

Compiled by numba for `marl.fused` and `marl.descent`; the equal in plain torch is `learn.policy_gradient.loss`. A row's
outputs fill whole vector registers, so that exponentials of all its actions, padding included, cost one evaluation.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

BLOCK = 64  # rows that go through all layers together
LANES = 8  # what widths are padded to: half a vector register
NEVER = np.float32(-1e30)  # the output of what is not allowed
LEAST = np.float32(-104)  # the log of the smallest number that is not 0, about
_inner = numba.njit(fastmath=True, error_model="numpy", inline="never")
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


@_inner
def _exponentials(z, e, top, rows, wide):
    """e = exp(z - top of the row), 0 for what is never done."""
    for r in range(rows):
        best = top[r]
        said, out = z[r * wide :][:wide], e[r * wide :][:wide]
        for a in range(wide):  # over slices: a loop over sums of indices would not run in vector registers
            y = exp(said[a] - best)
            out[a] = y if said[a] > np.float32(-1e29) else np.float32(0)


@_inner
def _logs(x, out, rows):
    for r in range(rows):
        out[r] = log(x[r])


@_inner
def _ratios(taken, old, out, rows):
    """pi(a|o) / pi_old(a|o)."""
    for r in range(rows):
        out[r] = exp(min(taken[r] - old[r], np.float32(80)))


@_inner
def _close(z, rows, wide, A):
    """Padding is never done."""
    for r in range(rows):
        for a in range(A, wide):
            z[r * wide + a] = NEVER


@_inner
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


@_inner
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
