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

import numpy as np

from streamrnn.errors import TrainingError
from streamrnn.model.layers.base import Layer as AnyLayer
from streamrnn.model.spec import CELLS, LayerSpec
from streamrnn.training.network.node import FLUSH_STEPS, Array, Node, State, flush_tiny

__all__ = ["Array", "GruLayer", "Layer", "LstmLayer", "RnnLayer", "State", "make_layer"]


class Layer(Node):
    """Products over the whole chunk, which all kinds of recurrent layers share.

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
        self.num_gates = len(CELLS[spec.cell].gates)
        self.num_states = len(CELLS[spec.cell].states)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = (
            parameters[f"{name}_l{index}"] for name in names
        )
        self.grad_weight_ih, self.grad_weight_hh, self.grad_bias_ih, self.grad_bias_hh = (
            gradients[f"{name}_l{index}"] for name in names
        )
        super().__init__(self.weight_ih, spec.hidden_size)

    def initial_state(self, num_rows: int) -> State:
        """Return zeros, [B, H] each: the state of B new streams."""
        shape = (num_rows, self.output_size)
        return tuple(np.zeros(shape, self.weight.dtype) for _ in range(self.num_states))

    def begin(self, x: Array, state: State) -> None:
        """Make ready for a chunk x, [T, B, I], which is kept by reference until `backward`."""
        super().begin(x, state)
        size = self.num_gates * self.output_size
        self.gates = self.scratch.get("gates", len(x), x.shape[1], size)
        self.x_weight, self.x_bias, h_weight = self._weights()
        self.h_weight = np.ascontiguousarray(h_weight.T)

    def project(self, steps: slice) -> None:
        """Set the gates of some steps to their sums of x and biases."""
        x, gates = self.x[steps], self.gates[steps]
        flat = gates.reshape(-1, gates.shape[2])
        np.matmul(x.reshape(len(flat), -1), self.x_weight.T, out=flat)
        flat += self.x_bias

    def grad_x_at(self, t: int) -> Array:
        """Return the gradient by x of a step that `step_back` has gone through, [B, I]."""
        grad_x: Array = self._x_side_at(t) @ self.weight_ih
        return grad_x

    def end_back(self, need_grad_x: bool = False) -> Array | None:
        """Add to the gradients of the parameters; return that by x, [T, B, I], if wanted."""
        num_steps, num_rows, num_features = self.x.shape
        x_side, h_side = (side.reshape(num_steps * num_rows, -1) for side in self._sides())
        self.grad_weight_ih += x_side.T @ self.x.reshape(-1, num_features)
        self.grad_weight_hh += h_side.T @ self.h_before.reshape(-1, self.output_size)
        self.grad_bias_ih += x_side.sum(axis=0)
        self.grad_bias_hh += h_side.sum(axis=0)
        if not need_grad_x:
            return None
        grad_x = self.scratch.get("grad_x", num_steps, num_rows, num_features)
        np.matmul(x_side, self.weight_ih, out=grad_x.reshape(-1, num_features))
        return grad_x

    def _weights(self) -> tuple[Array, Array, Array]:
        """Return the matrix and bias for x, and the matrix for h, as the steps take them."""
        raise NotImplementedError

    def _sides(self) -> tuple[Array, Array]:
        """Return the gradients by both pre-activations, from x and from h, [T, B, G*H]."""
        raise NotImplementedError

    def _x_side_at(self, t: int) -> Array:
        """Return the gradient by a step's pre-activations from x, [B, G*H]."""
        raise NotImplementedError


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

    def _weights(self) -> tuple[Array, Array, Array]:
        return self.weight_ih, self.bias_ih + self.bias_hh, self.weight_hh

    def step(self, t: int) -> None:
        """Compute a step whose x is multiplied."""
        hidden = self.h[t]
        np.matmul(self.h_before[t], self.h_weight, out=hidden)
        hidden += self.gates[t]
        if self.is_relu:
            np.maximum(hidden, 0.0, out=hidden)
        else:
            np.tanh(hidden, out=hidden)

    def begin_back(self, grad: Array) -> None:
        """Make ready for the way back; ``grad`` is overwritten."""
        self.grad_h = grad
        self.slope = self.scratch.get("slope", *self.h.shape)
        if self.is_relu:
            np.greater(self.h, 0.0, out=self.slope, casting="unsafe")
        else:
            np.multiply(self.h, self.h, out=self.slope)
            np.subtract(1.0, self.slope, out=self.slope)
        self.recurrent = np.zeros_like(grad[0])

    def step_back(self, t: int) -> None:
        """Go back through a step, the steps behind it being done."""
        grad = self.grad_h[t]
        grad += self.recurrent
        grad *= self.slope[t]
        np.matmul(grad, self.weight_hh, out=self.recurrent)
        if t % FLUSH_STEPS == 0:
            flush_tiny(self.recurrent)

    def _sides(self) -> tuple[Array, Array]:
        return self.grad_h, self.grad_h

    def _x_side_at(self, t: int) -> Array:
        return self.grad_h[t]


