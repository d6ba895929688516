"""A `steps` that ended before its end: what is needed so that no step is applied twice."""

from __future__ import annotations

from streamrnn_client._session.stream_state import StreamState
from streamrnn_client.errors import Conflict
from streamrnn_client.inputs import Array
from streamrnn_client.words import counted

__all__ = ["Unfinished"]


class Unfinished:
    """A call of `steps`: its inputs, and the outputs of the `num_done` steps that were applied.

    `is_told` says whether an error told the caller how far it came; `base` is the stream's last
    step before the call, `received` what the server is told that the caller has. It matters only as
    long as the last step is the call's own last one.
    """

    __slots__ = ("base", "first_seq", "is_told", "num_done", "outputs", "received", "x")

    def __init__(self, first_seq: int, x: Array, outputs: Array) -> None:
        self.base = self.received = 0
        self.first_seq = first_seq
        self.x = x
        self.outputs = outputs
        self.num_done = 0
        self.is_told = False

    @property
    def last_seq(self) -> int:
        """Number of the last step that was applied."""
        return self.first_seq + self.num_done - 1

    def keep(self, state: StreamState, *, is_told: bool = False) -> None:
        """Leave word of this call with its stream, for the calls after it."""
        self.is_told = is_told
        if not is_told:
            state.take_back(max(self.last_seq, self.base))
        if self.num_done and state.last_seq == self.last_seq and not state.lost:
            self.x = self.x.copy()  # the caller may change theirs
            state.unfinished, state.unread_seq = self, self.last_seq

    def num_done_of(self, state: StreamState, x: Array, seq: int | None) -> int:
        """Return how many of the steps of a call were applied by this one: all or none of them.

        Raises `Conflict` where the caller cannot have meant either.
        """
        if state.last_seq != self.last_seq:
            return 0  # it is past
        is_same = x.shape == self.x.shape and x.tobytes() == self.x.tobytes()
        if seq is not None:
            return self.num_done if is_same and seq == self.first_seq else 0
        rest = self.x[self.num_done :]
        goes_on = len(rest) > 0 and x[: len(rest)].tobytes() == rest.tobytes()
        if is_same and not (goes_on and self.is_told):
            return self.num_done
        if is_same or not (goes_on or self.is_told):
            raise self.conflict(state)
        return 0

    def conflict(self, state: StreamState) -> Conflict:
        """Return the error of a call that would follow this one by mistake."""
        done, num_steps = self.num_done, len(self.x)
        how = (
            "stopped by an error, and this call may mean both: all its steps again or the next ones"
            if self.is_told
            else "interrupted"
        )
        return Conflict(
            f"the call steps(X) before this one on stream {state.id!r} was {how}; {done} of its "
            f"{counted(num_steps, 'step')} {'was' if done == 1 else 'were'} applied, "
            f"numbers {self.first_seq} to {self.last_seq}. Nothing was sent now: go on with "
            f"X[{done}:] and seq={self.last_seq + 1}, get all outputs with the whole X and "
            f"seq={self.first_seq}, or go on after it with resync()",
            {"stream": state.id, "expected": self.last_seq + 1, "num_done": done},
        )
