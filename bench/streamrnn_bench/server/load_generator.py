"""Load generator process: commands in on stdin, findings out on stdout.

``python -m streamrnn_bench.server.load_generator --endpoint ENDPOINT --case CASE --num-streams N``,
and with ``--under-way n`` only so many steps in flight, of streams in random order; with
``--shard K OF`` only those of the N streams that belong to shard K of OF, whose endpoint it is.

One JSON object a line each way. ``{"drive_s": s, "num_round_trips": n}`` drives the streams so
long; ``{"keep": path, "num_steps": T}``, only as the first command, does T steps of each stream
and writes the outputs of the first n streams, at most 4096, float32 [T, n, O], as npy. Every
answer has "num_replies", "elapsed_s", "processor_s", the generator's own part of it, and
"opened_s", which all streams took to open, with round trips also "p50_us", "p99_us" and
"p99.9_us", or else "error". It ends with its input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server.load import (
    ALL_WELL,
    Traffic,
    drive,
    make_traffic,
    stream_names,
    streams_of_shard,
)
from streamrnn_bench.step.cases import Case, parse_case
from streamrnn_client.protocol import MAX_BATCH, decode_response, encode_request

__all__ = ["Generator", "main"]

_TIMEOUT_MS = 10_000
_FOREVER = 2**62
_WORDS = {2: "no reply for 5 s", 3: "a request could not be sent"}


class Generator:
    """Load generator of N streams on one connected DEALER.

    ``is_echo``: the other end knows neither streams nor numbers. ``window`` is 0 for the server's
    default, ``num_under_way`` 0 for a step of each stream. ``shard`` is one of how many: the
    streams are those of the N that belong to it; without shards they begin with stream ``first``.
    A `BenchError` if streams cannot be opened.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        case: Case,
        num_streams: int,
        is_echo: bool,
        window: int = 0,
        num_under_way: int = 0,
        shard: Sequence[int] = (0, 1),
        first: int = 0,
    ) -> None:
        self._socket, self._case, self._is_echo = socket, case, is_echo
        self._num_under_way = num_under_way
        self._numbers = first + streams_of_shard(num_streams, *shard)
        began_s = time.perf_counter()
        if not is_echo:
            names = np.array(stream_names(first + num_streams))[self._numbers].tolist()
            for first in range(0, len(names), MAX_BATCH):
                self._open(names[first : first + MAX_BATCH], window)
        self._opened_s = time.perf_counter() - began_s
        self._traffic = self._prepare(0, 0)

    def _prepare(self, num_kept: int, num_round_trips: int) -> Traffic:
        return make_traffic(
            self._socket.underlying,
            len(self._numbers),
            self._case.input_size,
            self._case.hidden_size,
            num_kept,
            num_round_trips,
            num_under_way=self._num_under_way,
            numbers=self._numbers,
        )

    def _open(self, names: list[str], window: int) -> None:
        self._socket.send(encode_request(0, "open", [names, None, window]))
        if not self._socket.poll(_TIMEOUT_MS):
            raise BenchError("the server did not answer within 10 s")
        response = decode_response(self._socket.recv())
        items = [[response.error, None]] if response.error else response.result
        for error, _result in items:
            if error:
                raise BenchError(f"a stream cannot be opened: {error[1]}")

    def run_command(self, command: dict[str, Any]) -> dict[str, Any]:
        """Handle one command, and return its findings; both as this module says.

        Raises a `BenchError` if a reply is missing or wrong.
        """
        seqs, num_kept = self._traffic.seqs, command.get("num_steps", 0)
        traffic = self._prepare(num_kept, command.get("num_round_trips", 0))
        # The streams go on where they were.
        traffic = self._traffic = traffic._replace(seqs=seqs)
        duration_ns = int(command.get("drive_s", 0) * 1e9) or _FOREVER
        began_s = time.process_time()
        how, num_replies, elapsed_ns = drive(
            traffic, duration_ns, num_kept or _FOREVER, not self._is_echo
        )
        if how != ALL_WELL:
            raise BenchError(_WORDS.get(how) or self._what_is_bad(traffic))
        if num_kept:
            np.save(command["keep"], traffic.outputs)
        found = {
            "num_replies": num_replies,
            "elapsed_s": elapsed_ns / 1e9,
            "processor_s": time.process_time() - began_s,
            "opened_s": self._opened_s,
        }
        times_us = traffic.round_trips_ns[: min(num_replies, len(traffic.round_trips_ns))] / 1e3
        if len(times_us):
            found |= {f"p{q}_us": float(np.percentile(times_us, q)) for q in (50, 99, 99.9)}
        return found

    def _what_is_bad(self, traffic: Traffic) -> str:
        try:
            response = decode_response(traffic.bad[: traffic.num_bad_bytes[0]].tobytes())
        except ValueError:
            return "a reply is not what the protocol says"
        if response.error:
            return f"a step was refused: {response.error[1]}"
        return "a reply carries another step number or length than its request"


def main(argv: Sequence[str] | None = None) -> int:
    """Handle commands from stdin; return 0."""
    parser = argparse.ArgumentParser(
        prog="streamrnn_bench.server.load_generator", allow_abbrev=False
    )
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--num-streams", type=int, required=True)
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--under-way", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--shard", type=int, nargs=2, metavar=("K", "OF"), default=(0, 1))
    args = parser.parse_args(argv)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.set_hwm(0)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(args.endpoint)
        generator = None
        for line in sys.stdin:
            try:
                if generator is None:
                    case = parse_case(args.case)
                    arguments = (args.num_streams, args.echo, args.window, args.under_way)
                    generator = Generator(dealer, case, *arguments, args.shard, args.first)
                found = generator.run_command(json.loads(line))
            except BenchError as error:
                found = {"error": str(error)}
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
