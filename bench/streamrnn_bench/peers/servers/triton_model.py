"""The model that Triton's Python backend runs: what a request says of its sequence, and a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamrnn_bench.peers.servers.engines import ENGINES

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """States of sequences by their number, which is that of the stream and one."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the weights."""
        import triton_python_backend_utils as triton

        self._triton = triton
        given = json.loads(args["model_config"])["parameters"]
        of = {name: value["string_value"] for name, value in given.items()}
        self._engine = ENGINES[of["engine"]](of["weights"], int(of["max_streams"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Advance each request's sequence: all are different."""
        triton = self._triton
        streams, inputs = [], []
        for request in requests:
            number = triton.get_input_tensor_by_name(request, "CORRID").as_numpy()
            streams.append(int(number.reshape(-1)[0]) - 1)
            inputs.append(triton.get_input_tensor_by_name(request, "x").as_numpy().tobytes())
        if len(streams) == 1:
            outputs = [self._engine.step(streams[0], inputs[0])]
        else:
            outputs = self._engine.steps(streams, inputs)
        return [
            triton.InferenceResponse([triton.Tensor("y", np.frombuffer(y, np.float32)[None])])
            for y in outputs
        ]
