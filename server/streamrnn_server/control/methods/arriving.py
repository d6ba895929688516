"""The side of a drain that streams come to."""

from __future__ import annotations

import time
from typing import Any

from streamrnn.state.store import ARRIVALS, SNAPSHOTS, STREAMS, Change, StateStore, snapshot_key
from streamrnn_client.protocol import (
    MAX_SNAPSHOT_NAME_BYTES,
    ErrorCode,
    ProtocolError,
    canonical_id,
    error_reply,
)
from streamrnn_server.control.error_text import stream_of
from streamrnn_server.control.messages import Order
from streamrnn_server.control.methods import waiting as waits
from streamrnn_server.control.methods.leaving import snapshots_of
from streamrnn_server.control.methods.state import StateMethods
from streamrnn_server.control.methods.waiting import Answer, Waiting, bad, error_to
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.writer import CheckpointWriter, Committed

__all__ = ["Arriving"]

# An arrival may be dropped when it was not asked for during so many times as long as its server
# holds the stream for it: then that one puts no mark in its place any more.
_HOLDS = 4
_COMES_AGAIN = (ErrorCode.BUSY.wire, ErrorCode.UNKNOWN.wire)  # another's question came first


class Arriving:
    """Streams that are here, but not served yet; ``orders`` takes what shards are to do."""

    def __init__(
        self,
        lookup: RecordLookup,
        store: StateStore,
        saver: CheckpointWriter,
        methods: StateMethods,
        orders: list[Order],
        has_users: bool,
    ) -> None:
        self._lookup, self._store, self._saver = lookup, store, saver
        self._methods, self._orders, self._has_users = methods, orders, has_users
        self._arriving: dict[bytes, Committed] = {}
        self._looked_for: dict[bytes, Waiting] = {}
        self._activating: dict[bytes, Waiting] = {}
        self._dropping: dict[bytes, Committed] = {}
        self._begun_at_s = time.monotonic()
        self._asked_at_s: dict[bytes, float] = {}  # for an arrival, since then

    def code_of(self, stream: bytes, token: int) -> int | None:
        """Return how a look-up is to be answered; None: as always.

        ``token`` is what the server's own request waits under; -1: it is for a client's.
        """
        looked_for = self._looked_for.get(stream)
        if looked_for is not None and looked_for.token == token:
            looked_for.is_done = True  # a shard that has the stream does not ask
            return ErrorCode.BUSY
        activating = self._activating.get(stream)
        if activating is not None and activating.token == token:
            return ErrorCode.UNKNOWN  # it is made now, of the arrival and by nobody else
        return None

    def arrive(self, item: Any) -> Answer:
        """Keep a record and its snapshots aside; true once they are on disk."""
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list):
            raise bad("an item is [record, [[name of a snapshot, record], ...]]")
        data, snapshots = item
        if not isinstance(data, bytes):
            raise bad("a record is a bin")
        _, record = self._lookup.judge(data)
        stream, name = record.stream, stream_of(record.stream)
        if record.owner and not self._has_users:
            raise ProtocolError(ErrorCode.FORBIDDEN, stream=name)
        if self._store.get(STREAMS, stream) is not None:
            raise ProtocolError(ErrorCode.EXISTS, stream=name)
        dropped = self._dropping.get(stream)
        if dropped is not None and not dropped.is_done:
            return None, False
        self._asked_at_s[stream] = time.monotonic()
        committed = self._arriving.get(stream)
        if committed is not None and not committed.is_done:
            return None, False
        self._arriving.pop(stream, None)
        if committed is not None and committed.error is not None:
            raise ProtocolError(ErrorCode.READ_ONLY, reason=committed.error, stream=name)
        wanted = self._judge_snapshots(snapshots, stream)
        # A snapshot that was taken since an arrival before leaves the record as it was.
        found = dict(snapshots_of(self._store, stream))
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
                raise bad("a snapshot is [name, record], two bins")
            if not 1 <= len(snapshot[0]) <= MAX_SNAPSHOT_NAME_BYTES:
                raise bad(f"a snapshot's name has 1 to {MAX_SNAPSHOT_NAME_BYTES} bytes")
            self._lookup.judge(snapshot[1], stream)
        return dict(snapshots)

    def _look_for(self, stream: bytes, name: Any, owner: str) -> Answer:
        """Look for a stream of an arrival's id in memory; who has one could not have the other.

        It might be on disk no earlier than the arrival, in whose place it would come. From now on
        none can begin: the arrival is on disk.
        """
        waiting = self._looked_for.get(stream)
        if waiting is None or waiting.is_over:
            waiting = self._looked_for[stream] = Waiting()
            on_reply = error_to(self._looked_for, stream, waiting, error_reply(ErrorCode.EXISTS))
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

    def activate(self, item: Any) -> Answer:
        """Make a stream of what is kept aside; true once it is one.

        An item is its id, or ``[id, incarnation, number of changes]`` of what has left.
        """
        name, *left = item if isinstance(item, list) and len(item) == 3 else [item]
        stream = canonical_id(name)
        dropped = self._dropping.get(stream)
        if dropped is not None and not dropped.is_done:
            return None, False
        waiting = self._activating.get(stream)
        if waiting is not None and waiting.error is None and not waiting.is_over:
            return None, False
        self._activating.pop(stream, None)
        if waiting is not None and waiting.error is not None:
            return waiting.error, None
        data = self._store.get(ARRIVALS, stream)
        if data is None:  # what is a stream now is no arrival any more
            self._asked_at_s.pop(stream, None)
            return None, True
        index, record = self._lookup.judge(data, stream)
        if left and left != [record.incarnation, record.num_changes]:
            text = "what has arrived is not what has left: the stream has gone elsewhere since"
            raise ProtocolError(ErrorCode.MISMATCH, text, stream=name)
        waiting = self._activating[stream] = Waiting()
        on_reply = error_to(self._activating, stream, waiting, is_done_then=True)
        waiting.token, order = self._methods.restore(name, index, record, on_reply)
        self._orders.append(order)
        return None, False

    def drop(self, item: Any) -> Answer:
        """Forget what is kept aside; true once that is done.

        Who asks knows that its server has the stream, and looks again before each time.
        """
        stream = canonical_id(item)
        dropped = self._dropping.get(stream)
        if dropped is not None and not dropped.is_done:
            return None, False
        self._dropping.pop(stream, None)
        if dropped is not None and dropped.error is not None:
            raise ProtocolError(ErrorCode.READ_ONLY, reason=dropped.error, stream=item)
        if self._store.get(ARRIVALS, stream) is None:
            self._asked_at_s.pop(stream, None)
            return None, True
        asked_at_s = self._asked_at_s.get(stream, self._begun_at_s)
        if stream in self._activating or time.monotonic() - asked_at_s < _HOLDS * waits.HOLD_S:
            return None, False
        changes: list[Change] = [(ARRIVALS, stream, None)]
        for name, _ in snapshots_of(self._store, stream):
            changes.append((SNAPSHOTS, snapshot_key(stream, name), None))
        self._dropping[stream] = self._saver.commit_too(changes)
        return None, False
