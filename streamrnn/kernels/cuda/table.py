"""The launches of a batch as a table, which one compiled call runs.

A table is packed once, when a model is loaded. A batch is then one call of `begin_batch`, which
holds no GIL and calls the driver by address: the copy of the inputs, a kernel for each layer, the
copy of the outputs; and one of `end_batch`, which waits. A single step of few streams goes without
copies: kernels read and write the host's pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from streamrnn.kernels.cuda.launches import (
    Launch,
    Launches,
    Limits,
    Number,
    check_launch,
    first_input,
    take_halves,
)
from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct

__all__ = [
    "DRIVER_FUNCTIONS",
    "MAX_MAPPED_BYTES",
    "begin_batch",
    "compute_batch",
    "end_batch",
    "pack_launches",
    "parameters_of",
]

MAX_MAPPED_BYTES = 4096
"""The most bytes of a step's inputs, and of its outputs, that kernels take from the host's memory.

Each read goes over the bus; a copy takes as long as a launch. Not measured.
"""

DRIVER_FUNCTIONS = {
    "cuCtxSetCurrent": "set_context",
    "cuMemcpyHtoDAsync": "copy_to_device",
    "cuMemcpyDtoHAsync": "copy_to_host",
    "cuEventRecord": "record_event",
    "cuStreamWaitEvent": "wait_event",
    "cuEventSynchronize": "synchronize_event",
    "cuLaunchKernel": "launch",
    "cuLaunchCooperativeKernel": "launch_cooperative",
}
"""The driver's functions, and the fields of a table that hold their addresses."""


class _Batch(Struct):
    """The numbers of a batch, in the order of `Number`: kernels take them from here."""

    num_rows: I64
    step: I64
    num_steps: I64
    x_start: I64
    x_stride: I64
    y_start: I64
    y_stride: I64
    x_address: I64
    y_address: I64


class _PackedLaunch(Struct):
    """A `Launch` as the driver takes it."""

    function: I64  # the driver's handle
    parameters: I64  # address of the parameters' addresses
    threads: I64
    num_blocks: I64
    block_rows: I64
    min_blocks: I64
    num_alternatives: I64
    shared_bytes: I64
    is_cooperative: I64


class _Table(Struct):
    """The launches of a model, with what else a batch needs of the driver."""

    set_context: I64  # addresses of the driver's functions
    copy_to_device: I64
    copy_to_host: I64
    record_event: I64
    wait_event: I64
    synchronize_event: I64
    launch: I64
    launch_cooperative: I64
    context: I64  # the driver's handles: the context,
    compute: I64  # streams,
    copies: I64
    sent: I64  # events
    computed: I64
    received: I64
    host_x: I64  # addresses: in the host's memory,
    mapped_x: I64  # of the same as the GPU sees it,
    device_x: I64  # and in the GPU's own
    host_y: I64
    mapped_y: I64
    device_y: I64
    halves: I64  # uint8[num_slots]
    num_outputs: I64
    num_inputs: I64
    max_persistent_rows: I64
    num_step_launches: I64
    num_persistent_launches: I64
    num_last_launches: I64
    launches: I64  # address of the packed launches: of a step, then the persistent, then the last
    batch: _Batch


_table_at, _launch_at = pointer_to(_Table), pointer_to(_PackedLaunch)
_LAUNCH_BYTES = _PackedLaunch.dtype.itemsize


def parameters_of(arguments: Sequence[Any], pointer: Callable[[Any], int]) -> list[int | Number]:
    """Return arguments as numba's kernels take them: each array as seven numbers.

    Arrays are one-dimensional and contiguous; ``pointer`` returns an array's address on the GPU, or
    the `Number` that it is.
    The seven: two that are not used here, then the array's size, the size of an element, its
    address, its shape, and its stride in bytes.
    """
    parameters: list[int | Number] = []
    for argument in arguments:
        if isinstance(argument, int):
            parameters.append(argument)
        else:
            size, itemsize = int(argument.size), int(argument.dtype.itemsize)
            parameters += [0, 0, size, itemsize, pointer(argument), size, itemsize]
    return parameters


