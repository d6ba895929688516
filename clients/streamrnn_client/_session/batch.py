"""Operations on many streams at once: one request for each shard, not for each stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgpack
import numpy as np

from streamrnn_client import errors
from streamrnn_client._session.exchange import Buffer, Exchange
from streamrnn_client._session.per_shard import (
    Errors,
    Groups,
    Scatter,
    WireErrors,
    group_by_endpoint,
)
from streamrnn_client._session.replay import (
    MAX_REPLAYS,
    complete_gaps,
    open_states,
    recover,
    server_lag,
    wait_for_capacity,
)
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.stream_group import Rows
from streamrnn_client._session.stream_state import WAIT, StreamState, as_ids
from streamrnn_client._session.turns import Claim
from streamrnn_client.inputs import FLOAT, Array, ModelInfo
from streamrnn_client.protocol import (
    ProtocolError,
    StreamId,
    decode_batch_result,
    encode_bin_header,
)

__all__ = ["Rows", "open_rows", "open_streams", "step_many", "step_rows"]

Id = TypeVar("Id", bound=StreamId)

_BATCH = msgpack.packb("batch")
_ARRAY_OF_3, _ARRAY_OF_4, _ARRAY_OF_5, _ARRAY_OF_6 = b"\x93", b"\x94", b"\x95", b"\x96"
_COLUMNS = msgpack.packb(True)


def open_streams(
    session: Session,
    ex: Exchange,
    streams: Iterable[StreamId],
    model: str | None,
    window: int | None,
    numbered: bool,
) -> Operation[tuple[list[StreamState], ModelInfo]]:
    """Open streams, with one request a shard."""
    ids = as_ids(streams)
    info = yield from session.server_info(ex)
    model_info = yield from session.model_info(ex, model)
    states = [_state_of(session, stream, model_info, numbered) for stream in ids]
    asked = info.default_window if window is None else window
    if type(asked) is not int or not 1 <= asked < 2**31:
        raise errors.BadParams(f"window is {window!r}; it must be a whole number from 1")
    if not states:
        return states, model_info
    claim = Claim(states)
    yield claim
    for state in states:
        if not state.is_open:
            state.window = asked
    failed = yield from open_states(session, ex, states, range(len(states)))
    deadline = ex.last_deadline()
    if session.is_spread and (again := (yield from _moved(session, ex, states, failed, deadline))):
        failed = {i: error for i, error in failed.items() if i not in again}
        failed.update((yield from open_states(session, ex, states, again, deadline)))
    session.release(claim)
    for i, state in enumerate(states):
        if state.lost:
            failed[i] = errors.StateLost(state.id, state.last_seq, state.lost)
        if i not in failed:
            session.streams[state.id] = state
    if failed:
        opened = {s.id: s.last_seq for i, s in enumerate(states) if i not in failed}
        raise _combined_error(states, opened, failed)
    return states, model_info


def open_rows(
    session: Session,
    ex: Exchange,
    streams: Iterable[StreamId],
    model: str | None,
    window: int | None,
    numbered: bool,
) -> Operation[Rows]:
    """Open streams and resolve them for `step_rows`."""
    states, model_info = yield from open_streams(session, ex, streams, model, window, numbered)
    return Rows(states, model_info)


def step_many(
    session: Session,
    ex: Exchange,
    inputs: Mapping[Id, Any],
    model: str | None,
    within_s: float | None = None,
) -> Operation[dict[Id, Array]]:
    """Apply one step of each of many streams; those not seen before are opened."""
    if not isinstance(inputs, Mapping):
        raise errors.BadParams(f"inputs is {type(inputs).__name__}; give a mapping of id to x")
    ids = as_ids(inputs.keys())
    if not ids:
        return {}
    known = session.streams
    unseen = [stream for stream in ids if stream not in known]
    if unseen:
        yield from open_streams(session, ex, unseen, model, None, True)
    states = [known[stream] for stream in ids if stream in known]
    if len(states) < len(ids):
        raise errors.UnknownStream("a stream of this call was closed meanwhile by another call")
    rows = session.last_rows
    if rows is None or not rows.are_of(states, model):
        rows = session.last_rows = _rows_of(states, model)
    outputs = yield from step_rows(session, ex, rows, rows.model.row_arrays(inputs), within_s)
    return dict(zip(inputs, outputs, strict=True))


def _rows_of(states: Sequence[StreamState], model: str | None) -> Rows:
    info = states[0].model
    for state in states:
        if model not in (None, state.model.name) or state.model.name != info.name:
            raise errors.WrongModel(
                f"stream {state.id!r} belongs to model {state.model.name!r}, not to "
                f"{model or info.name!r}; all streams of one call have one model",
                {"stream": state.id, "model": model or info.name},
            )
    return Rows(states, info)


def step_rows(
    session: Session, ex: Exchange, rows: Rows, x: Any, within_s: float | None = None
) -> Operation[Array]:
    """Apply one step of each of the rows' streams."""
    states = rows._states
    late_at = session.late_at(ex, within_s)
    x = rows.model.steps_array(x, "B")
    if len(x) != len(states):
        raise errors.WrongLength(
            f"X has {len(x)} rows for {len(states)} streams; give one row a stream",
            {"num_rows": len(x), "num_streams": len(states)},
        )
    outputs = np.zeros((len(states), rows.model.output_size), rows.model.output_dtype)
    if not states:
        return outputs
    claim = Claim(states)
    yield claim
    numbered = states[0].numbered
    if any(state.numbered != numbered for state in states):
        raise errors.MixedNumbering("all streams of a batch are numbered, or none is")
    step = _BatchStep(session, rows, x, outputs, numbered, late_at)
    step.deadline = claim.deadline
    claim.before = step.last_seqs
    groups = rows.groups(session)
    unusable: Errors = {}
    if numbered and session.is_durable and not rows.has_capacity():
        rows.drop_durable()
        unusable = yield from wait_for_capacity(session, ex, states, 1)
    unusable.update(_unusable(session, states))
    if unusable:
        usable = [i for i in range(len(states)) if i not in unusable]
        groups = group_by_endpoint(session, states, usable)
    failed = yield from step.apply(session, ex, groups)
    if failed:
        failed = yield from _asked_for_items(session, ex, step, failed)
        failed = yield from _open_pristine(session, ex, step, failed)
        failed = yield from _replayed(session, ex, step, failed)
        failed = yield from _interpreted(session, ex, states, failed)
    failed.update(unusable)
    if failed:
        done = {s.id: outputs[i] for i, s in enumerate(states) if i not in failed}
        raise _combined_error(states, done, failed)
    return outputs


