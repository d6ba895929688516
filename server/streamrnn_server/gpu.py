"""A shard whose waves a GPU computes: the loop of `streamrnn_server.shard`, in Python.

Only the step differs. All else is done by the same compiled functions, which do not hold the GIL;
what Python adds is a call for each of them and the launches of a wave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from streamrnn.engine_cuda import CudaDevice
from streamrnn.errors import DeviceError, StartError
from streamrnn.model import Model
from streamrnn.state.slab import address_of
from streamrnn_server import layout as w
from streamrnn_server.admit import admit
from streamrnn_server.memory import ShardMemory
from streamrnn_server.receive import receive
from streamrnn_server.reply import reply
from streamrnn_server.rows import (
    empty_wave,
    fill_wave,
    find_rows_to_save,
    let_askers_go_on,
    steps_together,
)
from streamrnn_server.saving import can_save_more, save
from streamrnn_server.waiting import listen, read_clock, sweep, wait
from streamrnn_server.wave import choose_model, commit, gather, note_all_but_last

__all__ = ["GpuShard", "compile_for_gpu", "make_devices", "rows_of_a_wave"]

_MAX_ROWS = 4096  # of a wave


def make_devices(
    models: Mapping[str, Model], max_streams: int, precision: str = "float32"
) -> list[CudaDevice]:
    """Put models on the GPU, with room for the streams of one shard.

    Parameters
    ----------
    models : mapping of str to Model
        What is served, in the shards' order.
    max_streams : int
        Of each model.
    precision : str
        Of the products.

    Returns
    -------
    list of CudaDevice

    Raises
    ------
    StartError
        If there is no GPU that can be used, or it has no room for so many streams.
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


def rows_of_a_wave(devices: Sequence[CudaDevice]) -> int:
    """Return the most rows of a wave, of any model.

    Parameters
    ----------
    devices : sequence of CudaDevice
        The models'.

    Returns
    -------
    int
    """
    return min(_MAX_ROWS, *(device.max_rows for device in devices))


def compile_for_gpu() -> None:
    """Compile what the loop calls, or load it from the cache."""
    one = (types.int64,)
    for function in (
        *(admit, can_save_more, choose_model, let_askers_go_on, listen),
        *(read_clock, receive, reply, sweep, wait),
    ):
        function.compile(one)
    gather.compile((types.int64, types.int64[::1], types.int64))
    find_rows_to_save.compile(one * 2)
    save.compile((types.int64, types.boolean))
    commit.compile(one * 3)
    for function in (note_all_but_last, steps_together):
        function.compile(one * 4)
    for function in (empty_wave, fill_wave):
        function.compile(one * 5)


class GpuShard:
    """The loop of one shard.

    Parameters
    ----------
    memory : ShardMemory
        All that it works on; its rows are written and read by what needs them here.
    plans : sequence of ndarray of int64
        Of its models, in order: what checks an input.
    devices : sequence of CudaDevice
        The same models on the GPU, where the newest rows are. Of this shard alone.
    """

    def __init__(
        self,
        memory: ShardMemory,
        plans: Sequence[NDArray[np.int64]],
        devices: Sequence[CudaDevice],
    ) -> None:
        self._memory, self._plans, self._devices = memory, list(plans), list(devices)
        self._to_save = address_of(memory.to_save)

    def serve(self) -> None:
        """Serve until Python says that it is the end: see `streamrnn_server.shard.serve`.

        Raises
        ------
        DeviceError
            If the GPU has failed. The shard's streams are lost then.
        """
        memory, shard = self._memory, self._memory.address
        read_clock(shard)
        while memory.word(w.STATE) != w.ENDED:
            num_rows = 0
            model = choose_model(shard)
            if model != 0:
                index = memory.model_at(model)
                num_rows = gather(shard, self._plans[index], model)
                self._bring_rows()
            if num_rows > 0:
                device = self._devices[index]
                most = (device.max_chunk_rows, device.max_chunk_steps)
                num_steps = steps_together(shard, num_rows, *most)
                fill_wave(shard, model, num_rows, num_steps, address_of(device.wave_x))
                device.begin_wave(num_rows, num_steps)
            # While the GPU computes. What comes for a stream of the wave waits for its turn.
            num_messages = receive(shard)
            admit(shard)
            if num_rows > 0:
                device.end_wave()
                empty_wave(shard, model, num_rows, num_steps, address_of(device.wave_y))
                note_all_but_last(shard, model, num_rows, num_steps)
                commit(shard, model, num_rows)
            read_clock(shard)
            self._fetch(memory.to_save[: find_rows_to_save(shard, self._to_save)])
            save(shard, False)  # the rows were brought for it
            listen(shard)
            reply(shard)
            sweep(shard)
            is_idle = num_messages == 0 and memory.word(w.NUM_READY) == 0
            if is_idle and not can_save_more(shard):
                wait(shard)

    def _bring_rows(self) -> None:
        """Bring rows that were written here to the GPU, and those that were asked for here."""
        memory = self._memory
        num_written, num_asked_for = memory.word(w.NUM_WRITTEN), memory.word(w.NUM_ASKED_FOR)
        if num_written > 0:
            slots = memory.written[:num_written]
            for device, rows, own in self._by_model(slots):
                device.write_rows(own, rows[own])
            memory.places[slots] = w.ROW_SAME
            memory.clear(w.NUM_WRITTEN)
        if num_asked_for > 0:
            self._fetch(memory.asked_for[:num_asked_for])
            let_askers_go_on(memory.address)

    def _fetch(self, slots: NDArray[np.int32]) -> None:
        """Bring rows from the GPU."""
        if len(slots) == 0:
            return
        for device, rows, own in self._by_model(slots):
            rows[own] = device.read_rows(own)
        self._memory.places[slots] = w.ROW_SAME

    def _by_model(
        self, slots: NDArray[np.int32]
    ) -> list[tuple[CudaDevice, NDArray[np.float32], NDArray[np.int32]]]:
        """Return, for each model with some of the slots, what it has: device, rows, and places."""
        parts = []
        first = 0
        for device, rows in zip(self._devices, self._memory.rows, strict=True):
            own = slots[(slots >= first) & (slots < first + len(rows))] - np.int32(first)
            if len(own) > 0:
                parts.append((device, rows, own))
            first += len(rows)
        return parts
