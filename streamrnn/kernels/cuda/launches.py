"""The launches of a wave: described once, then run by one compiled call.

What a wave launches follows from its number of rows and steps. So a `Launch` holds everything
else, its arguments too, and a table of them is packed once, when the model is loaded. A wave is
then one call of `begin_wave`, which holds no GIL and calls the driver by address: the copy of the
inputs, a kernel for each layer, the copy of the outputs; and one of `end_wave`, which waits. In the
simulator, which has no driver, `launches_of_wave` says the same in Python.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, store_i64

__all__ = [
    "DRIVER_FUNCTIONS",
    "Launch",
    "Launches",
    "Number",
    "begin_wave",
    "compute_wave",
    "end_wave",
    "launches_of_wave",
    "pack_launches",
    "parameters_of",
]


class Number(enum.IntEnum):
    """What a kernel can be told of the wave, int64 as all its numbers are."""

    NUM_ROWS = 0
    STEP = 1  # of the wave's, from 0
    NUM_STEPS = 2
    X_START = 3  # where the first row's input of the step begins in the wave's x
    X_STRIDE = 4  # from there to the next row's


@dataclass(frozen=True)
class Launch:
    """A kernel with everything but the numbers of a wave.

    Attributes
    ----------
    kernel : numba dispatcher
        What to launch.
    arguments : tuple
        Arrays on the GPU, numbers, and a `Number` for what each wave has of its own.
    threads : int
        Of a block.
    num_blocks : int
        In x.
    block_rows : int
        Rows that a block takes: there are as many blocks in y as the rows need. 0: one.
    min_blocks : int
        With fewer blocks in all, the next launch of the list takes its place.
    num_alternatives : int
        Launches that are left out if this one is taken.
    shared_bytes : int
        Dynamic shared memory of a block.
    is_cooperative : bool
        Whether its blocks wait for each other, and so must all run at once.
    """

    kernel: Any
    arguments: tuple[Any, ...]
    threads: int
    num_blocks: int
    block_rows: int = 0
    min_blocks: int = 0
    num_alternatives: int = 0
    shared_bytes: int = 0
    is_cooperative: bool = False


@dataclass(frozen=True)
class Launches:
    """All launches of a model, for one pair of buffers.

    Attributes
    ----------
    step : tuple of Launch
        Of one step of any wave, in order.
    chunk : tuple of Launch
        Of many steps of a few rows; empty if the model goes step by step.
    max_chunk_rows : int
        The most rows of a chunk.
    num_inputs : int
        Of a step, in the wave's x.
    """

    step: tuple[Launch, ...]
    chunk: tuple[Launch, ...]
    max_chunk_rows: int
    num_inputs: int


def launches_of_wave(
    launches: Launches, num_rows: int, num_steps: int
) -> Iterator[tuple[Launch, tuple[int, int], tuple[Any, ...]]]:
    """Say what `begin_wave` launches.

    Parameters
    ----------
    launches : Launches
        Of the model.
    num_rows, num_steps : int
        Of the wave.

    Yields
    ------
    launch : Launch
    grid : tuple of int
        Blocks in x and in y.
    arguments : tuple
        Arrays and numbers.
    """

    def arguments_of(launch: Launch, step: int) -> tuple[Any, ...]:
        x_start, x_stride = num_rows + step * launches.num_inputs, num_steps * launches.num_inputs
        numbers = (num_rows, step, num_steps, x_start, x_stride)
        return tuple(numbers[a] if isinstance(a, Number) else a for a in launch.arguments)

    if num_steps > 1 and num_rows <= launches.max_chunk_rows:
        for launch in launches.chunk:
            yield launch, (launch.num_blocks, 1), arguments_of(launch, 0)
        return
    for step in range(num_steps):
        place = 0
        while place < len(launches.step):
            launch = launches.step[place]
            num_y = -(-num_rows // launch.block_rows) if launch.block_rows else 1
            place += 1
            if launch.num_blocks * num_y >= launch.min_blocks:
                yield launch, (launch.num_blocks, num_y), arguments_of(launch, step)
                place += launch.num_alternatives


# ---------------------------------------------------------------------------------------------
# The same as a table, for compiled code
# ---------------------------------------------------------------------------------------------

DRIVER_FUNCTIONS = (
    "cuCtxSetCurrent",
    "cuMemcpyHtoDAsync",
    "cuMemcpyDtoHAsync",
    "cuEventRecord",
    "cuStreamWaitEvent",
    "cuEventSynchronize",
    "cuLaunchKernel",
    "cuLaunchCooperativeKernel",
)

# Words of a table: what begins it, then its launches.
(_SET_CONTEXT, _TO_DEVICE, _TO_HOST, _RECORD, _WAIT, _SYNCHRONIZE, _LAUNCH, _LAUNCH_TOGETHER) = (
    range(8)
)
(
    _CONTEXT,
    _COMPUTE,  # streams
    _COPIES,
    _SENT,  # events
    _COMPUTED,
    _RECEIVED,
    _HOST_X,  # addresses
    _DEVICE_X,
    _HOST_Y,
    _DEVICE_Y,
    _OUTPUT_SIZE,
    _NUM_INPUTS,
    _MAX_CHUNK_ROWS,
    _NUM_STEP_LAUNCHES,
    _NUM_CHUNK_LAUNCHES,
    _NUMBERS,  # of the wave, as `Number` orders them
) = range(8, 24)
_NUM_ROWS, _STEP, _NUM_STEPS, _X_START, _X_STRIDE, _LAUNCHES = range(_NUMBERS, _NUMBERS + 6)
(
    _FUNCTION,
    _PARAMETERS,  # address of the parameters' addresses
    _THREADS,
    _NUM_BLOCKS,
    _BLOCK_ROWS,
    _MIN_BLOCKS,
    _NUM_ALTERNATIVES,
    _SHARED_BYTES,
    _IS_COOPERATIVE,
    _LAUNCH_WORDS,
) = range(10)


def parameters_of(arguments: Sequence[Any], pointer: Callable[[Any], int]) -> list[int | Number]:
    """Return arguments as numba's kernels take them: each array as seven words.

    Parameters
    ----------
    arguments : sequence of int, of Number and of array
        One-dimensional and contiguous arrays.
    pointer : callable
        Takes an array and returns its address on the GPU.

    Returns
    -------
    list of int and of Number
        For an array: two that are not used here, then its size, the size of an element, its
        address, its shape, and its stride in bytes.
    """
    words: list[int | Number] = []
    for argument in arguments:
        if isinstance(argument, int):
            words.append(argument)
        else:
            size, itemsize = int(argument.size), int(argument.dtype.itemsize)
            words += [0, 0, size, itemsize, pointer(argument), size, itemsize]
    return words


def pack_launches(
    launches: Launches,
    function: Callable[[Launch], int],
    pointer: Callable[[Any], int],
    head: dict[str, int],
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Make the table of a model's launches.

    Parameters
    ----------
    launches : Launches
        What to pack.
    function : callable
        Takes a launch and returns the driver's handle of its kernel.
    pointer : callable
        Takes an array and returns its address on the GPU.
    head : dict of str to int
        The addresses of `DRIVER_FUNCTIONS` by their names; ``context``, ``compute``, ``copies``,
        ``sent``, ``computed``, ``received``: the driver's handles; ``host_x``, ``device_x``,
        ``host_y``, ``device_y``: addresses; ``output_size``.

    Returns
    -------
    table : ndarray of int64
        For `begin_wave` and `end_wave`.
    kept : list of ndarray
        What the table points to: to be kept as long as it.
    """
    all_launches = (*launches.step, *launches.chunk)
    table = np.zeros(_LAUNCHES + len(all_launches) * _LAUNCH_WORDS, dtype=np.int64)
    names = (
        *DRIVER_FUNCTIONS,
        *("context", "compute", "copies", "sent", "computed", "received"),
        *("host_x", "device_x", "host_y", "device_y", "output_size"),
    )
    table[: len(names)] = [head[name] for name in names]
    table[_NUM_INPUTS] = launches.num_inputs
    table[_MAX_CHUNK_ROWS] = launches.max_chunk_rows
    table[_NUM_STEP_LAUNCHES] = len(launches.step)
    table[_NUM_CHUNK_LAUNCHES] = len(launches.chunk)
    kept = []
    for place, launch in enumerate(all_launches):
        parameters = parameters_of(launch.arguments, pointer)
        words = np.array(parameters, dtype=np.int64)
        addresses = words.ctypes.data + 8 * np.arange(len(words))
        for k, parameter in enumerate(parameters):
            if isinstance(parameter, Number):
                addresses[k] = table.ctypes.data + 8 * (_NUMBERS + parameter)
        kept += [words, addresses]
        table[_LAUNCHES + place * _LAUNCH_WORDS :][:_LAUNCH_WORDS] = (
            function(launch),
            addresses.ctypes.data,
            launch.threads,
            launch.num_blocks,
            launch.block_rows,
            launch.min_blocks,
            launch.num_alternatives,
            launch.shared_bytes,
            launch.is_cooperative,
        )
    return table, kept


