"""What a client knows of each of its streams, and how it is written: no logic, no sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from streamrnn_client._session.replay_log import ReplayLog
from streamrnn_client.errors import BadParams
from streamrnn_client.inputs import Array, ModelInfo
from streamrnn_client.protocol import (
    ProtocolError,
    StreamId,
    canonical_id,
    encode_bin_header,
    encode_uint,
    hash_slot,
)

if TYPE_CHECKING:
    from streamrnn_client._session.turns import Claim
    from streamrnn_client._session.unfinished import Unfinished

__all__ = [
    "WAIT",
    "Departures",
    "StreamState",
    "as_id",
    "as_ids",
    "pack_ids",
    "step_parts",
    "without_received",
]

_PLAIN = frozenset((str, int))  # a bool, an Enum or a subclass is equal to one, and is none
_STEP, _STEP_WITH_RECEIVED, _STEP_WITH_WAIT = (
    msgpack.packb("step") + head for head in (b"\x93", b"\x94", b"\x95")
)
WAIT = b"\xce\0\0\0\0"  # a uint 32, which `Exchange` sets
_NUM_PARAMS = {"step": 4, "reset": 3}  # with what was received


class StreamState:
    """What a client knows about one of its streams; `BadParams` if the id is none.

    `window` bounds unacknowledged steps; `last_seq` and `durable_seq` are the last step applied and
    the last one on disk, as far as the server said. `unread_seq` is the last one whose output the
    caller may not have got, though it knows of later ones; 0: there is none. `refused_seq` is that
    of a step which turned the state NaN: a server keeps none of it. `instance` is the start of the
    server under which the stream was opened. `in_doubt` says that a step's fate is unknown, `lost`
    why the state is lost (empty: it is not). `turn` is the call that has the stream now, `waiting`
    are those after it; `unfinished` is left by a `steps` that ended before its end. `replay_log` is
    None where the server has no disk or the steps have no numbers. `server` is the endpoint of the
    other server that the stream has moved to, empty if it has not. `packed_id` and `step_head` are
    MessagePack.
    """

    __slots__ = (
        "_slot",
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
        "refused_seq",
        "replay_log",
        "server",
        "step_head",
        "turn",
        "unfinished",
        "unread_seq",
        "waiting",
        "window",
    )

    def __init__(self, stream: StreamId, model: ModelInfo, *, numbered: bool) -> None:
        self.id = stream = as_id(stream)
        self.model = model
        self.numbered = numbered
        self.window = 1
        self.last_seq = 0
        self.durable_seq = 0
        self.unread_seq = 0
        self.refused_seq = 0
        self.instance = ""
        self.is_open = False
        self.in_doubt = False
        self.lost = ""
        self.turn: Claim | None = None
        self.waiting: deque[Claim] | None = None
        self.unfinished: Unfinished | None = None
        self.replay_log: ReplayLog | None = None
        self.packed_id: bytes = msgpack.packb(stream)
        self.step_head: bytes = _STEP + self.packed_id
        self.server = ""
        self._slot = -1

    @property
    def slot(self) -> int:
        """The hash slot, computed on first use: with one shard it is never used."""
        if self._slot < 0:
            self._slot = hash_slot(self.id)
        return self._slot

    @property
    def received(self) -> int:
        """The step up to which the caller has all outputs that the server keeps; 0 if unknown."""
        if self.unread_seq and self.last_seq - self.window < self.unread_seq:
            return 0
        self.unread_seq = 0
        return self.last_seq

    def forget_refused(self, last_seq: int) -> None:
        """Give back the number of a refused step, if the server knows of steps before it only."""
        if last_seq < self.refused_seq == self.last_seq:
            self.last_seq -= 1
            self.refused_seq = 0

    def note_durable(self, durable_seq: int) -> None:
        """Set the last step on disk, and drop what is there from the replay log."""
        self.durable_seq = durable_seq
        if self.replay_log is not None:
            self.replay_log.drop_durable(durable_seq)

    def take_back(self, last_seq: int) -> None:
        """Leave in doubt whether the steps above a number were applied: they are sent again."""
        self.in_doubt = True
        if self.last_seq > last_seq:
            self.last_seq = last_seq
            if self.replay_log is not None:
                self.replay_log.forget_after(last_seq)

    @property
    def is_pristine(self) -> bool:
        """Whether nothing is lost if the server does not know the stream."""
        return self.numbered and self.last_seq == 0


def step_parts(
    state: StreamState, first_seq: int, x: Array, received: int = 0, may_be_late: bool = False
) -> tuple[bytes | memoryview, ...]:
    """Return the encoded method and parameters of steps."""
    head, seq, size = state.step_head, encode_uint(first_seq), encode_bin_header(x.nbytes)
    if may_be_late:
        told = encode_uint(received)
        return _STEP_WITH_WAIT, state.packed_id, seq, size, x.data, told, WAIT
    if not received:
        return head, seq, size, x.data
    return _STEP_WITH_RECEIVED, state.packed_id, seq, size, x.data, encode_uint(received)


def without_received(payload: bytes) -> tuple[bytes | memoryview, ...] | None:
    """Return the parts of a request without what was received; None if it does not tell that."""
    _, _, method, params = msgpack.unpackb(payload)
    if len(params) != _NUM_PARAMS.get(method):
        return None
    return msgpack.packb(method), msgpack.packb(params[:-1])


def pack_ids(states: Sequence[StreamState]) -> bytes:
    """Return the array of streams' ids in MessagePack."""
    header = msgpack.Packer().pack_array_header(len(states))
    return b"".join((header, *[state.packed_id for state in states]))


