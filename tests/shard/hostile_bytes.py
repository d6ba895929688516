"""Properties of what reads bytes from outside, between guard pages.

Each is a function without arguments, which `test_hostile_bytes` runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.errors import RecordError
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, load_u8
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.state import record as records
from streamrnn.state.record import (
    FRESH,
    HEAD_BYTES,
    NUMBERED,
    UNNUMBERED,
    RecordHead,
    StreamRecord,
    decode_record,
    encode_record,
)
from streamrnn_client.protocol import canonical_id
from streamrnn_server.config import ServerConfig
from streamrnn_server.shard.checkpoint.packing import inputs_in_record, record_at, row_in_record
from streamrnn_server.shard.memory.kept_inputs import input_place, num_inputs
from streamrnn_server.shard.memory.slab import header_of, kept_inputs_of, model_of, row_of
from streamrnn_server.shard.requests import request as r
from streamrnn_server.shard.setup import ShardMemory
from streamrnn_server.shard.streams.allocate import allocate_slot
from streamrnn_server.shard.streams.operations import close_stream
from streamrnn_server.shard.streams.owners import NO_OWNER
from streamrnn_server.shard.streams.replay_ring import num_kept, output_place, remembered
from streamrnn_server.shard.streams.restore import fill_slot, usable_record
from streamrnn_server.shard.streams.slots import push_free_slot
from streamrnn_server.shard.structs import shard_at
from tests.shard.guarded import Guarded
from tests.shard.index_model import ACTIONS, NUM_HASHES, Streams, check_against_dict
from tests.support.models import random_model
from tests.vectors import codec

GUARDED = Guarded()
PLACES: tuple[Callable[[bytes], int], ...] = (GUARDED.put_last, GUARDED.put_first)


def read_one_byte_too_many() -> None:
    """Read beyond the end: must end the process, or the guards guard nothing."""
    ctypes.string_at(GUARDED.put_last(b"abc"), 4)


def read_one_byte_too_early() -> None:
    """Read before the beginning: likewise."""
    ctypes.string_at(GUARDED.put_first(b"abc") - 1, 1)


# --- messages -----------------------------------------------------------------------------------

# Heads that announce far more than comes, and values at the ends of their ranges.
HEADS = [
    bytes.fromhex(text)
    for text in (
        *("dbffffffff", "c6ffffffff", "ddffffffff", "dfffffffff", "c9ffffffff00", "da0081", "d98a"),
        *("dcffff", "9f", "8f", "bf", "c0", "c1", "c3", "c4", "ca", "cb", "cc", "cd", "ce", "cf"),
        *("d0", "d3", "cf7fffffffffffffff", "cfffffffffffffffff", "d38000000000000000", "cb7ff8"),
    )
]
MESSAGES = st.sampled_from([bytes.fromhex(each["hex"]) for each in codec.VECTORS["requests"]])
IDS = st.one_of(st.text(max_size=140), st.integers(0, 2**64 - 1))
VALUES = st.recursive(
    st.one_of(IDS, st.none(), st.binary(max_size=300), st.floats(), st.booleans()),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=12,
)


@st.composite
def messages(draw):
    """Draw a request that was spliced, cut, filled with false heads, or made of any values."""
    if draw(st.booleans()):
        method = draw(st.sampled_from(["step", "batch", "open", "close", "reset", "hello"]))
        data = msgpack.packb([0, draw(st.integers(0, 2**32)), method, draw(st.lists(VALUES))])
    else:
        data = draw(MESSAGES)
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 9)))
        new = draw(st.one_of(st.sampled_from(HEADS), st.binary(max_size=9)))
        data = data[:begin] + new + data[end:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@settings(max_examples=600, deadline=None)
@given(messages())
def decoder(message: bytes) -> None:
    """The compiled decoder reads nothing but the message and agrees with the Python codec."""
    record = Guarded(r.REQUEST_BYTES)
    request = record.put_last(bytes(r.REQUEST_BYTES))
    for place in PLACES:
        codec.assert_same(message, place, request)


# --- records ------------------------------------------------------------------------------------

NUM_OUTPUTS = 3


class Shard:
    """The memory of a shard with one model, without its loop."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.model = random_model(rng, [("gru", 24)], 2, NUM_OUTPUTS)
        self.program = Program(self.model)
        context: Any = zmq.Context.instance()
        router, pair = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        config = ServerConfig(max_streams=4, memory_budget_bytes=2**29, history=("3",))
        self.memory = ShardMemory(config, 0, {"m": self.program}, router, pair, None, ["there"])
        self.sizes = self.program.row_bytes, 4 * NUM_OUTPUTS, 8
        for socket in (router, pair):
            socket.close(0)


@jit
def restore(address: int, data: int, num_bytes: int) -> int:
    """Make a stream of a record; return its slot, or -1 if the record cannot be used."""
    shard = shard_at(address)
    if not usable_record(shard, 0, data, num_bytes):
        return -1
    slot = allocate_slot(shard, 0, NO_OWNER)
    header = header_of(shard, slot)
    return slot if fill_slot(shard, header, record_at(data)) else -2


@jit
def row_at(data: int) -> int:
    """Return the address of the row in a record."""
    return row_in_record(record_at(data))


@jit
def inputs_at(data: int) -> int:
    """Return the address of the inputs in a record."""
    return inputs_in_record(record_at(data))


