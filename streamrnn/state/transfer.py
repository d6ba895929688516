"""A stream's record without a server: out of an engine, into another, on whatever device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import RecordError
from streamrnn.model.model import Model
from streamrnn.state.record import (
    FRESH,
    StreamRecord,
    decode_record,
    encode_record,
    fits_model,
)
from streamrnn_client.protocol import DEFAULT_WINDOW, StreamId, canonical_id

__all__ = ["record_of_row", "row_of_record"]


def record_of_row(
    model: Model, arithmetic: str, stream: StreamId, row: NDArray[np.float32]
) -> bytes:
    """Write a stream's record. Nothing is numbered in it: its steps count from 1 anew.

    Returns
    -------
    bytes
        As docs/STATE.md describes it.
    """
    return encode_record(
        StreamRecord(
            stream=canonical_id(stream),
            model="",
            fingerprint=model.fingerprint,
            arithmetic=arithmetic,
            owner="",
            numbering=FRESH,
            window=DEFAULT_WINDOW,
            last_seq=0,
            clock_s=0,
            row=row.astype("<f4").tobytes(),
            digests=np.zeros(0, np.int64),
            outputs=np.zeros((0, 0), np.uint8),
        )
    )


def row_of_record(
    model: Model, arithmetic: str | None, row_bytes: int, data: bytes
) -> NDArray[np.float32]:
    """Read the state that a record holds.

    Raises
    ------
    RecordError
        If it is damaged, of another model, or of another arithmetic.
    """
    record = decode_record(data)
    if record.fingerprint != model.fingerprint:
        raise RecordError(
            f"the record is of the model {record.fingerprint}, and this one is {model.fingerprint}"
        )
    if arithmetic is not None and record.arithmetic != arithmetic:
        raise RecordError(
            f"the record's steps were computed by {record.arithmetic!r}; here it is "
            f"{arithmetic!r}, with which they do not repeat to the bit. To go on nevertheless, "
            "import it with any_arithmetic=True"
        )
    y_bytes, model_y_bytes = record.outputs.shape[1], 4 * model.spec.output_size
    if not fits_model(len(record.row), y_bytes, row_bytes, model_y_bytes):
        raise RecordError(
            f"the record has a row of {len(record.row)} and outputs of {y_bytes} bytes; the "
            f"model's have {row_bytes} and {model_y_bytes}"
        )
    return np.frombuffer(record.row, "<f4").astype(np.float32)
