"""One request a shard instead of one a stream, answered item by item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from streamrnn_client import errors
from streamrnn_client._session.exchange import Buffer, Call, Exchange
from streamrnn_client._session.server_view import MAX_MOVES, OVERHEAD_BYTES, Operation, ServerView
from streamrnn_client._session.stream_state import StreamState
from streamrnn_client.protocol import MAX_BATCH
from streamrnn_client.protocol.codes import kind_of
from streamrnn_client.words import counted

__all__ = [
    "ITEM_BYTES",
    "Errors",
    "Groups",
    "Scatter",
    "WireErrors",
    "group_by_endpoint",
    "split_items",
]

Errors = dict[int, errors.StreamRNNClientError]
Groups = list[tuple[str, Sequence[int]]]
Build = Callable[[Sequence[int]], tuple[Buffer, ...]]
WireErrors = dict[int, list[Any]]  # by an item's place in its request
Accept = Callable[[Sequence[int], Any], WireErrors]


ITEM_BYTES = 160  # id, number and frame of one stream in a batch, at most


class Scatter:
    """Send every stream's item to its shard; what is moved or busy is sent again.

    `build` makes the parameters of a group of items, `accept` takes their result and returns what
    errors it holds.
    """

    def __init__(
        self,
        view: ServerView,
        ex: Exchange,
        states: Sequence[StreamState],
        method: str,
        build: Build,
        accept: Accept,
        *,
        may_resend: bool = True,
    ) -> None:
        self.view = view
        self.ex = ex
        self.states = states
        self.method = method
        self.build = build
        self.accept = accept
        self.may_resend = may_resend
        self.failed: Errors = {}
        self.again: list[int] = []
        self.delay_s = 0.0
        self.deadline: float | None = None
        self.late_at = math.inf
        self.num_moves = self.num_busy = 0

    def run(self, groups: Groups) -> Operation[Errors]:
        """Settle all items of the groups; return those that failed."""
        while groups:
            yield from self._send(groups)
            groups = group_by_endpoint(self.view, self.states, self.again)
        return self.failed

    def _send(self, groups: Groups) -> Operation[None]:
        calls: list[Call] = []
        try:
            for endpoint, group in groups:
                call = self.ex.submit(
                    endpoint,
                    self.method,
                    self.build(group),
                    may_resend=self.may_resend,
                    delay_s=self.delay_s,
                    deadline=self.deadline,
                    late_at=self.late_at,
                )
                calls.append(call)
            for call in calls:
                yield call
        finally:
            for call in calls:
                self.ex.abandon(call)
        self.again = []
        self.delay_s = 0.0
        self.deadline = calls[0].deadline
        version = self.view.map_version
        for call, (_, group) in zip(calls, groups, strict=True):
            self._take(call, group)
        self.num_moves += self.view.map_version != version
        self.num_busy += self.delay_s > 0

    def _take(self, call: Call, group: Sequence[int]) -> None:
        if isinstance(call.error, errors.Moved) and self.num_moves < MAX_MOVES:
            for i in group:
                self.view.note_moved(self.states[i], call.error.detail)
            self.again += group
        elif call.error is not None:
            self.failed.update(dict.fromkeys(group, call.error))
        else:
            for k, error in self.accept(group, call.result).items():
                i = group[k]
                error_of_item = errors.from_wire(error, stream=self.states[i].id)
                if isinstance(error_of_item, errors.Late):  # an earlier sending may still arrive
                    self.states[i].in_doubt |= call.num_sends > 1
                self._take_error(i, error_of_item)

    def _take_error(self, i: int, error: errors.StreamRNNClientError) -> None:
        if isinstance(error, errors.Moved) and self.num_moves < MAX_MOVES:
            self.view.note_moved(self.states[i], error.detail)
            self.again.append(i)
            return
        if isinstance(error, errors.Busy):
            args = (error.detail, self.num_busy, self.deadline, self.late_at)
            if (wait_s := self.ex.busy_delay(*args)) is not None:
                self.delay_s = max(self.delay_s, wait_s)
                self.again.append(i)
                return
        self.failed[i] = error


def split_items(items: Any, num_items: int) -> tuple[WireErrors, list[Any]]:
    """Return the errors of items ``[error, result]``, and all results."""
    if not isinstance(items, list) or len(items) != num_items:
        raise errors.NotSupported(f"{kind_of(items)} came for {counted(num_items, 'stream')}")
    for item in items:
        if not isinstance(item, list) or len(item) != 2:
            raise errors.NotSupported(f"{kind_of(item)} came for a stream; [error, result] should")
    failed = {k: error for k, (error, _) in enumerate(items) if error is not None}
    return failed, [result for _, result in items]


def group_by_endpoint(
    view: ServerView,
    states: Sequence[StreamState],
    indices: Sequence[int],
    item_bytes: int = ITEM_BYTES,
) -> Groups:
    """Split items by shard, and by the largest request that the server takes."""
    info = view.info
    size = MAX_BATCH
    if info is not None:
        by_bytes = max(1, (info.max_message_bytes - OVERHEAD_BYTES) // item_bytes)
        size = min(by_bytes, info.max_batch)
    shards: dict[str, Sequence[int]] = {}
    if not view.is_spread and len(indices):
        shards[view.address] = indices
    else:
        lists: dict[str, list[int]] = {}
        for i in indices:
            lists.setdefault(view.endpoint(states[i]), []).append(i)
        shards.update(lists)
    return [
        (endpoint, group[start : start + size])
        for endpoint, group in shards.items()
        for start in range(0, len(group), size)
    ]
