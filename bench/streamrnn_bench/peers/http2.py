"""As much of HTTP/2 (RFC 9113) as a gRPC client with a few calls needs, and no more.

What is measured is servers, so their client should cost little. Bytes in, bytes out: `Connection`
reads no socket. Headers of answers are not decoded: only data matters, and that a call has not
ended.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from streamrnn_bench.report.results import BenchError

__all__ = ["Connection"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
(_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW) = range(9)
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SETTING, _MAX_WINDOW = 4, 2**31 - 1
_FIRST_WINDOW, _MAX_FRAME = 65_535, 16_384
_RENEW_WINDOW_AT = 2**28


class _Call:
    """One call: what is still to be sent, and what has come of a message."""

    def __init__(self, number: int, window: int) -> None:
        self.number, self.window = number, window
        self.to_send, self.came = bytearray(), bytearray()


class Connection:
    """Client side of one connection with ``num_calls`` calls of one method, which all stay open.

    Raises a `BenchError` if the server ends a call or the connection, or breaks the protocol.
    """

    def __init__(self, path: str, num_calls: int) -> None:
        self._window, self._first_window = _FIRST_WINDOW, _FIRST_WINDOW
        self._came = bytearray()
        self._num_received = 0
        self._calls = [_Call(2 * k + 1, _FIRST_WINDOW) for k in range(num_calls)]
        self._by_number = {call.number: call for call in self._calls}
        headers = _headers(path)
        setting = struct.pack(">HI", _INITIAL_WINDOW_SETTING, _MAX_WINDOW)
        self._out = bytearray(_PREFACE)
        self._out += _frame(_SETTINGS, 0, 0, setting)
        self._out += _frame(_WINDOW, 0, 0, struct.pack(">I", _MAX_WINDOW - _FIRST_WINDOW))
        for call in self._calls:
            self._out += _frame(_HEADERS, _END_HEADERS, call.number, headers)

    def send(self, call: int, message: bytes) -> None:
        """Queue a message of a call."""
        to_send = self._calls[call].to_send
        to_send += struct.pack(">BI", 0, len(message))
        to_send += message

    def take_out(self) -> bytes:
        """Return what may be sent now, as far as the server's windows allow."""
        for call in self._calls:
            while call.to_send:
                size = min(len(call.to_send), _MAX_FRAME, self._window, call.window)
                if size <= 0:
                    break
                self._out += _frame(_DATA, 0, call.number, call.to_send[:size])
                del call.to_send[:size]
                self._window -= size
                call.window -= size
        out = bytes(self._out)
        self._out.clear()
        return out

    def messages(self, data: bytes) -> Iterator[bytes]:
        """Take bytes from the server; yield the messages that are whole now."""
        if not data:
            raise BenchError("the server has closed the connection")
        came = self._came
        came += data
        at = 0
        while len(came) - at >= 9:
            size = int.from_bytes(came[at : at + 3], "big")
            if len(came) - at < 9 + size:
                break
            kind, flags = came[at + 3], came[at + 4]
            number = int.from_bytes(came[at + 5 : at + 9], "big") & _MAX_WINDOW
            payload = bytes(came[at + 9 : at + 9 + size])
            at += 9 + size
            if kind == _DATA:
                yield from self._data(number, payload)
            else:
                self._control(kind, flags, number, payload)
            if flags & _END_STREAM and kind in (_DATA, _HEADERS):
                raise BenchError("the server has ended a call")
        del came[:at]

    def _data(self, number: int, payload: bytes) -> Iterator[bytes]:
        self._num_received += len(payload)
        if self._num_received >= _RENEW_WINDOW_AT:
            renewed = struct.pack(">I", self._num_received)
            self._out += _frame(_WINDOW, 0, 0, renewed)
            self._num_received = 0
        # A call's own window is not renewed: 2 GiB are more than a measurement takes.
        came = self._call(number).came
        came += payload
        at = 0
        while len(came) - at >= 5:
            size = int.from_bytes(came[at + 1 : at + 5], "big")
            if came[at]:
                raise BenchError("the server compresses its messages, which was not asked for")
            if len(came) - at < 5 + size:
                break
            yield bytes(came[at + 5 : at + 5 + size])
            at += 5 + size
        del came[:at]

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", _sized(payload, len(payload) // 6 * 6)):
                if name == _INITIAL_WINDOW_SETTING:
                    for call in self._calls:
                        call.window += value - self._first_window
                    self._first_window = value
            self._out += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW:
            (more,) = struct.unpack(">I", _sized(payload, 4))
            if number:
                self._call(number).window += more
            else:
                self._window += more
        elif kind == _RST:
            raise BenchError(f"the server has broken off a call: code {payload.hex()}")
        elif kind == _GOAWAY:
            raise BenchError(
                f"the server ends the connection: {payload[8:].decode(errors='replace')}"
            )

    def _call(self, number: int) -> _Call:
        call = self._by_number.get(number)
        if call is None:
            raise BenchError("the server answers a call that was not made")
        return call


def _sized(payload: bytes, size: int) -> bytes:
    if len(payload) != size:
        raise BenchError(f"the server has sent a frame of {len(payload)} bytes, expected {size}")
    return payload


def _frame(kind: int, flags: int, number: int, payload: bytes | bytearray) -> bytes:
    return (len(payload) << 40 | kind << 32 | flags << 24).to_bytes(8, "big")[:5] + (
        number.to_bytes(4, "big") + payload
    )


def _headers(path: str) -> bytes:
    """Encode a gRPC request's headers without compression (HPACK, RFC 7541, appendix A)."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    method_post, scheme_http = b"\x83", b"\x86"
    return (
        method_post
        + scheme_http
        + (b"\x04" + text(path))
        + (b"\x01" + text("localhost"))
        + (b"\x0f\x10" + text("application/grpc"))
        + (b"\x00" + text("te") + text("trailers"))
    )