class _BatchStep:
    """One step of many streams: the requests, and where their results go."""

    def __init__(
        self,
        session: Session,
        rows: Rows,
        x: Array,
        outputs: Array,
        numbered: bool,
        late_at: float,
    ) -> None:
        self.rows = rows
        self.states = rows._states
        self.x = x
        self.outputs = outputs
        self.numbered = numbered
        self.look_at_features(session)
        self.deadline: float | None = None
        self.late_at = late_at
        # Fixed here, whatever is learned on the way: a step that is sent again keeps its number.
        self.last_seqs = [state.last_seq for state in self.states]
        self.seqs = [last_seq + 1 for last_seq in self.last_seqs]
        self.received = [
            state.received if state.unread_seq else state.last_seq for state in self.states
        ]

    def look_at_features(self, session: Session) -> None:
        """See what the server can be sent, as far as it said."""
        self.has_columns = session.has_columns
        self.has_received = session.has_columns and session.has_received and self.numbered

    def apply(self, session: Session, ex: Exchange, groups: Groups) -> Operation[Errors]:
        sending = Scatter(
            session, ex, self.states, "batch", self.build, self.accept, may_resend=self.numbered
        )
        sending.deadline, self.deadline = self.deadline, None
        sending.late_at = self.late_at
        return sending.run(groups)

    def build(self, indices: Sequence[int]) -> tuple[Buffer, ...]:
        seqs, x = self.seqs, self.x
        if len(indices) != len(seqs) or not isinstance(indices, range):
            x = x[indices.start : indices.stop] if isinstance(indices, range) else x[indices]
            seqs = [seqs[i] for i in indices]
        numbers = msgpack.packb(seqs if self.numbered else None)
        ids, head = self.rows.packed_ids(indices), encode_bin_header(x.nbytes)
        if not self.has_columns:
            return _BATCH, _ARRAY_OF_3, ids, numbers, head, x.data
        if self.late_at < math.inf:
            told = [self.received[i] for i in indices] if self.has_received else None
            rest = _COLUMNS, msgpack.packb(told), WAIT
            return _BATCH, _ARRAY_OF_6, ids, numbers, head, x.data, *rest
        if not self.has_received:
            return _BATCH, _ARRAY_OF_4, ids, numbers, head, x.data, _COLUMNS
        received = msgpack.packb([self.received[i] for i in indices])
        return _BATCH, _ARRAY_OF_5, ids, numbers, head, x.data, _COLUMNS, received

    def accept(self, indices: Sequence[int], result: Any) -> WireErrors:
        try:
            failed, last_seqs, durable_seqs, y = decode_batch_result(result, len(indices))
        except ProtocolError as error:
            raise errors.NotSupported(str(error)) from None
        places = [k for k in range(len(indices)) if k not in failed] if failed else ()
        if failed and not places:
            return failed
        rows = self._outputs_of(indices, y)
        if failed:
            indices, rows = [indices[k] for k in places], rows[places]
            last_seqs = [last_seqs[k] for k in places]
            durable_seqs = [durable_seqs[k] for k in places]
        self._note(indices, last_seqs, durable_seqs, rows)
        return failed

    def _outputs_of(self, indices: Sequence[int], y: bytes) -> Array:
        num_values = len(indices) * self.outputs.shape[1]
        if len(y) != num_values * FLOAT.itemsize:
            raise errors.NotSupported(
                f"{len(y)} bytes of outputs came for {len(indices)} streams of "
                f"{self.outputs.shape[1]} outputs each"
            )
        outputs = np.frombuffer(y, FLOAT).reshape(len(indices), -1)
        return self.rows.model.to_origins(outputs)

    def _note(
        self,
        indices: Sequence[int],
        last_seqs: Sequence[int],
        durable_seqs: Sequence[int],
        rows: Array,
    ) -> None:
        """Take the outputs and numbers of streams that were stepped."""
        states, x, before, seqs = self.states, self.x, self.last_seqs, self.seqs
        if isinstance(indices, range):
            part = slice(indices.start, indices.stop)
            self.outputs[part] = rows
            states, x, before, seqs = states[part], x[part], before[part], seqs[part]
        else:
            self.outputs[list(indices)] = rows
            states, x = [states[i] for i in indices], x[list(indices)]
            before, seqs = [before[i] for i in indices], [seqs[i] for i in indices]
        if self.numbered and list(last_seqs) != seqs:
            raise errors.NotSupported("the steps were answered with other numbers")
        if states[0].replay_log is not None:
            self.rows.log_step(indices, x, before, seqs, durable_seqs)
        for state, last_seq, durable_seq in zip(states, last_seqs, durable_seqs, strict=True):
            state.last_seq = last_seq
            state.durable_seq = durable_seq
            state.in_doubt = False


