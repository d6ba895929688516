"""The words of errors that compiled code could only number."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from streamrnn.model.spec import ModelSpec
from streamrnn_client.protocol.messages import (
    ErrorCode,
    StreamId,
    encode_error,
    encode_response,
    error_reply,
)
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.requests import request as r

__all__ = ["Ask", "parse_ask", "stream_of", "word_error", "word_items"]


KnownAbout = Callable[[ErrorCode, bytes], dict[str, Any]]


class Ask(NamedTuple):
    """What a shard asks Python for: numbers, whom to answer, and a body."""

    ask: int
    msgid: int
    code: int
    details: tuple[int, ...]
    model: int
    kind: int
    form: int
    num_items: int
    identity: bytes
    body: bytes
    owner: int = 0


def parse_ask(message: bytes, payload: bytes | None = None) -> Ask:
    """Read what `streamrnn_server.shard.wire.reply` wrote.

    Parameters
    ----------
    message : bytes
        The first frame from the PAIR.
    payload : bytes or None
        The second, where there is one: the body.

    Returns
    -------
    Ask
    """
    ask = np.frombuffer(message, w.Ask.dtype, 1)[0]
    begin = w.ASK_BYTES + int(ask["identity_bytes"])
    numbers = ("msgid", "code", "model", "kind", "form", "num_items", "owner")
    return Ask(
        ask=int(ask["what"]),
        details=tuple(ask["detail"].tolist()),
        identity=message[w.ASK_BYTES : begin],
        body=message[begin:] if payload is None else payload,
        **{name: int(ask[name]) for name in numbers},
    )


def stream_of(canonical: bytes) -> StreamId | None:
    """Return the stream id that canonical bytes stand for.

    Parameters
    ----------
    canonical : bytes
        As `streamrnn_client.protocol.messages.canonical_id` makes them; empty where there is no
        stream.

    Returns
    -------
    str, int or None
    """
    if not canonical:
        return None
    if canonical[:1] == b"u":
        return int.from_bytes(canonical[1:], "big")
    return canonical[1:].decode()


def _bad_value(details: Sequence[int], spec: ModelSpec) -> dict[str, Any]:
    step, number, bits, _ = details
    item = spec.inputs[number]
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
    elif code is ErrorCode.WRONG_MODEL:
        named = {"has": models[a][0], "model": models[b][0]}
    elif code is ErrorCode.WRONG_LENGTH:
        named = {"num_bytes": a, "expected": c} if c else {"expected_multiple": b, "num_bytes": a}
        if d == r.FORM_ARRAY:
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
    elif code is ErrorCode.QUARANTINED:
        named = {"seq": a, "expected": b}
    if stream is not None:
        named["stream"] = stream
    return named


def word_error(ask: Ask, models: Sequence[tuple[str, ModelSpec]], known_about: KnownAbout) -> bytes:
    """Word the error that a request ended with.

    Parameters
    ----------
    ask : Ask
        Its body is the canonical stream id, or empty.
    models : sequence of (str, ModelSpec)
        Names and descriptions, in the shard's order.
    known_about : callable
        Takes the code and the canonical stream id; returns details that the shard has not.

    Returns
    -------
    bytes
        The reply's payload.
    """
    code = ErrorCode(ask.code)
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

    Parameters
    ----------
    ask : Ask
        Its body holds the items.
    models : sequence of (str, ModelSpec)
        Names and descriptions, in the shard's order.
    retry_after_ms : int
        What goes with `busy`.
    endpoints : sequence of str
        Where each shard is, for `moved`.
    known_about : callable
        As for `word_error`.

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
            what: Any = int(item["window"])
            if ask.kind == r.BATCH:
                what = np.frombuffer(y, np.float32).tolist() if ask.form == r.FORM_ARRAY else y
            items.append([None, [int(item["last_seq"]), int(item["durable_seq"]), what]])
            continue
        code = ErrorCode(int(item["code"]))
        if code is ErrorCode.BUSY:
            detail: dict[str, Any] = {"retry_after_ms": retry_after_ms}
        elif code is ErrorCode.MOVED:
            detail = {"endpoint": endpoints[details[0]]}
        else:
            detail = _detail(code, details, stream, models) | known_about(code, canonical)
        items.append([error_reply(code, **detail), None])
    return encode_response(ask.msgid, items)
