"""Methods on a stream's state: Python prepares them, a shard does them in the stream's order."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamrnn.errors import RecordError
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.state.record import StreamRecord, encode_record
from streamrnn.state.transfer import mapped_row
from streamrnn_client.protocol import (
    MAX_MSGID,
    ErrorCode,
    OpenWithStateRequest,
    ProtocolError,
    Response,
    StreamId,
    canonical_id,
    decode_response,
    encode_error,
    encode_response,
    grant_window,
    hash_slot,
    shard_of,
)
from streamrnn_server.control.about.diagnostics import NO_RECORDINGS, Diagnostics
from streamrnn_server.control.messages import Caller, Order, command
from streamrnn_server.control.methods.params import take_params
from streamrnn_server.live.table import ModelTable
from streamrnn_server.shard.checkpoint.packing import (
    pack_entries,
    seal,
    table_of_entries,
)
from streamrnn_server.shard.requests.request import Kind
from streamrnn_server.shard.structs import CommandKind
from streamrnn_server.storage.record_lookup import RecordLookup, may_use
from streamrnn_server.storage.usage import DiskUsage

__all__ = ["StateMethods"]

OnReply = Callable[[Response], None]
_MAX_WAITING = 4096
_ROLLBACK_DIGEST = 0x5EED_0F_B << 32  # and the CRC-32 of the snapshot's name below


@dataclass
class _Look:
    """Diagnostics on their way: a shard says whether they may be told, and records."""

    caller: Caller


@dataclass
class _Fork:
    """A fork on its way: the source is exported, then the target is made."""

    caller: Caller
    target: StreamId
    is_exported: bool = False


@dataclass
class _Own:
    """A request of the server's own, in a user's name."""

    caller: Caller
    on_reply: OnReply


class StateMethods:
    """Prepares what a shard then does in order. Knows no sockets."""

    METHODS = ("export", "import", "fork", "snapshot", "rollback", "sync", "diagnostics")

    def __init__(
        self,
        record_lookup: RecordLookup,
        table: ModelTable,
        num_shards: int,
        is_durable: bool,
        min_window: int,
        usage: DiskUsage | None = None,
        has_journal: bool = False,
        diagnostics: Diagnostics | None = None,
    ) -> None:
        self._record_lookup, self._table = record_lookup, table
        self._num_shards, self._is_durable = num_shards, is_durable
        self._min_window, self._usage, self._has_journal = min_window, usage, has_journal
        self._diagnostics = diagnostics
        self._waiting: dict[int, _Fork | _Look | _Own] = {}
        self._tokens = itertools.cycle(range(MAX_MSGID + 1))
        self._methods: dict[str, Callable[..., list[Order]]] = {
            "export": self._export,
            "import": self._import,
            "fork": self._fork,
            "snapshot": self._snapshot,
            "rollback": self._rollback,
            "sync": self._sync,
            "diagnostics": self._look,
        }

    def call(self, caller: Caller, method: str, params: list[Any]) -> list[Order]:
        """Begin a method of `METHODS`.

        Returns
        -------
        list of Order
            What to send.

        Raises
        ------
        ProtocolError
            If it cannot begin.
        """
        return self._methods[method](caller, *take_params(method, params))

    def open_with_state(self, caller: Caller, call: OpenWithStateRequest) -> list[Order]:
        """Begin to open a stream with the state that a record holds.

        Raises
        ------
        ProtocolError
            If the record cannot be used.
        """
        self._need_room(caller.user)
        index, record = self._judge(call.record, None, call.stream, caller.user)
        if call.model is not None and not self._table.means(call.model, index):
            index, record = self._mapped(index, record, call.model, call.stream)
        record = record.begun_anew(max(self._min_window, grant_window(call.window)))
        return [self._place(caller, call.stream, index, record)]

    def finish_export(self, caller: Caller, entry: bytes) -> list[Order]:
        """Make a record of the entry that a shard has copied out, and answer with it."""
        memory, table = np.frombuffer(entry, np.uint8), np.zeros((1, 6), np.int64)
        entries, templates = address_of(memory), self._table.templates.address
        record = np.zeros(table_of_entries(entries, 1, templates, table), np.uint8)
        pack_entries(entries, 1, templates, 0, address_of(record))
        record = record[: table[0, 5]]
        seal(record.data)
        return self.deliver(caller, encode_response(caller.msgid, record.tobytes()))

    def deliver(self, caller: Caller, payload: bytes) -> list[Order]:
        """Send a reply, or go on with what has waited for it."""
        if caller.identity:
            return [Order(caller.shard, [caller.identity, payload])]
        waiting = self._waiting.get(caller.msgid)
        if waiting is None:
            return []
        reply, asker = decode_response(payload), waiting.caller
        if isinstance(waiting, _Own):
            waiting.on_reply(reply)
            orders = []
        elif reply.error is not None:
            orders = [Order(asker.shard, [asker.identity, encode_error(asker.msgid, reply.error)])]
        elif isinstance(waiting, _Fork) and not waiting.is_exported:
            index, record = self._record_lookup.judge(reply.result)
            orders = [self._place(self._wait(waiting), waiting.target, index, record)]
            waiting.is_exported = True
        else:
            result = reply.result
            if isinstance(waiting, _Look) and self._diagnostics is not None:
                result = self._diagnostics.of_stream(asker.shard, *result)
            orders = [Order(asker.shard, [asker.identity, encode_response(asker.msgid, result)])]
        self._waiting.pop(caller.msgid, None)  # not before: who waits is answered if this failed
        return orders

    def let_go(self, stream: StreamId, user: str, on_reply: OnReply) -> tuple[int, Order]:
        """Have a stream written and leave memory; the shard says so by `AskKind.LEFT`.

        Also return what the request waits under.
        """
        caller = self._wait(_Own(Caller(0, b"", 0, user), on_reply))
        order = self._request(self._home(stream), caller, Kind.SYNC, stream, {"window": 1})
        return caller.msgid, order

    def restore(
        self, stream: StreamId, index: int, record: StreamRecord, on_reply: OnReply
    ) -> tuple[int, Order]:
        """Make a stream of a record, its owner's; also return what the request waits under."""
        caller = self._wait(_Own(Caller(0, b"", 0, record.owner), on_reply))
        return caller.msgid, self._place(caller, stream, index, record)

    def _home(self, stream: StreamId) -> int:
        return shard_of(hash_slot(stream), self._num_shards)

    def _wait(self, waiting: _Fork | _Look | _Own) -> Caller:
        token = next(self._tokens)
        self._waiting[token] = waiting
        if len(self._waiting) > _MAX_WAITING:  # the oldest one's request was dropped on its way
            del self._waiting[next(iter(self._waiting))]
        return Caller(0, b"", token, waiting.caller.user)

    def _export(self, caller: Caller, stream: StreamId) -> list[Order]:
        return [self._request(caller.shard, caller, Kind.EXPORT, stream)]

    def _import(
        self, caller: Caller, stream: StreamId, data: bytes, model: str | None
    ) -> list[Order]:
        self._need_room(caller.user)
        index, record = self._judge(data, model, stream, caller.user)
        return [self._place(caller, stream, index, record, caller.shard)]

    def _fork(self, caller: Caller, source: StreamId, target: StreamId) -> list[Order]:
        if canonical_id(target) == canonical_id(source):
            raise ProtocolError(ErrorCode.EXISTS, stream=target)
        self._need_room(caller.user)
        waiting = self._wait(_Fork(caller, target))
        return [self._request(caller.shard, waiting, Kind.EXPORT, source)]

    def _snapshot(self, caller: Caller, stream: StreamId, name: str) -> list[Order]:
        self._need_disk()
        self._need_room(caller.user)
        return [self._request(caller.shard, caller, Kind.SNAPSHOT, stream, data=name.encode())]

    def _rollback(
        self, caller: Caller, stream: StreamId, seq: int, name: str | None
    ) -> list[Order]:
        self._need_disk()
        if name is None and self._has_journal:  # the last good state is in the shard
            values = {"seq": seq, "digest": _ROLLBACK_DIGEST, "window": 1}
            return [self._request(caller.shard, caller, Kind.ROLLBACK, stream, values)]
        written = b"" if name is None else name.encode()
        try:
            index, record = self._record_lookup.snapshot(canonical_id(stream), name, caller.user)
        except ProtocolError as error:
            if error.code is not ErrorCode.UNKNOWN_SNAPSHOT or not caller.user:
                raise ProtocolError(error.code, stream=stream, **error.detail) from error
            # One that is not on disk yet may be another user's: the shard says so.
            index, record = 0, b""
        values = {
            "seq": seq,
            "model": index,
            "digest": _ROLLBACK_DIGEST + zlib.crc32(written),
        }
        return [self._request(caller.shard, caller, Kind.ROLLBACK, stream, values, record)]

    def _sync(self, caller: Caller, stream: StreamId | None) -> list[Order]:
        self._need_disk()
        if stream is None:
            return [self._request(caller.shard, caller, Kind.SYNC_ALL, 0)]
        return [self._request(caller.shard, caller, Kind.SYNC, stream)]

    def _look(self, caller: Caller, stream: StreamId) -> list[Order]:
        if self._diagnostics is None:
            raise ProtocolError(ErrorCode.NOT_SUPPORTED, NO_RECORDINGS)
        return [self._request(caller.shard, self._wait(_Look(caller)), Kind.RECORD, stream)]

    def _need_disk(self) -> None:
        if not self._is_durable:
            raise ProtocolError(
                ErrorCode.NOT_SUPPORTED,
                "the server keeps nothing on disk; start it with --state-dir",
            )

    def _need_room(self, user: str) -> None:
        if self._usage is not None and self._usage.is_full(user):
            raise ProtocolError(ErrorCode.READ_ONLY, reason=self._usage.reason(user))

    def _judge(
        self, data: bytes, model: str | None, stream: StreamId, user: str
    ) -> tuple[int, StreamRecord]:
        try:
            index, record = self._record_lookup.judge(data)
        except ProtocolError as error:
            raise ProtocolError(error.code, stream=stream, **error.detail) from error
        if not may_use(record.owner, user):
            raise ProtocolError(
                ErrorCode.FORBIDDEN, "the record is of another user's stream", stream=stream
            )
        if model is None or self._table.means(model, index):
            return index, record
        raise self._wrong_model(index, model, stream, "")

    def _wrong_model(self, index: int, model: str, stream: StreamId, why: str) -> ProtocolError:
        if self._table.resolve(model) is None:
            return ProtocolError(ErrorCode.UNKNOWN_MODEL, model=model, models=self._table.names)
        has = self._table.served[index].name
        text = f"the record is of model {has!r}, not of {model!r}{why}"
        return ProtocolError(ErrorCode.WRONG_MODEL, text, has=has, model=model, stream=stream)

    def _mapped(
        self, index: int, record: StreamRecord, model: str, stream: StreamId
    ) -> tuple[int, StreamRecord]:
        """Begin a stream of another model with the parts of a state that have the same names."""
        target = self._table.resolve(model)
        if target is None:
            raise self._wrong_model(index, model, stream, "")
        models = self._table.models
        row = np.frombuffer(record.row, "<f4")
        try:
            new = mapped_row(models[index], models[target], row)
        except RecordError as error:
            raise self._wrong_model(index, model, stream, f": {error}") from error
        served = self._table.served[target]
        return target, replace(
            record,
            model=served.name,
            fingerprint=served.fingerprint,
            arithmetic=served.arithmetic,
            row=new.astype("<f4").tobytes(),
            inputs=b"",  # the other model's
        )

    def _place(
        self,
        caller: Caller,
        stream: StreamId,
        index: int,
        record: StreamRecord,
        shard: int | None = None,
    ) -> Order:
        """Make a stream of a record; by default in the shard that it belongs to."""
        if shard is None:
            shard = self._home(stream)
        data = encode_record(record.renamed(canonical_id(stream)))
        return self._request(shard, caller, Kind.RESTORE, stream, {"model": index}, data)

    @staticmethod
    def _request(
        shard: int,
        caller: Caller,
        kind: int,
        stream: StreamId,
        values: dict[str, int] | None = None,
        data: bytes = b"",
    ) -> Order:
        canonical, user = canonical_id(stream), caller.user.encode()
        fields = {
            "kind": kind,
            "msgid": caller.msgid,
            "identity_bytes": len(caller.identity),
            "stream_bytes": len(canonical),
            "data_bytes": len(data),
            "owner_bytes": len(user),
            **(values or {}),
        }
        frames = command(CommandKind.REQUEST, fields, caller.identity, canonical, data, user)
        return Order(shard, frames)
