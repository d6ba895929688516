"""A shard whose batches a GPU computes: the loop of `streamrnn_server.shard.loop`, in Python.

Only the step differs. All else is done by the same compiled functions, which do not hold the GIL;
what Python adds is a call for each of them and the launches of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from streamrnn.engine.cuda import CudaDevice
from streamrnn.errors import DeviceError, StartError
from streamrnn.kernels.cpu.plan import plan_at
from streamrnn.kernels.jit import jit
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.model.model import Model
from streamrnn_server.shard.batch.commit import commit, note_all_but_last
from streamrnn_server.shard.batch.schedule import choose_model, gather
from streamrnn_server.shard.batch.timing import note_batch
from streamrnn_server.shard.checkpoint.copy import can_checkpoint, checkpoint
from streamrnn_server.shard.gpu.write_buffer import (
    empty_batch,
    fill_batch,
    find_checkpoint_rows,
    steps_together,
)
from streamrnn_server.shard.memory.slab import model_of
from streamrnn_server.shard.memory.step_times import begin_gather, begin_kernel, end_kernel
from streamrnn_server.shard.poll import listen, read_clock, wait
from streamrnn_server.shard.setup import ShardMemory
from streamrnn_server.shard.streams.admit import admit
from streamrnn_server.shard.streams.row_location import resume_awaiting_row
from streamrnn_server.shard.streams.sweep import sweep
from streamrnn_server.shard.structs import RowLocation, ShardState, shard_at
from streamrnn_server.shard.wire.receive import receive
from streamrnn_server.shard.wire.reply import reply

__all__ = ["GpuShard", "compile_for_gpu", "make_devices", "max_batch_rows"]

_MAX_ROWS = 4096  # of a batch


def make_devices(
    models: Mapping[str, Model], max_streams: int, precision: str = "float32"
) -> list[CudaDevice]:
    """Load models onto the GPU, with memory for the streams of one shard.

    Raises StartError if there is no usable GPU, or too little memory on it.
    """
    devices = []
    for name, model in models.items():
        try:
            # Marks are of an engine's calls; here the slots' headers tell the same.
            marks = np.zeros((max_streams + 1, 2), np.int64)
            devices.append(CudaDevice(model, marks, precision))
        except DeviceError as error:
            raise StartError(
                f"cannot serve model {name!r} with --max-streams {max_streams} a shard on a GPU: "
                f"{error}"
            ) from error
    return devices


def max_batch_rows(devices: Sequence[CudaDevice]) -> int:
    """Return the most rows of a batch, of any model."""
    return min(_MAX_ROWS, *(device.max_rows for device in devices))


# What the loop below calls, each with the shard's address: to unbox a struct would cost 7 µs.


@jit
def _begin(address: int) -> int:
    """Choose a model and gather its batch; return the model's index, -1 for none."""
    shard = shard_at(address)
    if not choose_model(shard):
        return -1
    begin_gather(shard.step_times)
    # It has just had its turn.
    index = (shard.next_model - 1 + shard.num_models) % shard.num_models
    model = model_of(shard, index)
    shard.batch_rows = gather(shard, plan_at(model.plan), model)
    return index


@jit
def _fill(address: int, index: int, max_rows: int, max_steps: int, buffer: int) -> int:
    """Write a batch's slots and inputs for the GPU; return how many steps it takes at once."""
    shard = shard_at(address)
    num_steps = steps_together(shard, shard.batch_rows, max_rows, max_steps)
    fill_batch(shard, model_of(shard, index), shard.batch_rows, num_steps, buffer)
    begin_kernel(shard.step_times)
    return num_steps


@jit
def _receive(address: int) -> int:
    """Receive and admit messages while the GPU computes."""
    shard = shard_at(address)
    num_messages = receive(shard)
    admit(shard)
    return num_messages


@jit
def _commit(address: int, index: int, num_steps: int, buffer: int) -> None:
    """Take a batch's outputs from the GPU's buffer, and commit it."""
    shard = shard_at(address)
    model, num_rows = model_of(shard, index), shard.batch_rows
    end_kernel(shard.step_times)
    empty_batch(shard, model, num_rows, num_steps, buffer)
    note_all_but_last(shard, model, num_rows, num_steps)
    commit(shard, model, num_rows)
    note_batch(shard, num_rows)


