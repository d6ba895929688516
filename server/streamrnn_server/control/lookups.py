"""What the disk knows of a stream that no shard has, and of one that was refused."""

from __future__ import annotations

from typing import Any

from streamrnn_client.protocol import ErrorCode
from streamrnn_server.control.messages import Ask, Order, command
from streamrnn_server.control.methods.administration import Administration
from streamrnn_server.shard.structs import CommandKind
from streamrnn_server.storage.record_lookup import RecordLookup
from streamrnn_server.storage.state_dir import StateDir

__all__ = ["LookUps"]


class LookUps:
    """Answers shards that look for a stream, and says what they cannot say of an error."""

    def __init__(
        self, records: RecordLookup, disk: StateDir | None, administration: Administration
    ) -> None:
        self._records, self._disk, self._administration = records, disk, administration
        self._usage = None if disk is None else disk.usage

    def answer(self, shard: int, ask: Ask, user: str) -> Order:
        """Say whether a stream is on disk, and give its record; ``user`` asks for it."""
        code_of_drain = self._administration.code_of(ask.body, ask.msgid)
        if code_of_drain is not None:
            return self._found(shard, ask, code_of_drain, owner="", is_held=True)
        code, model, record, owner = self._records.look_up(ask.body)
        is_new = code in (ErrorCode.UNKNOWN, ErrorCode.EXPIRED)
        if is_new and self._usage is not None and self._usage.is_full(user):
            return self._found(shard, ask, ErrorCode.READ_ONLY)
        is_held = self._records.is_held(ask.body) or code in (ErrorCode.BUSY, ErrorCode.MOVED)
        return self._found(shard, ask, code, model, record, owner, is_held)

    def give_up(self, shard: int, ask: Ask) -> Order:
        """Say that nothing is known, for looking has failed."""
        return self._found(shard, ask, ErrorCode.INTERNAL)

    @staticmethod
    def _found(
        shard: int,
        ask: Ask,
        code: int,
        model: int = 0,
        record: bytes = b"",
        owner: str | None = None,
        is_held: bool = False,
    ) -> Order:
        slot, generation, *_ = ask.details
        values = {
            "slot": slot,
            "generation": generation,
            "code": code,
            "model": model,
            "data_bytes": len(record),
            "owner_bytes": -1 if owner is None else len(owner.encode()),
            "asker": ask.owner,
            "digest": is_held,
        }
        frames = command(CommandKind.FOUND, values, record, (owner or "").encode())
        return Order(shard, frames)

    def known_about(self, user: str, code: ErrorCode, stream: bytes) -> dict[str, Any]:
        """Return what a shard could not say about an error."""
        if code in (ErrorCode.MISMATCH, ErrorCode.DAMAGED):
            return self._records.refusal(stream)
        if code is ErrorCode.MOVED:
            return self._records.departure(stream)
        if code is ErrorCode.EXPIRED:
            idle_s = self._records.idle_s(stream, user)
            return {} if idle_s is None else {"idle_s": idle_s}
        if code is ErrorCode.READ_ONLY and self._usage is not None and self._usage.is_full(user):
            return {"reason": self._usage.reason(user)}
        if code is ErrorCode.READ_ONLY and self._disk is not None:
            return {"reason": self._disk.read_only or "it failed a moment ago"}
        return {}
