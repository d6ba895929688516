"""Compile into the cache: ``python -m tests.support.compile engine`` or ``... shard``.

And read from it which types were found.
"""

from __future__ import annotations

import io
import sys
from typing import Any


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


def typed_overloads(function: Any) -> list[list[str]]:
    """Return, for each overload of a jitted function, its lines that end in ``:: type``.

    A callee of a function that comes from the cache is not loaded itself: look into its cache.
    """
    file = function._cache._cache_file
    overloads = [file.load(key) for key in file._load_index()]
    return [[line for line in str(each[6]).splitlines() if "  :: " in line] for each in overloads]


if __name__ == "__main__":
    {"engine": compile_engine, "shard": compile_shard}[sys.argv[1]]()
