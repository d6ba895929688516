"""The journal's format: what was written is read, and what was torn or changed is told apart."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.errors import StoreError
from streamrnn.state.journal import (
    GROUP_HEAD_BYTES,
    ChangeKind,
    Entry,
    Group,
    SegmentHead,
    SegmentWriter,
    encode_entry,
    entries_of,
    read_journal,
)
from streamrnn_client.protocol import canonical_id

HEAD = SegmentHead(3, 0, 1, "cpu", (("m", "ab" * 32), ("other", "cd" * 32)))

numbers = st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1))
entries = st.builds(
    Entry,
    st.sampled_from(list(ChangeKind)),
    st.integers(0, 1),
    st.one_of(st.text(min_size=1, max_size=9), st.integers(0, 2**64 - 1)).map(canonical_id),
    numbers,
    numbers,
    numbers,
    st.binary(max_size=40),
)
groups = st.lists(st.lists(entries, min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.fixture
def directory(tmp_path):
    return tmp_path


def write(directory, number, written, first=0, head=HEAD):
    segment = SegmentWriter(directory, head._replace(number=number))
    for k, group in enumerate(written):
        segment.append(first + k, len(group), b"".join(map(encode_entry, group)))
    segment.close()
    return segment.path


def read(directory):
    return [
        (group.sequence, list(entries_of(group, 2)))
        for segment in read_journal(directory)
        for group in segment.groups
    ]


def whole(written, first=0):
    return [(first + k, group) for k, group in enumerate(written)]


@given(st.lists(groups, min_size=1, max_size=3))
def test_what_was_written_is_read(segments):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        expected: list[tuple[int, list[Entry]]] = []
        for number, written in enumerate(segments):
            write(directory, number, written, len(expected))
            expected += whole(written, len(expected))
        assert read(directory) == expected
        heads = [segment.head for segment in read_journal(directory)]
        assert heads == [HEAD._replace(number=number) for number in range(len(segments))]


@settings(max_examples=50, deadline=None)
@given(groups, st.data())
def test_a_torn_tail_is_the_end(written, data):
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), 1, written)
        content = path.read_bytes()
        sizes = [GROUP_HEAD_BYTES + sum(len(encode_entry(e)) for e in group) for group in written]
        last = len(content) - sizes[-1]
        at = data.draw(st.integers(last, len(content) - 1))
        rest = data.draw(st.sampled_from([b"", bytes(len(content) - at)]))
        path.write_bytes(content[:at] + rest)
        if path.read_bytes() != content:  # the last bytes may be zero as they are
            assert read(Path(name)) == whole(written[:-1])
            (segment,) = read_journal(Path(name))
            assert segment.num_torn == at - last + len(rest)


@settings(max_examples=50, deadline=None)
@given(groups, st.data())
def test_a_changed_bit_is_damage_or_the_end(written, data):
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), 1, written)
        content = bytearray(path.read_bytes())
        last = len(content) - GROUP_HEAD_BYTES
        last -= sum(len(encode_entry(entry)) for entry in written[-1])
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        # Where the last four bytes of a group's head are, nothing is.
        if bit // 8 >= last:
            assert read(Path(name)) in (whole(written[:-1]), whole(written))
        else:
            with contextlib.suppress(StoreError):
                assert read(Path(name)) == whole(written)


ENTRY = Entry(ChangeKind.STEP, 0, b"sa", 5, 1, 1, bytes(8))
WRITTEN = [[ENTRY._replace(num_changes=k)] for k in range(4)]


def test_a_group_that_could_not_be_synced_is_read_once_more(directory):
    write(directory, 1, WRITTEN[:2])
    write(directory, 2, WRITTEN[1:], 1)
    assert [sequence for sequence, _ in read(directory)] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("first", [0, 3, 7])
def test_a_group_that_is_missing_between_segments_is_damage(directory, first):
    write(directory, 1, WRITTEN[:2])
    write(directory, 2, WRITTEN[:1], first)
    with pytest.raises(StoreError, match=f"group {first} follows on group 1"):
        read(directory)


def test_a_segment_that_is_missing_is_damage(directory):
    for number in range(3):
        path = write(directory, number, WRITTEN[:1], number)
    (path.parent / HEAD._replace(number=1).file_name).unlink()
    with pytest.raises(StoreError, match="group 2 follows on group 0"):
        read(directory)


def test_shards_and_epochs_count_their_groups_for_themselves(directory):
    for epoch, shard in ((3, 0), (3, 1), (4, 0)):
        write(directory, 1, WRITTEN[:1], 5, HEAD._replace(epoch=epoch, shard=shard))
    assert len(read(directory)) == 3


def test_a_group_of_another_segment_is_none(directory):
    one = write(directory, 1, WRITTEN[:2]).read_bytes()
    path = write(directory, 2, WRITTEN[:1], 2)
    size = GROUP_HEAD_BYTES + len(encode_entry(ENTRY))
    path.write_bytes(path.read_bytes()[:-size] + one[-size:])
    assert [sequence for sequence, _ in read(directory)] == [0, 1]


def test_a_segment_under_another_name_is_damage(directory):
    path = write(directory, 1, WRITTEN)
    path.rename(path.with_name(HEAD._replace(number=2).file_name))
    with pytest.raises(StoreError, match="it is "):
        read(directory)


def test_a_torn_head_is_nothing_and_a_changed_one_is_damage(directory):
    path = write(directory, 1, [])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert read(directory) == []
    path.unlink()
    path = write(directory, 1, WRITTEN)
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="its head is torn or changed"):
        read(directory)


GOOD = encode_entry(ENTRY)


@pytest.mark.parametrize(
    "payload",
    [
        GOOD[:-8],
        GOOD[:20],
        GOOD + bytes(8),
        encode_entry(ENTRY._replace(kind=0)),
        encode_entry(ENTRY._replace(kind=6)),
        encode_entry(ENTRY._replace(model=2)),
        encode_entry(ENTRY._replace(seq=-1)),
        encode_entry(ENTRY._replace(incarnation=-1)),
        encode_entry(ENTRY._replace(num_changes=-(2**63))),
        encode_entry(ENTRY._replace(stream=b"s")),
        encode_entry(ENTRY._replace(stream=b"xa")),
        b"\xff\xff\xff\xff" + GOOD[4:],
        b"\xff\xff\xff\x7f" + GOOD[4:],
    ],
)
def test_an_entry_that_no_server_writes_is_refused(payload):
    with pytest.raises(StoreError, match="group 4"):
        list(entries_of(Group(4, 1, memoryview(payload)), 2))
