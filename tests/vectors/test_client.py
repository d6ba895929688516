"""The Python codec against the wire vectors."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_client import protocol
from streamrnn_client._session.exchange import Exchange
from streamrnn_client.protocol import ErrorCode, ProtocolError
from tests.vectors import make as make_wire_vectors

VECTORS = json.loads(make_wire_vectors.PATH.read_text(encoding="ascii"))


def named(vectors):
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def stream_of(told):
    return told["str"] if "str" in told else int(told["uint"])


def described(request):
    """Say what a decoded request means in the words of the vectors."""
    msgid, method, call = request
    meaning = {"msgid": msgid, "method": method}
    for key, value in call._asdict().items():
        if method in protocol.COLD_METHODS:
            continue
        if key == "stream":
            meaning[key] = told(value)
        elif key == "streams":
            meaning[key] = [told(stream) for stream in value]
        elif key == "x" and isinstance(value, bytes):
            meaning["x_bin"] = value.hex()
        elif key == "x":
            meaning["x_float32"] = np.array(value, np.float64).astype("<f4").tobytes().hex()
        else:
            meaning[key] = value
    return meaning


def told(stream):
    return {"uint": str(stream)} if isinstance(stream, int) else {"str": stream}


def plain(value):
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}  # JSON has no other keys
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_the_file_is_what_the_script_writes():
    assert make_wire_vectors.PATH.read_text(encoding="ascii") == make_wire_vectors.render()


def test_the_error_codes_are_the_ones_of_the_protocol():
    assert VECTORS["errors"] == [code.wire for code in ErrorCode]
    assert [int(code) for code in ErrorCode] == list(range(1, len(ErrorCode) + 1))


@pytest.mark.parametrize("vector", named(VECTORS["requests"]))
def test_a_valid_request_means_what_it_says(vector):
    meaning = {key: value for key, value in vector.items() if key not in ("hex", "name")}
    assert described(protocol.decode_request(bytes.fromhex(vector["hex"]))) == meaning


@pytest.mark.parametrize("vector", named(VECTORS["invalid_requests"]))
def test_an_invalid_request_is_refused_with_its_code(vector):
    with pytest.raises(ProtocolError) as caught:
        protocol.decode_request(bytes.fromhex(vector["hex"]))
    error = caught.value
    assert (error.code.wire, error.msgid) == (vector["code"], vector["msgid"])
    assert len(str(error)) > 20
    # The reply itself must be encodable, whatever came.
    reply = protocol.encode_error(error.msgid or 0, error.reply())
    assert protocol.decode_response(reply).error == [vector["code"], str(error), error.detail]


@pytest.mark.parametrize("vector", named(VECTORS["responses"]))
def test_a_response_means_what_it_says(vector):
    response = protocol.decode_response(bytes.fromhex(vector["hex"]))
    assert response.msgid == vector["msgid"]
    assert response.error == vector["error"]
    assert plain(response.result) == vector["result"]


@pytest.mark.parametrize("vector", named(v for v in VECTORS["responses"] if "columns" in v))
def test_columns_mean_what_they_say(vector):
    told = vector["columns"]
    num_items = len(told["last_seqs"])
    result = protocol.decode_response(bytes.fromhex(vector["hex"])).result
    columns = protocol.decode_batch_result(result, num_items)
    assert plain(columns.errors) == told["errors"]
    assert (list(columns.last_seqs), list(columns.durable_seqs)) == (
        told["last_seqs"],
        told["durable_seqs"],
    )
    assert columns.y.hex() == told["y"]
    for other in (num_items - 1, num_items + 1):
        with pytest.raises(ProtocolError):
            protocol.decode_batch_result(result, other)


ITEM_ERRORS = st.sampled_from([["gap", "", None], ["busy", "", {"retry_after_ms": 3}]])
ITEM_RESULTS = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.binary(
    min_size=8, max_size=8))  # fmt: skip
ITEMS = st.lists(
    st.tuples(st.none(), ITEM_RESULTS.map(list)).map(list)
    | st.tuples(ITEM_ERRORS, st.none()).map(list),
    min_size=1,
    max_size=6,
)


@given(ITEMS)
def test_columns_say_what_items_say(items):
    by_items = protocol.decode_batch_result(items, len(items))
    columns = protocol.decode_response(
        protocol.encode_response(1, protocol.encode_columns(items))
    ).result
    assert protocol.decode_batch_result(columns, len(items)) == by_items
    assert by_items.errors == {k: error for k, (error, _) in enumerate(items) if error}
    for k, (error, result) in enumerate(items):
        last_seq, durable_seq = by_items.last_seqs[k], by_items.durable_seqs[k]
        y = by_items.y[8 * k : 8 * k + 8]
        if error is None:
            assert [last_seq, durable_seq, y] == result
        else:
            assert (last_seq, durable_seq, any(y)) == (0, 0, False)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=20) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 4), inner),
    max_leaves=8,
)


@given(ANYTHING | st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING).map(list), st.integers(1, 4))
def test_what_is_no_batch_result_is_refused_in_order(result, num_items):
    try:
        columns = protocol.decode_batch_result(result, num_items)
    except ProtocolError:
        return
    assert len(columns.last_seqs) == len(columns.durable_seqs) == num_items
    assert set(columns.errors) <= set(range(num_items))


@pytest.mark.parametrize("vector", VECTORS["identities"])
def test_ids_and_hashes(vector):
    stream = stream_of(vector["stream"])
    data = protocol.canonical_id(stream)
    assert data.hex() == vector["canonical_hex"]
    assert f"{protocol.hash64(data):016x}" == vector["hash64_hex"]
    assert protocol.hash_slot(stream) == vector["hash_slot"]
    for num_shards, shard in vector["shard"].items():
        assert protocol.shard_of(vector["hash_slot"], int(num_shards)) == shard


@pytest.mark.parametrize("vector", VECTORS["windows"])
def test_windows(vector):
    assert protocol.grant_window(vector["asked"], vector["max_window"]) == vector["granted"]


@pytest.mark.parametrize("vector", named(VECTORS["requests"]))
def test_every_truncation_is_malformed(vector):
    message = bytes.fromhex(vector["hex"])
    for length in range(len(message)):
        with pytest.raises(ProtocolError) as caught:
            protocol.decode_request(message[:length])
        assert caught.value.code is ErrorCode.MALFORMED


@given(st.binary(max_size=80))
def test_random_bytes_are_refused_in_order(data):
    with pytest.raises(ProtocolError):
        protocol.decode_request(data)


@given(
    st.sampled_from(VECTORS["requests"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_request_is_decoded_or_refused_never_a_crash(vector, damage):
    message = bytearray.fromhex(vector["hex"])
    for position, value in damage:
        message[position % len(message)] = value
    try:
        request = protocol.decode_request(bytes(message))
    except ProtocolError as error:
        protocol.encode_error(0, error.reply())
    else:
        assert request.method in (*protocol.HOT_METHODS, *protocol.COLD_METHODS)


@given(st.binary(max_size=80))
def test_random_replies_never_break_a_client(data):
    exchange = Exchange(lambda: 0.0, timeout_s=1, resend_s=1)
    call = exchange.submit("e", "stats", (b"\xa5stats", b"\x90"))
    exchange.receive(data)
    assert not call.done
    exchange.receive(protocol.encode_response(call.msgid, 7))
    assert call.result == 7


def test_nesting_and_size_are_bounded():
    for message in (b"\x91" * 10**5, b"\x94\x00\x01\xa4step" + b"\x91" * 10**5):
        with pytest.raises(ProtocolError) as caught:
            protocol.decode_request(message)
        assert caught.value.code is ErrorCode.MALFORMED
    message = protocol.encode_request(5, "step", ["a", 1, bytes(1000)])
    with pytest.raises(ProtocolError, match="at most 500") as caught:
        protocol.decode_request(message, max_message_bytes=500)
    assert caught.value.msgid == 5
    assert caught.value.detail == {"num_bytes": len(message), "max": 500}


@given(st.integers(0, 2**64 - 1))
def test_uint_is_what_msgpack_reads(value):
    encoded = protocol.encode_request(1, "close", [value])
    assert protocol.decode_request(encoded).call == protocol.CloseRequest(value)
    by_hand = b"\x94\x00\x01\xa5close\x91" + protocol.encode_uint(value)
    assert protocol.decode_request(by_hand) == protocol.decode_request(encoded)


@pytest.mark.parametrize("num_bytes", [0, 1, 255, 256, 65535, 65536, 100_000])
def test_bin_headers_of_every_width(num_bytes):
    head = b"\x94\x00\x01\xa4step\x93\x07\x01" + protocol.encode_bin_header(num_bytes)
    call = protocol.decode_request(head + bytes(num_bytes)).call
    assert call == protocol.StepRequest(7, 1, bytes(num_bytes))


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_words_with_and_without_detail(code):
    assert len(protocol.error_message(code)) > 30
    assert protocol.error_reply(code)[0] == code.wire
    assert "{" not in protocol.error_message(code)


def test_errors_say_what_came_and_what_was_expected():
    words = protocol.error_message
    assert "step 9 came, but step 4" in words(ErrorCode.GAP, {"expected": 4, "got": 9})
    assert "co2, gru" in words(ErrorCode.UNKNOWN_MODEL, {"model": "c", "models": ["co2", "gru"]})
    long = words(ErrorCode.WRONG_LENGTH, {"num_bytes": 7, "expected_multiple": 8})
    assert "7 bytes" in long
    assert "multiple of 8" in long
    with pytest.raises(ProtocolError, match="did you mean 'step'"):
        protocol.decode_request(protocol.encode_request(1, "stepp", []))
    with pytest.raises(ProtocolError, match="switch bin on"):
        protocol.decode_request(protocol.encode_request(1, "step", ["a", 1, "x"]))
