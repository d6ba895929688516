"""Error messages for codes set in compiled code."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streamrnn.model.spec import ModelSpec
from streamrnn_client.protocol import (
    MAX_SEQ,
    ErrorCode,
    StreamId,
    encode_columns,
    encode_error,
    encode_response,
    error_reply,
)
from streamrnn_server.control.messages import Ask
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.memory.admission import busy_reply
from streamrnn_server.shard.requests.request import Form, Kind

__all__ = ["stream_of", "word_error", "word_items"]

_KEY_REFUSED = (
    "the server does not take this connection's key any more, nothing was changed: ask its operator"
)
_NO_ROUTING_ID = (
    "this connection has no routing id of its own, and a server with keys answers none that libzmq "
    "gave, for the next client may be given the same: set ZMQ_ROUTING_ID to 16 random bytes, of "
    "which the first is not 0; nothing was changed"
)
_AUTOMATIC_ID_BYTES = 5
KnownAbout = Callable[[ErrorCode, bytes], dict[str, Any]]


def stream_of(canonical: bytes) -> StreamId | None:
    """Return the stream id that canonical bytes stand for."""
    if not canonical:
        return None
    if canonical[:1] == b"u":
        return int.from_bytes(canonical[1:], "big")
    return canonical[1:].decode()


def _bad_value(details: Sequence[int], spec: ModelSpec) -> dict[str, Any]:
    step, number, bits, _ = details
    item = spec.input_elements[number]
    detail: dict[str, Any] = {"step": step, "input": number, "name": item.name}
    raw = struct.pack("<i", bits)
    if item.kind == "numeric":
        value = float(np.frombuffer(raw, np.float32)[0])
        detail["value"] = "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"
        detail["expected"] = "it must be finite" + (
            ", for the model knows no meaning of a missing value (NaN)" * math.isnan(value)
        )
        return detail
    dtype = np.uint32 if item.kind == "token" else np.float32
    detail["value"] = str(np.frombuffer(raw, dtype)[0])
    detail["expected"] = f"it must be a whole number from 0 to {item.num_categories - 1}"
    return detail


def _detail(
    code: ErrorCode,
    details: Sequence[int],
    stream: StreamId | None,
    models: Sequence[tuple[str, ModelSpec]],
) -> dict[str, Any]:
    """Give the numbers their names."""
    a, b, c, d = details
    named: dict[str, Any] = {}
    if code is ErrorCode.MALFORMED:
        named = {"num_frames": a}
    elif code is ErrorCode.TOO_LARGE:
        named = {"num_bytes": a, "max": b}
    elif code is ErrorCode.BAD_PARAMS:
        named = {"first_seq": a, "num_steps": b, "max": MAX_SEQ}
    elif code is ErrorCode.WRONG_MODEL:
        named = {"has": models[a][0], "model": models[b][0]}
    elif code is ErrorCode.WRONG_LENGTH:
        named = {"num_bytes": a, "expected": c} if c else {"expected_multiple": b, "num_bytes": a}
        if d == Form.ARRAY:
            named = {"num_values": a // 4, "expected_multiple": b // 4}
            if c:
                named["expected"] = c // 4
    elif code is ErrorCode.BAD_VALUE:
        named = _bad_value(details, models[d][1])
    elif code is ErrorCode.GAP:
        named = {"expected": a, "got": b}
    elif code is ErrorCode.STALE:
        named = {"got": a, "oldest": b}
    elif code is ErrorCode.CONFLICT:
        named = {"seq": a}
    elif code is ErrorCode.WINDOW:
        named = {"num_steps": a, "window": b}
    elif code is ErrorCode.UNKNOWN_SNAPSHOT and a != 0:
        return {}  # a named one: the text without details does not say that there is none at all
    elif code is ErrorCode.QUARANTINED:
        named = {"seq": a, "expected": b}
    if stream is not None:
        named["stream"] = stream
    return named


def word_error(ask: Ask, models: Sequence[tuple[str, ModelSpec]], known_about: KnownAbout) -> bytes:
    """Word the error that a request ended with.

    Returns
    -------
    bytes
        The reply's payload.
    """
    code = ErrorCode(ask.code)
    if code is ErrorCode.FORBIDDEN and not ask.body:
        is_automatic = len(ask.identity) == _AUTOMATIC_ID_BYTES and not ask.identity[0]
        text = _NO_ROUTING_ID if is_automatic else _KEY_REFUSED
        return encode_error(ask.msgid, error_reply(code, text))
    detail = _detail(code, ask.details, stream_of(ask.body), models)
    detail |= known_about(code, ask.body)
    return encode_error(ask.msgid, error_reply(code, **detail))


def word_items(
    ask: Ask,
    models: Sequence[tuple[str, ModelSpec]],
    retry_after_ms: int,
    endpoints: Sequence[str],
    known_about: KnownAbout,
) -> bytes:
    """Word a batch's reply, or that of an `open` of many streams, in which some items failed.

    Returns
    -------
    bytes
        The reply's payload.
    """
    items: list[list[Any]] = []
    at = 0
    for _ in range(ask.num_items):
        item = np.frombuffer(ask.body, w.Item.dtype, 1, at)[0]
        at += w.ITEM_BYTES
        canonical = ask.body[at : at + int(item["id_bytes"])]
        stream = stream_of(canonical)
        at += len(canonical)
        y = ask.body[at : at + int(item["y_bytes"])]
        at += len(y)
        details = item["detail"].tolist()
        if item["code"] == 0:
            result: list[Any] = [int(item["last_seq"]), int(item["durable_seq"])]
            if ask.kind == Kind.STEP_MANY:
                as_numbers = ask.form == Form.ARRAY and not ask.columns
                result.append(np.frombuffer(y, np.float32).tolist() if as_numbers else y)
            else:
                result.append(int(item["window"]))
                if item["oldest_output"] >= 0:
                    result.append(int(item["oldest_output"]))
            items.append([None, result])
            continue
        code = ErrorCode(int(item["code"]))
        if code is ErrorCode.BUSY:
            error = busy_reply(details[0], details[1] or retry_after_ms)
        elif code is ErrorCode.MOVED and details[0] >= 0:
            error = error_reply(code, endpoint=endpoints[details[0]])
        else:
            detail = _detail(code, details, stream, models) | known_about(code, canonical)
            error = error_reply(code, **detail)
        items.append([error, None])
    return encode_response(ask.msgid, encode_columns(items) if ask.columns else items)
