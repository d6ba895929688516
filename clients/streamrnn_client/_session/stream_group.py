"""Streams that are stepped together, many times, and what is kept of their steps."""

from __future__ import annotations

from collections.abc import Sequence

from streamrnn_client._session.batch_log import Shared
from streamrnn_client._session.per_shard import ITEM_BYTES, Groups, group_by_endpoint
from streamrnn_client._session.server_info import ServerView
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
        self._shared: dict[int, Shared] = {}
        self._map_version = -1

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def last_seqs(self) -> tuple[int, ...]:
        """Number of each stream's last step."""
        return tuple(state.last_seq for state in self._states)

    def are_of(self, states: list[StreamState], model: str | None) -> bool:
        """Tell whether these are all streams, in this order, and their model is the one named."""
        return self._states == states and model in (None, self.model.name)

    def groups(self, view: ServerView) -> Groups:
        """Return the streams of each request; worked out again when one may have moved."""
        if self._map_version != view.map_version:
            item_bytes = ITEM_BYTES + 4 * max(self.model.num_inputs, self.model.output_size)
            indices = range(len(self._states))
            self._groups = group_by_endpoint(view, self._states, indices, item_bytes)
            self._packed = {id(group): b"" for _, group in self._groups}
            self._shared = {id(group): Shared(len(group)) for _, group in self._groups}
            self._map_version = view.map_version
        return self._groups

    def packed_ids(self, group: Sequence[int]) -> bytes:
        """Return the array of a group's ids in MessagePack; those of `groups` are packed once."""
        packed = self._packed.get(id(group))
        if not packed:
            packed = pack_ids([self._states[i] for i in group])
            if id(group) in self._packed:
                self._packed[id(group)] = packed
        return packed

    # ---- what is kept --------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Tell whether it is certain that one more step of every stream may be kept."""
        kept = self._states[0].kept
        return kept is not None and all(
            shared.has_room(kept.max_steps) for shared in self._shared.values()
        )

    def forget_durable(self) -> None:
        """Have each stream drop what it need not keep, even if others keep that step still."""
        for state in self._states:
            state.note_durable(state.durable_seq)

    def keep(
        self,
        group: Sequence[int],
        x: Array,
        before: list[int],
        seqs: list[int],
        durable_seqs: Sequence[int],
    ) -> None:
        """Keep a step of a group's streams, and drop what is on disk.

        Parameters
        ----------
        group : sequence of int
            Which rows, all of which have applied the step.
        x : ndarray, shape (len(group), num_inputs)
            Their inputs.
        before, seqs, durable_seqs : sequence of int
            The numbers of the steps before, of this one, and of the last ones on disk.
        """
        shared = self._shared.get(id(group))
        if shared is None or not shared.is_whole or before != shared.last_seqs:
            shared = self._begin(group, seqs)
        if shared is None:
            for i, row, seq, durable_seq in zip(group, x, seqs, durable_seqs, strict=True):
                state = self._states[i]
                if state.kept is not None:
                    state.kept.note(seq, 1, row, state.last_seq)
                    state.kept.forget(durable_seq)
            return
        shared.append(x.copy(), seqs)
        if durable_seqs == shared.durable_seqs:
            return
        num_older = 0
        if shared.num_older:
            for i, durable_seq in zip(group, durable_seqs, strict=True):
                kept = self._states[i].kept
                if kept is not None:
                    kept.forget(durable_seq)
                    num_older = max(num_older, kept.num_older)
        shared.forget(durable_seqs, num_older)

    def _begin(self, group: Sequence[int], seqs: Sequence[int]) -> Shared | None:
        """Let every stream of a group have an open column from these numbers on; None if not."""
        shared = self._shared.get(id(group))
        kept = [self._states[i].kept for i in group]
        if shared is None or None in kept:
            return None
        if shared.is_copied_out:
            shared = self._shared[id(group)] = Shared(len(group))
        num_older = 0
        for k, (each, seq) in enumerate(zip(kept, seqs, strict=True)):
            assert each is not None
            each.join(shared, k, seq)
            num_older = max(num_older, each.num_older)
        shared.begin(seqs, num_older)
        return shared
