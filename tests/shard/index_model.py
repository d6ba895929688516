"""An index of streams as the server's admission uses it, and the dict that judges it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from streamrnn.kernels.virtual_memory import address_of
from streamrnn_client.protocol import canonical_id
from streamrnn_server.shard.memory import header as slab
from streamrnn_server.shard.memory.index import (
    StreamIndex,
    find_slot,
    hash64,
    insert_slot,
    remove_slot,
)

__all__ = ["ACTIONS", "NUM_HASHES", "STREAM_IDS", "Streams", "check_against_dict"]

STREAM_IDS = st.one_of(st.integers(0, 40), st.text("ab", min_size=1, max_size=128))
ACTIONS = st.lists(st.tuples(st.integers(0, 2), STREAM_IDS), max_size=150)
# With few hash values every search walks through others' entries, and deletions shift.
NUM_HASHES = st.sampled_from([64, 3, 1])


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
