"""The one byte format of a stream, on disk or moved: docs/STATE.md states it.

This is the slow and obvious version, in which records are read everywhere and which judges the
compiled one that packs thousands of them for a checkpoint
(`streamrnn_server.shard.checkpoint.packing`). Reading is strict: whatever is torn, changed or
foreign is refused as a whole, with what is wrong and where. What a record's head may say is stated
once, in `fault_of` and `fits_model`, which the server compiles too.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import RecordError
from streamrnn.kernels.structs import I16, I32, I64, U8, Struct
from streamrnn_client.protocol import MAX_SEQ, MAX_WINDOW

__all__ = [
    "CHECKSUM_BYTES",
    "FRESH",
    "HEAD_BYTES",
    "MAGIC",
    "NUMBERED",
    "OLD_HEAD_BYTES",
    "UNNUMBERED",
    "VERSION",
    "RecordFault",
    "RecordHead",
    "StreamRecord",
    "check_id",
    "decode_record",
    "encode_record",
    "fault_of",
    "fits_model",
    "head_bytes_of",
    "inputs_bytes_of",
    "inputs_offset",
    "num_outputs_of",
    "row_offset",
    "unfit",
]

MAGIC = b"SRNN"
VERSION = 3  # the last one; a record without inputs is of version 2, and 1 is read too
FRESH, NUMBERED, UNNUMBERED = range(3)
_MAX_WINDOW_LOG2 = MAX_WINDOW.bit_length() - 1
_MAGIC = int.from_bytes(MAGIC, "little")
CHECKSUM_BYTES = 4


class RecordHead(Struct, packed=True):
    """What a record begins with; then id, names, row, ring, inputs kept and checksum."""

    magic: I32
    version: I16
    numbering: U8
    window_log2: U8
    num_bytes: I64  # of the record, all of it
    last_seq: I64
    clock_s: I64
    fingerprint: Annotated[Any, np.uint8, (32,)]
    row_bytes: I32
    y_bytes: I32  # of one output kept
    num_ring: I32  # steps remembered
    id_bytes: U8
    model_bytes: U8
    arithmetic_bytes: U8
    owner_bytes: U8
    # From here on not in version 1:
    incarnation: I64  # which of the streams that have had this id
    num_changes: I64  # of it so far, those that have a number and those that have none
    num_outputs: I32  # outputs kept, of the newest steps remembered: those not received yet
    inputs_bytes: I32  # of the inputs kept, the oldest first; 0 in version 2, above it in 3


HEAD_BYTES = RecordHead.dtype.itemsize
_FIELDS: list[str] = list(RecordHead.dtype.names or ())
_CODES = {"int64": "q", "int32": "i", "int16": "h", "uint8": "B"}
_HEAD = struct.Struct(  # the same, for Python: ten times as fast as NumPy for a single one
    "<"
    + "".join(
        f"{field.itemsize}s" if field.shape else _CODES[field.name]
        for field in (RecordHead.dtype[name] for name in _FIELDS)
    )
)
OLD_HEAD_BYTES = 80  # of version 1


class RecordFault(IntEnum):
    """What is wrong with a record's head."""

    NONE = 0
    TOO_SHORT = 1
    FOREIGN = 2
    VERSION = 3
    LENGTH = 4
    NUMBERS = 5
    RING = 6
    OUTPUTS = 7
    PARTS = 8
    HISTORY = 9


