"""The fourth part: kill -9 in the middle, and what becomes of the streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from streamrnn.errors import StreamRNNError
from streamrnn_bench.demo.many_streams import Crowd, check_bits
from streamrnn_bench.demo.paper import Paper, duration
from streamrnn_bench.demo.server_process import ServerProcess
from streamrnn_client import Client, PartialFailure, StateLost
from streamrnn_client.errors import ConnectionLost, RequestTimeout

__all__ = ["crash"]


def crash(server: ServerProcess, client: Client, crowd: Crowd, start: int, paper: Paper) -> None:
    """Go on streaming, kill the server halfway, start it again, and tell what the client saw.

    Parameters
    ----------
    server : ServerProcess
        Runs, and runs again afterwards.
    client : Client
        Of that server; it stays the same one all along.
    crowd : Crowd
        The streams.
    start : int
        Row of ``crowd.x`` to go on with.
    paper : Paper
        To write on.

    Raises
    ------
    StreamRNNError
        If the loss was not reported for every stream, or an output is wrong.
    """
    num_rows, num_streams = len(crowd.x), len(crowd.names)
    middle = (start + num_rows) // 2
    paper.heading("kill -9, in the middle")
    rows = client.rows(crowd.names)
    for t in range(start, middle):
        check_bits(client.batch(rows, crowd.x[t]), crowd.y[t])
    killed = server.pid
    server.kill()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)  # while the client goes on, and knows of nothing
        losses = _until_lost(lambda: client.batch(rows, crowd.x[middle]), starting)
        ready_s = starting.result()
    if len(losses) != num_streams:
        raise StreamRNNError(
            f"{len(losses)} of {num_streams} streams were reported as lost after kill -9: a defect "
            "of StreamRNN, please report it"
        )
    paper.say(
        f"Week {middle} of {num_rows}: process {killed} is killed and started again at once, ready "
        f"after {duration(ready_s)}. The same client goes on with its next step, and gets for "
        f"each of the {num_streams:,} streams:"
    )
    paper.line()
    paper.say(f"StateLost: {losses[0]}", style="red", indent=2)
    paper.line()
    paper.say(
        "This version keeps state in memory only, so it is gone; no stream went on from nothing "
        "as if it were the old one. Whoever kept the inputs can send them again:"
    )

    began = time.perf_counter()
    rows = client.rows(crowd.names)
    outputs = np.stack([client.batch(rows, crowd.x[t]) for t in range(middle)])
    took_s = time.perf_counter() - began
    check_bits(outputs, crowd.y[:middle])
    for t in range(middle, num_rows):
        check_bits(client.batch(rows, crowd.x[t]), crowd.y[t])
    paper.say(
        f"{outputs.size:,} steps in {duration(took_s)}. Then on to the last week, and every output "
        "equals, to the bit, those of streams that nothing had interrupted."
    )


def _until_lost(send: Callable[[], object], starting: Future[float]) -> list[StateLost]:
    """Send a row until the server answers; return what the client says of each stream."""
    while not (starting.done() and starting.exception()):
        try:
            send()
        except (ConnectionLost, RequestTimeout):
            continue  # the steps are numbered: sending them again is safe
        except StateLost as error:
            return [error]
        except PartialFailure as error:
            return [one for one in error.errors.values() if isinstance(one, StateLost)]
        else:
            return []
    return []
