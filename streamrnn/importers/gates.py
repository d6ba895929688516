"""Order of the gates in every source, and the functions that reorder them.

`streamrnn.model.layers.recurrent.CELLS` has our order. docs/importing.md shows this table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.model.layers.recurrent import CELLS

__all__ = ["SOURCE_GATES", "in_our_order", "in_their_order"]

# Row blocks of a source's matrices and biases, under our names of the gates.
SOURCE_GATES: dict[str, dict[str, tuple[str, ...]]] = {
    "torch": {cell: kind.gates for cell, kind in CELLS.items()},
    "keras": {
        "rnn_tanh": ("h",),
        "rnn_relu": ("h",),
        "gru": ("z", "r", "n"),
        "lstm": ("i", "f", "g", "o"),
    },
    "onnx": {
        "rnn_tanh": ("h",),
        "rnn_relu": ("h",),
        "gru": ("z", "r", "n"),
        "lstm": ("i", "o", "f", "g"),
    },
}


def in_our_order(rows: NDArray[Any], source: str, cell: str) -> NDArray[Any]:
    """Bring blocks of rows [G*H, ...] from a source's order of gates into ours."""
    theirs, ours = SOURCE_GATES[source][cell], CELLS[cell].gates
    if theirs == ours:
        return rows
    if rows.shape[0] % len(theirs):
        raise ModelFileError(
            f"{rows.shape[0]} rows are no {len(theirs)} gates of one size, as a {cell} has"
        )
    blocks = dict(zip(theirs, np.split(rows, len(theirs)), strict=True))
    return np.concatenate([blocks[gate] for gate in ours])


def in_their_order(rows: NDArray[Any], target: str, cell: str) -> NDArray[Any]:
    """Bring blocks of rows [G*H, ...] from our order of gates into another framework's."""
    theirs, ours = SOURCE_GATES[target][cell], CELLS[cell].gates
    blocks = dict(zip(ours, np.split(rows, len(ours)), strict=True))
    return np.concatenate([blocks[gate] for gate in theirs])
