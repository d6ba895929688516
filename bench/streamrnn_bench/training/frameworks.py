"""One update by PyTorch and by jax: what `streamrnn bench train` is compared with.

Each is a recurrent layer and a head of one output, as fast as the framework makes it on one core:
forward, mean of squares, backward, clipping by the global norm, Adam.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLIP_NORM", "RATE", "Framework", "Jax", "PyTorch", "Task", "has_jax"]

RATE, CLIP_NORM = 1e-3, 1.0
Array = NDArray[Any]


class Task(NamedTuple):
    """What an update starts from; all arrays are of one float type."""

    cell: str
    parameters: Mapping[str, Array]  # by our names, in our order
    x: Array  # [T, B, I]
    target: Array  # [T, B, 1]


class Framework(Protocol):
    """One that is timed."""

    def gradient(self) -> tuple[float, Array]:
        """Return the loss and the gradient by all parameters, in our order."""

    def update(self) -> object:
        """Make one update; return the loss before it, as the framework has it."""


class PyTorch:
    """`torch.nn`, in the form that is fastest: Adam fused into one kernel."""

    def __init__(self, task: Task, rate: float = RATE) -> None:
        import torch

        self._torch = torch
        torch.set_num_threads(1)
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[task.cell]
        hidden_size, input_size = len(task.parameters["head.weight"].T), task.x.shape[2]
        dtype = torch.from_numpy(task.x).dtype
        self._layer = kind(input_size, hidden_size, dtype=dtype)
        self._head = torch.nn.Linear(hidden_size, 1, dtype=dtype)
        named = dict(self._layer.named_parameters())
        named |= {f"head.{name}": value for name, value in self._head.named_parameters()}
        with torch.no_grad():
            for name, value in named.items():
                value.copy_(torch.from_numpy(task.parameters[name].copy()))
        self._parameters = [named[name] for name in task.parameters]
        self._adam = torch.optim.Adam(self._parameters, lr=rate, fused=True)
        self.take(task.x, task.target)
        self._loss = torch.nn.MSELoss()

    def take(self, x: Array, target: Array) -> None:
        """Take another batch."""
        self._x, self._target = self._torch.from_numpy(x), self._torch.from_numpy(target)

    def _backward(self) -> Any:
        self._adam.zero_grad(set_to_none=True)
        loss = self._loss(self._head(self._layer(self._x)[0]), self._target)
        loss.backward()
        return loss

    def gradient(self) -> tuple[float, Array]:
        """Implement `Framework.gradient`."""
        loss = self._backward()
        grads = [value.grad.numpy().ravel() for value in self._parameters]
        return float(loss.detach()), np.concatenate(grads)

    def update(self) -> Any:
        """Implement `Framework.update`."""
        loss = self._backward()
        self._torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        self._adam.step()
        return loss.detach()


def has_jax() -> bool:
    """Tell whether jax and optax are installed."""
    return all(find_spec(name) is not None for name in ("jax", "optax"))


class Jax:
    """One jitted update: products with x ahead of a scan over time, optax behind it.

    Products with x are one matrix product over all steps, and the gates of a cell one product with
    h: no form of flax's cells does less. XLA takes one thread, if nothing has loaded it before.
    """

    def __init__(self, task: Task) -> None:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ.setdefault("XLA_FLAGS", flags)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import optax

        self._jax, self._names = jax, list(task.parameters)
        self._parameters = {name: jax.numpy.asarray(task.parameters[name]) for name in self._names}
        self._batch = jax.numpy.asarray(task.x), jax.numpy.asarray(task.target)
        adam = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(RATE))
        self._state = adam.init(self._parameters)
        value_and_grad = jax.value_and_grad(_make_loss(task.cell))
        self._gradient = jax.jit(value_and_grad)

        def update(parameters: Any, state: Any, x: Any, target: Any) -> Any:
            loss, gradient = value_and_grad(parameters, x, target)
            changes, state = adam.update(gradient, state, parameters)
            return loss, optax.apply_updates(parameters, changes), state

        self._update = jax.jit(update, donate_argnums=(0, 1))

    def gradient(self) -> tuple[float, Array]:
        """Implement `Framework.gradient`."""
        loss, grads = self._gradient(self._parameters, *self._batch)
        return float(loss), np.concatenate([np.asarray(grads[k]).ravel() for k in self._names])

    def update(self) -> Any:
        """Implement `Framework.update`."""
        loss, self._parameters, self._state = self._update(
            self._parameters, self._state, *self._batch
        )
        return loss.block_until_ready()


def _make_loss(cell: str) -> Any:
    """Return the mean of squares of a layer and its head, in jax."""
    from jax import lax
    from jax import numpy as jnp
    from jax.nn import sigmoid

    def step_of_lstm(carry: Any, from_x: Any, w: Any, _: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(from_x + h @ w, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def step_of_gru(carry: Any, from_x: Any, w: Any, bias: Any) -> Any:
        (h,) = carry
        r_x, z_x, n_x = jnp.split(from_x, 3, axis=-1)
        r_h, z_h, n_h = jnp.split(h @ w + bias, 3, axis=-1)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        n = jnp.tanh(n_x + r * n_h)
        h = n + z * (h - n)
        return (h,), h

    def step_of_rnn(carry: Any, from_x: Any, w: Any, _: Any) -> Any:
        (h,) = carry
        h = jnp.tanh(from_x + h @ w)
        return (h,), h

    step = {"lstm": step_of_lstm, "gru": step_of_gru, "rnn_tanh": step_of_rnn}[cell]

    def loss(parameters: Any, x: Any, target: Any) -> Any:
        bias_h = parameters["bias_hh_l0"]
        from_x = x @ parameters["weight_ih_l0"].T + parameters["bias_ih_l0"]
        if cell != "gru":
            from_x = from_x + bias_h
        w = parameters["weight_hh_l0"].T
        zeros = jnp.zeros((x.shape[1], len(w)), x.dtype)
        start = (zeros, zeros) if cell == "lstm" else (zeros,)
        _, h = lax.scan(lambda carry, now: step(carry, now, w, bias_h), start, from_x)
        y = h @ parameters["head.weight"].T + parameters["head.bias"]
        return jnp.mean((y - target) ** 2)

    return loss
