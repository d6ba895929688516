"""The last inputs of a stream, as they came: behind the state in its row, where they are kept.

How many there have been since the state began (int64), then ``max_kept`` places: the k-th input has
place ``k % max_kept``. A swap primes another version with them.
"""

from __future__ import annotations

from typing import NamedTuple

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_i64, store_i64

__all__ = [
    "KeptInputs",
    "clear_inputs",
    "copy_inputs",
    "input_place",
    "keep_input",
    "kept_bytes",
    "num_inputs",
    "take_inputs",
]

_INPUTS = 8  # where they begin
_ROW_ALIGNMENT = 64


class KeptInputs(NamedTuple):
    """Where a stream's inputs are kept."""

    at: int  # address
    max_kept: int  # at least 1
    x_bytes: int  # of one


def kept_bytes(max_kept: int, x_bytes: int) -> int:
    """Return by how much inputs make a row longer; nothing if none are kept."""
    size = _INPUTS + max_kept * x_bytes if max_kept > 0 else 0
    return -(-size // _ROW_ALIGNMENT) * _ROW_ALIGNMENT


@jit
def clear_inputs(kept: KeptInputs) -> None:
    """Let none be kept; what another stream left there is not looked at any more."""
    store_i64(kept.at, 0)


@jit
def num_inputs(kept: KeptInputs) -> int:
    """Return how many are kept."""
    return min(load_i64(kept.at), kept.max_kept)


@jit
def input_place(kept: KeptInputs, k: int) -> int:
    """Return the address of the k-th that is kept, the oldest first."""
    first = load_i64(kept.at) - num_inputs(kept)
    return kept.at + _INPUTS + (first + k) % kept.max_kept * kept.x_bytes


@jit
def keep_input(kept: KeptInputs, x: int) -> None:
    """Keep one more, in place of the oldest if all places are taken."""
    count = load_i64(kept.at)
    copy_bytes(kept.at + _INPUTS + count % kept.max_kept * kept.x_bytes, x, kept.x_bytes)
    store_i64(kept.at, count + 1)


@jit
def take_inputs(kept: KeptInputs, inputs: int, num: int) -> None:
    """Keep these alone, which lie one behind the other, or the last of them that there is room for.

    The first lies at the first place then, and the others behind it.
    """
    num_taken = min(num, kept.max_kept)
    first = inputs + (num - num_taken) * kept.x_bytes
    copy_bytes(kept.at + _INPUTS, first, num_taken * kept.x_bytes)
    store_i64(kept.at, num_taken)


@jit
def copy_inputs(kept: KeptInputs, to: int) -> None:
    """Copy all that are kept, the oldest first."""
    num = num_inputs(kept)
    first = input_place(kept, 0)
    num_behind = (kept.at + _INPUTS + kept.max_kept * kept.x_bytes - first) // kept.x_bytes
    num_behind = min(num, num_behind)
    copy_bytes(to, first, num_behind * kept.x_bytes)
    rest = (num - num_behind) * kept.x_bytes
    copy_bytes(to + num_behind * kept.x_bytes, kept.at + _INPUTS, rest)
