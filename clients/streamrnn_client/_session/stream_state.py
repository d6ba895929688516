"""What a client knows of each of its streams: no logic, no sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from streamrnn_client._session.replay_log import ReplayLog
from streamrnn_client.errors import BadParams
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.protocol import (
    ProtocolError,
    StreamId,
    canonical_id,
    hash_slot,
)

__all__ = ["Claim", "StreamState", "as_ids", "pack_ids"]

_STEP = msgpack.packb("step") + b"\x93"


class StreamState:
    """What a client knows about one of its streams; `BadParams` if the id is none.

    `window` bounds unacknowledged steps; `last_seq` and `durable_seq` are the last step applied and
    the last one on disk, as far as the server said. `instance` is the start of the server under
    which the stream was opened. `in_doubt` says that a step's fate is unknown, `claimed` that a
    call is under way, `lost` why the state is lost (empty: it is not). `replay_log` is None where
    the server has no disk or the steps have no numbers. `packed_id` and `step_head` are
    MessagePack.
    """

    __slots__ = (
        "_slot",
        "claimed",
        "durable_seq",
        "id",
        "in_doubt",
        "instance",
        "is_open",
        "last_seq",
        "lost",
        "model",
        "numbered",
        "packed_id",
        "replay_log",
        "step_head",
        "window",
    )

    def __init__(self, stream: StreamId, model: ModelInfo, *, numbered: bool) -> None:
        try:
            canonical_id(stream)
        except ProtocolError as error:
            raise BadParams(str(error), {"stream": stream}) from None
        self.id = stream
        self.model = model
        self.numbered = numbered
        self.window = 1
        self.last_seq = 0
        self.durable_seq = 0
        self.instance = ""
        self.is_open = False
        self.in_doubt = False
        self.claimed = False
        self.lost = ""
        self.replay_log: ReplayLog | None = None
        self.packed_id: bytes = msgpack.packb(stream)
        self.step_head: bytes = _STEP + self.packed_id
        self._slot = -1

    @property
    def slot(self) -> int:
        """The hash slot, computed on first use: with one shard it is never used."""
        if self._slot < 0:
            self._slot = hash_slot(self.id)
        return self._slot

    def note_durable(self, durable_seq: int) -> None:
        """Set the last step on disk, and drop what is there from the replay log."""
        self.durable_seq = durable_seq
        if self.replay_log is not None:
            self.replay_log.drop_durable(durable_seq)

    @property
    def is_pristine(self) -> bool:
        """Whether nothing is lost if the server does not know the stream."""
        return self.numbered and self.last_seq == 0


class Claim:
    """A wait for the exclusive use of streams.

    All of them are claimed at once, so that two operations cannot wait for each other.
    """

    __slots__ = ("states",)

    def __init__(self, states: Sequence[StreamState]) -> None:
        self.states = states


def pack_ids(states: Sequence[StreamState]) -> bytes:
    """Return the array of streams' ids in MessagePack."""
    header = msgpack.Packer().pack_array_header(len(states))
    return b"".join((header, *[state.packed_id for state in states]))


def as_ids(streams: Any) -> list[StreamId]:
    """Return stream ids as a list of plain values.

    Raises `BadParams` if one comes twice, or a single str was given.
    """
    if isinstance(streams, str | bytes | int | Mapping):
        raise BadParams(f"streams is {type(streams).__name__}; give a list of stream ids")
    ids = [_plain(stream) for stream in streams]
    if len(set(ids)) != len(ids):
        twice = next(stream for stream in ids if ids.count(stream) > 1)
        raise BadParams(f"stream {twice!r} is named twice; name each stream once")
    return ids


def _plain(stream: Any) -> StreamId:
    """Turn a NumPy integer or str into Python's, which the wire knows."""
    item = getattr(stream, "item", None)
    return item() if item is not None and getattr(stream, "ndim", 1) == 0 else stream
