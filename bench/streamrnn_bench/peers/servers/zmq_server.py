"""pyzmq server as one writes it in an afternoon: a ROUTER, msgpack, an engine.

It speaks StreamRNN's wire (`open`, `step`), so that one compiled client drives it and us.
``--batch``: whatever waits is taken, and steps of different streams are computed together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from streamrnn_bench.peers.servers.engines import ENGINES, Engine
from streamrnn_bench.peers.servers.process import tell_ready

_RESPONSE = 1
_MAX_BATCH = 1024


class Answers:
    """Streams by name; replies as the protocol wants them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.streams: dict[str, int] = {}

    def opened(self, msgid: int, params: list[Any]) -> bytes:
        """Give every name a stream."""
        names = params[0]
        for name in names:
            self.streams.setdefault(name, len(self.streams))
        return reply(msgid, [[None, [0, 0]] for _ in names])

    def stepped(self, msgid: int, params: list[Any]) -> bytes:
        """Advance one stream."""
        name, seq, x, _last_received = params
        return reply(msgid, [seq, 0, self.engine.step(self.streams[name], x)])


def reply(msgid: int, result: Any) -> bytes:
    """Encode a response."""
    return bytes(msgpack.packb([_RESPONSE, msgid, None, result]))


def serve_singly(router: Any, answers: Answers) -> None:
    """Answer one request after the other, for ever."""
    receive, send, unpack = router.recv_multipart, router.send_multipart, msgpack.unpackb
    while True:
        identity, payload = receive()
        _kind, msgid, method, params = unpack(payload)
        how = answers.stepped if method == "step" else answers.opened
        send((identity, how(msgid, params)))


def serve_batches(router: Any, answers: Answers) -> None:
    """Take what waits, answer it together, for ever.

    A second step of a stream in the batch waits for the next one.
    """
    receive, send, unpack = router.recv_multipart, router.send_multipart, msgpack.unpackb
    kept: list[Any] = []
    while True:
        batch = {request[1]: request for request in kept}
        kept = []
        try:
            while len(batch) < _MAX_BATCH:
                identity, payload = receive(zmq.NOBLOCK if batch else 0)
                _kind, msgid, method, params = unpack(payload)
                if method != "step":
                    send((identity, answers.opened(msgid, params)))
                    continue
                name, seq, x, _last_received = params
                stream = answers.streams[name]
                if stream in batch:
                    kept.append((identity, stream, msgid, seq, x))
                    break
                batch[stream] = (identity, stream, msgid, seq, x)
        except zmq.Again:
            pass
        outputs = answers.engine.steps(list(batch), [request[4] for request in batch.values()])
        for (identity, _stream, msgid, seq, _x), y in zip(batch.values(), outputs, strict=True):
            send((identity, reply(msgid, [seq, 0, y])))


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--ready-file", required=True)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--max-streams", type=int, required=True)
    parser.add_argument("--batch", action="store_true")
    args = parser.parse_args()
    answers = Answers(ENGINES[args.engine](args.weights, args.max_streams))
    serve: Callable[[Any, Answers], None] = serve_batches if args.batch else serve_singly
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.set_hwm(0)
        router.bind("tcp://127.0.0.1:*")
        tell_ready(args.ready_file, router.get_string(zmq.LAST_ENDPOINT))
        serve(router, answers)


if __name__ == "__main__":
    main()
