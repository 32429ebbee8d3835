"""``c += a @ b`` in float32 for small matrices inside a numba kernel.

BLAS cannot be called there without scipy, and LLVM does not block a loop nest for registers by itself. So
the innermost tile (a few rows by one or two 16-float vectors, kept in registers over the whole sum) is
written in LLVM IR; LLVM turns it into AVX-512, AVX2 or NEON code. All operands are flat arrays with
offsets and row strides, so that slices of projections are read in place.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mambakit.kernels.vector import LANES

# floats of one vector: with AVX-512 a 6 x 2 tile fills 12 of 32 registers, with AVX2 of 8 lanes 12 of 16
WIDTH = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
JIT = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}
# numba compiles a function anew for every literal it is given, but not for these
ZERO, ONE = np.int64(0), np.int64(1)


def _make_tile(rows: int, vectors: int) -> Any:
    """An intrinsic that adds ``a[rows, depth] @ b[depth, vectors * WIDTH]`` to a tile of ``c``."""

    @intrinsic
    def tile(typing_context, c, c0, c_row, a, a0, a_row, a_step, b, b0, b_row, depth):
        signature = types.void(c, *[types.intp] * 2, a, *[types.intp] * 3, b, *[types.intp] * 3)

        def codegen(context, builder, sig, args):
            data = [context.make_array(sig.args[k])(context, builder, value=args[k]).data for k in (0, 3, 7)]
            numbers = [*args[1:3], *args[4:7], *args[8:11]]
            # a function of its own, compiled once a kernel however many places call it
            name = f"mambakit_add_matmul_{rows}x{vectors}x{WIDTH}"
            kind = ir.FunctionType(ir.VoidType(), [v.type for v in (*data, *numbers)])
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            if not function.blocks:
                function.linkage = "linkonce_odr"
                function.attributes.add("noinline")
                define(function)
            builder.call(function, [*data, *numbers])
            return context.get_dummy_value()

        def define(function):
            builder = ir.IRBuilder(function.append_basic_block("entry"))
            c_ptr, a_ptr, b_ptr, c0, c_row, a0, a_row, a_step, b0, b_row, depth = function.args
            index = ir.IntType(64)
            vector = ir.VectorType(ir.FloatType(), WIDTH)
            fma = cgutils.get_or_insert_function(
                function.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{WIDTH}f32"
            )

            def at(pointer, offset):
                return builder.gep(pointer, [offset])

            def vector_at(pointer, offset):
                return builder.bitcast(at(pointer, offset), vector.as_pointer())

            def times(value, k):
                return builder.mul(value, ir.Constant(index, k))

            places = [
                builder.add(builder.add(c0, times(c_row, r)), ir.Constant(index, v * WIDTH))
                for r in range(rows)
                for v in range(vectors)
            ]
            start = [builder.load(vector_at(c_ptr, place), align=4) for place in places]
            before = builder.block
            loop, done = function.append_basic_block("loop"), function.append_basic_block("done")
            builder.cbranch(builder.icmp_signed(">", depth, ir.Constant(index, 0)), loop, done)
            builder.position_at_end(loop)
            step = builder.phi(index)
            step.add_incoming(ir.Constant(index, 0), before)
            sums = [builder.phi(vector) for _ in places]
            for total, value in zip(sums, start, strict=True):
                total.add_incoming(value, before)
            b_at = builder.add(b0, builder.mul(step, b_row))
            rights = [
                builder.load(vector_at(b_ptr, builder.add(b_at, ir.Constant(index, v * WIDTH))), align=4)
                for v in range(vectors)
            ]
            a_at = builder.add(a0, builder.mul(step, a_step))
            zero = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), None)
            updated = []
            for r in range(rows):
                left = builder.load(at(a_ptr, builder.add(a_at, times(a_row, r))))
                left = builder.insert_element(
                    ir.Constant(vector, ir.Undefined), left, ir.Constant(ir.IntType(32), 0)
                )
                left = builder.shuffle_vector(left, ir.Constant(vector, ir.Undefined), zero)
                for v in range(vectors):
                    updated.append(builder.call(fma, [left, rights[v], sums[r * vectors + v]]))
            following = builder.add(step, ir.Constant(index, 1))
            step.add_incoming(following, loop)
            for total, value in zip(sums, updated, strict=True):
                total.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
            builder.position_at_end(done)
            results = [builder.phi(vector) for _ in places]
            for result, value, new in zip(results, start, updated, strict=True):
                result.add_incoming(value, before)
                result.add_incoming(new, loop)
            for place, result in zip(places, results, strict=True):
                builder.store(result, vector_at(c_ptr, place), align=4)
            builder.ret_void()

        return signature, codegen

    return tile


_tile_6x2 = _make_tile(6, 2)
_tile_4x2 = _make_tile(4, 2)
_tile_6x1 = _make_tile(6, 1)
_tile_1x1 = _make_tile(1, 1)


@intrinsic
def transpose_tile(typing_context, source, s0, s_row, target, t0, t_row):
    """``target[t0 + j t_row + i] = source[s0 + i s_row + j]`` for i, j < LANES, through registers."""
    signature = types.void(source, types.intp, types.intp, target, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        s_ptr, t_ptr = (context.make_array(sig.args[k])(context, builder, value=args[k]).data for k in (0, 3))
        vector = ir.VectorType(ir.FloatType(), LANES)

        def vector_at(pointer, start, row, i):
            offset = builder.add(start, builder.mul(row, ir.Constant(ir.IntType(64), i)))
            return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())

        rows = [builder.load(vector_at(s_ptr, args[1], args[2], i), align=4) for i in range(LANES)]
        half = LANES // 2
        # interleaving rows i and i + half moves the top bit of a value's row to the bottom of its column:
        # done log2(LANES) times, rows and columns have changed places
        masks = [
            ir.Constant(
                ir.VectorType(ir.IntType(32), LANES), [k // 2 + start + LANES * (k % 2) for k in range(LANES)]
            )
            for start in (0, half)
        ]
        for _ in range(LANES.bit_length() - 1):
            rows = [
                builder.shuffle_vector(rows[i // 2], rows[i // 2 + half], masks[i % 2]) for i in range(LANES)
            ]
        for j, row in enumerate(rows):
            builder.store(row, vector_at(t_ptr, args[4], args[5], j), align=4)
        return context.get_dummy_value()

    return signature, codegen


@numba.njit(**JIT)
def transpose(source, s0, s_row, rows, columns, target, t_row):
    """``target[j * t_row + i] = source[s0 + i * s_row + j]``."""
    whole_rows, whole_columns = rows // LANES * LANES, columns // LANES * LANES
    for i in range(0, whole_rows, LANES):
        for j in range(0, whole_columns, LANES):
            transpose_tile(source, s0 + i * s_row + j, s_row, target, j * t_row + i, t_row)
    for i in range(rows):
        for j in range(whole_columns if i < whole_rows else 0, columns):
            target[j * t_row + i] = source[s0 + i * s_row + j]


@numba.njit(**JIT)
def add_matmul(c, c0, c_row, a, a0, a_row, a_step, b, b0, b_row, rows, depth, width):
    """``c[c0 + i c_row + j] += sum_k a[a0 + i a_row + k a_step] * b[b0 + k b_row + j]``."""
    j = 0
    while j + 2 * WIDTH <= width:
        i = 0
        while i + 6 <= rows:
            _tile_6x2(c, c0 + i * c_row + j, c_row, a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_row, depth)
            i += 6
        while i + 4 <= rows:
            _tile_4x2(c, c0 + i * c_row + j, c_row, a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_row, depth)
            i += 4
        while i < rows:
            _tile_1x1(c, c0 + i * c_row + j, c_row, a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_row, depth)
            _tile_1x1(
                c,
                c0 + i * c_row + j + WIDTH,
                c_row,
                a,
                a0 + i * a_row,
                a_row,
                a_step,
                b,
                b0 + j + WIDTH,
                b_row,
                depth,
            )
            i += 1
        j += 2 * WIDTH
    while j + WIDTH <= width:
        i = 0
        while i + 6 <= rows:
            _tile_6x1(c, c0 + i * c_row + j, c_row, a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_row, depth)
            i += 6
        while i < rows:
            _tile_1x1(c, c0 + i * c_row + j, c_row, a, a0 + i * a_row, a_row, a_step, b, b0 + j, b_row, depth)
            i += 1
        j += WIDTH
    if j < width:
        for i in range(rows):
            for k in range(depth):
                left = a[a0 + i * a_row + k * a_step]
                for m in range(j, width):
                    c[c0 + i * c_row + m] += left * b[b0 + k * b_row + m]
