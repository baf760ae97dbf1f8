"""A small network is quicker when its layers are computed together, a few rows at a time, than one after the other.

The fast CPU tier behind `marl.networks`, compiled by numba on first use and cached on disk. A block of 64 rows goes
through all layers and back while it lies in the innermost cache; hidden units are computed again in the backward pass
rather than kept. Inside a block features are contiguous, so that all three products of a layer,
    y = W x,      dx = W' dy,      dW = dy x',
are C[m, n] += sum_k A[m, k] B[k, n] with n contiguous in C and B: one kernel (`_tile`) that holds 4 x 64 sums in
registers. float32 only. Outputs and gradients are those of the torch tier to 1e-6 of their size (see tests).
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from marl.objective import BLOCK as BLOCK
from marl.objective import LANES, NEVER, slopes

REGISTER = 16  # numbers in a vector register
HIGH = 4  # rows of a tile
WIDE = 4 if binding.get_host_cpu_features().get("avx512f") else 1  # registers that a row of a tile fills
CODES = {"relu": 0, "tanh": 1}


def _tile_of(width: int, lanes: int = REGISTER) -> Any:
    """The kernel for `width` registers a row: written in LLVM's own terms, for the sums must stay in registers."""

    @intrinsic
    def tile(typingctx, work, c, c_row, z, z_row, a, a_row, a_col, b, b_row, depth):
        """C[m, n] = Z[m, n] + sum_k A[m, k] B[k, n], all of them inside `work`: m < 4, n < width lanes, k < depth."""

        def codegen(context, builder, signature, args):
            array, *rest = args
            c, c_row, z, z_row, a, a_row, a_col, b, b_row, depth = rest
            data = context.make_array(signature.args[0])(context, builder, array).data
            vector = ir.VectorType(ir.FloatType(), lanes)
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f32")

            def place(start, row, m, col=None, n=0):
                offset = builder.add(start, builder.mul(row, ir.Constant(row.type, m)))
                offset = builder.add(offset, ir.Constant(row.type, n)) if col is None else builder.add(offset, col)
                return builder.gep(data, [offset])

            def vectors(pointer):
                return builder.bitcast(pointer, vector.as_pointer())

            def load(pointer):
                value = builder.load(vectors(pointer))
                value.align = 4
                return value

            cells = [(m, v) for m in range(HIGH) for v in range(width)]
            sums = {cell: cgutils.alloca_once(builder, vector) for cell in cells}
            for m, v in cells:
                builder.store(load(place(z, z_row, m, n=v * lanes)), sums[m, v])
            with cgutils.for_range(builder, depth) as loop:
                below = builder.add(b, builder.mul(loop.index, b_row))
                row = [
                    load(builder.gep(data, [builder.add(below, ir.Constant(b.type, v * lanes))])) for v in range(width)
                ]
                across = builder.mul(loop.index, a_col)
                for m in range(HIGH):
                    one = builder.insert_element(
                        ir.Constant(vector, ir.Undefined), builder.load(place(a, a_row, m, across)), ir.IntType(32)(0)
                    )
                    same = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
                    spread = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), same)
                    for v in range(width):
                        builder.store(builder.call(fma, [spread, row[v], builder.load(sums[m, v])]), sums[m, v])
            for m, v in cells:
                builder.store(builder.load(sums[m, v]), vectors(place(c, c_row, m, n=v * lanes))).align = 4
            return context.get_dummy_value()

        return types.void(work, *[types.int64] * 10), codegen

    return tile


_tile4, _tile2, _tile1, _tile_half = _tile_of(4), _tile_of(2), _tile_of(1), _tile_of(1, LANES)
_inner = numba.njit(fastmath=True, error_model="numpy", inline="never")


