"""The compiled reader of a journal's groups: it finds and refuses what the slow one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.errors import StoreError
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.state.journal import (
    ENTRY_HEAD,
    ChangeKind,
    Entry,
    Group,
    Segment,
    SegmentHead,
    encode_entry,
    entries_of,
)
from streamrnn.state.journal_table import entry_at, find_lacking, table_of
from streamrnn_client.protocol import canonical_id

HEAD = SegmentHead(3, 0, 1, "cpu", (("m", "ab" * 32), ("other", "cd" * 32)))
NUM_MODELS = len(HEAD.models)

few_numbers = st.integers(0, 4)
numbers = st.one_of(few_numbers, st.integers(0, 2**63 - 1))
ids = st.one_of(st.integers(0, 3), st.text(min_size=1, max_size=9), st.integers(0, 2**64 - 1)).map(
    canonical_id
)
entries = st.builds(
    Entry,
    st.sampled_from(list(ChangeKind)),
    st.integers(0, NUM_MODELS - 1),
    ids,
    numbers,
    numbers,
    numbers,
    st.binary(max_size=40),
)
groups = st.lists(st.lists(entries, max_size=6), max_size=4)


def segment_of(payloads):
    groups = [Group(k, num, memoryview(data)) for k, (num, data) in enumerate(payloads)]
    return Segment(Path("x.journal"), HEAD, groups, 0)


def read_slowly(segment):
    """Return what is in a segment by stream, or the words of an error."""
    by_stream: dict[bytes, list[Entry]] = {}
    try:
        for group in segment.groups:
            for entry in entries_of(group, NUM_MODELS):
                by_stream.setdefault(entry.stream, []).append(entry)
    except StoreError as error:
        return str(error)
    return by_stream


def read(segment):
    try:
        table = table_of(segment)
    except StoreError as error:
        return str(error)
    ends = zip(table.streams, table.bounds, table.bounds[1:], strict=False)
    return {s: [entry_at(place) for place in table.places[a:b]] for s, a, b in ends}


def payloads_of(written):
    return [(len(group), b"".join(map(encode_entry, group))) for group in written]


@given(groups)
def test_it_finds_what_the_slow_reader_finds(written):
    segment = segment_of(payloads_of(written))
    found = read(segment)
    assert found == read_slowly(segment)
    assert list(found) == list(read_slowly(segment))


@settings(max_examples=400)
@given(groups.filter(any), st.data())
def test_it_refuses_what_the_slow_reader_refuses(written, data):
    payloads = payloads_of(written)
    k = data.draw(st.sampled_from([k for k, group in enumerate(written) if group]))
    num, content = payloads[k]
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(content) - 1))
        changed[at] = data.draw(
            st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255))
        )
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    more = data.draw(st.sampled_from([b"", bytes(8), bytes(32), content]))
    num = data.draw(st.one_of(st.just(num), st.sampled_from([0, num - 1, num + 1, 2**32 - 1])))
    payloads[k] = num, bytes(changed[:end]) + more
    segment = segment_of(payloads)
    assert read(segment) == read_slowly(segment)


GOOD = Entry(ChangeKind.STEP, 0, b"sa", 5, 1, 1, bytes(8))
HEAD_OF_GOOD = ENTRY_HEAD.unpack(encode_entry(GOOD)[: ENTRY_HEAD.size])


RANGES = [(-(2**31), 2**31), (0, 2**16), (0, 2**8), (0, 2**8), *[(-(2**63), 2**63)] * 3]
EDGES = (-(2**63), -(2**31), -1, 0, 1, 2, 5, 6, 8, 9, 200, 255, 65535, 2**31 - 1, 2**63 - 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (k, value)
        for k, (least, end) in enumerate(RANGES)
        for value in EDGES
        if least <= value < end
    ],
)
def test_a_number_at_its_edge_is_judged_alike(field, value):
    head = list(HEAD_OF_GOOD)
    head[field] = value
    changed = ENTRY_HEAD.pack(*head) + encode_entry(GOOD)[ENTRY_HEAD.size :]
    segment = segment_of([(2, changed + encode_entry(GOOD))])
    assert read(segment) == read_slowly(segment)


def lacking_slowly(written, reached):
    """Return what `find_lacking` is to find, entry by entry."""
    above = [each for each in written if (each.incarnation, each.num_changes) > reached]
    is_first = [each.kind == ChangeKind.OPEN and each.num_changes == 1 for each in above]
    if is_opened := any(is_first):
        above = above[len(above) - 1 - is_first[::-1].index(True) :]
    number = 0 if is_opened else reached[1]
    is_whole = not above or is_opened or above[-1].incarnation == reached[0]
    for each in above:
        is_same = (each.incarnation, each.model) == (above[-1].incarnation, above[-1].model)
        is_whole = is_whole and is_same and each.num_changes <= number + 1
        number = max(number, each.num_changes)
    return above, is_opened, is_whole


changes = st.builds(
    Entry,
    st.sampled_from(list(ChangeKind)),
    st.integers(0, 1),
    st.just(b"sa"),
    st.integers(1, 2),
    few_numbers,
    st.just(1),
    st.just(b""),
)


@settings(max_examples=300)
@given(st.lists(changes, min_size=1, max_size=8), st.integers(-1, 2), few_numbers, st.booleans())
def test_what_a_record_lacks_is_found(written, incarnation, num_changes, is_counting):
    if is_counting:
        written = [each._replace(num_changes=num_changes + k) for k, each in enumerate(written)]
    table = table_of(segment_of(payloads_of([written])))
    num, is_opened, is_whole = find_lacking(
        address_of(table.places), len(written), incarnation, num_changes
    )
    found = [entry_at(place) for place in table.places[:num]]
    assert (found, is_opened, is_whole) == lacking_slowly(written, (incarnation, num_changes))


def test_ids_that_are_many_take_their_entries_with_them():
    rng = np.random.default_rng(1)
    written = [
        GOOD._replace(stream=canonical_id(int(k)), num_changes=n)
        for n, k in enumerate(rng.integers(0, 300, 2000))
    ]
    segment = segment_of(payloads_of([written[:1500], written[1500:]]))
    assert read(segment) == read_slowly(segment)
