"""The head in training: a dense layer, whose output layers may read at the next step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streamrnn.gradients.node import Node, Part
from streamrnn.gradients.scratch import Array, State
from streamrnn.training.network.losses import Outputs, activate, gradient_before

__all__ = ["Head"]


class Head(Node):
    """``z = W x + b`` and, where layers read it, ``h = f(z)``.

    What it gets back is the loss's gradient by z; ``grad_h`` is that by h of those who read it.

    ``is_read`` tells whether layers read it at the next step: h is its state then.
    """

    def __init__(
        self,
        activation: str,
        is_read: bool,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
    ) -> None:
        from streamrnn.gradients.dense import Dense  # loads Numba

        names = ("head.weight", "head.bias")
        self.dense = Dense(*(each[name] for each in (parameters, gradients) for name in names))
        super().__init__(self.dense.num_x, self.dense.output_size, self.dense.dtype)
        self.activation, self.is_read = activation, is_read
        in_row = 2 * is_read * self.output_size
        self.bytes_a_step = self.dense.bytes_a_step + in_row * self.dtype.itemsize

    def initial_state(self, num_rows: int) -> State:
        """Return zeros [B, O], what is read at a stream's first step; nothing if none reads."""
        return (np.zeros((num_rows, self.output_size), self.dtype),) * self.is_read

    def read_parameters(self) -> None:
        """Take the parameters as they are now, for all chunks until the next call."""
        self.dense.read_parameters()

    def begin(self, num_steps: int, num_rows: int, state: State) -> None:
        """Make ready for a chunk that starts from what was read last."""
        self.shape = (num_steps, num_rows)
        self.dense.begin(num_steps, num_rows)
        self.z = self.dense.z
        if self.is_read:
            all_h = self.scratch.get("h", num_steps + 1, num_rows, self.output_size)
            all_h[0] = state[0]
            self.h_before, self.h = all_h[:-1], all_h[1:]

    def take(self, parts: Sequence[Part]) -> None:
        """Fill columns of x; what is all of it is kept by reference."""
        self.dense.take(parts)
        self.x = self.dense.x

    def run(self, first_step: int, end_step: int, keeps: bool = True) -> None:
        """Set z of some steps, and h if it is read."""
        if not (keeps or self.is_read):
            return
        self.dense.run(first_step, end_step)
        if self.is_read:
            steps = slice(first_step, end_step)
            self.h[steps] = activate(self.z[steps], self.activation)

    def end(self) -> State:
        """Return h of the last step, if it is read."""
        return (self.h[-1].copy(),) if self.is_read else ()

    @property
    def outputs(self) -> Outputs:
        """Return what a loss reads, and sets for `begin_back` to be called with `grad_z`."""
        return Outputs(*self.dense.rows(), self.output_size)

    @property
    def grad_z(self) -> Array:
        """Return the gradient by z, [T, B, O]."""
        return self.dense.grad_z

    def begin_back(self, grad: Array | None, grad_after: State | None = None) -> None:
        """Take the gradient by z, and by h of the last step if it is read."""
        self.dense.begin_back(grad)
        if self.is_read:
            self.grad_h = self.scratch.zeros("grad_h", *self.shape, self.output_size)
            if grad_after:
                self.grad_h[-1] = grad_after[0]

    def run_back(self, first_step: int, end_step: int) -> None:
        """Add to the gradient by z what comes from those who read h."""
        if self.is_read:
            steps = slice(first_step, end_step)
            by_z = gradient_before(self.h[steps], self.activation, self.grad_h[steps])
            self.dense.grad_z[steps] += by_z

    def grad_x(self, first_step: int, end_step: int) -> Array:
        """Return the gradient by x, [T, B, I], of which some steps are set."""
        return self.dense.grad_x(first_step, end_step)

    def grad_before(self) -> State:
        """Return zeros: what is read of before step 0 is others' to tell."""
        return self.initial_state(self.shape[1])

    def end_back(self, is_first: bool) -> None:
        """Sum up over time what the gradients are made of."""
        self.dense.end_back(is_first)

    def set_gradients(self) -> None:
        """Set the gradients of the parameters to what was summed up."""
        self.dense.set_gradients()
