"""Connections: how many there are, and an end to those that take all open files, or the memory.

Where no file can be opened, libzmq tries to accept a connection again and again, as fast as it can,
and what needs a file fails. So the newest connections are cut while some files are left. Those that
fill libzmq's memory are cut too: see `MemoryWatch`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from streamrnn.errors import StartError
from streamrnn_server.config import Endpoint, ServerConfig
from streamrnn_server.connections.memory_watch import LOOK_EVERY_MS, MemoryWatch, received_bytes
from streamrnn_server.event_log import EventLog
from streamrnn_server.worker import OnFailure, Worker

__all__ = ["Connections", "bind_router", "raise_file_limit"]

_WANTED_FILES = 65_536
_FEW_FILES = 4096  # fewer are worth a warning
_SPARE_FILES = 48  # for the state, keys, metrics, and what Python opens
_SAY_EVERY_S = 60.0
_COUNT_EVERY_S = 1.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: nothing is kept of the connection
_TOO_MANY = (
    "too many connections: new ones are cut; allow more open files, or fewer connections of one "
    "address by a firewall"
)
_TOO_HEAVY = (
    "connections have brought more than there is memory for, faster than it could be served or in "
    "messages that do not end: those that brought most are cut"
)
_DISCARDED_BYTES = 2**20  # at once
_DEAD_AFTER_MS = 30_000  # a peer that acknowledges nothing, or takes nothing
_LINGER_MS = 1_000
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


class Connections:
    """Watches the connections of routers, in a thread of its own.

    Attributes
    ----------
    max_connections : int
        More are cut as soon as they are there.
    num_cut : int
        How many were, for their number or for what libzmq held of them.
    """

    def __init__(self, context: zmq.Context[Any], log: EventLog) -> None:
        self.max_connections = 0
        self.num_cut = 0
        self._context, self._log = context, log
        self._open: set[int] = set()  # file descriptors
        self._ports: set[int] = set()
        self._monitors: list[zmq.Socket[bytes]] = []
        self._counted_at_s = -_COUNT_EVERY_S
        self._unsaid: dict[str, int] = {}  # how many were cut, by the reason
        self._said_at_s: dict[str, float] = {}
        self._end, self._ended = (context.socket(zmq.PAIR) for _ in range(2))
        self._ended.bind("inproc://connections-end")
        self._end.connect("inproc://connections-end")
        self.worker = Worker("connections", self._serve)

    @property
    def num_open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    def stats(self) -> dict[str, int]:
        """Return what there is to say."""
        return {
            "num_connections": self.num_open,
            "max_connections": self.max_connections,
            "num_connections_cut": self.num_cut,
        }

    def watch(self, router: zmq.Socket[bytes]) -> None:
        """Watch a router that is bound and not yet used by another thread."""
        self._ports.add(int(router.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2]))
        name = f"inproc://connections-{len(self._monitors)}"
        router.monitor(name, _EVENTS)
        monitor = self._context.socket(zmq.PAIR)
        monitor.set_hwm(0)  # a thread of libzmq must not wait for us
        monitor.connect(name)
        self._monitors.append(monitor)

    def start(self, memory: MemoryWatch, on_failure: OnFailure) -> None:
        """Begin; ``on_failure`` is called if the thread ends by an exception."""
        self._memory = memory
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/dev/fd"))
        self.max_connections = max(1, most - used - _SPARE_FILES)
        self.worker.start(on_failure)

    def stop(self) -> None:
        """End, when the routers have been closed."""
        if self.worker.has_begun:
            self._end.send(b"")
            self.worker.join()
            self._memory.close()
        for each in (*self._monitors, self._end, self._ended):
            each.close(0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        for each in (*self._monitors, self._ended):
            poller.register(each, zmq.POLLIN)
        while True:
            for each, _ in poller.poll(LOOK_EVERY_MS):
                if each is self._ended:
                    return
                self._take(parse_monitor_message(each.recv_multipart()))
            self._look_at_memory()
            self.worker.beat()

    def _take(self, told: Any) -> None:
        """Note that a connection has come or gone."""
        descriptor = told["value"]
        if told["event"] == zmq.EVENT_DISCONNECTED:
            self._open.discard(descriptor)
        elif told["event"] == zmq.EVENT_ACCEPTED:
            self._open.add(descriptor)
            if len(self._open) > self.max_connections:
                self._count_again()
            if len(self._open) > self.max_connections:
                self._cut(descriptor, _TOO_MANY, max_connections=self.max_connections)

    def _look_at_memory(self) -> None:
        """Cut those who fill libzmq's memory."""
        for descriptor in self._memory.look(time.monotonic(), self._received):
            self._cut(descriptor, _TOO_HEAVY)

    def _received(self) -> dict[int, int]:
        """Return how many bytes each connection has brought."""
        counts = {each: self._with_socket(each, received_bytes) for each in self._open}
        return {each: count for each, count in counts.items() if count}

    def _count_again(self) -> None:
        """See which connections are still there, should we not have heard of an end."""
        now_s = time.monotonic()
        if now_s - self._counted_at_s >= _COUNT_EVERY_S:
            self._counted_at_s = now_s
            self._open = {each for each in self._open if self._with_socket(each, _is_connected)}

    def _with_socket(self, descriptor: int, do: Callable[[socket.socket], int]) -> int:
        """Do something with a connection of libzmq's; False if it is none any more.

        It may be closed at any time, and its number given to another one: a client's, which is
        then cut in its place, for all other files that are open were so before, or are no sockets.
        """
        try:
            one = socket.socket(fileno=descriptor)
        except OSError:
            return False
        try:
            return one.getsockname()[1] in self._ports and do(one)
        except OSError:
            return False
        finally:
            one.detach()  # it is not ours to close

    def _cut(self, descriptor: int, reason: str, **numbers: int) -> None:
        """Cut a connection; say so and how many were, at most once a minute."""
        if not self._with_socket(descriptor, _reset):
            return
        self.num_cut += 1
        self._unsaid[reason] = self._unsaid.get(reason, 0) + 1
        now_s = time.monotonic()
        if now_s - self._said_at_s.get(reason, -_SAY_EVERY_S) >= _SAY_EVERY_S:
            self._said_at_s[reason] = now_s
            self._log.write("warning", reason, num_cut=self._unsaid.pop(reason), **numbers)


