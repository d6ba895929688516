"""Warm-up: compile everything before the server says that it is ready."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from numba.core import event, types

from streamrnn.kernels.cpu.tiling import cover_address
from streamrnn.kernels.precisions import PRECISIONS
from streamrnn.state.journal_table import find_entries, find_lacking
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.rerun import find_misfit, run_steps
from streamrnn_server.shard.batch.commit import commit
from streamrnn_server.shard.checkpoint.copy import checkpoint
from streamrnn_server.shard.checkpoint.packing import pack_entries, part_bytes, table_of_entries
from streamrnn_server.shard.gpu.loop import compile_for_gpu
from streamrnn_server.shard.loop import serve
from streamrnn_server.shard.memory.clients import forget_address
from streamrnn_server.shard.poll import listen
from streamrnn_server.shard.streams.sweep import sweep
from streamrnn_server.shard.structs import Model, Shard
from streamrnn_server.shard.wire.reply import reply
from streamrnn_server.storage.replayed import apply_entries

__all__ = ["compile_all", "compile_backwards"]

_SAY_EVERY_S = 2.0


class _Progress(event.Listener):
    """Tells what is being compiled, but not every function of a hundred small ones."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._began = self._said = time.monotonic()
        self.num_functions = 0

    def on_start(self, event: Any) -> None:
        now = time.monotonic()
        if self.num_functions == 0:
            self._began, self._said = now, now
            self._log.write("info", "compiling, for the first time on this machine: up to a minute")
        elif now - self._said >= _SAY_EVERY_S:
            self._said = now
            name = event.data["dispatcher"].py_func.__name__
            self._log.write("info", f"compiling {name}", elapsed_s=round(now - self._began, 1))
        self.num_functions += 1

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def _listening(listener: _Progress) -> Iterator[None]:
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


def compile_all(log: EventLog, precision: str, device: str) -> float:
    """Compile the loop with all that it calls, and what makes and replays records, or load it.

    Afterwards nothing is compiled, loaded or imported any more: there may be no file left for it.

    Returns
    -------
    float
        How long it took, in seconds.
    """
    began = time.monotonic()
    progress = _Progress(log)
    with _listening(progress):
        if device == "cpu":
            cover_address(PRECISIONS[precision])
            cover_address(PRECISIONS[precision], in_blocks=True)
            serve.compile((types.int64,))
        else:
            compile_for_gpu()
        forget_address()
        pack_entries.compile((types.int64,) * 5)
        table_of_entries.compile((*(types.int64,) * 3, types.int64[:, ::1]))
        part_bytes.compile((types.int64,))
        if device == "cpu":
            _compile_replay()
            run_steps.compile((types.int64,) * 6)
            find_misfit.compile((types.int64,) * 3)
        # Numba imports part of numpy to know an array's type: later there may be no file for it.
        numba.typeof(np.zeros((0, 6), np.int64))
    passed_s = time.monotonic() - began
    if progress.num_functions:
        log.write("info", "compiled", elapsed_s=round(passed_s, 1))
    return passed_s


def _compile_replay() -> None:
    """Compile what a start does to a journal: the first one may come after a crash."""
    apply_entries.compile((types.int64,) * 4)
    find_entries.compile((types.int64,) * 5)
    find_lacking.compile((types.int64,) * 4)


def compile_backwards(log: EventLog) -> None:
    """Compile what the CPU's loop calls, from its end: beside a process that does `compile_all`.

    Each finds in the cache on disk what the other one has compiled, so they meet in the middle.
    """
    shard, model = numba.from_dtype(Shard.dtype), numba.from_dtype(Model.dtype)
    with _listening(_Progress(log)):
        _compile_replay()
        sweep.compile((shard,))
        reply.compile((shard,))
        listen.compile((shard,))
        checkpoint.compile((shard, types.boolean))
        commit.compile((shard, model, types.int64))


if __name__ == "__main__":
    if "--backwards" in sys.argv:
        compile_backwards(EventLog())
    else:
        compile_all(EventLog(), "float32", "cpu")
