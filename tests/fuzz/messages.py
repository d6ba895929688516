"""Hostile requests: well-formed ones with bad values, records with right checksums, bent bytes.

A request is put together from encoded pieces, for the server should wait for this and not this for
the server: a schema names the kind of each parameter, and each kind has a pool of encoded values,
most of them right. Streams of others are never named.
"""

from __future__ import annotations

import random
import struct
import zlib

import msgpack

from streamrnn.state.record import HEAD_BYTES, RecordHead

__all__ = ["Messages", "mutate_record"]

NUM_INPUTS = 3
_STREAMS = [f"fuzz-{k}" for k in range(300)] + list(range(1000, 1100))
_NUMBERS: tuple[int, ...] = (
    *(0, 1, 2, 127, 128, 255, 256, 2**16 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62 - 1, 2**62),
    *(2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -128, -(2**31), -(2**63)),
)
_FLOATS = (0.0, -0.0, 1.5, 1e-310, 3e38, 1e39, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "m", "other", "a" * 128, "a" * 129, "é" * 64, "\0", "\n\x1b[2J", "a/../b", "x" * 3000)
_BAD_UTF8 = (b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82")

# The parameters of each method, by kind. `+` repeats a kind as an array.
_SCHEMAS = {
    "step": ("stream", "seq", "x"),
    "batch": ("streams", "seqs", "xs"),
    "open": ("stream", "model", "window"),
    "close": ("stream",),
    "reset": ("stream", "seq"),
    "hello": ("info",),
    "models": (),
    "stats": (),
    "export": ("stream",),
    "import": ("stream", "record", "model"),
    "fork": ("stream", "stream", "window"),
    "snapshot": ("stream", "name"),
    "rollback": ("stream", "seq", "name"),
    "sync": ("stream",),
    "diagnostics": ("stream",),
}
_WEIGHTS = {"step": 40, "batch": 10, "open": 15, "close": 4, "reset": 4, "import": 6, "export": 4}
_HEADS = (b"\x93", b"\x94", b"\x95", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x84", b"\xc6")


def _text(raw: bytes) -> bytes:
    """Encode bytes as a MessagePack str, whether they are UTF-8 or not."""
    return b"\xd9" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\xc4\x00"


def _x(rng: random.Random, num_steps: int) -> bytes:
    values = [rng.gauss(0, 1) for _ in range(num_steps * NUM_INPUTS)]
    return struct.pack(f"<{len(values)}f", *values)


class Messages:
    """An endless source of requests; equal seeds give equal ones.

    ``records`` may be filled with exported records, which are then bent and sent back.
    """

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.records: list[bytes] = []
        pack = msgpack.packb
        odd: list[object] = [*_NUMBERS, *_FLOATS, *_TEXTS, None, True, [], {}, [[]], {"a": 1}]
        odd += [b"", b"\0" * 7, [1, "a"], msgpack.ExtType(5, b"xyz"), [0] * 300]
        self._odd = [pack(value) for value in odd]
        self._odd += [_text(raw) for raw in _BAD_UTF8]
        self._odd += [b"\x91" * depth + b"\x01" for depth in (20, 400, 5000)]  # nested
        self._odd += [
            b"\xdb\xff\xff\xff\xff",
            b"\xdd\x7f\xff\xff\xff",
            b"\xc6\x80\x00\x00\x00",
            b"\xc1",
        ]
        good_seqs = [0] * 4 + list(range(1, 40))
        self._pools = {
            "stream": [pack(each) for each in _STREAMS] * 2,
            "seq": [pack(each) for each in good_seqs],
            "x": [pack(_x(rng, n)) for n in (1, 1, 1, 1, 2, 3, 16, 300)]
            + [pack([0.5] * NUM_INPUTS), pack([1, 2, 3]), pack(b"\0" * 5)]
            + [pack(struct.pack("<3f", value, 0, 0)) for value in _FLOATS if abs(value) < 3.4e38]
            + [pack(b"\0\0\xc0\x7f" * 3), pack([float("nan")] * 3), pack([1e300] * 3)],
            "model": [pack(None)] * 4 + [pack("m"), pack("nobody"), _text(_BAD_UTF8[0])],
            "window": [pack(n) for n in (0, 1, 4, 16, 100, 256, 257)],
            "name": [pack(each) for each in ("s", "t", "", "x" * 128, "x" * 129, None)],
            "info": [pack({}), pack({"client": "fuzz"}), pack(None)],
        }
        self._next_seq: dict[bytes, int] = {}
        methods = [name for name in _SCHEMAS for _ in range(_WEIGHTS.get(name, 1))]
        self._methods = [(pack(name), _SCHEMAS[name]) for name in methods]

    def next(self) -> bytes:
        """Return a message."""
        rng = self.rng
        chance = rng.random()
        if chance < 0.02:
            return rng.randbytes(rng.randrange(200))
        method, schema = rng.choice(self._methods)
        if chance < 0.03:
            method = rng.choice(self._odd)
        params = [self._param(kind) for kind in schema]
        if schema[1:2] == ("seq",) and rng.random() < 0.5:  # a number that the stream waits for
            seq = self._next_seq[params[0]] = self._next_seq.get(params[0], 0) + 1
            params[1] = b"\xce" + seq.to_bytes(4, "big")
        if chance < 0.06:
            params = params[: rng.randrange(4)] + [rng.choice(self._odd)] * rng.randrange(3)
        if schema[-1:] == ("xs",) and rng.random() < 0.5:
            params.append(b"\xc3")  # asks for columns
        body = [b"\x94\x00\xce", rng.getrandbits(32).to_bytes(4, "big"), method]
        message = b"".join([*body, bytes([0x90 | len(params)]), *params])
        return message if chance < 0.8 else self._bent(message)

    def _param(self, kind: str) -> bytes:
        rng = self.rng
        if rng.random() < 0.06:
            return rng.choice(self._odd)
        if kind == "record":
            if not self.records:
                return b"\xc4\x00"
            record = mutate_record(rng, rng.choice(self.records))
            return b"\xc6" + len(record).to_bytes(4, "big") + record
        if kind in ("streams", "seqs", "xs"):
            return self._many(kind)
        return rng.choice(self._pools[kind])

    def _many(self, kind: str) -> bytes:
        """Return a batch's parameter; the three of a batch often fit each other."""
        rng = self.rng
        num = rng.choice((0, 1, 4, 4, 4, 4, 31, 4096, 4097)) if rng.random() < 0.2 else 4
        if kind == "xs":
            num_bytes = 4 * NUM_INPUTS * num
            return (
                b"\xc6"
                + num_bytes.to_bytes(4, "big")
                + rng.randbytes(min(num_bytes, 3)) * (num_bytes // 3 if num_bytes else 0)
                + b"\0" * (num_bytes % 3)
            )
        pool = self._pools[kind[:-1]]
        head = b"\xdd" + num.to_bytes(4, "big")
        if num > 100:
            return head + rng.choice(pool) * num
        return head + b"".join(rng.choice(pool) for _ in range(num))

    def _bent(self, message: bytes) -> bytes:
        """Change a message's bytes: flip, cut, insert, or claim another length."""
        rng, data = self.rng, bytearray(message)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(data) + 1)
            how = rng.randrange(5)
            if how == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                del data[at:]
            elif how == 2:
                data[at:at] = rng.choice(self._odd)[:300]
            elif how == 3:
                data[at : at + 1] = rng.choice(_HEADS)
            elif at < len(data):
                data[at] = rng.choice((0, 0x7F, 0x80, 0xC1, 0xFF))
            if not data:
                break
        return bytes(data)


_FIELDS = {name: each[:2] for name, each in dict(RecordHead.dtype.fields or {}).items()}
_NUM_BYTES_AT = _FIELDS["num_bytes"][1]
_ODD_SIZES = (-1, 0, 1, 2, 3, 7, 8, 9, 64, 127, 128, 255, 256, 257, 4096, 2**15, 2**16, 2**31 - 1)


def mutate_record(rng: random.Random, record: bytes) -> bytes:
    """Change a record's fields, length or bytes, and give it the checksum that it then needs."""
    data = bytearray(record[:-4])
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        if rng.random() < 0.8:
            dtype, at = rng.choice(list(_FIELDS.values()))
            old = int.from_bytes(data[at : at + dtype.itemsize], "little")
            new = rng.choice((*_ODD_SIZES, *_NUMBERS, old + 1, old - 1, old * 2, old ^ 1))
            bits = 8 * dtype.itemsize
            data[at : at + dtype.itemsize] = (new % 2**bits).to_bytes(dtype.itemsize, "little")
        elif len(data) > HEAD_BYTES:
            at = rng.randrange(HEAD_BYTES, len(data))
            if rng.random() < 0.5:
                data[at] = rng.randrange(256)
            else:
                del data[at:]
                data += bytes(rng.choice((0, 0, 8, 64)))
    if rng.random() < 0.7 and len(data) >= HEAD_BYTES:
        data[_NUM_BYTES_AT : _NUM_BYTES_AT + 8] = (len(data) + 4).to_bytes(8, "little")
    return bytes(data) + zlib.crc32(data).to_bytes(4, "little")
