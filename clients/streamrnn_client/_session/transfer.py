"""Operations that move, branch and restore states; durable when they return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamrnn_client import errors
from streamrnn_client._session.exchange import Exchange
from streamrnn_client._session.replay import MAX_REPLAYS, open_states, sync_shards
from streamrnn_client._session.session import Operation, Session
from streamrnn_client._session.stream_state import StreamState
from streamrnn_client._session.turns import Claim
from streamrnn_client.protocol import StreamId

__all__ = [
    "export_stream",
    "fork",
    "import_stream",
    "open_with_state",
    "rollback",
    "snapshot",
    "sync_all",
]

_NUM_TOGETHER = 256  # streams that are claimed at once, so that others need not stand still long


def export_stream(session: Session, ex: Exchange, state: StreamState) -> Operation[bytes]:
    """Return a stream's record, as of the last step that this client knows."""
    record = yield from _on_durable_state(session, ex, state, "export", [state.id])
    return bytes(record)


def fork(
    session: Session, ex: Exchange, state: StreamState, target: StreamId
) -> Operation[StreamState]:
    """Make another stream with the same state and number; return its state here."""
    branch = StreamState(target, state.model, numbered=state.numbered)
    result = yield from _on_durable_state(session, ex, state, "fork", [state.id, branch.id])
    return _register(session, branch, result)


def snapshot(session: Session, ex: Exchange, state: StreamState, name: str) -> Operation[int]:
    """Keep a stream's state under a name; return the number of its last step."""
    result = yield from _on_durable_state(session, ex, state, "snapshot", [state.id, name])
    return int(result[0])


def rollback(
    session: Session, ex: Exchange, state: StreamState, name: str | None
) -> Operation[int]:
    """Restore a snapshot's state, or the last one on disk; takes a step's number."""
    claim = Claim((state,))
    yield claim
    _, last_seq, durable_seq = yield from session.numbered_call(
        ex, state, "rollback", [name], claim
    )
    state.last_seq = max(state.last_seq, last_seq)
    state.note_durable(durable_seq)
    state.in_doubt = False
    return state.last_seq


def import_stream(
    session: Session,
    ex: Exchange,
    stream: StreamId,
    record: bytes,
    model: str | None,
    numbered: bool,
) -> Operation[StreamState]:
    """Make a stream from a record; it goes on after the record's last step."""
    state = yield from _prepare(session, ex, stream, record, model, numbered)
    params = [state.id, bytes(record), state.model.name]
    return (yield from _create(session, ex, state, "import", params))


def open_with_state(
    session: Session,
    ex: Exchange,
    stream: StreamId,
    record: bytes,
    model: str | None,
    window: int | None,
    numbered: bool,
) -> Operation[StreamState]:
    """Make a stream that begins with a record's state and with step number 1."""
    if window is not None and (type(window) is not int or window < 1):
        raise errors.BadParams(f"window is {window!r}; it must be a whole number from 1")
    state = yield from _prepare(session, ex, stream, record, model, numbered)
    params = [state.id, state.model.name, window or 0, bytes(record)]
    return (yield from _create(session, ex, state, "open", params))


def sync_all(session: Session, ex: Exchange) -> Operation[bool]:
    """Have every applied step written to disk; False if the disk cannot be written."""
    yield from session.server_info(ex)
    states = [state for state in list(session.streams.values()) if state.is_open and not state.lost]
    wanted = {id(state): state.last_seq for state in states}
    # The first shard stands for all where this client has no streams; without a disk it says so.
    if not states or not session.is_durable:
        return bool((yield from session.request(ex, "sync", [None])))
    for _ in range(MAX_REPLAYS):  # what a shard had lost is replayed, and then written too
        answer = yield from sync_shards(session, ex, states)
        if answer is None:
            yield from session.hello(ex)
        left: list[StreamState] = []
        for start in range(0, len(states), _NUM_TOGETHER):
            left += yield from _not_durable(
                session, ex, states[start : start + _NUM_TOGETHER], wanted
            )
        states = left
        if not states or answer is False:
            break
    return not states


def _not_durable(
    session: Session, ex: Exchange, states: Sequence[StreamState], wanted: dict[int, int]
) -> Operation[list[StreamState]]:
    claim = Claim(states)
    yield claim
    failed = yield from open_states(session, ex, states, range(len(states)))
    session.release(claim)
    for i, error in failed.items():
        raise session.note_failure(states[i], error)
    return [state for state in states if state.durable_seq < wanted[id(state)]]


def _on_durable_state(
    session: Session, ex: Exchange, state: StreamState, method: str, params: list[Any]
) -> Operation[Any]:
    """Request something that is done with a stream's present state.

    It is made durable before: a server that was started again meanwhile would use an older one.
    """
    claim = Claim((state,))
    yield claim
    session.next_seq(state, None, 1)
    if state.replay_log is not None and state.durable_seq < state.last_seq:
        durable_seq = yield from session.make_durable(ex, state, claim.deadline)
        if durable_seq < state.last_seq:
            raise errors.ReadOnly(
                f"the server cannot write its disk now, so {method} might act on an older "
                f"state of stream {state.id!r} than that of step {state.last_seq}; nothing was "
                "done: try again when the disk can be written",
                {"stream": state.id, "durable_seq": durable_seq},
            )
        claim.deadline = None
    call = session.call(ex, state, method, params, deadline=claim.deadline)
    return (yield from session.settle(ex, state, call))


def _prepare(
    session: Session, ex: Exchange, stream: StreamId, record: Any, model: str | None, numbered: bool
) -> Operation[StreamState]:
    if not isinstance(record, bytes | bytearray | memoryview):
        raise errors.BadParams(
            f"the record is {type(record).__name__}; give the bytes that export() returned"
        )
    yield from session.server_info(ex)
    info = yield from session.model_info(ex, model)
    return StreamState(stream, info, numbered=numbered)


def _create(
    session: Session, ex: Exchange, state: StreamState, method: str, params: list[Any]
) -> Operation[StreamState]:
    claim = Claim((state,))
    yield claim
    call = session.call(ex, state, method, params, deadline=claim.deadline)
    result = yield from session.settle(ex, state, call)
    return _register(session, state, result)


def _register(session: Session, state: StreamState, result: Sequence[int]) -> StreamState:
    session.apply_opened(state, result, session.info.instance if session.info is not None else "")
    session.streams[state.id] = state
    return state
