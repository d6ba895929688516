"""Recurrent layers, forward over a chunk of time and backward, for a whole batch.

Backpropagation through time after Werbos, "Backpropagation through time: what it does and how to do
it", Proc. IEEE 78(10), 1990; truncated at the start of each chunk after Williams and Peng, "An
efficient gradient-based algorithm for on-line training of recurrent network trajectories", Neural
Computation 2(4), 1990: the state is carried into the next chunk, its gradient is not.

Two things make NumPy fast here. The input's product is one matrix product over the whole chunk; and
whatever of the backward pass does not depend on a later step (all the derivatives of the gates) is
computed for the whole chunk at once, so that the loop over time holds only a handful of calls.
Arrays are [T, B, ...] and C-contiguous; the type follows the parameters (float32 or float64).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import TrainingError
from streamrnn.model.spec import CELLS, LayerSpec

__all__ = [
    "Array",
    "GruLayer",
    "Layer",
    "LstmLayer",
    "RnnLayer",
    "Scratch",
    "flush_tiny",
    "make_layer",
]

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


class Layer:
    """Products over the whole chunk, which all kinds of layers share.

    ``parameters`` and ``gradients`` are views by name (``weight_ih_l{index}`` and so on): read, and
    added to, never replaced.
    """

    def __init__(
        self,
        spec: LayerSpec,
        index: int,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
    ) -> None:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.hidden_size = spec.hidden_size
        self.num_gates = len(CELLS[spec.cell].gates)
        self.num_states = len(CELLS[spec.cell].states)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = (
            parameters[f"{name}_l{index}"] for name in names
        )
        self.grad_weight_ih, self.grad_weight_hh, self.grad_bias_ih, self.grad_bias_hh = (
            gradients[f"{name}_l{index}"] for name in names
        )
        self.scratch = Scratch(self.weight_ih.dtype)
        self.x = self.h = self.h_before = np.empty((0, 0, 0), self.weight_ih.dtype)

    def initial_state(self, num_rows: int) -> State:
        """Return zeros, [B, H] each: the state of B new streams."""
        shape = (num_rows, self.hidden_size)
        return tuple(np.zeros(shape, self.weight_ih.dtype) for _ in range(self.num_states))

    def forward(self, x: Array, state: State) -> tuple[Array, State]:
        """Run a chunk x, [T, B, I], and keep what `backward` needs.

        x is kept by reference: do not change it before `backward`. Returns h, [T, B, H], valid
        until the next `forward`, and the state after the last step, which is the caller's own.
        """
        num_steps, num_rows, _ = x.shape
        self.x = x
        all_h = self.scratch.get("h", num_steps + 1, num_rows, self.hidden_size)
        all_h[0] = state[0]
        self.h_before, self.h = all_h[:-1], all_h[1:]
        return self.h, self._forward(state)

    def backward(self, grad_h: Array, need_grad_x: bool = True) -> Array | None:
        """Go back through the last chunk and add to the gradients of the parameters.

        ``grad_h`` [T, B, H] is the loss's gradient by every h that `forward` returned, and is
        overwritten. Returns the gradient by x, [T, B, I], if it is wanted.
        """
        x_side, h_side = self._backward(grad_h)
        return self._add_gradients(x_side, h_side, need_grad_x)

    def _forward(self, state: State) -> State:
        """Fill ``h`` and return the last state."""
        raise NotImplementedError

    def _backward(self, grad_h: Array) -> tuple[Array, Array]:
        """Return the gradients by both pre-activations, from x and from h, [T, B, G*H]."""
        raise NotImplementedError

    def _project(self, weight: Array, bias: Array) -> Array:
        """Return ``x @ weight.T + bias`` for the whole chunk, [T, B, G*H]."""
        num_steps, num_rows, num_features = self.x.shape
        out = self.scratch.get("gates", num_steps, num_rows, self.num_gates * self.hidden_size)
        flat = out.reshape(num_steps * num_rows, -1)
        np.matmul(self.x.reshape(num_steps * num_rows, num_features), weight.T, out=flat)
        flat += bias
        return out

    def _add_gradients(self, grad_x_side: Array, grad_h_side: Array, need: bool) -> Array | None:
        """Add up the parameters' gradients from those of the pre-activations, [T, B, G*H]."""
        num_steps, num_rows, num_features = self.x.shape
        x_side = grad_x_side.reshape(num_steps * num_rows, -1)
        h_side = grad_h_side.reshape(num_steps * num_rows, -1)
        self.grad_weight_ih += x_side.T @ self.x.reshape(-1, num_features)
        self.grad_weight_hh += h_side.T @ self.h_before.reshape(-1, self.hidden_size)
        self.grad_bias_ih += x_side.sum(axis=0)
        self.grad_bias_hh += h_side.sum(axis=0)
        if not need:
            return None
        grad_x = self.scratch.get("grad_x", num_steps, num_rows, num_features)
        np.matmul(x_side, self.weight_ih, out=grad_x.reshape(-1, num_features))
        return grad_x


