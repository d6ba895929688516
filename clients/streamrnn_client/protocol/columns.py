"""A batch's answer in columns: four values, however many streams it has."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from streamrnn_client.protocol.codes import ErrorCode, ProtocolError

__all__ = ["Columns", "decode_batch_result", "encode_columns"]


class Columns(NamedTuple):
    """What became of the items of a batch; numbers and outputs of failed ones are zero.

    `errors` maps an item's index to ``[code, message, detail]``. `y` holds float32 in the order of
    the items, little-endian; it is empty if all have failed.
    """

    errors: dict[int, list[Any]]
    last_seqs: Sequence[int]
    durable_seqs: Sequence[int]
    y: bytes


def encode_columns(items: Sequence[Sequence[Any]]) -> list[Any]:
    """Return ``[errors, last_seqs, durable_seqs, y]`` of items ``[error, result]``.

    `result` is ``[last_seq, durable_seq, y]``, with y as bytes, or nil beside an error.
    """
    y_bytes = next((len(result[2]) for error, result in items if error is None), 0)
    failed = (0, 0, bytes(y_bytes))
    rows = [result if error is None else failed for error, result in items]
    return [
        {k: error for k, (error, _) in enumerate(items) if error is not None},
        struct.pack(f"<{len(rows)}Q", *[row[0] for row in rows]),
        struct.pack(f"<{len(rows)}Q", *[row[1] for row in rows]),
        b"".join([row[2] for row in rows]),
    ]


def decode_batch_result(result: Any, num_items: int) -> Columns:
    """Read a batch's result, whether in columns or, of an older server, item by item.

    Raises `ProtocolError` (``malformed``) if it is neither, or not that of so many items.
    """
    try:
        if len(result) == num_items and type(result[0]) is list:
            result = encode_columns(result)
        errors, last_seqs, durable_seqs, y = result
        form = f"<{num_items}Q"
        columns = Columns(
            errors, struct.unpack(form, last_seqs), struct.unpack(form, durable_seqs), y
        )
    except (ValueError, TypeError, LookupError, struct.error) as cause:
        raise _malformed(f"{num_items} streams were not answered as batch is: {cause}") from None
    if type(y) is not bytes or type(errors) is not dict:
        raise _malformed("the columns are not [errors, last_seqs, durable_seqs, y]")
    for k, error in errors.items():
        is_error = type(error) is list and len(error) == 3 and type(error[0]) is str
        if type(k) is not int or not 0 <= k < num_items or not is_error:
            raise _malformed(f"{k!r}: {error!r} is no error of one of {num_items} streams")
    return columns


def _malformed(what: str) -> ProtocolError:
    return ProtocolError(ErrorCode.MALFORMED, what)
