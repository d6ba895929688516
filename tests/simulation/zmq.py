"""libzmq and the clock as compiled code finds them in a simulation: queues, and a number.

`take_over` gives the symbols that compiled code calls (`zmq_msg_recv`, `clock_gettime`, ...) the
addresses of functions of a `Wire`, before any compiled code is loaded: then the machine code of the
server's loop, as it is, runs on messages that a test puts there. It holds for the whole process,
so a simulation has a process of its own.
"""

from __future__ import annotations

import ctypes
import errno
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import zmq

_NS_PER_S = 1_000_000_000
_SNDMORE = int(zmq.SNDMORE)
_word, _int = ctypes.c_int64, ctypes.c_int32
_AT, _SIZE, _MORE = range(3)  # words of a message: where its content is, how much, if more follows

Frames = list[bytes]


class Wire:
    """Everything that compiled code receives, sends, and takes for the time.

    Attributes
    ----------
    now_s : float
        The time.
    queues : dict of int to deque of (bytes, bool)
        What each socket has to receive: frames, and whether another of the same message follows.
    on_send : callable
        Takes a socket's number and the frames of one message.
    error_of : callable
        Takes a socket's number and the first frame of a message; returns 0 or an error number.
    is_dead : bool
        Whether a crash is under way: nothing is received, and what is sent goes nowhere.
    dies_in : int
        A crash comes after so many more calls; never with a negative number.
    failure : BaseException or None
        What `on_send` raised; whoever called compiled code raises it again.
    timeout_ms : int or None
        The longest wait that the last `poll` asked for, where nothing was there to receive.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.queues: dict[int, deque[tuple[bytes, bool]]] = {}
        self.on_send: Callable[[int, Frames], None] = lambda socket, frames: None
        self.error_of: Callable[[int, bytes], int] = lambda socket, frame: 0
        self.is_dead = False
        self.dies_in = -1
        self.timeout_ms: int | None = None
        self.failure: BaseException | None = None
        self._errno = 0
        self._has_more = False
        self._contents: dict[int, Any] = {}
        self._begun: dict[int, Frames] = {}

    def put(self, socket: int, frames: Frames) -> None:
        """Let a message be received."""
        last = len(frames) - 1
        self.queues[socket].extend((frame, k < last) for k, frame in enumerate(frames))

    def _count(self) -> None:
        if self.dies_in > 0:
            self.dies_in -= 1
            self.is_dead |= self.dies_in == 0

    def _fail(self, number: int) -> int:
        self._errno = number
        return -1

    def _hold(self, message: int, content: bytes, more: bool) -> None:
        words = (_word * 3).from_address(message)
        self._contents[message] = kept = ctypes.create_string_buffer(content, len(content))
        words[_AT], words[_SIZE], words[_MORE] = ctypes.addressof(kept), len(content), more

    # What compiled code calls, by the names of the symbols.

    def zmq_msg_init(self, message: int) -> int:
        self._hold(message, b"", False)
        return 0

    zmq_msg_close = zmq_msg_init

    def zmq_msg_init_data(
        self, message: int, data: int, num_bytes: int, when_done: int, hint: int
    ) -> int:
        self._hold(message, ctypes.string_at(data, num_bytes), False)
        ctypes.CFUNCTYPE(_word, _word, _word)(when_done)(data, hint)
        return 0

    def zmq_msg_recv(self, message: int, socket: int, flags: int) -> int:
        self._count()
        queue = self.queues[socket]
        # A message has come whole or not at all.
        if not queue or (self.is_dead and not self._has_more):
            return self._fail(errno.EAGAIN)
        content, self._has_more = queue.popleft()
        self._hold(message, content, self._has_more)
        return len(content)

    def zmq_msg_send(self, message: int, socket: int, flags: int) -> int:
        at, size, _ = (_word * 3).from_address(message)
        sent = self.zmq_send(socket, at, size, flags)
        if sent >= 0:
            self.zmq_msg_init(message)
        return sent

    def zmq_msg_data(self, message: int) -> int:
        return _word.from_address(message).value

    def zmq_msg_size(self, message: int) -> int:
        return _word.from_address(message + 8 * _SIZE).value

    def zmq_msg_get(self, message: int, name: int) -> int:
        return -1  # there are no connections

    def zmq_msg_more(self, message: int) -> int:
        return _word.from_address(message + 8 * _MORE).value

    def zmq_send(self, socket: int, data: int, num_bytes: int, flags: int) -> int:
        self._count()
        frame = ctypes.string_at(data, num_bytes)
        begun = self._begun.setdefault(socket, [])
        if not begun and (error := self.error_of(socket, frame)):
            return self._fail(error)
        begun.append(frame)
        if not flags & _SNDMORE:
            del self._begun[socket]
            if not self.is_dead:
                try:
                    self.on_send(socket, begun)
                except BaseException as failure:  # compiled code cannot carry it on
                    self.failure = failure
                    self.is_dead = True
        return num_bytes

    def zmq_poll(self, items: int, num_items: int, timeout_ms: int) -> int:
        found = 0
        for k in range(num_items):
            item = items + 16 * k
            has_come = bool(self.queues[_word.from_address(item).value])
            ctypes.c_int16.from_address(item + 14).value = has_come
            found += has_come
        self.timeout_ms = None if found else timeout_ms
        return found

    def zmq_errno(self) -> int:
        return self._errno

    def clock_gettime(self, clock: int, result: int) -> int:
        assert clock == time.CLOCK_MONOTONIC
        now = (_word * 2).from_address(result)
        now[0], now[1] = divmod(round(self.now_s * _NS_PER_S), _NS_PER_S)
        return 0


_SIGNATURES: dict[
    str, tuple[Any, ...]
] = {  # result, arguments: as `streamrnn_server.shard.libzmq` has
    "zmq_msg_init": (_int, _word),
    "zmq_msg_init_data": (_int, _word, _word, _word, _word, _word),
    "zmq_msg_close": (_int, _word),
    "zmq_msg_recv": (_int, _word, _word, _int),
    "zmq_msg_send": (_int, _word, _word, _int),
    "zmq_msg_data": (_word, _word),
    "zmq_msg_size": (_word, _word),
    "zmq_msg_get": (_int, _word, _int),
    "zmq_msg_more": (_int, _word),
    "zmq_send": (_int, _word, _word, _word, _int),
    "zmq_poll": (_int, _word, _int, _word),
    "zmq_errno": (_int,),
    "clock_gettime": (_int, _int, _word),
}
_kept: list[Any] = []


def take_over() -> Wire:
    """Make a wire the libzmq and the clock of all compiled code and Python of this process."""
    wire = Wire()
    for name, signature in _SIGNATURES.items():
        function = ctypes.CFUNCTYPE(*signature)(getattr(wire, name))
        _kept.append(function)
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        llvm.add_symbol(name, address)
    time.monotonic = lambda: wire.now_s
    time.monotonic_ns = lambda: round(wire.now_s * _NS_PER_S)
    time.time = lambda: random.uniform(0, 1e10)  # nobody may believe a clock that jumps
    return wire