class RnnLayer(Layer):
    """Elman's network (Elman 1990).

    ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``, f tanh or relu.
    """

    def __init__(
        self,
        spec: LayerSpec,
        index: int,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
    ) -> None:
        super().__init__(spec, index, parameters, gradients)
        self.is_relu = spec.cell == "rnn_relu"

    def _forward(self, state: State) -> State:
        h_before, h = self.h_before, self.h
        pre = self._project(self.weight_ih, self.bias_ih + self.bias_hh)
        weight = np.ascontiguousarray(self.weight_hh.T)
        for t in range(len(h)):
            np.matmul(h_before[t], weight, out=h[t])
            h[t] += pre[t]
            if self.is_relu:
                np.maximum(h[t], 0.0, out=h[t])
            else:
                np.tanh(h[t], out=h[t])
        return (h[-1].copy(),)

    def _backward(self, grad_h: Array) -> tuple[Array, Array]:
        slope = self.scratch.get("slope", *self.h.shape)
        if self.is_relu:
            np.greater(self.h, 0.0, out=slope, casting="unsafe")
        else:
            np.multiply(self.h, self.h, out=slope)
            np.subtract(1.0, slope, out=slope)
        recurrent = np.zeros_like(grad_h[0])
        for t in range(len(grad_h) - 1, -1, -1):
            grad_h[t] += recurrent
            grad_h[t] *= slope[t]
            np.matmul(grad_h[t], self.weight_hh, out=recurrent)
            if t % FLUSH_STEPS == 0:
                flush_tiny(recurrent)
        return grad_h, grad_h


class GruLayer(Layer):
    """GRU in PyTorch's form (Cho et al. 2014, the reset after the product).

    ``r, z = sigmoid(...)``, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))`` and
    ``h' = (1 - z) n + z h``.
    """

    def _forward(self, state: State) -> State:
        size = self.hidden_size
        num_steps, num_rows, _ = self.x.shape
        h_before, h = self.h_before, self.h
        # sigmoid(a) = 0.5 tanh(0.5 a) + 0.5; halving is exact, so it goes into the weights.
        half = np.ones((3 * size, 1), h.dtype)
        half[: 2 * size] = 0.5
        bias = self.bias_ih.copy()
        bias[: 2 * size] += self.bias_hh[: 2 * size]
        gates = self._project(self.weight_ih * half, bias * half[:, 0])
        weight = np.ascontiguousarray((self.weight_hh * half).T)
        bias_n = self.bias_hh[2 * size :]
        from_h = self.scratch.get("from_h", num_steps, num_rows, 3 * size)
        for t in range(num_steps):
            gate, product = gates[t], from_h[t]
            np.matmul(h_before[t], weight, out=product)
            sigmoids, candidate, hidden = gate[:, : 2 * size], gate[:, 2 * size :], h[t]
            sigmoids += product[:, : 2 * size]
            np.tanh(sigmoids, out=sigmoids)
            sigmoids *= 0.5
            sigmoids += 0.5
            product_n = product[:, 2 * size :]
            product_n += bias_n
            np.multiply(gate[:, :size], product_n, out=hidden)
            candidate += hidden
            np.tanh(candidate, out=candidate)
            np.subtract(h_before[t], candidate, out=hidden)
            hidden *= gate[:, size : 2 * size]
            hidden += candidate
        self.gates, self.from_h = gates, from_h
        return (h[-1].copy(),)

    def _backward(self, grad_h: Array) -> tuple[Array, Array]:
        size = self.hidden_size
        num_steps, num_rows, _ = grad_h.shape
        r, z, n = (self.gates[:, :, k * size : (k + 1) * size] for k in range(3))
        # Every pre-activation's gradient is a factor, known in advance, times that of h'.
        factor = self.scratch.get("factor", num_steps, num_rows, 3, size)
        to_n = (1.0 - z) * (1.0 - n * n)
        factor[:, :, 0] = to_n * self.from_h[:, :, 2 * size :] * r * (1.0 - r)
        factor[:, :, 1] = (self.h_before - n) * z * (1.0 - z)
        factor[:, :, 2] = to_n * r
        grad = self.scratch.get("grad", num_steps, num_rows, 3, size)
        recurrent = np.zeros_like(grad_h[0])
        for t in range(num_steps - 1, -1, -1):
            grad_h[t] += recurrent
            np.multiply(factor[t], grad_h[t][:, None, :], out=grad[t])
            np.matmul(grad[t].reshape(num_rows, -1), self.weight_hh, out=recurrent)
            recurrent += grad_h[t] * z[t]
            if t % FLUSH_STEPS == 0:
                flush_tiny(recurrent)
        x_side = self.scratch.get("x_side", num_steps, num_rows, 3, size)
        x_side[:, :, :2] = grad[:, :, :2]
        np.multiply(to_n, grad_h, out=x_side[:, :, 2])
        return x_side, grad