def _driver_function(arguments: str) -> Any:
    """Return what calls a function of the driver: its address, then its arguments.

    One letter each: p for what is as wide as a pointer, i for 32 bits.
    """
    integers = {"p": ir.IntType(64), "i": ir.IntType(32)}
    kind = ir.FunctionType(ir.IntType(32), [integers[letter] for letter in arguments])

    def call(typingctx: Any, address: types.Type, given: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            function = builder.inttoptr(args[0], kind.as_pointer())
            words = [builder.extract_value(args[1], k) for k in range(len(arguments))]
            narrow = [
                builder.trunc(word, integers["i"]) if letter == "i" else word
                for letter, word in zip(arguments, words, strict=True)
            ]
            return builder.sext(builder.call(function, narrow), integers["p"])

        words = types.containers.UniTuple(types.int64, len(arguments))
        return types.int64(types.int64, words), codegen

    return intrinsic(call)


_call_p = _driver_function("p")
_call_pp = _driver_function("pp")
_call_ppi = _driver_function("ppi")
_call_copy = _driver_function("pppp")
_call_launch = _driver_function("piiiiiiippp")
_call_launch_together = _driver_function("piiiiiiipp")


@jit
def _run_launch(table, launch, num_y):
    function, stream = load_i64(launch + 8 * _FUNCTION), load_i64(table + 8 * _COMPUTE)
    parameters = load_i64(launch + 8 * _PARAMETERS)
    num_x = load_i64(launch + 8 * _NUM_BLOCKS)
    threads, shared = load_i64(launch + 8 * _THREADS), load_i64(launch + 8 * _SHARED_BYTES)
    if load_i64(launch + 8 * _IS_COOPERATIVE):
        return _call_launch_together(
            load_i64(table + 8 * _LAUNCH_TOGETHER),
            (function, num_x, num_y, 1, threads, 1, 1, shared, stream, parameters),
        )
    return _call_launch(
        load_i64(table + 8 * _LAUNCH),
        (function, num_x, num_y, 1, threads, 1, 1, shared, stream, parameters, 0),
    )


@jit
def _run_launches(table, num_rows, num_steps):
    """Do what `launches_of_wave` says."""
    launches = table + 8 * _LAUNCHES
    num_step_launches = load_i64(table + 8 * _NUM_STEP_LAUNCHES)
    store_i64(table + 8 * _NUM_ROWS, num_rows)
    store_i64(table + 8 * _NUM_STEPS, num_steps)
    store_i64(table + 8 * _STEP, 0)
    num_inputs = load_i64(table + 8 * _NUM_INPUTS)
    store_i64(table + 8 * _X_START, num_rows)
    store_i64(table + 8 * _X_STRIDE, num_steps * num_inputs)
    if num_steps > 1 and num_rows <= load_i64(table + 8 * _MAX_CHUNK_ROWS):
        for k in range(load_i64(table + 8 * _NUM_CHUNK_LAUNCHES)):
            launch = launches + 8 * _LAUNCH_WORDS * (num_step_launches + k)
            error = _run_launch(table, launch, 1)
            if error != 0:
                return error
        return 0
    for step in range(num_steps):
        store_i64(table + 8 * _STEP, step)  # the driver copies parameters while it is called
        store_i64(table + 8 * _X_START, num_rows + step * num_inputs)
        place = 0
        while place < num_step_launches:
            launch = launches + 8 * _LAUNCH_WORDS * place
            block_rows = load_i64(launch + 8 * _BLOCK_ROWS)
            num_y = (num_rows + block_rows - 1) // block_rows if block_rows > 0 else 1
            place += 1
            num_blocks = load_i64(launch + 8 * _NUM_BLOCKS) * num_y
            if num_blocks >= load_i64(launch + 8 * _MIN_BLOCKS):
                error = _run_launch(table, launch, num_y)
                if error != 0:
                    return error
                place += load_i64(launch + 8 * _NUM_ALTERNATIVES)
    return 0


@jit
def compute_wave(table, num_rows, num_steps):
    """Start the launches of a wave whose inputs are on the GPU, and whose outputs stay there.

    Parameters
    ----------
    table, num_rows, num_steps
        As of `begin_wave`.

    Returns
    -------
    int64
        0, or the driver's error.
    """
    error = _call_p(load_i64(table + 8 * _SET_CONTEXT), (load_i64(table + 8 * _CONTEXT),))
    if error == 0:
        error = _run_launches(table, num_rows, num_steps)
    return error


@jit
def begin_wave(table, num_rows, num_steps, overlaps):
    """Start a wave: its inputs go over, it is computed, its outputs come back.

    Parameters
    ----------
    table : int64
        Address of a table of `pack_launches`, which nobody else uses meanwhile.
    num_rows, num_steps : int64
        Of the wave. The pinned buffer holds so many slots (int32) and the inputs behind them.
    overlaps : int64
        Whether another wave may be under way: then copies take a stream of their own.

    Returns
    -------
    int64
        0, or the driver's error.
    """
    compute, copies = load_i64(table + 8 * _COMPUTE), load_i64(table + 8 * _COPIES)
    record, wait = load_i64(table + 8 * _RECORD), load_i64(table + 8 * _WAIT)
    stream = copies if overlaps else compute
    error = _call_p(load_i64(table + 8 * _SET_CONTEXT), (load_i64(table + 8 * _CONTEXT),))
    if error == 0:
        num_bytes = 4 * num_rows * (1 + num_steps * load_i64(table + 8 * _NUM_INPUTS))
        places = load_i64(table + 8 * _DEVICE_X), load_i64(table + 8 * _HOST_X)
        error = _call_copy(load_i64(table + 8 * _TO_DEVICE), (*places, num_bytes, stream))
    if error == 0 and overlaps:
        sent = load_i64(table + 8 * _SENT)
        error = _call_pp(record, (sent, copies))
        if error == 0:
            error = _call_ppi(wait, (compute, sent, 0))
    if error == 0:
        error = _run_launches(table, num_rows, num_steps)
    if error == 0 and overlaps:
        computed = load_i64(table + 8 * _COMPUTED)
        error = _call_pp(record, (computed, compute))
        if error == 0:
            error = _call_ppi(wait, (copies, computed, 0))
    if error == 0:
        num_bytes = 4 * num_rows * num_steps * load_i64(table + 8 * _OUTPUT_SIZE)
        places = load_i64(table + 8 * _HOST_Y), load_i64(table + 8 * _DEVICE_Y)
        error = _call_copy(load_i64(table + 8 * _TO_HOST), (*places, num_bytes, stream))
    if error == 0:
        error = _call_pp(record, (load_i64(table + 8 * _RECEIVED), stream))
    return error


@jit
def end_wave(table):
    """Wait for a wave that was begun.

    Parameters
    ----------
    table : int64
        Address of its table.

    Returns
    -------
    int64
        0, or the driver's error.
    """
    error = _call_p(load_i64(table + 8 * _SET_CONTEXT), (load_i64(table + 8 * _CONTEXT),))
    if error == 0:
        received = load_i64(table + 8 * _RECEIVED)
        error = _call_p(load_i64(table + 8 * _SYNCHRONIZE), (received,))
    return error