def fault_of(head: RecordHead, num_bytes: int) -> int:
    """Return the first `RecordFault` of a head at the beginning of so many bytes.

    Without one all parts lie within these bytes, and no number in it is out of its range.
    """
    if num_bytes < OLD_HEAD_BYTES + CHECKSUM_BYTES:
        return RecordFault.TOO_SHORT
    if head.magic != _MAGIC:
        return RecordFault.FOREIGN
    is_old = head.version == 1
    if not is_old and head.version != VERSION and head.version != VERSION - 1:
        return RecordFault.VERSION
    if head.num_bytes != num_bytes or num_bytes < head_bytes_of(head) + CHECKSUM_BYTES:
        return RecordFault.LENGTH
    last_seq, num_ring = head.last_seq, head.num_ring
    if (
        head.numbering > UNNUMBERED
        or head.window_log2 > _MAX_WINDOW_LOG2
        or last_seq < 0
        or last_seq > MAX_SEQ
        or head.clock_s < 0
    ):
        return RecordFault.NUMBERS
    is_numbered = head.numbering == NUMBERED
    kept = min(1 << head.window_log2, last_seq) if is_numbered else 0
    if num_ring != kept or (last_seq > 0 and not is_numbered):
        return RecordFault.RING
    keeps_outputs = num_ring > 0 and head.window_log2 > 0
    if head.y_bytes < 0 or head.y_bytes % 4 != 0 or (head.y_bytes > 0) != keeps_outputs:
        return RecordFault.OUTPUTS
    if not is_old and (
        head.incarnation < 0
        or head.num_changes < 0
        or head.num_outputs < 0
        or head.num_outputs > (num_ring if keeps_outputs else 0)
        or head.inputs_bytes < 0
        or head.inputs_bytes % 4 != 0
        or (head.inputs_bytes > 0) != (head.version == VERSION)
    ):
        return RecordFault.HISTORY
    if head.row_bytes < 0 or head.row_bytes % 64 != 0:
        return RecordFault.PARTS
    if inputs_offset(head) + inputs_bytes_of(head) + CHECKSUM_BYTES != num_bytes:
        return RecordFault.PARTS
    return RecordFault.NONE


def fits_model(
    row_bytes: int,
    y_bytes: int,
    inputs_bytes: int,
    model_row_bytes: int,
    model_y_bytes: int,
    model_x_bytes: int,
) -> bool:
    """Tell whether a record's row, outputs and inputs have the sizes of a model's; 0: none kept."""
    fits_y = y_bytes == 0 or y_bytes == model_y_bytes
    fits_x = inputs_bytes == 0 or inputs_bytes % model_x_bytes == 0
    return row_bytes == model_row_bytes and fits_y and fits_x


def unfit(sizes: tuple[int, int, int], of_model: tuple[int, int, int]) -> str:
    """Say why a record's sizes do not fit a model's, in the order of `fits_model`."""
    row, y, inputs = sizes
    return (
        f"a row of {row}, outputs of {y} and inputs of {inputs} bytes; the model's have "
        f"{of_model[0]}, {of_model[1]}, and a multiple of {of_model[2]}"
    )


def head_bytes_of(head: RecordHead) -> int:
    """Return how long a record's head is; the names follow it."""
    return OLD_HEAD_BYTES if head.version == 1 else HEAD_BYTES


def num_outputs_of(head: RecordHead) -> int:
    """Return how many outputs a record has, of the newest steps that it remembers."""
    if head.version == 1:
        return head.num_ring if head.y_bytes > 0 else 0
    return head.num_outputs


def inputs_bytes_of(head: RecordHead) -> int:
    """Return how many bytes the inputs have that a record keeps."""
    return 0 if head.version == 1 else head.inputs_bytes


def inputs_offset(head: RecordHead) -> int:
    """Return where in a record the inputs begin that it keeps; the checksum follows them."""
    ring_bytes = 8 * head.num_ring + num_outputs_of(head) * head.y_bytes
    return row_offset(head) + head.row_bytes + ring_bytes


def row_offset(head: RecordHead) -> int:
    """Return where in a record the row begins; digests, outputs and inputs follow it."""
    end = (
        head_bytes_of(head)
        + head.id_bytes
        + head.model_bytes
        + head.arithmetic_bytes
        + head.owner_bytes
    )
    return (end + 7) // 8 * 8


