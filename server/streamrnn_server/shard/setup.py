"""Allocate and fill a shard's memory, and keep it alive."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from streamrnn.errors import StartError
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.virtual_memory import (
    HUGE_PAGE_BYTES,
    address_of,
    reserve,
    struct_address,
    touch,
)
from streamrnn_client.protocol import MAX_BATCH, MAX_WINDOW, ErrorCode, error_reply
from streamrnn_server.config import ServerConfig, format_bytes
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.libzmq import msg_close, msg_init
from streamrnn_server.shard.memory.admission import Limit, busy_reply, ns_per_step
from streamrnn_server.shard.memory.arena import Arena
from streamrnn_server.shard.memory.budget import reserve_bytes
from streamrnn_server.shard.memory.clients import Clients
from streamrnn_server.shard.memory.header import HEADER_BYTES, Header
from streamrnn_server.shard.memory.index import StreamIndex
from streamrnn_server.shard.memory.journal import MAX_ENTRY_BYTES
from streamrnn_server.shard.memory.recording import Recorder
from streamrnn_server.shard.memory.step_times import NUM_STEP_TIMES, StepTime
from streamrnn_server.shard.memory.tally import Tally
from streamrnn_server.shard.model_memory import ModelMemory, Sizes
from streamrnn_server.shard.requests.request import NUM_KINDS, RequestPool
from streamrnn_server.shard.streams.eviction import SLOT_BYTES
from streamrnn_server.shard.streams.owners import Users
from streamrnn_server.shard.structs import DiskBuffer, Shard

__all__ = ["ShardMemory", "waiting_bytes"]

_NUM_REQUESTS = 8 * MAX_BATCH
_MAX_SLOTS = 2**31 - 2
_OUT_SLACK_BYTES = 64 * 2**20
_ENTRY_SLACK_BYTES = 4096
_MESSAGES = ("identity_message", "payload_message", "reply_message")
# What may wait outside of the shard: these parts of its budget, but not more than is of use.
_UNREAD_PART, _MAX_UNREAD_BYTES = 16, 2**30  # for clients that read slowly
_ASKED_PART, _MAX_ASKED_BYTES = 32, 2**26  # for Python
_GROUP_BYTES = 2 * 2**20  # with more, no batch is begun


class ShardMemory:
    """The memory of one shard: made here, owned here, used by the shard's thread.

    Parameters
    ----------
    config : ServerConfig
        Limits and the number of shards.
    shard : int
        Index of the shard.
    programs : mapping of str to Program
        The models, by name, in order; their scratch is used by this shard alone.
    router, pair : zmq.Socket
        Bound and connected; from now on the shard's thread alone uses them.
    disk : zmq.Socket or None
        Connected to the checkpoint writer, where there is a state directory.
    endpoints : sequence of str
        Where clients find each shard.
    gpu_rows : int
        The most rows of a batch that a GPU computes; 0 where the CPU does.
    valid_keys : ndarray of uint8, optional
        Which keys may be used, where there are users.
    journal : zmq.Socket, optional
        Connected to the thread that writes the shard's journal, where there is one.

    Attributes
    ----------
    struct : Shard
        Written by the shard's thread, read by any.
    address : int
        Its address; what `streamrnn_server.shard.loop.serve` takes.
    models : ModelMemory
    rows : list of ndarray of float32, shape (max_streams, row_bytes // 4)
        Each model's.
    row_locations : ndarray of uint8, shape (num_slots,)
        A `RowLocation` for each slot. Empty without a GPU, as the lists below.
    headers : ndarray of Header, shape (num_slots,)
    num_requests : int
        How many the shard may have on their way.
    recorder : Recorder
    capacity : int
        How many models there may ever be.
    batches : ndarray of BatchTally, shape (capacity,)
    tallies : ndarray of Tally, shape (capacity + 1, NUM_KINDS)
        Of requests; the last row's are of no model.
    step_times : ndarray of StepTime, shape (NUM_STEP_TIMES,)
        A ring of the messages that were timed last.
    note_answered : callable
        Takes the number of a client's account and how much Python is done with.
    written, awaiting_row, checkpoint_rows : ndarray of int32, shape (num_slots,)
        Lists of slots.
    """

    def __init__(
        self,
        config: ServerConfig,
        shard: int,
        programs: Mapping[str, Program],
        router: zmq.Socket[bytes],
        pair: zmq.Socket[bytes],
        disk: zmq.Socket[bytes] | None,
        endpoints: Sequence[str],
        gpu_rows: int = 0,
        valid_keys: NDArray[np.uint8] | None = None,
        journal: zmq.Socket[bytes] | None = None,
    ) -> None:
        max_streams = config.max_streams_of_a_shard
        self.capacity = config.max_models_from(len(programs))
        if max_streams * self.capacity > _MAX_SLOTS:
            raise StartError(
                f"{max_streams} streams of each of {self.capacity} models are more than a shard "
                f"can number ({_MAX_SLOTS}); allow fewer (--max-streams)"
            )
        self._owned: list[Any] = []
        self.models = ModelMemory(self.capacity, max_streams, config.history_of)
        self.rows = self.models.rows
        self.struct = Shard.one()
        self.struct["max_streams"] = max_streams
        self.address = struct_address(self.struct)
        num_slots = self.capacity * max_streams + _NUM_REQUESTS  # with those of the lookup
        sizes = Sizes.of(programs, config.history_of)
        disk_buffer_bytes = _disk_buffer_bytes(sizes)
        self._users: Users | None = None
        if valid_keys is not None:
            most, share = config.user_limits, config.user_share
            self._users = Users(num_slots, valid_keys, most, config.num_shards, share)
        self._add_tables(config, sizes, num_slots)
        self.recorder = Recorder(
            0 if gpu_rows else config.diagnostics_streams_of_a_shard,
            [program.row_bytes for program in programs.values()],
            self.struct["recorder"],
        )
        self.models.max_recorded_row_bytes = self.recorder.max_row_bytes
        journal_bytes = 2 * _GROUP_BYTES if journal is not None else 0
        fixed_bytes = journal_bytes + (
            w.NUM_DISK_BUFFERS * disk_buffer_bytes if disk is not None else 0
        )
        self._reserve_fixed(config, fixed_bytes, len(programs))
        budget = self.struct["budget"]
        self._arena = Arena(int(budget["max_bytes"]), budget, self.struct["arena"])
        self._add_models(programs)
        # What follows takes memory only where it is touched.
        room = sizes.with_loaded() if self.capacity > len(programs) else sizes
        self._add_batch(sizes, room, gpu_rows or MAX_BATCH_ROWS)
        self._add_output(config, endpoints)
        self._add_row_locations(num_slots if gpu_rows else 0)
        self._set(
            router=router.underlying,
            pair=pair.underlying,
            number=shard,
            num_shards=config.num_shards,
            max_message_bytes=config.max_message_bytes,
            max_inputs=sizes.num_inputs,
            idle_limit_s=config.idle_limit_s,
        )
        rate = ns_per_step(config.max_steps_per_s, config.num_shards)
        self.struct["steps"]["ns_per_step"] = rate
        if disk is not None:
            self._add_disk(config, disk, num_slots, _disk_buffer_bytes(room))
        if journal is not None:
            self._add_journal(journal, sizes, room)
        for name in _MESSAGES:
            msg_init(address_of(self.struct[name]))

    def _add_tables(self, config: ServerConfig, sizes: Sizes, num_slots: int) -> None:
        """Add the requests' pool, the slots' headers, the index and the users."""
        headers = reserve(num_slots * HEADER_BYTES, huge_pages=True)
        touch(headers)
        self.headers = headers[: num_slots * HEADER_BYTES].view(Header.dtype)
        self.num_requests = _NUM_REQUESTS
        self._pool = RequestPool(_NUM_REQUESTS, 4 * sizes.num_inputs, self.struct["pool"])
        # No more are in it at once, of whatever models.
        max_indexed = config.max_streams_of_a_shard + _NUM_REQUESTS
        self._index = StreamIndex(max_indexed, self._own(headers), self.struct["index"])
        budget = config.memory_budget_of_a_shard
        self.struct["budget"]["max_bytes"] = budget
        self._clients = Clients(*waiting_bytes(budget), self.struct["clients"])
        self.note_answered = self._clients.note_answered
        self._set(
            headers=address_of(headers),
            inline_x_bytes=self._pool.inline_x_bytes,
            users=self._users.address if self._users is not None else 0,
        )

    def _add_models(self, programs: Mapping[str, Program]) -> None:
        for name, program in programs.items():
            self.models.add(name, program, self.struct["budget"])
        self.batches = self.models.structs["batches"][:-1]
        self.tallies = np.zeros((self.capacity + 1, NUM_KINDS), Tally.dtype)
        self.step_times = np.zeros(NUM_STEP_TIMES, StepTime.dtype)
        self.struct["step_times"]["records"] = address_of(self.step_times)
        self._set(
            models=address_of(self.models.structs),
            num_models=len(programs),
            lookup_model=self.capacity,
            tallies=address_of(self.tallies),
        )
        aliases = [(name, k, k, 0) for k, name in enumerate(programs)]
        self.set_models(aliases, list(range(len(programs))), {})

    def _add_batch(self, sizes: Sizes, room: Sizes, max_rows: int) -> None:
        self._set(
            max_rows=max_rows,
            rows=self._zeros(8 * max_rows),
            xs=self._zeros(8 * max_rows),
            ys=self._zeros(8 * max_rows),
            batch_slots=self._zeros(8 * max_rows),
            batch_requests=self._zeros(8 * max_rows),
            batch_y=self._zeros(room.y_stride * max_rows),
            batch_y_stride=sizes.y_stride,
        )

    def _add_output(self, config: ServerConfig, endpoints: Sequence[str]) -> None:
        """Add memory for the reply being written, and the errors encoded beforehand."""
        out_bytes = 4 * config.max_message_bytes + _OUT_SLACK_BYTES
        out = reserve(out_bytes)
        touch(out)
        self._set(
            out=self._own(out),
            out_bytes=out_bytes,
            encoded_errors=self._texts([[], *map(error_reply, ErrorCode)]),
            encoded_busy=self._texts([busy_reply(limit, 0) for limit in Limit]),
            retry_after_ms=config.retry_after_ms,
            encoded_moved=self._texts(
                [error_reply(ErrorCode.MOVED, endpoint=each) for each in endpoints]
            ),
        )

    def _reserve_fixed(self, config: ServerConfig, buffer_bytes: int, num_models: int) -> None:
        """Count the memory that does not depend on the number of streams."""
        always = self._index.num_bytes + self._pool.num_bytes + self._clients.num_bytes
        always += buffer_bytes
        rows = (num_models + 1) * HUGE_PAGE_BYTES
        budget = self.struct["budget"]
        if not reserve_bytes(budget, always) or always + rows > budget["max_bytes"]:
            waiting = self._clients.max_waiting_bytes
            least = math.ceil((always - waiting + rows) / (1 - 1 / _UNREAD_PART - 1 / _ASKED_PART))
            each = f", {config.num_shards} shards" if config.num_shards > 1 else ""
            raise StartError(
                f"--memory-budget is {format_bytes(config.memory_budget_bytes)}; {num_models} "
                f"models with --max-streams {config.max_streams}{each} need "
                f"{format_bytes(least * config.num_shards)} before the first stream: allow more "
                "memory or fewer streams"
            )

    def _add_row_locations(self, num_slots: int) -> None:
        self.row_locations = reserve(num_slots)[:num_slots]
        self.written, self.awaiting_row, self.checkpoint_rows = (
            reserve(4 * num_slots)[: 4 * num_slots].view(np.int32) for _ in range(3)
        )
        if num_slots > 0:
            self._set(
                row_locations=address_of(self.row_locations),
                written=address_of(self.written),
                awaiting_row=address_of(self.awaiting_row),
                # With window 1 an output is computed again from the row, which is away.
                min_window_log2=1,
            )

    def _add_disk(
        self,
        config: ServerConfig,
        disk: zmq.Socket[bytes],
        num_slots: int,
        disk_buffer_bytes: int,
    ) -> None:
        disk_buffers = np.zeros(w.NUM_DISK_BUFFERS, DiskBuffer.dtype)
        for buffer in disk_buffers:
            buffer["at"] = self._own(reserve(disk_buffer_bytes, huge_pages=True))
        interval_ns = round(config.checkpoint_interval_s * 1e9)
        self._set(
            disk=disk.underlying,
            is_always=config.durability == "always",
            checkpoint_interval_ns=interval_ns,
            retry_ns=interval_ns,
            checkpoint_due_ns=time.monotonic_ns() + interval_ns,
            histories=self._own(reserve(w.HISTORY_BYTES * num_slots)),
            dirty=self._own(reserve(4 * num_slots)),
            checkpoint_slots=self._own(reserve(4 * num_slots)),
            disk_buffers=self._own(disk_buffers),
            filling_buffer=-1,
            acknowledged=-1,
            can_look_up=1,
        )

    def _add_journal(self, socket: zmq.Socket[bytes], sizes: Sizes, room: Sizes) -> None:
        """Add the buffers of entries: behind one that is full there is space for what may come."""
        max_rows = int(self.struct["max_rows"])
        steps = max_rows * (MAX_ENTRY_BYTES + 4 * room.num_inputs)
        # A request makes one entry beside its steps, and a stream that comes from disk one.
        capacity = _GROUP_BYTES + steps + 3 * _NUM_REQUESTS * MAX_ENTRY_BYTES
        values = {
            "socket": socket.underlying,
            "filling": self._own(reserve(capacity)),
            "other": self._own(reserve(capacity)),
            "capacity": capacity,
            "max_used_bytes": _GROUP_BYTES,
            "rows": self._own(reserve(max_rows * room.row_bytes)),
            "row_stride": sizes.row_bytes,
        }
        for name, value in values.items():
            self.struct["journal"][name] = value

    def set_models(
        self,
        aliases: Sequence[tuple[str, int, int, int]],
        families: Sequence[int],
        successors: Mapping[int, tuple[int, int]],
    ) -> None:
        """Say before the shard runs which aliases there are, and how models belong together.

        ``families`` has the number of each model's; ``successors`` the index of the model to which
        one's streams are swapped, and how.
        """
        self._set(aliases=self.models.make_aliases(aliases), num_aliases=len(aliases))
        self.models.relate(families, successors)

    def close(self) -> None:
        """Close libzmq's messages. The shard's thread has ended."""
        for name in _MESSAGES:
            msg_close(address_of(self.struct[name]))

    def user(self, number: int) -> str:
        """Return the name of a user by its id, empty where there are no users."""
        return self._users.name(number) if self._users is not None else ""

    @property
    def users(self) -> Users | None:
        """The users and their limits; None where clients need no keys."""
        return self._users

    def budget_of(self, user: str) -> dict[str, int]:
        """Return what of a user's is in memory: ``num_streams``, ``num_bytes``."""
        return self._users.budget(user) if self._users is not None else {}

    def num_open(self) -> dict[str, int]:
        """Return the number of open streams of each model."""
        return self.models.num_open()

    def memory_parts(self) -> dict[str, int]:
        """Return what the bytes of the memory budget are used for."""
        parts = {
            "rows": self.models.num_row_bytes,
            "slots": int(self.models.structs["num_fresh"][:-1].sum()) * SLOT_BYTES,
            "blocks": self._arena.num_bytes,
        }
        used_bytes = int(self.struct["budget"]["used_bytes"])
        return {**parts, "fixed": max(0, used_bytes - sum(parts.values()))}

    def _texts(self, errors: Sequence[Sequence[Any]]) -> int:
        """Encode errors; return the address of a table of their addresses and lengths."""
        table = np.zeros((len(errors), 2), np.int64)
        for row, error in zip(table, errors, strict=True):
            text = np.frombuffer(msgpack.packb(error), np.uint8)
            row[:] = self._own(text), len(text)
        return self._own(table)

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self.struct[name] = value

    def _own(self, array: NDArray[Any]) -> int:
        self._owned.append(array)
        return address_of(array)

    def _zeros(self, num_bytes: int) -> int:
        """Return the address of zeroed memory at a multiple of 64."""
        array = np.zeros(num_bytes + 64, np.uint8)
        return -(-self._own(array) // 64) * 64


def waiting_bytes(budget: int) -> tuple[int, int]:
    """Return what of a shard's budget may wait to be read by clients, and what for Python."""
    unread = min(budget // _UNREAD_PART, _MAX_UNREAD_BYTES)
    return unread, min(budget // _ASKED_PART, _MAX_ASKED_BYTES)


def _disk_buffer_bytes(sizes: Sizes) -> int:
    """Return the size of a disk buffer: the largest entry fits behind one that is nearly full."""
    largest = sizes.row_bytes + MAX_WINDOW * (8 + 4 * sizes.output_size)
    return w.DISK_BUFFER_BYTES + largest + _ENTRY_SLACK_BYTES
