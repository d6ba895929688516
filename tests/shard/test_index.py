"""The index of streams, against a dict."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.kernels.virtual_memory import address_of
from streamrnn_client.protocol import canonical_id
from streamrnn_client.protocol import hash64 as hash64_of_protocol
from streamrnn_server.shard.memory import header as slab
from streamrnn_server.shard.memory.index import (
    StreamIndex,
    find_slot,
    first_candidate,
    hash64,
    insert_slot,
    remove_slot,
)


class Streams:
    """A table of headers with its index; what the server's admission does, in Python."""

    def __init__(self, max_slots):
        self.headers = np.zeros(max_slots, slab.Header.dtype)
        self.index = StreamIndex(max_slots, address_of(self.headers))
        self.names = {}

    def place(self, name):
        """Return the address of a name, which stays there."""
        return address_of(self.names.setdefault(name, np.frombuffer(name, np.uint8)))

    def hash(self, name):
        return hash64(self.place(name), len(name))

    def find(self, name, hash_value):
        return find_slot(self.index.struct, hash_value, self.place(name), len(name))

    def insert(self, name, hash_value, slot):
        header = self.headers[slot]
        header["id_bytes"] = len(name)
        if len(name) <= slab.MAX_INLINE_ID_BYTES:
            header["id"][: len(name)] = np.frombuffer(name, np.uint8)
        else:
            header["id"][:8].view(np.int64)[0] = self.place(name)
        insert_slot(self.index.struct, hash_value, slot)

    def remove(self, hash_value, slot):
        return remove_slot(self.index.struct, hash_value, slot)


STREAM_IDS = st.one_of(st.integers(0, 40), st.text("ab", min_size=1, max_size=128))


@given(STREAM_IDS)
@settings(deadline=None)
def test_the_hash_is_the_protocol_s(stream):
    name = canonical_id(stream)
    assert Streams(1).hash(name) % 2**64 == hash64_of_protocol(name)


ACTIONS = st.lists(st.tuples(st.integers(0, 2), STREAM_IDS), max_size=150)
# With few hash values every search walks through others' entries, and deletions shift.
NUM_HASHES = st.sampled_from([64, 3, 1])


@settings(deadline=None, max_examples=200)
@given(ACTIONS, NUM_HASHES)
def test_an_index_agrees_with_a_dict(actions, num_hashes):
    check_against_dict(Streams(200), actions, num_hashes)


def check_against_dict(streams, actions, num_hashes):
    """Insert, remove and find streams in an index and in a dict."""
    known: dict[bytes, int] = {}
    free = list(range(200))
    hashes: dict[bytes, int] = {}
    for action, stream in actions:
        name = canonical_id(stream)
        # The low bits choose the place: near the table's end, so that probing wraps around.
        hash_value = hashes.setdefault(name, -1 - (streams.hash(name) % num_hashes))
        if action == 0 and name not in known:
            known[name] = free.pop()
            streams.insert(name, hash_value, known[name])
        elif action == 1 and name in known:
            slot = known.pop(name)
            assert streams.remove(hash_value, slot)
            assert not streams.remove(hash_value, slot)
            free.append(slot)
        for other, value in hashes.items():
            assert streams.find(other, value) == known.get(other, -1)


def test_thousands_of_streams_are_inserted_and_removed():
    streams = Streams(4096)
    rng = np.random.default_rng(0)
    names = [canonical_id(f"stream-{k}" * (1 + k % 3)) for k in range(6000)]
    hashes = [streams.hash(name) for name in names]
    known: dict[int, int] = {}
    free = list(range(4096))
    for k in rng.integers(0, len(names), 60_000):
        if k in known:
            slot = known.pop(k)
            assert streams.remove(hashes[k], slot)
            free.append(slot)
        elif free:
            known[k] = free.pop()
            streams.insert(names[k], hashes[k], known[k])
    for k, name in enumerate(names):
        assert streams.find(name, hashes[k]) == known.get(k, -1)
        if k in known:
            assert first_candidate(streams.index.struct, hashes[k]) == known[k]
    assert len(known) > 1000
