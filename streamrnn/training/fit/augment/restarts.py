"""Rows of a batch that begin anew, as a stream does that is begun in the middle of a series.

Of a long series next to all segments start from the state that the one before them ended with. A
network that hardly ever sees the zero state may be caught by it for good: after a training on a
text one stream in fifteen that was begun in the middle of it never came to tell the next character.
"""

from __future__ import annotations

import numpy as np

from streamrnn.training.fit.chunks import Piece, Segment
from streamrnn.training.network.layers import State

__all__ = ["restart_some"]

SHARE = 1 / 64  # of the rows of every chunk
_RESTARTS = 0x7E57  # tells their random numbers from others'


def restart_some(
    state: list[State], piece: Piece, segments: list[Segment], seed: int, num_updates: int
) -> None:
    """Set states of some rows to zero, drawn anew in each chunk, but of no stream's first segment.

    The numbers depend on the seed and the place in the training alone, so that one that was stopped
    goes on to the bit.
    """
    rng = np.random.default_rng((seed, _RESTARTS, num_updates, piece.start))
    drawn = rng.random(len(piece.rows)) < SHARE
    drawn &= np.array([segments[k].before >= 0 for k in piece.rows])
    if drawn.any():
        for layer in state:
            for values in layer:
                values[drawn] = 0.0
