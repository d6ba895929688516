"""libzmq for compiled code: the very library that pyzmq has loaded, called without Python.

Sockets are made and configured by pyzmq and handed over as `zmq.Socket.underlying`. Every pointer
is an int64 here. What each function does, and which errors it knows, stands in libzmq's own manual.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path
from socket import SHUT_RDWR

import llvmlite.binding as llvm
import zmq
import zmq.backend.cython._zmq as backend
from numba.core import types
from numba.types import ExternalFunction

from streamrnn.errors import StartError
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, load_u16, store_i32, store_i64, store_u16

__all__ = [
    "EMPTY",
    "FAILED",
    "LIBRARY",
    "MESSAGE_BYTES",
    "POLL_BYTES",
    "cut_connection",
    "free_memory",
    "get_memory",
    "monotonic_ns",
    "msg_close",
    "msg_data",
    "msg_init",
    "msg_init_data",
    "msg_more",
    "msg_property",
    "msg_send",
    "msg_size",
    "poll_sockets",
    "receive_frame",
    "send_bytes",
]

MESSAGE_BYTES = 64  # sizeof(zmq_msg_t)
POLL_BYTES = 64  # four zmq_pollitem_t
EMPTY, FAILED = -1, -2  # results of `receive_frame` besides a size
_DONTWAIT, _SNDMORE, _POLLIN = int(zmq.DONTWAIT), int(zmq.SNDMORE), int(zmq.POLLIN)
_SRCFD = 2  # the file descriptor of the connection that a message came by
_EINTR, _EAGAIN = errno.EINTR, errno.EAGAIN
_SHUT_RDWR = int(SHUT_RDWR)
_CLOCK_MONOTONIC = 1 if sys.platform == "linux" else 6


def _candidates() -> Iterator[str]:
    """Yield the files in which pyzmq's libzmq may be, the most certain first."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        for line in maps.read_text().splitlines():
            path = line.split(maxsplit=5)[5:]
            if path and "libzmq" in Path(path[0]).name:
                yield path[0]
    package = Path(zmq.__file__).parent
    for directory in (package.parent / "pyzmq.libs", package / ".dylibs", package):
        yield from map(str, sorted(directory.glob("libzmq*")))
    # Linked into pyzmq's extension itself.
    yield str(backend.__file__)


def _load() -> str:
    """Make the symbols of pyzmq's libzmq known to compiled code, and return its file."""
    for path in _candidates():
        try:
            found = hasattr(CDLL(path), "zmq_msg_recv")
        except OSError:
            continue
        if found:
            llvm.load_library_permanently(path)
            return path
    raise StartError(
        f"cannot find the libzmq that pyzmq {zmq.pyzmq_version()} uses ({backend.__file__}); "
        "reinstall pyzmq from its wheel: pip install --force-reinstall pyzmq"
    )


LIBRARY = _load()

_int, _word = types.int32, types.int64
_zmq_msg_init = ExternalFunction("zmq_msg_init", _int(_word))
_zmq_msg_init_data = ExternalFunction("zmq_msg_init_data", _int(*5 * (_word,)))
_zmq_msg_close = ExternalFunction("zmq_msg_close", _int(_word))
_zmq_msg_recv = ExternalFunction("zmq_msg_recv", _int(_word, _word, _int))
_zmq_msg_send = ExternalFunction("zmq_msg_send", _int(_word, _word, _int))
_zmq_msg_data = ExternalFunction("zmq_msg_data", _word(_word))
_zmq_msg_size = ExternalFunction("zmq_msg_size", _word(_word))
_zmq_msg_gets = ExternalFunction("zmq_msg_gets", _word(_word, _word))
_zmq_msg_get = ExternalFunction("zmq_msg_get", _int(_word, _int))
_zmq_msg_more = ExternalFunction("zmq_msg_more", _int(_word))
_zmq_send = ExternalFunction("zmq_send", _int(_word, _word, _word, _int))
_zmq_poll = ExternalFunction("zmq_poll", _int(_word, _int, _word))
_zmq_errno = ExternalFunction("zmq_errno", _int())
_clock_gettime = ExternalFunction("clock_gettime", _int(_int, _word))
_shutdown = ExternalFunction("shutdown", _int(_int, _int))
_malloc = ExternalFunction("malloc", _word(_word))
_free = ExternalFunction("free", _int(_word))  # returns nothing that is looked at


@jit
def msg_init(message: int) -> None:
    """Make the `MESSAGE_BYTES` at an address an empty message; they must not move."""
    _zmq_msg_init(message)


