"""The launches of a batch: described once, then run by one compiled call.

What a batch launches follows from its number of rows and steps. So a `Launch` holds everything
else, its arguments too, and a table of them is packed once, when the model is loaded. A batch is
then one call of `begin_batch`, which holds no GIL and calls the driver by address: the copy of the
inputs, a kernel for each layer, the copy of the outputs; and one of `end_batch`, which waits. In
the simulator, which has no driver, `launches_of_batch` gives the same launches to Python.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from streamrnn.errors import DeviceError
from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct

__all__ = [
    "DRIVER_FUNCTIONS",
    "Launch",
    "Launches",
    "Limits",
    "Number",
    "begin_batch",
    "compute_batch",
    "end_batch",
    "first_input",
    "launches_of_batch",
    "pack_launches",
    "parameters_of",
]


class Number(enum.IntEnum):
    """A number of the batch that a kernel takes, int64 as all its numbers are."""

    NUM_ROWS = 0
    STEP = 1  # of the batch's, from 0
    NUM_STEPS = 2
    X_START = 3  # where the first row's input of the step begins in the batch's x
    X_STRIDE = 4  # from there to the next row's


@dataclass(frozen=True)
class Launch:
    """A kernel with everything but the numbers of a batch."""

    kernel: Any
    arguments: tuple[
        Any, ...
    ]  # arrays on the GPU, numbers, and a `Number` for what batches differ in
    threads: int  # of a block
    num_blocks: int  # in y if its blocks take rows, else in x
    block_rows: int = 0  # rows of a block, of which there are as many in x as the batch needs
    min_blocks: int = 0  # with fewer blocks in all, the next launch of the list takes its place
    num_alternatives: int = 0  # launches that are left out if this one is taken
    shared_bytes: int = 0  # dynamic shared memory of a block
    is_cooperative: bool = False  # its blocks wait for each other, and so must all run at once


@dataclass(frozen=True)
class Launches:
    """All launches of a model, for one pair of buffers."""

    step: tuple[Launch, ...]  # of one step of any batch, in order
    persistent: tuple[Launch, ...]  # of many steps of a few rows; empty if none are taken together
    max_rows: int  # of a batch
    max_persistent_rows: int
    num_inputs: int  # of a step, in the batch's x


def _grid(launch: Launch, num_rows: int) -> tuple[int, int]:
    """Return a launch's blocks in x and y. Rows lie in x: in y a GPU takes 65,535 blocks."""
    if not launch.block_rows:
        return launch.num_blocks, 1
    return -(-num_rows // launch.block_rows), launch.num_blocks


@jit
def first_input(num_rows):
    """Return where a batch's inputs begin, behind its slots: a multiple of 16 bytes."""
    return (num_rows + 3) // 4 * 4


def launches_of_batch(
    launches: Launches, num_rows: int, num_steps: int
) -> Iterator[tuple[Launch, tuple[int, int], tuple[Any, ...]]]:
    """Yield what `begin_batch` launches: each launch, its blocks in x and y, its arguments."""

    def arguments_of(launch: Launch, step: int) -> tuple[Any, ...]:
        x_start = first_input(num_rows) + step * launches.num_inputs
        x_stride = num_steps * launches.num_inputs
        numbers = (num_rows, step, num_steps, x_start, x_stride)
        return tuple(numbers[a] if isinstance(a, Number) else a for a in launch.arguments)

    if num_steps > 1 and num_rows <= launches.max_persistent_rows:
        for launch in launches.persistent:
            yield launch, _grid(launch, num_rows), arguments_of(launch, 0)
        return
    for step in range(num_steps):
        index = 0
        while index < len(launches.step):
            launch = launches.step[index]
            num_x, num_y = _grid(launch, num_rows)
            index += 1
            if num_x * num_y >= launch.min_blocks:
                yield launch, (num_x, num_y), arguments_of(launch, step)
                index += launch.num_alternatives


@dataclass(frozen=True)
class Limits:
    """What a GPU takes of one kernel."""

    threads: int  # of a block
    shared_bytes: int  # dynamic, of a block
    blocks_together: int  # of a cooperative launch
    blocks_x: int = (1 << 31) - 1
    blocks_y: int = (1 << 16) - 1
    parameter_bytes: int = 4096


def _check_launch(launch: Launch, max_rows: int, parameter_bytes: int, limits: Limits) -> None:
    """Raise a `DeviceError` for what the driver would refuse, or a GPU could not run."""
    num_x, num_y = _grid(launch, max_rows)
    blocks = ("blocks in x", num_x, limits.blocks_x)
    if launch.is_cooperative:
        blocks = ("blocks at once", num_x * num_y, limits.blocks_together)
    for what, value, most in (
        blocks,
        ("blocks in y", num_y, limits.blocks_y),
        ("threads of a block", launch.threads, limits.threads),
        ("bytes of shared memory", launch.shared_bytes, limits.shared_bytes),
        ("bytes of parameters", parameter_bytes, limits.parameter_bytes),
    ):
        if not 0 <= value <= most:
            name = getattr(launch.kernel, "__name__", launch.kernel)
            raise DeviceError(
                f"kernel {name} needs {value:,} {what} for {max_rows:,} rows, where this GPU takes "
                f"{most:,}; use device 'cpu'"
            )


# ---------------------------------------------------------------------------------------------
# The same as a table, for compiled code
# ---------------------------------------------------------------------------------------------

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
    host_x: I64  # addresses
    device_x: I64
    host_y: I64
    device_y: I64
    output_size: I64
    num_inputs: I64
    max_persistent_rows: I64
    num_step_launches: I64
    num_persistent_launches: I64
    launches: I64  # address of the packed launches: those of a step, then the persistent ones
    batch: _Batch


_table_at, _launch_at = pointer_to(_Table), pointer_to(_PackedLaunch)
_LAUNCH_BYTES = _PackedLaunch.dtype.itemsize


def parameters_of(arguments: Sequence[Any], pointer: Callable[[Any], int]) -> list[int | Number]:
    """Return arguments as numba's kernels take them: each array as seven numbers.

    Arrays are one-dimensional and contiguous; ``pointer`` returns an array's address on the GPU.
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
    fields of the table the driver's handles, the buffers' addresses and ``output_size``. Raises a
    `DeviceError` if a launch is beyond its ``limits``.
    """
    all_launches = (*launches.step, *launches.persistent)
    table, packed = np.zeros(1, _Table.dtype), np.zeros(len(all_launches), _PackedLaunch.dtype)
    packed_head = table[0]
    for name, value in head.items():
        packed_head[DRIVER_FUNCTIONS.get(name, name)] = value
    packed_head["num_inputs"] = launches.num_inputs
    packed_head["max_persistent_rows"] = launches.max_persistent_rows
    packed_head["num_step_launches"] = len(launches.step)
    packed_head["num_persistent_launches"] = len(launches.persistent)
    packed_head["launches"] = packed.ctypes.data
    kept: list[NDArray[Any]] = [packed]
    for row, launch in zip(packed, all_launches, strict=True):
        parameters = parameters_of(launch.arguments, pointer)
        _check_launch(launch, launches.max_rows, 8 * len(parameters), limits(launch))
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
def _run_launches(table, num_rows, num_steps):
    """Run what `launches_of_batch` yields."""
    batch = table.batch
    batch.num_rows, batch.num_steps = num_rows, num_steps
    batch.step, batch.x_start = 0, first_input(num_rows)
    batch.x_stride = num_steps * table.num_inputs
    if num_steps > 1 and num_rows <= table.max_persistent_rows:
        for k in range(table.num_persistent_launches):
            place = table.launches + (table.num_step_launches + k) * _LAUNCH_BYTES
            launch = _launch_at(place)
            error = _run_launch(table, launch, launch.num_blocks, 1)
            if error != 0:
                return error
        return 0
    for step in range(num_steps):
        batch.step = step  # the driver copies parameters while it is called
        batch.x_start = first_input(num_rows) + step * table.num_inputs
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
def _wait_for(table, event, first, second):
    """Let the second stream wait for what the first has been given so far."""
    error = _call_pp(table.record_event, (event, first))
    if error == 0:
        error = _call_ppi(table.wait_event, (second, event, 0))
    return error


@jit
def compute_batch(address, num_rows, num_steps):
    """Start the launches of a batch without its copies. Return 0, or the driver's error."""
    table = _table_at(address)
    error = _call_p(table.set_context, (table.context,))
    if error == 0:
        error = _run_launches(table, num_rows, num_steps)
    return error


@jit
def begin_batch(address, num_rows, num_steps, overlaps):
    """Start a batch: copy its inputs, compute, copy its outputs. Return 0, or the driver's error.

    The table at ``address`` is used by one thread at a time. The pinned buffer holds ``num_rows``
    slots (int32) and, at `first_input`, the inputs. ``overlaps`` says that another batch may be
    under way: then copies take a stream of their own.
    """
    table = _table_at(address)
    stream = table.copies if overlaps else table.compute
    error = _call_p(table.set_context, (table.context,))
    if error == 0:
        num_bytes = 4 * (first_input(num_rows) + num_rows * num_steps * table.num_inputs)
        error = _call_copy(table.copy_to_device, (table.device_x, table.host_x, num_bytes, stream))
    if error == 0 and overlaps:
        error = _wait_for(table, table.sent, table.copies, table.compute)
    if error == 0:
        error = _run_launches(table, num_rows, num_steps)
    if error == 0 and overlaps:
        error = _wait_for(table, table.computed, table.compute, table.copies)
    if error == 0:
        num_bytes = 4 * num_rows * num_steps * table.output_size
        error = _call_copy(table.copy_to_host, (table.host_y, table.device_y, num_bytes, stream))
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
