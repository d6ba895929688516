"""Read all that a state directory holds, and say what is damaged.

LMDB trusts its pages: one that was changed behind its back may end the process that reads it. So
``streamrnn state verify`` runs this as a program of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from streamrnn.errors import RecordError, StateError, StoreError
from streamrnn.state.pending import changes_above
from streamrnn.state.record import decode_record
from streamrnn.state.store import SNAPSHOTS, STREAMS, TOMBSTONES, StateStore

__all__ = ["EXIT_CANNOT_OPEN", "damages", "id_text"]

EXIT_CANNOT_OPEN = 3
_TABLES = {STREAMS: "stream", SNAPSHOTS: "snapshot", TOMBSTONES: "tombstone"}


def id_text(stream: bytes) -> str:
    """Return a canonical id as people write it: an integer as int:7."""
    if stream[:1] == b"u":
        return f"int:{int.from_bytes(stream[1:], 'big')}"
    return stream[1:].decode(errors="backslashreplace")


def damages(store: StateStore) -> Iterator[str]:
    """Yield what is damaged, one line each.

    Yields
    ------
    str
        Nothing if every record is whole and every key is found in its place.
    """
    try:
        changes_above(store)
    except StoreError as error:
        yield str(error)
    for table, what in _TABLES.items():
        try:
            yield from _damages_of(store, table, what)
        except StoreError as error:
            yield f"the table of {what}s is damaged: {error}"


def _damages_of(store: StateStore, table: int, what: str) -> Iterator[str]:
    num_items = store.num_items(table)
    found, before = 0, b""
    for key, data in store.items(table):
        found += 1
        if found > num_items:
            break  # pages that point to each other have no end
        if (found > 1 and key <= before) or store.get(table, key) != data:
            yield f"the table of {what}s is damaged: {key!r} stands where it is not found"
        before = key
        if table == TOMBSTONES:
            continue
        stream = key if table == STREAMS else key[1 : 1 + key[0]]
        try:
            record = decode_record(data)
            if record.stream != stream:
                raise RecordError(f"it is the record of {id_text(record.stream)!r}")
        except RecordError as error:
            yield f"{what} {id_text(stream)!r} is damaged: {error}"
    if found != num_items:
        number = f"more than {num_items}" if found > num_items else str(found)
        yield f"the table of {what}s is damaged: it holds {number}, and should hold {num_items}"


def main(directory: str) -> int:
    """Print what is damaged, and how much there is.

    Returns
    -------
    int
        0; 1 if there is damage; `EXIT_CANNOT_OPEN`, with the reason on stderr.
    """
    try:
        store = StateStore(Path(directory), read_only=True)
    except StateError as error:
        print(error, file=sys.stderr)
        return EXIT_CANNOT_OPEN
    num_damages = 0
    for line in damages(store):
        num_damages += 1
        print(line, flush=True)
    with contextlib.suppress(StoreError):
        if above := changes_above(store):
            print(f"the journal has {sum(above.values())} changes of {len(above)} streams more")
    numbers = [f"{store.num_items(table)} {what}s" for table, what in _TABLES.items()]
    print(f"{', '.join(numbers)}, {num_damages} damaged")
    store.close()
    return 1 if num_damages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