@_inner
def _product(work, rows, width, depth, c, c_row, z, z_row, a, a_row, a_col, b, b_row):
    """C [rows, width] = Z + A [rows, depth] B [depth, width]; rows a multiple of HIGH, width one of LANES.

    A matrix is (where it begins, numbers from row to row, from column to column); columns of C, Z and B lie together.
    """
    n = 0
    while n < width:
        left = (width - n) // REGISTER
        wide = min(left, 1) if WIDE == 1 or left < 2 else 2 if left < 4 else 4
        for m in range(0, rows, HIGH):
            cm, zm, am = c + m * c_row + n, z + m * z_row + n, a + m * a_row
            if wide == 4:
                _tile4(work, cm, c_row, zm, z_row, am, a_row, a_col, b + n, b_row, depth)
            elif wide == 2:
                _tile2(work, cm, c_row, zm, z_row, am, a_row, a_col, b + n, b_row, depth)
            elif wide == 1:
                _tile1(work, cm, c_row, zm, z_row, am, a_row, a_col, b + n, b_row, depth)
            else:
                _tile_half(work, cm, c_row, zm, z_row, am, a_row, a_col, b + n, b_row, depth)
        n += max(LANES, wide * REGISTER)


def _pad(size: int) -> int:
    """The next multiple of LANES."""
    return (size + LANES - 1) // LANES * LANES


WT, W, BIAS, UNITS, SLOPES, GRAD_WT, GRAD_BIAS, CONSTANTS, WIDTH = range(9)  # what lies in a workspace, for every layer


def _layout(sizes: Any) -> tuple[Any, int]:
    """Where each part of a workspace begins [9, layers + 1], and how long it is."""
    depth = len(sizes) - 1
    at = np.zeros((9, depth + 1), np.int64)
    at[WIDTH] = [_pad(size) for size in sizes]
    at[CONSTANTS] = 0  # a row of zeros, then a one
    end = 0
    for size in sizes:
        end = max(end, _pad(size))
    at[CONSTANTS, 1], end = end, end + LANES
    for k in range(depth + 1):
        at[UNITS, k], at[SLOPES, k] = end, end + BLOCK * _pad(sizes[k])
        end += 2 * BLOCK * _pad(sizes[k])
    for k in range(depth):
        wide, high = _pad(sizes[k + 1]), _pad(sizes[k])
        at[WT, k], at[W, k], at[GRAD_WT, k] = end, end + high * wide, end + 2 * high * wide
        end += 3 * high * wide
        at[BIAS, k], at[GRAD_BIAS, k] = end, end + wide
        end += (1 + HIGH) * wide
    return at, end


@_inner
def _read(work, at, sizes, parameters):
    """One network's W_1 .. W_L, b_1 .. b_L into the workspace, W also transposed; gradients begin at 0."""
    k0, depth = 0, len(sizes) - 1
    for k in range(depth):
        I, O = sizes[k], sizes[k + 1]
        wide, high = at[WIDTH, k + 1], at[WIDTH, k]
        weights = work[at[WT, k] : at[WT, k] + I * wide].reshape(I, wide)
        for o in range(O):
            row, given = work[at[W, k] + o * high :][:I], parameters[k0 + o * I :][:I]
            for i in range(I):  # over slices: a loop over sums of indices would not run in vector registers
                row[i] = given[i]
                weights[i, o] = given[i]
        k0 += O * I
    for k in range(depth):
        work[at[BIAS, k] : at[BIAS, k] + sizes[k + 1]] = parameters[k0 : k0 + sizes[k + 1]]
        k0 += sizes[k + 1]
        wide, high = at[WIDTH, k + 1], at[WIDTH, k]
        work[at[GRAD_WT, k] : at[GRAD_WT, k] + high * wide] = 0
        work[at[GRAD_BIAS, k] : at[GRAD_BIAS, k] + HIGH * wide] = 0


