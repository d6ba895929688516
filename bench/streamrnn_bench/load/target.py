"""What a load needs to know of a server: its shards, limits and models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn_bench.load.generator import Target
from streamrnn_bench.load.senders import NUM_X, ModelLoad
from streamrnn_bench.report.results import BenchError
from streamrnn_client import Client
from streamrnn_client.errors import StreamRNNClientError
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.options import load_keys

__all__ = ["find_target", "inputs_of"]


@contextlib.contextmanager
def find_target(
    address: str,
    names: Sequence[str] = (),
    curve_key: Path | None = None,
    server_key: Path | None = None,
    timeout_s: float = 5.0,
    seed: int = 0,
) -> Iterator[tuple[Client, Target]]:
    """Ask a server what it serves; yield a client of it too.

    ``names`` are models that streams have in turn; without any, all. Raises a `BenchError` if they
    are not there, or the server refuses.
    """
    with contextlib.ExitStack() as stack:
        try:
            keys = load_keys(curve_key, server_key)
            client = stack.enter_context(
                Client(address, timeout_s=timeout_s, curve_key=curve_key, server_key=server_key)
            )
            info, served = client.hello(), client.models()
        except StreamRNNClientError as error:
            raise BenchError(str(error)) from error
        names = names or list(served)
        unknown = [name for name in names if name not in served]
        if unknown:
            raise BenchError(f"no model {unknown[0]!r} is served; there are {', '.join(served)}")
        models = [
            ModelLoad(name, inputs_of(served[name], seed), served[name].output_size)
            for name in names
        ]
        yield (
            client,
            Target(
                endpoints=info.endpoints,
                models=models,
                keys=keys,
                max_in_flight=info.max_in_flight,
                tells_received="received" in info.features,
            ),
        )


def inputs_of(model: ModelInfo, seed: int) -> NDArray[np.generic]:
    """Draw NUM_X inputs that a model takes: of its categories, or about its means.

    Shape (NUM_X, num_inputs), float32, or uint32 where the input is a token.
    """
    rng = np.random.default_rng(seed)
    columns = [_column(rng, each) for each in model.spec["inputs"]]
    x = np.concatenate(columns, 1)
    if x.shape[1] != model.num_inputs:
        raise BenchError(
            f"model {model.name!r} takes {model.num_inputs} numbers, but describes {x.shape[1]}"
        )
    dtype = np.dtype("<u4") if model.is_token else np.dtype("<f4")
    return np.ascontiguousarray(x, dtype)


def _column(rng: np.random.Generator, spec: Mapping[str, Any]) -> NDArray[np.float64]:
    if spec.get("kind", "numeric") != "numeric":
        return rng.integers(0, spec["num_categories"], (NUM_X, 1)).astype(np.float64)
    size = int(np.prod(spec.get("shape") or [1]))
    drawn = rng.standard_normal((NUM_X, size))
    return drawn * float(spec.get("scale", 1.0)) + float(spec.get("center", 0.0))
