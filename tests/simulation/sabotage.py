"""Planted faults that the crash simulation must detect."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from streamrnn.state.journal import SegmentWriter
from streamrnn.state.journal_table import entry_at, find_lacking
from streamrnn.state.record import NUMBERED, decode_record, encode_record
from streamrnn_client._session.replay_log import ReplayLog
from streamrnn_server.storage import replay
from streamrnn_server.storage.journal_writer import JournalWriter
from streamrnn_server.storage.record_lookup import RecordLookup
from tests.simulation.server import SimulatedDisk


def _replace(owner: type, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


def _tell_too_early() -> None:
    """Say that a commit is done when it is only about to be."""
    commit = SimulatedDisk.commit
    late: dict[SimulatedDisk, list[Any]] = {}

    def commit_the_one_before(disk: SimulatedDisk, changes: Iterable[Any], clock_s: int) -> None:
        copies = [
            (table, key, None if value is None else bytes(value)) for table, key, value in changes
        ]
        commit(disk, late.get(disk, []), clock_s)
        late[disk] = copies

    _replace(SimulatedDisk, "commit", commit_the_one_before)


def _bring_back(change: Callable[[Any], Any]) -> None:
    """Bring streams back from disk otherwise than they went there."""
    look_up = RecordLookup.look_up

    def look_up_changed(lookup: RecordLookup, stream: bytes) -> tuple[int, int, bytes, str | None]:
        code, model, data, owner = look_up(lookup, stream)
        if code == 0:
            data = encode_record(change(decode_record(data)))
        return code, model, data, owner

    _replace(RecordLookup, "look_up", look_up_changed)


def _forget_a_step(record: Any) -> Any:
    """Forget that the last step was applied: it is applied once more."""
    if record.numbering != NUMBERED:
        return record
    kept = min(len(record.digests), record.last_seq - 1)
    return dataclasses.replace(
        record,
        last_seq=record.last_seq - 1,
        numbering=NUMBERED if record.last_seq > 1 else 0,
        digests=record.digests[:-1][:kept],
        outputs=record.outputs[:-1][:kept],
    )


def _flip_a_bit(record: Any) -> Any:
    return dataclasses.replace(record, row=bytes([record.row[0] ^ 1]) + record.row[1:])


def _replay_other_inputs() -> None:
    append = ReplayLog.append

    def append_changed(kept: Any, first_seq: int, num_steps: int, x: Any, applied: int) -> None:
        append(kept, first_seq, num_steps, None if x is None else x + 1, applied)

    _replace(ReplayLog, "append", append_changed)


def _forget_too_early() -> None:
    drop_durable = ReplayLog.drop_durable
    _replace(ReplayLog, "drop_durable", lambda kept, seq: drop_durable(kept, seq + 1))


def _drop_a_segment_too_early() -> None:
    """Delete the newest segment after a checkpoint, whatever is in it."""
    drop = JournalWriter._drop
    _replace(JournalWriter, "_drop", lambda journal, covered: drop(journal, 2**62))


def _tell_of_a_group_too_early() -> None:
    """Acknowledge a group, and write it when the next one comes."""
    append = SegmentWriter.append
    late: dict[int, tuple[int, int, bytes]] = {}

    def append_the_one_before(
        segment: SegmentWriter, sequence: int, num_entries: int, entries: Any
    ) -> None:
        before = late.get(id(segment))
        late[id(segment)] = sequence, num_entries, bytes(entries)
        if before is not None:
            append(segment, *before)

    _replace(SegmentWriter, "append", append_the_one_before)


def _ignore_the_incarnation() -> None:
    """Look at the number of a change alone to say whether a record has it."""
    find = find_lacking

    def find_by_number(places: int, num: int, incarnation: int, num_changes: int) -> Any:
        entries = (ctypes.c_int64 * num).from_address(places)
        above = [each for each in entries if entry_at(each).num_changes > num_changes]
        for k, each in enumerate(above):
            entries[k] = each
        if above and incarnation >= 0:
            incarnation = entry_at(above[0]).incarnation
        return find(places, len(above), incarnation, num_changes)

    vars(replay)["find_lacking"] = find_by_number


SABOTAGES: dict[str, Callable[[], None]] = {
    "disk-told-too-early": _tell_too_early,
    "disk-forgets-a-step": lambda: _bring_back(_forget_a_step),
    "disk-flips-a-bit": lambda: _bring_back(_flip_a_bit),
    "client-replays-other-inputs": _replay_other_inputs,
    "client-forgets-too-early": _forget_too_early,
    "journal-dropped-too-early": _drop_a_segment_too_early,
    "journal-told-too-early": _tell_of_a_group_too_early,
    "journal-without-incarnations": _ignore_the_incarnation,
}