@_inner
def _write(work, at, sizes, gradient):
    """The gradient of what `_read` read."""
    k0, depth = 0, len(sizes) - 1
    for k in range(depth):
        I, O = sizes[k], sizes[k + 1]
        wide = at[WIDTH, k + 1]
        found = work[at[GRAD_WT, k] : at[GRAD_WT, k] + I * wide].reshape(I, wide)
        for o in range(O):
            row = gradient[k0 + o * I :][:I]
            for i in range(I):
                row[i] = found[i, o]
        k0 += O * I
    for k in range(depth):
        gradient[k0 : k0 + sizes[k + 1]] = work[at[GRAD_BIAS, k] : at[GRAD_BIAS, k] + sizes[k + 1]]
        k0 += sizes[k + 1]


@_inner
def _gather(work, start, width, x, first, rows):
    """x[:, first : first + rows] into the workspace, rows by features; rows up to a multiple of HIGH are zeros."""
    features, high = x.shape[0], _high(rows)
    block = work[start : start + high * width].reshape(high, width)
    if x.strides[0] < x.strides[1]:
        for r in range(rows):
            place, seen = block[r], x[:, first + r]
            for i in range(features):
                place[i] = seen[i]
    else:
        for i in range(features):
            seen = x[i, first : first + rows]
            for r in range(rows):
                block[r, i] = seen[r]
    for r in range(rows, high):
        block[r, :features] = 0


@numba.njit(inline="always")
def _high(rows):
    return (rows + HIGH - 1) // HIGH * HIGH


@_inner
def _scatter(work, start, width, y, first, rows):
    """The inverse of `_gather`."""
    block = work[start : start + rows * width].reshape(rows, width)
    for i in range(y.shape[0]):
        told = y[i, first : first + rows]
        for r in range(rows):
            told[r] = block[r, i]


@_inner
def _squash(units, code):
    """The activation in place. tanh as the ratio of polynomials that Eigen uses, within 3 units in the last place."""
    if code == 0:
        for k in range(len(units)):
            units[k] = max(units[k], np.float32(0))
    else:
        for k in range(len(units)):
            x = min(max(units[k], np.float32(-7.90531110763549805)), np.float32(7.90531110763549805))
            s = x * x
            p = np.float32(-2.76076847742355e-16)
            p = p * s + np.float32(2.00018790482477e-13)
            p = p * s + np.float32(-8.60467152213735e-11)
            p = p * s + np.float32(5.12229709037114e-08)
            p = p * s + np.float32(1.48572235717979e-05)
            p = p * s + np.float32(6.37261928875436e-04)
            p = p * s + np.float32(4.89352455891786e-03)
            q = np.float32(1.19825839466702e-06)
            q = q * s + np.float32(1.18534705686654e-04)
            q = q * s + np.float32(2.26843463243900e-03)
            q = q * s + np.float32(4.89352518554385e-03)
            units[k] = x * p / q


@_inner
def _unsquash(slopes, units, code):
    """The chain rule through the activation, told from what came out of it."""
    if code == 0:
        for k in range(len(units)):
            slopes[k] = slopes[k] if units[k] > 0 else np.float32(0)
    else:
        for k in range(len(units)):
            slopes[k] *= np.float32(1) - units[k] * units[k]


@_inner
def _up(work, at, sizes, rows, code):
    """The network on a block whose inputs lie in the workspace."""
    depth = len(sizes) - 1
    for k in range(depth):
        wide, y = at[WIDTH, k + 1], at[UNITS, k + 1]
        high, bias = at[WIDTH, k], at[BIAS, k]
        _product(work, rows, wide, sizes[k], y, wide, bias, 0, at[UNITS, k], high, 1, at[WT, k], wide)
        if k < depth - 1:
            _squash(work[y : y + rows * wide], code)


@_inner
def _down(work, at, sizes, rows, code, to_inputs):
    """The chain rule on the same block, from the slopes of its outputs; adds to the gradients."""
    for k in range(len(sizes) - 2, -1, -1):
        wide, high, dy = at[WIDTH, k + 1], at[WIDTH, k], at[SLOPES, k + 1]
        dw, db, zero, one = at[GRAD_WT, k], at[GRAD_BIAS, k], at[CONSTANTS, 0], at[CONSTANTS, 1]
        _product(work, HIGH, wide, rows, db, wide, db, wide, one, 0, 0, dy, wide)
        _product(work, _high(sizes[k]), wide, rows, dw, wide, dw, wide, at[UNITS, k], 1, high, dy, wide)
        if k or to_inputs:
            dx = at[SLOPES, k]
            _product(work, rows, high, sizes[k + 1], dx, high, zero, 0, dy, wide, 1, at[W, k], high)
        if k:
            _unsquash(work[dx : dx + rows * high], work[at[UNITS, k] : at[UNITS, k] + rows * high], code)


