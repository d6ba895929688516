"""CURVE key files: the server's own, and those of its clients, which may change while it serves.

They are the files of `zmq.auth`: NAME.key holds a public key, NAME.key_secret both. The name of a
client's public key file is the name of its user.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from zmq.auth import load_certificate
from zmq.utils import z85

from streamrnn.errors import StartError
from streamrnn_server.config import MAX_USER_NAME_BYTES
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.streams.owners import MAX_KEYS, encode_key_number

__all__ = ["ClientKeys", "load_secret_key"]

_SUFFIX = ".key"
_KEY_CHARS = 40  # of Z85
_MAX_FILE_BYTES = 64 * 1024
# A file that was read so soon after it was changed may be changed again within one tick of the
# file system's clock: its time would not tell.
_TICK_NS = 2_000_000_000


class _Unusable(Exception):
    """Why a key file cannot be used."""


def load_secret_key(path: Path) -> tuple[bytes, bytes]:
    """Read a server's key file.

    Returns
    -------
    public, secret : bytes
        Z85, 40 characters each.

    Raises
    ------
    StartError
        If there is no secret key in it, or others can read it.
    """
    try:
        public, secret = _load(path)
    except _Unusable as error:
        raise StartError(f"{path} is no key file ({error}); 'streamrnn keys' makes them") from error
    if secret is None:
        raise StartError(
            f"{path} holds no secret key; name the .key_secret file that 'streamrnn keys' wrote"
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 and not _is_credential(path):
        raise StartError(
            f"{path} is secret, and others than its owner can use it (mode {mode:04o}): "
            f"'chmod 600 {path}'; if they have read it, make a new one"
        )
    return public, secret


def _is_credential(path: Path) -> bool:
    """Tell whether systemd has put a file where this service alone reaches it.

    It may grant that by an access list, which shows as a right of the group.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory or path.resolve().parent != Path(directory).resolve():
        return False
    return not path.stat().st_mode & 0o027 and not os.stat(directory).st_mode & 0o027


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_FILE_BYTES:
            raise _Unusable("it is no small file")
        public, secret = load_certificate(path)
        for key in (public, secret):
            if key is not None and (len(key) != _KEY_CHARS or len(z85.decode(key)) != 32):
                raise _Unusable(f"a key has {_KEY_CHARS} characters of Z85")
    except (OSError, ValueError, ArithmeticError, LookupError) as error:
        raise _Unusable(str(error) or type(error).__name__) from error
    return public, secret


def _stamp_of(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class _File(NamedTuple):
    """A client's key file as it was read: whose key it holds, or why it cannot be used."""

    stamp: tuple[int, ...]
    is_settled: bool
    public: bytes = b""
    user: str = ""
    problem: str = ""


class ClientKeys:
    """The clients' public keys: a directory that may change, or one file.

    A key gets a number when it is first seen, which stands in each of its connections' messages.

    Attributes
    ----------
    is_valid : ndarray of uint8, shape (MAX_KEYS,)
        By number, whether the key may be used now; shards look at it for each message.

    Raises
    ------
    StartError
        If no key can be used.
    """

    def __init__(self, location: Path, log: EventLog) -> None:
        self.is_valid = np.zeros(MAX_KEYS, np.uint8)
        self._location, self._log = location, log
        self._files: dict[str, _File] = {}  # by name
        self._problems: set[str] = set()
        self._users: dict[bytes, str] = {}
        self._numbers: dict[tuple[bytes, str], int] = {}
        self.refresh()
        if not self._users:
            raise StartError(
                f"--curve-clients {location} holds no public key (NAME{_SUFFIX}) that can be used: "
                f"nobody could connect; 'streamrnn keys NAME' makes one"
                + "".join(f"; {problem}" for problem in sorted(self._problems)[:1])
            )

    def user_id(self, public: bytes) -> bytes:
        """Return a key's number and its user's name; empty if it may not be used."""
        user = self._users.get(public)
        if user is None:
            return b""
        return encode_key_number(self._numbers[public, user]) + user.encode()

    def refresh(self) -> None:
        """Read again what has changed by name, time or size."""
        problems = set()
        try:
            stamps = dict(self._stamps())
        except OSError as error:
            stamps = {}
            problems.add(f"cannot read --curve-clients {self._location}: {error}")
        files = {name: self._read(name, stamp) for name, stamp in stamps.items()}
        if files != self._files or problems:
            had_users, self._files = bool(self._users), files
            problems |= {file.problem for file in files.values() if file.problem}
            self._set_users(problems)
            for problem in sorted(problems - self._problems):
                self._log.write("error", "a client's key cannot be used", reason=problem)
            if had_users and not self._users:
                self._log.write("error", "no client's key can be used: nobody gets in")
            self._problems = problems

    def forget(self) -> None:
        """Let nobody in until the keys can be read again."""
        self._files, self._users = {}, {}
        self.is_valid[:] = 0

    def _stamps(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield each file's name and what changes with it; none if it cannot be known."""
        if not self._location.is_dir():
            yield self._location.name, _stamp_of(self._location.stat())
            return
        with os.scandir(self._location) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX):
                    try:
                        stamp = _stamp_of(entry.stat())
                    except OSError:  # a dangling link, or just deleted
                        stamp = ()
                    yield entry.name, stamp

    def _read(self, file_name: str, stamp: tuple[int, ...]) -> _File:
        known = self._files.get(file_name)
        if known is not None and known.stamp == stamp and known.is_settled:
            return known
        is_settled = bool(stamp) and max(stamp[:2]) < time.time_ns() - _TICK_NS
        path = self._location / file_name if self._location.is_dir() else self._location
        name = file_name.removesuffix(_SUFFIX)
        shown = os.fsencode(path).decode(errors="backslashreplace")
        try:
            num_bytes = len(name.encode())
        except UnicodeEncodeError:
            num_bytes = 0
        if not 1 <= num_bytes <= MAX_USER_NAME_BYTES or "\0" in name:
            problem = f"{shown}: a user's name has 1 to {MAX_USER_NAME_BYTES} bytes of UTF-8"
            return _File(stamp, is_settled, problem=problem)
        try:
            public, _ = _load(path)
        except _Unusable as error:
            problem = f"{shown} is no key file ({error})"
            return _File(stamp, is_settled, problem=problem)
        return _File(stamp, is_settled, public, name)

    def _set_users(self, problems: set[str]) -> None:
        owners: dict[bytes, list[str]] = {}
        for _, file in sorted(self._files.items()):
            if file.public:
                owners.setdefault(file.public, []).append(file.user)
        users = {}
        for public, names in owners.items():
            if len(names) > 1:
                files = " and ".join(f"{name}{_SUFFIX}" for name in names)
                problems.add(f"{files} hold the same key: whose is it?")
            elif self._number(public, names[0]) >= 0:
                users[public] = names[0]
            else:
                problems.add(f"{names[0]}{_SUFFIX}: there were {MAX_KEYS} keys already: restart")
        self._users = users
        for (public, user), number in self._numbers.items():
            self.is_valid[number] = users.get(public) == user

    def _number(self, public: bytes, user: str) -> int:
        if (public, user) not in self._numbers and len(self._numbers) == MAX_KEYS:
            return -1
        return self._numbers.setdefault((public, user), len(self._numbers))
