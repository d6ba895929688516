"""Requests by method, and the check of each method's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streamrnn_client.protocol.codes import ErrorCode, ProtocolError, bad_params, kind_of
from streamrnn_client.protocol.identity import StreamId, canonical_id
from streamrnn_client.protocol.limits import MAX_UINT

__all__ = [
    "PARSERS",
    "BatchRequest",
    "CloseRequest",
    "ColdRequest",
    "OpenRequest",
    "OpenWithStateRequest",
    "Request",
    "ResetRequest",
    "StepRequest",
]


class StepRequest(NamedTuple):
    """One or several steps of one stream; ``first_seq`` 0 means unnumbered."""

    stream: StreamId
    first_seq: int
    x: bytes | list[float]
    received: int = 0  # the last step whose output the client has, as far as it says
    max_wait_ms: int | None = None  # steps that have waited so long are not computed


class BatchRequest(NamedTuple):
    """One step each of many streams; ``seqs`` None means unnumbered."""

    streams: list[StreamId]
    seqs: list[int] | None
    x: bytes | list[float]
    columns: bool = False  # whether the answer is `Columns`
    received: list[int] | None = None  # as of `StepRequest`
    max_wait_ms: int | None = None


class OpenRequest(NamedTuple):
    """Open one stream, or, with ``many``, a list of them; ``model`` None means the only one."""

    streams: list[StreamId]
    many: bool
    model: str | None
    window: int
    tells_oldest: bool = False  # whether the answer has the number of the oldest output kept


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
    received: int = 0  # as of `StepRequest`


class ColdRequest(NamedTuple):
    """A request that is answered in Python, where its parameters are checked."""

    params: list[Any]


class Request(NamedTuple):
    """A well-formed request: the msgid to answer, the method's name, its parameters."""

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


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expect_params(params: list[Any], schema: str, num_params: int) -> None:
    if len(params) != num_params:
        raise bad_params(f"{len(params)} parameters; the method takes {num_params}: {schema}")


def _parse_uint(value: object, what: str, max_value: int = MAX_UINT) -> int:
    if type(value) is not int or not 0 <= value <= max_value:
        raise bad_params(f"{what} is {kind_of(value)}; it must be an integer from 0 to {max_value}")
    return value


def _parse_x(x: object) -> bytes | list[float]:
    if type(x) is bytes:
        return x
    if type(x) is list:
        for position, value in enumerate(x):
            if type(value) is not float and type(value) is not int:
                raise bad_params(
                    f"element {position} of x is {kind_of(value)}; x must hold numbers only, "
                    "in one flat array"
                )
        return x
    hint = " (does your MessagePack library write bytes as str? switch bin on)" * (type(x) is str)
    raise bad_params(
        f"x is {kind_of(x)}{hint}; it must be a bin of little-endian float32 (uint32 for tokens) "
        "or a flat array of numbers"
    )


def _parse_streams(streams: object, max_batch: int) -> list[StreamId]:
    if type(streams) is not list:
        raise bad_params(f"streams is {kind_of(streams)}; it must be an array of stream ids")
    if len(streams) > max_batch:
        raise ProtocolError(ErrorCode.TOO_LARGE, num_items=len(streams), max=max_batch)
    for stream in streams:
        canonical_id(stream)
    return streams


def _parse_step(params: list[Any], _max_batch: int) -> StepRequest:
    if not 3 <= len(params) <= 5:
        schema = "[stream, first_seq, x, received, max_wait_ms], the last two as needed"
        _expect_params(params, schema, 3)
    stream, first_seq, x = params[:3]
    canonical_id(stream)
    received = _parse_uint(params[3] if len(params) > 3 else 0, "received")
    max_wait_ms = _parse_max_wait(params[4:])
    return StepRequest(
        stream, _parse_uint(first_seq, "first_seq"), _parse_x(x), received, max_wait_ms
    )


def _parse_max_wait(values: list[Any]) -> int | None:
    """Take the last parameter, which may be absent or nil."""
    is_there = bool(values) and values[0] is not None
    return _parse_uint(values[0], "max_wait_ms") if is_there else None


def _parse_batch(params: list[Any], max_batch: int) -> BatchRequest:
    if not 3 <= len(params) <= 6:
        schema = "[streams, seqs, X, columns, received, max_wait_ms], the last three as needed"
        _expect_params(params, schema, 3)
    streams, seqs, x = params[:3]
    columns = params[3] if len(params) > 3 else False
    if type(columns) is not bool:
        raise bad_params(f"columns is {kind_of(columns)}; it must be a bool")
    _parse_streams(streams, max_batch)
    seqs = _parse_numbers(seqs, "seqs", len(streams))
    received = _parse_numbers(params[4] if len(params) > 4 else None, "received", len(streams))
    max_wait_ms = _parse_max_wait(params[5:])
    return BatchRequest(streams, seqs, _parse_x(x), columns, received, max_wait_ms)


def _parse_numbers(numbers: object, what: str, num_streams: int) -> list[int] | None:
    if numbers is None:
        return None
    if type(numbers) is not list or len(numbers) != num_streams:
        raise bad_params(
            f"{what} is {kind_of(numbers)}; it must be nil or an array of {num_streams} numbers, "
            "one for each stream"
        )
    return [_parse_uint(number, f"a number in {what}") for number in numbers]


def _parse_open(params: list[Any], max_batch: int) -> OpenRequest | OpenWithStateRequest:
    if len(params) != 4:
        _expect_params(params, "[stream or array of streams, model, window]", 3)
    streams, model, window = params[:3]
    many = type(streams) is list
    streams = _parse_streams(streams if many else [streams], max_batch)
    if model is not None and type(model) is not str:
        raise bad_params(f"model is {kind_of(model)}; it must be a str, or nil for the only model")
    if model is not None and not _is_utf8(model):
        raise bad_params("model is a str that is not valid UTF-8")
    window = _parse_uint(window, "window")
    if len(params) == 3:
        return OpenRequest(streams, many, model, window)
    if type(params[3]) is bool:
        return OpenRequest(streams, many, model, window, params[3])
    if many or type(params[3]) is not bytes:
        raise bad_params(
            f"the fourth parameter is {kind_of(params[3])}; it must be the bin that export "
            "returned, for one stream, or a bool: whether to tell the oldest output"
        )
    return OpenWithStateRequest(streams[0], model, window, params[3])


def _parse_close(params: list[Any], _max_batch: int) -> CloseRequest:
    _expect_params(params, "[stream]", 1)
    canonical_id(params[0])
    return CloseRequest(params[0])


def _parse_reset(params: list[Any], _max_batch: int) -> ResetRequest:
    if len(params) != 3:
        _expect_params(params, "[stream, seq] or [stream, seq, received]", 2)
    canonical_id(params[0])
    received = _parse_uint(params[2] if len(params) == 3 else 0, "received")
    return ResetRequest(params[0], _parse_uint(params[1], "seq"), received)


PARSERS: Mapping[str, Callable[[list[Any], int], Any]] = {  # (params, max_batch) -> request
    "step": _parse_step,
    "batch": _parse_batch,
    "open": _parse_open,
    "close": _parse_close,
    "reset": _parse_reset,
}
