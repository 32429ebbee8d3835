"""A vector type for numba kernels: LANES neighbouring channels as one value.

Loops over channels that are left to LLVM's vectoriser need alias checks and may fall back to scalar
code unseen. Here every operation is on an LLVM vector from the start; the back end splits it into
whatever registers the machine has (AVX-512, AVX2, NEON). Only what the kernels use is defined.
Arrays must have unit stride in their last dimension.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16
_FLAGS = ("contract",)  # multiply-add may fuse; nothing that would touch NaN, infinity or order


class Vector(types.Type):
    """LANES numbers of ``dtype`` (a numba float type)."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ir.FloatType() if self.dtype.bitwidth == 32 else ir.DoubleType(), LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


class Expression:
    """A vector value inside a kernel being built; operators emit instructions."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def bits(self) -> int:
        """Width of one lane."""
        return 64 if isinstance(self.value.type.element, ir.DoubleType) else 32

    def lift(self, other: Expression | float) -> ir.Value:
        """``other`` as a value of this type."""
        if isinstance(other, Expression):
            return other.value
        return ir.Constant(self.value.type, [float(other)] * LANES)

    def _emit(self, emit: Callable[..., ir.Value], left: ir.Value, right: ir.Value) -> Expression:
        return Expression(self.builder, emit(left, right, flags=_FLAGS))

    def __add__(self, other: Expression | float) -> Expression:
        return self._emit(self.builder.fadd, self.value, self.lift(other))

    def __sub__(self, other: Expression | float) -> Expression:
        return self._emit(self.builder.fsub, self.value, self.lift(other))

    def __rsub__(self, other: float) -> Expression:
        return self._emit(self.builder.fsub, self.lift(other), self.value)

    def __mul__(self, other: Expression | float) -> Expression:
        return self._emit(self.builder.fmul, self.value, self.lift(other))

    def __truediv__(self, other: Expression | float) -> Expression:
        return self._emit(self.builder.fdiv, self.value, self.lift(other))

    def __rtruediv__(self, other: float) -> Expression:
        return self._emit(self.builder.fdiv, self.lift(other), self.value)

    def where(
        self, relation: str, other: Expression | float, yes: Expression | float, no: Expression | float
    ) -> Expression:
        """Per lane: ``yes`` if ``self relation other``, else ``no`` (so too where either is NaN)."""
        mask = self.builder.fcmp_ordered(relation, self.value, self.lift(other))
        return Expression(self.builder, self.builder.select(mask, self.lift(yes), self.lift(no)))

    def clamp(self, low: Expression | float, high: Expression | float) -> Expression:
        """``self`` between ``low`` and ``high``; NaN stays."""
        raised = self.where("<", low, low, self)
        return raised.where(">", high, high, raised)

    def integer(self) -> ir.Value:
        """The lanes' bits as integers."""
        return self.builder.bitcast(self.value, ir.VectorType(ir.IntType(self.bits), LANES))

    def floating(self, integers: ir.Value) -> Expression:
        """Integers' bits as lanes."""
        return Expression(self.builder, self.builder.bitcast(integers, self.value.type))


