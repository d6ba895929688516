"""What a client does, without sockets: operations that any driver can run.

An operation is a generator. It submits requests to an `Exchange` and yields what it waits for: a
`Call`, until it is settled, or a `Claim`, until it is granted. `client` drives operations with
blocking sockets, `aio` with an event loop, the tests with a simulated network and clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from streamrnn_client import errors
from streamrnn_client._exchange import Buffer, Call, Exchange
from streamrnn_client._server import Operation, ServerView
from streamrnn_client._state import Claim, StreamState
from streamrnn_client.inputs import Array
from streamrnn_client.protocol import (
    MAX_SEQ,
    ErrorCode,
    encode_bin_header,
    encode_uint,
    error_message,
)

__all__ = ["MAX_MOVES", "Core", "Operation"]

MAX_MOVES = 4
OVERHEAD_BYTES = 1024  # what a message holds besides its streams and their x, generously


class Core(ServerView):
    """The operations on single streams; those on many are in `_batching`."""

    # ---- steps --------------------------------------------------------------------------------

    def step(self, ex: Exchange, state: StreamState, x: Any, seq: int | None) -> Operation[Array]:
        """Apply one step and return its output."""
        x = state.model.step_array(x)
        yield Claim((state,))
        try:
            first_seq = self.first_seq(state, seq, 1)
            call = self._submit(ex, state, first_seq, x)
            result = yield from self._settle(ex, state, call, first_seq, x, in_order=True)
            return self._accept(state, result, 1)
        finally:
            self.release((state,))

    def steps(self, ex: Exchange, state: StreamState, x: Any, seq: int | None) -> Operation[Array]:
        """Apply many steps, in chunks, two of them under way, and return all outputs."""
        x = state.model.steps_array(x)
        num_steps = len(x)
        outputs = np.empty((num_steps, state.model.output_size), np.float32)
        yield Claim((state,))
        in_flight: deque[tuple[Call, int, int]] = deque()
        sent = done = 0
        try:
            first_seq = self.first_seq(state, seq, num_steps)
            # Unnumbered chunks must not overtake each other, so only one is under way.
            depth = 2 if state.numbered and state.window > 1 else 1
            chunk = min(state.window // depth, self._max_chunk(state))
            while done < num_steps:
                while sent < num_steps and len(in_flight) < depth:
                    stop = min(sent + chunk, num_steps)
                    number = first_seq + sent if first_seq else 0
                    call = self._submit(ex, state, number, x[sent:stop])
                    in_flight.append((call, sent, stop))
                    sent = stop
                call, start, stop = in_flight.popleft()
                number = first_seq + start if first_seq else 0
                result = yield from self._settle(
                    ex, state, call, number, x[start:stop], in_order=start == 0
                )
                y = self._accept(state, result, stop - start)
                outputs[start:stop] = y.reshape(stop - start, -1)
                done = stop
            return outputs
        except errors.StreamRNNClientError as error:
            raise _in_whole(error, outputs, done) from error.__cause__
        finally:
            for call, _, _ in in_flight:
                ex.abandon(call)
            self.release((state,))

    def first_seq(self, state: StreamState, seq: int | None, num_steps: int) -> int:
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
            seq = int(seq)
        if not 1 <= seq <= MAX_SEQ - num_steps:
            raise errors.BadParams(f"seq is {seq}; steps are numbered from 1", {"seq": seq})
        return seq

    def _max_chunk(self, state: StreamState) -> int:
        if self.info is None:
            return state.window
        room = self.info.max_message_bytes - OVERHEAD_BYTES
        return max(1, room // (4 * max(state.model.num_inputs, state.model.output_size)))

    def _submit(self, ex: Exchange, state: StreamState, first_seq: int, x: Array) -> Call:
        parts: tuple[Buffer, ...] = (
            state.step_head,
            encode_uint(first_seq),
            encode_bin_header(x.nbytes),
            x.data,
        )
        return ex.submit(self.endpoint(state), "step", parts, may_resend=state.numbered)

    def _settle(
        self,
        ex: Exchange,
        state: StreamState,
        call: Call,
        first_seq: int,
        x: Array,
        *,
        in_order: bool,
    ) -> Operation[Any]:
        """Wait for a chunk's answer; send it again where that is right, else raise.

        With `in_order` False an earlier chunk was still under way when this one was sent. If that
        one came late, this one met a gap that exists no longer.
        """
        num_moves, may_open = 0, True
        try:
            while True:
                yield call
                error = call.error
                if error is None:
                    return call.result
                if isinstance(error, errors.Moved) and num_moves < MAX_MOVES:
                    num_moves += 1
                    self.note_moved(state, error.detail)
                elif isinstance(error, errors.Gap) and not in_order:
                    in_order = True
                elif isinstance(error, errors.UnknownStream) and state.is_pristine and may_open:
                    may_open = False
                    yield from self._open_again(ex, state)
                else:
                    raise (yield from self.judge(ex, state, error))
                call = self._submit(ex, state, first_seq, x)
        except BaseException as error:
            # Whoever stops waiting does not know whether the step was applied.
            state.in_doubt |= not isinstance(error, errors.StreamRNNClientError)
            raise
        finally:
            ex.abandon(call)

    def _accept(self, state: StreamState, result: Any, num_steps: int) -> Array:
        last_seq, durable_seq, y = result
        outputs = state.model.outputs(y)
        if outputs.size != num_steps * state.model.output_size:
            raise errors.NotSupported(
                f"{outputs.size} outputs came for {num_steps} steps of model {state.model.name!r}; "
                f"expected were {num_steps * state.model.output_size}"
            )
        # An explicit seq may ask for an old step once more.
        state.last_seq = max(state.last_seq, last_seq)
        state.durable_seq = durable_seq
        state.in_doubt = False
        return outputs

    # ---- the life of a stream -----------------------------------------------------------------

    def reset(self, ex: Exchange, state: StreamState) -> Operation[None]:
        """Set a stream's state back to that of a new one; takes a number, like a step."""
        yield Claim((state,))
        try:
            seq = self.first_seq(state, None, 1)
            result = yield from self._life_call(ex, state, "reset", [state.id, seq], seq > 0)
            state.last_seq, state.durable_seq = result
            state.in_doubt = False
        finally:
            self.release((state,))

    def close(self, ex: Exchange, state: StreamState) -> Operation[bool]:
        """Close a stream: the server forgets its state. True if there was one."""
        yield Claim((state,))
        try:
            existed = yield from self._life_call(ex, state, "close", [state.id], True)
            state.is_open = False
            self.streams.pop(state.id, None)
            return bool(existed)
        finally:
            self.release((state,))

    def resync(self, ex: Exchange, state: StreamState) -> Operation[int]:
        """Take the server's word for the last step applied."""
        yield Claim((state,))
        try:
            self.first_seq(state, None, 1)
            yield from self._open_again(ex, state)
            return state.last_seq
        finally:
            self.release((state,))

    def _open_again(self, ex: Exchange, state: StreamState) -> Operation[None]:
        params = [state.id, state.model.name, state.window]
        self.opened(state, (yield from self._life_call(ex, state, "open", params, True)))
        if state.lost:
            raise errors.StateLost(state.id, state.last_seq, state.lost)

    def opened(self, state: StreamState, result: Sequence[int]) -> None:
        """Take what `open` returned; a step that the server no longer knows of is a loss."""
        last_seq, durable_seq, window = result
        info = self.info
        if last_seq < state.last_seq:
            state.lost = f"the server knows of {last_seq} steps only"
            if info is not None and info.instance != state.instance:
                state.lost += f"; it was started again (instance {info.instance})"
            return
        state.last_seq, state.durable_seq, state.window = last_seq, durable_seq, window
        state.instance = info.instance if info is not None else ""
        state.is_open = True
        state.in_doubt = False

    def _life_call(
        self, ex: Exchange, state: StreamState, method: str, params: list[Any], may_resend: bool
    ) -> Operation[Any]:
        parts = (msgpack.packb(method), msgpack.packb(params))
        for num_moves in range(MAX_MOVES + 1):
            call = ex.submit(self.endpoint(state), method, parts, may_resend=may_resend)
            try:
                yield call
            finally:
                ex.abandon(call)
            if call.error is None:
                return call.result
            if not isinstance(call.error, errors.Moved) or num_moves == MAX_MOVES:
                break
            self.note_moved(state, call.error.detail)
        assert call.error is not None
        raise (yield from self.judge(ex, state, call.error))


def _in_whole(
    error: errors.StreamRNNClientError, outputs: Array, num_done: int
) -> errors.StreamRNNClientError:
    """Let a chunk's error speak about the whole call: the outputs so far, the step's position."""
    step = error.detail.get("step")
    if isinstance(error, errors.BadValue) and isinstance(step, int):
        detail = {**error.detail, "step": step + num_done}
        error = errors.BadValue(error_message(ErrorCode.BAD_VALUE, detail), detail)
    if num_done:
        words = f"{num_done} of the {len(outputs)} steps were applied: go on with X[{num_done}:]"
        error.args = (f"{error} ({words})", *error.args[1:])
    error.completed = outputs[:num_done]
    return error