def _reset(one: socket.socket) -> bool:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.shutdown(socket.SHUT_RDWR)  # libzmq reads the end, and closes it
    with contextlib.suppress(OSError):
        while one.recv(_DISCARDED_BYTES, socket.MSG_DONTWAIT):
            pass  # what has come, libzmq would still read
    return True


def _is_connected(one: socket.socket) -> bool:
    one.getpeername()
    return True


def raise_file_limit(log: EventLog) -> None:
    """Allow as many connections as the system lets us, up to some tens of thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, _WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        log.write(
            "warning",
            "few open files are allowed: beyond them, new connections are cut",
            max_open_files=soft,
            process=os.getpid(),
        )


def bind_router(router: zmq.Socket[bytes], config: ServerConfig, endpoint: Endpoint) -> None:
    """Set the options of a shard's socket, and bind it; raises StartError if that cannot be."""
    numeric = endpoint.numeric()
    options = {
        # A reply to nobody, or to a reader that does not read, is an error and is counted.
        zmq.ROUTER_MANDATORY: 1,
        # The second with the same routing id is refused: it might be somebody else.
        zmq.ROUTER_HANDOVER: 0,
        zmq.MAXMSGSIZE: config.max_message_bytes + config.max_message_bytes // 4,
        # libzmq learns what has left a pipe after each half of a mark only. With a mark at what
        # a client may have in flight, replies were dropped from half of that on.
        zmq.SNDHWM: 2 * config.max_in_flight,
        zmq.RCVHWM: config.max_in_flight,
        zmq.HANDSHAKE_IVL: 10_000,
        # No PINGs: libzmq aborts where it would send one on a connection that broke while its
        # pipe was full (docs/decisions.md). TCP finds peers that are gone.
        zmq.HEARTBEAT_IVL: 0,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 10,
        zmq.TCP_KEEPALIVE_INTVL: 5,
        zmq.TCP_KEEPALIVE_CNT: 4,
        zmq.TCP_MAXRT: _DEAD_AFTER_MS,
        zmq.BACKLOG: 1024,
        zmq.LINGER: _LINGER_MS,
        zmq.IPV6: int(numeric.host.startswith("[")),
    }
    for option, value in options.items():
        router.setsockopt(option, value)
    try:
        router.bind(str(numeric))
    except zmq.ZMQError as error:
        hint = ""
        if error.errno == errno.EADDRINUSE:
            hint = "; another server is there: stop it, or take another port (--bind)"
        raise StartError(f"cannot bind {endpoint}: {error.strerror}{hint}") from error