class GruLayer(Layer):
    """GRU in PyTorch's form (Cho et al. 2014, the reset after the product).

    ``r, z = sigmoid(...)``, ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))`` and
    ``h' = (1 - z) n + z h``.
    """

    def begin(self, x: Array, state: State) -> None:
        """Make ready for a chunk x, [T, B, I], which is kept by reference until `backward`."""
        super().begin(x, state)
        self.from_h = self.scratch.get("from_h", *self.gates.shape)

    def _weights(self) -> tuple[Array, Array, Array]:
        size = self.output_size
        # sigmoid(a) = 0.5 tanh(0.5 a) + 0.5; halving is exact, so it goes into the weights.
        half = np.ones((3 * size, 1), self.weight.dtype)
        half[: 2 * size] = 0.5
        bias = self.bias_ih.copy()
        bias[: 2 * size] += self.bias_hh[: 2 * size]
        self.bias_n = self.bias_hh[2 * size :]
        return self.weight_ih * half, bias * half[:, 0], self.weight_hh * half

    def step(self, t: int) -> None:
        """Compute a step whose x is multiplied."""
        size = self.output_size
        gate, product, hidden, before = self.gates[t], self.from_h[t], self.h[t], self.h_before[t]
        np.matmul(before, self.h_weight, out=product)
        sigmoids, candidate = gate[:, : 2 * size], gate[:, 2 * size :]
        sigmoids += product[:, : 2 * size]
        np.tanh(sigmoids, out=sigmoids)
        sigmoids *= 0.5
        sigmoids += 0.5
        product_n = product[:, 2 * size :]
        product_n += self.bias_n
        np.multiply(gate[:, :size], product_n, out=hidden)
        candidate += hidden
        np.tanh(candidate, out=candidate)
        np.subtract(before, candidate, out=hidden)
        hidden *= gate[:, size : 2 * size]
        hidden += candidate

    def begin_back(self, grad: Array) -> None:
        """Make ready for the way back; ``grad`` is overwritten."""
        self.grad_h = grad
        num_steps, num_rows, size = grad.shape
        r, z, n = (self.gates[:, :, k * size : (k + 1) * size] for k in range(3))
        # Every pre-activation's gradient is a factor, known in advance, times that of h'.
        factor = self.scratch.get("factor", num_steps, num_rows, 3, size)
        to_n = (1.0 - z) * (1.0 - n * n)
        factor[:, :, 0] = to_n * self.from_h[:, :, 2 * size :] * r * (1.0 - r)
        factor[:, :, 1] = (self.h_before - n) * z * (1.0 - z)
        factor[:, :, 2] = to_n * r
        self.z, self.to_n, self.factor = z, to_n, factor
        self.grad = self.scratch.get("grad", num_steps, num_rows, 3, size)
        self.x_side = self.scratch.get("x_side", num_steps, num_rows, 3, size)
        self.recurrent = np.zeros_like(grad[0])

    def step_back(self, t: int) -> None:
        """Go back through a step, the steps behind it being done."""
        grad_h, grad = self.grad_h[t], self.grad[t]
        grad_h += self.recurrent
        np.multiply(self.factor[t], grad_h[:, None, :], out=grad)
        np.matmul(grad.reshape(len(grad), -1), self.weight_hh, out=self.recurrent)
        self.recurrent += grad_h * self.z[t]
        if t % FLUSH_STEPS == 0:
            flush_tiny(self.recurrent)

    def _sides(self) -> tuple[Array, Array]:
        self._set_x_side(slice(None))
        return self.x_side, self.grad

    def _x_side_at(self, t: int) -> Array:
        self._set_x_side(slice(t, t + 1))
        side: Array = self.x_side[t].reshape(len(self.x_side[t]), -1)
        return side

    def _set_x_side(self, steps: slice) -> None:
        self.x_side[steps, :, :2] = self.grad[steps, :, :2]
        np.multiply(self.to_n[steps], self.grad_h[steps], out=self.x_side[steps, :, 2])


