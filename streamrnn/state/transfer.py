"""A stream's record without a server: out of an engine, into another, on whatever device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import RecordError, listed
from streamrnn.kernels.row_layout import first_row, named_parts
from streamrnn.model.model import Model
from streamrnn.state.record import (
    FRESH,
    StreamRecord,
    decode_record,
    encode_record,
    fits_model,
    unfit,
)
from streamrnn_client.protocol import DEFAULT_WINDOW, StreamId, canonical_id

__all__ = ["mapped_row", "record_of_row", "row_of_record"]


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
    sizes = len(record.row), record.outputs.shape[1], len(record.inputs)
    of_model = row_bytes, 4 * model.spec.output_size, 4 * model.spec.num_inputs
    if not fits_model(*sizes, *of_model):
        raise RecordError(unfit(sizes, of_model))
    return np.frombuffer(record.row, "<f4").astype(np.float32)


def mapped_row(source: Model, target: Model, row: NDArray[np.float32]) -> NDArray[np.float32]:
    """Begin a stream of one model with what a stream of another one keeps under the same names.

    So a decoder begins with its encoder's state. What the target alone keeps begins as always.

    Parameters
    ----------
    source, target : Model
        Whose layers have names; see `named_parts`.
    row : ndarray of float32, shape (row_bytes // 4,)
        Of the source.

    Returns
    -------
    ndarray of float32, shape (row_bytes // 4,)
        Of the target.

    Raises
    ------
    RecordError
        If no name is in both, or one has another size in each.
    """
    theirs, ours = named_parts(source.spec), named_parts(target.spec)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise RecordError(
            f"no part of the state has the same name in both models: one keeps "
            f"{listed(list(theirs)) or 'nothing by name'}, the other "
            f"{listed(list(ours)) or 'nothing by name'}; name the layers alike"
        )
    new = first_row(target)
    for name in shared:
        (at, size), (place, num) = theirs[name], ours[name]
        if size != num:
            raise RecordError(
                f"the part {name!r} of the state has {size} numbers in one model and {num} in the "
                "other"
            )
        new[place : place + num] = row[at : at + size]
    return new
