"""What a client keeps of a stream, to be repeated: the steps that are not on disk yet."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import NamedTuple

from streamrnn_client.inputs import Array

__all__ = ["MAX_KEPT_BYTES", "MAX_KEPT_STEPS", "Kept", "Piece"]

MAX_KEPT_STEPS = 16_384  # of one stream; a second's checkpoint interval at 16,000 steps/s
MAX_KEPT_BYTES = 16 * 2**20  # of one stream


class Piece(NamedTuple):
    """Steps `first_seq` to `last_seq`: their encoded inputs in order, or None for a reset."""

    first_seq: int
    last_seq: int
    x: bytes | None


class Kept:
    """The inputs of a stream's applied steps above `durable_seq`, in order.

    Parameters
    ----------
    row_bytes : int
        Encoded size of one step's input.
    max_steps, max_bytes : int
        The bound; whoever wants to apply a step beyond it has to wait until some are on disk.
    """

    __slots__ = ("_pieces", "_row_bytes", "max_bytes", "max_steps", "num_steps")

    def __init__(self, row_bytes: int, max_steps: int, max_bytes: int) -> None:
        self._pieces: deque[Piece] = deque()
        self._row_bytes = row_bytes
        self.num_steps = 0
        self.max_steps = max_steps
        self.max_bytes = max_bytes

    def is_full(self, num_more: int) -> bool:
        """Tell whether so many more steps would go beyond the bound; one chunk always fits."""
        num_steps = self.num_steps + num_more
        return self.num_steps > 0 and (
            num_steps > self.max_steps or num_steps * self._row_bytes > self.max_bytes
        )

    def note(self, first_seq: int, num_steps: int, x: Array | None, applied: int) -> None:
        """Keep steps that were applied, but for those up to `applied`, which came once more."""
        last_seq = first_seq + num_steps - 1
        if last_seq <= applied:
            return
        if first_seq <= applied and x is not None:
            x = x[applied + 1 - first_seq :]
            first_seq = applied + 1
        self._pieces.append(Piece(first_seq, last_seq, None if x is None else x.tobytes()))
        self.num_steps += last_seq - first_seq + 1

    def forget(self, durable_seq: int) -> None:
        """Drop what is on disk; a chunk that is there in part stays whole."""
        pieces = self._pieces
        while pieces and pieces[0].last_seq <= durable_seq:
            piece = pieces.popleft()
            self.num_steps -= piece.last_seq - piece.first_seq + 1

    def first_seq(self, default: int) -> int:
        """Return the oldest number that is kept."""
        return self._pieces[0].first_seq if self._pieces else default

    def missing(self, first_seq: int, last_seq: int) -> tuple[int, int] | None:
        """Return the first range of those numbers that is not kept; None if all are."""
        wanted = first_seq
        for piece in self._pieces:
            if wanted > last_seq:
                break
            if piece.first_seq > wanted:
                return wanted, min(last_seq, piece.first_seq - 1)
            wanted = max(wanted, piece.last_seq + 1)
        return None if wanted > last_seq else (wanted, last_seq)

    def chunk(self, first_seq: int, max_steps: int) -> Piece:
        """Return kept steps from a number on: a reset, or steps up to the next one."""
        pieces, row_bytes = self._pieces, self._row_bytes
        index = bisect_left(pieces, first_seq, key=lambda piece: piece.last_seq)
        last_seq = first_seq - 1
        parts: list[bytes] = []
        while last_seq - first_seq + 1 < max_steps and index < len(pieces):
            piece = pieces[index]
            if piece.x is None and not parts:
                return Piece(first_seq, first_seq, None)
            if piece.x is None or piece.first_seq > last_seq + 1:
                break
            start = last_seq + 1 - piece.first_seq
            stop = min(piece.last_seq, first_seq + max_steps - 1) - piece.first_seq + 1
            parts.append(piece.x[start * row_bytes : stop * row_bytes])
            last_seq = piece.first_seq + stop - 1
            index += 1
        return Piece(first_seq, last_seq, b"".join(parts))
