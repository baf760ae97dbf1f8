"""A step of play in one call: views in, probabilities and actions out, with weights that were laid out once for all.

Built on `blocks`; the equal in plain torch is `Actor.forward`, or `learn.q_learning.Explorer`, and
then `rollout.sample`. With a few hundred rows the words between operations cost more than the operations.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numba.core import types
from torch import Tensor

from marl.fused.blocks import BIAS, BLOCK, CODES, UNITS, WIDTH, WT, go_up, inner, padded, share, tiled
from marl.fused.kernels import SIGNATURES, plan_of, ready
from marl.types import Act

TASK = 512  # rows of one network that make a task


@inner
def _load(work, at, sizes, packed):
    """Transposed weights and biases, as `_packed` has them, into the workspace."""
    k0 = 0
    for k in range(len(sizes) - 1):
        size = at[WIDTH, k] * at[WIDTH, k + 1]
        work[at[WT, k] : at[WT, k] + size] = packed[k0 : k0 + size]
        k0 += size
        work[at[BIAS, k] : at[BIAS, k] + at[WIDTH, k + 1]] = packed[k0 : k0 + at[WIDTH, k + 1]]
        k0 += at[WIDTH, k + 1]


@inner
def _see(work, start, width, obs, b0, n0, first, rows, group):
    """Rows first .. first + rows of what agents see, row r being agent n0 + r % group of episode b0 + r // group."""
    O = obs.shape[2]
    block = work[start : start + rows * width].reshape(rows, width)
    if obs.strides[2] > obs.strides[0]:
        for i in range(O):
            for r in range(rows):
                block[r, i] = obs[b0 + (first + r) // group, n0 + (first + r) % group, i]
    else:
        for r in range(rows):
            place, seen = block[r], obs[b0 + (first + r) // group, n0 + (first + r) % group]
            for i in range(O):
                place[i] = seen[i]


@inner
def _choose(z, legal, scale, epsilon, p):
    """Probabilities p [A] from outputs z [A]: softmax(scale z), or with epsilon >= 0 epsilon-greedy."""
    A, top, best, count = len(p), np.float32(-np.inf), 0, 0
    for a in range(A):
        if not len(legal) or legal[a]:
            count += 1
            if z[a] > top:
                top, best = z[a], a
    if epsilon >= 0:
        for a in range(A):
            p[a] = epsilon / np.float32(count) if not len(legal) or legal[a] else np.float32(0)
        p[best] += np.float32(1) - epsilon
    else:
        total = np.float32(0)
        for a in range(A):
            p[a] = np.exp((z[a] - top) * scale) if not len(legal) or legal[a] else np.float32(0)
            total += p[a]
        for a in range(A):
            p[a] /= total


@inner
def _sampled(p, u):
    """`rollout.sample`: sums in double precision, compared in single."""
    total = 0.0
    for a in range(len(p)):
        total += p[a]
    bar, below, a = u * np.float32(total), 0.0, 0
    for k in range(len(p)):
        below += p[k]
        a += np.float32(below) <= bar
    return a


def _acts(obs, packed, sizes, at, space, code, shared, legal, u, scale, epsilon, probs, action):
    """obs [B,N,O], u [B,N], legal [B,N,A] or [1,1,0] -> probs [B,N,A], action [B,N]; rows seed-major."""
    (B, N, O), A = obs.shape, sizes[-1]
    group = N if shared else 1
    R = B * N // len(packed)
    parts = (R + TASK - 1) // TASK
    for worker in numba.prange(len(space)):
        work = space[worker]
        for task in range(worker, len(packed) * parts, len(space)):
            p, part = task // parts, task % parts
            b0, n0 = (p * R // N, 0) if shared else (p // N * R, p % N)
            _load(work, at, sizes, packed[p])
            begin, end = share(R, part, parts)
            for first in range(begin, end, BLOCK):
                rows, wide = min(BLOCK, end - first), at[WIDTH, 0]
                _see(work, at[UNITS, 0], wide, obs, b0, n0, first, rows, group)
                for r in range(tiled(rows)):
                    for i in range(O, sizes[0]):
                        work[at[UNITS, 0] + r * wide + i] = np.float32(i - O == (first + r) % group)
                go_up(work, at, sizes, tiled(rows), code)
                for r in range(rows):
                    b, n = b0 + (first + r) // group, n0 + (first + r) % group
                    z = work[at[UNITS, -1] + r * at[WIDTH, -1] :][:A]
                    allowed = legal[b, n] if legal.size else legal[0, 0]
                    _choose(z, allowed, scale, epsilon, probs[b, n])
                    action[b, n] = _sampled(probs[b, n], u[b, n])


_F, _I = types.float32, types.int64
SIGNATURES[_acts] = types.void(
    *(_F[:, :, :], _F[:, ::1], _I[::1], _I[:, ::1], _F[:, ::1], _I, types.boolean, types.boolean[:, :, :], _F[:, :]),
    *(_F, _F, _F[:, :, ::1], _I[:, ::1]),
)


def _packed(layers: Sequence[Tensor]) -> Tensor:
    """[P, .] for each layer W' [high, wide] and b [wide], padded with zeros."""
    depth, parts = len(layers) // 2, []
    for weight, bias in zip(layers[:depth], layers[depth:], strict=True):
        P, high, wide = weight.shape
        table = weight.new_zeros(P, padded(wide) + 1, padded(high))
        table[:, :wide, :high] = weight.detach().transpose(1, 2)
        table[:, -1, :high] = bias.detach()[..., 0]
        parts.append(table.flatten(1))
    return torch.cat(parts, 1)


def acting(
    layers: Sequence[Tensor], activation: str, shared: bool, temperature: float = 1.0, epsilon: float = -1.0
) -> Act:
    """(obs [B,N,O], mask, u [B,N]) -> probabilities [B,N,A] and actions [B,N] under the parameters as they are now.

    softmax(outputs / temperature), or with epsilon >= 0 epsilon-greedy. Network s (shared) or (s, i) serves seed s;
    a shared one reads one-hot i behind what agent i sees.
    """
    packed, (sizes, at, space) = _packed(layers), plan_of(layers)
    weights, nothing = packed.numpy(), np.ones((1, 1, 0), bool)
    A, code, networks = int(sizes[-1]), CODES[activation], len(packed)

    def act(obs: Tensor, mask: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor]:
        B, N, _ = obs.shape
        probs, action = np.empty((B, N, A), np.float32), np.empty((B, N), np.int64)
        kernel, workers = ready(_acts, networks * -(-(B * N // networks) // TASK))
        legal = nothing if mask is None else mask.numpy()
        about = (code, shared, legal, u.numpy(), 1 / temperature, epsilon)
        kernel(obs.numpy(), weights, sizes, at, space[:workers], *about, probs, action)
        return torch.from_numpy(probs), torch.from_numpy(action)

    return act