@jit
def _find_checkpoint_rows(address: int, slots: int) -> int:
    shard = shard_at(address)
    read_clock(shard)
    return find_checkpoint_rows(shard, slots)


@jit
def _end(address: int, num_messages: int) -> None:
    """Do the rest of a turn, and wait if there is nothing more to do."""
    shard = shard_at(address)
    checkpoint(shard, False)  # the rows were brought for it
    listen(shard)
    reply(shard)
    sweep(shard)
    if num_messages == 0 and shard.num_ready == 0 and not can_checkpoint(shard):
        wait(shard)


@jit
def _resume_awaiting_row(address: int) -> None:
    resume_awaiting_row(shard_at(address))


def compile_for_gpu() -> None:
    """Compile what the loop calls, or load it from the cache."""
    functions = (
        _begin,
        _receive,
        _resume_awaiting_row,
        _find_checkpoint_rows,
        _end,
        _commit,
        _fill,
    )
    for function, num_arguments in zip(functions, (1, 1, 1, 2, 2, 4, 5), strict=True):
        function.compile((types.int64,) * num_arguments)


class GpuShard:
    """The loop of one shard whose batches a GPU computes.

    ``memory`` holds the host's rows. ``devices`` are the same models on the GPU, where the newest
    rows are, and belong to this shard alone.
    """

    def __init__(
        self,
        memory: ShardMemory,
        devices: Sequence[CudaDevice],
    ) -> None:
        self._memory, self._devices = memory, list(devices)
        self._checkpoint_rows = address_of(memory.checkpoint_rows)

    def serve(self) -> None:
        """Serve until Python sends `CommandKind.END`: see `streamrnn_server.shard.loop.serve`.

        Raises DeviceError if the GPU has failed; the shard's streams are lost then.
        """
        memory, address = self._memory, self._memory.address
        while memory.struct["state"] != ShardState.ENDED:
            index = _begin(address)
            self._bring_rows()
            num_steps = 0
            if index >= 0 and memory.struct["batch_rows"] > 0:
                device = self._devices[index]
                most = (device.max_chunk_rows, device.max_chunk_steps)
                num_steps = _fill(address, index, *most, address_of(device.batch_x))
                device.begin_batch(int(memory.struct["batch_rows"]), num_steps)
            # While the GPU computes. What comes for a stream of the batch waits for its turn.
            num_messages = _receive(address)
            if num_steps > 0:
                device.end_batch()
                _commit(address, index, num_steps, address_of(device.batch_y))
            self._fetch(
                memory.checkpoint_rows[: _find_checkpoint_rows(address, self._checkpoint_rows)]
            )
            _end(address, num_messages)

    def _bring_rows(self) -> None:
        """Copy rows written on the host to the GPU, and those asked for to the host."""
        memory = self._memory
        num_written = memory.struct["num_written"]
        num_awaiting_row = memory.struct["num_awaiting_row"]
        if num_written > 0:
            slots = memory.written[:num_written]
            for device, rows, own in self._by_model(slots):
                device.write_rows(own, rows[own])
            memory.row_locations[slots] = RowLocation.BOTH
            memory.struct["num_written"] = 0
        if num_awaiting_row > 0:
            self._fetch(memory.awaiting_row[:num_awaiting_row])
            _resume_awaiting_row(memory.address)

    def _fetch(self, slots: NDArray[np.int32]) -> None:
        """Copy rows from the GPU to the host."""
        if len(slots) == 0:
            return
        for device, rows, own in self._by_model(slots):
            rows[own] = device.read_rows(own)
        self._memory.row_locations[slots] = RowLocation.BOTH

    def _by_model(
        self, slots: NDArray[np.int32]
    ) -> list[tuple[CudaDevice, NDArray[np.float32], NDArray[np.int32]]]:
        """Return, for each model with some of the slots: device, host rows, and row numbers."""
        parts = []
        first = 0
        for device, rows in zip(self._devices, self._memory.rows, strict=True):
            own = slots[(slots >= first) & (slots < first + len(rows))] - np.int32(first)
            if len(own) > 0:
                parts.append((device, rows, own))
            first += len(rows)
        return parts
