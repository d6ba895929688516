"""Finding a NaN among float32 values, sixteen at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i32

__all__ = ["has_nan"]

_NUM_LANES = 16
_LANES_BYTES = 4 * _NUM_LANES
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000  # of the bits of a float32


@intrinsic
def _nan_lanes(typingctx: Any, address: types.Type) -> Any:
    """Return a bit for each of the sixteen values at an address: whether it is a NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), _NUM_LANES)
        values = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=4)
        lanes = builder.fcmp_unordered("uno", values, values)
        return builder.zext(builder.bitcast(lanes, ir.IntType(_NUM_LANES)), ir.IntType(64))

    return types.int64(types.int64), codegen


@jit
def has_nan(y: int, num_bytes: int) -> bool:
    """Tell whether any of the float32 in ``num_bytes`` at y, aligned to 4, is a NaN."""
    found = 0
    k = 0
    while k + _LANES_BYTES <= num_bytes:
        found |= _nan_lanes(y + k)
        k += _LANES_BYTES
    largest = 0
    while k < num_bytes:
        largest = max(largest, load_i32(y + k) & _MAGNITUDE)
        k += 4
    return found != 0 or largest > _INFINITY
