"""Passes over the channels of one place, one vector at a time in registers.

All work on whole vectors: places have room up to the next multiple of 16 floats, and what a pass
makes of that room is set to zero where it is not zero by itself.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from streamrnn.kernels.cpu.vectors import VECTOR, Emitter
from streamrnn.kernels.jit import jit
from streamrnn.kernels.vector_width import WIDTH

__all__ = [
    "accumulate",
    "add",
    "add_scaled",
    "larger",
    "magnitude",
    "multiply",
    "scale",
    "scale_by",
]


def _vector_op(emit: Callable[..., ir.Value], num_vectors: int, num_scalars: int = 0) -> Any:
    """Make an intrinsic ``(out, vectors..., scalars...)``: one vector of each at its address."""

    def one_vector(typingctx: Any, places: types.Type, scalars: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            e = Emitter(builder)
            at = [builder.extract_value(args[0], i) for i in range(num_vectors + 1)]
            vectors = [e.load(address, align=4) for address in at[1:]]
            factors = [e.splat(builder.extract_value(args[1], i)) for i in range(num_scalars)]
            e.store(emit(e, *vectors, *factors), at[0], align=4)
            return context.get_dummy_value()

        addresses = types.containers.UniTuple(types.int64, num_vectors + 1)
        numbers = types.containers.UniTuple(types.float32, num_scalars)
        return types.void(addresses, numbers), codegen

    return intrinsic(one_vector)


def _emit_magnitude(e: Emitter, re: ir.Value, im: ir.Value) -> ir.Value:
    kind = ir.FunctionType(VECTOR, [VECTOR])
    root = cgutils.get_or_insert_function(e.builder.module, kind, f"llvm.sqrt.v{WIDTH}f32")
    return e.builder.call(root, [e.fma(re, re, e.builder.fmul(im, im))])


def _emit_larger(e: Emitter, x: ir.Value, y: ir.Value) -> ir.Value:
    """Emit the larger one, or a NaN where there is one."""
    b = e.builder
    return b.select(b.fcmp_unordered("<=", y, x), b.select(b.fcmp_unordered("uno", y, y), y, x), y)


_add = _vector_op(lambda e, x, y: e.builder.fadd(x, y), 2)
_multiply = _vector_op(lambda e, x, y: e.builder.fmul(x, y), 2)
_larger = _vector_op(_emit_larger, 2)
_magnitude = _vector_op(_emit_magnitude, 2)
_accumulate = _vector_op(lambda e, x, y, z: e.fma(x, y, z), 3)
_scale_by = _vector_op(lambda e, x, f: e.builder.fmul(x, f), 1, 1)
_add_scaled = _vector_op(lambda e, x, y, f, g: e.fma(y, g, e.builder.fmul(x, f)), 2, 2)


@jit
def add(x, y, out, size):
    """Compute ``out = x + y``; all are addresses, and ``out`` may be one of the others."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _add((out + i, x + i, y + i), ())


@jit
def multiply(x, y, out, size):
    """Compute ``out = x * y``."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _multiply((out + i, x + i, y + i), ())


@jit
def larger(x, y, out, size):
    """Compute the larger of both, element by element."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _larger((out + i, x + i, y + i), ())


@jit
def magnitude(re, im, out, size):
    """Compute ``out = sqrt(re^2 + im^2)``."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _magnitude((out + i, re + i, im + i), ())


@jit
def accumulate(x, weights, out, size):
    """Compute ``out += x * weights``, rounded once."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _accumulate((out + i, x + i, weights + i, out + i), ())


@jit
def scale(x, gain, shift, out, size):
    """Compute ``out = x * gain + shift``, rounded once."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _accumulate((out + i, x + i, gain + i, shift + i), ())


@jit
def scale_by(x, factor, out, size):
    """Compute ``out = x * factor``."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _scale_by((out + i, x + i), (factor,))


@jit
def add_scaled(x, factor, y, other_factor, out, size):
    """Compute ``out = x * factor + y * other_factor``."""
    for i in range(0, 4 * size, 4 * WIDTH):
        _add_scaled((out + i, x + i, y + i), (factor, other_factor))
