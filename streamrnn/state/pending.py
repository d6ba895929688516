"""What a journal has of streams that is not in their records yet."""

from __future__ import annotations

from collections.abc import Iterator

from streamrnn.errors import RecordError
from streamrnn.state.journal import JOURNAL_DIRECTORY, Entry, Segment, entries_of, read_journal
from streamrnn.state.record import decode_record
from streamrnn.state.store import STREAMS, StateStore

__all__ = ["changes_above", "journal_entries"]


def journal_entries(store: StateStore) -> Iterator[tuple[Segment, int, Entry]]:
    """Yield what is in a directory's journal, in order.

    Yields
    ------
    segment : Segment
    sequence : int
        The group's.
    entry : Entry

    Raises
    ------
    StoreError
        If it is damaged.
    """
    for segment in read_journal(store.directory / JOURNAL_DIRECTORY):
        for group in segment.groups:
            for entry in entries_of(group, len(segment.head.models)):
                yield segment, group.sequence, entry


def changes_above(store: StateStore) -> dict[bytes, int]:
    """Count the changes of each stream that its record lacks; a start of the server applies them.

    Raises
    ------
    StoreError
        If the journal is damaged.
    """
    reached: dict[bytes, tuple[int, int]] = {}
    numbers: dict[bytes, int] = {}
    for _, _, entry in journal_entries(store):
        if entry.stream not in reached:
            reached[entry.stream] = _reached(store, entry.stream)
        place = entry.incarnation, entry.num_changes
        if place > reached[entry.stream]:
            reached[entry.stream] = place
            numbers[entry.stream] = numbers.get(entry.stream, 0) + 1
    return numbers


def _reached(store: StateStore, stream: bytes) -> tuple[int, int]:
    data = store.get(STREAMS, stream)
    try:
        record = None if data is None else decode_record(data)
    except RecordError:
        record = None
    return (-1, 0) if record is None else (record.incarnation, record.num_changes)
