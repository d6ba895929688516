"""Backups of a state directory in use, one at a time, in a folder that is configured for them."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from streamrnn import __version__
from streamrnn.errors import StateError
from streamrnn.state.backup import BackupProcess
from streamrnn.state.store import StateStore
from streamrnn_client.protocol import ErrorCode, ProtocolError
from streamrnn_server.event_log import EventLog

__all__ = ["Backups"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TOKEN = re.compile(r"[A-Za-z0-9]{1,64}")
_RETRY_AFTER_MS = 1000
_TOLD = ("made_at", "num_streams", "num_snapshots", "num_damages")


class _Asked(NamedTuple):
    """A backup's name, and what tells who asks for it once more from who asks for another one."""

    name: str
    token: str


class Backups:
    """Makes them beside the server; nothing waits for them.

    Parameters
    ----------
    folder : Path or None
        Where; None if nobody may ask for any.
    store : StateStore
        What is copied, as of its last commit.
    log : EventLog
    """

    def __init__(self, folder: Path | None, store: StateStore, log: EventLog) -> None:
        self._folder, self._store, self._log = folder, store, log
        self._asked: _Asked | None = None
        self._process: BackupProcess | None = None
        self._waiter: threading.Thread | None = None
        self._state: dict[str, Any] = {}

    def begin_or_tell(self, params: list[Any]) -> dict[str, Any]:
        """Begin the backup that is asked for, or tell how far it is, if this begins it not anew.

        Parameters
        ----------
        params : list
            Its name, that of a folder to be made; and a text that the asker has made up for it.

        Returns
        -------
        dict
            ``state``: ``running``, ``done`` or ``failed``, and what there is to say.

        Raises
        ------
        ProtocolError
            If there are no backups here, the name cannot be used, or another one is under way.
        """
        asked = _read(params)
        if asked == self._asked:
            return self._state
        if self._folder is None:
            raise ProtocolError(
                ErrorCode.NOT_SUPPORTED, "the server has no --backup-dir to write backups into"
            )
        if self._process is not None:
            raise ProtocolError(ErrorCode.BUSY, retry_after_ms=_RETRY_AFTER_MS)
        target = self._folder / asked.name
        try:
            args = self._store.directory, target, __version__, self._store.epoch
            self._process = BackupProcess(*args)
        except StateError as error:
            raise ProtocolError(ErrorCode.BAD_PARAMS, str(error)) from error
        self._asked, self._state = asked, {"state": "running", "path": str(target)}
        self._log.write("info", "a backup is being made", path=target)
        waited_for = self._process, target
        self._waiter = threading.Thread(
            target=self._wait, args=waited_for, name="backup", daemon=True
        )
        self._waiter.start()
        return self._state

    def _wait(self, process: BackupProcess, target: Path) -> None:
        state: dict[str, Any]
        try:
            about = process.wait()
        except Exception as error:
            self._log.write("error", "no backup was made", path=target, reason=str(error))
            state = {"state": "failed", "path": str(target), "reason": str(error)}
        else:
            told = {name: about[name] for name in _TOLD}
            num_bytes = sum(each[0] for each in about["files"].values())
            state = {"state": "done", "path": str(target), "num_bytes": num_bytes, **told}
            self._log.write("info", "a backup was made", path=target, **told)
        self._store.forget_dead_readers()
        self._state, self._process = state, None

    def close(self) -> None:
        """End one that is under way; nothing is left of it."""
        process, waiter = self._process, self._waiter
        if process is not None:
            process.stop()
        if waiter is not None:
            waiter.join()


def _read(params: list[Any]) -> _Asked:
    for value, pattern in zip(params, (_NAME, _TOKEN), strict=False):
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ProtocolError(
                ErrorCode.BAD_PARAMS,
                f"{str(value)[:100]!r} is no name for a backup, or no token: a name has 1 to 100 "
                "letters, digits, '.', '_' and '-' and begins with none of the last three, a token "
                "1 to 64 letters and digits",
            )
    if len(params) != 2:
        raise ProtocolError(
            ErrorCode.BAD_PARAMS, f"{len(params)} parameters; backup takes 2: [name, token]"
        )
    return _Asked(*params)
