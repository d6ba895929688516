"""A node of the network in training, and the memory that it works in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLUSH_STEPS", "Array", "Node", "Scratch", "State", "flush_tiny"]

Array = NDArray[Any]
State = tuple[Array, ...]

# A gradient that fades by less than 1e-12 within so many steps never gets from what `flush_tiny`
# keeps to a subnormal number.
FLUSH_STEPS = 8


def flush_tiny(values: Array) -> None:
    """Set to 0, in place, what is on its way to subnormal numbers (below 5e-26 as float32).

    Some processors take a hundred times longer over subnormal numbers; and no weight is changed by
    gradients of that size, which the optimiser adds 1e-8 to.
    """
    values[np.abs(values) < np.finfo(values.dtype).tiny ** (2.0 / 3.0)] = 0.0


class Scratch:
    """Named buffers that grow to the largest chunk seen and are then reused."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._buffers: dict[str, Array] = {}

    def get(self, name: str, *shape: int) -> Array:
        """Return a contiguous array whose contents are left over from its last use.

        It is valid until the next call with the same name.
        """
        size = 1
        for length in shape:
            size *= length
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, self.dtype)
        return buffer[:size].reshape(shape)


class Node:
    """What the network walks over: a layer or the head, forward and backward over a chunk.

    Alone a node goes through the whole chunk at once (`forward`, `backward`). Where a node reads
    what it or a later one gave at the step before, the network calls the parts of these for one
    step of one node after the other.

    ``h`` [T, B, H] is what others read; ``h_before`` the same of the step before each. ``grad_h``
    is the loss's gradient by h: others add to it until `step_back` of that step.
    """

    def __init__(self, weight: Array, output_size: int) -> None:
        self.weight = weight  # [rows, I], by which x is multiplied
        self.output_size = output_size
        self.scratch = Scratch(weight.dtype)
        self.x = self.h = self.h_before = self.grad_h = np.empty((0, 0, 0), weight.dtype)

    def initial_state(self, num_rows: int) -> State:
        """Return zeros, [B, H] each: the state of B new streams."""
        raise NotImplementedError

    def begin(self, x: Array, state: State) -> None:
        """Make ready for a chunk x, [T, B, I], which is kept by reference until `backward`."""
        self.x = x
        all_h = self.scratch.get("h", len(x) + 1, x.shape[1], self.output_size)
        all_h[0] = state[0]
        self.h_before, self.h = all_h[:-1], all_h[1:]

    def project(self, steps: slice) -> None:
        """Multiply x of some steps."""
        raise NotImplementedError

    def step(self, t: int) -> None:
        """Compute a step whose x is multiplied."""
        raise NotImplementedError

    def end(self) -> State:
        """Return the state after the last step, the caller's own."""
        return (self.h[-1].copy(),)

    def begin_back(self, grad: Array) -> None:
        """Make ready for the way back; ``grad`` is overwritten."""
        raise NotImplementedError

    def step_back(self, t: int) -> None:
        """Go back through a step, the steps behind it being done."""
        raise NotImplementedError

    def grad_x_at(self, t: int) -> Array:
        """Return the gradient by x of a step that `step_back` has gone through, [B, I]."""
        raise NotImplementedError

    def end_back(self, need_grad_x: bool = False) -> Array | None:
        """Add to the gradients of the parameters; return that by x, [T, B, I], if wanted."""
        raise NotImplementedError

    def forward(self, x: Array, state: State) -> tuple[Array, State]:
        """Run a chunk x, [T, B, I], and keep what `backward` needs.

        x is kept by reference: do not change it before `backward`. Returns h, [T, B, H], valid
        until the next `forward`, and the state after the last step, which is the caller's own.
        """
        self.begin(x, state)
        self.project(slice(0, len(x)))
        for t in range(len(x)):
            self.step(t)
        return self.h, self.end()

    def backward(self, grad: Array, need_grad_x: bool = True) -> Array | None:
        """Go back through the last chunk and add to the gradients of the parameters.

        ``grad`` [T, B, H] is the loss's gradient by every h that `forward` returned, and is
        overwritten. Returns the gradient by x, [T, B, I], if it is wanted.
        """
        self.begin_back(grad)
        for t in range(len(grad) - 1, -1, -1):
            self.step_back(t)
        return self.end_back(need_grad_x)
