"""Arrays that a compiled function borrows from its caller in Python.

For each array argument numba makes a record on the heap, and gives it back when the function ends:
150 ns an array, most of what a call of a small model costs. The caller holds its arrays for as long
as it waits, so none of that is needed here.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.core.pythonapi import NativeValue, unbox

__all__ = ["Borrowed"]


class Borrowed(types.Array):
    """Type of an argument: an array that the function neither returns nor keeps."""


register_default(Borrowed)(models.ArrayModel)


@unbox(Borrowed)
def _borrow(kind: Borrowed, argument: Any, wrapper: Any) -> NativeValue:
    """Fill an array's struct from the Python object: a `TypeError` unless it is an array.

    Its dtype and its number of dimensions are the caller's to check, as for any entry point.
    """
    builder, pyapi = wrapper.builder, wrapper.pyapi
    struct = wrapper.context.make_array(kind)(wrapper.context, builder)._getpointer()
    signature = ir.FunctionType(ir.IntType(32), [pyapi.pyobj, pyapi.voidptr])
    # Of numba's helpers in C: what it calls itself where it counts no references.
    adapt = cgutils.get_or_insert_function(builder.module, signature, "numba_adapt_ndarray")
    answer = builder.call(adapt, (argument, builder.bitcast(struct, pyapi.voidptr)))
    failed = cgutils.is_not_null(builder, answer)
    with builder.if_then(failed, likely=False):
        pyapi.err_set_string("PyExc_TypeError", "an argument is not an array of NumPy")
    return NativeValue(builder.load(struct), is_error=failed)
