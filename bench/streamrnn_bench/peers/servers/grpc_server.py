"""gRPC server with grpcio: one bidirectional stream of steps, bytes without Protocol Buffers.

A message is four bytes of a stream's number and then the values. ``--batch``: what waits is taken
and computed together.
"""

from __future__ import annotations

import argparse
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from streamrnn_bench.peers.servers.engines import ENGINES, Engine
from streamrnn_bench.peers.servers.process import tell_ready

_SERVICE, _METHOD = "streamrnn.bench.Steps", "Steps"
_MAX_BATCH, _MAX_CALLS = 1024, 16

Handler = Callable[[Iterable[bytes], Any], Iterator[bytes]]


def singly(engine: Engine) -> Handler:
    """Answer one request after the other."""
    lock = threading.Lock()

    def steps(requests: Iterable[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            with lock:
                y = engine.step(int.from_bytes(request[:4], "little"), request[4:])
            yield request[:4] + y

    return steps


def in_batches(engine: Engine) -> Handler:
    """Take what waits in all; a second step of a stream waits for the next batch."""
    lock = threading.Lock()

    def steps(requests: Iterable[bytes], context: Any) -> Iterator[bytes]:
        waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def take() -> None:
            try:
                for request in requests:
                    waiting.put(request)
            finally:
                waiting.put(None)

        threading.Thread(target=take, daemon=True).start()
        kept: list[bytes] = []
        while True:
            batch = {request[:4]: request[4:] for request in kept}
            kept = []
            try:
                while len(batch) < _MAX_BATCH:
                    request = waiting.get(block=not batch)
                    if request is None:
                        return
                    if request[:4] in batch:
                        kept.append(request)
                        break
                    batch[request[:4]] = request[4:]
            except queue.Empty:
                pass
            streams = [int.from_bytes(stream, "little") for stream in batch]
            with lock:
                outputs = engine.steps(streams, list(batch.values()))
            for stream, y in zip(batch, outputs, strict=True):
                yield stream + y

    return steps


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--ready-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--max-streams", type=int, required=True)
    parser.add_argument("--batch", action="store_true")
    args = parser.parse_args()
    import grpc

    engine = ENGINES[args.engine](args.weights, args.max_streams)
    steps = in_batches(engine) if args.batch else singly(engine)
    handler = grpc.method_handlers_generic_handler(
        _SERVICE, {_METHOD: grpc.stream_stream_rpc_method_handler(steps)}
    )
    server = grpc.server(ThreadPoolExecutor(_MAX_CALLS))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tell_ready(args.ready_file, f"127.0.0.1:{port}")
    server.wait_for_termination()


if __name__ == "__main__":
    main()
