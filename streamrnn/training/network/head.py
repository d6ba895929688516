"""The head in training: a dense layer, whose output layers may read at the next step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streamrnn.training.network.losses import activate, gradient_before
from streamrnn.training.network.node import Array, Node, State

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
        super().__init__(parameters["head.weight"], len(parameters["head.weight"]))
        self.activation, self.is_read = activation, is_read
        self.bias = parameters["head.bias"]
        self.grad_weight, self.grad_bias = gradients["head.weight"], gradients["head.bias"]

    def initial_state(self, num_rows: int) -> State:
        """Return zeros [B, O], what is read at a stream's first step; nothing if none reads."""
        return (np.zeros((num_rows, self.output_size), self.weight.dtype),) * self.is_read

    def begin(self, x: Array, state: State) -> None:
        """Make ready for a chunk x, [T, B, I], which is kept by reference until `backward`."""
        self.x = x
        if self.is_read:
            super().begin(x, state)
        self.z = self.scratch.get("z", len(x), x.shape[1], self.output_size)

    def project(self, steps: slice) -> None:
        """Set z of some steps."""
        np.matmul(self.x[steps], self.weight.T, out=self.z[steps])
        self.z[steps] += self.bias

    def step(self, t: int) -> None:
        """Set h of a step."""
        if self.is_read:
            self.h[t] = activate(self.z[t], self.activation)

    def end(self) -> State:
        """Return h of the last step, if it is read."""
        return super().end() if self.is_read else ()

    def begin_back(self, grad: Array) -> None:
        """Take the gradient by z; ``grad`` is overwritten."""
        self.grad_z = grad
        if self.is_read:
            self.grad_h = self.scratch.get("grad_h", *grad.shape)
            self.grad_h[:] = 0.0

    def step_back(self, t: int) -> None:
        """Add to the gradient by z what comes from those who read h of a step."""
        if self.is_read:
            self.grad_z[t] += gradient_before(self.h[t], self.activation, self.grad_h[t])

    def grad_x_at(self, t: int) -> Array:
        """Return the gradient by x of a step that `step_back` has gone through, [B, I]."""
        grad_x: Array = self.grad_z[t] @ self.weight
        return grad_x

    def end_back(self, need_grad_x: bool = False) -> Array | None:
        """Add to the gradients of the parameters; return that by x, [T, B, I], if wanted."""
        flat = self.grad_z.reshape(-1, self.output_size)
        self.grad_weight += flat.T @ self.x.reshape(len(flat), -1)
        self.grad_bias += flat.sum(axis=0)
        if not need_grad_x:
            return None
        grad_x = self.scratch.get("grad_x", *self.x.shape)
        np.matmul(self.grad_z, self.weight, out=grad_x)
        return grad_x
