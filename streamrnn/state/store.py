"""Streams on disk: one LMDB environment in a state directory, written by one process at a time.

Keys are canonical ids, so neither shards nor their number matter here. What is committed is synced
before `commit` returns. A record is judged by whoever reads it (`streamrnn.state.record`); LMDB
itself has no checksums, but a torn commit is never seen: the one before it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import lmdb

from streamrnn.errors import StoreError
from streamrnn.state.catalogue import CATALOGUE_FILE, MODELS_DIRECTORY
from streamrnn.state.journal import JOURNAL_DIRECTORY, sync_directory

__all__ = [
    "ARRIVALS",
    "DATA_FILE",
    "MAX_EPOCH",
    "MOVED",
    "SNAPSHOTS",
    "STREAMS",
    "TOMBSTONES",
    "StateStore",
    "snapshot_key",
]

# What a change is made in.
STREAMS, SNAPSHOTS, TOMBSTONES, MOVED, ARRIVALS = range(5)
DATA_FILE = "data.mdb"
_NAMES = (b"streams", b"snapshots", b"tombstones", b"moved", b"arrivals")
_LATER = (b"moved", b"arrivals")  # directories of releases before have none
# Directories of format 1 hold no record of version 2; the first commit makes them of format 2, and
# of format 3 where streams have moved to another server, or come from one: who does not know of
# that must not serve them.
_FORMATS = (b"streamrnn state 1", b"streamrnn state 2", b"streamrnn state 3")
# Of what a stream that is stored is no longer.
_ENDED_BY_STREAM = (TOMBSTONES, MOVED, ARRIVALS)
_FORMAT_KEY, _CLOCK_KEY, _EPOCH_KEY = b"format", b"clock_s", b"epoch"
_DEFAULT_MAX_BYTES = 2**40  # of address space; the file grows as it is needed
_MAX_CLOCK_S = 2**53  # a float64 still tells its seconds
MAX_EPOCH = 2**31
_LOCK_FILE = "owner.lock"
_FILES = (DATA_FILE, "lock.mdb", _LOCK_FILE)
_NEW = ".new"  # where the file is made that is not whole yet
_OURS = {*_FILES, _NEW, JOURNAL_DIRECTORY, CATALOGUE_FILE, MODELS_DIRECTORY}
_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700  # what is in there is its owner's alone

Change = tuple[int, bytes, bytes | memoryview | None]


def snapshot_key(stream: bytes, name: bytes) -> bytes:
    """Return the key of a stream's snapshot.

    Returns
    -------
    bytes
        All snapshots of a stream lie side by side.
    """
    return bytes([len(stream)]) + stream + name


class StateStore:
    """A state directory.

    Reading is safe from any thread; writing is one thread's at a time.

    Attributes
    ----------
    directory : Path
    clock_s : int
        Seconds that servers had run on the directory at the last commit.
    epoch : int
        Above that of whoever has committed anything before; it is on disk with the first commit.

    Raises
    ------
    StoreError
        If somebody else is using the directory, it is none, or it is damaged.
    """

    def __init__(
        self, directory: Path, max_bytes: int = _DEFAULT_MAX_BYTES, read_only: bool = False
    ) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._read_only = read_only
        self.epoch = 0
        self._is_doubtful = False  # whether a commit has failed and what is on disk is not known
        self._mutex = threading.Lock()  # held while the environment is opened anew
        if read_only and not (directory / DATA_FILE).is_file():
            raise StoreError(f"{directory} is no state directory: it holds no {DATA_FILE}")
        try:
            directory.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock = self._open_lock()  # held until close
        except OSError as error:
            raise StoreError(f"cannot use {directory} for state: {error.strerror}") from error
        try:
            self._take_lock()
            if not read_only:
                self._prepare()
            self._open()
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def _open_lock(self) -> BinaryIO | None:
        """Open the file whose lock says who uses the directory; None where there can be none."""
        path = self.directory / _LOCK_FILE
        try:
            flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY
            return os.fdopen(os.open(path, flags, _FILE_MODE), "ab")
        except OSError as error:
            if not self._read_only or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
        try:  # a lock can be taken by who reads, too
            return path.open("rb")
        except FileNotFoundError:  # on read-only media, or a copy: no server has ever used it
            return None

    def _take_lock(self) -> None:
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"another process is using {self.directory}: stop it, or name another directory"
            ) from error

    def _prepare(self) -> None:
        """Take from others what they could do in the directory; make the file if there is none."""
        try:
            for path in (self.directory / name for name in _FILES):
                if path.exists():
                    _tighten(path, _FILE_MODE)
            # One that holds nothing else: nobody misses what others may do in there.
            if set(os.listdir(self.directory)) <= _OURS:
                _tighten(self.directory, _DIRECTORY_MODE)
            if not (self.directory / DATA_FILE).exists():
                self._make_file()
            shutil.rmtree(self.directory / _NEW, ignore_errors=True)  # a crash may have left it
        except OSError as error:
            raise StoreError(f"cannot use {self.directory} for state: {error.strerror}") from error

    def _make_file(self) -> None:
        """Make an empty environment aside: a crash meanwhile must not leave half a file."""
        aside = self.directory / _NEW
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(_DIRECTORY_MODE)
        lmdb.open(str(aside), map_size=self._max_bytes, mode=_FILE_MODE).close()
        with open(aside / DATA_FILE, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside / DATA_FILE, self.directory / DATA_FILE)
        sync_directory(self.directory)

    def _open(self) -> None:
        try:
            if (self.directory / DATA_FILE).stat().st_size == 0:
                raise StoreError(
                    f"{self.directory / DATA_FILE} has 0 bytes: it was truncated; restore it from "
                    "a copy, or delete it to begin with no streams"
                )
            self._env = lmdb.open(
                str(self.directory),
                map_size=self._max_bytes,
                max_dbs=len(_NAMES) + 1,
                readonly=self._read_only,
                lock=not self._read_only,
                max_readers=16,
                mode=_FILE_MODE,
                readahead=False,
            )
            self._check_size()
            create = not self._read_only
            self._meta = self._env.open_db(b"meta", create=create)
            self._tables = [self._open_table(name, create) for name in _NAMES]
            with self._env.begin(write=create) as transaction:
                form = transaction.get(_FORMAT_KEY, db=self._meta)
                if form is None and create:
                    transaction.put(_FORMAT_KEY, _FORMATS[1], db=self._meta)
                elif form not in _FORMATS:
                    raise StoreError(
                        f"{self.directory} says that it holds {bytes(form or b'')!r}; known are "
                        f"{' and '.join(map(repr, _FORMATS))}"
                    )
                self.clock_s = int(transaction.get(_CLOCK_KEY, b"0", db=self._meta))
                if not 0 <= self.clock_s < _MAX_CLOCK_S:
                    raise StoreError(f"{self.directory} says that servers ran {self.clock_s} s")
                epoch = int(transaction.get(_EPOCH_KEY, b"0", db=self._meta)) + 1
                if not 0 < epoch < MAX_EPOCH:
                    raise StoreError(f"{self.directory} says that it is in epoch {epoch - 1}")
                self.epoch = max(self.epoch, epoch)
        except (lmdb.Error, OSError, ValueError) as error:
            raise StoreError(f"cannot open the state in {self.directory}: {error}") from error

    def _open_table(self, name: bytes, create: bool) -> Any:
        try:
            return self._env.open_db(name, create=create)
        except lmdb.NotFoundError:
            if name not in _LATER:
                raise
            return None

    def _check_size(self) -> None:
        """Refuse a file that ends too early: to read beyond its end would kill the process."""
        needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        found = (self.directory / DATA_FILE).stat().st_size
        if found < needed:
            raise StoreError(
                f"{self.directory / DATA_FILE} has {found} bytes, and what was committed needs "
                f"{needed}: it was truncated; restore it from a copy"
            )

    def close(self) -> None:
        """Let go of the directory. Safe to call twice."""
        with self._mutex:
            self._env.close()
            if self._lock is not None:
                self._lock.close()

    def commit(
        self,
        changes: Iterable[Change],
        clock_s: int,
        on_change: Callable[[bytes | None, bytes | memoryview | None], None] | None = None,
    ) -> None:
        """Make changes durable, all of them or none.

        ``on_change`` is told of each of a stream or snapshot the value before and the new one, when
        it is made and may still fail. A stream that is put there is neither expired nor moved, and
        is no arrival any more.

        Raises
        ------
        StoreError
            If they could not be written; nothing is changed, and the next commit may succeed.
        """
        try:
            if self._is_doubtful:
                self._recover()
            with self._env.begin(write=True) as transaction:
                cursors = [transaction.cursor(db=table) for table in self._tables]
                ended = [
                    table
                    for table in _ENDED_BY_STREAM
                    if transaction.stat(self._tables[table])["entries"]
                ]
                for table, key, value in changes:
                    if on_change is not None and table in (STREAMS, SNAPSHOTS):
                        on_change(cursors[table].get(key), value)
                    if value is not None:
                        cursors[table].put(key, value)
                        if table in _ENDED_BY_STREAM and table not in ended:
                            ended.append(table)
                        for other in ended if table == STREAMS else ():
                            if cursors[other].set_key(key):
                                cursors[other].delete()
                    elif cursors[table].set_key(key):
                        cursors[table].delete()
                    if table == STREAMS and value is None:
                        self._delete_snapshots(cursors[SNAPSHOTS], key, on_change)
                for key, text in ((_CLOCK_KEY, str(clock_s)), (_EPOCH_KEY, str(self.epoch))):
                    transaction.put(key, text.encode(), db=self._meta)
                is_later = any(
                    transaction.stat(self._tables[table])["entries"] for table in (MOVED, ARRIVALS)
                )
                transaction.put(_FORMAT_KEY, _FORMATS[2 if is_later else 1], db=self._meta)
        except lmdb.Error as error:
            self._is_doubtful = True
            with contextlib.suppress(StoreError, lmdb.Error):
                self._recover()
            raise StoreError(_reason(error)) from error
        self.clock_s = clock_s

    @staticmethod
    def _delete_snapshots(
        cursor: lmdb.Cursor,
        stream: bytes,
        on_change: Callable[[bytes | None, None], None] | None,
    ) -> None:
        prefix = snapshot_key(stream, b"")
        while cursor.set_range(prefix) and bytes(cursor.key()).startswith(prefix):
            if on_change is not None:
                on_change(bytes(cursor.value()), None)
            cursor.delete()

    def _recover(self) -> None:
        """Go on after a commit that failed; if that fails too, before the next one.

        Nobody knows which of its pages are on disk: after an error of fsync, a later one that
        succeeds says nothing of them. No page of it is used, and all that the next commit refers
        to is written anew. But its meta page, by which it would count, may be on disk although the
        write failed; LMDB has put the old one back into the cache only. So that must be on disk
        before pages are written that the new one would point to.
        """
        with self._mutex:
            try:
                self._env.begin().abort()
            except lmdb.Error:  # what LMDB calls fatal: the environment must be opened anew
                self._env.close()
                self._open()
            self._env.sync(True)
            self._is_doubtful = False

    def forget_dead_readers(self) -> None:
        """Let pages be used again that a process was reading which has ended."""
        with contextlib.suppress(lmdb.Error), self._mutex:
            self._env.reader_check()

    def get(self, table: int, key: bytes) -> bytes | None:
        """Read one value as it was last committed.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        if self._tables[table] is None:
            return None
        try:
            with self._mutex, self._env.begin() as transaction:
                value: bytes | None = transaction.get(key, db=self._tables[table])
                return value
        except lmdb.Error as error:
            raise StoreError(f"cannot read {self.directory}: {error}") from error

    def items(self, table: int, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values in the keys' order, as of one commit.

        Raises
        ------
        StoreError
            If they cannot be read.
        """
        if self._tables[table] is None:
            return
        try:
            with self._env.begin() as transaction:
                cursor = transaction.cursor(db=self._tables[table])
                if cursor.set_range(start):
                    yield from cursor
        except lmdb.Error as error:
            raise StoreError(f"cannot read {self.directory}: {error}") from error

    def num_items(self, table: int) -> int:
        """Return the number of keys in a table.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        if self._tables[table] is None:
            return 0
        try:
            with self._mutex, self._env.begin() as transaction:
                return int(transaction.stat(self._tables[table])["entries"])
        except lmdb.Error as error:
            raise StoreError(f"cannot read {self.directory}: {error}") from error


def _tighten(path: Path, mode: int) -> None:
    """Take from group and others what they may do, if it is ours; a shared place stays shared."""
    found = path.stat()
    is_shared = found.st_mode & stat.S_ISVTX
    if found.st_uid == os.geteuid() and found.st_mode & 0o077 and not is_shared:
        path.chmod(mode)


def _reason(error: lmdb.Error) -> str:
    """Say in few words why a commit failed."""
    if isinstance(error, lmdb.MapFullError):
        return "the state has reached its largest size"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return str(error)
