"""The floating-point mode in which every step runs.

Round to nearest, no traps, and subnormal numbers taken as zero: a state that decays towards zero
would otherwise make each of its steps a hundred times slower. The mode belongs to the thread, so
the caller of a step sets it on entry, and in a foreign thread restores it on leaving.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["enter_float_mode", "leave_float_mode"]

_IS_ARM = platform.machine().lower() in ("arm64", "aarch64")
_WANTED = 1 << 24 if _IS_ARM else 0x9FC0  # FPCR.FZ; MXCSR: FTZ, DAZ, every exception masked
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _emit_read(builder: ir.IRBuilder) -> ir.Value:
    if _IS_ARM:
        kind = ir.FunctionType(_I64, [])
        return builder.asm(kind, "mrs $0, fpcr", "=r", [], side_effect=True)
    place = cgutils.alloca_once(builder, _I32)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t])
    read = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
    builder.call(read, [builder.bitcast(place, cgutils.voidptr_t)])
    return builder.zext(builder.load(place), _I64)


def _emit_write(builder: ir.IRBuilder, mode: ir.Value) -> None:
    if _IS_ARM:
        kind = ir.FunctionType(ir.VoidType(), [_I64])
        builder.asm(kind, "msr fpcr, $0", "r", [mode], side_effect=True)
        return
    place = cgutils.alloca_once(builder, _I32)
    builder.store(builder.trunc(mode, _I32), place)
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t])
    write = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
    builder.call(write, [builder.bitcast(place, cgutils.voidptr_t)])


@intrinsic
def enter_float_mode(typingctx: Any) -> Any:
    """Set the mode for steps, and return the one before it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        before = _emit_read(builder)
        _emit_write(builder, _I64(_WANTED))
        return before

    return types.int64(), codegen


@intrinsic
def leave_float_mode(typingctx: Any, mode: types.Type) -> Any:
    """Restore the mode that `enter_float_mode` returned."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _emit_write(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