@numba.njit(inline="always")
def _share(rows, part, parts):
    """The rows of one of several equal parts, in whole blocks."""
    blocks = (rows + BLOCK - 1) // BLOCK
    return blocks * part // parts * BLOCK, min(rows, blocks * (part + 1) // parts * BLOCK)


def _outputs(x, parameters, sizes, at, space, code, y):
    """x [S,C,in,R], parameters [P,.] -> y [S,C,out,R]; a network serves S C / P groups."""
    S, C, _, R = x.shape
    groups, parts = S * C // len(parameters), max(1, (R + 511) // 512)
    for worker in numba.prange(len(space)):
        work = space[worker]
        for task in range(worker, S * C * parts, len(space)):
            p, part = task // parts, task % parts
            _read(work, at, sizes, parameters[p // groups])
            begin, end = _share(R, part, parts)
            for first in range(begin, end, BLOCK):
                rows = min(BLOCK, end - first)
                _gather(work, at[UNITS, 0], at[WIDTH, 0], x[p // C, p % C], first, rows)
                _up(work, at, sizes, _high(rows), code)
                _scatter(work, at[UNITS, -1], at[WIDTH, -1], y[p // C, p % C], first, rows)


def _gradients(x, parameters, sizes, at, space, code, dy, dx, gradients):
    """dy [S,C,out,R] -> gradients [P, groups * parts, .] and dx [S,C,in,R] (of size 0 where it is not asked for)."""
    S, C, _, R = x.shape
    groups = S * C // len(parameters)
    parts, to_inputs = gradients.shape[1] // groups, dx.size > 0
    for worker in numba.prange(len(space)):
        work = space[worker]
        for task in range(worker, S * C * parts, len(space)):
            p, part = task // parts, task % parts
            _read(work, at, sizes, parameters[p // groups])
            begin, end = _share(R, part, parts)
            for first in range(begin, end, BLOCK):
                rows = min(BLOCK, end - first)
                _gather(work, at[UNITS, 0], at[WIDTH, 0], x[p // C, p % C], first, rows)
                _up(work, at, sizes, _high(rows), code)
                _gather(work, at[SLOPES, -1], at[WIDTH, -1], dy[p // C, p % C], first, rows)
                _down(work, at, sizes, _high(rows), code, to_inputs)
                if to_inputs:
                    _scatter(work, at[SLOPES, 0], at[WIDTH, 0], dx[p // C, p % C], first, rows)
            _write(work, at, sizes, gradients[p // groups, task % (groups * parts)])


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
            _read(work, at, sizes, parameters[p // groups])
            begin, end = _share(R, part, parts)
            total, scratch, weights = 0.0, np.empty((5, BLOCK), np.float32), np.zeros(BLOCK, np.float32)
            taken, credits, before = np.zeros(BLOCK, np.int64), np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
            for first in range(begin, end, BLOCK):
                rows, wide = min(BLOCK, end - first), at[WIDTH, -1]
                high = _high(rows)
                _gather(work, at[UNITS, 0], at[WIDTH, 0], x[s, c], first, rows)
                _up(work, at, sizes, high, code)
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
                _down(work, at, sizes, high, code, False)
            losses[s, c, part] = total
            _write(work, at, sizes, gradients[p // groups, task % (groups * parts)])


_F, _I = types.float32, types.int64
SIGNATURES = {
    _outputs: types.void(_F[:, :, :, :], _F[:, ::1], _I[::1], _I[:, ::1], _F[:, ::1], _I, _F[:, :, :, :]),
    _gradients: types.void(
        _F[:, :, :, :], _F[:, ::1], _I[::1], _I[:, ::1], _F[:, ::1], _I, _F[:, :, :, :], _F[:, :, :, :], _F[:, :, ::1]
    ),
    _policy: types.void(
        *(
            _F[:, :, :, :],
            _F[:, ::1],
            _I[::1],
            _I[:, ::1],
            _F[:, ::1],
            _I,
            _I[:, :, :],
            _F[:, :, :],
            _F[:, :, :],
            _F[:, :, :],
        ),
        *(types.boolean[:, :, :, :], _F, _F, types.float64[:, :, ::1], _F[:, :, ::1]),
    ),
}


@cache
def _compiled(kernel: Callable[..., None], parallel: bool) -> Any:
    """A kernel for one thread or for as many as torch uses; machine code is kept beside this file."""
    # Numba looks for changes in the kernel's own file only; the blocks that it is made of lie in others as well.
    kernel.__qualname__ = f"{kernel.__name__}_{_sources()}"
    compiler = numba.njit(SIGNATURES[kernel], fastmath=True, error_model="numpy", cache=True, parallel=parallel)
    return compiler(kernel)


@cache
def _sources() -> str:
    """A digest of all files that hold compiled code."""
    texts = (file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return sha256(b"".join(text for text in texts if b"import numba" in text)).hexdigest()[:12]


def ready(kernel: Callable[..., None], tasks: int) -> tuple[Any, int]:
    """A kernel's machine code for so many tasks, and how many workers will share them."""
    workers = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, tasks)  # type: ignore[attr-defined]
    if workers > 1:
        numba.set_num_threads(workers)
    return _compiled(kernel, workers > 1), workers


def run(kernel: Callable[..., None], tasks: int, x: Tensor, parameters: Tensor, plan: Any, *arguments: Any) -> None:
    """A kernel on a workspace for each worker; its other arguments are tensors and numbers."""
    compiled, workers = ready(kernel, tasks)
    sizes, at, space = plan
    seen = (x.detach().numpy() if isinstance(x, Tensor) else x for x in arguments)
    compiled(x.detach().numpy(), parameters.numpy(), sizes, at, space[:workers], *seen)


def parts_of(rows: int) -> int:
    """Tasks that the rows of one network are shared out to: whole blocks, and the same whatever trains beside it."""
    threads = torch.get_num_threads()
    return 1 if threads == 1 else max(1, min(-(-rows // BLOCK), 2 * threads))


@lru_cache(maxsize=64)
def _plan(sizes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """(sizes, where things lie, a workspace for each thread): what lies between the parts of one stays 0."""
    widths = np.array(sizes, np.int64)
    at, end = _layout(widths)
    space = np.zeros((numba.config.NUMBA_NUM_THREADS, end + LANES), np.float32)  # type: ignore[attr-defined]
    space[:, at[CONSTANTS, 1]] = 1
    return widths, at, space


def flat(layers: Sequence[Tensor]) -> tuple[Tensor, tuple[Any, Any, Any]]:
    """(parameters [P, .], plan) of all W [P,out,in] and then all b [P,out,1]."""
    return torch.cat([p.detach().flatten(1) for p in layers], 1), plan_of(layers)


def plan_of(layers: Sequence[Tensor]) -> tuple[Any, Any, Any]:
    """What `_plan` has for networks of these layers."""
    return _plan((layers[0].shape[2], *(w.shape[1] for w in layers[: len(layers) // 2])))


def unflat(total: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """[P, .] as the gradient of each layer."""
    parts = total.split([p[0].numel() for p in layers], 1)
    return [part.reshape(p.shape) for part, p in zip(parts, layers, strict=True)]


def fits(x: Tensor, activation: str) -> bool:
    """Can this tier do it: float32 on the CPU, an activation that it knows?"""
    return x.dtype == torch.float32 and x.device.type == "cpu" and activation in CODES


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
