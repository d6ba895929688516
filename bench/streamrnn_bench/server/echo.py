"""Bare echo: what ZeroMQ alone can do with messages of these sizes.

A ROUTER in compiled code takes a request and sends a pre-encoded reply, with the request's msgid
put in its place. Nothing is decoded, looked up or computed.

``python -m streamrnn_bench.server.echo --y-bytes N --ready-file FILE``
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zmq
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn_client.protocol import MAX_MSGID, encode_response
from streamrnn_server.shard.libzmq import (
    MESSAGE_BYTES,
    POLL_BYTES,
    monotonic_ns,
    msg_close,
    msg_data,
    msg_init,
    msg_send,
    poll_sockets,
    receive_frame,
    send_bytes,
)

__all__ = ["echo", "fixed_reply", "main"]

_MSGID_AT, _MSGID_BYTES = 3, 4  # behind the heads of the array, the kind and the number
_POLL_MS = 500


def fixed_reply(y_bytes: int) -> NDArray[np.uint8]:
    """Pre-encode a reply with ``y_bytes`` of output, as the server would send it.

    Its msgid has five bytes, and its step number is as wide as one after a while of steps.
    """
    return np.frombuffer(
        encode_response(MAX_MSGID, [100_000, 0, bytes(y_bytes)]), dtype=np.uint8
    ).copy()


@jit
def echo(socket: int, reply: NDArray[np.uint8], scratch: NDArray[np.uint8], max_ns: int) -> None:
    """Answer requests until there is none and ``max_ns`` is over.

    ``socket`` is the handle of a bound ROUTER without high water marks, ``scratch`` has at least
    256 bytes.
    """
    identity = scratch.ctypes.data
    payload = identity + MESSAGE_BYTES
    poll_items = payload + MESSAGE_BYTES
    clock = poll_items + POLL_BYTES
    msg_init(identity)
    msg_init(payload)
    until = monotonic_ns(clock) + max_ns
    while True:
        if receive_frame(socket, identity) < 0:
            if monotonic_ns(clock) >= until:
                break
            poll_sockets(poll_items, socket, socket, 0, 0, _POLL_MS)
            continue
        if receive_frame(socket, payload) >= _MSGID_AT + _MSGID_BYTES:
            copy_bytes(reply.ctypes.data + _MSGID_AT, msg_data(payload) + _MSGID_AT, _MSGID_BYTES)
        if msg_send(socket, identity, True) == 0:
            send_bytes(socket, reply.ctypes.data, len(reply), False)
    msg_close(identity)
    msg_close(payload)


def main(argv: Sequence[str] | None = None) -> int:
    """Echo until the parent process is gone; return 0."""
    parser = argparse.ArgumentParser(prog="streamrnn_bench.server.echo", allow_abbrev=False)
    parser.add_argument("--y-bytes", type=int, required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    args = parser.parse_args(argv)
    parent = os.getppid()
    reply, scratch = fixed_reply(args.y_bytes), np.zeros(256, dtype=np.uint8)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.set_hwm(0)
        router.setsockopt(zmq.LINGER, 0)
        router.bind("tcp://127.0.0.1:*")
        echo(router.underlying, reply, scratch, 0)  # compiles before the first request
        temporary = args.ready_file.with_suffix(".tmp")
        temporary.write_text(router.get_string(zmq.LAST_ENDPOINT))
        temporary.replace(args.ready_file)
        while os.getppid() == parent:
            echo(router.underlying, reply, scratch, 1_000_000_000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