def pack_launches(
    launches: Launches,
    function: Callable[[Launch], int],
    pointer: Callable[[Any], int],
    head: dict[str, int],
    limits: Callable[[Launch], Limits],
) -> tuple[NDArray[np.void], list[NDArray[Any]]]:
    """Return the table of a model's launches, and what it points to: to be kept as long as it.

    ``function`` returns the driver's handle of a launch's kernel, ``pointer`` an array's address on
    the GPU. ``head`` has the addresses of `DRIVER_FUNCTIONS` by the driver's names, and by the
    fields of the table the driver's handles and the buffers' addresses. Raises a `DeviceError` if a
    launch is beyond its ``limits``.
    """
    all_launches = (*launches.step, *launches.persistent, *launches.last)
    table, packed = np.zeros(1, _Table.dtype), np.zeros(len(all_launches), _PackedLaunch.dtype)
    packed_head = table[0]
    for name, value in head.items():
        packed_head[DRIVER_FUNCTIONS.get(name, name)] = value
    packed_head["num_inputs"], packed_head["num_outputs"] = (
        launches.num_inputs,
        launches.num_outputs,
    )
    packed_head["max_persistent_rows"] = launches.max_persistent_rows
    packed_head["num_step_launches"] = len(launches.step)
    packed_head["num_persistent_launches"] = len(launches.persistent)
    packed_head["num_last_launches"] = len(launches.last)
    packed_head["launches"] = packed.ctypes.data
    kept: list[NDArray[Any]] = [packed]
    for row, launch in zip(packed, all_launches, strict=True):
        parameters = parameters_of(launch.arguments, pointer)
        check_launch(launch, launches.max_rows, 8 * len(parameters), limits(launch))
        values = np.array(parameters, dtype=np.int64)
        addresses = values.ctypes.data + 8 * np.arange(len(values))
        for k, parameter in enumerate(parameters):
            if isinstance(parameter, Number):
                addresses[k] = table["batch"][parameter.name.lower()].ctypes.data
        kept += [values, addresses]
        row["function"], row["parameters"] = function(launch), addresses.ctypes.data
        for field in fields(launch)[2:]:
            row[field.name] = getattr(launch, field.name)
    return table, kept


