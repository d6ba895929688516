"""onnxruntime beside it: the original's own loop, with the state and the context in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import StartError
from streamrnn_bench.demo.vad.audio import RATE_HZ
from streamrnn_bench.demo.vad.source import CONTEXT

__all__ = ["Original"]

Floats = NDArray[np.float32]


class Original:
    """The file in onnxruntime, on one thread, for B streams in lockstep.

    Raises `StartError` where onnxruntime is not installed.
    """

    def __init__(self, path: Path, num_streams: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise StartError(
                "onnxruntime is not installed, with which the outputs are compared: "
                "pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._state = np.zeros((2, num_streams, 128), np.float32)
        self._context = np.zeros((num_streams, CONTEXT), np.float32)
        self._rate = np.array(RATE_HZ, np.int64)

    def step(self, x: Floats) -> Floats:
        """Advance by a frame each, x [B, FRAME]; return the probabilities [B, 1]."""
        given = np.concatenate([self._context, x], axis=1)
        feeds = {"input": given, "state": self._state, "sr": self._rate}
        y, self._state = self._session.run(None, feeds)
        self._context = given[:, -CONTEXT:]
        result: Floats = y
        return result
