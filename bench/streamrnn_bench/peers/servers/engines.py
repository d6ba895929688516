"""One LSTM layer stepped by PyTorch or onnxruntime, in the fastest form for a server.

Weights are PyTorch's arrays (``weight_ih`` [4H, I], ``weight_hh`` [4H, H], ``bias_ih``, ``bias_hh``
[4H], gates i, f, g, o) in an npz file; its ``x`` is the load's. One thread: the other core is the
client's, and more threads of layers this small wait for each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["ENGINES", "Engine"]


class Engine(ABC):
    """States of N streams. Inputs and outputs are bytes of float32."""

    def __init__(self, path: str, num_streams: int) -> None:
        with np.load(path) as file:
            self.weights = {name: file[name] for name in file.files if name != "x"}
        self.num_inputs = self.weights["weight_ih"].shape[1]
        self.hidden_size = self.weights["weight_hh"].shape[1]
        self.num_streams = num_streams

    @abstractmethod
    def step(self, stream: int, x: bytes) -> bytes:
        """Advance one stream."""

    @abstractmethod
    def steps(self, streams: Sequence[int], x: Sequence[bytes]) -> list[bytes]:
        """Advance several streams, all of them different, by one step."""

    def joined(self, x: Sequence[bytes]) -> Any:
        """Return inputs as one array [B, num_inputs]."""
        return np.frombuffer(b"".join(x), np.float32).reshape(len(x), self.num_inputs)


class Torch(Engine):
    """`torch.nn.LSTMCell`; states alone stay tensors of their own, those of batches are rows."""

    def __init__(self, path: str, num_streams: int) -> None:
        import torch

        super().__init__(path, num_streams)
        self._torch = torch
        torch.set_num_threads(1)
        self._mode = torch.inference_mode(True)
        self._mode.__enter__()  # for good: it ends with the object
        self._cell = torch.nn.LSTMCell(self.num_inputs, self.hidden_size).eval()
        self._cell.load_state_dict({k: torch.from_numpy(v) for k, v in self.weights.items()})
        self._h, self._c = (torch.zeros(num_streams, self.hidden_size) for _ in range(2))
        self._states = [
            (self._h[k : k + 1].clone(), self._c[k : k + 1].clone()) for k in range(num_streams)
        ]
        self._x = np.zeros((1, self.num_inputs), np.float32)
        self._x_tensor = torch.from_numpy(self._x)

    def step(self, stream: int, x: bytes) -> bytes:
        self._x[0] = np.frombuffer(x, np.float32)
        state = self._states[stream] = self._cell(self._x_tensor, self._states[stream])
        return bytes(state[0].numpy().tobytes())

    def steps(self, streams: Sequence[int], x: Sequence[bytes]) -> list[bytes]:
        torch = self._torch
        rows = torch.tensor(streams)
        inputs = torch.from_numpy(self.joined(x).copy())
        h, c = self._cell(inputs, (self._h.index_select(0, rows), self._c.index_select(0, rows)))
        self._h.index_copy_(0, rows, h)
        self._c.index_copy_(0, rows, c)
        return [row.tobytes() for row in h.numpy()]


class Onnx(Engine):
    """onnxruntime's LSTM; a single step's inputs, outputs and states are bound once for all."""

    def __init__(self, path: str, num_streams: int) -> None:
        import onnxruntime

        super().__init__(path, num_streams)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(
            self._model(), options, providers=["CPUExecutionProvider"]
        )
        self._h, self._c = (np.zeros((num_streams, self.hidden_size), np.float32) for _ in range(2))
        sizes = {"x": self.num_inputs, **dict.fromkeys(("h", "c", "h2", "c2"), self.hidden_size)}
        self._single = {name: np.zeros((1, 1, size), np.float32) for name, size in sizes.items()}
        self._binding = self._session.io_binding()
        for name, array in self._single.items():
            bind = self._binding.bind_output if name.endswith("2") else self._binding.bind_input
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def step(self, stream: int, x: bytes) -> bytes:
        of = self._single
        of["x"][0, 0] = np.frombuffer(x, np.float32)
        of["h"][0, 0] = self._h[stream]
        of["c"][0, 0] = self._c[stream]
        self._session.run_with_iobinding(self._binding)
        self._h[stream] = of["h2"][0, 0]
        self._c[stream] = of["c2"][0, 0]
        return of["h2"].tobytes()

    def steps(self, streams: Sequence[int], x: Sequence[bytes]) -> list[bytes]:
        if len(streams) == 1:
            return [self.step(streams[0], x[0])]
        rows = np.array(streams)
        state = {"x": self.joined(x)[None], "h": self._h[rows][None], "c": self._c[rows][None]}
        h, c = self._session.run(("h2", "c2"), state)
        self._h[rows], self._c[rows] = h[0], c[0]
        return [row.tobytes() for row in h[0]]

    def _model(self) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        w = {name: self._in_onnx_order(array) for name, array in self.weights.items()}
        bias = np.concatenate((w["bias_ih"], w["bias_hh"]))
        given = {"W": w["weight_ih"], "R": w["weight_hh"], "B": bias}
        node = helper.make_node(
            "LSTM",
            ["x", "W", "R", "B", "", "h", "c"],
            ["", "h2", "c2"],
            hidden_size=self.hidden_size,
        )

        def tensors(names: str, last: int) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "B", last])
                for name in names.split()
            ]

        graph = helper.make_graph(
            [node],
            "lstm",
            [*tensors("x", self.num_inputs), *tensors("h c", self.hidden_size)],
            tensors("h2 c2", self.hidden_size),
            [numpy_helper.from_array(array[None], name) for name, array in given.items()],
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        return bytes(model.SerializeToString())

    def _in_onnx_order(self, array: Any) -> Any:
        """Turn gates i, f, g, o into i, o, f, g."""
        return array.reshape(4, self.hidden_size, -1)[[0, 3, 1, 2]].reshape(array.shape)


class Numpy(Engine):
    """A few lines of NumPy: no other package is needed, for tests."""

    def __init__(self, path: str, num_streams: int) -> None:
        super().__init__(path, num_streams)
        self._h, self._c = np.zeros((2, num_streams, self.hidden_size), np.float32)

    def step(self, stream: int, x: bytes) -> bytes:
        return self.steps([stream], [x])[0]

    def steps(self, streams: Sequence[int], x: Sequence[bytes]) -> list[bytes]:
        rows, w = np.array(streams), self.weights
        sums = self.joined(x) @ w["weight_ih"].T + w["bias_ih"]
        sums += self._h[rows] @ w["weight_hh"].T + w["bias_hh"]
        i, f, g, o = np.split(sums, 4, axis=1)
        c = _sigmoid(f) * self._c[rows] + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        self._h[rows], self._c[rows] = h, c
        return [row.tobytes() for row in h]


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


class Nothing(Engine):
    """Answers at once: what is left is the protocol and its client."""

    def __init__(self, path: str, num_streams: int) -> None:
        super().__init__(path, num_streams)
        self._y = bytes(4 * self.hidden_size)

    def step(self, stream: int, x: bytes) -> bytes:
        return self._y

    def steps(self, streams: Sequence[int], x: Sequence[bytes]) -> list[bytes]:
        return [self._y] * len(streams)


ENGINES: dict[str, Callable[[str, int], Engine]] = {
    "pytorch": Torch,
    "onnxruntime": Onnx,
    "nothing": Nothing,
    "numpy": Numpy,
}