class LstmLayer(Layer):
    """LSTM with forget gate in PyTorch's form.

    Hochreiter and Schmidhuber 1997; Gers et al. 2000. ``c' = f c + i g``, ``h' = o tanh(c')``; the
    rows of the matrices are i, f, g, o.
    """

    def _forward(self, state: State) -> State:
        size = self.hidden_size
        num_steps, num_rows, _ = self.x.shape
        h_before, h = self.h_before, self.h
        # One tanh for all four gates: see GruLayer. g keeps the slope 1 and the offset 0.
        slope = np.full(4 * size, 0.5, h.dtype)
        slope[2 * size : 3 * size] = 1.0
        offset = 1.0 - slope
        gates = self._project(
            self.weight_ih * slope[:, None], (self.bias_ih + self.bias_hh) * slope
        )
        weight = np.ascontiguousarray((self.weight_hh * slope[:, None]).T)
        all_c = self.scratch.get("c", num_steps + 1, num_rows, size)
        all_c[0] = state[1]
        tanh_c = self.scratch.get("tanh_c", num_steps, num_rows, size)
        product = self.scratch.get("product", num_rows, 4 * size)
        for t in range(num_steps):
            gate, c, hidden = gates[t], all_c[t + 1], h[t]
            np.matmul(h_before[t], weight, out=product)
            gate += product
            np.tanh(gate, out=gate)
            gate *= slope
            gate += offset
            np.multiply(gate[:, :size], gate[:, 2 * size : 3 * size], out=hidden)
            np.multiply(gate[:, size : 2 * size], all_c[t], out=c)
            c += hidden
            np.tanh(c, out=tanh_c[t])
            np.multiply(gate[:, 3 * size :], tanh_c[t], out=hidden)
        self.gates, self.c_before, self.tanh_c = gates, all_c[:-1], tanh_c
        return h[-1].copy(), all_c[-1].copy()

    def _backward(self, grad_h: Array) -> tuple[Array, Array]:
        num_steps, num_rows, size = grad_h.shape
        gates = self.gates.reshape(num_steps, num_rows, 4, size)
        i, f, g, o = (gates[:, :, k] for k in range(4))
        # i, f, g: a factor, known in advance, times the gradient of c'; o: times that of h'.
        factor = self.scratch.get("factor", num_steps, num_rows, 4, size)
        np.subtract(1.0, gates, out=factor)
        factor[:, :, 0] *= i * g
        factor[:, :, 1] *= f * self.c_before
        factor[:, :, 2] *= (1.0 + g) * i
        factor[:, :, 3] *= o * self.tanh_c
        to_c = self.scratch.get("to_c", num_steps, num_rows, size)
        np.multiply(self.tanh_c, self.tanh_c, out=to_c)
        np.subtract(1.0, to_c, out=to_c)
        to_c *= o
        grad = self.scratch.get("grad", num_steps, num_rows, 4, size)
        recurrent, grad_c, part = (np.zeros_like(grad_h[0]) for _ in range(3))
        for t in range(num_steps - 1, -1, -1):
            grad_h[t] += recurrent
            np.multiply(grad_h[t], to_c[t], out=part)
            grad_c += part
            np.multiply(factor[t, :, :3], grad_c[:, None, :], out=grad[t, :, :3])
            np.multiply(factor[t, :, 3], grad_h[t], out=grad[t, :, 3])
            np.matmul(grad[t].reshape(num_rows, -1), self.weight_hh, out=recurrent)
            grad_c *= f[t]
            if t % FLUSH_STEPS == 0:
                flush_tiny(recurrent)
                flush_tiny(grad_c)
        return grad, grad


def make_layer(
    spec: LayerSpec, index: int, parameters: Mapping[str, Array], gradients: Mapping[str, Array]
) -> Layer:
    """Build a spec's layer; raise `TrainingError` for a form that is only served."""
    if not spec.is_plain:
        raise TrainingError(
            f"layer {index} is {spec.describe()}; such a layer can be served but not trained here, "
            f"train a plain {spec.cell}, or import it ready"
        )
    kinds: dict[str, type[Layer]] = {"gru": GruLayer, "lstm": LstmLayer}
    return kinds.get(spec.cell, RnnLayer)(spec, index, parameters, gradients)
