"""A stream that a shard was asked to let go of, or to make, for a drain."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from streamrnn_client.protocol import ErrorCode, ProtocolError, Response
from streamrnn_server.storage.writer import Committed

__all__ = ["Answer", "Waiting", "bad", "error_to"]

HOLD_S = 30.0  # for as long a stream waits for who drains
Answer = tuple[list[Any] | None, Any]  # error, value


class Waiting:
    """A stream that a shard was asked to let go of, or to make."""

    def __init__(self) -> None:
        self.is_done = False
        self.error: list[Any] | None = None
        self.committed: Committed | None = None  # what must be on disk, and may not be yet
        self.begun_at_s = self.asked_at_s = time.monotonic()
        self.token = -2  # under which the request of it waits; -2: none

    @property
    def is_committing(self) -> bool:
        """Whether its mark may come to disk any moment."""
        return self.committed is not None and not self.committed.is_done

    @property
    def has_gone(self) -> bool:
        """Whether its mark is on disk."""
        return self.committed is not None and self.committed.has_succeeded

    @property
    def is_unanswered(self) -> bool:
        """Whether a shard has not done it for so long that it may never have come there."""
        is_open = not self.is_done and self.error is None and self.committed is None
        return is_open and time.monotonic() - self.begun_at_s > HOLD_S

    @property
    def is_over(self) -> bool:
        """Whether nobody has asked for it for too long."""
        return not self.is_committing and time.monotonic() - self.asked_at_s > HOLD_S


def error_to(
    waiting_ones: dict[bytes, Waiting],
    stream: bytes,
    waiting: Waiting,
    else_error: list[Any] | None = None,
    is_done_then: bool = False,
) -> Callable[[Response], None]:
    """Return what takes a shard's reply: its error is told to who asks next."""

    def take(reply: Response) -> None:
        if waiting.is_done:  # by what was asked for before this, and had seemed lost
            return
        if reply.error is not None or else_error is not None:
            waiting.error = reply.error or else_error
        elif is_done_then and waiting_ones.get(stream) is waiting:
            del waiting_ones[stream]

    return take


def bad(what: str) -> ProtocolError:
    """Return the error of a drain's parameters."""
    return ProtocolError(ErrorCode.BAD_PARAMS, what)
