"""What single users may take: a file of TOML, which may change while the server runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from streamrnn.errors import StartError
from streamrnn_server.config import MAX_STEPS_PER_S, MAX_USER_NAME_BYTES, UserLimits, parse_bytes
from streamrnn_server.event_log import EventLog
from streamrnn_server.options.toml_file import read_toml
from streamrnn_server.shard.streams.owners import Users

__all__ = ["LimitsFile", "read_limits"]

_MAX_NAMED = 10_000  # users
_MAX_STREAMS = 2**31 - 2


def read_limits(path: Path, default: UserLimits) -> dict[str, UserLimits]:
    """Read a table for each user: ``max_streams``, ``max_bytes``, ``max_steps_per_s``.

    What a table leaves out is as for all users; 0 bytes or steps are any number.

    Raises
    ------
    StartError
        If the file cannot be read, or something in it makes no sense.
    """
    tables = read_toml(path, "users' limits", max_mib=4)
    if len(tables) > _MAX_NAMED:
        raise StartError(f"{path} names {len(tables)} users; it must be {_MAX_NAMED} at most")
    return {user: _limits_of(user, table, path, default) for user, table in tables.items()}


def _limits_of(user: str, table: Any, path: Path, default: UserLimits) -> UserLimits:
    if not isinstance(table, dict):
        raise StartError(f"{user!r} in {path} is {table!r}; it must be a table, [{user}]")
    if not 1 <= len(user.encode()) <= MAX_USER_NAME_BYTES or "\0" in user:
        raise StartError(
            f"{user[:32]!r} in {path} is no user's name: it has 1 to {MAX_USER_NAME_BYTES} bytes"
        )
    values = dict(table)
    for name, value in values.items():
        place = f"{name} of user {user!r} in {path}"
        if name not in UserLimits._fields:
            known = ", ".join(UserLimits._fields)
            raise StartError(f"{place} is no limit; there are {known}")
        if name == "max_bytes" and isinstance(value, str):
            values[name] = value = parse_bytes(value, place)
        most = {"max_streams": _MAX_STREAMS, "max_steps_per_s": MAX_STEPS_PER_S}.get(name, 2**60)
        least = 1 if name == "max_streams" else 0
        if type(value) is not int or not least <= value <= most:
            raise StartError(f"{place} is {value!r}; it must be a whole number, {least} to {most}")
    return default._replace(**values)


class LimitsFile:
    """Tells shards what users may take, now and when the file has changed.

    Raises
    ------
    StartError
        If the file cannot be used; later that is written to the log, and the limits stay.
    """

    def __init__(self, path: Path | None, default: UserLimits, log: EventLog) -> None:
        self._path, self._default, self._log = path, default, log
        self._shards: list[Users] = []
        self._stamp: tuple[int, ...] = ()
        self._limits: Mapping[str, UserLimits] = MappingProxyType({})
        if path is not None:
            self._stamp = self._stamp_of(path)
            self._limits = read_limits(path, default)

    def of(self, user: str) -> UserLimits:
        """Return what a user may take of the server."""
        return self._limits.get(user, self._default)

    def add_shard(self, users: Users) -> None:
        """Tell a shard, before its thread begins; those who are named are known there then."""
        for user in self._limits:
            users.add(user)
        users.set_limits(self._limits)
        self._shards.append(users)

    def refresh(self) -> None:
        """Read the file again if it has changed, and tell the shards."""
        if self._path is None:
            return
        stamp = self._stamp_of(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._limits = read_limits(self._path, self._default)
                self._log.write("info", "the users' limits were read again", file=str(self._path))
            except StartError as error:
                self._log.write("error", "the users' limits stay as they are", reason=str(error))
        for users in self._shards:
            users.set_limits(self._limits)

    @staticmethod
    def _stamp_of(path: Path) -> tuple[int, ...]:
        """Return what changes with a file."""
        try:
            found = os.stat(path)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
