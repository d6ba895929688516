"""Vectors of float32 in LLVM IR: what the tiles and the activations are written with.

The trainer's tiles may be of float64 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from streamrnn.kernels.vector_width import WIDTH

__all__ = ["DOUBLE", "FLOAT", "INT", "VECTOR", "Emitter", "keep_rolled"]

FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()
INT = ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, WIDTH)
_LANES = ir.VectorType(ir.IntType(32), WIDTH)


class _LoopId(ir.MDValue):
    """A distinct node that begins with itself, as LLVM wants a loop's options to be given."""

    def descr(self, buf: Any) -> None:
        operands = ", ".join(node.get_reference() for node in (self, *self.operands))
        buf += (f"distinct !{{ {operands} }}", "\n")


def keep_rolled(branch: ir.Instruction) -> None:
    """Disable LLVM's unrolling of the loop whose head a branch jumps back to."""
    module = branch.module
    option = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    branch.set_metadata("llvm.loop", _LoopId(module, [option], str(len(module.metadata))))


def _indices(values: Sequence[int]) -> ir.Constant:
    """Return which lanes a shuffle takes."""
    kind = ir.VectorType(ir.IntType(32), len(values))
    return ir.Constant(kind, [ir.Constant(ir.IntType(32), value) for value in values])


class Emitter:
    """Emits operations on vectors of `WIDTH` float32 at the builder's place.

    Every product that is added goes through one fused multiply-add, and no fast-math flag is ever
    set, so LLVM may neither contract nor reorder: the bits of a lane are the same at every width
    and in every tile.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
        Where to emit.
    num_joined : int
        How many vectors are worked on side by side, as one value: every operation becomes so many
        instructions next to each other, and while one waits for its operands another runs. Loads,
        stores and splats are of single vectors; see `join` and `split`.
    element : llvmlite.ir.Type
        `FLOAT`, or `DOUBLE`: as many lanes, each of float64 then.
    """

    def __init__(
        self, builder: ir.IRBuilder, num_joined: int = 1, element: ir.Type = FLOAT
    ) -> None:
        self.builder = builder
        self.element = element
        self.element_bytes = 4 if element is FLOAT else 8
        self.vector = ir.VectorType(element, WIDTH)
        bits = 8 * self.element_bytes
        self._size = WIDTH * num_joined
        self._vector = ir.VectorType(element, self._size)
        self._lane = ir.IntType(bits)
        self._lanes = ir.VectorType(self._lane, self._size)
        # By name: llvmlite's declare_intrinsic refuses vector types.
        kind = ir.FunctionType(self._vector, [self._vector] * 3)
        name = f"llvm.fma.v{self._size}f{bits}"
        self._fma = cgutils.get_or_insert_function(builder.module, kind, name)

    def constant(self, value: float) -> ir.Constant:
        """Return a vector with one value, exact in its type, in every lane."""
        return ir.Constant(self._vector, [ir.Constant(self.element, value)] * self._size)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return ``a * b + c``, rounded once."""
        return self.builder.call(self._fma, [a, b, c])

    def horner(self, coefficients: Sequence[float], x: ir.Value) -> ir.Value:
        """Return the polynomial ``c[0] + c[1] x + c[2] x^2 + ...``."""
        result: ir.Value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            result = self.fma(result, x, self.constant(coefficient))
        return result

    def clamp(self, x: ir.Value, bound: float) -> ir.Value:
        """Return x within [-bound, bound]; a NaN stays a NaN.

        LLVM's minnum and maxnum return the other operand for a NaN, so this compares and selects.
        """
        for sign, order in ((1.0, ">"), (-1.0, "<")):
            limit = self.constant(sign * bound)
            x = self.builder.select(self.builder.fcmp_ordered(order, x, limit), limit, x)
        return x

    def as_lanes(self, x: ir.Value) -> ir.Value:
        """Return the bits of a vector as integer lanes of the same size."""
        return self.builder.bitcast(x, self._lanes)

    def as_floats(self, lanes: ir.Value) -> ir.Value:
        """Return integer lanes as the vector that has these bits."""
        return self.builder.bitcast(lanes, self._vector)

    def lanes(self, value: int) -> ir.Constant:
        """Return a vector with one integer in every lane."""
        return ir.Constant(self._lanes, [ir.Constant(self._lane, value)] * self._size)

    def join(self, vectors: Sequence[ir.Value]) -> ir.Value:
        """Return ``num_joined`` single vectors (1 or 2) as one value."""
        if len(vectors) == 1:
            return vectors[0]
        return self.builder.shuffle_vector(*vectors, _indices(range(2 * WIDTH)))

    def split(self, joined: ir.Value) -> list[ir.Value]:
        """Return the single vectors of a value."""
        if self._size == WIDTH:
            return [joined]
        undefined = ir.Constant(self._vector, ir.Undefined)
        return [
            self.builder.shuffle_vector(joined, undefined, _indices(range(start, start + WIDTH)))
            for start in range(0, self._size, WIDTH)
        ]

    def splat(self, scalar: ir.Value) -> ir.Value:
        """Return a vector with a scalar in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        vector = self.builder.insert_element(undefined, scalar, ir.IntType(32)(0))
        return self.builder.shuffle_vector(vector, undefined, _indices([0] * WIDTH))

    def load(self, address: ir.Value, align: int = 4 * WIDTH) -> ir.Value:
        """Load a vector; its address is a multiple of ``align`` bytes."""
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        return self.builder.load(pointer, align=align)

    def store(self, vector: ir.Value, address: ir.Value, align: int = 4 * WIDTH) -> None:
        """Store a vector; its address is a multiple of ``align`` bytes."""
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        self.builder.store(vector, pointer, align=align)

    def prefetch(self, address: ir.Value) -> None:
        """Ask for the cache line at an address; nothing happens where there is no memory."""
        integer = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] + [integer] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        to_read_and_keep = [integer(value) for value in (0, 3, 1)]
        pointer = self.builder.inttoptr(address, cgutils.voidptr_t)
        self.builder.call(function, [pointer, *to_read_and_keep])

    def load_scalar(self, address: ir.Value) -> ir.Value:
        """Load one element."""
        pointer = self.builder.inttoptr(address, self.element.as_pointer())
        return self.builder.load(pointer, align=self.element_bytes)

    def load_bfloat16(self, address: ir.Value) -> ir.Value:
        """Load a vector of bfloat16, widened; aligned to its own size."""
        halves = ir.VectorType(ir.IntType(16), WIDTH)
        pointer = self.builder.inttoptr(address, halves.as_pointer())
        lanes = self.builder.zext(self.builder.load(pointer, align=2 * WIDTH), _LANES)
        return self.as_floats(self.builder.shl(lanes, self.lanes(16)))

    def load_bfloat16_pair(self, address: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Load two vectors of bfloat16 that share their lanes, widened: one operation each."""
        pointer = self.builder.inttoptr(address, _LANES.as_pointer())
        lanes = self.builder.load(pointer, align=2 * WIDTH)
        low = self.builder.shl(lanes, self.lanes(16))
        high = self.builder.and_(lanes, self.lanes(-0x10000))
        return self.as_floats(low), self.as_floats(high)

    def load_int8(self, address: ir.Value) -> ir.Value:
        """Load a vector of int8 as float32; aligned to its own size."""
        bytes_ = ir.VectorType(ir.IntType(8), WIDTH)
        pointer = self.builder.inttoptr(address, bytes_.as_pointer())
        lanes = self.builder.sext(self.builder.load(pointer, align=WIDTH), _LANES)
        return self.builder.sitofp(lanes, VECTOR)