def _splat(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    lane0 = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(lane0, ir.Constant(kind, ir.Undefined), mask)


def to_expression(
    context: Any, builder: ir.IRBuilder, value: ir.Value, given: Any, vector: Vector
) -> Expression:
    """An argument of numba type ``given`` as a vector: numbers are cast and repeated."""
    if not isinstance(given, Vector):
        value = _splat(builder, context.cast(builder, value, given, vector.dtype), vector.llvm)
    return Expression(builder, value)


def _register_operator(op: Callable[..., Any]) -> None:
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            vectors = [arg for arg in args if isinstance(arg, Vector)]
            if len(args) == 2 and vectors:
                return signature(vectors[0], *args)
            return None

    infer_global(op)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        left, right = (
            to_expression(context, builder, value, given, sig.return_type)
            for value, given in zip(args, sig.args, strict=True)
        )
        return op(left, right).value

    lower_builtin(op, Vector, Vector)(lower)
    lower_builtin(op, Vector, types.Number)(lower)
    lower_builtin(op, types.Number, Vector)(lower)


for _op in (operator.add, operator.sub, operator.mul, operator.truediv):
    _register_operator(_op)


def _pointer(context: Any, builder: Any, array: Any, kind: Any, index: Any, index_type: Any) -> ir.Value:
    struct = context.make_array(kind)(context, builder, array)
    indices = cgutils.unpack_tuple(builder, index, len(index_type))
    indices = [context.cast(builder, i, t, types.intp) for i, t in zip(indices, index_type, strict=True)]
    return cgutils.get_item_pointer(context, builder, kind, struct, indices, wraparound=False)


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """``array[index : index + LANES]`` as a Vector; ``index`` is a tuple of one integer a dimension."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        return builder.load(
            builder.bitcast(pointer, vector.llvm.as_pointer()), align=vector.dtype.bitwidth // 8
        )

    return vector(array, index), codegen


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index : index + LANES] = value``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        vector = sig.args[2]
        builder.store(
            args[2], builder.bitcast(pointer, vector.llvm.as_pointer()), align=vector.dtype.bitwidth // 8
        )
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def load_lanes(typing: Any, array: Any, index: Any, count: Any) -> Any:
    """As ``load``, but of ``count`` lanes; the others are zero."""
    # an intrinsic rather than a function: numba counts references to arrays at each function's borders
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        slot = cgutils.alloca_once(builder, vector.llvm)
        full = builder.icmp_signed("==", args[2], args[2].type(LANES))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                loaded = builder.load(
                    builder.bitcast(pointer, vector.llvm.as_pointer()), align=vector.dtype.bitwidth // 8
                )
                then_block = builder.block
            with otherwise:
                builder.store(ir.Constant(vector.llvm, [0.0] * LANES), slot)
                lanes = builder.bitcast(slot, pointer.type)
                with cgutils.for_range(builder, args[2]) as loop:
                    lane = builder.load(builder.gep(pointer, [loop.index]))
                    builder.store(lane, builder.gep(lanes, [loop.index]))
                gathered = builder.load(slot)
                otherwise_block = builder.block
        value = builder.phi(vector.llvm)
        value.add_incoming(loaded, then_block)
        value.add_incoming(gathered, otherwise_block)
        return value

    return vector(array, index, types.intp), codegen


@intrinsic
def store_lanes(typing: Any, array: Any, index: Any, value: Any, count: Any) -> Any:
    """As ``store``, but of ``count`` lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        vector = sig.args[2]
        slot = cgutils.alloca_once(builder, vector.llvm)
        full = builder.icmp_signed("==", args[3], args[3].type(LANES))
        with builder.if_else(full, likely=True) as (then, otherwise):
            with then:
                builder.store(
                    args[2],
                    builder.bitcast(pointer, vector.llvm.as_pointer()),
                    align=vector.dtype.bitwidth // 8,
                )
            with otherwise:
                builder.store(args[2], slot)
                lanes = builder.bitcast(slot, pointer.type)
                with cgutils.for_range(builder, args[3]) as loop:
                    lane = builder.load(builder.gep(lanes, [loop.index]))
                    builder.store(lane, builder.gep(pointer, [loop.index]))
        return context.get_dummy_value()

    return types.void(array, index, value, types.intp), codegen


@intrinsic
def splat_like(typing: Any, array: Any, value: Any) -> Any:
    """``value`` in every lane, of the dtype of ``array``."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return to_expression(context, builder, args[1], sig.args[1], vector).value

    return vector(array, value), codegen


@intrinsic
def reduce_add(typing: Any, value: Any) -> Any:
    """The sum of the lanes, as a balanced tree."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        total, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    total,
                    ir.Constant(total.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(start, start + width))),
                )
                for start in (0, width)
            ]
            total = builder.fadd(*halves)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return value.dtype(value), codegen


@njit
def aligned_zeros(n: int, m: int, like: Any) -> Any:
    """Zeros ``(n, m, LANES)`` of the dtype of ``like``; no vector crosses a cache line (64 bytes)."""
    padding = 64 // like.itemsize
    buffer = np.zeros(n * m * LANES + padding, like.dtype)
    skip = (-buffer.ctypes.data % 64) // like.itemsize
    return buffer[skip : skip + n * m * LANES].reshape((n, m, LANES))
