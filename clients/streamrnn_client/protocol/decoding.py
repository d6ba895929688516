"""Bytes to requests and responses."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from streamrnn_client.protocol.codes import ErrorCode, ProtocolError, kind_of
from streamrnn_client.protocol.encoding import REQUEST, RESPONSE
from streamrnn_client.protocol.limits import COLD_METHODS, HOT_METHODS, MAX_BATCH, MAX_MSGID
from streamrnn_client.protocol.requests import PARSERS, ColdRequest, Request

__all__ = ["Response", "decode_request", "decode_response"]


class Response(NamedTuple):
    """A response; ``error`` is None or ``[code, message, detail]``."""

    msgid: int
    error: list[Any] | None
    result: Any


def decode_request(
    payload: bytes,
    *,
    max_message_bytes: int | None = None,
    max_batch: int = MAX_BATCH,
    cold_methods: Sequence[str] = COLD_METHODS,
) -> Request:
    """Decode a request and check its form, though not what only the server can know.

    Raises `ProtocolError` (``malformed``, ``too_large``, ``unknown_method`` or ``bad_params``),
    with the msgid wherever it could be read. `max_message_bytes` None means no limit; `max_batch`
    bounds the streams of one `batch` or `open`; `cold_methods` are known besides the hot ones.
    """
    msgid, method, params = _decode_envelope(payload)
    try:
        if max_message_bytes is not None and len(payload) > max_message_bytes:
            raise ProtocolError(ErrorCode.TOO_LARGE, num_bytes=len(payload), max=max_message_bytes)
        parse = PARSERS.get(method)
        if parse is not None:
            return Request(msgid, method, parse(params, max_batch))
        if method in cold_methods:
            return Request(msgid, method, ColdRequest(params))
        known = [*HOT_METHODS, *cold_methods]
        method = method[:64].encode(errors="replace").decode()
        nearest = difflib.get_close_matches(method, known, 1)
        hint: dict[str, Any] = {"nearest": nearest[0]} if nearest else {}
        raise ProtocolError(ErrorCode.UNKNOWN_METHOD, method=method, methods=known, **hint)
    except ProtocolError as error:
        error.msgid = msgid
        raise


def decode_response(payload: bytes) -> Response:
    """Decode a response; raises `ProtocolError` (``malformed``) if it is none."""
    try:
        message = msgpack.unpackb(payload, strict_map_key=False)
        kind, msgid, error, result = message
    except (ValueError, TypeError, RecursionError) as cause:
        raise ProtocolError(
            ErrorCode.MALFORMED, f"the reply is not [1, msgid, error, result]: {cause}"
        ) from None
    well_formed_error = error is None or (
        type(error) is list and len(error) == 3 and type(error[0]) is str
    )
    if kind != RESPONSE or type(msgid) is not int or not well_formed_error:
        raise ProtocolError(ErrorCode.MALFORMED, "the reply is not [1, msgid, error, result]")
    return Response(msgid, error, result)


def _decode_envelope(payload: bytes) -> tuple[int, str, list[Any]]:
    """Read ``[0, msgid, method, params]``; once the msgid is read, errors carry it."""
    msgid: int | None = None
    try:
        # An id that is not UTF-8 is answered with an error text, so it has to survive decoding.
        unpacker = msgpack.Unpacker(
            max_buffer_size=max(len(payload), 1),
            strict_map_key=False,
            unicode_errors="surrogateescape",
        )
        unpacker.feed(payload)
        length = unpacker.read_array_header()
        kind = unpacker.unpack() if length else None
        if type(kind) is not int or kind != REQUEST:
            raise ProtocolError(
                ErrorCode.MALFORMED,
                f"the message's first element is {kind_of(kind)}; a request's is 0",
            )
        candidate = unpacker.unpack() if length > 1 else None
        if type(candidate) is not int or not 0 <= candidate <= MAX_MSGID:
            raise ProtocolError(
                ErrorCode.MALFORMED, f"msgid is {kind_of(candidate)}; it must be a 32-bit uint"
            )
        msgid = candidate
        if length != 4:
            raise ProtocolError(
                ErrorCode.MALFORMED,
                f"the request has {length} elements; it must be [0, msgid, method, params]",
            )
        method, params = unpacker.unpack(), unpacker.unpack()
        if type(method) is not str:
            raise ProtocolError(
                ErrorCode.MALFORMED, f"method is {kind_of(method)}; it must be a str"
            )
        if type(params) is not list:
            raise ProtocolError(
                ErrorCode.MALFORMED, f"params is {kind_of(params)}; it must be an array"
            )
        if unpacker.tell() != len(payload):
            raise ProtocolError(
                ErrorCode.MALFORMED,
                f"{len(payload) - unpacker.tell()} bytes follow the request; send one a message",
            )
        return msgid, method, params
    except ProtocolError as error:
        error.msgid = msgid
        raise
    except (msgpack.OutOfData, ValueError, TypeError, RecursionError, OverflowError) as cause:
        raise ProtocolError(
            ErrorCode.MALFORMED,
            f"the message of {len(payload)} bytes is not one whole MessagePack array "
            f"[0, msgid, method, params] ({cause or type(cause).__name__})",
            msgid=msgid,
        ) from None
