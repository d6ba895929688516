"""Compile the server's loop into the cache, and then what it shares with the engine."""

from __future__ import annotations

import io

from numba.core import types

from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.loop import serve
from streamrnn_server.warmup import compile_all


def main() -> None:
    serve.compile((types.int64,))
    compile_all(EventLog(stream=io.StringIO()), "float32", "cpu")


if __name__ == "__main__":
    main()
