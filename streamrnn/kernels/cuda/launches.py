"""The launches of a batch, described: what `streamrnn.kernels.cuda.table` packs and runs.

What a batch launches follows from its number of rows and steps. So a `Launch` holds everything
else, its arguments too, and all of a model are described once, when it is loaded. In the simulator,
which has no driver, `launches_of_batch` gives them to Python.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numba import int64

from streamrnn.errors import DeviceError
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i32, load_u8, store_i32, store_u8

__all__ = ["Launch", "Launches", "Limits", "Number", "check_launch", "first_input"]
__all__ += ["launches_of_batch", "take_halves"]


class Number(enum.IntEnum):
    """A number of the batch that a kernel takes, int64 as all its numbers are."""

    NUM_ROWS = 0
    STEP = 1  # of the batch's: rows change halves at each
    NUM_STEPS = 2
    X_START = 3  # where the first row's input of the step begins in the batch's x
    X_STRIDE = 4  # from there to the next row's
    Y_START = 5  # likewise of its outputs in y
    Y_STRIDE = 6
    X_ADDRESS = 7  # of the batch's buffers, for this batch; an array's word, never an argument
    Y_ADDRESS = 8


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
    last: tuple[Launch, ...]  # of a batch, behind all its steps
    max_rows: int  # of a batch
    max_persistent_rows: int
    num_inputs: int  # of a step, in the batch's x
    num_outputs: int  # in its y


def _grid(launch: Launch, num_rows: int) -> tuple[int, int]:
    """Return a launch's blocks in x and y. Rows lie in x: in y a GPU takes 65,535 blocks."""
    if not launch.block_rows:
        return launch.num_blocks, 1
    return -(-num_rows // launch.block_rows), launch.num_blocks


@jit
def first_input(num_rows):
    """Return where a batch's inputs begin, behind its slots: a multiple of 16 bytes."""
    return (num_rows + 3) // 4 * 4


@jit
def take_halves(slots, halves, num_rows, num_steps):
    """Make codes of a batch's slots, and note in which half the h of each will be after it.

    ``slots`` is the address of int32[num_rows], ``halves`` that of uint8[num_slots].
    """
    for row in range(num_rows):
        slot = load_i32(slots + 4 * row)
        half = int64(load_u8(halves + slot))
        store_i32(slots + 4 * row, slot << 1 | half)
        store_u8(halves + slot, half ^ (num_steps & 1))


def launches_of_batch(
    launches: Launches, num_rows: int, num_steps: int, first_step: int = 0
) -> Iterator[tuple[Launch, tuple[int, int], tuple[Any, ...]]]:
    """Yield what `begin_batch` launches: each launch, its blocks in x and y, its arguments."""

    def arguments_of(launch: Launch, step: int) -> tuple[Any, ...]:
        x_start = first_input(num_rows) + step * launches.num_inputs
        x_stride = num_steps * launches.num_inputs
        y_start, y_stride = step * launches.num_outputs, num_steps * launches.num_outputs
        numbers = (num_rows, first_step + step, num_steps, x_start, x_stride, y_start, y_stride)
        return tuple(numbers[a] if isinstance(a, Number) else a for a in launch.arguments)

    if num_steps > 1 and num_rows <= launches.max_persistent_rows:
        for launch in launches.persistent:
            yield launch, _grid(launch, num_rows), arguments_of(launch, 0)
    else:
        for step in range(num_steps):
            index = 0
            while index < len(launches.step):
                launch = launches.step[index]
                num_x, num_y = _grid(launch, num_rows)
                index += 1
                if num_x * num_y >= launch.min_blocks:
                    yield launch, (num_x, num_y), arguments_of(launch, step)
                    index += launch.num_alternatives
    for launch in launches.last:
        yield launch, _grid(launch, num_rows), arguments_of(launch, 0)


@dataclass(frozen=True)
class Limits:
    """What a GPU takes of one kernel."""

    threads: int  # of a block
    shared_bytes: int  # dynamic, of a block
    blocks_together: int  # of a cooperative launch
    blocks_x: int = (1 << 31) - 1
    blocks_y: int = (1 << 16) - 1
    parameter_bytes: int = 4096


def check_launch(launch: Launch, max_rows: int, parameter_bytes: int, limits: Limits) -> None:
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