@jit
def differs(
    address: int, slot: int, row: int, digests: Any, outputs: int, inputs: int, num: int
) -> bool:
    """Tell whether a stream is not as a record says, and free it."""
    shard = shard_at(address)
    header, model = header_of(shard, slot), model_of(shard, 0)
    _, num_outputs = num_kept(header, header.last_seq)
    first = header.last_seq + 1 - num_outputs
    is_other = False
    kept = kept_inputs_of(model, slot)
    is_other |= num_inputs(kept) != min(num, 3)
    for k in range(num_inputs(kept)):
        x, place = inputs + 8 * (num - num_inputs(kept) + k), input_place(kept, k)
        is_other |= load_i64(place) != load_i64(x)
    for k in range(model.state_bytes):
        is_other |= load_u8(row_of(model, slot) + k) != load_u8(row + k)
    for k in range(len(digests)):
        seq = header.last_seq - len(digests) + 1 + k
        is_other |= not remembered(header, seq, digests[k])
        if seq >= first:
            place = output_place(header, seq, model.y_bytes)
            for i in range(model.y_bytes):
                is_other |= load_u8(place + i) != load_u8(
                    outputs + (seq - first) * model.y_bytes + i
                )
    close_stream(shard, header)
    push_free_slot(shard, header)
    return is_other


INTERESTING = st.one_of(
    st.integers(0, 300),
    st.sampled_from([2**k + d for k in (7, 8, 15, 31, 32, 62, 63) for d in (-1, 0, 1)]),
    st.integers(0, 2**64 - 1),
)


FIELDS = sorted(set(RecordHead.dtype.fields or ()) - {"fingerprint"})


@st.composite
def damaged_records(draw, shard: Shard):
    """Draw a record with one to three fields of its head changed, cut or padded, sealed anew."""
    numbering = draw(st.sampled_from([FRESH, NUMBERED, NUMBERED, UNNUMBERED]))
    window = 1 << draw(st.integers(0, 4))
    last_seq = draw(st.sampled_from([1, 5, 2**62])) if numbering == NUMBERED else 0
    num_ring = min(window, last_seq)
    y_bytes = draw(st.sampled_from([4 * NUM_OUTPUTS] * 3 + [0, 4])) if window > 1 else 0
    num_outputs = draw(st.integers(0, num_ring)) if y_bytes else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    good = StreamRecord(
        stream=canonical_id(draw(st.one_of(st.text("aä", min_size=1, max_size=9), st.just(7)))),
        model="m",
        fingerprint=shard.model.fingerprint,
        arithmetic=shard.program.arithmetic,
        owner=draw(st.text(max_size=3)),
        numbering=numbering,
        window=window,
        last_seq=last_seq,
        clock_s=3,
        row=rng.bytes(shard.program.row_bytes + draw(st.sampled_from([0, 0, 0, 64, -64]))),
        digests=rng.integers(-(2**63), 2**63 - 1, num_ring),
        outputs=rng.integers(0, 256, (num_outputs, y_bytes), np.uint8),
        inputs=rng.bytes(draw(st.sampled_from([0, 0, 8, 24, 40, 12]))),
    )
    data = bytearray(encode_record(good))
    head = np.frombuffer(data, RecordHead.dtype, 1)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(FIELDS))
        width = 8 * head.dtype[name].itemsize
        value = draw(INTERESTING) % 2**width
        head[name] = np.array([value], f"u{width // 8}").view(head.dtype[name])
    del head
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=40))
        if draw(st.booleans()) and len(data) >= HEAD_BYTES:
            np.frombuffer(data, RecordHead.dtype, 1)["num_bytes"] = len(data)
    if len(data) >= 4:
        data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "little")
    return bytes(data)


def record_reader() -> None:
    """Both readers read nothing but the record; what either takes is what was written."""
    shard = Shard()
    kept = {"usable": 0, "refused": 0}

    @settings(max_examples=600, deadline=None)
    @given(damaged_records(shard))
    def check(data):
        try:
            record = decode_record(data)
        except RecordError:
            record = None
        if record is not None:
            assert encode_record(record) == data
            sizes = len(record.row), record.outputs.shape[1], len(record.inputs)
            if not records.fits_model(*sizes, *shard.sizes):
                record = None
        for place in PLACES:
            at = place(data)
            slot = restore(shard.memory.address, at, len(data))
            assert slot >= -1, "there is memory enough"
            if record is not None:
                assert slot >= 0, "what Python takes, compiled code takes"
            if slot < 0:
                kept["refused"] += 1
                continue
            kept["usable"] += 1
            head = np.frombuffer(data, RecordHead.dtype, 1)
            row = row_at(at)
            ring = row - at + shard.program.row_bytes
            digests = np.frombuffer(data, np.int64, head["num_ring"][0], ring)
            outputs = at + ring + digests.nbytes
            num = int(head["inputs_bytes"][0]) // 8 if head["version"][0] > 1 else 0
            found = row, digests, outputs, inputs_at(at), num
            assert not differs(shard.memory.address, slot, *found)

    check()
    assert min(kept.values()) > 100, kept


# --- the index ----------------------------------------------------------------------------------


class GuardedStreams(Streams):
    """An index whose table, headers and ids each end at a guard page."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots)
        index, headers = self.index, self.headers
        self._table, self._headers = Guarded(index.num_bytes), Guarded(headers.nbytes)
        self._ids: dict[bytes, Guarded] = {}
        self.headers = self._headers.last(headers.nbytes).view(headers.dtype)
        index.struct["table"] = address_of(self._table.last(index.num_bytes))
        index.struct["headers"] = address_of(self.headers)

    def place(self, name: bytes) -> int:
        return self._ids.setdefault(name, Guarded(len(name))).put_last(name)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, NUM_HASHES)
def index(actions: Any, num_hashes: int) -> None:
    """The index agrees with a dict and touches nothing beside its table, headers and ids."""
    check_against_dict(GuardedStreams(200), actions, num_hashes)
