"""Compiled load: many streams, at most one step of each in flight.

It speaks the wire through the server's own bindings and codec: a client that costs little leaves
the machine to the server.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn_bench.report.results import BenchError
from streamrnn_client.protocol import encode_request, hash_slot, shard_of
from streamrnn_server.shard.libzmq import (
    FAILED,
    MESSAGE_BYTES,
    POLL_BYTES,
    monotonic_ns,
    msg_close,
    msg_data,
    msg_init,
    msg_more,
    poll_sockets,
    receive_frame,
    send_bytes,
)
from streamrnn_server.shard.wire.encode import write_bin, write_uint
from streamrnn_server.shard.wire.values import ValueKind, read_array, read_head, read_uint

__all__ = [
    "ALL_WELL",
    "FIRST_MSGID",
    "MAX_LOOKED_AT",
    "Traffic",
    "drive",
    "make_traffic",
    "stream_names",
    "stream_order",
    "streams_of_shard",
]

# A stream's number is added: all msgids take five bytes, so an echo finds them without parsing.
FIRST_MSGID = 1 << 31
NUM_X = 64  # inputs, a power of two; small, to leave the caches to the server
MAX_LOOKED_AT = 4_096
_NUM_DIGITS = 6
_TIMEOUT_MS = 5_000
_MAX_BAD_BYTES = 4096

# How a drive ended.
(ALL_WELL, BAD_REPLY, NO_REPLY, NOT_SENT) = range(4)


class Traffic(NamedTuple):
    """State of N streams on one socket."""

    socket: int  # handle of a DEALER, connected, without high water marks
    heads: NDArray[np.uint8]  # [N, head_bytes], of each stream's requests, up to the step number
    x: NDArray[np.float32]  # [NUM_X, num_inputs]; stream s sends row (s + 7 * seq) % NUM_X
    seqs: NDArray[np.int64]  # [N], the last step sent
    sent_ns: NDArray[np.int64]  # [N], when
    round_trips_ns: NDArray[np.int64]  # from send to receive; if empty, no clock is read
    outputs: NDArray[np.float32]  # [num_kept, num_looked_at, output_size], of the first steps
    y_bytes: int  # 4 * output_size
    # Streams with a step in flight, a divisor of N. When stream s has its reply, stream
    # (s + num_under_way) % N sends its next step: if it is N, that is s itself.
    num_under_way: int
    bad: NDArray[np.uint8]  # the beginning of a wrong reply
    num_bad_bytes: NDArray[np.int64]  # [1], of `bad`
    scratch: NDArray[np.uint8]  # for messages

    def input_of(self, stream: int, seq: int) -> NDArray[np.float32]:
        """Return the input [num_inputs] that a stream sends at a step."""
        used: NDArray[np.float32] = self.x[(stream + 7 * seq) % NUM_X]
        return used


def stream_names(num_streams: int) -> list[str]:
    """Return the names of up to a million streams, all of one length."""
    return [f"stream-{k:0{_NUM_DIGITS}d}" for k in range(num_streams)]


def streams_of_shard(num_streams: int, shard: int, num_shards: int) -> NDArray[np.int64]:
    """Return which of the streams 0, 1, ... belong to a shard of a server.

    Raises a `BenchError` if none does.
    """
    if num_shards == 1:
        return np.arange(num_streams)
    shards = [shard_of(hash_slot(name), num_shards) for name in stream_names(num_streams)]
    numbers = np.flatnonzero(np.array(shards) == shard)
    if not len(numbers):
        raise BenchError(
            f"none of {num_streams} streams belongs to shard {shard} of {num_shards}; "
            "drive more of them"
        )
    return numbers


def stream_order(num_streams: int, num_under_way: int = 0, seed: int = 0) -> NDArray[np.int64]:
    """Return which of the streams are stream 0, 1, ... of a `Traffic`.

    Shuffled if not all have a step in flight. Takes the arguments of `make_traffic`.
    """
    order = np.arange(num_streams)
    if 0 < num_under_way < num_streams:
        np.random.default_rng(seed + 1).shuffle(order)
    return order


def make_traffic(
    socket: int,
    num_streams: int,
    num_inputs: int,
    output_size: int,
    num_kept: int = 0,
    num_round_trips: int = 0,
    seed: int = 0,
    num_under_way: int = 0,
    numbers: NDArray[np.int64] | None = None,
) -> Traffic:
    """Prepare the load of N streams, all of which are open already.

    ``num_kept`` is the number of first steps whose outputs are kept, of at most `MAX_LOOKED_AT`
    streams; ``num_round_trips`` the number of round trips to be timed; ``seed`` that of the inputs,
    and of the streams' order where not all have a step in flight. ``num_under_way`` is 0 for all
    streams; a `BenchError` if it does not divide N. ``numbers`` says which streams they are, if
    not the first N.
    """
    num_under_way = num_under_way or num_streams
    if num_streams % num_under_way:
        raise BenchError(f"{num_under_way} steps under way do not divide {num_streams} streams")
    rng = np.random.default_rng(seed)
    order = stream_order(num_streams, num_under_way, seed)
    heads = _make_heads(order if numbers is None else numbers[order])
    num_looked_at = min(num_streams, MAX_LOOKED_AT)
    return Traffic(
        socket=socket,
        heads=heads,
        x=rng.standard_normal((NUM_X, num_inputs)).astype(np.float32),
        seqs=np.zeros(num_streams, dtype=np.int64),
        sent_ns=np.zeros(num_streams, dtype=np.int64),
        round_trips_ns=np.zeros(num_round_trips, dtype=np.int64),
        outputs=np.zeros((num_kept, num_looked_at, output_size), dtype=np.float32),
        y_bytes=4 * output_size,
        num_under_way=num_under_way,
        bad=np.zeros(_MAX_BAD_BYTES, dtype=np.uint8),
        num_bad_bytes=np.zeros(1, dtype=np.int64),
        scratch=np.zeros(1024 + heads.shape[1] + 4 * num_inputs, dtype=np.uint8),
    )


def _make_heads(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the heads of requests: stream 0's, with other msgids and other digits."""
    (name,) = stream_names(1)
    whole = encode_request(FIRST_MSGID, "step", [name, 0, b"", 0])
    head = np.frombuffer(whole[: whole.index(name.encode()) + len(name)], np.uint8)
    heads = np.tile(head, (len(numbers), 1))
    at = whole.index(FIRST_MSGID.to_bytes(4, "big"))
    msgids = (FIRST_MSGID + np.arange(len(numbers))).astype(">u4")
    heads[:, at : at + 4] = msgids.view(np.uint8).reshape(-1, 4)
    for k in range(1, _NUM_DIGITS + 1):
        heads[:, -k] = ord("0") + numbers // 10 ** (k - 1) % 10
    return heads


