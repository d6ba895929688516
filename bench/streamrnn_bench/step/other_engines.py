"""Other engines for the same networks: PyTorch, onnxruntime and OpenVINO.

Each peer computes in float32, on one thread, in the fastest form that its Python interface offers:
states stay in its own memory, inputs are there already, outputs go to memory that is reused. So a
call is charged with nothing but the call and the step.
"""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model
from streamrnn.model.spec import CELLS
from streamrnn_bench.report.results import BenchError

__all__ = ["PEERS", "Peer", "missing_packages", "require_peers", "versions"]

_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino")  # onnx: onnxruntime's models are written

# Index of each gate of a peer's order in PyTorch's (LSTM i, f, g, o; GRU r, z, n).
_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
_OPENVINO_GATES = {"lstm": (1, 0, 2, 3), "gru": (1, 0, 2)}


class Peer(ABC):
    """B streams of one LSTM or GRU layer without a head, stepped by another engine.

    A call is T steps; for T = 1 it is the peer's own form of a single step.
    """

    def __init__(self, model: Model, num_streams: int, num_steps: int) -> None:
        (layer,) = model.spec.chain
        self.cell, self.hidden_size = layer.cell, layer.hidden_size
        self.num_states = len(CELLS[layer.cell].states)
        self.parameters = {name[:-3]: array for name, array in model.parameters.items()}
        self.num_streams, self.num_steps = num_streams, num_steps
        self.num_inputs = model.spec.num_inputs

    @abstractmethod
    def outputs(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Advance by x [T, B, num_inputs], kept as the input of `run`; return y [T, B, H]."""

    @abstractmethod
    def run(self, num_repeats: int) -> None:
        """Advance by many calls, each with the inputs of the last `outputs`."""

    def reordered(self, name: str, gates: Sequence[int]) -> NDArray[np.float32]:
        """Return a parameter such as ``"weight_ih"`` [G * H, ...] with reordered gates.

        ``gates`` are indices into PyTorch's order.
        """
        by_gate = self.parameters[name].reshape(len(gates), self.hidden_size, -1)
        return by_gate[list(gates)].reshape(self.parameters[name].shape)


class _PyTorch(Peer):
    """``nn.LSTMCell``, ``nn.GRUCell``; ``nn.LSTM``, ``nn.GRU`` for several steps."""

    def __init__(self, model: Model, num_streams: int, num_steps: int) -> None:
        import torch

        super().__init__(model, num_streams, num_steps)
        self._torch = torch
        torch.set_num_threads(1)
        self._is_sequence = num_steps > 1
        name = self.cell.upper() + "Cell" * (not self._is_sequence)
        self._network = getattr(torch.nn, name)(self.num_inputs, self.hidden_size).eval()
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                values = self.parameters[name.removesuffix("_l0")]
                parameter.copy_(torch.from_numpy(values.copy()))
        shape = (1,) * self._is_sequence + (num_streams, self.hidden_size)
        states = tuple(torch.zeros(shape) for _ in range(self.num_states))
        self._state: Any = states if self.num_states == 2 else states[0]

    def outputs(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = x if self._is_sequence else x[0]
        self._x = self._torch.from_numpy(x.copy())
        with self._torch.inference_mode():
            if self._is_sequence:
                y, self._state = self._network(self._x, self._state)
            else:
                self._state = self._network(self._x, self._state)
                y = self._state[0] if self.num_states == 2 else self._state
        found: NDArray[np.float32] = y.numpy().copy()
        return found.reshape(self.num_steps, self.num_streams, self.hidden_size)

    def run(self, num_repeats: int) -> None:
        network, x, state = self._network, self._x, self._state
        with self._torch.inference_mode():
            if self._is_sequence:
                for _ in range(num_repeats):
                    _, state = network(x, state)
            else:
                for _ in range(num_repeats):
                    state = network(x, state)
        self._state = state


class _OnnxRuntime(Peer):
    """Operators LSTM and GRU with everything bound; two bindings swap the states."""

    def __init__(self, model: Model, num_streams: int, num_steps: int) -> None:
        import onnxruntime

        super().__init__(model, num_streams, num_steps)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            self._model_bytes(), options, providers=["CPUExecutionProvider"]
        )

        def zeros(*shape: int) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))

        self._x = zeros(num_steps, num_streams, self.num_inputs)
        self._y = zeros(num_steps, 1, num_streams, self.hidden_size)
        shape = (1, num_streams, self.hidden_size)
        self._states = [[zeros(*shape) for _ in range(self.num_states)] for _ in range(2)]
        self._bindings = [self._bound(*self._states), self._bound(*self._states[::-1])]
        self._next = 0

    def _bound(self, before: Sequence[Any], after: Sequence[Any]) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("x", self._x)
        for k, (old, new) in enumerate(zip(before, after, strict=True)):
            binding.bind_ortvalue_input(f"before{k}", old)
            binding.bind_ortvalue_output(f"after{k}", new)
        if self.num_steps > 1:
            binding.bind_ortvalue_output("y", self._y)
        return binding

    def _model_bytes(self) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        gates = _ONNX_GATES[self.cell]
        biases = [self.reordered(name, gates) for name in ("bias_ih", "bias_hh")]
        weights = {
            "w": self.reordered("weight_ih", gates),
            "r": self.reordered("weight_hh", gates),
            "b": np.concatenate(biases),
        }
        before, after = ([f"{w}{k}" for k in range(self.num_states)] for w in ("before", "after"))
        y = ["y"] if self.num_steps > 1 else []
        options = {"linear_before_reset": 1} if self.cell == "gru" else {}
        node = helper.make_node(
            self.cell.upper(),
            ["x", *weights, "", *before],
            [*(y or [""]), *after],
            hidden_size=self.hidden_size,
            **options,
        )
        state_shape = [1, self.num_streams, self.hidden_size]
        shapes = {
            "x": [self.num_steps, self.num_streams, self.num_inputs],
            "y": [self.num_steps, *state_shape],
        }

        def described(names: Sequence[str]) -> list[Any]:
            return [
                helper.make_tensor_value_info(
                    name, TensorProto.FLOAT, shapes.get(name, state_shape)
                )
                for name in names
            ]

        graph = helper.make_graph(
            [node],
            "layer",
            described(["x", *before]),
            described([*y, *after]),
            [numpy_helper.from_array(array[None], name) for name, array in weights.items()],
        )
        # Old enough for every onnxruntime that the extra `peers` allows.
        opset = helper.make_opsetid("", 17)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        found: bytes = made.SerializeToString()
        return found

    def outputs(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self._x.update_inplace(np.ascontiguousarray(x))
        self.run(1)
        y = self._y if self.num_steps > 1 else self._states[self._next][0]
        found: NDArray[np.float32] = y.numpy().copy()
        return found.reshape(self.num_steps, self.num_streams, self.hidden_size)

    def run(self, num_repeats: int) -> None:
        call, bindings, turn = self._session.run_with_iobinding, self._bindings, self._next
        for _ in range(num_repeats):
            call(bindings[turn])
            turn = 1 - turn
        self._next = turn


@functools.cache
def _openvino_core() -> Any:
    """Return the only one of this process: it is never freed.

    Each core gives the thread another stack for signals and puts back the one before when it is
    freed. Freed in the order in which they were made, two leave one that is gone, and the next
    signal, Ctrl-C for one, ends the process (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class _OpenVino(Peer):
    """Operators LSTMCell and GRUCell; LSTMSequence and GRUSequence for several steps.

    Tensors share the memory of arrays; two requests swap the states.
    """

    def __init__(self, model: Model, num_streams: int, num_steps: int) -> None:
        import openvino

        super().__init__(model, num_streams, num_steps)
        # Sequences want [B, T, I] and [B, directions, H].
        direction = (1,) * (num_steps > 1)
        x_shape = (num_streams, *(num_steps,) * (num_steps > 1), self.num_inputs)
        state_shape = (num_streams, *direction, self.hidden_size)
        y_shape = (num_streams, *direction, num_steps, self.hidden_size)
        self._x, self._y = np.zeros(x_shape, np.float32), np.zeros(y_shape, np.float32)
        self._states = [
            [np.zeros(state_shape, np.float32) for _ in range(self.num_states)] for _ in range(2)
        ]
        compiled = _openvino_core().compile_model(
            self._network(),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": 1,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._requests = []
        for before, after in (self._states, self._states[::-1]):
            request = compiled.create_infer_request()
            for k, array in enumerate([self._x, *before]):
                request.set_input_tensor(k, openvino.Tensor(array, shared_memory=True))
            for k, array in enumerate(([self._y] if direction else []) + after):
                request.set_output_tensor(k, openvino.Tensor(array, shared_memory=True))
            self._requests.append(request)
        self._next = 0

    def _network(self) -> Any:
        import openvino
        from openvino import opset13 as ops

        gates = _OPENVINO_GATES[self.cell]
        from_x, from_h = (self.reordered(name, gates) for name in ("bias_ih", "bias_hh"))
        bias = from_x + from_h
        if self.cell == "gru":  # the candidate's two biases stay apart
            kept = 2 * self.hidden_size
            bias = np.concatenate([bias[:kept], from_x[kept:], from_h[kept:]])
        weights = [self.reordered("weight_ih", gates), self.reordered("weight_hh", gates), bias]
        arrays = [self._x, *self._states[0]]
        inputs = [ops.parameter(list(array.shape), np.float32) for array in arrays]
        options = {"linear_before_reset": True} if self.cell == "gru" else {}
        if self.num_steps == 1:
            make = {"lstm": ops.lstm_cell, "gru": ops.gru_cell}[self.cell]
            constants = [ops.constant(array) for array in weights]
            node = make(*inputs, *constants, hidden_size=self.hidden_size, **options)
        else:
            make = {"lstm": ops.lstm_sequence, "gru": ops.gru_sequence}[self.cell]
            lengths = ops.constant(np.full(self.num_streams, self.num_steps, dtype=np.int32))
            constants = [ops.constant(array[None]) for array in weights]
            node = make(
                *inputs, lengths, *constants, self.hidden_size, direction="forward", **options
            )
        return openvino.Model([ops.result(output) for output in node.outputs()], inputs, "layer")

    def outputs(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self._x[:] = x.swapaxes(0, 1).reshape(self._x.shape)
        self.run(1)
        if self.num_steps == 1:
            return self._states[self._next][0].copy()[None]
        return np.ascontiguousarray(self._y[:, 0].swapaxes(0, 1))

    def run(self, num_repeats: int) -> None:
        requests, turn = self._requests, self._next
        for _ in range(num_repeats):
            requests[turn].infer(share_outputs=True)
            turn = 1 - turn
        self._next = turn


PEERS: dict[str, Callable[[Model, int, int], Peer]] = {
    "pytorch": _PyTorch,
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
}


def missing_packages() -> list[str]:
    """Return the packages of peers that are not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def require_peers() -> None:
    """Raise a `BenchError` unless all peers are installed, the fastest one included."""
    missing = missing_packages()
    if missing:
        raise BenchError(
            f"not installed: {', '.join(missing)}; the comparison needs all of "
            f"{', '.join(_PACKAGES)}: pip install 'streamrnn[peers]'"
        )


def versions() -> str:
    """Return the installed versions of the peers: ``"torch 2.13.0+cpu, ..."``."""
    return ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
