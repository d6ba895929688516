"""Messages to bytes, each one payload frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from streamrnn_client.protocol.codes import ErrorCode, error_reply

__all__ = [
    "NOTIFICATION",
    "REQUEST",
    "RESPONSE",
    "encode_bin_header",
    "encode_error",
    "encode_request",
    "encode_response",
    "encode_uint",
]

REQUEST, RESPONSE, NOTIFICATION = 0, 1, 2


def encode_request(msgid: int, method: str, params: Sequence[Any]) -> bytes:
    """Encode a request; x as bytes or as a contiguous memoryview becomes ``bin``."""
    return msgpack.packb((REQUEST, msgid, method, params))


def encode_response(msgid: int, result: Any) -> bytes:
    """Encode a response that carries a result."""
    return msgpack.packb((RESPONSE, msgid, None, result))


def encode_error(msgid: int, error: Sequence[Any]) -> bytes:
    """Encode a response that carries an error, ``[code, message, detail]``.

    Message and detail may hold what a client sent. If that cannot be encoded, the code goes alone.
    """
    try:
        return msgpack.packb((RESPONSE, msgid, error, None))
    except (ValueError, TypeError, OverflowError, RecursionError):
        bare = error_reply(ErrorCode[error[0].upper()])
        return msgpack.packb((RESPONSE, msgid, bare, None))


def encode_uint(value: int) -> bytes:
    """Encode an unsigned integer as ``uint 64``, the width that Python writes fastest."""
    return b"\xcf" + value.to_bytes(8, "big")


def encode_bin_header(num_bytes: int) -> bytes:
    """Encode the header of a ``bin``, so that its bytes need not be copied into one."""
    if num_bytes < 2**8:
        return b"\xc4" + num_bytes.to_bytes(1, "big")
    if num_bytes < 2**16:
        return b"\xc5" + num_bytes.to_bytes(2, "big")
    return b"\xc6" + num_bytes.to_bytes(4, "big")