def _driver_function(arguments: str) -> Any:
    """Return the compiled call of a driver function: its address, then its arguments.

    One letter each: p for what is as wide as a pointer, i for 32 bits.
    """
    integers = {"p": ir.IntType(64), "i": ir.IntType(32)}
    kind = ir.FunctionType(ir.IntType(32), [integers[letter] for letter in arguments])

    def call(typingctx: Any, address: types.Type, given: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            function = builder.inttoptr(args[0], kind.as_pointer())
            values = [builder.extract_value(args[1], k) for k in range(len(arguments))]
            narrow = [
                builder.trunc(value, integers["i"]) if letter == "i" else value
                for letter, value in zip(arguments, values, strict=True)
            ]
            return builder.sext(builder.call(function, narrow), integers["p"])

        given_values = types.containers.UniTuple(types.int64, len(arguments))
        return types.int64(types.int64, given_values), codegen

    return intrinsic(call)


_call_p = _driver_function("p")
_call_pp = _driver_function("pp")
_call_ppi = _driver_function("ppi")
_call_copy = _driver_function("pppp")
_call_launch = _driver_function("piiiiiiippp")
_call_launch_cooperative = _driver_function("piiiiiiipp")


@jit
def _run_launch(table, launch, num_x, num_y):
    arguments = (
        launch.function,
        *(num_x, num_y, 1),
        *(launch.threads, 1, 1),
        launch.shared_bytes,
        table.compute,
        launch.parameters,
    )
    if launch.is_cooperative:
        return _call_launch_cooperative(table.launch_cooperative, arguments)
    return _call_launch(table.launch, (*arguments, 0))


@jit
def _run_group(table, first, num_launches):
    """Run launches that are left out never, and whose blocks are as many for every batch."""
    for k in range(first, first + num_launches):
        launch = _launch_at(table.launches + k * _LAUNCH_BYTES)
        error = _run_launch(table, launch, launch.num_blocks, 1)
        if error != 0:
            return error
    return 0


@jit
def _run_step(table, num_rows):
    """Run the launches of one step: of two tiles of a layer the one that fills the GPU."""
    index = 0
    while index < table.num_step_launches:
        launch = _launch_at(table.launches + index * _LAUNCH_BYTES)
        num_x, num_y = launch.num_blocks, 1
        if launch.block_rows > 0:
            num_x, num_y = (num_rows + launch.block_rows - 1) // launch.block_rows, num_x
        index += 1
        if num_x * num_y >= launch.min_blocks:
            error = _run_launch(table, launch, num_x, num_y)
            if error != 0:
                return error
            index += launch.num_alternatives
    return 0


@jit
def _run_launches(table, num_rows, num_steps, first_step):
    """Run what `launches_of_batch` yields."""
    batch, error = table.batch, 0
    batch.num_rows, batch.num_steps = num_rows, num_steps
    batch.x_stride, batch.y_stride = num_steps * table.num_inputs, num_steps * table.num_outputs
    is_together = num_steps > 1 and num_rows <= table.max_persistent_rows
    for step in range(1 if is_together else num_steps):
        batch.step = first_step + step  # the driver copies parameters while it is called
        batch.x_start = first_input(num_rows) + step * table.num_inputs
        batch.y_start = step * table.num_outputs
        if is_together:
            error = _run_group(table, table.num_step_launches, table.num_persistent_launches)
        else:
            error = _run_step(table, num_rows)
        if error != 0:
            return error
    first_last = table.num_step_launches + table.num_persistent_launches
    return _run_group(table, first_last, table.num_last_launches)


@jit
def _wait_for(table, event, first, second):
    """Let the second stream wait for what the first has been given so far."""
    error = _call_pp(table.record_event, (event, first))
    if error == 0:
        error = _call_ppi(table.wait_event, (second, event, 0))
    return error


@jit
def compute_batch(address, num_rows, num_steps, first_step):
    """Start the launches of a batch without its copies. Return 0, or the driver's error.

    The buffer on the GPU holds codes; ``first_step`` counts the steps since they were made.
    """
    table = _table_at(address)
    error = _call_p(table.set_context, (table.context,))
    if error == 0:
        table.batch.x_address, table.batch.y_address = table.device_x, table.device_y
        error = _run_launches(table, num_rows, num_steps, first_step)
    return error


@jit
def _run_between_copies(table, num_rows, num_steps, overlaps):
    """Copy a batch's inputs, compute, copy its outputs."""
    stream = table.copies if overlaps else table.compute
    table.batch.x_address, table.batch.y_address = table.device_x, table.device_y
    num_bytes = 4 * (first_input(num_rows) + num_rows * num_steps * table.num_inputs)
    error = _call_copy(table.copy_to_device, (table.device_x, table.host_x, num_bytes, stream))
    if error == 0 and overlaps:
        error = _wait_for(table, table.sent, table.copies, table.compute)
    if error == 0:
        error = _run_launches(table, num_rows, num_steps, 0)
    if error == 0 and overlaps:
        error = _wait_for(table, table.computed, table.compute, table.copies)
    if error == 0:
        num_bytes = 4 * num_rows * num_steps * table.num_outputs
        error = _call_copy(table.copy_to_host, (table.host_y, table.device_y, num_bytes, stream))
    return error


@jit
def _run_in_place(table, num_rows):
    """Compute a step whose inputs and outputs are in the host's memory."""
    table.batch.x_address, table.batch.y_address = table.mapped_x, table.mapped_y
    return _run_launches(table, num_rows, 1, 0)


@jit
def _is_small(table, num_rows, num_steps):
    """Return whether a batch goes without copies: one step, and little of it.

    What comes after the steps would read its outputs again and again from the host.
    """
    num_x, num_y = first_input(num_rows) + num_rows * table.num_inputs, num_rows * table.num_outputs
    is_little = 4 * max(num_x, num_y) <= MAX_MAPPED_BYTES
    return num_steps == 1 and is_little and table.num_last_launches == 0


@jit
def begin_batch(address, num_rows, num_steps, overlaps):
    """Start a batch: copy its inputs, compute, copy its outputs. Return 0, or the driver's error.

    The table at ``address`` is used by one thread at a time. The pinned buffer holds ``num_rows``
    slots (int32), which become codes, and, at `first_input`, the inputs. ``overlaps`` says that
    another batch may be under way: then copies take a stream of their own. A batch of one step and
    at most `MAX_MAPPED_BYTES` each way is not copied.
    """
    table = _table_at(address)
    error = _call_p(table.set_context, (table.context,))
    if error == 0:
        take_halves(table.host_x, table.halves, num_rows, num_steps)
        stream = table.compute
        if _is_small(table, num_rows, num_steps):
            error = _run_in_place(table, num_rows)
        else:
            error = _run_between_copies(table, num_rows, num_steps, overlaps)
            stream = table.copies if overlaps else table.compute
        if error == 0:
            error = _call_pp(table.record_event, (table.received, stream))
    return error


@jit
def end_batch(address):
    """Wait for a batch that was begun. Return 0, or the driver's error."""
    table = _table_at(address)
    error = _call_p(table.set_context, (table.context,))
    if error == 0:
        error = _call_p(table.synchronize_event, (table.received,))
    return error
