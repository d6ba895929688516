"""Whose turn it is on a stream: first come, first served.

A call claims all its streams at once, so that two calls cannot wait for each other, and its driver
gives them back when the call has ended, however it ended. Whoever runs this holds a lock where
threads share the streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from streamrnn_client._session.exchange import GRACE_S, LATE_S
from streamrnn_client._session.stream_state import StreamState
from streamrnn_client._session.unfinished import Unfinished
from streamrnn_client.errors import RequestTimeout

__all__ = ["Claim", "Era", "give_back", "has_turn", "take", "turn_timeout"]


class Era:
    """The time in which claims hold: it ends with a fork, or with an event loop."""

    is_over = False


class Claim:
    """A call's wait for the exclusive use of streams, and its use of them.

    `deadline` is when a call that had to wait gives up, None where it had not. What an interrupted
    call leaves: `before`, the last steps that its caller knows of, or `unfinished`. `wake` is the
    driver's, for a claim that waits.
    """

    __slots__ = (
        "before",
        "deadline",
        "era",
        "has_grace",
        "is_over",
        "states",
        "unfinished",
        "wake",
    )

    def __init__(self, states: Sequence[StreamState]) -> None:
        self.states = states
        self.deadline: float | None = None
        self.has_grace = False
        self.era: Era | None = None
        self.is_over = False
        self.before: Sequence[int] = ()
        self.unfinished: Unfinished | None = None
        self.wake: Callable[[], None] | None = None

    @property
    def is_void(self) -> bool:
        """Whether it holds nothing: it was given back, or its process or event loop is gone."""
        return self.is_over or (self.era is not None and self.era.is_over)

    def remaining_s(self, now: float) -> float:
        """Return how long it may wait; one that is looked at late may a little, once more."""
        if self.deadline is None:
            return float("inf")
        if now - self.deadline >= LATE_S and not self.has_grace:
            self.has_grace = True
            self.deadline = now + GRACE_S
        return self.deadline - now

    def undo(self) -> None:
        """Take back the numbers of steps whose outcome the caller has not learned.

        The same call again sends them under the same numbers, and is answered what it missed.
        """
        for state, last_seq in zip(self.states, self.before, strict=False):
            if state.numbered and state.turn in (None, self):
                state.take_back(last_seq)
        if self.unfinished is not None and self.states[0].turn in (None, self):
            self.unfinished.keep(self.states[0])


def take(claim: Claim, *, may_wait: bool = True) -> bool:
    """Take the streams, or a place behind those who have them; whether it is the claim's turn."""
    states = claim.states
    if not [state for state in states if state.turn is not None and not state.turn.is_void]:
        for state in states:
            state.turn = claim
        return True
    if may_wait:
        for state in states:
            if state.turn is None or state.turn.is_void:
                state.turn = claim
            elif state.waiting is None:
                state.waiting = deque((claim,))
            else:
                state.waiting.append(claim)
    return False


def has_turn(claim: Claim) -> bool:
    """Tell whether it is a waiting claim's turn; takes over what void claims have left."""
    for state in claim.states:
        if state.turn is not claim:
            if state.turn is not None and not state.turn.is_void:
                return False
            _pass_on(state)
    return all(state.turn is claim for state in claim.states)


def give_back(claim: Claim, error: BaseException | None = None) -> None:
    """Pass the streams on and wake whose turn it is; harmless when done twice.

    An `error` that is not the call's own has interrupted it.
    """
    if error is not None and getattr(error, "is_of_another_call", True):
        claim.undo()
    heirs: list[Claim] = []
    for state in claim.states:
        if state.turn is claim:
            if state.waiting is None:
                state.turn = None
            elif (heir := _pass_on(state)) is not None:
                heirs.append(heir)
    claim.is_over = True
    for heir in dict.fromkeys(heirs):
        if heir.wake is not None and all(state.turn is heir for state in heir.states):
            heir.wake()


def _pass_on(state: StreamState) -> Claim | None:
    """Give a stream to the first of those who still wait for it."""
    waiting = state.waiting
    while waiting:
        heir = waiting.popleft()
        if not heir.is_void:
            state.turn = heir
            return heir
    state.turn = state.waiting = None
    return None


def turn_timeout(claim: Claim, timeout_s: float) -> RequestTimeout:
    """Return the error of a call whose turn did not come in time."""
    stream = next((state.id for state in claim.states if state.turn is not claim), None)
    return RequestTimeout(
        f"the call waited {timeout_s:.3g} s for its turn on stream {stream!r}, behind other calls "
        "of this client; nothing was sent, so nothing was applied",
        {"stream": stream, "num_sends": 0},
    )
