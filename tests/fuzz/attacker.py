"""An attacker as a process: ``python -m tests.fuzz.attacker '{"endpoint": ..., "seed": ...}'``.

``way`` is ``dealer`` (well-behaved sockets, hostile messages) or ``raw`` (see `tests.fuzz.zmtp`).
It goes on until ``num_messages`` have been sent, and prints one JSON object: how many were sent,
and how many of each answer came.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from typing import Any

import msgpack
import zmq

from tests.fuzz.messages import Messages
from tests.fuzz.zmtp import ABORTING, ATTACKS
from tests.support.peer import random_id

_NUM_SOCKETS = 4
_BURST = 64
_MAX_BEHIND = 400  # unanswered messages of a socket; some never are
_NEW_SOCKET_EVERY = 5_000


def _dealer(context: zmq.Context[Any], endpoint: str, curve: dict[str, str]) -> Any:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.sndhwm = 1000
    socket.routing_id = random_id()
    if curve:
        socket.curve_publickey, socket.curve_secretkey = (
            curve["public"].encode(),
            curve["secret"].encode(),
        )
        socket.curve_serverkey = curve["server"].encode()
    socket.connect(endpoint)
    return socket


class _Replies:
    """Counts what comes back, and keeps records for the messages to bend."""

    def __init__(self, messages: Messages) -> None:
        self.counts: Counter[str] = Counter()
        self._messages = messages

    def read(self, socket: Any) -> int:
        """Read all that has arrived; return how many it was."""
        num = 0
        while True:
            try:
                data = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return num
            num += 1
            if len(data) < 4096:  # long ones are batches
                self._look_at(data)

    def _look_at(self, data: bytes) -> None:
        kind, _msgid, error, result = msgpack.unpackb(data, strict_map_key=False)
        if kind != 1:
            raise AssertionError(f"a reply begins with {kind}")
        self.counts[error[0] if error else "ok"] += 1
        if type(result) is bytes and len(result) > 100:
            records = self._messages.records
            records.append(result)
            del records[:-16]


def _attack_by_dealer(told: dict[str, Any], messages: Messages) -> dict[str, Any]:
    context: zmq.Context[Any] = zmq.Context()
    replies = _Replies(messages)
    arguments = (context, told["endpoint"], told.get("curve", {}))
    sockets = [_dealer(*arguments) for _ in range(_NUM_SOCKETS)]
    behind = [0] * _NUM_SOCKETS
    num_sent, moved_s = 0, time.monotonic()
    while num_sent < told["num_messages"] and time.monotonic() < told["until_s"]:
        has_moved = False
        for k, socket in enumerate(sockets):
            num_read = replies.read(socket)
            behind[k] = max(behind[k] - num_read, 0)
            has_moved |= num_read > 0
            if behind[k] < _MAX_BEHIND:
                try:
                    for _ in range(_BURST):
                        socket.send(messages.next(), zmq.NOBLOCK)
                        num_sent += 1
                        behind[k] += 1
                        has_moved = True
                except zmq.Again:
                    pass
        if num_sent % _NEW_SOCKET_EVERY < _BURST * _NUM_SOCKETS:
            at = messages.rng.randrange(_NUM_SOCKETS)
            sockets[at].close()
            sockets[at], behind[at] = _dealer(*arguments), 0
        if has_moved:
            moved_s = time.monotonic()
        elif time.monotonic() - moved_s > 1.0:
            behind = [0] * _NUM_SOCKETS  # those are not answered: many have no msgid, or wait
            moved_s = time.monotonic()
        else:
            zmq.select(sockets, [], [], 0.01)
    for socket in sockets:
        socket.close()
    context.term()
    return {"num_messages": num_sent, "replies": dict(replies.counts)}


def _attack_by_raw(told: dict[str, Any], messages: Messages) -> dict[str, Any]:
    rng = random.Random(told["seed"])
    port = int(told["endpoint"].rsplit(":", 1)[1])
    attacks = ATTACKS + (ABORTING if told["may_abort"] else ())
    counts: Counter[str] = Counter()
    num_sent = 0
    while num_sent < told["num_messages"] and time.monotonic() < told["until_s"]:
        attack = rng.choice(attacks)
        try:
            num = attack(rng, port, messages.next)
            num_sent += num
            counts[attack.__name__.strip("_")] += num
        except OSError as error:  # the server may end a connection, or be starting again
            counts[type(error).__name__] += 1
            if isinstance(error, ConnectionRefusedError):
                time.sleep(0.05)
    return {"num_messages": num_sent, "replies": dict(counts)}


def main() -> None:
    """Attack as the argument says."""
    told = json.loads(sys.argv[1])
    told["until_s"] = time.monotonic() + told.get("limit_s", 1e9)
    attack = {"dealer": _attack_by_dealer, "raw": _attack_by_raw}[told["way"]]
    print(json.dumps(attack(told, Messages(told["seed"]))), flush=True)


if __name__ == "__main__":
    main()
