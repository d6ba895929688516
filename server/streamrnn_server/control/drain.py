"""Drain: streams that leave for another server, or come from one, each on one side alone.

Who drains asks both sides in this order, for some streams at a time, and each time until what it
asks for is on disk:

- ``leave``: here the stream is written and leaves memory; then it is held, and nobody is served.
- ``arrive``: the other server keeps its record aside; nobody is served from there yet.
- ``moved``: here a mark takes the place of the record, in one commit.
- ``activate``: the other server makes the stream of the record.

Until the mark is on disk the stream is here: after ``stay``, a crash, or too long a silence it goes
on here.
From then on it is there.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable
from typing import Any

from streamrnn.errors import StateError, StoreError
from streamrnn.state.record import decode_record
from streamrnn.state.store import (
    ARRIVALS,
    MOVED,
    SNAPSHOTS,
    STREAMS,
    Change,
    StateStore,
    snapshot_key,
)
from streamrnn_client.protocol import (
    MAX_SNAPSHOT_NAME_BYTES,
    ErrorCode,
    ProtocolError,
    Response,
    StreamId,
    canonical_id,
    error_reply,
)
from streamrnn_server.config import ServerConfig
from streamrnn_server.control.error_text import stream_of
from streamrnn_server.control.messages import Caller, Order
from streamrnn_server.control.state_methods import StateMethods
from streamrnn_server.storage.departures import Departure, departure_of
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.state_dir import StateDir
from streamrnn_server.storage.writer import CheckpointWriter, Committed

__all__ = ["Administration", "Drain"]

_HOLD_S = 30.0  # for as long a stream waits for who drains
_MAX_ITEMS = 1024
_MAX_REPLY_BYTES = 2**21
_ENDPOINT = re.compile(r"tcp://[^\s]{1,300}")
_BUSY_MS = 50
_COMES_AGAIN = (ErrorCode.BUSY.wire, ErrorCode.UNKNOWN.wire)  # another's question came first
_Answer = tuple[list[Any] | None, Any]


class _Waiting:
    """A stream that a shard was asked to let go of, or to make."""

    def __init__(self) -> None:
        self.is_done = False
        self.error: list[Any] | None = None
        self.committed: Committed | None = None  # what must be on disk, and may not be yet
        self.asked_at_s = time.monotonic()
        self.token = -2  # under which the request of it waits; -2: none

    @property
    def is_committing(self) -> bool:
        """Whether its mark may come to disk any moment."""
        return self.committed is not None and not self.committed.is_done

    @property
    def has_gone(self) -> bool:
        """Whether its mark is on disk."""
        return self.committed is not None and self.committed.has_succeeded

    @property
    def is_over(self) -> bool:
        """Whether nobody has asked for it for too long."""
        return not self.is_committing and time.monotonic() - self.asked_at_s > _HOLD_S


class Drain:
    """One side of a drain. Called by the control thread alone."""

    def __init__(
        self,
        lookup: RecordLookup,
        store: StateStore,
        saver: CheckpointWriter,
        methods: StateMethods,
        has_users: bool,
    ) -> None:
        self._lookup, self._store, self._saver = lookup, store, saver
        self._methods, self._has_users = methods, has_users
        self._leaving: dict[bytes, _Waiting] = {}
        self._activating: dict[bytes, _Waiting] = {}
        self._arriving: dict[bytes, Committed] = {}
        self._looked_for: dict[bytes, _Waiting] = {}
        self._orders: list[Order] = []
        self._actions: dict[str, Callable[[Any], _Answer]] = {
            "leave": self._leave,
            "arrive": self._arrive,
            "moved": self._mark,
            "stay": self._stay,
            "activate": self._activate,
            "where": self._where,
        }

    def call(self, params: list[Any]) -> tuple[Any, list[Order]]:
        """Do a part of a drain: ``[what, items]``, or ``[what, after, most]`` for a list.

        Returns
        -------
        result : list
            Of each item ``[error, value]``; the value is nil or false until it is done. Of a list
            ids, and where to go on, or nil.
        orders : list of Order

        Raises
        ------
        ProtocolError
            If the parameters make no sense.
        """
        self._orders = []
        if len(params) == 3 and params[0] in ("streams", "arrivals"):
            return self._list(STREAMS if params[0] == "streams" else ARRIVALS, *params[1:]), []
        is_known = len(params) == 2 and isinstance(params[0], str) and params[0] in self._actions
        if not is_known or not isinstance(params[1], list) or len(params[1]) > _MAX_ITEMS:
            raise _bad(
                f"drain takes [what, items], with what of {', '.join(self._actions)} and at most "
                f"{_MAX_ITEMS} items, or ['streams' or 'arrivals', after, most]"
            )
        action, num_bytes = self._actions[params[0]], 0
        answers: list[list[Any]] = []
        for item in params[1]:
            if num_bytes > _MAX_REPLY_BYTES:
                answers.append([None, None])  # it is asked for again
                continue
            try:
                error, value = action(item)
            except ProtocolError as refusal:
                error, value = refusal.reply(), None
            except StateError as refusal:
                error, value = error_reply(ErrorCode.READ_ONLY, reason=str(refusal)), None
            num_bytes += _size(value)
            answers.append([error, value])
        return answers, self._orders

    # ---- what a shard asks ----------------------------------------------------------------------

    def code_of(self, stream: bytes, token: int) -> int | None:
        """Return how a look-up is to be answered; None: as always.

        ``token`` is what the server's own request waits under; -1: it is for a client's.
        """
        looked_for = self._looked_for.get(stream)
        if looked_for is not None and looked_for.token == token:
            looked_for.is_done = True  # a shard that has the stream does not ask
            return ErrorCode.BUSY
        leaving = self._leaving.get(stream)
        if leaving is not None and (leaving.is_over or leaving.has_gone):
            del self._leaving[stream]
        elif leaving is not None and leaving.is_done:
            return ErrorCode.BUSY
        activating = self._activating.get(stream)
        if activating is not None and activating.token == token:
            return ErrorCode.UNKNOWN  # it is made now, of the arrival and by nobody else
        return None

    def note_left(self, stream: bytes) -> None:
        """Note that a stream is on disk as it is, and in no memory."""
        if stream in self._leaving:
            self._leaving[stream].is_done = True

    # ---- the side that a stream leaves ----------------------------------------------------------

    def _leave(self, item: Any) -> _Answer:
        stream = canonical_id(item)
        waiting = self._leaving.get(stream)
        if waiting is None or waiting.is_over:
            data = self._store.get(STREAMS, stream)
            if data is None:
                raise ProtocolError(ErrorCode.UNKNOWN, stream=item)
            _, record = self._lookup.judge(data, stream)
            if self._lookup.is_held(stream):
                raise ProtocolError(ErrorCode.DAMAGED, reason="its journal is held", stream=item)
            waiting = self._leaving[stream] = _Waiting()
            on_reply = _error_to(self._leaving, stream, waiting)
            waiting.token, order = self._methods.let_go(item, record.owner, on_reply)
            self._orders.append(order)
            return None, None
        waiting.asked_at_s = time.monotonic()
        if waiting.error is not None:
            del self._leaving[stream]
            return waiting.error, None
        if not waiting.is_done:
            return None, None
        snapshots = [[name, data] for name, data in self._snapshots(stream)]
        return None, [self._store.get(STREAMS, stream), snapshots]

    def _snapshots(self, stream: bytes) -> list[tuple[bytes, bytes]]:
        prefix, found = snapshot_key(stream, b""), []
        for key, data in self._store.items(SNAPSHOTS, prefix):
            if not key.startswith(prefix):
                break
            found.append((key[len(prefix) :], data))
        return found

    def _mark(self, item: Any) -> _Answer:
        if not isinstance(item, list) or len(item) != 3 or type(item[1]) is not int:
            raise _bad("an item is [stream, CRC-32 of its record, endpoint]")
        (name, checksum, endpoint), stream = item, canonical_id(item[0])
        if not isinstance(endpoint, str) or not _ENDPOINT.fullmatch(endpoint):
            raise _bad(f"{str(endpoint)[:100]!r} is no endpoint")
        waiting = self._leaving.get(stream)
        if waiting is not None and waiting.committed is not None:
            if not waiting.committed.is_done:
                return None, False
            if waiting.committed.error is not None:  # it is here, and held for a while
                raise ProtocolError(
                    ErrorCode.READ_ONLY, reason=waiting.committed.error, stream=name
                )
            del self._leaving[stream]
        data = self._store.get(STREAMS, stream)
        departure = departure_of(self._store, stream)
        if data is None and departure is not None:
            return None, True
        if waiting is None or waiting.is_over or not waiting.is_done or data is None:
            raise ProtocolError(ErrorCode.BUSY, retry_after_ms=_BUSY_MS)  # it went on here
        if zlib.crc32(data) != checksum:
            raise ProtocolError(ErrorCode.BUSY, retry_after_ms=_BUSY_MS)
        record = decode_record(data)
        mark = Departure(endpoint, record.incarnation, record.num_changes, record.owner)
        changes: list[Change] = [(STREAMS, stream, None), (MOVED, stream, mark.encode())]
        waiting.committed = self._saver.commit_too(changes)
        return None, False

    def _stay(self, item: Any) -> _Answer:
        stream = canonical_id(item)
        waiting = self._leaving.get(stream)
        if waiting is not None and not waiting.is_committing:
            del self._leaving[stream]
        return None, True

    def _where(self, item: Any) -> _Answer:
        stream = canonical_id(item)
        departure = departure_of(self._store, stream)
        is_here = departure is None or self._store.get(STREAMS, stream) is not None
        return None, None if is_here or departure is None else departure.endpoint

    # ---- the side that it comes to --------------------------------------------------------------

    def _arrive(self, item: Any) -> _Answer:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list):
            raise _bad("an item is [record, [[name of a snapshot, record], ...]]")
        data, snapshots = item
        if not isinstance(data, bytes):
            raise _bad("a record is a bin")
        _, record = self._lookup.judge(data)
        stream, name = record.stream, stream_of(record.stream)
        if record.owner and not self._has_users:
            raise ProtocolError(ErrorCode.FORBIDDEN, stream=name)
        if self._store.get(STREAMS, stream) is not None:
            raise ProtocolError(ErrorCode.EXISTS, stream=name)
        committed = self._arriving.get(stream)
        if committed is not None and not committed.is_done:
            return None, False
        self._arriving.pop(stream, None)
        if committed is not None and committed.error is not None:
            raise ProtocolError(ErrorCode.READ_ONLY, reason=committed.error, stream=name)
        wanted = self._judge_snapshots(snapshots, stream)
        # A snapshot that was taken since an arrival before leaves the record as it was.
        found = dict(self._snapshots(stream))
        if self._store.get(ARRIVALS, stream) == data and found == wanted:
            return self._look_for(stream, name, record.owner)
        changes: list[Change] = [(ARRIVALS, stream, data)]
        changes += [(SNAPSHOTS, snapshot_key(stream, old), None) for old in found]
        changes += [(SNAPSHOTS, snapshot_key(stream, new), each) for new, each in wanted.items()]
        self._arriving[stream] = self._saver.commit_too(changes)
        return None, False

    def _judge_snapshots(self, snapshots: list[Any], stream: bytes) -> dict[bytes, bytes]:
        for snapshot in snapshots:
            if not isinstance(snapshot, list) or [type(part) for part in snapshot] != [bytes] * 2:
                raise _bad("a snapshot is [name, record], two bins")
            if not 1 <= len(snapshot[0]) <= MAX_SNAPSHOT_NAME_BYTES:
                raise _bad(f"a snapshot's name has 1 to {MAX_SNAPSHOT_NAME_BYTES} bytes")
            self._lookup.judge(snapshot[1], stream)
        return dict(snapshots)

    def _look_for(self, stream: bytes, name: Any, owner: str) -> _Answer:
        """Look for a stream of an arrival's id in memory; who has one could not have the other.

        It might be on disk no earlier than the arrival, in whose place it would come. From now on
        none can begin: the arrival is on disk.
        """
        waiting = self._looked_for.get(stream)
        if waiting is None or waiting.is_over:
            waiting = self._looked_for[stream] = _Waiting()
            on_reply = _error_to(self._looked_for, stream, waiting, error_reply(ErrorCode.EXISTS))
            waiting.token, order = self._methods.let_go(name, owner, on_reply)
            self._orders.append(order)
            return None, False
        if not waiting.is_done and waiting.error is None:
            return None, False
        del self._looked_for[stream]
        if waiting.is_done:
            return None, True
        if waiting.error is not None and waiting.error[0] in _COMES_AGAIN:
            return None, False
        raise ProtocolError(ErrorCode.EXISTS, stream=name)

    def _activate(self, item: Any) -> _Answer:
        stream = canonical_id(item)
        waiting = self._activating.get(stream)
        if waiting is not None and waiting.error is None and not waiting.is_over:
            return None, False
        self._activating.pop(stream, None)
        if waiting is not None and waiting.error is not None:
            return waiting.error, None
        data = self._store.get(ARRIVALS, stream)
        if data is None:  # what is a stream now is no arrival any more
            return None, True
        index, record = self._lookup.judge(data, stream)
        waiting = self._activating[stream] = _Waiting()
        on_reply = _error_to(self._activating, stream, waiting, is_done_then=True)
        waiting.token, order = self._methods.restore(item, index, record, on_reply)
        self._orders.append(order)
        return None, False

    # ---- lists ----------------------------------------------------------------------------------

    def _list(self, table: int, after: Any, most: Any) -> list[Any]:
        is_right = type(most) is int and 1 <= most <= _MAX_ITEMS
        if not is_right or not (after is None or isinstance(after, bytes)):
            raise _bad(f"after must be nil or what came before, most 1 to {_MAX_ITEMS}")
        ids: list[StreamId] = []
        last = None
        try:
            for key, _ in self._store.items(table, b"" if after is None else after + b"\0"):
                stream = stream_of(key)
                if stream is not None:
                    ids.append(stream)
                last = key
                if len(ids) == most:
                    return [ids, last]
        except (StoreError, UnicodeDecodeError) as error:
            raise ProtocolError(ErrorCode.READ_ONLY, reason=str(error)) from error
        return [ids, None]


class Administration:
    """Methods for administrators: backups, and drains where there is a state directory."""

    METHODS = ("backup", "drain")

    def __init__(
        self,
        config: ServerConfig,
        disk: StateDir | None,
        lookup: RecordLookup,
        methods: StateMethods,
    ) -> None:
        self._config, self._disk = config, disk
        self._drain: Drain | None = None
        if disk is not None:
            self._drain = Drain(lookup, disk.store, disk.saver, methods, config.has_users)

    def call(self, caller: Caller, method: str, params: list[Any]) -> tuple[Any, list[Order]]:
        """Begin a method of `METHODS`; return its result, and what shards are to do.

        Raises
        ------
        ProtocolError
            If the caller may not, or it makes no sense.
        """
        self.need_admin(caller.user)
        if self._disk is None or self._drain is None:
            raise ProtocolError(
                ErrorCode.NOT_SUPPORTED, "the server keeps nothing on disk: it needs --state-dir"
            )
        if method == "backup":
            return self._disk.backups.begin_or_tell(params), []
        return self._drain.call(params)

    def need_admin(self, user: str) -> None:
        """Raise `ProtocolError` (``forbidden``) unless a user may administer the server."""
        if self._config.has_users and user not in self._config.admins:
            raise ProtocolError(
                ErrorCode.FORBIDDEN, "that is the administrators': start the server with --admin"
            )

    def code_of(self, stream: bytes, token: int) -> int | None:
        """See `Drain.code_of`."""
        return None if self._drain is None else self._drain.code_of(stream, token)

    def note_left(self, stream: bytes) -> None:
        """See `Drain.note_left`."""
        if self._drain is not None:
            self._drain.note_left(stream)


def _error_to(
    waiting_ones: dict[bytes, _Waiting],
    stream: bytes,
    waiting: _Waiting,
    else_error: list[Any] | None = None,
    is_done_then: bool = False,
) -> Callable[[Response], None]:
    """Return what takes a shard's reply: its error is told to who asks next."""

    def take(reply: Response) -> None:
        if reply.error is not None or else_error is not None:
            waiting.error = reply.error or else_error
        elif is_done_then and waiting_ones.get(stream) is waiting:
            del waiting_ones[stream]

    return take


def _size(value: Any) -> int:
    if not isinstance(value, list):
        return 0
    record, snapshots = value
    return len(record or b"") + sum(len(data) for _, data in snapshots)


def _bad(what: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_PARAMS, what)