class Departures:
    """Streams that have moved to another server, one after the other, until all have."""

    def __init__(self) -> None:
        self._num = self._num_to_look = 0
        self._are_all = False

    def note(
        self, state: StreamState, detail: Mapping[str, Any], states: Iterable[StreamState]
    ) -> bool:
        """Note where a `moved` says that a stream has gone, if that is another server.

        Tell whether that server is the one to ask from now on.
        """
        if detail.get("server") is not True and not state.server:
            return False
        self._num += not state.server
        state.server = detail["endpoint"]
        if self._num < self._num_to_look:
            return False
        opened = [each for each in list(states) if each.is_open]
        self._num_to_look = len(opened)
        self._are_all = all(each.server for each in opened)
        return self._are_all

    def end(self, states: Iterable[StreamState]) -> None:
        """Forget who has gone, once all have: the server that was asked is where they are."""
        if self._are_all:
            for state in list(states):
                state.server = ""
            self._num, self._num_to_look, self._are_all = 0, 0, False


def as_ids(streams: Any) -> list[StreamId]:
    """Return stream ids as a list of plain values.

    Raises `BadParams` if one is none or comes twice, or a single one was given.
    """
    if isinstance(streams, str | bytes | Mapping) or not isinstance(streams, Iterable):
        raise BadParams(f"streams is {type(streams).__name__}; give a list of stream ids")
    ids = list(streams)
    if not _PLAIN.issuperset(map(type, ids)):
        ids = [as_id(stream) for stream in ids]
    if len(set(ids)) != len(ids):
        twice = next(stream for stream in ids if ids.count(stream) > 1)
        raise BadParams(f"stream {twice!r} is named twice; name each stream once")
    return ids


def as_id(stream: Any) -> StreamId:
    """Return a stream's id, a NumPy integer or str as Python's; `BadParams` if it is none."""
    item = getattr(stream, "item", None)
    plain: StreamId = item() if item is not None and getattr(stream, "ndim", 1) == 0 else stream
    try:
        canonical_id(plain)
    except ProtocolError as error:
        raise BadParams(str(error), {"stream": stream}) from None
    return plain