class LstmLayer(Layer):
    """LSTM with forget gate in PyTorch's form.

    Hochreiter and Schmidhuber 1997; Gers et al. 2000. ``c' = f c + i g``, ``h' = o tanh(c')``; the
    rows of the matrices are i, f, g, o.
    """

    def begin(self, x: Array, state: State) -> None:
        """Make ready for a chunk x, [T, B, I], which is kept by reference until `backward`."""
        super().begin(x, state)
        num_steps, num_rows, size = self.h.shape
        self.all_c = self.scratch.get("c", num_steps + 1, num_rows, size)
        self.all_c[0] = state[1]
        self.tanh_c = self.scratch.get("tanh_c", num_steps, num_rows, size)
        self.product = self.scratch.get("product", num_rows, 4 * size)

    def _weights(self) -> tuple[Array, Array, Array]:
        # One tanh for all four gates: see GruLayer. g keeps the slope 1 and the offset 0.
        size = self.output_size
        self.slope = slope = np.full(4 * size, 0.5, self.weight.dtype)
        slope[2 * size : 3 * size] = 1.0
        self.offset = 1.0 - slope
        bias = (self.bias_ih + self.bias_hh) * slope
        return self.weight_ih * slope[:, None], bias, self.weight_hh * slope[:, None]

    def step(self, t: int) -> None:
        """Compute a step whose x is multiplied."""
        size = self.output_size
        gate, c, hidden = self.gates[t], self.all_c[t + 1], self.h[t]
        np.matmul(self.h_before[t], self.h_weight, out=self.product)
        gate += self.product
        np.tanh(gate, out=gate)
        gate *= self.slope
        gate += self.offset
        np.multiply(gate[:, :size], gate[:, 2 * size : 3 * size], out=hidden)
        np.multiply(gate[:, size : 2 * size], self.all_c[t], out=c)
        c += hidden
        np.tanh(c, out=self.tanh_c[t])
        np.multiply(gate[:, 3 * size :], self.tanh_c[t], out=hidden)

    def end(self) -> State:
        """Return the state after the last step, the caller's own."""
        return self.h[-1].copy(), self.all_c[-1].copy()

    def begin_back(self, grad: Array) -> None:
        """Make ready for the way back; ``grad`` is overwritten."""
        self.grad_h = grad
        num_steps, num_rows, size = grad.shape
        gates = self.gates.reshape(num_steps, num_rows, 4, size)
        i, f, g, o = (gates[:, :, k] for k in range(4))
        # i, f, g: a factor, known in advance, times the gradient of c'; o: times that of h'.
        factor = self.scratch.get("factor", num_steps, num_rows, 4, size)
        np.subtract(1.0, gates, out=factor)
        factor[:, :, 0] *= i * g
        factor[:, :, 1] *= f * self.all_c[:-1]
        factor[:, :, 2] *= (1.0 + g) * i
        factor[:, :, 3] *= o * self.tanh_c
        to_c = self.scratch.get("to_c", num_steps, num_rows, size)
        np.multiply(self.tanh_c, self.tanh_c, out=to_c)
        np.subtract(1.0, to_c, out=to_c)
        to_c *= o
        self.f, self.factor, self.to_c = f, factor, to_c
        self.grad = self.scratch.get("grad", num_steps, num_rows, 4, size)
        self.recurrent, self.grad_c, self.part = (np.zeros_like(grad[0]) for _ in range(3))

    def step_back(self, t: int) -> None:
        """Go back through a step, the steps behind it being done."""
        grad_h, grad, grad_c = self.grad_h[t], self.grad[t], self.grad_c
        grad_h += self.recurrent
        np.multiply(grad_h, self.to_c[t], out=self.part)
        grad_c += self.part
        np.multiply(self.factor[t, :, :3], grad_c[:, None, :], out=grad[:, :3])
        np.multiply(self.factor[t, :, 3], grad_h, out=grad[:, 3])
        np.matmul(grad.reshape(len(grad), -1), self.weight_hh, out=self.recurrent)
        grad_c *= self.f[t]
        if t % FLUSH_STEPS == 0:
            flush_tiny(self.recurrent)
            flush_tiny(grad_c)

    def _sides(self) -> tuple[Array, Array]:
        return self.grad, self.grad

    def _x_side_at(self, t: int) -> Array:
        side: Array = self.grad[t].reshape(len(self.grad[t]), -1)
        return side


def make_layer(
    spec: AnyLayer, index: int, parameters: Mapping[str, Array], gradients: Mapping[str, Array]
) -> Layer:
    """Build a spec's layer; raise `TrainingError` for a form that is only served."""
    if not isinstance(spec, LayerSpec):
        raise TrainingError(
            f"layer {index} is {spec.describe()}; recurrent layers alone are trained here"
        )
    if not spec.is_plain:
        raise TrainingError(
            f"layer {index} is {spec.describe()}; such a layer can be served but not trained here, "
            f"train a plain {spec.cell}, or import it ready"
        )
    kinds: dict[str, type[Layer]] = {"gru": GruLayer, "lstm": LstmLayer}
    return kinds.get(spec.cell, RnnLayer)(spec, index, parameters, gradients)
