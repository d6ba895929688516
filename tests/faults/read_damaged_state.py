"""Read damaged state directories, each in a child process.

``python -m tests.faults.read_damaged_state DIR``

A state of a few commits is written to DIR; copies of it are changed by a bit, by a byte, or cut
off. What came of reading them is printed as JSON: how often each outcome came. Where reading ended
the process, the file is left as DIR/fatal/data.mdb.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import signal
import sys
from pathlib import Path

from streamrnn.errors import RecordError, StoreError
from streamrnn.state.record import decode_record, encode_record
from streamrnn.state.store import DATA_FILE, STREAMS, StateStore
from streamrnn.state.verify import damages
from tests.support.records import EXAMPLE

NUM_STREAMS, NUM_CASES, PAGE_BYTES = 150, 400, 4096
MAX_BYTES, WITHIN_S = 2**24, 10
KEYS = [b"s%05d" % (7919 * k % 100_000) for k in range(NUM_STREAMS)]

Content = dict[bytes, bytes]


def write(directory: Path) -> list[Content]:
    """Make some commits; return what each of them left."""
    store = StateStore(directory, max_bytes=MAX_BYTES)
    contents: list[Content] = [{}]
    for number, keys in enumerate([KEYS, KEYS, KEYS[::3]], 1):
        records = {
            key: encode_record(dataclasses.replace(EXAMPLE.renamed(key), clock_s=number))
            for key in keys
        }
        store.commit([(STREAMS, key, record) for key, record in records.items()], number)
        contents.append({**contents[-1], **records})
    store.close()
    return contents


def damage(whole: bytes, case: int, draw: random.Random) -> bytes:
    """Flip a bit or a byte, every other time near the beginning of a page; or cut the end off."""
    if case % 8 == 0:
        return whole[: draw.randrange(len(whole))]
    data = bytearray(whole)
    at = draw.randrange(len(data))
    if case % 2:
        at = at // PAGE_BYTES * PAGE_BYTES + draw.randrange(32)
    data[at] ^= 1 << draw.randrange(8) if case % 3 else draw.randrange(1, 256)
    return bytes(data)


def outcome(directory: Path, contents: list[Content]) -> str:
    """Read everything, as a server does and as `verify` does."""
    try:
        store = StateStore(directory, max_bytes=MAX_BYTES)
    except StoreError:
        return "refused at the start"
    found: Content = {}
    refused = 0
    for key in KEYS:
        try:
            data = store.get(STREAMS, key)
            if data is None:
                continue
            if decode_record(data).stream != key:
                raise RecordError("of another stream")
        except (RecordError, StoreError):
            refused += 1
            continue
        if all(content.get(key) != data for content in contents):
            return f"WRONG: {key!r} was never so"
        found[key] = data
    is_told = next(damages(store), None) is not None
    if found in contents[1:]:
        return "damage elsewhere, told" if is_told else "as it was"
    if not is_told:
        return "WRONG: something is missing and verify does not say so"
    return "records refused" if refused else "streams missing, told"


def outcome_in_child(directory: Path, contents: list[Content]) -> str:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(WITHIN_S)
        try:
            words = outcome(directory, contents)
        except BaseException as error:
            words = f"WRONG: {error!r}"
        os.write(theirs, words.encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as pipe:
        words = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return words


def main(directory: Path) -> None:
    """Damage and read many times."""
    contents = write(directory / "whole")
    whole = (directory / "whole" / DATA_FILE).read_bytes()
    (directory / "copy").mkdir()
    draw = random.Random(1)
    outcomes: collections.Counter[str] = collections.Counter()
    for case in range(NUM_CASES):
        data = damage(whole, case, draw)
        (directory / "copy" / DATA_FILE).write_bytes(data)
        words = outcome_in_child(directory / "copy", contents)
        outcomes[words] += 1
        if words.startswith("ended"):
            (directory / "fatal").mkdir(exist_ok=True)
            (directory / "fatal" / DATA_FILE).write_bytes(data)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
