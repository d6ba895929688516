"""Opening streams, and replaying steps to a server that is behind.

A server that was started again may know a stream as it was some steps ago, or not at all. What it
lacks is in the client's replay log and is sent again, under the same numbers; steps are
deterministic, so the outputs are those that came before, and are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from streamrnn_client import errors
from streamrnn_client._session.exchange import Buffer, Call, Exchange
from streamrnn_client._session.per_shard import (
    Errors,
    Scatter,
    WireErrors,
    group_by_endpoint,
    split_items,
)
from streamrnn_client._session.server_view import MAX_MOVES, Operation, ServerView
from streamrnn_client._session.stream_state import StreamState, pack_ids
from streamrnn_client.protocol import StreamId, encode_bin_header, encode_uint

__all__ = [
    "MAX_REPLAYS",
    "ServerLag",
    "complete_gaps",
    "open_states",
    "recover",
    "server_lag",
    "sync_shards",
    "wait_for_capacity",
]

MAX_REPLAYS = 32  # of one call: more crashes than that are no accident

_MIN_SYNC_S, _MAX_SYNC_S = 0.01, 0.5  # between two tries to have a disk written

_OPEN = msgpack.packb("open")
_RESET = msgpack.packb("reset")
_STEP_TOLD = msgpack.packb("step") + b"\x94"  # with what was received

Results = dict[int, Sequence[int]]


class ServerLag(NamedTuple):
    """The number that a server behind the client expects next, and how it said so."""

    expected: int
    what: str


def server_lag(
    view: ServerView, state: StreamState, error: errors.StreamRNNClientError
) -> ServerLag | None:
    """Return how far the server is behind, if an error says so and replay can help."""
    if state.replay_log is None or isinstance(error, errors.Expired):
        return None
    what = view.loss_reason(state, error)
    if not what:
        return None
    return ServerLag(error.detail["expected"] if isinstance(error, errors.Gap) else 1, what)


def complete_gaps(
    view: ServerView, ex: Exchange, states: Sequence[StreamState], failed: Errors
) -> Operation[None]:
    """Ask for the number that is expected where a `gap` does not tell it.

    A server under a flood of errors answers without details.
    """
    bare = [
        i
        for i, error in failed.items()
        if isinstance(error, errors.Gap) and "expected" not in error.detail
    ]
    if bare:
        results: Results = {}
        yield from _ask(view, ex, states, bare, results)
        for i, (last_seq, *_) in results.items():
            failed[i].detail["expected"] = last_seq + 1


def open_states(
    view: ServerView,
    ex: Exchange,
    states: Sequence[StreamState],
    indices: Sequence[int],
    deadline: float | None = None,
) -> Operation[Errors]:
    """Open streams; replay those that the server knows less of than this client.

    Steps that this client did not make and that are not on disk yet (its own, before it was
    started again, or another client's) are made durable first: it could not repeat them.
    """
    results: Results = {}
    instance = view.info.instance if view.info is not None else ""
    failed = yield from _ask(view, ex, states, indices, results, deadline)
    unsafe = [i for i, result in results.items() if _must_sync(view, states[i], result)]
    if unsafe:
        yield from sync_shards(view, ex, [states[i] for i in unsafe])
        failed.update((yield from _ask(view, ex, states, unsafe, results)))
    found: dict[int, ServerLag] = {}
    for i, result in results.items():
        if i not in failed and not view.apply_opened(states[i], result, instance):
            found[i] = ServerLag(result[0] + 1, f"the server knows of {result[0]} steps only")
    if found:
        failed.update((yield from recover(view, ex, states, found)))
    return failed


def recover(
    view: ServerView, ex: Exchange, states: Sequence[StreamState], found: Mapping[int, ServerLag]
) -> Operation[Errors]:
    """Replay streams that the server is behind with, until it has all their steps."""
    failed: Errors = {}
    for _ in range(MAX_REPLAYS):
        try:
            info = yield from view.hello(ex)
        except errors.StreamRNNClientError as error:
            return {**failed, **{i: view.note_failure(states[i], error) for i in found}}
        for i, (expected, what) in found.items():
            state = states[i]
            assert state.replay_log is not None
            missing = state.replay_log.missing(expected, state.last_seq)
            if expected <= state.last_seq and state.instance == info.instance:
                failed[i] = view.mark_lost(state, what, "")  # it was not a crash
            elif missing is not None:
                first, last = missing
                kept = f"this client keeps only {state.replay_log.num_steps} of the steps since"
                what = f"{what}, and steps {first} to {last} cannot be sent again: {kept}"
                failed[i] = view.mark_lost(state, what, "")
                failed[i].detail["missing"] = [first, last]
        todo = [i for i in found if i not in failed]
        if not todo:
            return failed
        results: Results = {}
        asked = yield from _ask(view, ex, states, todo, results, tells_oldest=view.has_received)
        failed.update(asked)
        replay = _Replay(view, ex, states, info.instance)
        yield from replay.run({i: results[i] for i in todo if i not in failed})
        failed.update(replay.failed)
        found = replay.found
        if not found:
            return failed
    what = f"the server lost what was sent again, {MAX_REPLAYS} times"
    return {**failed, **{i: view.mark_lost(states[i], what, "") for i in found}}


class _Replay:
    """Send the server what it lacks of many streams, one chunk of each at a time."""

    def __init__(
        self, view: ServerView, ex: Exchange, states: Sequence[StreamState], instance: str
    ) -> None:
        self.view = view
        self.ex = ex
        self.states = states
        self.instance = instance
        self.failed: Errors = {}
        self.found: dict[int, ServerLag] = {}
        self._next: dict[int, int] = {}
        self._last: dict[int, int] = {}  # of the chunk under way
        self._oldest: dict[int, int] = {}  # whose output the server has
        self._num_moves = 0

    def run(self, results: Results) -> Operation[None]:
        for i, (last_seq, _, window, *told) in results.items():
            state = self.states[i]
            assert state.replay_log is not None
            state.window, state.is_open = window, True
            # The steps that the server remembers are sent too: should another client have made
            # others of the same numbers, then that is a conflict, never a mixture.
            first = max(last_seq + 1 - window, 1)
            self._next[i] = max(state.replay_log.first_seq(last_seq + 1), first)
            self._oldest[i] = told[0] if told else first
        while todo := [i for i, seq in self._next.items() if seq <= self.states[i].last_seq]:
            calls: list[Call] = []
            try:
                calls.extend(self._submit(i) for i in todo)
                for call in calls:
                    yield call
            finally:
                for call in calls:
                    self.ex.abandon(call)
            for i, call in zip(todo, calls, strict=True):
                self._take(i, call)
        # Not before: a stream whose replay was cancelled is behind because of the crash still.
        for i in self._next:
            self.states[i].instance = self.instance

    def _submit(self, i: int) -> Call:
        state, seq = self.states[i], self._next[i]
        assert state.replay_log is not None
        num_steps = min(self.view.max_chunk(state), state.last_seq + 1 - seq)
        if seq < self._oldest[i]:  # of these there is only a digest
            num_steps = min(num_steps, self._oldest[i] - seq)
        _, self._last[i], x = state.replay_log.chunk(seq, num_steps)
        endpoint = self.view.endpoint(state)
        if x is None:
            params = [state.id, seq, seq] if self.view.has_received else [state.id, seq]
            return self.ex.submit(endpoint, "reset", (_RESET, msgpack.packb(params)))
        head = (state.step_head, encode_uint(seq), encode_bin_header(len(x)))
        if self.view.has_received:  # to tell its own number says that it was answered before
            told = (_STEP_TOLD, state.packed_id, *head[1:], x, encode_uint(seq))
            return self.ex.submit(endpoint, "step", told)
        return self.ex.submit(endpoint, "step", (*head, x))

    def _take(self, i: int, call: Call) -> None:
        state, error = self.states[i], call.error
        if error is None:
            last_seq, durable_seq = call.result[:2]
            state.note_durable(durable_seq)
            assert state.replay_log is not None
            # What was on its way since before the crash may have come there too, and to the disk.
            self._next[i] = max(last_seq + 1, state.replay_log.first_seq(state.last_seq + 1))
            return
        if isinstance(error, errors.Moved) and self._num_moves < MAX_MOVES * len(self.states):
            self._num_moves += 1
            self.view.note_moved(state, error.detail)
            return
        if isinstance(error, errors.Stale) and self._last[i] < self._oldest[i]:
            self._next[i] = self._last[i] + 1  # they are the same, and their outputs have arrived
            return
        found = server_lag(self.view, state, error)
        if isinstance(error, errors.Stale):  # it went on meanwhile; `open` tells how far
            found = ServerLag(state.last_seq + 1, str(error))
        if found is not None:
            self.found[i] = found
        else:
            self.failed[i] = self.view.note_failure(state, error)
        del self._next[i]


def sync_shards(
    view: ServerView, ex: Exchange, states: Sequence[StreamState]
) -> Operation[bool | None]:
    """Have the streams' shards write everything to disk; None if one gave no answer.

    The outcome for single streams is read by `open`, for a restarted shard answers `sync` too.
    """
    stream: StreamId | None
    calls: list[Call] = []
    answer: bool | None = True
    try:
        if len(states) == 1:
            stream, endpoints = states[0].id, [view.endpoint(states[0])]
        else:
            stream, endpoints = None, list({view.endpoint(state): None for state in states})
        parts = (msgpack.packb("sync"), msgpack.packb([stream]))
        calls.extend(ex.submit(endpoint, "sync", parts) for endpoint in endpoints)
        for call in calls:
            yield call
            if call.error is not None:
                answer = None
                view.is_stale |= isinstance(call.error, TimeoutError | ConnectionError)
            elif call.result is False and answer:
                answer = False
    finally:
        for call in calls:
            ex.abandon(call)
    return answer


def wait_for_capacity(
    view: ServerView, ex: Exchange, states: Sequence[StreamState], num_steps: int
) -> Operation[Errors]:
    """Wait until the replay logs of claimed streams can take so many more steps.

    Returns the errors of streams for which that failed.
    """
    delay_s, deadline = 0.0, None
    failed: Errors = {}
    while full := [
        i
        for i, state in enumerate(states)
        if (log := state.replay_log) is not None and log.is_full(num_steps) and i not in failed
    ]:
        if delay_s and not ex.has_time(delay_s, deadline):
            return {**failed, **{i: _read_only(states[i]) for i in full}}
        deadline = yield from _pause(view, ex, delay_s, deadline)
        delay_s = min(max(2 * delay_s, _MIN_SYNC_S), _MAX_SYNC_S)
        before = [states[i].durable_seq for i in full], view.info
        yield from sync_shards(view, ex, [states[i] for i in full])
        for i, error in (yield from open_states(view, ex, states, full)).items():
            failed[i] = yield from view.interpret(ex, states[i], error)
        if before != ([states[i].durable_seq for i in full], view.info):
            deadline = None  # it writes, or it was started again
    return failed


def _pause(
    view: ServerView, ex: Exchange, delay_s: float, deadline: float | None
) -> Operation[float]:
    """Wait, by asking `hello`, whose answer is needed anyway."""
    parts = (msgpack.packb("hello"), msgpack.packb([{"client": "streamrnn-client"}]))
    call = ex.submit(view.address, "hello", parts, delay_s=delay_s)
    try:
        yield call
    finally:
        ex.abandon(call)
    return call.deadline if deadline is None else deadline


def _read_only(state: StreamState) -> errors.ReadOnly:
    return errors.ReadOnly(
        f"the server writes nothing to its disk: durable_seq of stream {state.id!r} stands at "
        f"{state.durable_seq}, and the steps since are as many as this client may keep "
        "(max_kept_steps, max_kept_bytes); the next step was not sent: try again when the disk can "
        "be written",
        {"stream": state.id, "durable_seq": state.durable_seq},
    )


def _must_sync(view: ServerView, state: StreamState, result: Sequence[int]) -> bool:
    last_seq, durable_seq, *_ = result
    if not view.is_durable or not state.numbered or last_seq <= durable_seq:
        return False
    log = state.replay_log
    return log is None or log.missing(durable_seq + 1, last_seq) is not None


def _ask(
    view: ServerView,
    ex: Exchange,
    states: Sequence[StreamState],
    indices: Sequence[int],
    results: Results,
    deadline: float | None = None,
    *,
    tells_oldest: bool = False,
) -> Operation[Errors]:
    """Send `open`, with one request a shard for all streams that ask for the same window."""
    begin, end = (_OPEN + b"\x94", msgpack.packb(True)) if tells_oldest else (_OPEN + b"\x93", b"")
    failed: Errors = {}
    kinds: dict[tuple[str, int], list[int]] = {}
    for i in indices:
        kinds.setdefault((states[i].model.name, states[i].window), []).append(i)
    for (model, window), members in kinds.items():
        tail = msgpack.packb(model) + msgpack.packb(window) + end

        def build(group: Sequence[int], tail: bytes = tail) -> tuple[Buffer, ...]:
            return begin, pack_ids([states[i] for i in group]), tail

        def accept(group: Sequence[int], reply: Any) -> WireErrors:
            refused, opened = split_items(reply, len(group))
            results.update((i, each) for i, each in zip(group, opened, strict=True) if each)
            return refused

        opening = Scatter(view, ex, states, "open", build, accept)
        opening.deadline = deadline
        failed.update((yield from opening.run(group_by_endpoint(view, states, members))))
    return failed
