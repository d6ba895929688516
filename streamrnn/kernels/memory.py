"""Loads, stores and copies at integer addresses, for compiled code.

The shard loop and the step kernels work on memory that no NumPy array describes: messages, state
rows of several models, blocks of an arena. An address is an int64. Nothing here checks bounds, and
no access needs to be aligned: the callers say why each address is valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np import arrayobj

__all__ = [
    "copy_bytes",
    "copy_floats",
    "fill_bytes",
    "int64_array",
    "load_f32",
    "load_f64",
    "load_i32",
    "load_i64",
    "load_u8",
    "load_u16",
    "load_u32",
    "prefetch",
    "store_f32",
    "store_f64",
    "store_i32",
    "store_i64",
    "store_u8",
    "store_u16",
]


def _make_load(memory: ir.Type, result: types.Type, signed: bool = True) -> Any:
    def load(typingctx: Any, address: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], memory.as_pointer())
            value = builder.load(pointer, align=1)
            wanted = context.get_value_type(result)
            if memory == wanted:
                return value
            return builder.sext(value, wanted) if signed else builder.zext(value, wanted)

        return result(types.int64), codegen

    return intrinsic(load)


def _make_store(memory: ir.Type, argument: types.Type) -> Any:
    def store(typingctx: Any, address: types.Type, value: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], memory.as_pointer())
            item = args[1]
            if item.type != memory:
                item = builder.trunc(item, memory)
            builder.store(item, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, argument), codegen

    return intrinsic(store)


_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))

load_u8 = _make_load(_I8, types.int64, signed=False)
load_u16 = _make_load(_I16, types.int64, signed=False)
load_u32 = _make_load(_I32, types.int64, signed=False)
load_i32 = _make_load(_I32, types.int64)
load_i64 = _make_load(_I64, types.int64)
load_f32 = _make_load(ir.FloatType(), types.float32)
load_f64 = _make_load(ir.DoubleType(), types.float64)
store_u8 = _make_store(_I8, types.int64)
store_u16 = _make_store(_I16, types.int64)
store_i32 = _make_store(_I32, types.int64)
store_i64 = _make_store(_I64, types.int64)
store_f32 = _make_store(ir.FloatType(), types.float32)
store_f64 = _make_store(ir.DoubleType(), types.float64)


@intrinsic
def int64_array(typingctx: Any, address: types.Type, size: types.Type) -> Any:
    """Return memory that is kept alive elsewhere, aligned to 8 bytes, as an array of int64."""
    kind = types.Array(types.int64, 1, "C")

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        item_bytes = context.get_constant(types.intp, 8)
        arrayobj.populate_array(
            array,
            data=builder.inttoptr(args[0], array.data.type),
            shape=cgutils.pack_array(builder, [args[1]]),
            strides=cgutils.pack_array(builder, [item_bytes]),
            itemsize=item_bytes,
            meminfo=None,
        )
        return array._getvalue()

    return kind(types.int64, types.int64), codegen


@intrinsic
def copy_bytes(
    typingctx: Any, target: types.Type, source: types.Type, num_bytes: types.Type
) -> Any:
    """Copy bytes from one address to another; the two must not overlap."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        byte = cgutils.voidptr_t
        cgutils.raw_memcpy(
            builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


_FLOATS = ir.VectorType(ir.FloatType(), 16)


@intrinsic
def copy_floats(
    typingctx: Any, target: types.Type, source: types.Type, num_bytes: types.Type
) -> Any:
    """Copy ``num_bytes``, a multiple of 4, between places that do not overlap, inline.

    A call of memcpy would be felt at every step.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        place = _I64(0)
        for kind, size in ((_FLOATS, 64), (ir.FloatType(), 4)):
            place = _copy_by(builder, kind, size, args, place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _copy_by(
    builder: ir.IRBuilder, kind: ir.Type, size: int, args: Sequence[ir.Value], start: ir.Value
) -> ir.Value:
    """Copy in pieces of one type from ``start`` on, and return where less than one is left."""
    target, source, num_bytes = args
    before = builder.block
    head, body, after = (builder.append_basic_block(f"copy_{name}") for name in "abc")
    end = builder.sub(num_bytes, _I64(size))
    builder.branch(head)
    builder.position_at_end(head)
    place = builder.phi(_I64)
    place.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<=", place, end), body, after)
    builder.position_at_end(body)
    here = builder.inttoptr(builder.add(source, place), kind.as_pointer())
    there = builder.inttoptr(builder.add(target, place), kind.as_pointer())
    builder.store(builder.load(here, align=4), there, align=4)
    place.add_incoming(builder.add(place, _I64(size)), body)
    builder.branch(head)
    builder.position_at_end(after)
    return place


@intrinsic
def fill_bytes(typingctx: Any, target: types.Type, num_bytes: types.Type, byte: types.Type) -> Any:
    """Set bytes to one value: the low eight bits of ``byte``."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], cgutils.voidptr_t)
        cgutils.memset(builder, pointer, args[1], builder.trunc(args[2], _I8))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, address: types.Type) -> Any:
    """Prefetch the cache line at an address for reading and writing. Never faults."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        pointer = builder.inttoptr(args[0], cgutils.voidptr_t)
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
