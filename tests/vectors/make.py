"""Write `tests/vectors/wire.json`: ``python tests/vectors/make.py``.

Messages are put together byte by byte here, in every width that an encoder of MessagePack may
choose, without the codec that is to be judged. What a message means is stated beside it.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("wire.json")

ERRORS = """
malformed too_large unknown_method bad_params unknown unknown_model wrong_model wrong_length
bad_value gap stale conflict mixed_numbering window busy moved expired not_supported internal
mismatch quarantined exists read_only damaged unknown_snapshot forbidden late
"""
NIL, FALSE, TRUE = b"\xc0", b"\xc2", b"\xc3"


def uint(value: int, bits: int = 0) -> bytes:
    """An unsigned integer; 0 bits is the fixint form."""
    if bits == 0:
        assert 0 <= value < 128
        return bytes([value])
    return {8: b"\xcc", 16: b"\xcd", 32: b"\xce", 64: b"\xcf"}[bits] + value.to_bytes(bits // 8)


def sint(value: int, bits: int = 0) -> bytes:
    """A signed integer; 0 bits is the negative fixint form."""
    if bits == 0:
        assert -32 <= value < 0
        return bytes([256 + value])
    head = {8: b"\xd0", 16: b"\xd1", 32: b"\xd2", 64: b"\xd3"}[bits]
    return head + value.to_bytes(bits // 8, signed=True)


def sized(content: bytes, size: int, bits: int, heads: dict[int, int], fix: int | None) -> bytes:
    if bits == 0:
        assert fix is not None
        return bytes([fix | size]) + content
    return bytes([heads[bits]]) + size.to_bytes(bits // 8) + content


def raw(content: bytes, bits: int = 0) -> bytes:
    """A str of any bytes; 0 bits is fixstr."""
    return sized(content, len(content), bits, {8: 0xD9, 16: 0xDA, 32: 0xDB}, 0xA0)


def text(content: str, bits: int | None = None) -> bytes:
    data = content.encode()
    return raw(data, (0 if len(data) < 32 else 8) if bits is None else bits)


def binary(content: bytes, bits: int = 8) -> bytes:
    return sized(content, len(content), bits, {8: 0xC4, 16: 0xC5, 32: 0xC6}, None)


def array(*items: bytes, bits: int | None = None) -> bytes:
    width = (0 if len(items) < 16 else 16) if bits is None else bits
    return sized(b"".join(items), len(items), width, {16: 0xDC, 32: 0xDD}, 0x90)


def bool_of(value: bool) -> bytes:
    return TRUE if value else FALSE


def float32(value: float) -> bytes:
    return b"\xca" + struct.pack(">f", value)


def float64(value: float) -> bytes:
    return b"\xcb" + struct.pack(">d", value)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


X = floats(1.0, -2.5)
STEP = text("step")
ONE = uint(1)


def request(method: bytes, params: bytes, msgid: bytes = ONE, kind: bytes = uint(0)) -> bytes:
    return array(kind, msgid, method, params)


def step(stream: bytes = text("a"), seq: bytes = ONE, x: bytes = binary(X), **parts: Any) -> bytes:
    return request(STEP, array(stream, seq, x), **parts)


def valid_requests() -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = []

    absent: dict[str, dict[str, Any]] = {  # what a parameter that is left out means
        "step": {"received": 0, "max_wait_ms": None},
        "reset": {"received": 0},
        "batch": {"received": None, "max_wait_ms": None},
        "open": {"tells_oldest": False},
    }

    def add(name: str, message: bytes, method: str, msgid: int = 1, **meaning: Any) -> None:
        head = {"name": name, "hex": message.hex(), "msgid": msgid, "method": method}
        vectors.append({**head, **absent.get(method, {}), **meaning})

    def add_step(name: str, message: bytes, msgid: int = 1, **meaning: Any) -> None:
        defaults = {"stream": {"str": "a"}, "first_seq": 1, "x_bin": X.hex()}
        if "x_float32" in meaning:
            del defaults["x_bin"]
        add(name, message, "step", msgid, **{**defaults, **meaning})

    add_step("step, the shortest forms", step())
    for bits in (8, 16, 32, 64):
        add_step(f"step, kind as uint {bits}", step(kind=uint(0, bits)))
        add_step(f"step, kind as int {bits}", step(kind=sint(0, bits)))
        add_step(f"step, msgid as uint {bits}", step(msgid=uint(200, bits)), 200)
        add_step(f"step, seq as uint {bits}", step(seq=uint(100, bits)), first_seq=100)
        add_step(f"step, seq as int {bits}", step(seq=sint(100, bits)), first_seq=100)
        stream = {"uint": "42"}
        add_step(f"step, stream as uint {bits}", step(uint(42, bits)), stream=stream)
        add_step(f"step, stream as int {bits}", step(sint(42, bits)), stream=stream)
        if bits < 64:
            add_step(f"step, stream as str {bits}", step(text("a", bits)))
            add_step(f"step, x as bin {bits}", step(x=binary(X, bits)))
            add_step(
                f"step, method as str {bits}",
                request(text("step", bits), array(text("a"), ONE, binary(X))),
            )
        if bits in (16, 32):
            params = array(text("a"), ONE, binary(X), bits=bits)
            add_step(f"step, params as array {bits}", request(STEP, params))
            add_step(
                f"step, request as array {bits}",
                array(uint(0), ONE, STEP, array(text("a"), ONE, binary(X)), bits=bits),
            )
    add_step("step, the largest msgid", step(msgid=uint(2**32 - 1, 32)), 2**32 - 1)
    add_step("step, the largest msgid as uint 64", step(msgid=uint(2**32 - 1, 64)), 2**32 - 1)
    add_step("step, msgid 0", step(msgid=uint(0)), 0)
    add_step("step, unnumbered", step(seq=uint(0)), first_seq=0)
    add_step("step, the largest seq", step(seq=uint(2**63 - 1, 64)), first_seq=2**63 - 1)
    add_step("step, stream 0", step(uint(0)), stream={"uint": "0"})
    add_step("step, the largest stream", step(uint(2**64 - 1, 64)), stream={"uint": str(2**64 - 1)})
    for name in ("x" * 128, "\0", "Ä", "漢字", "\U0001f600", "\ud7ff", "\ue000", "7"):
        label = f"{len(name.encode())} bytes, begins with {name[:1]!a}"
        add_step(f"step, stream of {label}", step(text(name)), stream={"str": name})
    add_step("step, x of three steps of two inputs", step(x=binary(X * 3)), x_bin=(X * 3).hex())
    add_step("step, x that holds NaN and Inf", step(x=binary(floats(float("nan"), float("inf")))),
             x_bin=floats(float("nan"), float("inf")).hex())  # fmt: skip
    add_step("step, x that is no whole number of floats", step(x=binary(b"abc")), x_bin="616263")
    add_step("step, x empty", step(x=binary(b"")), x_bin="")
    numbers: list[tuple[str, list[bytes], list[float]]] = [
        ("float 64", [float64(1.5), float64(-0.1)], [1.5, -0.1]),
        ("float 32", [float32(1.5), float32(-0.1)], [1.5, -0.1]),
        ("fixint", [uint(5), sint(-5)], [5, -5]),
        ("int 8", [sint(-100, 8), sint(100, 8)], [-100, 100]),
        ("int 16", [sint(-1000, 16), sint(1000, 16)], [-1000, 1000]),
        ("int 32", [sint(-(2**31), 32), sint(7, 32)], [-(2.0**31), 7]),
        ("int 64", [sint(-(2**63), 64), sint(7, 64)], [-(2.0**63), 7]),
        ("uint 8 and 16", [uint(255, 8), uint(65535, 16)], [255, 65535]),
        ("uint 32 and 64", [uint(2**32 - 1, 32), uint(2**64 - 1, 64)], [2.0**32, 2.0**64]),
        ("all mixed", [uint(1), float64(2.5)], [1, 2.5]),
        ("nothing", [], []),
    ]
    for label, items, values in numbers:
        for wide in (None, 16, 32):
            width = f" in array {wide}" if wide else ""
            add_step(
                f"step, x as numbers, {label}{width}",
                step(x=array(*items, bits=wide)),
                x_float32=floats(*values).hex(),
            )
    add_step(
        "step, x as 16 numbers",
        step(x=array(*[float64(k) for k in range(16)])),
        x_float32=floats(*range(16)).hex(),
    )

    for received, bits in ((0, 0), (7, 16), (2**63 - 1, 64)):
        add_step(f"step, received {received}",
                 request(STEP, array(text("a"), uint(8), binary(X), uint(received, bits))),
                 first_seq=8, received=received)  # fmt: skip
    add_step("step, received, x as numbers, params as array 32",
             request(STEP, array(text("a"), ONE, array(ONE), uint(5, 64), bits=32)),
             x_float32=floats(1).hex(), received=5)  # fmt: skip

    waits = [(uint(ms, bits), ms) for ms, bits in ((0, 0), (20, 32), (2**63 - 1, 64))]
    for encoded, waits_ms in [(NIL, None), *waits]:
        add_step(f"step, waits {waits_ms}",
                 request(STEP, array(text("a"), uint(8), binary(X), uint(7), encoded)),
                 first_seq=8, received=7, max_wait_ms=waits_ms)  # fmt: skip

    two = array(text("a"), uint(7))
    streams = [{"str": "a"}, {"uint": "7"}]
    for bits in (0, 16, 32):
        ids = array(text("a"), uint(7), bits=bits)
        seqs = array(uint(3), uint(9, 64), bits=bits)
        message = request(text("batch"), array(ids, seqs, binary(X * 2), bits=bits))
        add(f"batch, arrays of {bits or 4} bits", message, "batch",
            streams=streams, seqs=[3, 9], x_bin=(X * 2).hex(), columns=False)  # fmt: skip
    add("batch, unnumbered", request(text("batch"), array(two, NIL, binary(X * 2))), "batch",
        streams=streams, seqs=None, x_bin=(X * 2).hex(), columns=False)  # fmt: skip
    add("batch, x as numbers",
        request(text("batch"), array(two, NIL, array(uint(1), float64(2), sint(-3), uint(4)))),
        "batch", streams=streams, seqs=None, x_float32=floats(1, 2, -3, 4).hex(),
        columns=False)  # fmt: skip
    for bits in (0, 16, 32):
        for columns in (True, False):
            params = array(two, array(uint(3), uint(9)), binary(X * 2), bool_of(columns), bits=bits)
            add(f"batch, columns {columns}, arrays of {bits or 4} bits",
                request(text("batch"), params), "batch", streams=streams, seqs=[3, 9],
                x_bin=(X * 2).hex(), columns=columns)  # fmt: skip
    add("batch, in columns, x as numbers, unnumbered",
        request(text("batch"), array(two, NIL, array(uint(1), float64(2)), TRUE)),
        "batch", streams=streams, seqs=None, x_float32=floats(1, 2).hex(),
        columns=True)  # fmt: skip
    for label, told, had in (
        ("nil", NIL, None),
        ("two numbers", array(uint(2), uint(8, 64)), [2, 8]),
        ("two numbers in array 32", array(uint(2), uint(0), bits=32), [2, 0]),
    ):
        add(f"batch, received {label}",
            request(text("batch"),
                    array(two, array(uint(3), uint(9)), binary(X * 2), TRUE, told)),
            "batch", streams=streams, seqs=[3, 9], x_bin=(X * 2).hex(), columns=True,
            received=had)  # fmt: skip
    for encoded, waits_ms in [(NIL, None), *waits]:
        numbers_of_two = array(uint(3), uint(9))
        add(f"batch, waits {waits_ms}",
            request(text("batch"), array(two, numbers_of_two, binary(X * 2), TRUE, NIL, encoded)),
            "batch", streams=streams, seqs=[3, 9], x_bin=(X * 2).hex(), columns=True,
            max_wait_ms=waits_ms)  # fmt: skip
    add("batch, nobody", request(text("batch"), array(array(), array(), binary(b""))), "batch",
        streams=[], seqs=[], x_bin="", columns=False)  # fmt: skip
    add("batch, the same stream twice",
        request(text("batch"), array(array(uint(7), uint(7)), array(ONE, uint(2)), binary(X * 2))),
        "batch", streams=[{"uint": "7"}] * 2, seqs=[1, 2], x_bin=(X * 2).hex(),
        columns=False)  # fmt: skip
    many = [text(f"s{k}") for k in range(20)]
    add("batch, 20 streams", request(text("batch"), array(array(*many), NIL, binary(X * 20))),
        "batch", streams=[{"str": f"s{k}"} for k in range(20)], seqs=None,
        x_bin=(X * 20).hex(), columns=False)  # fmt: skip

    def add_open(name: str, params: bytes, **meaning: Any) -> None:
        add(f"open, {name}", request(text("open"), params), "open", **meaning)

    add_open("one, the only model, default window", array(text("a"), NIL, uint(0)),
             streams=[{"str": "a"}], many=False, model=None, window=0)  # fmt: skip
    add_open("one, named", array(uint(7), text("co2", 8), uint(300, 16)),
             streams=[{"uint": "7"}], many=False, model="co2", window=300)  # fmt: skip
    add_open("a list of one", array(array(text("a")), NIL, uint(1)),
             streams=[{"str": "a"}], many=True, model=None, window=1)  # fmt: skip
    add_open("a list of two in array 32",
             array(array(text("a"), uint(7), bits=32), text("co2"), uint(16)),
             streams=streams, many=True, model="co2", window=16)  # fmt: skip
    add_open("an empty list", array(array(), NIL, uint(0)),
             streams=[], many=True, model=None, window=0)  # fmt: skip
    for bits in (16, 32):
        add_open(f"named by str {bits}", array(uint(7), text("co2", bits), uint(0), bits=bits),
                 streams=[{"uint": "7"}], many=False, model="co2", window=0)  # fmt: skip
    for tells_oldest in (True, False):
        add_open(f"oldest output told {tells_oldest}",
                 array(text("a"), NIL, uint(0), bool_of(tells_oldest)), streams=[{"str": "a"}],
                 many=False, model=None, window=0, tells_oldest=tells_oldest)  # fmt: skip
    add_open("a list, oldest output told", array(two, text("co2"), uint(16), TRUE),
             streams=streams, many=True, model="co2", window=16, tells_oldest=True)  # fmt: skip
    add("close", request(text("close"), array(text("a"))), "close", stream={"str": "a"})
    add("close in wide forms", request(text("close", 32), array(uint(7, 64), bits=32)), "close",
        stream={"uint": "7"})  # fmt: skip
    add("reset", request(text("reset"), array(text("a"), uint(5))), "reset",
        stream={"str": "a"}, seq=5)  # fmt: skip
    add("reset, unnumbered", request(text("reset"), array(uint(7), uint(0))), "reset",
        stream={"uint": "7"}, seq=0)  # fmt: skip
    add("reset, received", request(text("reset"), array(text("a"), uint(5), uint(4))), "reset",
        stream={"str": "a"}, seq=5, received=4)  # fmt: skip
    add("hello", request(text("hello"), array(b"\x80")), "hello")
    add("models", request(text("models"), array()), "models")
    add("stats", request(text("stats"), array()), "stats")
    add("diagnostics", request(text("diagnostics"), array(text("a"))), "diagnostics")
    return vectors


def invalid_requests() -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = []

    def add(code: str, name: str, message: bytes, msgid: int | None = 1) -> None:
        vectors.append({"name": name, "hex": message.hex(), "code": code, "msgid": msgid})

    good = array(text("a"), ONE, binary(X))
    for name, message in [
        ("nothing", b""),
        ("the byte that MessagePack never uses", b"\xc1"),
        ("a map", b"\x81" + uint(0) + ONE),
        ("an integer", uint(0)),
        ("an empty array", array()),
        ("kind only", array(uint(0))),
        ("a response", array(uint(1), ONE, NIL, NIL)),
        ("a notification", array(uint(2), STEP, good)),
        ("kind 3", step(kind=uint(3))),
        ("kind false", step(kind=FALSE)),
        ("kind 0.0", step(kind=float64(0))),
        ("msgid negative", step(msgid=sint(-1))),
        ("msgid above 32 bits", step(msgid=uint(2**32, 64))),
        ("msgid nil", step(msgid=NIL)),
        ("msgid a float", step(msgid=float64(1))),
        ("msgid a str", step(msgid=text("1"))),
        ("an array that claims 2**32 - 1 elements", b"\xdd\xff\xff\xff\xff"),
    ]:
        add("malformed", name, message, None)
    for name, message in [
        ("three elements", array(uint(0), ONE, STEP)),
        ("five elements", array(uint(0), ONE, STEP, good, NIL)),
        ("method nil", request(NIL, good)),
        ("method as bin", request(binary(b"step"), good)),
        ("method an integer", request(ONE, good)),
        ("params nil", request(STEP, NIL)),
        ("params a map", request(STEP, b"\x80")),
        ("params as bin", request(STEP, binary(b""))),
        ("a byte too many", step() + b"\x00"),
        ("two requests in one message", step() + step()),
        ("x cut short", step()[:-1]),
        ("a bin that claims 2**32 - 1 bytes", step(x=b"\xc6\xff\xff\xff\xff")),
        ("a str that claims 2**32 - 1 bytes", step(stream=b"\xdb\xff\xff\xff\xff")),
        ("an x of numbers that claims 2**32 - 1", step(x=b"\xdd\xff\xff\xff\xff")),
        ("the byte that MessagePack never uses, inside", step(x=b"\xc1")),
    ]:
        add("malformed", name, message)
    for name in ("", "stepp", "STEP", "ste", "steq", "batchx", "opem", "s" * 300):
        method = text(name, 16) if len(name) > 255 else text(name)
        add("unknown_method", f"method {name[:9]!r}", request(method, good))

    for name, stream in [
        ("nil", NIL),
        ("true", TRUE),
        ("a float", float64(7)),
        ("a float 32", float32(7)),
        ("bin", binary(b"a")),
        ("negative", sint(-1)),
        ("negative, int 64", sint(-(2**63), 64)),
        ("an array", array(text("a"))),
        ("a map", b"\x80"),
        ("an extension", b"\xd4\x05\x00"),
        ("empty", text("")),
        ("129 bytes", text("x" * 129)),
        ("65 letters of two bytes", text("Ä" * 65)),
        ("UTF-8: a continuation byte alone", raw(b"\x80")),
        ("UTF-8: a sequence cut short", raw(b"a\xc3")),
        ("UTF-8: an overlong slash", raw(b"\xc0\xaf")),
        ("UTF-8: an overlong of three bytes", raw(b"\xe0\x80\xaf")),
        ("UTF-8: an overlong of four bytes", raw(b"\xf0\x80\x80\xaf")),
        ("UTF-8: a surrogate", raw(b"\xed\xa0\x80")),
        ("UTF-8: above U+10FFFF", raw(b"\xf4\x90\x80\x80")),
        ("UTF-8: a byte that never occurs", raw(b"\xff")),
        ("UTF-8: Latin-1", raw(b"\xc4rger")),
    ]:
        add("bad_params", f"step, stream {name}", step(stream))
        if name != "an array":
            add("bad_params", f"open, stream {name}",
                request(text("open"), array(stream, NIL, uint(0))))  # fmt: skip
        add("bad_params", f"batch, a stream {name}",
            request(text("batch"), array(array(uint(7), stream), NIL, binary(X * 2))))  # fmt: skip
    for name, seq in [
        ("negative", sint(-1)),
        ("nil", NIL),
        ("a float", float64(1)),
        ("a str", text("1")),
        ("2**63", uint(2**63, 64)),
        ("true", TRUE),
    ]:
        add("bad_params", f"step, seq {name}", step(seq=seq))
        add("bad_params", f"reset, seq {name}", request(text("reset"), array(text("a"), seq)))
        if name != "nil":
            add("bad_params", f"batch, seqs {name}",
                request(text("batch"), array(array(uint(7)), seq, binary(X))))  # fmt: skip
            add("bad_params", f"open, window {name}",
                request(text("open"), array(text("a"), NIL, seq)))  # fmt: skip
        add("bad_params", f"batch, one of seqs {name}",
            request(text("batch"), array(array(uint(7)), array(seq), binary(X))))  # fmt: skip
        if name != "nil":
            add("bad_params", f"step, max_wait_ms {name}",
                request(STEP, array(text("a"), ONE, binary(X), ONE, seq)))  # fmt: skip
            add("bad_params", f"batch, max_wait_ms {name}",
                request(text("batch"),
                        array(array(ONE), NIL, binary(X), TRUE, NIL, seq)))  # fmt: skip
    for name, x in [
        ("nil", NIL),
        ("a number", float64(1)),
        ("a str", raw(X)),
        ("a map", b"\x80"),
        ("an extension", b"\xd6\x05" + bytes(4)),
        ("nested arrays", array(array(ONE, ONE))),
        ("numbers with nil", array(ONE, NIL)),
        ("numbers with true", array(ONE, TRUE)),
        ("numbers with a str", array(ONE, text("1"))),
        ("numbers with bin", array(ONE, binary(b"1"))),
    ]:
        add("bad_params", f"step, x {name}", step(x=x))
        add("bad_params", f"batch, x {name}",
            request(text("batch"), array(array(uint(7)), NIL, x)))  # fmt: skip
    for name, named_method, params in [
        ("step, no parameters", "step", array()),
        ("step, two parameters", "step", array(text("a"), ONE)),
        ("step, received nil", "step", array(text("a"), ONE, binary(X), NIL)),
        ("step, received negative", "step", array(text("a"), ONE, binary(X), sint(-1))),
        ("step, received above 2**63", "step", array(text("a"), ONE, binary(X), uint(2**63, 64))),
        ("step, six parameters", "step", array(text("a"), ONE, binary(X), ONE, ONE, ONE)),
        ("batch, streams nil", "batch", array(NIL, NIL, binary(X))),
        ("batch, streams one id", "batch", array(text("a"), NIL, binary(X))),
        ("batch, too few seqs", "batch", array(array(ONE, ONE), array(ONE), binary(X))),
        ("batch, too many seqs", "batch", array(array(ONE), array(ONE, ONE), binary(X))),
        ("batch, two parameters", "batch", array(array(ONE), NIL)),
        ("batch, received true", "batch", array(array(ONE), NIL, binary(X), TRUE, TRUE)),
        ("batch, received one number", "batch", array(array(ONE), NIL, binary(X), TRUE, ONE)),
        (
            "batch, received of two",
            "batch",
            array(array(ONE), NIL, binary(X), TRUE, array(ONE, ONE)),
        ),
        (
            "batch, received a str",
            "batch",
            array(array(ONE), NIL, binary(X), TRUE, array(text("1"))),
        ),
        (
            "batch, seven parameters",
            "batch",
            array(array(ONE), NIL, binary(X), TRUE, NIL, NIL, NIL),
        ),
        ("batch, columns nil", "batch", array(array(ONE), NIL, binary(X), NIL)),
        ("batch, columns an integer", "batch", array(array(ONE), NIL, binary(X), ONE)),
        ("batch, columns a str", "batch", array(array(ONE), NIL, binary(X), text("true"))),
        ("open, model an integer", "open", array(text("a"), ONE, uint(0))),
        ("open, model as bin", "open", array(text("a"), binary(b"co2"), uint(0))),
        ("open, model not UTF-8", "open", array(text("a"), raw(b"\xff"), uint(0))),
        ("open, window nil", "open", array(text("a"), NIL, NIL)),
        ("open, two parameters", "open", array(text("a"), NIL)),
        ("open, oldest output nil", "open", array(text("a"), NIL, uint(0), NIL)),
        ("open, five parameters", "open", array(text("a"), NIL, uint(0), TRUE, TRUE)),
        ("open, a list in a list", "open", array(array(array(ONE)), NIL, uint(0))),
        ("close, no parameters", "close", array()),
        ("close, two parameters", "close", array(text("a"), NIL)),
        ("close, a list", "close", array(array(text("a")))),
        ("reset, one parameter", "reset", array(text("a"))),
        ("reset, received nil", "reset", array(text("a"), ONE, NIL)),
        ("reset, four parameters", "reset", array(text("a"), ONE, ONE, ONE)),
    ]:
        add("bad_params", name, request(text(named_method), params))
    too_many = array(*[uint(1)] * 4097)
    add("too_large", "open of 4097 streams", request(text("open"), array(too_many, NIL, uint(0))))
    return vectors


def responses() -> list[dict[str, Any]]:
    def response(error: bytes, result: bytes, bits: int = 0) -> bytes:
        return array(uint(1), uint(9, bits) if bits else uint(9), error, result)

    x = X.hex()
    gap = b"\x82" + text("expected") + uint(4) + text("got") + uint(9)
    error = array(text("gap"), text("step 9 came"), gap)
    item = array(NIL, array(uint(4), uint(0), binary(X)))
    expired = b"\x82" + text("stream") + text("a") + text("idle_s") + uint(600, 16)
    gap_told = ["gap", "step 9 came", {"expected": 4, "got": 9}]

    def uint64s(*values: int) -> bytes:
        return struct.pack(f"<{len(values)}Q", *values)

    def in_columns(name: str, failed: bytes, told: Any, seqs: list[int], y: bytes) -> Any:
        durable = [max(seq - 1, 0) for seq in seqs]
        columns = array(failed, binary(uint64s(*seqs)), binary(uint64s(*durable), 16), binary(y))
        result = [told, *({"bin": each.hex()} for each in (uint64s(*seqs), uint64s(*durable), y))]
        return {"name": f"batch, in columns, {name}", "hex": response(NIL, columns).hex(),
                "msgid": 9, "error": None, "result": result,
                "columns": {"errors": told, "last_seqs": seqs, "durable_seqs": durable,
                            "y": y.hex()}}  # fmt: skip

    return [
        in_columns("none failed", b"\x80", {}, [4, 2**63 - 1], X),
        in_columns("one of two failed", b"\x81" + uint(0) + error, {"0": gap_told}, [0, 4],
                   bytes(4) + X[4:]),
        in_columns("of four, which an answer by items could have too, two failed",
                   b"\x82" + uint(3, 64) + error + uint(1, 8) + error,
                   {"3": gap_told, "1": gap_told}, [5, 0, 6, 0], X[:4] * 4),
        in_columns("all failed", b"\x81" + uint(0) + error, {"0": gap_told}, [0], b""),
        {"name": "step, y as bin", "hex": response(NIL, array(uint(4), uint(2), binary(X))).hex(),
         "msgid": 9, "error": None, "result": [4, 2, {"bin": x}]},
        {"name": "step, wide forms",
         "hex": response(NIL, array(uint(4, 64), uint(2, 32), binary(X, 32), bits=32), 64).hex(),
         "msgid": 9, "error": None, "result": [4, 2, {"bin": x}]},
        {"name": "step, y as numbers",
         "hex": response(NIL, array(uint(4), uint(0), array(float64(1.5), float32(-2)))).hex(),
         "msgid": 9, "error": None, "result": [4, 0, [1.5, -2.0]]},
        {"name": "batch, one of two failed",
         "hex": response(NIL, array(item, array(error, NIL))).hex(), "msgid": 9, "error": None,
         "result": [[None, [4, 0, {"bin": x}]],
                    [["gap", "step 9 came", {"expected": 4, "got": 9}], None]]},
        {"name": "an error", "hex": response(error, NIL).hex(), "msgid": 9,
         "error": ["gap", "step 9 came", {"expected": 4, "got": 9}], "result": None},
        {"name": "an error without words, of a server under a flood of them",
         "hex": response(array(text("bad_params"), text(""), NIL), NIL).hex(), "msgid": 9,
         "error": ["bad_params", "", None], "result": None},
        {"name": "a stream that has expired",
         "hex": response(array(text("expired"), text(""), expired), NIL).hex(), "msgid": 9,
         "error": ["expired", "", {"stream": "a", "idle_s": 600}], "result": None},
        {"name": "close", "hex": response(NIL, TRUE).hex(), "msgid": 9, "error": None,
         "result": True},
        {"name": "open", "hex": response(NIL, array(uint(12), uint(0), uint(16))).hex(),
         "msgid": 9, "error": None, "result": [12, 0, 16]},
        {"name": "open, with the oldest output",
         "hex": response(NIL, array(uint(12), uint(0), uint(16), uint(10))).hex(),
         "msgid": 9, "error": None, "result": [12, 0, 16, 10]},
    ]  # fmt: skip


def identities() -> list[dict[str, Any]]:
    """Hashes by a second, independent writing-down of the two algorithms."""
    mask = 2**64 - 1

    def hashed(data: bytes) -> int:
        value = 14695981039346656037
        for byte in data:
            value = (value ^ byte) * 1099511628211 & mask
        for shift, factor in ((33, 18397679294719823053), (33, 14181476777654086739)):
            value = (value ^ value >> shift) * factor & mask
        return value ^ value >> 33

    vectors = []
    for stream in ("a", "7", 7, 0, 2**64 - 1, "sensor-7", "Ä", "漢字", "x" * 128, 1, 2, 3):
        data = (
            b"u" + struct.pack(">Q", stream) if isinstance(stream, int) else b"s" + stream.encode()
        )
        slot = hashed(data) // 2**50
        vectors.append(
            {
                "stream": {"uint": str(stream)} if isinstance(stream, int) else {"str": stream},
                "canonical_hex": data.hex(),
                "hash64_hex": f"{hashed(data):016x}",
                "hash_slot": slot,
                "shard": {str(n): slot * n // 16384 for n in (1, 2, 3, 8)},
            }
        )
    return vectors


def vectors() -> dict[str, Any]:
    """Return all of it."""
    return {
        "protocol": 1,
        "errors": ERRORS.split(),
        "windows": [
            {"asked": asked, "max_window": most, "granted": granted}
            for asked, most, granted in (
                (0, 256, 16), (1, 256, 1), (2, 256, 2), (3, 256, 2), (16, 256, 16),
                (100, 256, 64), (256, 256, 256), (10**9, 256, 256), (0, 8, 8), (5, 1, 1),
            )
        ],
        "identities": identities(),
        "requests": valid_requests(),
        "invalid_requests": invalid_requests(),
        "responses": responses(),
    }  # fmt: skip


def render() -> str:
    """Return the file's text: one vector a line."""
    parts = []
    for key, value in vectors().items():
        if isinstance(value, list) and isinstance(value[0], dict):
            lines = ",\n".join("  " + json.dumps(item, ensure_ascii=True) for item in value)
            parts.append(f'"{key}": [\n{lines}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="ascii")
    sys.stdout.write(f"{PATH}: {sum(len(v) for v in vectors().values() if isinstance(v, list))}\n")