@jit
def get_memory(num_bytes: int) -> int:
    """Return the address of so many bytes of the C library's; 0 if there are none."""
    return _malloc(num_bytes)


@jit
def free_memory(block: int) -> None:
    """Give back what `get_memory` returned; from any thread."""
    _free(block)


@jit
def msg_init_data(message: int, data: int, num_bytes: int, when_done: int, hint: int) -> bool:
    """Make a message of memory of ours; false if libzmq has none for itself.

    ``when_done`` is the address of a function that takes ``data`` and ``hint``; libzmq calls it
    once, in any of its threads or in the caller's, when it no longer needs the memory.
    """
    return _zmq_msg_init_data(message, data, num_bytes, when_done, hint) == 0


@jit
def msg_close(message: int) -> None:
    """Free the content of a message."""
    _zmq_msg_close(message)


@jit
def msg_data(message: int) -> int:
    """Return the address of a message's content: unaligned, valid until the next receive."""
    return _zmq_msg_data(message)


@jit
def msg_size(message: int) -> int:
    """Return the number of bytes of a message's content."""
    return _zmq_msg_size(message)


@jit
def msg_property(message: int, name: int) -> int:
    """Return a property of a message, such as its connection's `User-Id`.

    Both the name and the result are addresses of text that ends with a zero; 0 if there is none.
    """
    return _zmq_msg_gets(message, name)


@jit
def cut_connection(message: int) -> None:
    """End the connection by which a message has just come; its peer may connect again."""
    descriptor = _zmq_msg_get(message, _SRCFD)
    if descriptor >= 0:
        _shutdown(descriptor, _SHUT_RDWR)


@jit
def msg_more(message: int) -> bool:
    """Tell whether another frame follows the one just received."""
    return _zmq_msg_more(message) != 0


@jit
def receive_frame(socket: int, message: int) -> int:
    """Receive one frame without waiting; retry after signals.

    Returns its size in bytes, `EMPTY` if there is none, or `FAILED` if the socket is closed. The
    message must be initialised; its former content is freed.
    """
    while True:
        size = _zmq_msg_recv(message, socket, _DONTWAIT)
        if size >= 0:
            return size
        error = _zmq_errno()
        if error == _EAGAIN:
            return EMPTY
        if error != _EINTR:
            return FAILED


@jit
def send_bytes(socket: int, data: int, num_bytes: int, more: bool) -> int:
    """Send one frame, copied, without waiting; return 0 or the error number.

    EAGAIN means that the reader is too slow, EHOSTUNREACH that it is gone.
    """
    flags = _DONTWAIT | _SNDMORE if more else _DONTWAIT
    while True:
        if _zmq_send(socket, data, num_bytes, flags) >= 0:
            return 0
        error = _zmq_errno()
        if error != _EINTR:
            return error


@jit
def msg_send(socket: int, message: int, more: bool) -> int:
    """Forward a received frame without copying it; return as `send_bytes` does.

    The message is empty afterwards; after an error it still has its content.
    """
    flags = _DONTWAIT | _SNDMORE if more else _DONTWAIT
    while True:
        if _zmq_msg_send(message, socket, flags) >= 0:
            return 0
        error = _zmq_errno()
        if error != _EINTR:
            return error


@jit
def poll_sockets(
    items: int, first: int, second: int, third: int, fourth: int, timeout_ms: int
) -> int:
    """Wait until a socket can be read; return a bit for each that can, 0 after the timeout.

    ``items`` is the address of `POLL_BYTES` of scratch. ``fourth`` may be 0, for none, and so may
    ``third`` be with it. A timeout of -1 never passes. A signal ends the wait too.
    """
    num_sockets = 2 if third == 0 else 3 if fourth == 0 else 4
    for k in range(num_sockets):
        item = items + 16 * k
        store_i64(item, first if k == 0 else second if k == 1 else third if k == 2 else fourth)
        store_i32(item + 8, -1)
        store_u16(item + 12, _POLLIN)
        store_u16(item + 14, 0)
    if _zmq_poll(items, num_sockets, timeout_ms) <= 0:
        return 0
    result = 0
    for k in range(num_sockets):
        if load_u16(items + 16 * k + 14) != 0:
            result |= 1 << k
    return result


@jit
def monotonic_ns(scratch: int) -> int:
    """Return the monotonic clock's nanoseconds; ``scratch`` is the address of 16 bytes."""
    _clock_gettime(_CLOCK_MONOTONIC, scratch)
    return load_i64(scratch) * 1_000_000_000 + load_i64(scratch + 8)
