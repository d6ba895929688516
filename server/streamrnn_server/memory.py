"""A shard's memory, made and kept alive by Python."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from streamrnn.errors import StartError
from streamrnn.kernels.plan import MAX_WAVE, Program
from streamrnn.state.arena import Arena
from streamrnn.state.budget import Budget, take_bytes
from streamrnn.state.index import StreamIndex
from streamrnn.state.slab import HEADER_BYTES, HUGE_PAGE_BYTES, address_of, reserve, touch
from streamrnn_client.protocol import MAX_BATCH, MAX_WINDOW, ErrorCode, error_reply
from streamrnn_server import layout as w
from streamrnn_server.config import ServerConfig, format_bytes
from streamrnn_server.libzmq import MESSAGE_BYTES, POLL_BYTES, msg_close, msg_init
from streamrnn_server.reply import MAX_WORDS
from streamrnn_server.requests import RequestPool
from streamrnn_server.users import Users

__all__ = ["ShardMemory"]

_NUM_REQUESTS = 8 * MAX_BATCH
_MAX_SLOTS = 2**31 - 2
_OUT_SLACK_BYTES = 64 * 2**20
_ENTRY_SLACK_BYTES = 4096


class ShardMemory:
    """All that one shard works on.

    Parameters
    ----------
    config : ServerConfig
        Limits and the number of shards.
    shard : int
        Which shard it is.
    programs : mapping of str to Program
        The models, by name, in order; their scratch is used by this shard alone.
    router, pair : zmq.Socket
        Bound and connected; from now on the shard's thread alone uses them.
    disk : zmq.Socket or None
        Connected to the thread that writes, where there is a state directory.
    endpoints : sequence of str
        Where clients find each shard.
    gpu_rows : int
        The most rows of a wave that a GPU computes; 0 where the CPU does.

    Attributes
    ----------
    address : int
        What `streamrnn_server.shard.serve` takes.
    counters : ndarray of int64, shape (len(COUNTERS),)
        Written by the shard, read by anybody.
    latencies : ndarray of int64, shape (NUM_BUCKETS,)
        Number of replies for each bucket of nanoseconds from receive to send.
    rows : list of ndarray of float32, shape (max_streams, row_bytes // 4)
        Each model's.
    budget : Budget
        What its memory counts against.
    places : ndarray of uint8, shape (num_slots,)
    written, asked_for, to_save : ndarray of int32, shape (num_slots,)
        Where each slot's row is, and lists of slots; see `layout`. Empty without a GPU.
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
    ) -> None:
        max_streams = config.max_streams_of_a_shard
        if max_streams * len(programs) > _MAX_SLOTS:
            raise StartError(
                f"{max_streams} streams of each of {len(programs)} models are more than a shard "
                f"can number ({_MAX_SLOTS}); allow fewer (--max-streams)"
            )
        self._owned: list[Any] = []
        self.rows: list[NDArray[np.float32]] = []
        self.names = list(programs)
        num_slots = len(programs) * max_streams + _NUM_REQUESTS  # with the room's
        headers = reserve(num_slots * HEADER_BYTES, huge_pages=True)
        touch(headers)
        self._pool = RequestPool(
            _NUM_REQUESTS, max(4 * program.spec.num_inputs for program in programs.values())
        )
        self.budget = Budget(config.memory_budget_of_a_shard)
        self._index = StreamIndex(num_slots, self._own(headers))
        largest = max(
            program.row_bytes + MAX_WINDOW * (8 + 4 * program.spec.output_size)
            for program in programs.values()
        )
        stage_bytes = w.STAGE_BYTES + largest + _ENTRY_SLACK_BYTES
        self._take_always(config, disk is not None, stage_bytes, len(programs))
        self._arena = Arena(self.budget.max_bytes, self.budget)
        self._users = Users(num_slots) if config.has_users else None
        self._models = np.zeros((len(programs) + 1, w.MODEL_RECORD_BYTES // 8), np.int64)
        for k, (name, program) in enumerate(programs.items()):
            self._add_model(k, name, program, max_streams)
        self.counters: NDArray[np.int64] = np.zeros(len(w.COUNTERS), np.int64)
        self.latencies: NDArray[np.int64] = np.zeros(w.NUM_BUCKETS, np.int64)
        self._words: NDArray[np.int64] = np.zeros(w.SHARD_WORDS, np.int64)
        self.address = address_of(self._words)
        y_stride = max(64 * -(-program.spec.output_size // 16) for program in programs.values())
        out_bytes = 4 * config.max_message_bytes + _OUT_SLACK_BYTES
        max_rows = gpu_rows or MAX_WAVE
        out = reserve(out_bytes)
        touch(out)
        self._set(
            {
                w.ROUTER: router.underlying,
                w.PAIR: pair.underlying,
                w.IDENTITY_MESSAGE: self._zeros(MESSAGE_BYTES),
                w.PAYLOAD_MESSAGE: self._zeros(MESSAGE_BYTES),
                w.POLL_ITEMS: self._zeros(POLL_BYTES),
                w.CLOCK: self._zeros(16),
                w.BUDGET: self.budget.address,
                w.USERS: self._users.address if self._users is not None else 0,
                w.POOL: self._pool.address,
                w.ARENA: self._arena.address,
                w.INDEX: self._index.address,
                w.HEADERS: address_of(headers),
                w.MODELS: address_of(self._models),
                w.NUM_MODELS: len(programs),
                w.MAX_STREAMS: max_streams,
                w.SHARD: shard,
                w.NUM_SHARDS: config.num_shards,
                w.MAX_MESSAGE_BYTES: config.max_message_bytes,
                w.INLINE_X_BYTES: self._pool.inline_x_bytes,
                w.OUT: self._own(out),
                w.OUT_BYTES: out_bytes,
                w.MAX_ROWS: max_rows,
                w.ROWS: self._zeros(8 * max_rows),
                w.XS: self._zeros(8 * max_rows),
                w.YS: self._zeros(8 * max_rows),
                w.WAVE_SLOTS: self._zeros(8 * max_rows),
                w.WAVE_REQUESTS: self._zeros(8 * max_rows),
                w.WAVE_Y: self._zeros(y_stride * max_rows),
                w.WAVE_Y_STRIDE: y_stride,
                w.IDLE_LIMIT_S: config.idle_limit_s,
                w.WORDS_LEFT: MAX_WORDS,
                w.CANNED: self._texts(self._canned_errors(config)),
                w.MOVED: self._texts(
                    [error_reply(ErrorCode.MOVED, endpoint=endpoint) for endpoint in endpoints]
                ),
                w.COUNTERS_AT: address_of(self.counters),
                w.LATENCIES: address_of(self.latencies),
            }
        )
        self._models[-1, w.FIRST_SLOT // 8] = len(programs) * max_streams
        self._add_places(num_slots if gpu_rows else 0)
        if disk is not None:
            self._add_disk(config, disk, num_slots, stage_bytes)
        for word in (w.IDENTITY_MESSAGE, w.PAYLOAD_MESSAGE):
            msg_init(int(self._words[word // 8]))

    def _take_always(
        self, config: ServerConfig, has_disk: bool, stage_bytes: int, num_models: int
    ) -> None:
        """Let count what is there however many streams there are."""
        always = self._index.num_bytes + self._pool.num_bytes
        always += w.NUM_STAGES * stage_bytes if has_disk else 0
        least = always + (num_models + 1) * HUGE_PAGE_BYTES
        if not take_bytes(self.budget.address, always) or least > self.budget.max_bytes:
            each = f", {config.num_shards} shards" if config.num_shards > 1 else ""
            raise StartError(
                f"--memory-budget is {format_bytes(config.memory_budget_bytes)}; {num_models} "
                f"models with --max-streams {config.max_streams}{each} need "
                f"{format_bytes(least * config.num_shards)} before the first stream: allow more "
                "memory or fewer streams"
            )

    def _add_places(self, num_slots: int) -> None:
        self.places = reserve(num_slots)[:num_slots]
        self.written, self.asked_for, self.to_save = (
            reserve(4 * num_slots)[: 4 * num_slots].view(np.int32) for _ in range(3)
        )
        if num_slots > 0:
            self._set(
                {
                    w.PLACES: address_of(self.places),
                    w.WRITTEN: address_of(self.written),
                    w.ASKED_FOR: address_of(self.asked_for),
                    # With window 1 an output is computed again from the row, which is away.
                    w.MIN_WINDOW_LOG2: 1,
                }
            )

    def _add_disk(
        self,
        config: ServerConfig,
        disk: zmq.Socket[bytes],
        num_slots: int,
        stage_bytes: int,
    ) -> None:
        stages = np.zeros((w.NUM_STAGES, w.STAGE_RECORD_BYTES // 8), np.int64)
        for stage in stages:
            memory = reserve(stage_bytes, huge_pages=True)
            stage[w.STAGE_AT // 8] = self._own(memory)
        interval_ns = round(config.checkpoint_interval_s * 1e9)
        self._set(
            {
                w.DISK: disk.underlying,
                w.IS_ALWAYS: config.durability == "always",
                w.SAVE_EVERY_NS: interval_ns,
                w.RETRY_NS: interval_ns,
                w.SAVE_AT_NS: time.monotonic_ns() + interval_ns,
                w.DIRTY: self._own(reserve(4 * num_slots)),
                w.SAVED: self._own(reserve(4 * num_slots)),
                w.STAGES: self._own(stages),
                w.STAGE: -1,
                w.ACKNOWLEDGED: -1,
                w.CAN_LOOK_UP: 1,
            }
        )

    def close(self) -> None:
        """Let go of libzmq's messages. The shard's thread has ended."""
        for word in (w.IDENTITY_MESSAGE, w.PAYLOAD_MESSAGE):
            msg_close(int(self._words[word // 8]))

    def word(self, word: int) -> int:
        """Return one of the shard's numbers, as it is just now.

        Parameters
        ----------
        word : int
            One of the words of `layout`.

        Returns
        -------
        int
        """
        return int(self._words[word // 8])

    def user(self, number: int) -> str:
        """Return a user's name.

        Parameters
        ----------
        number : int
            As it came with a message of this shard's.

        Returns
        -------
        str
            Empty where there are no users.
        """
        return self._users.name(number) if self._users is not None else ""

    def clear(self, word: int) -> None:
        """Set one of the shard's numbers to 0; of its own thread only.

        Parameters
        ----------
        word : int
            One of the words of `layout`.
        """
        self._words[word // 8] = 0

    def model_at(self, address: int) -> int:
        """Return the index of a model by the address of its record.

        Parameters
        ----------
        address : int
            As `streamrnn_server.wave.choose_model` returns it.

        Returns
        -------
        int
        """
        return (address - address_of(self._models)) // w.MODEL_RECORD_BYTES

    def num_open(self) -> dict[str, int]:
        """Return the number of open streams of each model.

        Returns
        -------
        dict of str to int
        """
        column = self._models[:-1, w.NUM_OPEN // 8]
        return {name: int(number) for name, number in zip(self.names, column, strict=True)}

    @property
    def arena(self) -> Arena:
        """The shard's arena."""
        return self._arena

    def _add_model(self, k: int, name: str, program: Program, max_streams: int) -> None:
        num_units = -(-max_streams * program.row_bytes // HUGE_PAGE_BYTES)
        rows = reserve(num_units * HUGE_PAGE_BYTES, huge_pages=True)
        units = np.zeros(num_units, np.uint8)
        if take_bytes(self.budget.address, HUGE_PAGE_BYTES):
            units[0] = 1
            touch(rows)
        self.rows.append(
            rows.view(np.float32)[: max_streams * program.row_bytes // 4].reshape(max_streams, -1)
        )
        first_slot = k * max_streams
        text = np.frombuffer(name.encode(), np.uint8)
        self._owned.append(program)
        record = {
            w.PLAN: address_of(program.plan),
            w.PLAN_LENGTH: len(program.plan),
            w.FIRST_ROW: self._own(rows) - first_slot * program.row_bytes,
            w.ROW_BYTES: program.row_bytes,
            w.INITIAL_ROW: address_of(program.initial_row),
            w.STEP_BYTES: 4 * program.spec.num_inputs,
            w.Y_BYTES: 4 * program.spec.output_size,
            w.IS_TOKEN: program.spec.is_token,
            w.FIRST_SLOT: first_slot,
            w.NAME: self._own(text),
            w.NAME_BYTES: len(text),
            w.UNITS: self._own(units),
        }
        for word, value in record.items():
            self._models[k, word // 8] = value

    def _canned_errors(self, config: ServerConfig) -> list[list[Any]]:
        """Return an error for each code, with no detail but what is always the same."""
        errors: list[list[Any]] = [[]]
        for code in ErrorCode:
            always: dict[str, Any] = (
                {"retry_after_ms": config.retry_after_ms} if code is ErrorCode.BUSY else {}
            )
            errors.append(error_reply(code, **always))
        return errors

    def _texts(self, errors: Sequence[Sequence[Any]]) -> int:
        """Encode errors; return the address of a table of their addresses and lengths."""
        table = np.zeros((len(errors), 2), np.int64)
        for row, error in zip(table, errors, strict=True):
            text = np.frombuffer(msgpack.packb(error), np.uint8)
            row[:] = self._own(text), len(text)
        return self._own(table)

    def _set(self, values: Mapping[int, int]) -> None:
        for word, value in values.items():
            self._words[word // 8] = value

    def _own(self, array: NDArray[Any]) -> int:
        self._owned.append(array)
        return address_of(array)

    def _zeros(self, num_bytes: int) -> int:
        """Return the address of zeroed memory at a multiple of 64."""
        array = np.zeros(num_bytes + 64, np.uint8)
        return -(-self._own(array) // 64) * 64
