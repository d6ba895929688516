"""Pointers to structs, in compiled code: ``header.last_seq += 1``.

Passing, returning or assigning a struct copies nothing: to Numba a record is a pointer. A null one
is false; nothing of it may be read. Fields are signed: to Numba, what comes of two narrow unsigned
numbers, or of a range over one, is a uint64, and that with an int64 makes a float64.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from streamrnn.kernels.structs import Struct

__all__ = ["address", "field_address", "pointer_to"]


def pointer_to(struct: type[Struct]) -> Any:
    """Return the compiled function from an int64 address to a struct; 0 gives a null one."""
    record = numba.from_dtype(struct.dtype)

    def at(typingctx: Any, address: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return record(types.int64), codegen

    return intrinsic(at)


@intrinsic
def address(typingctx: Any, struct: types.Type) -> Any:
    """Return the address of a struct."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(struct), codegen


@intrinsic(prefer_literal=True)
def field_address(typingctx: Any, struct: Any, name: Any) -> Any:
    """Return the address of the field with a literal name."""
    offset = struct.offset(name.literal_value)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        start = builder.ptrtoint(args[0], ir.IntType(64))
        return builder.add(start, ir.IntType(64)(offset))

    return types.int64(struct, name), codegen


@overload(bool, strict=False)
def _is_not_null(struct: Any) -> Any:
    if isinstance(struct, types.Record):
        return lambda struct: address(struct) != 0
    return None
