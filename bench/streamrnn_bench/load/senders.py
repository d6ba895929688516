"""State of a generator's senders, as compiled code and Python see it.

A sender is what sends by itself: one stream, or several that are stepped in one batch. Its messages
are steps (chunks) while it lives; one `open` comes before and a `close` of each stream behind.
64 bytes a sender, 4 a stream, and 16 for each message that may be in flight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I8, I16, I32, I64, Struct
from streamrnn_bench.load.arrivals import Arrivals, Heap
from streamrnn_bench.load.histogram import Histogram
from streamrnn_client.protocol import NUM_HASH_SLOTS, ErrorCode
from streamrnn_server.shard.libzmq import MESSAGE_BYTES, POLL_BYTES

__all__ = [
    "CODE_BYTES",
    "FIRST_MSGID",
    "HISTOGRAMS",
    "ID_BYTES",
    "MAX_KEPT_BYTES",
    "MAX_SENDERS",
    "MODEL_BYTES",
    "NUM_ERRORS",
    "NUM_TIMED",
    "NUM_X",
    "OTHER_ERROR",
    "PREFIX_BYTES",
    "SCRATCH_BYTES",
    "SENDER_BYTES",
    "SLOT_BYTES",
    "TIMED_BYTES",
    "How",
    "Load",
    "ModelLoad",
    "Phase",
    "Sender",
    "Senders",
    "ServedModel",
    "Slot",
    "Timed",
    "load_at",
    "names_of_shard",
    "sender_at",
    "served_at",
    "slot_at",
    "timed_at",
]

FIRST_MSGID = 1 << 31  # all msgids take five bytes: an echo finds them without parsing
PREFIX_BYTES, _DIGITS = 7, 8
ID_BYTES = PREFIX_BYTES + _DIGITS  # with its kind 16: what a server keeps beside a stream's header
MAX_SENDERS = 1 << 21
NUM_X = 64  # inputs of a model, a power of two; small, to leave the caches to the server
OTHER_ERROR = 0  # of `Senders.errors`: a code that we do not know
NUM_ERRORS = max(ErrorCode) + 1
MAX_KEPT_BYTES = 4096
CODE_BYTES = 24
NUM_TIMED = 4096  # the last ones; a power of two
SCRATCH_BYTES = MESSAGE_BYTES + POLL_BYTES + 64  # before the message that is written


class Phase(IntEnum):
    """Where a sender is in its life."""

    CLOSED = 0
    OPENING = 1
    STEPPING = 2
    BROKEN = 3  # a step was refused; the answers of those behind it are awaited
    CLOSING = 4


class How(IntEnum):
    """How a drive ended."""

    RUNNING = 0
    DONE = 1
    STOPPED = 2
    NOT_SENT = 3
    BAD_REPLY = 4
    NO_REPLY = 5
    UNFINISHED = 6  # steps that were due are not answered


class Plan(Struct):
    """What all senders of a generator have in common."""

    is_open_loop: I64  # else a step is due when there is room for it
    batch: I64  # streams of a sender
    chunk: I64  # steps of a message
    slots_log2: I64  # messages in flight of a sender, as a power of two
    window: I64  # asked for: steps that the server remembers of a stream
    keeps_names: I64  # after a `close` the same streams are opened: they belong to the shard
    tells_received: I64
    is_echo: I64  # the other end knows neither streams nor numbers
    life: I64  # messages from `open` to `close`, on average; 0: no end
    max_in_flight: I64  # messages of one connection
    timeout_ns: I64
    backoff_ns: I64  # from a refusal to the next try
    ramp_ns: I64  # over which senders begin


class Counts(Struct):
    """What a generator counts."""

    how: I64  # a `How`
    in_flight: I64
    num_sent: I64  # messages
    num_replies: I64
    num_done: I64  # steps, answered between `from_ns` and `until_ns`
    num_open: I64  # senders
    num_opened: I64
    num_closed: I64
    num_unanswered: I64  # steps that were sent and not answered when it ended
    num_unsent: I64  # that were due and could not be sent
    num_asked: I64  # answers to `open` and `close` that are awaited
    next_name: I64
    least_window: I64  # that was granted
    full_ns: I64  # when last there was more in flight than a server takes


class Sender(Struct):
    """One cache line: what changes of a sender."""

    due_ns: I64  # of the next message to send
    seq: I64  # last step sent
    acked: I64  # last step answered
    asked_ns: I64  # when `open` or `close` was sent
    drawn: I32  # number of the message that is due next
    sent: I32  # messages of steps
    left: I32  # messages until the end; negative: no end
    lives: I32  # how often it was opened
    awaited: I32  # answers to `open` or `close`
    in_flight: I16  # messages of steps
    phase: I8  # a `Phase`
    is_queued: I8  # in the heap
    code: I8  # of the first refusal, until it is mended
    hash: I32  # of the id of its first stream, the low bits: they say which steps are timed


class Slot(Struct):
    """A message in flight."""

    due_ns: I64
    sent_ns: I64  # 0: none is


class Timed(Struct):
    """When a message was due, sent and answered, of those that the server times too."""

    hash: I64
    seq: I64  # its (first) step
    due_ns: I64
    sent_ns: I64
    answered_ns: I64


class ServedModel(Struct):
    """What messages need of a model."""

    x: I64  # address of its inputs: NUM_X steps, and CHUNK - 1 of them again
    x_bytes: I64  # of one step
    y_bytes: I64
    word: I64  # address of its name as MessagePack
    word_bytes: I64


class Load(Struct):
    """A generator: senders on one socket. Addresses are of what `Senders` keeps alive."""

    socket: I64  # handle of a DEALER, connected, without high water marks
    descriptor: I64  # its ZMQ_FD
    stop: I64  # Python sets it: end at once
    from_ns: I64  # steps that are due from here on count
    until_ns: I64  # to here; nothing that is due later is sent
    plan: Plan
    arrivals: Arrivals
    heap: Heap  # senders by when they must be looked at
    counts: Counts
    num_senders: I64
    cursor: I64  # the next sender to open, or to close
    senders: I64  # address of a `Sender` for each
    slots: I64  # of W `Slot`s for each
    names: I64  # of B int32 for each: the numbers in its streams' ids; -1: none yet
    models: I64  # of a `ServedModel` for each
    num_models: I64
    prefix: I64  # of PREFIX_BYTES, with which ids begin
    code_words: I64  # of NUM_ERRORS words of CODE_BYTES, padded with zeros
    errors: I64  # of int64[NUM_ERRORS]
    # Addresses of histograms:
    latency: I64  # from when a step was due to its answer
    response: I64  # from when it was sent
    lateness: I64  # from due to sent, where nothing but the generator was in the way
    opening: I64
    closing: I64
    timed: I64  # of NUM_TIMED `Timed`: a ring
    num_timed: I64
    outputs: I64  # of float32[T, K, output_size]: first steps of the first streams
    num_kept_steps: I64
    num_kept_streams: I64
    kept: I64  # of MAX_KEPT_BYTES: the beginning of the first refusal, or of a wrong reply
    kept_bytes: I64
    kept_size: I64  # of that reply, as it came
    scratch: I64


SENDER_BYTES, SLOT_BYTES = Sender.dtype.itemsize, Slot.dtype.itemsize
TIMED_BYTES = Timed.dtype.itemsize
MODEL_BYTES = ServedModel.dtype.itemsize
load_at = pointer_to(Load)
sender_at = pointer_to(Sender)
slot_at = pointer_to(Slot)
timed_at = pointer_to(Timed)
served_at = pointer_to(ServedModel)
HISTOGRAMS = ("latency", "response", "lateness", "opening", "closing")


@dataclass(frozen=True)
class ModelLoad:
    """What a generator must know of a model."""

    name: str
    x: NDArray[np.generic]  # [NUM_X, num_inputs], of 4 bytes each
    output_size: int


def names_of_shard(
    prefix: str, first: int, number: int, shard: int, num_shards: int
) -> NDArray[np.int32]:
    """Return the numbers in the first ids, from one on, that belong to a shard of a server.

    A server's shard has the streams whose hash slots are its part of all (docs/protocol.md).
    """
    found: list[NDArray[np.int32]] = []
    while sum(map(len, found)) < number:
        names = np.arange(first, first + 2 * number + 64, dtype=np.int32)
        first += len(names)
        ids = b"".join(b"s%s%08d" % (prefix.encode(), name) for name in names.tolist())
        slots = _hash64(np.frombuffer(ids, np.uint8).reshape(len(names), -1)) >> np.uint64(50)
        found.append(names[slots.astype(np.int64) * num_shards // NUM_HASH_SLOTS == shard])
    return np.concatenate(found)[:number]


def _hash64(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash canonical ids, one a row."""
    values = np.full(len(ids), 0xCBF29CE484222325, np.uint64)
    for column in ids.T.astype(np.uint64):
        values = (values ^ column) * np.uint64(0x100000001B3)
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(multiplier)
    return values ^ (values >> np.uint64(33))