def _state_of(session: Session, stream: StreamId, model: ModelInfo, numbered: bool) -> StreamState:
    """Return a stream's state if the client has one, else a new one."""
    state = session.streams.get(stream)
    if state is None or state.lost:
        return StreamState(stream, model, numbered=numbered)
    if state.model.name != model.name:
        raise errors.WrongModel(
            f"stream {stream!r} belongs to model {state.model.name!r}, not to {model.name!r}; "
            "close it first, or use another id",
            {"stream": stream, "model": model.name},
        )
    if state.numbered != numbered:
        raise errors.MixedNumbering(
            f"stream {stream!r} was opened with numbered={state.numbered}; close it first",
            {"stream": stream},
        )
    return state


def _unusable(session: Session, states: Sequence[StreamState]) -> Errors:
    failed: Errors = {}
    for i, state in enumerate(states):
        if state.is_open and not state.lost and state.unfinished is None:
            continue
        try:
            session.next_seq(state, None, 1)
            session.check_unfinished(state, None)
        except errors.StreamRNNClientError as error:
            failed[i] = error
    return failed


def _asked_for_items(
    session: Session, ex: Exchange, step: _BatchStep, failed: Errors
) -> Operation[Errors]:
    """Step again, in an older form, what an older server in the place of this one has refused."""
    refused = [i for i, error in failed.items() if isinstance(error, errors.BadParams)]
    if not step.has_columns or not refused or (yield from session.refresh(ex)):
        return failed
    before = step.has_columns, step.has_received
    step.look_at_features(session)
    if before == (step.has_columns, step.has_received):
        return failed
    again = yield from step.apply(session, ex, group_by_endpoint(session, step.states, refused))
    others = {i: error for i, error in failed.items() if i not in refused}
    return {**others, **again}


