"""The wire, in pure Python and without sockets: bytes in, requests or responses out.

This is the single list of the protocol's constants and error codes; the server imports it, and
`docs/protocol.md` states it for other languages. A message is one MessagePack array::

    request   [0, msgid, method, params]      client (DEALER) -> server (ROUTER)
    response  [1, msgid, error, result]       error is nil or [code, message, detail]

Whatever a message's sender did wrong is raised as `ProtocolError`, which knows the error code, the
words, and, where it could be read, the msgid to answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from streamrnn_client.protocol.codes import (
    ErrorCode,
    ProtocolError,
    error_message,
    error_reply,
    kind_of,
)
from streamrnn_client.protocol.encoding import (
    REQUEST,
    RESPONSE,
    encode_bin_header,
    encode_error,
    encode_request,
    encode_response,
    encode_uint,
)
from streamrnn_client.protocol.identity import (
    MAX_ID_BYTES,
    MAX_UINT_ID,
    NUM_HASH_SLOTS,
    StreamId,
    canonical_id,
    hash64,
    hash_slot,
    shard_of,
)

__all__ = [
    "COLD_METHODS",
    "DEFAULT_MAX_MESSAGE_BYTES",
    "DEFAULT_PORT",
    "DEFAULT_WINDOW",
    "DURABILITIES",
    "HOT_METHODS",
    "MAX_BATCH",
    "MAX_ID_BYTES",
    "MAX_MSGID",
    "MAX_SEQ",
    "MAX_SNAPSHOT_NAME_BYTES",
    "MAX_UINT_ID",
    "MAX_WINDOW",
    "NUM_HASH_SLOTS",
    "PROTOCOL_VERSION",
    "REQUEST",
    "RESPONSE",
    "BatchRequest",
    "CloseRequest",
    "ColdRequest",
    "ErrorCode",
    "OpenRequest",
    "OpenWithStateRequest",
    "ProtocolError",
    "Request",
    "ResetRequest",
    "Response",
    "StepRequest",
    "StreamId",
    "canonical_id",
    "decode_request",
    "decode_response",
    "encode_bin_header",
    "encode_error",
    "encode_request",
    "encode_response",
    "encode_uint",
    "error_message",
    "error_reply",
    "grant_window",
    "hash64",
    "hash_slot",
    "shard_of",
]

PROTOCOL_VERSION = 1
DEFAULT_PORT = 7070
MAX_MSGID = 2**32 - 1
MAX_SEQ = 2**63 - 1  # of a chunk's last step
DEFAULT_WINDOW = 16
MAX_WINDOW = 256
MAX_BATCH = 4096  # default of `max_batch` in `hello`
DEFAULT_MAX_MESSAGE_BYTES = 8 * 2**20  # default of `max_message_bytes` in `hello`

HOT_METHODS = ("step", "batch", "open", "close", "reset")
COLD_METHODS = (
    "hello",
    "models",
    "stats",
    "export",
    "import",
    "fork",
    "snapshot",
    "rollback",
    "sync",
)
DURABILITIES = ("none", "checkpoint", "always")  # `durability` in `hello`
MAX_SNAPSHOT_NAME_BYTES = 128


class StepRequest(NamedTuple):
    """One or several steps of one stream; ``first_seq`` 0 means unnumbered."""

    stream: StreamId
    first_seq: int
    x: bytes | list[float]


class BatchRequest(NamedTuple):
    """One step each of many streams; ``seqs`` None means unnumbered."""

    streams: list[StreamId]
    seqs: list[int] | None
    x: bytes | list[float]


class OpenRequest(NamedTuple):
    """Open one stream, or, with ``many``, a list of them; ``model`` None means the only one."""

    streams: list[StreamId]
    many: bool
    model: str | None
    window: int


class OpenWithStateRequest(NamedTuple):
    """Open a stream that does not exist yet, with the state that an exported record holds."""

    stream: StreamId
    model: str | None
    window: int
    record: bytes


class CloseRequest(NamedTuple):
    """Close one stream and forget its state."""

    stream: StreamId


class ResetRequest(NamedTuple):
    """Set one stream's state back to that of a new one; ``seq`` 0 on an unnumbered stream."""

    stream: StreamId
    seq: int


class ColdRequest(NamedTuple):
    """A request that Python answers; the parameters are the method's own business."""

    params: list[Any]


class Request(NamedTuple):
    """A request whose form is right: whom to answer, the method's name, what it asks."""

    msgid: int
    method: str
    call: (
        StepRequest
        | BatchRequest
        | OpenRequest
        | OpenWithStateRequest
        | CloseRequest
        | ResetRequest
        | ColdRequest
    )


class Response(NamedTuple):
    """A response; ``error`` is None or ``[code, message, detail]``."""

    msgid: int
    error: list[Any] | None
    result: Any


def grant_window(asked: int, max_window: int = MAX_WINDOW) -> int:
    """Return the window that a server grants: a power of two, not above what was asked.

    Parameters
    ----------
    asked : int
        What the client asked for; 0 means the default, 16.
    max_window : int
        The server's own bound.

    Returns
    -------
    int
        The largest power of two that is not above either.
    """
    bound = min(asked or DEFAULT_WINDOW, max_window)
    return 1 << (max(bound, 1).bit_length() - 1)