class Senders:
    """Senders on one socket, none of which is open; and the memory of their `Load`.

    ``first_name`` is the number in the first stream's id; ``num_kept`` how many steps of how many
    streams have their outputs kept. ``struct`` is left to be filled: ``plan`` and ``arrivals``.
    """

    def __init__(
        self,
        socket: int,
        descriptor: int,
        num_senders: int,
        plan: Mapping[str, int],
        arrivals: Mapping[str, float],
        models: Sequence[ModelLoad],
        prefix: str,
        first_name: int = 0,
        num_kept: tuple[int, int] = (0, 0),
    ) -> None:
        n, slots, batch = num_senders, 1 << plan["slots_log2"], plan["batch"]
        self._memory: list[NDArray[Any]] = []
        whole = np.zeros(1, Load.dtype)
        self.address, self.struct = self._hold(whole), whole[0]
        self.table = np.zeros(n, Sender.dtype)
        self.slots = np.zeros((n, slots), Slot.dtype)
        self.names = np.full((n, batch), -1, np.int32)
        self.errors = np.zeros(NUM_ERRORS, np.int64)
        self.outputs = np.zeros((*num_kept, models[0].output_size), np.float32)
        self.histograms = {name: Histogram() for name in HISTOGRAMS}
        self._timed = np.zeros(NUM_TIMED, Timed.dtype)
        self._kept = np.zeros(MAX_KEPT_BYTES, np.uint8)
        served = [self._serve(model, plan["chunk"]) for model in models]
        message = batch * (ID_BYTES + 19 + plan["chunk"] * max(int(m["x_bytes"]) for m in served))
        codes = b"".join(code.wire.encode().ljust(CODE_BYTES, b"\0") for code in ErrorCode)
        of_heap = self.struct["heap"]
        of_heap["times_ns"], of_heap["streams"] = (
            self._hold(np.zeros(n, np.int64)) for _ in range(2)
        )
        for name, value in {
            "socket": socket,
            "descriptor": descriptor,
            "num_senders": n,
            "senders": self._hold(self.table),
            "slots": self._hold(self.slots),
            "names": self._hold(self.names),
            "models": self._hold(np.array(served, ServedModel.dtype)),
            "num_models": len(models),
            "prefix": self._hold(_bytes(prefix.encode())),
            "code_words": self._hold(_bytes(bytes(CODE_BYTES) + codes)),
            "errors": self._hold(self.errors),
            **{name: self._hold(each.counts) for name, each in self.histograms.items()},
            "outputs": self._hold(self.outputs),
            "timed": self._hold(self._timed),
            "num_kept_steps": num_kept[0],
            "num_kept_streams": num_kept[1],
            "kept": self._hold(self._kept),
            "scratch": self._hold(np.zeros(SCRATCH_BYTES + message + 256, np.uint8)),
        }.items():
            self.struct[name] = value
        for name, number in plan.items():
            self.struct["plan"][name] = number
        for name, setting in arrivals.items():
            self.struct["arrivals"][name] = setting
        self.struct["counts"]["next_name"] = first_name
        self.struct["counts"]["least_window"] = 1 << 30

    def _hold(self, memory: NDArray[Any]) -> int:
        """Keep memory alive; return its address."""
        self._memory.append(memory)
        return int(memory.ctypes.data)

    def _serve(self, model: ModelLoad, chunk: int) -> Any:
        again = model.x[np.arange(chunk - 1) % NUM_X]
        text = model.name.encode()
        head = bytes([0xA0 | len(text)]) if len(text) < 32 else bytes([0xD9, len(text)])
        served = ServedModel.one()
        served["x"] = self._hold(np.concatenate([model.x, again]))
        served["x_bytes"], served["y_bytes"] = 4 * model.x.shape[1], 4 * model.output_size
        served["word"] = self._hold(_bytes(head + text))
        served["word_bytes"] = len(head + text)
        return served

    def count(self, name: str) -> int:
        """Return one of `Counts`."""
        return int(self.struct["counts"][name])

    @property
    def how(self) -> How:
        """How the last drive ended."""
        return How(self.count("how"))

    @property
    def timed(self) -> NDArray[Any]:
        """The last messages that were timed, of `Timed`."""
        return self._timed[: min(int(self.struct["num_timed"]), NUM_TIMED)].copy()

    @property
    def kept(self) -> bytes:
        """The beginning of the first refusal, or of a wrong reply."""
        return self._kept[: int(self.struct["kept_bytes"])].tobytes()

    @property
    def kept_size(self) -> int:
        """How many bytes that reply had."""
        return int(self.struct["kept_size"])


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).copy()