def _open_pristine(
    session: Session, ex: Exchange, step: _BatchStep, failed: Errors
) -> Operation[Errors]:
    """Open again streams without steps that the server does not know, and step them."""
    states = step.states
    indices = [
        i
        for i, error in failed.items()
        if isinstance(error, errors.UnknownStream) and states[i].is_pristine and states[i].is_open
    ]
    if not indices:
        return failed
    still = yield from open_states(session, ex, states, indices)
    opened = [i for i in indices if i not in still and not states[i].lost]
    stepped = yield from step.apply(session, ex, group_by_endpoint(session, states, opened))
    others = {i: error for i, error in failed.items() if i not in indices}
    return {**others, **still, **stepped}


def _replayed(
    session: Session, ex: Exchange, step: _BatchStep, failed: Errors
) -> Operation[Errors]:
    """Replay streams that the server is behind with, and step them then."""
    states = step.states
    for _ in range(MAX_REPLAYS):
        yield from complete_gaps(session, ex, states, failed)
        found = {
            i: how for i, error in failed.items() if (how := server_lag(session, states[i], error))
        }
        failed = {i: error for i, error in failed.items() if i not in found}
        again = list(found)
        if found:
            lost = yield from recover(session, ex, states, found)
            failed.update(lost)
            again = [i for i in found if i not in lost]
        elif session.is_spread and step.numbered:
            step.deadline = ex.last_deadline()
            again = yield from _moved(session, ex, states, failed, step.deadline)
        if not again:
            break
        for i in again:
            failed.pop(i, None)
        failed.update(
            (yield from step.apply(session, ex, group_by_endpoint(session, states, again)))
        )
    return failed


def _moved(
    session: Session,
    ex: Exchange,
    states: Sequence[StreamState],
    failed: Errors,
    deadline: float,
) -> Operation[list[int]]:
    """Return streams whose silent endpoint is theirs no longer: shards became fewer."""
    silent = {
        i: error.detail.get("endpoint")
        for i, error in failed.items()
        if isinstance(error, TimeoutError | ConnectionError)
    }
    if not silent or (yield from session.refresh(ex, deadline)):
        return []
    return [i for i, at in silent.items() if session.endpoint(states[i]) != at]


def _interpreted(
    session: Session, ex: Exchange, states: Sequence[StreamState], failed: Errors
) -> Operation[Errors]:
    """Return what the errors mean; the server is asked once why streams were lost."""
    losses = {
        i: what for i, error in failed.items() if (what := session.loss_reason(states[i], error))
    }
    silence = (yield from session.refresh(ex)) if losses else ""
    return {
        i: session.mark_lost(states[i], losses[i], silence, failed[i])
        if i in losses
        else session.note_failure(states[i], error)
        for i, error in failed.items()
    }


def _combined_error(
    states: Sequence[StreamState], done: Mapping[StreamId, Any], failed: Errors
) -> errors.StreamRNNClientError:
    """Make one exception of many: the common one if nothing succeeded."""
    distinct = {id(error): error for error in failed.values()}
    if len(distinct) == 1 and (not done or len(states) == 1):
        return next(iter(distinct.values()))
    return errors.PartialFailure(done, {states[i].id: failed[i] for i in sorted(failed)})
