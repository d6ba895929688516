"""What the trainer walks over: a layer or the head, over a chunk of time and back.

Nothing here loads Numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamrnn.gradients.scratch import Array, Scratch, State

__all__ = ["Node", "Part"]

Part = tuple[slice, Array]  # columns of x, and what stands there, [T, B, ...]


class Node:
    """Forward over some steps (`begin`, `take`, `run`, `end`) and back over them.

    Alone a node is run over the whole chunk at once. Where a node reads what it or a later one gave
    at the step before, the network runs one step of one node after the other.

    Attributes
    ----------
    x : ndarray, shape (T, B, I)
        What is read; of a step, it is there before that is run.
    h, h_before : ndarray, shape (T, B, H)
        What others read: of each step, and of the one before each.
    grad_h : ndarray, shape (T, B, H)
        The loss's gradient by h: others add to it until that step is run back.
    bytes_a_step : int
        What a step of one row takes until it is run back.
    """

    bytes_a_step: int

    def __init__(self, num_x: int, output_size: int, dtype: np.dtype[Any]) -> None:
        self.num_x, self.output_size, self.dtype = num_x, output_size, dtype
        self.scratch = Scratch(dtype)
        self.shape = (0, 0)  # T, B
        self.x = self.h = self.h_before = self.grad_h = np.empty((0, 0, 0), dtype)

    def initial_state(self, num_rows: int) -> State:
        """Return zeros, [B, H] each: the state of B new streams."""
        raise NotImplementedError

    def read_parameters(self) -> None:
        """Take the parameters as they are now, for all chunks until the next call."""
        raise NotImplementedError

    def begin(self, num_steps: int, num_rows: int, state: State) -> None:
        """Make ready for a chunk that starts from a state, which is copied."""
        raise NotImplementedError

    def take(self, parts: Sequence[Part]) -> None:
        """Fill columns of x, for all steps; do not change them before the way back ends."""
        for columns, values in parts:
            self.x[..., columns] = values

    def run(self, first_step: int, end_step: int, keeps: bool = True) -> None:
        """Compute some steps, those before them being done.

        Without ``keeps`` there is no way back through them.
        """
        raise NotImplementedError

    def end(self) -> State:
        """Return the state after the last step, the caller's own."""
        raise NotImplementedError

    def begin_back(self, grad: Array | None, grad_after: State | None = None) -> None:
        """Make ready for the way back, with the loss's gradient by what the node has given.

        ``grad_after`` is that by the state after the last step; None: nothing comes from there.
        """
        raise NotImplementedError

    def run_back(self, first_step: int, end_step: int) -> None:
        """Go back through some steps, those behind them being done."""
        raise NotImplementedError

    def grad_x(self, first_step: int, end_step: int) -> Array:
        """Return the gradient by x, [T, B, I]: that of these steps, which are run back, is set."""
        raise NotImplementedError

    def grad_before(self) -> State:
        """Return the gradient by the state before step 0, all steps being run back."""
        raise NotImplementedError

    def end_back(self, is_first: bool) -> None:
        """Sum up, over all steps, what the gradients of the parameters are made of.

        It is added to that of the last chunk, unless this ``is_first``.
        """
        raise NotImplementedError

    def set_gradients(self) -> None:
        """Set the gradients of the parameters to what was summed up."""
        raise NotImplementedError
