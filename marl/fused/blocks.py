"""What all kernels are made of: a block of 64 rows goes through all layers, and back, in the innermost cache.

Hidden units are computed again in the backward pass rather than kept. Inside a block features are contiguous, so that
all three products of a layer,
    y = W x,      dx = W' dy,      dW = dy x',
are C[m, n] += sum_k A[m, k] B[k, n] with n contiguous in C and B: one kernel (`product`) that holds 4 x 64 sums in
registers. Loops run over slices: a loop over sums of indices would not run in vector registers.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

BLOCK = 64  # rows that go through all layers together
REGISTER = 16  # numbers in a vector register
LANES = 8  # what widths are padded to: half a register
HIGH = 4  # rows of a tile
WIDE = 4 if binding.get_host_cpu_features().get("avx512f") else 1  # registers that a row of a tile fills
CODES = {"relu": 0, "tanh": 1}
inner = numba.njit(fastmath=True, error_model="numpy", inline="never")


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


@inner
def product(work, rows, width, depth, c, c_row, z, z_row, a, a_row, a_col, b, b_row):
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


def padded(size: int) -> int:
    """The next multiple of LANES."""
    return (size + LANES - 1) // LANES * LANES


WT, W, BIAS, UNITS, SLOPES, GRAD_WT, GRAD_BIAS, CONSTANTS, WIDTH = range(9)  # what lies in a workspace, for every layer


def layout(sizes: Any) -> tuple[Any, int]:
    """Where each part of a workspace begins [9, layers + 1], and how long it is."""
    depth = len(sizes) - 1
    at = np.zeros((9, depth + 1), np.int64)
    at[WIDTH] = [padded(size) for size in sizes]
    at[CONSTANTS] = 0  # a row of zeros, then a one
    end = 0
    for size in sizes:
        end = max(end, padded(size))
    at[CONSTANTS, 1], end = end, end + LANES
    for k in range(depth + 1):
        at[UNITS, k], at[SLOPES, k] = end, end + BLOCK * padded(sizes[k])
        end += 2 * BLOCK * padded(sizes[k])
    for k in range(depth):
        wide, high = padded(sizes[k + 1]), padded(sizes[k])
        at[WT, k], at[W, k], at[GRAD_WT, k] = end, end + high * wide, end + 2 * high * wide
        end += 3 * high * wide
        at[BIAS, k], at[GRAD_BIAS, k] = end, end + wide
        end += (1 + HIGH) * wide
    return at, end


@inner
def read(work, at, sizes, parameters):
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


@inner
def write(work, at, sizes, gradient):
    """The gradient of what `read` read."""
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


@inner
def gather(work, start, width, x, first, rows):
    """x[:, first : first + rows] into the workspace, rows by features; rows up to a multiple of HIGH are zeros."""
    features, high = x.shape[0], tiled(rows)
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
def tiled(rows):
    return (rows + HIGH - 1) // HIGH * HIGH


@inner
def scatter(work, start, width, y, first, rows):
    """The inverse of `gather`."""
    block = work[start : start + rows * width].reshape(rows, width)
    for i in range(y.shape[0]):
        told = y[i, first : first + rows]
        for r in range(rows):
            told[r] = block[r, i]


@inner
def squash(units, code):
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


@inner
def unsquash(slopes, units, code):
    """The chain rule through the activation, told from what came out of it."""
    if code == 0:
        for k in range(len(units)):
            slopes[k] = slopes[k] if units[k] > 0 else np.float32(0)
    else:
        for k in range(len(units)):
            slopes[k] *= np.float32(1) - units[k] * units[k]


@inner
def go_up(work, at, sizes, rows, code):
    """The network on a block whose inputs lie in the workspace."""
    depth = len(sizes) - 1
    for k in range(depth):
        wide, y = at[WIDTH, k + 1], at[UNITS, k + 1]
        high, bias = at[WIDTH, k], at[BIAS, k]
        product(work, rows, wide, sizes[k], y, wide, bias, 0, at[UNITS, k], high, 1, at[WT, k], wide)
        if k < depth - 1:
            squash(work[y : y + rows * wide], code)


@inner
def go_down(work, at, sizes, rows, code, to_inputs):
    """The chain rule on the same block, from the slopes of its outputs; adds to the gradients."""
    for k in range(len(sizes) - 2, -1, -1):
        wide, high, dy = at[WIDTH, k + 1], at[WIDTH, k], at[SLOPES, k + 1]
        dw, db, zero, one = at[GRAD_WT, k], at[GRAD_BIAS, k], at[CONSTANTS, 0], at[CONSTANTS, 1]
        product(work, HIGH, wide, rows, db, wide, db, wide, one, 0, 0, dy, wide)
        product(work, tiled(sizes[k]), wide, rows, dw, wide, dw, wide, at[UNITS, k], 1, high, dy, wide)
        if k or to_inputs:
            dx = at[SLOPES, k]
            product(work, rows, high, sizes[k + 1], dx, high, zero, 0, dy, wide, 1, at[W, k], high)
        if k:
            unsquash(work[dx : dx + rows * high], work[at[UNITS, k] : at[UNITS, k] + rows * high], code)


@numba.njit(inline="always")
def share(rows, part, parts):
    """The rows of one of several equal parts, in whole blocks."""
    blocks = (rows + BLOCK - 1) // BLOCK
    return blocks * part // parts * BLOCK, min(rows, blocks * (part + 1) // parts * BLOCK)
