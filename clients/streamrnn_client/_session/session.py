"""What a client does, without sockets: operations that any driver can run.

An operation is a generator. It submits requests to an `Exchange` and yields what it waits for: a
`Call`, until it is settled, or a `Claim`, until it is granted. `_drivers` run operations with
blocking sockets or an event loop, the tests with a simulated network and clock. A driver gives back
the claims of an operation that has ended, and takes back the numbers of one that was interrupted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamrnn_client import errors
from streamrnn_client._session.exchange import Call, Exchange
from streamrnn_client._session.replay import (
    MAX_REPLAYS,
    complete_gaps,
    open_states,
    recover,
    server_lag,
    wait_for_capacity,
)
from streamrnn_client._session.server_view import MAX_MOVES, Operation, ServerView, packed_request
from streamrnn_client._session.stream_group import Rows
from streamrnn_client._session.stream_state import StreamState, step_parts, without_received
from streamrnn_client._session.turns import Claim
from streamrnn_client._session.unfinished import Unfinished
from streamrnn_client.inputs import Array
from streamrnn_client.protocol import (
    MAX_SEQ,
    ErrorCode,
    error_message,
)
from streamrnn_client.words import counted

__all__ = ["Operation", "Session"]


class Session(ServerView):
    """What one client knows, and the operations on single streams; `batch` has those on many."""

    last_rows: Rows | None = None  # of the last `step_many`: often they are those of the next one

    # ---- steps --------------------------------------------------------------------------------

    def step(
        self,
        ex: Exchange,
        state: StreamState,
        x: Any,
        seq: int | None,
        within_s: float | None = None,
    ) -> Operation[Array]:
        """Apply one step and return its output."""
        x = state.model.step_array(x)
        late_at = self.late_at(ex, within_s)
        claim = Claim((state,))
        yield claim
        first_seq = self.next_seq(state, seq, 1)
        if state.unfinished is not None:
            self.check_unfinished(state, seq)
        if state.replay_log is not None and state.replay_log.is_full(1):
            yield from self._wait_for_one(ex, state, 1)
        claim.before = (state.last_seq,)
        received = self.received(state) if seq is None else 0
        call = self._submit(ex, state, first_seq, x, received, claim.deadline, late_at)
        return (yield from self.finish_step(ex, state, call, first_seq, x))

    def finish_step(
        self, ex: Exchange, state: StreamState, call: Call, first_seq: int, x: Array
    ) -> Operation[Array]:
        """Wait for the output of a step that is under way, and return it."""
        result = yield from self.settle(ex, state, call)
        return self.accept(state, result, first_seq, 1, x)

    def steps(
        self,
        ex: Exchange,
        state: StreamState,
        x: Any,
        seq: int | None,
        within_s: float | None = None,
    ) -> Operation[Array]:
        """Apply many steps, in chunks, two of them under way, and return all outputs."""
        x = state.model.steps_array(x)
        late_at = self.late_at(ex, within_s)
        claim = Claim((state,))
        yield claim
        first_seq = self.next_seq(state, seq, len(x))
        job = self._begin_or_go_on(state, x, seq, first_seq)
        job.base = state.last_seq
        job.received = self.received(state) if seq is None else 0
        if state.numbered:
            claim.unfinished = job
        try:
            yield from self._apply_chunks(ex, state, job, claim.deadline, late_at)
        except errors.StreamRNNClientError as error:
            if state.numbered:
                job.keep(state, is_told=True)
            raise _error_of_all_steps(error, job.outputs, job.num_done) from error.__cause__
        return job.outputs

    def _begin_or_go_on(
        self, state: StreamState, x: Array, seq: int | None, first_seq: int
    ) -> Unfinished:
        """Return what is to be done for a call of `steps`: all of it, or what is left of it."""
        before, state.unfinished = state.unfinished, None
        if before is not None:
            try:
                if before.num_done_of(state, x, seq):
                    return before
            except errors.Conflict:
                state.unfinished = before
                raise
        outputs = np.empty((len(x), state.model.output_size), state.model.output_dtype)
        return Unfinished(first_seq, x, outputs)

    def _apply_chunks(
        self,
        ex: Exchange,
        state: StreamState,
        job: Unfinished,
        deadline: float | None,
        late_at: float,
    ) -> Operation[None]:
        x, num_steps = job.x, len(job.x)
        in_flight: deque[tuple[Call, int, int, str]] = deque()
        first = sent = job.num_done
        # Unnumbered chunks must not overtake each other, so only one is under way.
        depth = 2 if state.numbered and state.window > 1 else 1
        chunk = max(1, min(state.window // depth, self.max_chunk(state)))
        try:
            while job.num_done < num_steps:
                while sent < num_steps and len(in_flight) < depth:
                    stop = min(sent + chunk, num_steps)
                    if state.replay_log is not None and state.replay_log.is_full(
                        stop - job.num_done
                    ):
                        if in_flight:
                            break  # what is under way is not in the log yet
                        yield from self._wait_for_one(ex, state, stop - sent)
                    number = job.first_seq + sent if job.first_seq else 0
                    part = x[sent:stop]
                    call = self._submit(ex, state, number, part, job.received, deadline, late_at)
                    in_flight.append((call, sent, stop, state.instance))
                    sent = stop
                call, start, stop, instance = in_flight.popleft()
                number = job.first_seq + start if job.first_seq else 0
                result = yield from self.settle(ex, state, call, in_order=start == first)
                deadline = None  # of the wait for the turn, and the first answer
                # It may have been answered before a crash that the chunk before it met.
                state.instance = instance
                y = self.accept(state, result, number, stop - start, x[start:stop])
                job.outputs[start:stop] = y.reshape(stop - start, -1)
                job.num_done = stop
        finally:
            for call, *_ in in_flight:
                ex.abandon(call)

    def check_unfinished(self, state: StreamState, seq: int | None) -> None:
        """Refuse a single step that would follow an interrupted `steps` by mistake."""
        left, state.unfinished = state.unfinished, None
        if left is None or left.is_told or seq is not None or state.last_seq != left.last_seq:
            return
        state.unfinished = left
        raise left.conflict(state)

    def next_seq(self, state: StreamState, seq: int | None, num_steps: int) -> int:
        """Return the number of the next step, 0 on an unnumbered stream."""
        if state.lost:
            raise errors.StateLost(state.id, state.last_seq, state.lost)
        if not state.is_open:
            raise errors.UnknownStream(
                f"stream {state.id!r} was closed by this client; open it again with "
                "client.stream(...)",
                {"stream": state.id},
            )
        if not state.numbered:
            if seq:
                raise errors.MixedNumbering(
                    f"stream {state.id!r} was opened with numbered=False; leave seq out",
                    {"stream": state.id},
                )
            return 0
        if seq is None:
            return state.last_seq + 1
        if type(seq) is not int:
            if isinstance(seq, bool) or not hasattr(seq, "__index__"):
                raise errors.BadParams(f"seq is {seq!r}; steps are numbered by integers from 1")
            seq = int(seq)
        if not 1 <= seq <= MAX_SEQ - num_steps:
            came = seq if seq.bit_length() <= 128 else f"a number of {seq.bit_length()} bits"
            raise errors.BadParams(
                f"seq is {came}; steps are numbered from 1, and the first of {num_steps} may have "
                f"{MAX_SEQ - num_steps} at most",
                {"seq": seq},
            )
        return seq

    def _submit(
        self,
        ex: Exchange,
        state: StreamState,
        first_seq: int,
        x: Array,
        received: int = 0,
        deadline: float | None = None,
        late_at: float = math.inf,
    ) -> Call:
        parts = step_parts(state, first_seq, x, received, late_at < math.inf)
        return ex.submit(
            self.endpoint(state),
            "step",
            parts,
            may_resend=state.numbered,
            deadline=deadline,
            late_at=late_at,
        )

    def settle(
        self, ex: Exchange, state: StreamState, call: Call, *, in_order: bool = True
    ) -> Operation[Any]:
        """Wait for a request's answer; send it again where that is right, else raise.

        With `in_order` False an earlier chunk was still under way when this one was sent: if that
        one came late, or was replayed, then this one met a gap that exists no longer.
        """
        num_moves = num_replays = 0
        may_open = may_look = True
        try:
            while True:
                yield call
                error, deadline = call.error, None
                if error is None:
                    return call.result
                yield from complete_gaps(self, ex, (state,), {0: error})
                if isinstance(error, errors.Moved) and num_moves < MAX_MOVES:
                    num_moves += 1
                    self.note_moved(state, error.detail)
                elif not in_order and isinstance(error, errors.Gap | errors.UnknownStream):
                    in_order = True
                elif isinstance(error, errors.UnknownStream) and state.is_pristine and may_open:
                    may_open = False
                    yield from self._open_again(ex, state)
                elif (
                    isinstance(error, errors.BadParams)
                    and (plain := without_received(call.payload)) is not None
                    and not (yield from self.refresh(ex))
                    and not self.has_received
                ):  # an older server is in the place of this one
                    call = ex.submit(
                        self.endpoint(state), call.method, plain, may_resend=call.may_resend
                    )
                    continue
                elif num_replays < MAX_REPLAYS and (found := server_lag(self, state, error)):
                    num_replays += 1
                    failed = yield from recover(self, ex, (state,), {0: found})
                    if failed:
                        raise failed[0]
                elif may_look and (
                    yield from self.has_moved(ex, state, call, last := ex.last_deadline())
                ):
                    may_look, deadline = False, last
                else:
                    if isinstance(error, errors.Late):  # an earlier sending may still arrive
                        state.in_doubt |= call.num_sends > 1
                    if isinstance(error, errors.Exists) and call.num_sends > 1:
                        error.detail["num_sends"] = call.num_sends
                        error.args = (f"{error}. It may be this call's own: it was sent twice",)
                    raise (yield from self.interpret(ex, state, error))
                call = ex.repeat(call, self.endpoint(state), deadline)
        finally:
            ex.abandon(call)

    def accept(
        self, state: StreamState, result: Any, first_seq: int, num_steps: int, x: Array
    ) -> Array:
        """Take the result of steps: the stream's numbers, and the outputs, which are returned."""
        last_seq, durable_seq, y = result
        outputs = state.model.outputs(y)
        if outputs.size != num_steps * state.model.output_size:
            raise errors.NotSupported(
                f"{counted(outputs.size, 'output')} came for {counted(num_steps, 'step')} of model "
                f"{state.model.name!r}; "
                f"expected were {num_steps * state.model.output_size}"
            )
        state.durable_seq = durable_seq
        if first_seq > state.last_seq + 1:  # steps between were made, and answered to somebody else
            state.unread_seq = first_seq - 1
        if state.replay_log is not None:
            state.replay_log.append(first_seq, num_steps, x, state.last_seq)
            state.replay_log.drop_durable(durable_seq)
        # An explicit seq may ask for an old step once more.
        state.last_seq = max(state.last_seq, last_seq)
        state.in_doubt = False
        return outputs

    # ---- durability ----------------------------------------------------------------------------

    def _wait_for_one(self, ex: Exchange, state: StreamState, num_steps: int) -> Operation[None]:
        """Wait until the replay log of one stream can take so many more steps."""
        for error in (yield from wait_for_capacity(self, ex, (state,), num_steps)).values():
            raise error

    def sync(self, ex: Exchange, state: StreamState) -> Operation[int]:
        """Have a stream's last step written to disk; return the last one that is."""
        claim = Claim((state,))
        yield claim
        self.next_seq(state, None, 1)
        return (yield from self.make_durable(ex, state, claim.deadline))

    def make_durable(
        self, ex: Exchange, state: StreamState, deadline: float | None = None
    ) -> Operation[int]:
        for _ in range(MAX_REPLAYS):
            call = self.call(ex, state, "sync", [state.id], deadline=deadline)
            deadline = None
            state.note_durable((yield from self.settle(ex, state, call)))
            if state.durable_seq >= state.last_seq:
                break
            instance = state.instance
            yield from self.open_claimed(ex, (state,))
            if state.durable_seq >= state.last_seq or state.instance == instance:
                break  # the disk cannot be written
        return state.durable_seq

    # ---- the life of a stream -----------------------------------------------------------------

    def reset(self, ex: Exchange, state: StreamState) -> Operation[None]:
        """Set a stream's state back to that of a new one; takes a number, like a step."""
        claim = Claim((state,))
        yield claim
        self.next_seq(state, None, 1)
        if state.replay_log is not None and state.replay_log.is_full(1):
            yield from self._wait_for_one(ex, state, 1)
        received = self.received(state)
        seq, last_seq, durable_seq = yield from self.numbered_call(
            ex, state, "reset", [received] if received else [], claim
        )
        if state.replay_log is not None:
            state.replay_log.append(seq, 1, None, state.last_seq)
        state.last_seq = last_seq
        state.note_durable(durable_seq)
        state.in_doubt = False

    def numbered_call(
        self, ex: Exchange, state: StreamState, method: str, rest: list[Any], claim: Claim
    ) -> Operation[tuple[int, int, int]]:
        """Request a change that takes a number and is no step.

        Returns its number, the last one, and the last one on disk.
        """
        deadline = claim.deadline
        while True:
            seq = self.next_seq(state, None, 1)
            claim.before = (state.last_seq,)
            params = [state.id, seq, *rest]
            call = self.call(ex, state, method, params, may_resend=seq > 0, deadline=deadline)
            try:
                last_seq, durable_seq = yield from self.settle(ex, state, call)
            except errors.Gap:
                if state.last_seq + 1 == seq:
                    raise
                deadline = None  # the number before was given back: `forget_refused`
            else:
                return seq, last_seq, durable_seq

    def close(self, ex: Exchange, state: StreamState) -> Operation[bool]:
        """Close a stream: the server forgets its state. True if there was one."""
        claim = Claim((state,))
        yield claim
        call = self.call(ex, state, "close", [state.id], deadline=claim.deadline)
        existed = yield from self.settle(ex, state, call)
        state.is_open = False
        state.unfinished = None
        self.streams.pop(state.id, None)
        return bool(existed)

    def resync(self, ex: Exchange, state: StreamState) -> Operation[int]:
        """Set the last step applied to what the server says."""
        yield Claim((state,))
        self.next_seq(state, None, 1)
        yield from self._open_again(ex, state)
        state.unfinished = None
        return state.last_seq

    def _open_again(self, ex: Exchange, state: StreamState) -> Operation[None]:
        yield from self.open_claimed(ex, (state,))
        if state.lost:
            raise errors.StateLost(state.id, state.last_seq, state.lost)

    def open_claimed(self, ex: Exchange, states: Sequence[StreamState]) -> Operation[None]:
        """Open streams again; what the server lacks of them is replayed."""
        failed = yield from open_states(self, ex, states, range(len(states)))
        for i, error in failed.items():
            raise (yield from self.interpret(ex, states[i], error))

    def call(
        self,
        ex: Exchange,
        state: StreamState,
        method: str,
        params: list[Any],
        *,
        may_resend: bool = True,
        deadline: float | None = None,
    ) -> Call:
        parts = packed_request(method, params)
        self.check_size(method, parts)
        return ex.submit(
            self.endpoint(state), method, parts, may_resend=may_resend, deadline=deadline
        )


def _error_of_all_steps(
    error: errors.StreamRNNClientError, outputs: Array, num_done: int
) -> errors.StreamRNNClientError:
    """Make a chunk's error one of the whole call: its outputs, the step's position."""
    step = error.detail.get("step")
    if isinstance(error, errors.BadValue) and isinstance(step, int):
        detail = {**error.detail, "step": step + num_done}
        error = errors.BadValue(error_message(ErrorCode.BAD_VALUE, detail), detail)
    if num_done:
        verb = "was" if num_done == 1 else "were"
        done = f"{num_done} of the {counted(len(outputs), 'step')} {verb} applied"
        progress = f"{done}: go on with X[{num_done}:]"
        error.args = (f"{error} ({progress})", *error.args[1:])
    error.completed = outputs[:num_done]
    return error
