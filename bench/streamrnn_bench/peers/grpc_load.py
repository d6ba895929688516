"""Load generator for gRPC servers: the commands and findings of `server.load_generator`.

``python -m streamrnn_bench.peers.grpc_load --endpoint HOST:PORT --protocol plain|triton ...``

It speaks HTTP/2 itself, over one connection with a few calls: what comes with one look at the
socket is answered with one write.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from streamrnn_bench.peers.http2 import Connection
from streamrnn_bench.peers.triton_messages import INFER_PATH, ReplyReader, request_head
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server.load import NUM_X, make_traffic
from streamrnn_bench.step.cases import Case, parse_case

__all__ = ["PLAIN_PATH", "GrpcLoad", "main"]

PLAIN_PATH = "/streamrnn.bench.Steps/Steps"
_TIMEOUT_S = 5.0
_MAX_READ = 1 << 18


class GrpcLoad:
    """N streams, numbered from ``first`` on, spread over a few calls of one connection.

    ``is_triton``: the server is Triton; else one of `servers.grpc_server`, whose messages are four
    bytes of a stream's number and then the values.
    """

    def __init__(
        self, endpoint: str, case: Case, streams: tuple[int, int], is_triton: bool, num_calls: int
    ) -> None:
        host, _, port = endpoint.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._first, self._num_streams = streams
        self._num_calls, self._y_bytes = min(num_calls, streams[1]), 4 * case.hidden_size
        self._connection = Connection(INFER_PATH if is_triton else PLAIN_PATH, self._num_calls)
        x = make_traffic(0, 1, case.input_size, case.hidden_size).x
        self._x = [row.tobytes() for row in x]
        self._seqs = [0] * self._num_streams
        numbers = range(self._first, self._first + self._num_streams)
        self._read: Callable[[bytes], tuple[int, bytes]] = self._read_plain
        if is_triton:
            self._starts = [request_head(k, True, case.input_size) for k in numbers]
            self._heads = [request_head(k, False, case.input_size) for k in numbers]
            self._read = ReplyReader(self._y_bytes)
        else:
            self._starts = self._heads = [k.to_bytes(4, "little") for k in numbers]

    def _read_plain(self, message: bytes) -> tuple[int, bytes]:
        if len(message) != 4 + self._y_bytes:
            raise BenchError(f"a reply has {len(message)} bytes, expected {4 + self._y_bytes}")
        return int.from_bytes(message[:4], "little"), message[4:]

    def run_command(self, command: dict[str, Any]) -> dict[str, Any]:
        """Handle one command of the load generator's; a `BenchError` if a reply is wrong."""
        num_steps = command.get("num_steps", 0)
        kept = np.zeros((num_steps, self._num_streams, self._y_bytes // 4), np.float32)
        times_ns: list[int] = []
        max_times = command.get("num_round_trips", 0)
        duration_ns = int(command.get("drive_s", 3600) * 1e9)
        max_seq = num_steps or 2**62
        began_s = time.process_time()
        start = now = time.monotonic_ns()
        sent_ns = [start] * self._num_streams
        for stream in range(self._num_streams):
            self._send(stream)
        self._flush()
        num_under_way, num_replies, num_counted, stopped_at = self._num_streams, 0, 0, 0
        while num_under_way:
            data = self._receive()
            now = time.monotonic_ns()
            if not stopped_at and now - start >= duration_ns:
                stopped_at, num_counted = now, num_replies
            for message in self._connection.messages(data):
                stream, y = self._stream_of(message)
                num_replies += 1
                if len(times_ns) < max_times:
                    times_ns.append(now - sent_ns[stream])
                seq = self._seqs[stream]
                if seq <= num_steps:
                    kept[seq - 1, stream] = np.frombuffer(y, np.float32)
                if stopped_at or seq >= max_seq:
                    num_under_way -= 1
                else:
                    self._send(stream)
                    sent_ns[stream] = now
            self._flush()
        if not stopped_at:
            stopped_at, num_counted = now, num_replies
        found = {
            "num_replies": num_counted,
            "elapsed_s": (stopped_at - start) / 1e9,
            "processor_s": time.process_time() - began_s,
        }
        if num_steps:
            np.save(command["keep"], kept)
        if times_ns:
            times_us = np.array(times_ns) / 1e3
            found |= {f"p{q}_us": float(np.percentile(times_us, q)) for q in (50, 99, 99.9)}
        return found

    def _send(self, stream: int) -> None:
        seq = self._seqs[stream] = self._seqs[stream] + 1
        head = self._heads[stream] if seq > 1 else self._starts[stream]
        message = head + self._x[(stream + 7 * seq) % NUM_X]
        self._connection.send(stream % self._num_calls, message)

    def _stream_of(self, message: bytes) -> tuple[int, bytes]:
        number, y = self._read(message)
        stream = number - self._first
        if not 0 <= stream < self._num_streams:
            raise BenchError(f"a reply is of stream {number}, which was not asked")
        return stream, y

    def _flush(self) -> None:
        out = self._connection.take_out()
        if out:
            self._socket.sendall(out)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_MAX_READ)
        except TimeoutError as error:
            raise BenchError(f"no reply for {_TIMEOUT_S:.0f} s") from error


def main() -> int:
    """Handle commands from stdin; return 0."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--num-streams", type=int, required=True)
    parser.add_argument("--protocol", choices=("plain", "triton"), required=True)
    parser.add_argument("--calls", type=int, default=1)
    args = parser.parse_args()
    load = None
    for line in sys.stdin:
        try:
            if load is None:
                streams = (args.first, args.num_streams)
                is_triton = args.protocol == "triton"
                case = parse_case(args.case)
                load = GrpcLoad(args.endpoint, case, streams, is_triton, args.calls)
            found = load.run_command(json.loads(line))
        except (BenchError, OSError) as error:
            found = {"error": str(error)}
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
