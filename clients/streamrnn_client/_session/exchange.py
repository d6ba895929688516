"""Requests and their answers, without sockets and without a clock of their own.

An `Exchange` numbers requests, says what is to be sent when, and settles every call: with its
result, its error, or a timeout. A driver (or a simulation) sends what stands in the `outbox`, hands
over replies and calls `tick` when it is due.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from streamrnn_client import errors
from streamrnn_client.protocol import MAX_MSGID, ErrorCode, ProtocolError, decode_response
from streamrnn_client.words import counted

__all__ = ["GRACE_S", "LATE_S", "Call", "Exchange", "result_of"]

_HEAD = b"\x94\x00\xce"  # an array of four: 0 for a request, then the msgid as uint 32
_NUM_HEAD_BYTES = len(_HEAD) + 4
_BUSY = ErrorCode.BUSY.wire
_BUSY_S, _MIN_BUSY_S = 0.01, 0.001  # where a server names no time, and at least
_MAX_BUSY_S = 1e6  # beyond every timeout
_MAX_SPREAD_S = 1.0
_NUM_WAIT_BYTES = 4  # at the end of a payload that says how long it may wait
_MAX_WAIT_MS = 2**32 - 1
_MIN_RETRY_S, _MAX_RETRY_S = 0.001, 0.05  # after a send that the socket did not take
_MAX_RESEND_S = 2.0  # while the time between two repetitions doubles
# What is looked at so late gets so much time once more: other code has kept the event loop, or the
# process was suspended, and the answer may be here, unread.
LATE_S, GRACE_S = 0.02, 0.25
_NEVER = float("inf")

Buffer = bytes | memoryview


def _msgids() -> Iterator[int]:
    """Yield msgids in a circle; `itertools.cycle` would keep all that it ever yielded."""
    while True:
        yield from range(1, MAX_MSGID + 1)


class Call:
    """One request until it is settled: until `done`, with an `error` or a `result`.

    `payload` is the same however often it is sent; `may_resend` is False where sending it twice
    would do harm, as with unnumbered steps. `deadline` and `next_at` are in seconds of the
    exchange's clock: when to give up, and when to look at it again; `has_grace` says that the
    deadline was put off already. `late_at` is when nobody has use for the answer any more: the
    payload ends with the milliseconds until then, as of its last sending. `waiter` is for the
    driver.
    """

    __slots__ = (
        "deadline",
        "done",
        "endpoint",
        "error",
        "has_grace",
        "interval_s",
        "late_at",
        "may_resend",
        "method",
        "msgid",
        "next_at",
        "num_busy",
        "num_sends",
        "on_settled",
        "payload",
        "result",
        "retry_s",
        "started",
        "waiter",
    )

    def __init__(
        self,
        endpoint: str,
        method: str,
        payload: bytes,
        msgid: int,
        *,
        may_resend: bool,
        started: float,
        deadline: float,
        late_at: float = _NEVER,
    ) -> None:
        self.endpoint = endpoint
        self.method = method
        self.payload = payload
        self.msgid = msgid
        self.may_resend = may_resend
        self.started = started
        self.deadline = deadline
        self.late_at = late_at
        self.next_at = deadline
        self.interval_s = _NEVER
        self.retry_s = _MIN_RETRY_S
        self.num_sends = self.num_busy = 0
        self.has_grace = False
        self.done = False
        self.result: Any = None
        self.error: errors.StreamRNNClientError | None = None
        self.on_settled: Callable[[Call], None] | None = None
        self.waiter: Any = None


class Exchange:
    """All calls of one thread or one event loop.

    `timeout_s` runs from the first try to giving up; `resend_s` is the first wait before a request
    is sent again, and doubles. Calls beyond `max_in_flight` wait in a backlog. `num_unreadable`
    counts replies of another protocol. `is_postponed` says whether the last `receive` postponed a
    call, so that `next_at` may have come nearer.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        timeout_s: float,
        resend_s: float,
        is_connected: Callable[[str], bool] = lambda endpoint: True,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._timeout_s = timeout_s
        self._resend_s = resend_s
        self._answer_s = min(resend_s, timeout_s / 10)
        self._is_connected = is_connected
        self._pending: dict[int, Call] = {}
        self._backlog: deque[Call] = deque()
        self._msgids = _msgids()
        self.outbox: deque[Call] = deque()
        self.max_in_flight = MAX_MSGID
        self.num_unreadable = 0
        self.is_postponed = False

    def submit(
        self,
        endpoint: str,
        method: str,
        parts: tuple[Buffer, ...],
        *,
        may_resend: bool = True,
        delay_s: float = 0.0,
        deadline: float | None = None,
        late_at: float = _NEVER,
    ) -> Call:
        """Take on a request; `parts` are its encoded method and parameters, copied once.

        `deadline` is in seconds of the clock, None for `timeout_s` from now. With `late_at`, the
        last part is a uint 32.
        """
        msgid, payload = self.encode(*parts)
        now = self._clock()
        started = now if deadline is None else deadline - self._timeout_s
        call = Call(
            endpoint,
            method,
            payload,
            msgid,
            may_resend=may_resend,
            started=started,
            deadline=started + self._timeout_s,
            late_at=late_at,
        )
        self._add(call)
        if delay_s > 0:
            call.next_at = now + delay_s
        elif len(self._pending) > self.max_in_flight:
            self._backlog.append(call)
        else:
            self._enqueue(call, now)
        return call

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way and nothing is to be sent."""
        return not self._pending and not self.outbox

    def encode(self, *parts: Buffer) -> tuple[int, bytes]:
        """Return a new msgid and the payload that carries it; `parts` as in `submit`."""
        msgid = next(self._msgids)
        while msgid in self._pending:
            msgid = next(self._msgids)
        return msgid, b"".join((_HEAD, msgid.to_bytes(4, "big"), *parts))

    def adopt(self, endpoint: str, method: str, payload: bytes, msgid: int, started: float) -> Call:
        """Take on a request that was sent already, once, and that may be sent again."""
        deadline = started + self._timeout_s
        call = Call(
            endpoint, method, payload, msgid, may_resend=True, started=started, deadline=deadline
        )
        self._add(call)
        self._note_send(call, started)
        return call

    def repeat(self, call: Call, endpoint: str, deadline: float | None = None) -> Call:
        """Take on a request like one that was settled, under a new msgid; `deadline` as above."""
        parts = (memoryview(call.payload)[_NUM_HEAD_BYTES:],)
        return self.submit(
            endpoint,
            call.method,
            parts,
            may_resend=call.may_resend,
            deadline=deadline,
            late_at=call.late_at,
        )

    def receive(self, payload: bytes) -> None:
        """Take a server's message: an answer settles its call, others are dropped."""
        self.is_postponed = False
        try:
            msgid, error, result = decode_response(payload)
        except ProtocolError:
            self.num_unreadable += 1
            return
        call = self._pending.get(msgid)
        if call is None:  # the second answer to a request that was sent twice
            return
        if error is None:
            call.result = result
            self._settle(call)
        elif error[0] == _BUSY and self._postpone(call, error):
            return
        else:
            call.error = errors.from_wire(error)
            self._settle(call)

    def tick(self) -> None:
        """Send, send again or give up every call that is due."""
        now = self._clock()
        for call in [call for call in self._pending.values() if call.next_at <= now]:
            late_s = now - call.deadline
            if late_s >= LATE_S and not call.has_grace:
                call.has_grace = True
                call.next_at = call.deadline = now + GRACE_S
            elif late_s >= 0:
                call.error = self._timeout(call)
                self._settle(call)
            else:  # what must not be sent again is due at its deadline only
                self._enqueue(call, now)

    def next_at(self) -> float:
        """Return when `tick` is due, in seconds of the clock; infinity if never."""
        return min((call.next_at for call in self._pending.values()), default=_NEVER)

    def late_at(self, within_s: float | None) -> float:
        """Return when it is late for what is of use within some seconds; None: it never is."""
        return _NEVER if within_s is None else self._clock() + within_s

    def busy_delay(
        self, detail: Any, num_before: int, deadline: float | None, late_at: float
    ) -> float | None:
        """Return how long to wait with what was told `busy`; None if no time is left for it.

        That is what the server says and a random part of a spread, so that those who were told the
        same do not come together; the spread doubles with every time before.
        """
        value: Any = detail.get("retry_after_ms") if isinstance(detail, dict) else None
        is_time = type(value) in (int, float) and value >= 0
        least_s = min(value, 1e3 * _MAX_BUSY_S) / 1e3 if is_time else _BUSY_S
        least_s = max(least_s, _MIN_BUSY_S)
        spread_s = min(least_s * 2.0 ** min(num_before, 20), _MAX_SPREAD_S)
        for delay_s in (least_s + self._draw() * spread_s, least_s):
            if self.has_time(delay_s, deadline) and self._clock() + delay_s < late_at:
                return delay_s
        return None

    def has_time(self, delay_s: float, deadline: float | None) -> bool:
        """Return whether what is put off by a delay can be answered by a deadline."""
        # An answer needs time too: `busy` says more than the timeout of one last try.
        return deadline is None or self._clock() + delay_s + self._answer_s < deadline

    def last_deadline(self) -> float:
        """Return until when what has timed out may be tried once more, at another endpoint."""
        return self._clock() + 2 * self._answer_s  # the endpoint is asked for first

    def send_failed(self, call: Call) -> None:
        """Take back a call that the socket did not take: it is tried again soon."""
        call.num_sends -= 1
        if call.may_resend:
            call.interval_s /= 2
        call.next_at = min(self._clock() + call.retry_s, call.deadline)
        call.retry_s = min(2 * call.retry_s, _MAX_RETRY_S)

    def abandon(self, call: Call) -> None:
        """Settle a call that is not waited for any more; it may have been sent."""
        if not call.done:
            call.error = errors.ClientClosed(f"{call.method} was abandoned")
            self._settle(call)

    def abandon_all(self) -> None:
        """Settle all calls with `ClientClosed`."""
        for call in list(self._pending.values()):
            call.error = errors.ClientClosed("the client was closed while a call was under way")
            self._settle(call)

    def _add(self, call: Call) -> None:
        call.interval_s = self._resend_s
        self._pending[call.msgid] = call

    def _enqueue(self, call: Call, now: float) -> None:
        self._note_send(call, now)
        self.outbox.append(call)

    def _note_send(self, call: Call, now: float) -> None:
        call.num_sends += 1
        if call.late_at < _NEVER:
            left_ms = min(max(0, math.ceil(1e3 * (call.late_at - now))), _MAX_WAIT_MS)
            left = left_ms.to_bytes(_NUM_WAIT_BYTES, "big")
            call.payload = call.payload[:-_NUM_WAIT_BYTES] + left
        if call.may_resend:
            call.next_at = min(now + call.interval_s, call.deadline)
            # A server that is killed over and over must not make the waits ever longer.
            call.interval_s = max(call.interval_s, min(2 * call.interval_s, _MAX_RESEND_S))
        else:
            call.next_at = call.deadline

    def _postpone(self, call: Call, error: list[Any]) -> bool:
        """Postpone a busy call; even an unnumbered one, for it was not applied."""
        delay_s = self.busy_delay(error[2], call.num_busy, call.deadline, call.late_at)
        if delay_s is None:
            return False
        call.num_sends = 0
        call.num_busy += 1
        call.next_at = self._clock() + delay_s
        self.is_postponed = True
        return True

    def _settle(self, call: Call) -> None:
        call.done = True
        del self._pending[call.msgid]
        if call.num_sends == 0 and call in self._backlog:
            self._backlog.remove(call)
        if call.on_settled is not None:
            call.on_settled(call)
        while self._backlog and len(self._pending) - len(self._backlog) < self.max_in_flight:
            self._enqueue(self._backlog.popleft(), self._clock())

    def _timeout(self, call: Call) -> errors.StreamRNNClientError:
        seconds = call.deadline - call.started
        detail = {"endpoint": call.endpoint, "method": call.method, "num_sends": call.num_sends}
        if call.num_sends == 0:
            doubt = "nothing was sent, so nothing was applied"
        elif call.may_resend:
            sent = counted(call.num_sends, "time")
            doubt = f"it was sent {sent}; to call again with the same input is safe"
        else:
            doubt = "it was sent once only, for it has no number, and may have been applied"
        if not self._is_connected(call.endpoint):
            return errors.ConnectionLost(
                f"no connection to {call.endpoint} within {seconds:.3g} s ({call.method}): is a "
                "server running there, and are the address and the keys right? "
                f"{doubt.capitalize()}",
                detail,
            )
        unreadable = (
            f"; not of this protocol: {counted(self.num_unreadable, 'reply', 'replies')}; is it "
            "another service?"
            if self.num_unreadable
            else ""
        )
        return errors.RequestTimeout(
            f"{call.endpoint} did not answer {call.method} within {seconds:.3g} s; "
            f"{doubt}{unreadable}",
            detail,
        )


def result_of(payload: bytes, msgid: int) -> Any:
    """Return the result that a server's message has for a request; None if it has none."""
    try:
        of, error, result = decode_response(payload)
    except ProtocolError:
        return None
    return result if of == msgid and error is None else None