_FAULTS = {
    RecordFault.FOREIGN: "it begins with {start!r}, not with {MAGIC!r}: this is no stream record",
    RecordFault.VERSION: "the record has version {version}; up to {VERSION} is known",
    RecordFault.LENGTH: "the record says that it has {num_bytes} bytes, but it has {length}",
    RecordFault.NUMBERS: "it has numbering {numbering}, window 2**{window_log2}, last step "
    "{last_seq} of at most {MAX_SEQ}, clock {clock_s} s: there is no such stream",
    RecordFault.RING: "it keeps {num_ring} steps of {last_seq} with window 2**{window_log2}, "
    "numbering {numbering}: there is no such stream",
    RecordFault.OUTPUTS: "it has {num_ring} outputs of {y_bytes} bytes with window "
    "2**{window_log2}: there is no such stream",
    RecordFault.PARTS: "its parts, with a row of {row_bytes} bytes and {num_ring} outputs of "
    "{y_bytes}, do not make {length} bytes",
    RecordFault.HISTORY: "it has incarnation {incarnation}, {num_changes} changes, {num_outputs} "
    "outputs of {num_ring} steps, {inputs_bytes} bytes of inputs in version {version}: there is no "
    "such stream",
}


@dataclass(frozen=True)
class StreamRecord:
    """A stream, wherever it lies.

    Attributes
    ----------
    stream : bytes
        The canonical id.
    model : str
        Name of the model, as the server that wrote it called it.
    fingerprint : str
        The model's own, 64 hexadecimal digits.
    arithmetic : str
        Which arithmetic computed it; steps repeat to the bit within one.
    owner : str
        Name of the user whose stream it is; may be empty.
    numbering : int
        `FRESH` before the first step, then `NUMBERED` or `UNNUMBERED`.
    window : int
        A power of two, at most 256.
    last_seq : int
        The last step applied; 0 unless numbered.
    clock_s : int
        Seconds that servers had run on the directory when it was written; never a wall clock.
    row : bytes
        The model's state, little-endian float32.
    digests : ndarray of int64, shape (num_ring,)
        Of the inputs of the last ``min(window, last_seq)`` steps, the oldest first.
    outputs : ndarray of uint8, shape (num_outputs, y_bytes)
        Those of the newest of them, little-endian float32; with window 1 there are none, and
        y_bytes is 0.
    incarnation : int
        Which of the streams that have had this id, one after the other; 0 if nobody counts.
    num_changes : int
        How often this one was changed while a journal was kept, by whatever.
    inputs : bytes
        The last inputs as they came, the oldest first; empty where none are kept.
    """

    stream: bytes
    model: str
    fingerprint: str
    arithmetic: str
    owner: str
    numbering: int
    window: int
    last_seq: int
    clock_s: int
    row: bytes
    digests: NDArray[np.int64]
    outputs: NDArray[np.uint8]
    incarnation: int = 0
    num_changes: int = 0
    inputs: bytes = b""

    def renamed(self, stream: bytes) -> StreamRecord:
        """Return the same state under another id.

        Parameters
        ----------
        stream : bytes
            The canonical id.

        Returns
        -------
        StreamRecord
        """
        return replace(self, stream=stream, incarnation=0, num_changes=0)

    def begun_anew(self, window: int) -> StreamRecord:
        """Return the same state before a first step: nothing is numbered or remembered.

        Parameters
        ----------
        window : int
            The new stream's.

        Returns
        -------
        StreamRecord
        """
        return replace(
            self,
            numbering=FRESH,
            window=window,
            last_seq=0,
            incarnation=0,
            num_changes=0,
            digests=np.zeros(0, np.int64),
            outputs=np.zeros((0, 0), np.uint8),
        )


def encode_record(record: StreamRecord) -> bytes:
    """Write a record.

    Parameters
    ----------
    record : StreamRecord
        As `decode_record` returns it.

    Returns
    -------
    bytes
    """
    texts = [record.model.encode(), record.arithmetic.encode(), record.owner.encode()]
    names = b"".join([record.stream, *texts])
    num_ring = len(record.digests)
    num_outputs, y_bytes = record.outputs.shape if num_ring else (0, 0)
    body = b"".join(
        [
            names,
            bytes(-len(names) % 8),
            record.row,
            record.digests.astype("<i8").tobytes(),
            record.outputs.tobytes(),
            record.inputs,
        ]
    )
    values = (
        _MAGIC,
        VERSION if record.inputs else VERSION - 1,
        record.numbering,
        record.window.bit_length() - 1,
        HEAD_BYTES + len(body) + CHECKSUM_BYTES,
        record.last_seq,
        record.clock_s,
        bytes.fromhex(record.fingerprint),
        len(record.row),
        y_bytes,
        num_ring,
        len(record.stream),
        *map(len, texts),
        record.incarnation,
        record.num_changes,
        num_outputs if y_bytes else 0,
        len(record.inputs),
    )
    head = _HEAD.pack(*values)
    return head + body + zlib.crc32(body, zlib.crc32(head)).to_bytes(CHECKSUM_BYTES, "little")


