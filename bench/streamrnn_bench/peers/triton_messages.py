"""Messages of Triton's `ModelStreamInfer` (KServe v2), as bytes of Protocol Buffers."""

from __future__ import annotations

from collections.abc import Iterator

from streamrnn_bench.report.results import BenchError

__all__ = ["INFER_PATH", "MODEL", "ReplyReader", "request_head"]

INFER_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
MODEL = "lstm"
_BYTES = 2  # the wire type of what has a length
_ID_DIGITS = 6


def request_head(stream: int, starts: bool, num_inputs: int) -> bytes:
    """Encode a step's request up to its input, whose bytes follow.

    Its id is the stream's number; Triton's sequences begin at 1.
    """
    shape = _field(3, _varint(1) + _varint(num_inputs))
    tensor = _field(1, b"x") + _field(2, b"FP32") + shape
    return (
        _field(1, MODEL.encode())
        + _field(3, b"%0*d" % (_ID_DIGITS, stream))
        + _parameter(b"sequence_id", b"\x10" + _varint(stream + 1))
        + _parameter(b"sequence_start", b"\x08" + _varint(starts))
        + _parameter(b"sequence_end", b"\x08" + _varint(False))
        + _field(5, tensor)
        + (_varint(7 << 3 | _BYTES) + _varint(4 * num_inputs))
    )


def _parameter(name: bytes, value: bytes) -> bytes:
    return _field(4, _field(1, name) + _field(2, value))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class ReplyReader:
    """Reader of replies: the stream, and the output's bytes.

    All replies are laid out alike, so only the first one is read field by field.
    """

    def __init__(self, y_bytes: int) -> None:
        self._y_bytes = y_bytes
        self._id_at = 0
        self._before = b""
        self._size = 0

    def __call__(self, message: bytes) -> tuple[int, bytes]:
        """Return stream and output; a `BenchError` if it is an error, or is laid out otherwise."""
        if not self._size:
            self._learn(message)
        at = self._id_at
        if len(message) != self._size or message[:at] != self._before:
            _refuse(message)
        return int(message[at : at + _ID_DIGITS]), message[-self._y_bytes :]

    def _learn(self, message: bytes) -> None:
        places = {1: (0, 0)}
        for number, start, size in _fields(message, 0, len(message)):
            if number == 1 and size:  # error_message
                _refuse(message)
            if number == 2:  # infer_response
                places = {n: (a, s) for n, a, s in _fields(message, start, start + size)}
        id_at, id_size = places.get(3, (0, 0))
        y_at, y_size = places.get(6, (0, 0))  # raw_output_contents
        if id_size != _ID_DIGITS or y_size != self._y_bytes or y_at + y_size != len(message):
            raise BenchError(f"a reply of Triton's is laid out in another way: {message[:200]!r}")
        self._id_at, self._before, self._size = id_at, message[:id_at], len(message)


def _refuse(message: bytes) -> None:
    for number, start, size in _fields(message, 0, len(message)):
        if number == 1 and size:
            raise BenchError(f"Triton: {message[start : start + size].decode(errors='replace')}")
    raise BenchError(f"a reply of Triton's is laid out in another way: {message[:200]!r}")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, place and size of the fields that have a length."""
    while at < end:
        tag, at = _read_varint(data, at, end)
        value, after = _read_varint(data, at, end)
        at = after
        if tag & 7 == _BYTES:
            if at + value > end:
                raise BenchError("a reply of Triton's is cut off")
            yield tag >> 3, at, value
            at += value
        elif tag & 7:
            raise BenchError(f"a reply of Triton's has a field of wire type {tag & 7}")


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise BenchError("a reply of Triton's is cut off")