# Places in the scratch.
_MESSAGE = 0
_POLL = _MESSAGE + MESSAGE_BYTES
_CLOCK = _POLL + POLL_BYTES
_OUT = _CLOCK + 16


@jit
def drive(
    traffic: Traffic, duration_ns: int, max_seq: int, checks_seq: bool
) -> tuple[int, int, int]:
    """Keep steps of as many streams in flight, and check every reply's form.

    No other thread may use the socket. After ``duration_ns`` nothing is sent or counted; a stream's
    last step is ``max_seq``. ``checks_seq``: a reply must carry its step's number, which an echo's
    lacks. Returns `ALL_WELL` or another of these codes (replies may still be in flight then),
    the replies that came in time, and the nanoseconds that they took.
    """
    message = traffic.scratch.ctypes.data + _MESSAGE
    poll_items = traffic.scratch.ctypes.data + _POLL
    clock = traffic.scratch.ctypes.data + _CLOCK
    num_streams = len(traffic.seqs)
    num_timed, reads_clock = 0, len(traffic.round_trips_ns) > 0
    msg_init(message)
    num_replies = num_counted = 0
    start = now = monotonic_ns(clock)
    stopped_at = np.int64(0)
    how = ALL_WELL
    for stream in range(traffic.num_under_way):
        how = max(how, _send_step(traffic, stream, now))
    num_under_way = traffic.num_under_way
    while num_under_way > 0 and how == ALL_WELL:
        size = receive_frame(traffic.socket, message)
        if size < 0:
            if size == FAILED or not poll_sockets(
                poll_items, traffic.socket, traffic.socket, 0, 0, _TIMEOUT_MS
            ):
                how = NO_REPLY
            continue
        stream = _check_reply(traffic, msg_data(message), size, checks_seq)
        if stream < 0 or msg_more(message):
            how = BAD_REPLY
            continue
        num_replies += 1
        if reads_clock or num_replies % 16 == 0:
            now = monotonic_ns(clock)
        if num_timed < len(traffic.round_trips_ns):
            traffic.round_trips_ns[num_timed] = now - traffic.sent_ns[stream]
            num_timed += 1
        if stopped_at == 0 and now - start >= duration_ns:
            stopped_at, num_counted = now, num_replies
        stream += traffic.num_under_way
        if stream >= num_streams:
            stream -= num_streams
        if stopped_at != 0 or traffic.seqs[stream] >= max_seq:
            num_under_way -= 1
        else:
            how = _send_step(traffic, stream, now)
    msg_close(message)
    if stopped_at == 0:
        stopped_at, num_counted = monotonic_ns(clock), num_replies
    return how, num_counted, stopped_at - start


