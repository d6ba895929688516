"""The server's methods over a raw DEALER socket: results, rules, bad input."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from streamrnn import Engine
from streamrnn.model.spec import InputSpec
from streamrnn_client.protocol import MAX_BATCH, decode_batch_result, encode_request, hash_slot
from streamrnn_server.testing import serving
from tests.server.budget import budget_of, fixed_bytes
from tests.support.models import random_model
from tests.support.peer import Peer

NUM_INPUTS, WINDOW = 3, 16


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(7)
    return {
        "lstm": random_model(rng, [("lstm", 24)], inputs=NUM_INPUTS),
        "gru": random_model(rng, [("gru", 16), ("rnn_tanh", 8)], inputs=2, outputs=5),
        "token": random_model(
            rng,
            [("gru", 8)],
            inputs=[InputSpec("word", kind="token", num_categories=50, embedding_size=4)],
        ),
    }


@pytest.fixture(scope="module")
def server(models):
    with serving(models, max_streams=5000) as server:
        yield server


@pytest.fixture
def peer(server):
    peer = Peer(server.endpoints[0])
    yield peer
    peer.socket.close()


@pytest.fixture
def engine(models):
    return Engine(models["lstm"])


@pytest.fixture
def stream(request):
    return request.node.name[:120]


@pytest.fixture
def x(rng):
    return rng.normal(size=(64, NUM_INPUTS)).astype(np.float32)


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


def test_steps_are_the_engine_s_to_the_bit(peer, engine, stream, x):
    assert peer.ok("open", stream, "lstm", 0) == [0, 0, WINDOW]
    for k, row in enumerate(x):
        last, durable, y = peer.ok("step", stream, k + 1, row.tobytes())
        assert (last, durable) == (k + 1, 0)
        assert y == engine.step({0: row})[0].tobytes()


def test_chunks_are_steps(peer, engine, stream, x):
    peer.ok("open", stream, "lstm", 32)
    expected = engine.steps(0, x)
    done = 0
    for length in (1, 5, 26, 32):
        chunk = x[done : done + length]
        last, _, y = peer.ok("step", stream, done + 1, chunk.tobytes())
        assert last == done + length
        assert y == expected[done:last].tobytes()
        done = last


def test_arrays_of_numbers_are_answered_in_kind(peer, engine, stream, x):
    peer.ok("open", stream, "lstm", 0)
    expected = engine.steps(0, x[:6])
    y = peer.ok("step", stream, 1, x[0].tolist())[2]
    assert y == expected[0].tolist()
    y = peer.ok("step", stream, 2, x[1:6].ravel().tolist())[2]
    assert y == expected[1:].ravel().tolist()


def test_tokens_come_as_uint32_or_as_numbers(peer, models, stream):
    engine = Engine(models["token"])
    peer.ok("open", stream, "token", 0)
    tokens = np.array([[3], [49], [0]], np.uint32)
    expected = engine.steps(0, tokens)
    assert peer.ok("step", stream, 1, tokens[:2].tobytes())[2] == expected[:2].tobytes()
    assert peer.ok("step", stream, 3, [0])[2] == expected[2].tolist()
    for wrong in ([50], [-1], [1.5], [2.0**33]):
        assert peer.error("step", stream, 4, wrong)[0] == "bad_value"
    code, detail = peer.error("step", stream, 4, np.array([1, 50], np.uint32).tobytes())
    assert (code, detail["step"], detail["name"]) == ("bad_value", 1, "word")


def test_streams_stepped_together_keep_their_own_states(peer, engine, stream, x):
    """In batches of any size and composition the bits are the same."""
    ids = [f"{stream}-{k}" for k in range(300)]
    results = peer.ok("open", ids, "lstm", 4)
    assert results == [[None, [0, 0, 4]]] * 300
    for t in range(4):
        sent = {
            peer.send("step", name, t + 1, x[(k + t) % 64].tobytes()): k
            for k, name in enumerate(ids)
        }
        expected = engine.step({k: x[(k + t) % 64] for k in range(300)})
        for _ in ids:
            msgid, error, result = peer.receive()
            assert error is None
            assert result[2] == expected[sent.pop(msgid)].tobytes()


def test_messages_of_one_stream_keep_their_order(peer, engine, stream, x):
    peer.send("open", stream, "lstm", 64)
    for k in range(64):
        peer.send("step", stream, k + 1, x[k].tobytes())
    peer.send("close", stream)
    expected = engine.steps(0, x)
    assert peer.receive()[2] == [0, 0, 64]
    for k in range(64):
        assert peer.receive()[2] == [k + 1, 0, expected[k].tobytes()]
    assert peer.receive()[2] is True


def test_two_models_beside_each_other(peer, models, stream, rng):
    engines = {name: Engine(models[name]) for name in ("lstm", "gru")}
    sizes = {"lstm": 3, "gru": 2}
    for name in engines:
        peer.ok("open", f"{stream}-{name}", name, 0)
    for t in range(1, 9):
        sent = {}
        for name, size in sizes.items():
            row = rng.normal(size=size).astype(np.float32)
            msgid = peer.send("step", f"{stream}-{name}", t, row.tobytes())
            sent[msgid] = engines[name].step({0: row})[0].tobytes()
        for _ in sizes:
            msgid, error, result = peer.receive()
            assert error is None
            assert result == [t, 0, sent[msgid]]


@pytest.mark.parametrize("form", ["bin", "array"])
def test_a_batch_is_one_step_of_each_in_order(peer, engine, stream, x, form):
    names = [f"{stream}-{k % 3}" for k in range(7)]  # each stream twice or three times
    peer.ok("open", names[:3], "lstm", 0)
    rows = x[:7]
    seqs = [k // 3 + 1 for k in range(7)]
    items = peer.ok(
        "batch", names, seqs, rows.tobytes() if form == "bin" else rows.ravel().tolist()
    )
    for k, (error, result) in enumerate(items):
        expected = engine.step({k % 3: rows[k]})[k % 3]
        assert error is None
        wanted = expected.tobytes() if form == "bin" else expected.tolist()
        assert result == [seqs[k], 0, wanted]


def test_a_bad_item_fails_alone(peer, engine, stream, x):
    a, b, gru = f"{stream}-a", f"{stream}-b", f"{stream}-gru"
    peer.ok("open", [a, b], "lstm", 0)
    peer.ok("open", gru, "gru", 0)
    rows = x[:5].copy()
    rows[2, 1] = np.nan
    items = peer.ok("batch", ["nobody", a, b, gru, a], [1, 1, 1, 1, 7], rows.tobytes())
    assert [error and error[0] for error, _ in items] == [
        "unknown",
        None,
        "bad_value",
        "wrong_model",
        "gap",
    ]
    assert items[1][1] == [1, 0, engine.step({0: rows[1]})[0].tobytes()]
    assert items[2][0][2]["name"] == "x1"
    assert peer.ok("open", b, "lstm", 0)[0] == 0  # nothing of b was touched
    assert peer.ok("batch", [], None, b"") == []


def batch_both_ways(peer, suffixes, names, seqs, x):
    """Send a batch to streams in the one state and in the other; return items, columns."""
    by_items, in_columns = ([each and f"{each}{suffix}" for each in names] for suffix in suffixes)
    items = peer.ok("batch", by_items, seqs, x)
    peer.send("batch", in_columns, seqs, x, True)
    assert peer.socket.poll(20_000)
    _, _, error, columns = msgpack.unpackb(peer.socket.recv(), strict_map_key=False)
    assert error is None
    assert type(columns[0]) is dict
    return items, columns


@pytest.mark.parametrize("form", ["bin", "array"])
@pytest.mark.parametrize("numbered", [True, False])
def test_a_batch_in_columns_says_what_one_by_items_says(peer, stream, x, form, numbered):
    for suffix in "ic":
        peer.ok("open", [f"{stream}-{k}{suffix}" for k in range(40)], "lstm", 0)
    names = [f"{stream}-{k}" for k in range(40)]
    for seq in (1, 2):
        rows = x[seq : seq + 40]
        sent = rows.tobytes() if form == "bin" else rows.ravel().tolist()
        items, columns = batch_both_ways(peer, "ic", names, [seq] * 40 if numbered else None, sent)
        if form == "array":
            items = [[e, [*r[:2], np.float32(r[2]).tobytes()]] for e, r in items]
        errors, last_seqs, durable_seqs, y = columns
        assert errors == {}
        assert last_seqs == np.full(40, seq if numbered else 0, "<u8").tobytes()
        assert durable_seqs == bytes(8 * 40)
        assert y == b"".join(result[2] for _, result in items)


@pytest.mark.parametrize("num_unknown", [1, 30])
def test_items_that_fail_are_zeros_in_columns_and_errors_beside_them(peer, stream, x, num_unknown):
    """Errors with words, which Python writes, and so all of the reply."""
    for suffix in "ic":
        peer.ok("open", [f"{stream}-{k}{suffix}" for k in range(3)], "lstm", 0)
    names = [f"{stream}-{k}" for k in range(3)] + ["nobody"] * num_unknown
    rows = x[: len(names)].copy()
    rows[1, 1] = np.nan
    items, columns = batch_both_ways(peer, "ic", names, [1] * len(names), rows.tobytes())
    for _, _, detail in (error for error, _ in items if error):
        detail["stream"] = detail["stream"].removesuffix("i") + "c"
    told = decode_batch_result(items, len(items))
    failed, *bins = columns
    assert {k: [code, detail] for k, (code, _, detail) in failed.items()} == {
        k: [code, detail] for k, (code, _, detail) in told.errors.items()
    }
    assert len(failed) == 1 + num_unknown
    assert bins[0] == np.array(told.last_seqs, "<u8").tobytes()
    assert bins[2] == told.y
    assert not any(told.y[len(told.y) // len(names) : 2 * len(told.y) // len(names)])
    # Whoever failed took no number.
    rows[1, 1] = 0
    names, rows = names[:3], rows[:3]
    _, columns = batch_both_ways(peer, "ic", names, [2, 1, 2], rows.tobytes())
    assert columns[:2] == [{}, np.array([2, 1, 2], "<u8").tobytes()]


def test_a_batch_in_columns_of_which_all_fail_or_of_nobody_has_no_outputs(peer, x):
    peer.send("batch", ["nobody", "none"], [1, 1], x[:2].tobytes(), True)
    *_, columns = msgpack.unpackb(peer.socket.recv(), strict_map_key=False)
    assert {k: error[0] for k, error in columns[0].items()} == {0: "unknown", 1: "unknown"}
    assert columns[1:] == [bytes(16), bytes(16), b""]
    assert peer.ok("batch", [], None, b"", True) == [{}, b"", b"", b""]
    assert peer.ok("batch", [], None, b"", False) == []
    assert peer.error("batch", ["nobody"], [1], b"", 1)[0] == "bad_params"


def test_items_that_compiled_code_refuses_are_zeros_in_columns_too(models, x):
    """``moved`` goes without Python."""
    with serving({"lstm": models["lstm"]}, num_shards=2) as server:
        peer = Peer(server.endpoints[0])
        names = [f"s{k}" for k in range(50)]
        here = [hash_slot(name) < 8192 for name in names]
        peer.ok("open", names, None, 0)
        peer.ok("open", [f"other{k}" for k in range(2000)], None, 0)  # leaves a long reply's bytes
        items, columns = batch_both_ways(peer, ["", ""], names, [1] * 50, x[:50].tobytes())
        errors, last_seqs, _, y = columns
        assert errors == {k: item[0] for k, item in enumerate(items) if not here[k]}
        assert {error[0] for error in errors.values()} == {"moved"}
        assert np.frombuffer(last_seqs, "<u8").astype(bool).tolist() == here
        told = decode_batch_result(items, 50)
        assert y == told.y
        peer.socket.close()


def test_the_largest_batch(peer, engine, stream, x):
    names = [f"{stream}-{k}" for k in range(MAX_BATCH)]
    rows = np.tile(x, (MAX_BATCH // 64, 1))
    assert peer.ok("open", names, "lstm", 1) == [[None, [0, 0, 1]]] * MAX_BATCH
    items = peer.ok("batch", names, None, rows.tobytes())
    expected = engine.step({k: x[k] for k in range(64)})
    assert items == [[None, [0, 0, expected[k % 64].tobytes()]] for k in range(MAX_BATCH)]
    for name in names:
        peer.send("close", name)
    assert all(peer.receive()[2] is True for _ in names)


def test_reset_is_a_new_stream(peer, engine, stream, x):
    peer.ok("open", stream, "lstm", 0)
    first = peer.ok("step", stream, 1, x[0].tobytes())[2]
    peer.ok("step", stream, 2, x[1].tobytes())
    assert peer.ok("reset", stream, 3) == [3, 0]
    assert peer.ok("step", stream, 4, x[0].tobytes())[2] == first
    assert peer.ok("reset", stream, 3) == [3, 0]  # a duplicate changes nothing
    assert peer.ok("step", stream, 5, x[1].tobytes())[0] == 5
    assert peer.error("step", stream, 3, x[0].tobytes())[0] == "conflict"
    assert peer.error("reset", stream, 4)[0] == "conflict"
    assert peer.error("reset", stream, 9)[0] == "gap"
    assert peer.error("reset", stream, 0)[0] == "mixed_numbering"


# ---------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------


def test_duplicates_are_answered_and_not_applied(peer, engine, stream, x):
    peer.ok("open", stream, "lstm", WINDOW)
    expected = engine.steps(0, x)
    for k in range(20):
        peer.ok("step", stream, k + 1, x[k].tobytes())
    for k in range(4, 20):  # as far as the window reaches
        assert peer.ok("step", stream, k + 1, x[k].tobytes()) == [k + 1, 0, expected[k].tobytes()]
    code, detail = peer.error("step", stream, 4, x[3].tobytes())
    assert (code, detail["got"], detail["oldest"]) == ("stale", 4, 5)
    assert peer.ok("step", stream, 21, x[20].tobytes())[2] == expected[20].tobytes()


def test_a_chunk_may_begin_with_duplicates(peer, engine, stream, x):
    peer.ok("open", stream, "lstm", WINDOW)
    expected = engine.steps(0, x)
    peer.ok("step", stream, 1, x[:10].tobytes())
    assert peer.ok("step", stream, 6, x[5:18].tobytes()) == [18, 0, expected[5:18].tobytes()]
    assert peer.ok("step", stream, 3, x[2:18].tobytes()) == [18, 0, expected[2:18].tobytes()]
    changed = x[10:20].copy()
    changed[3] += 1
    assert peer.error("step", stream, 11, changed.tobytes()) == (
        "conflict",
        {"seq": 14, "stream": stream},
    )
    assert peer.ok("step", stream, 19, x[18].tobytes())[2] == expected[18].tobytes()


def test_with_window_one_y_follows_from_the_state(peer, engine, stream, x):
    assert peer.ok("open", stream, "lstm", 1) == [0, 0, 1]
    for k in range(5):
        expected = engine.step({0: x[k]})[0].tobytes()
        for _ in range(3):
            assert peer.ok("step", stream, k + 1, x[k].tobytes()) == [k + 1, 0, expected]
    assert peer.error("step", stream, 5, x[6].tobytes())[0] == "conflict"
    assert peer.error("step", stream, 4, x[3].tobytes())[0] == "stale"
    assert peer.error("step", stream, 6, x[5:7].tobytes())[0] == "window"


def test_numbered_and_unnumbered_do_not_mix(peer, stream, x):
    for name, first, other in ((f"{stream}-n", 1, 0), (f"{stream}-u", 0, 1)):
        peer.ok("open", name, "lstm", 0)
        assert peer.ok("step", name, first, x[0].tobytes())[0] == first
        assert peer.error("step", name, other, x[0].tobytes())[0] == "mixed_numbering"
        assert peer.ok("step", name, 2 * first, x[0].tobytes())[0] == 2 * first


def test_open_is_idempotent(peer, stream, x):
    assert peer.ok("open", stream, "lstm", 3) == [0, 0, 2]
    peer.ok("step", stream, 1, x[0].tobytes())
    assert peer.ok("open", stream, "lstm", 200) == [1, 0, 2]
    code, detail = peer.error("open", stream, "gru", 3)
    assert (code, detail["has"], detail["model"]) == ("wrong_model", "lstm", "gru")
    assert peer.ok("close", stream) is True
    assert peer.ok("close", stream) is False
    assert peer.ok("open", stream, "gru", 10**6) == [0, 0, 256]


def test_a_closed_stream_is_new_when_it_is_opened_again(peer, engine, stream, x):
    """Pipelined, so that all of it waits in the queue of one slot."""
    for _ in range(3):
        peer.send("open", stream, "lstm", 0)
        peer.send("step", stream, 1, x[0].tobytes())
        peer.send("close", stream)
        peer.send("step", stream, 2, x[0].tobytes())
    expected = engine.step({0: x[0]})[0].tobytes()
    replies = {}
    for _ in range(12):
        msgid, error, result = peer.receive()
        replies[msgid] = error[0] if error else result
    assert list(dict(sorted(replies.items())).values()) == 3 * [
        [0, 0, WINDOW],
        [1, 0, expected],
        True,
        "unknown",
    ]


# ---------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------

STEP = np.zeros(NUM_INPUTS, np.float32).tobytes()
NAN = np.array([0, np.nan, 0], np.float32).tobytes()
INF = np.array([0, 0, -np.inf], np.float32).tobytes()
BAD: dict[str, tuple[str, list[Any], str]] = {
    "wrong length": ("step", ["STREAM", 2, STEP + b"\0\0\0\0"], "wrong_length"),
    "not whole floats": ("step", ["STREAM", 2, STEP + b"\0"], "wrong_length"),
    "empty": ("step", ["STREAM", 2, b""], "wrong_length"),
    "too few numbers": ("step", ["STREAM", 2, [1.0]], "wrong_length"),
    "no numbers": ("step", ["STREAM", 2, []], "wrong_length"),
    "batch of a wrong length": ("batch", [["STREAM"], [2], 2 * STEP], "wrong_length"),
    "NaN": ("step", ["STREAM", 2, NAN], "bad_value"),
    "Inf": ("step", ["STREAM", 2, INF], "bad_value"),
    "NaN later in a chunk": ("step", ["STREAM", 2, STEP + NAN], "bad_value"),
    "too large for float32": ("step", ["STREAM", 2, [0, 1e39, 0]], "bad_value"),
    "unknown stream": ("step", ["nobody", 1, STEP], "unknown"),
    "unknown uint stream": ("step", [2**64 - 1, 1, STEP], "unknown"),
    "reset of nobody": ("reset", ["nobody", 1], "unknown"),
    "unknown model": ("open", ["new", "nothing", 0], "unknown_model"),
    "no model among several": ("open", ["new", None, 0], "unknown_model"),
    "a method of other servers": ("sync", ["STREAM"], "not_supported"),
    "unknown method": ("stepp", ["STREAM", 2, STEP], "unknown_method"),
    "gap": ("step", ["STREAM", 3, STEP], "gap"),
    "conflict": ("step", ["STREAM", 1, STEP], "conflict"),
    "unnumbered": ("step", ["STREAM", 0, STEP], "mixed_numbering"),
    "beyond the window": ("step", ["STREAM", 2, (WINDOW + 1) * STEP], "window"),
    "a parameter too few": ("step", ["STREAM", 2], "bad_params"),
    "no stream id": ("step", [1.5, 2, STEP], "bad_params"),
    "a negative number": ("step", ["STREAM", -1, STEP], "bad_params"),
    "x as text": ("step", ["STREAM", 2, "abc"], "bad_params"),
    "a batch too long": ("batch", [["STREAM"] * (MAX_BATCH + 1), None, b""], "too_large"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_its_own_code_and_touches_nothing(peer, engine, stream, x, case):
    method, params, code = BAD[case]
    other = f"{stream}-other"
    peer.ok("open", [stream, other], "lstm", WINDOW)
    for name in (stream, other):
        peer.ok("step", name, 1, x[0].tobytes())
    params = [
        stream
        if p == "STREAM"
        else [stream] * len(p)
        if isinstance(p, list) and "STREAM" in p
        else p
        for p in params
    ]
    got, _ = peer.error(method, *params)
    assert got == code
    expected = engine.steps(0, x[:2])[1].tobytes()
    for name in (stream, other):
        assert peer.ok("step", name, 2, x[1].tobytes()) == [2, 0, expected]


def test_undecodable_messages_are_answered_or_dropped(peer, server):
    for message in (b"\x94\x00\x07", b"\xc1", b"", msgpack.packb([0, 7]), b"\x94\x00\x07\xa4step"):
        peer.socket.send(message)
    msgid, error, _ = peer.receive()
    assert (msgid, error[0]) == (7, "malformed")
    # What follows shows that the rest was dropped, not stuck.
    while peer.receive()[0] == 7:
        peer.send("models")
        break
    stats = peer_stats(peer)
    assert stats["num_too_broken_to_answer"] >= 2


def peer_stats(peer):
    sent = peer.send("stats")
    while True:
        msgid, error, result = peer.receive()
        if msgid == sent:
            assert error is None
            return result


def test_extra_frames_are_malformed(peer, stream, x):
    peer.ok("open", stream, "lstm", 0)
    whole = encode_request(99, "step", [stream, 1, x[0].tobytes()])
    peer.socket.send_multipart([whole, b"more", b"still more"])
    msgid, error, _ = peer.receive()
    assert (msgid, error[0], error[2]) == (99, "malformed", {"num_frames": 3})
    peer.socket.send_multipart([b"", whole])  # as a REQ socket does
    assert peer.ok("step", stream, 1, x[0].tobytes())[0] == 1
    stats = peer_stats(peer)
    assert stats["num_extra_frames"] >= 2


def test_a_message_over_the_soft_limit_is_answered(models):
    with serving({"lstm": models["lstm"]}, max_message_bytes=10_000) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "a", None, 0)
        assert peer.error("step", "a", 1, bytes(12_000))[0] == "too_large"
        assert peer.ok("step", "a", 1, STEP)[0] == 1
        peer.socket.close()


def test_a_stream_s_queue_is_bounded(peer, stream, x):
    peer.ok("open", stream, "lstm", 2)
    peer.ok("open", f"{stream}-other", "lstm", 256)
    for k in range(2000):
        peer.send("step", stream, k + 1, x[k % 64].tobytes())
    replies = {msgid: error for msgid, error, _ in (peer.receive() for _ in range(2000))}
    codes = [error[0] if error else "done" for _, error in sorted(replies.items())]
    assert codes[0] == "done"
    # Either a message found no room, or all went through one after the other; once one was
    # refused, those behind it make a gap.
    assert set(codes) <= {"done", "busy", "gap"}
    last = peer.ok("open", stream, "lstm", 2)[0]
    assert last == codes.count("done")


def test_open_beyond_max_streams_is_busy(models):
    with serving({"lstm": models["lstm"]}, max_streams=3) as server:
        peer = Peer(server.endpoints[0])
        results = peer.ok("open", ["a", "b", "c", "d"], None, 0)
        assert [error and error[0] for error, _ in results] == [None, None, None, "busy"]
        code, detail = peer.error("open", "e" * 100, None, 0)
        assert code == "busy"
        assert detail["retry_after_ms"] > 0
        assert peer.ok("close", "b") is True
        assert peer.ok("open", "e" * 100, None, 0) == [0, 0, WINDOW]
        peer.socket.close()


def test_a_full_arena_is_busy_and_everything_comes_back(models, x):
    with serving({"lstm": models["lstm"]}, max_streams=5000) as server:
        least = fixed_bytes(server.control.shards[0].struct)
    budget = budget_of(least + 2 * 2**20)
    with serving({"lstm": models["lstm"]}, max_streams=5000, memory_budget_bytes=budget) as server:
        peer = Peer(server.endpoints[0])
        names = [f"{k:0>100}" for k in range(4000)]
        codes = [error and error[0] for error, _ in peer.ok("open", names, None, 256)]
        assert set(codes) == {None}
        codes = []
        for name in names[:1000]:
            error, _ = peer.call("step", name, 1, x[0].tobytes())
            codes.append(error and error[0])
        assert set(codes) == {None, "busy"}
        for name in names:
            assert peer.ok("close", name) is True
        stats = peer_stats(peer)
        assert stats["num_streams"] == 0
        assert stats["shards"][0]["arena_used_bytes"] == 0
        peer.socket.close()


def test_streams_of_other_shards_have_moved(models, engine, x):
    with serving({"lstm": models["lstm"]}, num_shards=2) as server:
        peers = [Peer(endpoint) for endpoint in server.endpoints]
        assert peers[0].ok("hello", {})["endpoints"] == server.endpoints
        expected = engine.step({0: x[0]})[0].tobytes()
        names: list[str | int] = ["a", "b", "c", 7, "7", 2**63]
        for name in names:
            home = hash_slot(name) * 2 // 16384
            code, detail = peers[1 - home].error("open", name, None, 0)
            assert (code, detail) == ("moved", {"endpoint": server.endpoints[home]})
            peers[home].ok("open", name, None, 0)
            assert peers[home].ok("step", name, 1, x[0].tobytes())[2] == expected
        for peer in peers:
            peer.socket.close()


def test_idle_streams_are_closed(models, x):
    with serving({"lstm": models["lstm"]}, idle_limit_s=1) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", ["idle", "busy"], None, 0)
        seq = 0
        while peer_stats(peer)["num_evicted_idle"] == 0:
            for _ in range(100):
                seq += 1
                assert peer.ok("step", "busy", seq, x[0].tobytes())[0] == seq
        assert peer.error("step", "idle", 1, x[0].tobytes())[0] == "unknown"
        assert peer.ok("step", "busy", seq + 1, x[0].tobytes())[0] == seq + 1
        assert peer_stats(peer)["num_streams"] == 1
        peer.socket.close()


def test_a_flood_of_errors_is_answered_with_codes_alone(models, x):
    with serving({"lstm": models["lstm"]}) as server:
        peer, other = Peer(server.endpoints[0]), Peer(server.endpoints[0])
        other.ok("open", "a", None, 0)
        for _ in range(3):
            for _ in range(2000):
                peer.send("step", "nobody", 1, STEP)
            codes = {error[0] for _, error, _ in (peer.receive() for _ in range(2000))}
            assert codes == {"unknown"}
        for _ in range(4000):
            peer.send("nonsense")
        codes = {error[0] for _, error, _ in (peer.receive() for _ in range(4000))}
        assert codes <= {"unknown_method", "busy"}
        stats = peer_stats(other)
        assert stats["num_errors_without_words"] > 0
        assert other.ok("step", "a", 1, x[0].tobytes())[0] == 1
        for each in (peer, other):
            each.socket.close()


def test_a_slow_reader_loses_replies_and_delays_no_other_client(models, x):
    wide = random_model(np.random.default_rng(0), [("rnn_tanh", 300)], inputs=1, head=None)
    with serving({"wide": wide}, max_in_flight=64) as server:
        slow, other = Peer(server.endpoints[0]), Peer(server.endpoints[0])
        slow.socket.setsockopt(zmq.RCVHWM, 1)
        other.ok("open", ["slow", "other"], None, 256)
        seq = 0
        one = np.ones(1, np.float32).tobytes()
        chunk = np.ones(200, np.float32).tobytes()
        while peer_stats(other)["num_dropped_slow_reader"] == 0:
            for _ in range(5):
                slow.send("step", "slow", 0, chunk)
                seq += 1
                assert other.ok("step", "other", seq, one)[0] == seq
        for each in (slow, other):
            each.socket.close()


def test_a_late_reader_within_its_bound_loses_no_reply():
    wide = random_model(np.random.default_rng(0), [("rnn_tanh", 300)], inputs=1, head=None)
    with serving({"wide": wide}, max_in_flight=256) as server:
        late, other = Peer(server.endpoints[0]), Peer(server.endpoints[0])
        late.socket.setsockopt(zmq.RCVHWM, 1)
        names = [str(k) for k in range(256)]
        late.ok("open", names, None, 256)
        one, chunk = np.ones(1, np.float32).tobytes(), np.ones(200, np.float32).tobytes()
        for name in names[:90]:  # read, but not so many that libzmq takes note
            late.ok("step", name, 0, one)
        for name in names:
            late.send("step", name, 0, chunk)
        while peer_stats(other)["num_steps"] < 90 + 256 * 200:
            pass
        assert peer_stats(other)["num_dropped_slow_reader"] == 0
        assert all(late.receive()[1] is None for _ in names)
        for each in (late, other):
            each.socket.close()


def test_hello_and_models_say_what_is_served(peer, models):
    hello = peer.ok("hello", {"client": "test"})
    assert hello["models"] == list(models)
    assert hello["durability"] == "none"
    assert hello["features"] == ["batch_columns", "received", "origins", "max_wait"]
    told = {each["name"]: each for each in peer.ok("models")}
    for name, model in models.items():
        assert told[name]["fingerprint"] == model.fingerprint
        assert told[name]["spec"] == msgpack.unpackb(msgpack.packb(model.spec.to_dict()))


def test_stats_report_latencies(peer, stream, x):
    peer.ok("open", stream, "lstm", 0)
    for k in range(100):
        peer.ok("step", stream, k + 1, x[k % 64].tobytes())
    latency = peer_stats(peer)["latency_us"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]
