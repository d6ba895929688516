"""The state directory of a running server: the store, its clock, and the thread that writes."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from streamrnn.errors import StartError, StoreError
from streamrnn.kernels.cpu.program import Program
from streamrnn.state.journal import JOURNAL_DIRECTORY, SegmentHead, segment_paths, sync_directory
from streamrnn.state.store import DATA_FILE, MAX_EPOCH, STREAMS, StateStore
from streamrnn_server.config import ServerConfig
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.checkpoint.packing import Templates
from streamrnn_server.storage.backup import Backups
from streamrnn_server.storage.disk_reserve import DiskReserve
from streamrnn_server.storage.expiry import Expiry
from streamrnn_server.storage.journal_writer import JournalWriter
from streamrnn_server.storage.record_lookup import ServedModel
from streamrnn_server.storage.replay import Replay, all_arithmetics
from streamrnn_server.storage.usage import DiskUsage
from streamrnn_server.storage.writer import CheckpointWriter

__all__ = ["StateDir", "begin_journal", "named_models"]

_EPOCH_SHIFT = 32


def named_models(served: Sequence[ServedModel]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return what a segment's head says of models: what computes them, and which they are."""
    return all_arithmetics(model.arithmetic for model in served), tuple(
        (model.name, model.fingerprint) for model in served
    )


def begin_journal(store: StateStore, directory: Path) -> None:
    """Make the directory that segments are made in, and an epoch above that of any in there."""
    directory.mkdir(0o700, exist_ok=True)
    sync_directory(directory.parent)
    for path in segment_paths(directory):
        store.epoch = max(store.epoch, int(path.name.split("-")[0]) + 1)
    if store.epoch >= MAX_EPOCH:
        raise StoreError(f"a segment is of epoch {store.epoch - 1}, which no server has reached")
    try:  # a release before this one must not begin without the journal
        store.commit([], store.clock_s)
    except StoreError:
        if not DiskReserve(directory).release():
            raise
        store.commit([], store.clock_s)


class StateDir:
    """A state directory in use.

    Attributes
    ----------
    store : StateStore
    expiry : Expiry
    saver : CheckpointWriter
    usage : DiskUsage or None
        Where there are users.
    journals : list of JournalWriter
        One for each shard; none without a journal.
    backups : Backups
    held : dict of bytes to ProtocolError
        Streams of which the journal has more than could be brought into their records, and why.

    Raises
    ------
    StartError
        If the directory cannot be used.
    """

    def __init__(
        self,
        config: ServerConfig,
        served: Sequence[ServedModel],
        programs: Mapping[str, Program],
        templates: Templates,
        sockets: Sequence[zmq.Socket[bytes]],
        log: EventLog,
        journal_sockets: Sequence[zmq.Socket[bytes]] = (),
    ) -> None:
        assert config.state_dir is not None
        try:
            self.store = StateStore(config.state_dir, config.max_state_bytes)
        except StoreError as error:
            raise StartError(str(error)) from error
        self._directory = config.state_dir
        directory = config.state_dir / JOURNAL_DIRECTORY
        try:
            self.held = Replay(self.store, directory, served, programs, log).run()
            if journal_sockets:
                begin_journal(self.store, directory)
            else:  # a server that kept one may have crashed
                DiskReserve(directory).release()
        except BaseException as error:
            self.store.close()
            if not isinstance(error, StoreError | OSError):
                raise
            raise StartError(f"cannot use the journal in {directory}: {error}") from error
        self.backups = Backups(config.backup_dir, self.store, log)
        self.usage: DiskUsage | None = None
        if config.has_users:
            disk_bytes = shutil.disk_usage(config.state_dir).total
            max_bytes = config.user_disk_bytes or disk_bytes * config.user_share // 100
            self.usage = DiskUsage(self.store, max_bytes)
        self.expiry = Expiry(self.store.clock_s, config.time_to_live_s)
        self._reserve = DiskReserve(directory) if journal_sockets else None
        args = (self.store, templates, sockets, self.expiry, log, self.usage, self._reserve)
        self.saver = CheckpointWriter(*args)
        arithmetic, named = named_models(served)
        self.journals = [
            JournalWriter(
                directory,
                SegmentHead(self.store.epoch, k, 0, arithmetic, named),
                socket,
                log,
                config.checkpoint_interval_s,
            )
            for k, socket in enumerate(journal_sockets)
        ]

    def start(self, on_failure: Callable[[str, BaseException], None]) -> None:
        """Begin to write; ``on_failure`` is called if a thread ends by an exception."""
        self.saver.start(on_failure)
        for journal in self.journals:
            journal.start(on_failure)

    def note_models(self, served: Sequence[ServedModel]) -> None:
        """Say which models the journal's next entries may be of, before there are any."""
        for journal in self.journals:
            journal.models = named_models(served)

    @property
    def has_journal(self) -> bool:
        """Whether inputs are written before they are answered."""
        return bool(self.journals)

    @property
    def read_only(self) -> str | None:
        """Why the directory cannot be written just now."""
        reasons = [self.saver.read_only, *(journal.read_only for journal in self.journals)]
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def first_incarnation(self) -> int:
        """What the shards count incarnations from, above all that were before."""
        return self.store.epoch << _EPOCH_SHIFT

    def state(self) -> dict[str, Any]:
        """Return how the disk is now, without asking it."""
        began_s = self.saver.began_at_s
        return {
            "read_only": self.read_only,
            "commit_under_way_s": None if began_s is None else time.monotonic() - began_s,
        }

    def stats(self) -> dict[str, Any]:
        """Return what there is to say.

        Returns
        -------
        dict
            Plain types.
        """
        try:
            num_streams: int | None = self.store.num_items(STREAMS)
        except StoreError:  # the disk has failed just now; `read_only` says how
            num_streams = None
        return {
            **self.state(),
            "num_streams_on_disk": num_streams,
            "num_commits": self.saver.num_commits,
            "num_bytes_written": self.saver.num_bytes,
            "num_groups": sum(each.num_groups for each in self.journals),
            "num_journal_bytes_written": sum(each.num_bytes for each in self.journals),
            "last_commit_us": round(self.saver.last_commit_s * 1e6),
            "since_last_commit_s": time.monotonic() - self.saver.committed_at_s,
            "num_expired": self.expiry.num_expired,
        }

    def sizes(self) -> dict[str, int]:
        """Return how many bytes of disk records and journal take, and how many are free.

        It may wait for the disk. What cannot be told is left out.
        """
        sizes = {}
        with contextlib.suppress(OSError):
            sizes["free_bytes"] = shutil.disk_usage(self._directory).free
            sizes["records_bytes"] = _disk_bytes([self._directory / DATA_FILE])
            segments = segment_paths(self._directory / JOURNAL_DIRECTORY) if self.journals else []
            sizes["journal_bytes"] = _disk_bytes(segments)
        return sizes

    def close(self) -> None:
        """End the threads and let go of the directory, after the shards have ended."""
        self.backups.close()
        self.saver.stop()
        for journal in self.journals:
            journal.stop()
        if self._reserve is not None:
            self._reserve.release()
        self.store.close()


def _disk_bytes(paths: Iterable[Path]) -> int:
    """Return what files take; one that is deleted meanwhile takes nothing."""
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += 512 * path.stat().st_blocks
    return total
