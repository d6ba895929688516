"""Messages to bytes.

`streamrnn_client.protocol.messages` hands these on; import them from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

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
    """Encode a request.

    Parameters
    ----------
    msgid : int
        0 to 2**32 - 1; the response carries it.
    method : str
        One of `HOT_METHODS` or `COLD_METHODS`.
    params : sequence
        As the method's schema says; x as bytes or as a contiguous memoryview becomes ``bin``.

    Returns
    -------
    bytes
        The payload frame.
    """
    return msgpack.packb((REQUEST, msgid, method, params))


def encode_response(msgid: int, result: Any) -> bytes:
    """Encode a response that carries a result.

    Parameters
    ----------
    msgid : int
        The request's.
    result : Any
        As the method's schema says.

    Returns
    -------
    bytes
        The payload frame.
    """
    return msgpack.packb((RESPONSE, msgid, None, result))


def encode_error(msgid: int, error: Sequence[Any]) -> bytes:
    """Encode a response that carries an error.

    Parameters
    ----------
    msgid : int
        The request's.
    error : sequence
        ``[code, message, detail]``, from `error_reply` or `ProtocolError.reply`.

    Returns
    -------
    bytes
        The payload frame.
    """
    return msgpack.packb((RESPONSE, msgid, error, None))


def encode_uint(value: int) -> bytes:
    """Encode an unsigned integer in the one width that is fastest to write from Python.

    Parameters
    ----------
    value : int
        0 to 2**64 - 1.

    Returns
    -------
    bytes
        ``uint 64``: 9 bytes, whatever the value.
    """
    return b"\xcf" + value.to_bytes(8, "big")


def encode_bin_header(num_bytes: int) -> bytes:
    """Encode what stands before the bytes of a bin, so that they need not be copied into one.

    Parameters
    ----------
    num_bytes : int
        Length of the bin.

    Returns
    -------
    bytes
        ``bin 8``, ``bin 16`` or ``bin 32``.
    """
    if num_bytes < 2**8:
        return b"\xc4" + num_bytes.to_bytes(1, "big")
    if num_bytes < 2**16:
        return b"\xc5" + num_bytes.to_bytes(2, "big")
    return b"\xc6" + num_bytes.to_bytes(4, "big")
