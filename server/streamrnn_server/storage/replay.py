"""Replay: at a start, bring what the journal has into the records, and empty it.

A segment at a time, and of it some streams at a time: so memory is bounded, and a start that ends
in the midst leaves records that tell how far they have come. Steps are computed by the kernels that
serve; the bits of an output depend on the stream's own inputs alone, so they are what was answered.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamrnn.errors import RecordError, StoreError
from streamrnn.kernels.cpu.program import Program
from streamrnn.state.journal import (
    ChangeKind,
    Segment,
    delete_segment,
    leave_in_segment,
    read_journal,
    remove_unfinished,
    segment_paths,
)
from streamrnn.state.journal_table import EntryTable, entry_at, find_lacking, table_of
from streamrnn.state.record import StreamRecord, decode_record, encode_record
from streamrnn.state.store import STREAMS, Change, StateStore
from streamrnn.state.verify import id_text
from streamrnn_client.protocol import ErrorCode, ProtocolError
from streamrnn_server.event_log import EventLog
from streamrnn_server.storage.departures import departure_of
from streamrnn_server.storage.disk_reserve import DiskReserve
from streamrnn_server.storage.record_lookup import ServedModel
from streamrnn_server.storage.replayed import Replayed, ReplayedStream

__all__ = ["SET_ASIDE", "UNDER_WAY", "Replay", "all_arithmetics"]

_MAX_STREAMS, _MAX_BYTES = 4096, 64 * 2**20  # replayed at once
UNDER_WAY, SET_ASIDE = "replaying.json", "set-aside.json"
_MAX_ATTEMPTS = 2
_MAX_NAMED = 10


_AND = ";"


def all_arithmetics(arithmetics: Iterable[str]) -> str:
    """Name what computes several models, as the head of a segment does."""
    return _AND.join(sorted(set(arithmetics)))


class Replay:
    """Replays a journal.

    Parameters
    ----------
    store : StateStore
    directory : Path
        The journal's; it need not be there.
    served : sequence of ServedModel
    programs : mapping of str to Program
        What computes them, in the same order.
    arithmetic : str
    log : EventLog
    """

    def __init__(
        self,
        store: StateStore,
        directory: Path,
        served: Sequence[ServedModel],
        programs: Mapping[str, Program],
        log: EventLog,
    ) -> None:
        self._store, self._directory, self._log = store, directory, log
        self._served = list(served)
        self._replayed = [
            Replayed(programs[model.name].for_shard(), model.max_kept) for model in self._served
        ]
        self._held: dict[bytes, ProtocolError] = {}
        self._made: set[bytes] = set()  # streams that begin in the journal
        self._lacking: set[bytes] = set()  # those held back that records lack something of
        self._closed: dict[bytes, int] | None = None  # by stream, its last incarnation that was
        self._num_changes = 0

    def run(self) -> dict[bytes, ProtocolError]:
        """Replay what can be, delete what is done with.

        Returns
        -------
        dict of bytes to ProtocolError
            Streams of which some was not applied, and why: they must not be served.

        Raises
        ------
        StoreError
            If the journal is damaged, or a record cannot be written. Nothing is dropped then.
        """
        suspects, num_attempts = self._read_under_way()
        set_aside = self._read_set_aside()
        if len(suspects) == 1 and num_attempts >= _MAX_ATTEMPTS:
            set_aside = list(dict.fromkeys([*suspects, *set_aside]))
            self._write_set_aside(set_aside)
            suspects = []
        for stream in set_aside:
            self._set_aside(stream)
        remove_unfinished(self._directory)
        paths = segment_paths(self._directory)
        num_done, kept = 0, []
        kept_places = set()
        for segment in read_journal(self._directory):
            if segment.num_torn:
                self._log.write(
                    "warning",
                    "a segment of the journal ends in what was not answered; it is left out",
                    path=segment.path,
                    num_bytes=segment.num_torn,
                )
            place = segment.head.epoch, segment.head.shard
            table = table_of(segment)
            held = self._replay_segment(table, suspects, num_attempts)
            if not held and place not in kept_places:
                num_done += 1
                continue
            kept_places.add(place)
            kept.append(segment.path)  # and those behind it, so that none is missing between them
            if len(held) < len(table.streams):
                # The others go on from their records now; if one is closed, it must not come back.
                self._leave_in(segment, held)
        dropped = [path for path in paths if path not in kept]  # also those without a whole head
        for path in dropped:
            delete_segment(path)
        self._forget_under_way()
        if not self._lacking.intersection(set_aside):
            (self._directory / SET_ASIDE).unlink(missing_ok=True)
        if num_done:
            self._log.write("info", "the journal was replayed", num_changes=self._num_changes)
        refused = {stream: why for stream, why in self._held.items() if stream in self._lacking}
        if kept:
            self._tell_held(refused, kept)
        return refused

    def _replay_segment(
        self, table: EntryTable, suspects: list[bytes], num_attempts: int
    ) -> set[bytes]:
        """Replay a segment; return the streams that are held back."""
        segment = table.segment
        indices = [self._index_of(segment, k) for k in range(len(segment.head.models))]
        held: set[bytes] = set()
        closed: list[Change] = []
        waiting: list[list[ReplayedStream]] = [[] for _ in self._replayed]
        for k in range(len(table.streams)):
            left = self._prepare(table, k, indices, closed)
            if left is None:
                held.add(table.streams[k])
            elif left.num_entries > 0:
                waiting[left.model].append(left)
        if closed:
            self._store_changes(closed)
        for model, streams in enumerate(waiting):
            for part in self._parts(model, streams, suspects):
                self._write_under_way(part, suspects, num_attempts)
                self._commit(model, part)
        self._lacking |= held
        return held

    def _leave_in(self, segment: Segment, streams: set[bytes]) -> None:
        try:
            leave_in_segment(segment, streams)
        except OSError:
            if not DiskReserve(self._directory).release():
                raise
            leave_in_segment(segment, streams)

    def _index_of(self, segment: Segment, k: int) -> int | ProtocolError:
        """Return which served model is a segment's, or why none is."""
        name, fingerprint = segment.head.models[k]
        fitting = [k for k, each in enumerate(self._served) if each.fingerprint == fingerprint]
        if not fitting:
            served = [f"{each.name} {each.fingerprint}" for each in self._served]
            detail: dict[str, Any] = {"stored_model": name, "stored": fingerprint, "served": served}
            return ProtocolError(ErrorCode.MISMATCH, **detail)
        found = next((k for k in fitting if self._served[k].name == name), fitting[0])
        # Which model had which is not told: none ever changes from one to another (`Program`).
        arithmetic = self._served[found].arithmetic
        if arithmetic not in segment.head.arithmetic.split(_AND):
            return ProtocolError(
                ErrorCode.MISMATCH,
                stored_arithmetic=segment.head.arithmetic,
                arithmetic=arithmetic,
            )
        return found

    def _prepare(
        self,
        table: EntryTable,
        k: int,
        indices: list[int | ProtocolError],
        closed: list[Change],
    ) -> ReplayedStream | None:
        """Find what of a stream's entries is above its record; None if it is held back.

        Of one that was closed nothing is left to do but what is added to ``closed``.
        """
        stream = table.streams[k]
        data = self._store.get(STREAMS, stream)
        try:
            record = None if data is None else decode_record(data)
            if record is not None and record.stream != stream:
                raise RecordError(f"it is of stream {record.stream!r}")
            reached = self._reached(stream, record)
        except RecordError as error:
            self._hold(stream, ProtocolError(ErrorCode.DAMAGED, reason=str(error)))
            return None
        left = ReplayedStream(table, k, record)
        num_entries = table.bounds[k + 1] - table.bounds[k]
        num_lacking, is_opened, is_whole = find_lacking(left.address, num_entries, *reached)
        if num_lacking == 0:
            return left
        if stream in self._held:
            return None
        last = left.entry(num_lacking - 1)
        if is_opened:
            left.record = None
            self._made.add(stream)
        if last.kind == ChangeKind.CLOSE:  # whatever model it was of
            closed.append((STREAMS, stream, None))
            return left
        index = indices[last.model]
        if isinstance(index, ProtocolError):
            if last.incarnation <= self._last_closed(stream):  # in a segment behind this one
                closed.append((STREAMS, stream, None))
                return left
            self._hold(stream, index)
            return None
        if is_whole:
            if left.record is not None and not self._fits(index, left.record):
                reason = "it is of another model"
                self._hold(stream, ProtocolError(ErrorCode.DAMAGED, reason=reason))
                return None
            left.num_entries, left.incarnation, left.model = num_lacking, last.incarnation, index
            left.window = left.find_window()
            return left
        if left.record is None or stream in self._made:
            # Its record was deleted, and the server ended before the journal said so. What a
            # segment before this one has of it is not all of it.
            self._log.write("info", "a stream was being closed", stream=id_text(stream))
            closed.append((STREAMS, stream, None))
            return left
        raise left.damage(
            f"change {left.entry(0).num_changes} follows on {reached[1]}, or some between them "
            "are missing"
        )

    def _last_closed(self, stream: bytes) -> int:
        """Return the last incarnation of a stream whose close the journal has; -1 without one."""
        if self._closed is None:  # it is asked where models have gone, at few starts
            self._closed = {}
            for segment in read_journal(self._directory):
                table = table_of(segment)
                for k, each in enumerate(table.streams):
                    for place in table.places[table.bounds[k] : table.bounds[k + 1]]:
                        entry = entry_at(place)
                        if entry.kind == ChangeKind.CLOSE:
                            before = self._closed.get(each, -1)
                            self._closed[each] = max(before, entry.incarnation)
        return self._closed.get(stream, -1)

    def _reached(self, stream: bytes, record: StreamRecord | None) -> tuple[int, int]:
        """Return up to where a stream's changes are in its record, or in what has moved away."""
        if record is not None:
            return record.incarnation, record.num_changes
        departure = departure_of(self._store, stream)
        return (-1, 0) if departure is None else (departure.incarnation, departure.num_changes)

    def _fits(self, index: int, record: StreamRecord) -> bool:
        model = self._served[index]
        of_record, of_model = ((each.fingerprint, each.arithmetic) for each in (record, model))
        return of_record == of_model and model.fault_of(record) is None

    def _parts(
        self, model: int, streams: list[ReplayedStream], suspects: list[bytes]
    ) -> Iterator[list[ReplayedStream]]:
        """Yield streams to be replayed together: those who may have killed a start, alone."""
        part: list[ReplayedStream] = []
        num_bytes = 0
        for stream in streams:
            if stream.stream in suspects:
                yield [stream]
                continue
            size = self._replayed[model].bytes_of(stream)
            if part and (len(part) == _MAX_STREAMS or num_bytes + size > _MAX_BYTES):
                yield part
                part, num_bytes = [], 0
            part.append(stream)
            num_bytes += size
        if part:
            yield part

    def _commit(self, model: int, part: list[ReplayedStream]) -> None:
        served = self._served[model]
        changes: list[Change] = []
        for stream, record in self._replayed[model].replay(
            part, served.name, served.fingerprint, served.arithmetic, self._store.clock_s
        ):
            changes.append((STREAMS, stream, encode_record(record)))
        self._num_changes += sum(stream.num_entries for stream in part)
        self._store_changes(changes)

    def _store_changes(self, changes: list[Change]) -> None:
        try:
            self._store.commit(changes, self._store.clock_s)
            return
        except StoreError:
            if not DiskReserve(self._directory).release():
                self._forget_under_way()
                raise
        try:
            self._store.commit(changes, self._store.clock_s)
        except StoreError:
            self._forget_under_way()
            raise

    def _forget_under_way(self) -> None:
        """Let the next start suspect nobody: this one ends well, or by the disk's fault."""
        (self._directory / UNDER_WAY).unlink(missing_ok=True)

    # ---- streams that are held back -------------------------------------------------------------

    def _hold(self, stream: bytes, why: ProtocolError) -> None:
        self._held.setdefault(stream, why)

    def _set_aside(self, stream: bytes) -> None:
        reason = (
            "its replay from the journal has ended the server's start twice; it is set aside, and "
            "nothing of it was deleted"
        )
        self._hold(stream, ProtocolError(ErrorCode.DAMAGED, reason=reason))

    def _tell_held(self, held: dict[bytes, ProtocolError], kept: list[Path]) -> None:
        reasons = sorted({str(dict(error.detail)) for error in held.values()})
        self._log.write(
            "warning",
            "streams have steps in the journal that cannot be replayed here: they are refused, and "
            "the journal is kept; to drain it, start and stop a server with their models and "
            "their arithmetic",
            num_streams=len(held),
            streams=", ".join(sorted(map(id_text, held))[:_MAX_NAMED]),
            segments=", ".join(path.name for path in kept[:_MAX_NAMED]),
            reason="; ".join(reasons[:_MAX_NAMED]),
        )

    # ---- starts that were ended by a replay -----------------------------------------------------

    def _write_under_way(
        self, part: list[ReplayedStream], suspects: list[bytes], num_attempts: int
    ) -> None:
        """Say whose replay is under way, for the start after one that it ends."""
        is_again = len(part) == 1 and part[0].stream in suspects
        content = {
            "streams": [each.stream.hex() for each in part],
            "attempts": num_attempts + 1 if is_again else 1,
        }
        with contextlib.suppress(OSError):  # a full disk is no reason not to start
            (self._directory / UNDER_WAY).write_text(json.dumps(content))

    def _read_under_way(self) -> tuple[list[bytes], int]:
        content = self._read(UNDER_WAY)
        try:
            return [bytes.fromhex(each) for each in content["streams"]], int(content["attempts"])
        except (KeyError, TypeError, ValueError):
            return [], 0

    def _read_set_aside(self) -> list[bytes]:
        content = self._read(SET_ASIDE)
        try:
            return [bytes.fromhex(each) for each in content["streams"]]
        except (KeyError, TypeError, ValueError):
            return []

    def _write_set_aside(self, streams: list[bytes]) -> None:
        content = {"streams": [each.hex() for each in streams]}
        (self._directory / SET_ASIDE).write_text(json.dumps(content))

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self._directory / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
