"""The index of streams, against a dict."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from streamrnn_client.protocol import canonical_id
from streamrnn_client.protocol import hash64 as hash64_of_protocol
from streamrnn_server.shard.memory.index import first_candidate
from tests.shard.index_model import ACTIONS, NUM_HASHES, STREAM_IDS, Streams, check_against_dict


@given(STREAM_IDS)
@settings(deadline=None)
def test_the_hash_is_the_protocol_s(stream):
    name = canonical_id(stream)
    assert Streams(1).hash(name) % 2**64 == hash64_of_protocol(name)


@settings(deadline=None, max_examples=200)
@given(ACTIONS, NUM_HASHES)
def test_an_index_agrees_with_a_dict(actions, num_hashes):
    check_against_dict(Streams(200), actions, num_hashes)


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
