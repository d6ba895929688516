"""Drain: streams that leave for another server, or come from one, each on one side alone.

Who drains asks both sides in this order, for some streams at a time, and each time until what it
asks for is on disk:

- ``leave``: here the stream is written and leaves memory; then it is held, and nobody is served.
- ``arrive``: the other server keeps its record aside; nobody is served from there yet.
- ``moved``: here a mark takes the place of the record, in one commit.
- ``activate``: the other server makes the stream of the record.

Until the mark is on disk the stream is here: after ``stay``, a crash, or too long a silence it goes
on here. From then on it is there. What a drain that was cut short has left there of streams that
are ``here``, the other server can ``drop``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamrnn.errors import StateError, StoreError
from streamrnn.state.store import ARRIVALS, STREAMS, StateStore
from streamrnn_client.protocol import ErrorCode, ProtocolError, StreamId, error_reply
from streamrnn_server.control.error_text import stream_of
from streamrnn_server.control.messages import Order
from streamrnn_server.control.methods.arriving import Arriving
from streamrnn_server.control.methods.leaving import Leaving
from streamrnn_server.control.methods.state import StateMethods
from streamrnn_server.control.methods.waiting import Answer, bad
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.writer import CheckpointWriter

__all__ = ["Drain"]

_MAX_ITEMS = 1024
_MAX_REPLY_BYTES = 2**21


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
        self._store = store
        self._orders: list[Order] = []
        self._leaving = Leaving(lookup, store, saver, methods, self._orders)
        self._arriving = Arriving(lookup, store, saver, methods, self._orders, has_users)
        self._actions: dict[str, Callable[[Any], Answer]] = {
            "leave": self._leaving.leave,
            "arrive": self._arriving.arrive,
            "moved": self._leaving.mark,
            "stay": self._leaving.stay,
            "activate": self._arriving.activate,
            "where": self._leaving.where,
            "here": self._leaving.here,
            "drop": self._arriving.drop,
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
        self._orders.clear()
        if len(params) == 3 and params[0] in ("streams", "arrivals"):
            return self._list(STREAMS if params[0] == "streams" else ARRIVALS, *params[1:]), []
        is_known = len(params) == 2 and isinstance(params[0], str) and params[0] in self._actions
        if not is_known or not isinstance(params[1], list) or len(params[1]) > _MAX_ITEMS:
            raise bad(
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
        return answers, list(self._orders)

    def code_of(self, stream: bytes, token: int) -> int | None:
        """Return how a look-up is to be answered; None: as always.

        ``token`` is what the server's own request waits under; -1: it is for a client's.
        """
        code = self._arriving.code_of(stream, token)
        return self._leaving.code_of(stream) if code is None else code

    def note_left(self, stream: bytes) -> None:
        """Note that a stream is on disk as it is, and in no memory."""
        self._leaving.note_left(stream)

    def _list(self, table: int, after: Any, most: Any) -> list[Any]:
        is_right = type(most) is int and 1 <= most <= _MAX_ITEMS
        if not is_right or not (after is None or isinstance(after, bytes)):
            raise bad(f"after must be nil or what came before, most 1 to {_MAX_ITEMS}")
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


def _size(value: Any) -> int:
    """Return how many bytes a record takes with its snapshots; another value takes none."""
    if not isinstance(value, list) or not isinstance(value[0], bytes):
        return 0
    record, snapshots = value
    return len(record) + sum(len(data) for _, data in snapshots)