def decode_record(data: bytes | bytearray | memoryview) -> StreamRecord:
    """Read a record, all of it or nothing.

    Parameters
    ----------
    data : bytes, bytearray or memoryview
        Exactly one record.

    Returns
    -------
    StreamRecord

    Raises
    ------
    RecordError
        If it is not one whole record of a version known, unchanged since it was written.
    """
    data = bytes(data)
    fewest = OLD_HEAD_BYTES + CHECKSUM_BYTES
    if len(data) < fewest:
        raise RecordError(f"the record has {len(data)} bytes, fewer than any has ({fewest})")
    numbers = _HEAD.unpack(data[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0"))
    head: Any = SimpleNamespace(**dict(zip(_FIELDS, numbers, strict=True)))
    fault = fault_of(head, len(data))
    is_ours = fault not in (RecordFault.FOREIGN, RecordFault.VERSION, RecordFault.LENGTH)
    stored = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    found = zlib.crc32(data[:-CHECKSUM_BYTES])
    if is_ours and stored != found:
        raise RecordError(
            f"its checksum is {stored:08x}, its bytes give {found:08x}: it is torn or changed"
        )
    if fault != RecordFault.NONE:
        words = {"MAGIC": MAGIC, "VERSION": VERSION, "MAX_SEQ": MAX_SEQ, "length": len(data)}
        text = _FAULTS[RecordFault(fault)]
        raise RecordError(text.format(**vars(head), **words, start=data[: len(MAGIC)]))
    lengths = [head.id_bytes, head.model_bytes, head.arithmetic_bytes, head.owner_bytes]
    names_at, begin = head_bytes_of(head), row_offset(head)
    at = names_at + sum(lengths)
    if any(data[at:begin]):
        raise RecordError(f"bytes {at} to {begin} of it are not all zero")
    stream, *texts = _split(data[names_at:at], lengths)
    check_id(stream)
    try:
        model, arithmetic, owner = (text.decode() for text in texts)
    except UnicodeDecodeError as error:
        raise RecordError(f"a name in it is not UTF-8: {error}") from error
    ring, num_ring, y_bytes = begin + head.row_bytes, head.num_ring, head.y_bytes
    num_outputs = num_outputs_of(head)
    outputs = np.frombuffer(data, np.uint8, num_outputs * y_bytes, ring + 8 * num_ring)
    return StreamRecord(
        stream=stream,
        model=model,
        fingerprint=head.fingerprint.hex(),
        arithmetic=arithmetic,
        owner=owner,
        numbering=head.numbering,
        window=1 << head.window_log2,
        last_seq=head.last_seq,
        clock_s=head.clock_s,
        row=data[begin:ring],
        digests=np.frombuffer(data, "<i8", num_ring, ring),
        outputs=outputs.reshape(num_outputs, y_bytes),
        incarnation=0 if head.version == 1 else head.incarnation,
        num_changes=0 if head.version == 1 else head.num_changes,
        inputs=data[inputs_offset(head) : -CHECKSUM_BYTES],
    )


def _split(data: bytes, lengths: list[int]) -> list[bytes]:
    ends = itertools.accumulate(lengths)
    return [data[end - length : end] for length, end in zip(lengths, ends, strict=True)]


def check_id(stream: bytes) -> None:
    """Raise RecordError if this is no canonical id."""
    if stream[:1] == b"u" and len(stream) == 9:
        return
    if stream[:1] == b"s" and 2 <= len(stream) <= 129:
        try:
            stream.decode()
        except UnicodeDecodeError:
            pass
        else:
            return
    raise RecordError(f"{stream[:16]!r} is no canonical stream id")