@jit
def _send_step(traffic: Traffic, stream: int, now: int) -> int:
    """Send a stream's next step, and that those before it were answered; return how it went."""
    seq = traffic.seqs[stream] + 1
    traffic.seqs[stream] = seq
    traffic.sent_ns[stream] = now
    out = traffic.scratch.ctypes.data + _OUT
    head = traffic.heads[stream]
    x = traffic.x[(stream + 7 * seq) % NUM_X]
    copy_bytes(out, head.ctypes.data, len(head))
    at = write_bin(write_uint(out + len(head), seq), x.ctypes.data, 4 * len(x))
    at = write_uint(at, seq - 1)
    return NOT_SENT if send_bytes(traffic.socket, out, at - out, False) != 0 else ALL_WELL


@jit
def _check_reply(traffic: Traffic, data: int, num_bytes: int, checks_seq: bool) -> int:
    """Return the stream of a reply and keep its output; -1 if the reply is wrong."""
    end = data + num_bytes
    kind, at = read_uint(read_array(data, end, 4), end)
    msgid, at = read_uint(at, end)
    error, _nothing, at = read_head(at, end)
    last_seq, at = read_uint(read_array(at, end, 3), end)
    _durable_seq, at = read_uint(at, end)
    form, y_bytes, at = read_head(at, end)
    stream = msgid - FIRST_MSGID
    if (
        at == 0
        or kind != 1
        or error != ValueKind.NIL
        or not 0 <= stream < len(traffic.seqs)
        or (checks_seq and last_seq != traffic.seqs[stream])
        or form != ValueKind.BIN
        or y_bytes != traffic.y_bytes
        or at + y_bytes != end
    ):
        traffic.num_bad_bytes[0] = min(num_bytes, len(traffic.bad))
        copy_bytes(traffic.bad.ctypes.data, data, traffic.num_bad_bytes[0])
        return -1
    step = traffic.seqs[stream] - 1
    if step < traffic.outputs.shape[0] and stream < traffic.outputs.shape[1]:
        copy_bytes(traffic.outputs[step, stream].ctypes.data, at, y_bytes)
    return stream
