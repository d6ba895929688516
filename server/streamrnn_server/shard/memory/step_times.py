"""Where the time of single steps goes: time stamps of one message in about a thousand.

A message is timed by what it is, not by a count: a client that does the same sum knows which of its
messages are, and sets its own times beside the server's (`streamrnn bench load`). Nothing is read
from the clock for the others.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import field_address, pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn_server.shard.libzmq import monotonic_ns

__all__ = [
    "NUM_STEP_TIMES",
    "STEP_TIME_BYTES",
    "StepTime",
    "StepTimes",
    "begin_gather",
    "begin_kernel",
    "begin_timing",
    "end_encode",
    "end_kernel",
    "end_timing",
    "is_timed",
    "note_batch_of",
    "note_reply",
    "stamp",
]

NUM_STEP_TIMES = 1024  # a power of two
_EVERY_LOG2 = 10
_LOW_32 = 0xFFFF_FFFF
_MULTIPLIERS = (-7046029254386353131, -4658895280553007687)  # odd, without a pattern


class StepTime(Struct):
    """The way of one message through a shard: times of the monotonic clock."""

    sent_ns: I64  # handed to libzmq; 0 until then
    request: I64  # address
    hash: I64  # low 32 bits of the (first) stream's
    seq: I64  # number of the (first) step; 0 unnumbered
    msgid: I64
    code: I64  # of its error; 0
    num_steps: I64  # of a chunk, else 1
    num_items: I64  # streams of a batch message, else 1
    num_batches: I64  # in which they were computed; 0: none, it was answered from the ring
    num_rows: I64  # of those batches, others' among them
    unread_ns: I64  # so long it may have lain in the socket, at most: the shard had not looked
    received_ns: I64  # the shard began to take what had come
    decoded_ns: I64
    # Sums over its batches:
    gather_ns: I64
    kernel_ns: I64
    commit_ns: I64
    last_batch_ns: I64  # when the last one was gathered
    committed_ns: I64
    reply_ns: I64  # its reply was begun
    encoded_ns: I64


class StepTimes(Struct):
    """The messages that were timed last, and stamps of the batch that is being computed."""

    records: I64  # address of NUM_STEP_TIMES `StepTime`s
    number: I64  # timed so far
    num_under_way: I64
    looked_ns: I64  # when the shard last stopped to wait
    gather_ns: I64
    kernel_ns: I64
    computed_ns: I64
    clock: Annotated[Any, np.int64, (2,)]  # scratch


STEP_TIME_BYTES = StepTime.dtype.itemsize
_record_at = pointer_to(StepTime)


@jit
def is_timed(hash_value: int, seq: int) -> bool:
    """Tell whether a step is timed, by its stream's hash and its number: one in 1,024 is."""
    mixed = ((hash_value & _LOW_32) + seq * _MULTIPLIERS[0]) * _MULTIPLIERS[1]
    mixed = (mixed ^ ((mixed >> 32) & _LOW_32)) * _MULTIPLIERS[0]
    return (mixed >> (64 - _EVERY_LOG2)) == 0


@jit
def stamp(times: StepTimes) -> int:
    """Read the clock."""
    return monotonic_ns(field_address(times, "clock"))


@jit
def begin_timing(
    times: StepTimes, request: int, hash_value: int, seq: int, received_ns: int, unread_ns: int
) -> int:
    """Begin the record of a message that is decoded; return its number, from 1 on."""
    place = times.number & (NUM_STEP_TIMES - 1)
    times.number += 1
    times.num_under_way += 1
    record = _record_at(times.records + place * STEP_TIME_BYTES)
    record.sent_ns = 0
    record.request = request
    record.hash, record.seq = hash_value & _LOW_32, seq
    record.unread_ns, record.received_ns = max(unread_ns, 0), received_ns
    record.gather_ns, record.kernel_ns, record.commit_ns = 0, 0, 0
    record.num_batches, record.num_rows, record.last_batch_ns = 0, 0, 0
    record.decoded_ns = stamp(times)
    record.committed_ns = record.decoded_ns
    return place + 1


@jit
def _record_of(times: StepTimes, number: int, request: int) -> StepTime:
    """Return a message's record; a null one if a later message has it, or none was begun."""
    if number == 0:
        return _record_at(0)
    record = _record_at(times.records + (number - 1) * STEP_TIME_BYTES)
    return record if record.request == request else _record_at(0)


@jit
def begin_gather(times: StepTimes) -> None:
    """Note that a batch is gathered, if one that is timed may be in it."""
    if times.num_under_way > 0:
        times.gather_ns = stamp(times)


@jit
def begin_kernel(times: StepTimes) -> None:
    """Note that a batch is computed."""
    if times.num_under_way > 0:
        times.kernel_ns = stamp(times)


@jit
def end_kernel(times: StepTimes) -> None:
    """Note that a batch is computed no more."""
    if times.num_under_way > 0:
        times.computed_ns = stamp(times)


@jit
def note_batch_of(
    times: StepTimes, number: int, request: int, num_rows: int, committed_ns: int
) -> None:
    """Add the batch that was committed to a message's record: once, however many rows it has."""
    record = _record_of(times, number, request)
    if not record or record.last_batch_ns == times.gather_ns:
        return
    record.last_batch_ns = times.gather_ns
    record.num_batches += 1
    record.num_rows += num_rows
    record.gather_ns += times.kernel_ns - times.gather_ns
    record.kernel_ns += times.computed_ns - times.kernel_ns
    record.commit_ns += committed_ns - times.computed_ns
    record.committed_ns = committed_ns


@jit
def note_reply(times: StepTimes, number: int, request: int) -> None:
    """Note that a message's reply is begun."""
    record = _record_of(times, number, request)
    if record:
        record.reply_ns = stamp(times)
        record.encoded_ns = record.reply_ns


@jit
def end_encode(times: StepTimes, number: int, request: int) -> None:
    """Note that a message's reply is encoded."""
    record = _record_of(times, number, request)
    if record:
        record.encoded_ns = stamp(times)


@jit
def end_timing(
    times: StepTimes,
    number: int,
    request: int,
    msgid: int,
    code: int,
    num_steps: int,
    num_items: int,
) -> None:
    """End a message's record: its reply is sent."""
    times.num_under_way -= 1
    record = _record_of(times, number, request)
    if record:
        record.msgid, record.code = msgid, code
        record.num_steps, record.num_items = max(num_steps, 1), max(num_items, 1)
        record.sent_ns = stamp(times)
