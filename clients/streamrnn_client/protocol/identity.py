"""Stream ids, their canonical bytes, and the shard they belong to."""

from __future__ import annotations

from streamrnn_client.protocol.codes import bad_params, kind_of

__all__ = [
    "MAX_ID_BYTES",
    "MAX_UINT_ID",
    "NUM_HASH_SLOTS",
    "StreamId",
    "canonical_id",
    "hash64",
    "hash_slot",
    "shard_of",
]

MAX_ID_BYTES = 128  # of a stream id's UTF-8
MAX_UINT_ID = 2**64 - 1
NUM_HASH_SLOTS = 16384
_HASH_SLOT_SHIFT = 64 - 14

_MASK64 = 2**64 - 1
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
_FMIX_1, _FMIX_2 = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53

StreamId = str | int


def canonical_id(stream: StreamId) -> bytes:
    """Return the canonical bytes of a stream id; 7 and "7" are two streams.

    ``b"s"`` and 1 to 128 bytes of UTF-8, or ``b"u"`` and 8 bytes big-endian. Raises
    `ProtocolError` (``bad_params``) if it is no stream id.
    """
    if type(stream) is str:
        try:
            text = stream.encode()
        except UnicodeEncodeError:
            raise bad_params(
                "the stream id is a str that is not valid UTF-8; use UTF-8, or a uint"
            ) from None
        if not 1 <= len(text) <= MAX_ID_BYTES:
            raise bad_params(
                f"the stream id is a str of {len(text)} bytes; "
                f"it must have 1 to {MAX_ID_BYTES} bytes of UTF-8"
            )
        return b"s" + text
    if type(stream) is int:
        if not 0 <= stream <= MAX_UINT_ID:
            known = str(stream) if stream.bit_length() <= 128 else "a longer number"
            raise bad_params(
                f"the stream id is {known}; a number must be from 0 to 2**64 - 1, or use a str"
            )
        return b"u" + stream.to_bytes(8, "big")
    if isinstance(stream, str | int) and type(stream) is not bool:
        plain = str.__str__(stream) if isinstance(stream, str) else int.__int__(stream)
        raise bad_params(
            f"the stream id is of class {type(stream).__name__}; it must be a plain str or int: "
            f"give {plain!r}"
        )
    raise bad_params(
        f"the stream id is {kind_of(stream)}; it must be a str of 1 to {MAX_ID_BYTES} bytes of "
        "UTF-8, or an unsigned integer"
    )


def hash64(data: bytes) -> int:
    """Hash canonical id bytes: 64-bit FNV-1a, then MurmurHash3's finaliser fmix64."""
    value = _FNV_OFFSET
    for byte in data:
        value = ((value ^ byte) * _FNV_PRIME) & _MASK64
    value = ((value ^ (value >> 33)) * _FMIX_1) & _MASK64
    value = ((value ^ (value >> 33)) * _FMIX_2) & _MASK64
    return value ^ (value >> 33)


def hash_slot(stream: StreamId) -> int:
    """Return the stream's hash slot: the 14 highest bits of the hash."""
    return hash64(canonical_id(stream)) >> _HASH_SLOT_SHIFT


def shard_of(slot: int, num_shards: int) -> int:
    """Return the shard that a hash slot belongs to."""
    return slot * num_shards // NUM_HASH_SLOTS
