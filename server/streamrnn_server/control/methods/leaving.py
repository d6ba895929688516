"""The side of a drain that streams leave."""

from __future__ import annotations

import re
import time
import zlib
from typing import Any

from streamrnn.state.record import decode_record
from streamrnn.state.store import MOVED, SNAPSHOTS, STREAMS, Change, StateStore, snapshot_key
from streamrnn_client.protocol import ErrorCode, ProtocolError, canonical_id
from streamrnn_server.control.messages import Order
from streamrnn_server.control.methods.state import StateMethods
from streamrnn_server.control.methods.waiting import Answer, Waiting, bad, error_to
from streamrnn_server.storage.departures import Departure, departure_of
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.writer import CheckpointWriter

__all__ = ["Leaving", "snapshots_of"]

_ENDPOINT = re.compile(r"tcp://[^\s]{1,300}")
_BUSY_MS = 50


class Leaving:
    """Streams that are held for who drains; ``orders`` takes what shards are to do."""

    def __init__(
        self,
        lookup: RecordLookup,
        store: StateStore,
        saver: CheckpointWriter,
        methods: StateMethods,
        orders: list[Order],
    ) -> None:
        self._lookup, self._store, self._saver = lookup, store, saver
        self._methods, self._orders = methods, orders
        self._leaving: dict[bytes, Waiting] = {}

    def code_of(self, stream: bytes) -> int | None:
        """Return how a look-up is to be answered; None: as always."""
        leaving = self._leaving.get(stream)
        if leaving is not None and (leaving.is_over or leaving.has_gone):
            del self._leaving[stream]
        elif leaving is not None and leaving.is_done:
            return ErrorCode.BUSY
        return None

    def note_left(self, stream: bytes) -> None:
        """Note that a stream is on disk as it is, and in no memory."""
        if stream in self._leaving:
            self._leaving[stream].is_done = True

    def leave(self, item: Any) -> Answer:
        """Have a stream written and held; its record and snapshots, once that is done."""
        stream = canonical_id(item)
        waiting = self._leaving.get(stream)
        if waiting is None or waiting.is_over or waiting.is_unanswered:
            data = self._store.get(STREAMS, stream)
            if data is None:
                raise ProtocolError(ErrorCode.UNKNOWN, stream=item)
            _, record = self._lookup.judge(data, stream)
            if self._lookup.is_held(stream):
                raise ProtocolError(ErrorCode.DAMAGED, reason="its journal is held", stream=item)
            waiting = self._leaving[stream] = Waiting()
            on_reply = error_to(self._leaving, stream, waiting)
            waiting.token, order = self._methods.let_go(item, record.owner, on_reply)
            self._orders.append(order)
            return None, None
        waiting.asked_at_s = time.monotonic()
        if waiting.error is not None:
            del self._leaving[stream]
            return waiting.error, None
        if not waiting.is_done:
            return None, None
        snapshots = [[name, data] for name, data in snapshots_of(self._store, stream)]
        return None, [self._store.get(STREAMS, stream), snapshots]

    def mark(self, item: Any) -> Answer:
        """Put a mark in a record's place; true once it is on disk."""
        if not isinstance(item, list) or len(item) != 3 or type(item[1]) is not int:
            raise bad("an item is [stream, CRC-32 of its record, endpoint]")
        (name, checksum, endpoint), stream = item, canonical_id(item[0])
        if not isinstance(endpoint, str) or not _ENDPOINT.fullmatch(endpoint):
            raise bad(f"{str(endpoint)[:100]!r} is no endpoint")
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

    def stay(self, item: Any) -> Answer:
        """Hold a stream no longer: it goes on here."""
        stream = canonical_id(item)
        waiting = self._leaving.get(stream)
        if waiting is not None and not waiting.is_committing:
            del self._leaving[stream]
        return None, True

    def where(self, item: Any) -> Answer:
        """Return where a stream has gone, and as which; nil if it is here, or was never."""
        stream = canonical_id(item)
        waiting = self._leaving.get(stream)
        if waiting is not None and waiting.is_committing:
            raise ProtocolError(ErrorCode.BUSY, retry_after_ms=_BUSY_MS)
        gone = departure_of(self._store, stream)
        if gone is None or self._store.get(STREAMS, stream) is not None:
            return None, None
        return None, [gone.endpoint, gone.incarnation, gone.num_changes]

    def here(self, item: Any) -> Answer:
        """Tell whether a stream is here on disk, and no mark of it is on its way there."""
        stream = canonical_id(item)
        waiting = self._leaving.get(stream)
        is_on_its_way = waiting is not None and waiting.is_committing
        return None, not is_on_its_way and self._store.get(STREAMS, stream) is not None


def snapshots_of(store: StateStore, stream: bytes) -> list[tuple[bytes, bytes]]:
    """Return the snapshots of a stream: name and record of each."""
    prefix, found = snapshot_key(stream, b""), []
    for key, data in store.items(SNAPSHOTS, prefix):
        if not key.startswith(prefix):
            break
        found.append((key[len(prefix) :], data))
    return found