def decode_request(
    payload: bytes,
    *,
    max_message_bytes: int | None = None,
    max_batch: int = MAX_BATCH,
    cold_methods: Sequence[str] = COLD_METHODS,
) -> Request:
    """Decode a request and check its form, though not what only the server can know.

    Parameters
    ----------
    payload : bytes
        The payload frame.
    max_message_bytes : int or None
        Soft limit of the payload's length; None for no limit.
    max_batch : int
        The most streams in one `batch` or `open`.
    cold_methods : sequence of str
        Methods besides the hot ones that the server knows.

    Returns
    -------
    Request

    Raises
    ------
    ProtocolError
        ``malformed``, ``too_large``, ``unknown_method`` or ``bad_params``, with the msgid
        wherever it could be read.
    """
    msgid, method, params = _decode_envelope(payload)
    try:
        if max_message_bytes is not None and len(payload) > max_message_bytes:
            raise ProtocolError(ErrorCode.TOO_LARGE, num_bytes=len(payload), max=max_message_bytes)
        parse = _PARSERS.get(method)
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
    """Decode a response.

    Parameters
    ----------
    payload : bytes
        The payload frame.

    Returns
    -------
    Response

    Raises
    ------
    ProtocolError
        ``malformed``, if it is no response.
    """
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
        # An id that is not UTF-8 must be answered in words, so it has to survive decoding.
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


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bad_params(what: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_PARAMS, what)


def _expect_params(params: list[Any], schema: str, num_params: int) -> None:
    if len(params) != num_params:
        raise _bad_params(f"{len(params)} parameters; the method takes {num_params}: {schema}")


def _parse_uint(value: object, what: str, max_value: int = MAX_SEQ) -> int:
    if type(value) is not int or not 0 <= value <= max_value:
        raise _bad_params(
            f"{what} is {kind_of(value)}; it must be an integer from 0 to {max_value}"
        )
    return value


def _parse_x(x: object) -> bytes | list[float]:
    if type(x) is bytes:
        return x
    if type(x) is list:
        for position, value in enumerate(x):
            if type(value) is not float and type(value) is not int:
                raise _bad_params(
                    f"element {position} of x is {kind_of(value)}; x must hold numbers only, "
                    "in one flat array"
                )
        return x
    hint = " (does your MessagePack library write bytes as str? switch bin on)" * (type(x) is str)
    raise _bad_params(
        f"x is {kind_of(x)}{hint}; it must be a bin of little-endian float32 (uint32 for tokens) "
        "or a flat array of numbers"
    )


def _parse_streams(streams: object, max_batch: int) -> list[StreamId]:
    if type(streams) is not list:
        raise _bad_params(f"streams is {kind_of(streams)}; it must be an array of stream ids")
    if len(streams) > max_batch:
        raise ProtocolError(ErrorCode.TOO_LARGE, num_items=len(streams), max=max_batch)
    for stream in streams:
        canonical_id(stream)
    return streams


def _parse_step(params: list[Any], _max_batch: int) -> StepRequest:
    _expect_params(params, "[stream, first_seq, x]", 3)
    stream, first_seq, x = params
    canonical_id(stream)
    return StepRequest(stream, _parse_uint(first_seq, "first_seq"), _parse_x(x))


def _parse_batch(params: list[Any], max_batch: int) -> BatchRequest:
    _expect_params(params, "[streams, seqs, X]", 3)
    streams, seqs, x = params
    _parse_streams(streams, max_batch)
    if seqs is not None:
        if type(seqs) is not list or len(seqs) != len(streams):
            raise _bad_params(
                f"seqs is {kind_of(seqs)}; it must be nil or an array of {len(streams)} numbers, "
                "one for each stream"
            )
        for seq in seqs:
            _parse_uint(seq, "a number in seqs")
    return BatchRequest(streams, seqs, _parse_x(x))


def _parse_open(params: list[Any], max_batch: int) -> OpenRequest | OpenWithStateRequest:
    if len(params) != 4:
        _expect_params(params, "[stream or array of streams, model, window]", 3)
    streams, model, window = params[:3]
    many = type(streams) is list
    streams = _parse_streams(streams if many else [streams], max_batch)
    if model is not None and type(model) is not str:
        raise _bad_params(f"model is {kind_of(model)}; it must be a str, or nil for the only model")
    if model is not None and not _is_utf8(model):
        raise _bad_params("model is a str that is not valid UTF-8")
    window = _parse_uint(window, "window")
    if len(params) == 3:
        return OpenRequest(streams, many, model, window)
    if many or type(params[3]) is not bytes:
        raise _bad_params(
            f"the initial state is {kind_of(params[3])}; it must be the bin that export returned, "
            "for one stream"
        )
    return OpenWithStateRequest(streams[0], model, window, params[3])


def _parse_close(params: list[Any], _max_batch: int) -> CloseRequest:
    _expect_params(params, "[stream]", 1)
    canonical_id(params[0])
    return CloseRequest(params[0])


def _parse_reset(params: list[Any], _max_batch: int) -> ResetRequest:
    _expect_params(params, "[stream, seq]", 2)
    canonical_id(params[0])
    return ResetRequest(params[0], _parse_uint(params[1], "seq"))


_PARSERS: dict[str, Any] = {
    "step": _parse_step,
    "batch": _parse_batch,
    "open": _parse_open,
    "close": _parse_close,
    "reset": _parse_reset,
}
