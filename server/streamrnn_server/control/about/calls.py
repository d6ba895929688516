"""How many calls Python has answered, how long that took, and how many were refused."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from streamrnn_client.protocol import ErrorCode
from streamrnn_server.control.messages import Ask
from streamrnn_server.storage.durations import Durations

__all__ = ["CallCounts"]

_BOUNDS_S = tuple(2.0**k / 2**16 for k in range(20))  # 15 µs to 8 s


class CallCounts:
    """Counts of the calls that came to the control thread.

    Attributes
    ----------
    num_calls : Counter of str
        How many came, by method.
    times : dict of str to Durations
        From their coming here to their answer, or to what is asked of a shard for it, by method.
    num_errors : Counter of (str, str)
        How many of them ended with an error here, by method and code.
    num_too_broken : int
        Number of messages that could not even be answered.
    """

    def __init__(self) -> None:
        self.num_calls: Counter[str] = Counter()
        self.times = defaultdict[str, Durations](lambda: Durations(_BOUNDS_S))
        self.num_errors: Counter[tuple[str, str]] = Counter()
        self.num_too_broken = 0

    def note(self, method: str, ask: Ask) -> None:
        """Count a call that was answered, or passed on to a shard."""
        self.num_calls[method] += 1
        self.times[method].note(time.monotonic() - ask.came_at_s)

    def note_error(self, method: str, code: ErrorCode | str) -> None:
        """Count a call that was refused."""
        name = code.wire if isinstance(code, ErrorCode) else code
        self.num_errors[method, name] += 1
