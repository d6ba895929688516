"""Streams that are stepped together many times, and the replay log of them."""

from __future__ import annotations

from collections.abc import Sequence

from streamrnn_client._session.batch_log import BatchLog
from streamrnn_client._session.per_shard import ITEM_BYTES, Groups, group_by_endpoint
from streamrnn_client._session.server_view import ServerView
from streamrnn_client._session.stream_state import StreamState, pack_ids
from streamrnn_client.inputs import Array, ModelInfo

__all__ = ["Rows"]


class Rows:
    """Streams of one model, resolved once and stepped together many times.

    Attributes
    ----------
    ids : tuple of str or int
        In the order of the rows of `X`.
    model : ModelInfo
        The model of all of them.
    """

    def __init__(self, states: Sequence[StreamState], model: ModelInfo) -> None:
        self.ids = tuple(state.id for state in states)
        self.model = model
        self._states = list(states)
        self._groups: Groups = []
        self._packed: dict[int, bytes] = {}
        self._logs: dict[int, BatchLog] = {}
        self._map_version = -1

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def last_seqs(self) -> tuple[int, ...]:
        """Number of each stream's last step."""
        return tuple(state.last_seq for state in self._states)

    def are_of(self, states: list[StreamState], model: str | None) -> bool:
        """Return whether these are its streams, in this order, and this their model."""
        return self._states == states and model in (None, self.model.name)

    def groups(self, view: ServerView) -> Groups:
        """Return the streams of each request; regrouped when one may have moved."""
        if self._map_version != view.map_version:
            item_bytes = ITEM_BYTES + 4 * max(self.model.num_inputs, self.model.output_size)
            indices = range(len(self._states))
            self._groups = group_by_endpoint(view, self._states, indices, item_bytes)
            self._packed = {id(group): b"" for _, group in self._groups}
            self._logs = {id(group): BatchLog(len(group)) for _, group in self._groups}
            self._map_version = view.map_version
        return self._groups

    def packed_ids(self, group: Sequence[int]) -> bytes:
        """Return a group's ids in MessagePack; those of `groups` are packed once."""
        packed = self._packed.get(id(group))
        if not packed:
            packed = pack_ids([self._states[i] for i in group])
            if id(group) in self._packed:
                self._packed[id(group)] = packed
        return packed

    # ---- replay logs ---------------------------------------------------------------------------

    def has_capacity(self) -> bool:
        """Return whether every stream can certainly keep one more step."""
        replay_log = self._states[0].replay_log
        return replay_log is not None and all(
            log.has_capacity(replay_log.max_steps) for log in self._logs.values()
        )

    def drop_durable(self) -> None:
        """Drop each stream's durable steps, even if others keep that batch still."""
        for state in self._states:
            state.note_durable(state.durable_seq)

    def log_step(
        self,
        group: Sequence[int],
        x: Array,
        before: list[int],
        seqs: list[int],
        durable_seqs: Sequence[int],
    ) -> None:
        """Keep a step of a group, x[len(group), num_inputs], and drop what is on disk.

        `before`, `seqs`, `durable_seqs`: numbers of the steps before, of this one, of the last on
        disk.
        """
        log = self._logs.get(id(group))
        if log is None or not log.is_whole or before != log.last_seqs:
            log = self._start_log(group, seqs)
        if log is None:
            for i, row, seq, durable_seq in zip(group, x, seqs, durable_seqs, strict=True):
                state = self._states[i]
                if state.replay_log is not None:
                    state.replay_log.append(seq, 1, row, state.last_seq)
                    state.replay_log.drop_durable(durable_seq)
            return
        log.append(x.copy(), seqs)
        if durable_seqs == log.durable_seqs:
            return
        num_older = 0
        if log.num_older:
            for i, durable_seq in zip(group, durable_seqs, strict=True):
                replay_log = self._states[i].replay_log
                if replay_log is not None:
                    replay_log.drop_durable(durable_seq)
                    num_older = max(num_older, replay_log.num_older)
        log.drop_durable(durable_seqs, num_older)

    def _start_log(self, group: Sequence[int], seqs: Sequence[int]) -> BatchLog | None:
        """Give every stream of a group an open column from these numbers on, if possible."""
        log = self._logs.get(id(group))
        replay_logs = [self._states[i].replay_log for i in group]
        if log is None or None in replay_logs:
            return None
        if log.is_compacted:
            log = self._logs[id(group)] = BatchLog(len(group))
        num_older = 0
        for k, (each, seq) in enumerate(zip(replay_logs, seqs, strict=True)):
            assert each is not None
            each.join(log, k, seq)
            num_older = max(num_older, each.num_older)
        log.begin(seqs, num_older)
        return log
