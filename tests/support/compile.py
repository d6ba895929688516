"""Compile into the cache: ``python -m tests.support.compile engine`` or ``... shard``."""

from __future__ import annotations

import io
import sys


def compile_engine() -> None:
    """Compile the engine in every precision."""
    import numpy as np

    from streamrnn import Engine
    from streamrnn.engine.sequences import Sequences
    from streamrnn.kernels.precisions import PRECISIONS
    from tests.support.models import random_inputs, random_model

    model = random_model(np.random.default_rng(0))
    x = random_inputs(np.random.default_rng(0), model.spec, 1, 2)[0]
    for precision in PRECISIONS:
        Engine(model, precision=precision).steps("a", x)
    Sequences(model, x).run(np.array([0]), np.array([len(x)]))


def compile_shard() -> None:
    """Compile the server's loop, and only then what it shares with the engine."""
    from numba.core import types

    from streamrnn_server.event_log import EventLog
    from streamrnn_server.shard.loop import serve
    from streamrnn_server.startup.warmup import compile_all

    serve.compile((types.int64,))
    compile_all(EventLog(stream=io.StringIO()), "float32", "cpu")


if __name__ == "__main__":
    {"engine": compile_engine, "shard": compile_shard}[sys.argv[1]]()
