"""Part four: kill -9 while streaming, and what becomes of the streams."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import StreamRNNError
from streamrnn_bench.demo.many_streams import Crowd, check_bits
from streamrnn_bench.demo.output import Output, duration
from streamrnn_bench.demo.server_process import ServerProcess
from streamrnn_client import Client
from streamrnn_client.errors import ConnectionLost, RequestTimeout

__all__ = ["crash"]


def crash(server: ServerProcess, client: Client, crowd: Crowd, start: int, output: Output) -> None:
    """Stream from row ``start`` of ``crowd.x``; kill and restart the server halfway.

    The client stays the same one. Raises a `StreamRNNError` if an output differs from those of
    uninterrupted streams.
    """
    num_rows, num_streams = len(crowd.x), len(crowd.names)
    middle = (start + num_rows) // 2
    output.heading("kill -9, in the middle")
    rows = client.rows(crowd.names)
    for t in range(start, middle):
        check_bits(client.batch(rows, crowd.x[t]), crowd.y[t])
    killed = server.pid
    server.kill()
    began = time.perf_counter()
    server.launch()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.wait_until_ready)  # while the client goes on, unaware of it
        outputs = [_send(client, rows, crowd.x[middle], starting)]
        took_s = time.perf_counter() - began
        ready_s = starting.result()
    outputs += [client.batch(rows, crowd.x[t]) for t in range(middle + 1, num_rows)]
    num_again = client.stats()["num_steps"] - len(outputs) * num_streams
    num_bits = _num_differing_bits(np.stack(outputs), crowd.y[middle:])
    output.say(
        f"Week {middle} of {num_rows}: process {killed} is killed and started again at once, ready "
        f"after {duration(ready_s)}. The same client goes on with its next step, all "
        f"{num_streams:,} streams in one call, and knows of nothing: the call takes "
        f"{duration(took_s)}, the restart included."
    )
    output.line()
    output.say(
        "The server writes what has changed to disk once a second (--state-dir). What it had not "
        f"yet written, {num_again:,} steps, the client has sent again by itself: it keeps the "
        "inputs that are not yet on disk, and their numbers see to it that none counts twice."
    )
    output.line()
    output.say(
        f"On to the last week: of the {32 * np.stack(outputs).size:,} bits of the outputs since "
        f"the crash, {num_bits} differ from those of streams that nothing has interrupted."
    )
    if num_bits:
        raise StreamRNNError("the crash has changed outputs: a defect of StreamRNN, please report")


def _send(
    client: Client, rows: Any, x: NDArray[np.float32], starting: Future[float]
) -> NDArray[np.float32]:
    """Step all streams once, retrying while the server is away."""
    while not (starting.done() and starting.exception()):
        try:
            return client.batch(rows, x)
        except (ConnectionLost, RequestTimeout):
            continue  # the steps are numbered: sending them again is safe
    raise StreamRNNError(f"the server did not come back: {starting.exception()}")


def _num_differing_bits(outputs: NDArray[np.float32], expected: NDArray[np.float32]) -> int:
    differing = np.ascontiguousarray(outputs).view(np.uint32) ^ np.ascontiguousarray(
        expected.reshape(outputs.shape)
    ).view(np.uint32)
    return int(np.bitwise_count(differing).sum())
