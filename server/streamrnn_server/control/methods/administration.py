"""Methods for administrators: backups and drains."""

from __future__ import annotations

from typing import Any

from streamrnn_client.protocol import ErrorCode, ProtocolError
from streamrnn_server.config import ServerConfig
from streamrnn_server.control.messages import Caller, Order
from streamrnn_server.control.methods.drain import Drain
from streamrnn_server.control.methods.state import StateMethods
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.state_dir import StateDir

__all__ = ["Administration"]


class Administration:
    """Methods for administrators: backups, and drains where there is a state directory."""

    METHODS = ("backup", "drain")

    def __init__(
        self,
        config: ServerConfig,
        disk: StateDir | None,
        lookup: RecordLookup,
        methods: StateMethods,
    ) -> None:
        self._config, self._disk = config, disk
        self._drain: Drain | None = None
        if disk is not None:
            self._drain = Drain(lookup, disk.store, disk.saver, methods, config.has_users)

    def call(self, caller: Caller, method: str, params: list[Any]) -> tuple[Any, list[Order]]:
        """Begin a method of `METHODS`; return its result, and what shards are to do.

        Raises
        ------
        ProtocolError
            If the caller may not, or it makes no sense.
        """
        self.need_admin(caller.user)
        if self._disk is None or self._drain is None:
            raise ProtocolError(
                ErrorCode.NOT_SUPPORTED, "the server keeps nothing on disk: it needs --state-dir"
            )
        if method == "backup":
            return self._disk.backups.begin_or_tell(params), []
        return self._drain.call(params)

    def need_admin(self, user: str) -> None:
        """Raise `ProtocolError` (``forbidden``) unless a user may administer the server."""
        if self._config.has_users and user not in self._config.admins:
            raise ProtocolError(
                ErrorCode.FORBIDDEN, "that is the administrators': start the server with --admin"
            )

    def code_of(self, stream: bytes, token: int) -> int | None:
        """See `Drain.code_of`."""
        return None if self._drain is None else self._drain.code_of(stream, token)

    def note_left(self, stream: bytes) -> None:
        """See `Drain.note_left`."""
        if self._drain is not None:
            self._drain.note_left(stream)
