"""The compiled generator against servers that answer, wait, refuse, lie and fall silent."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from streamrnn_bench.load.senders import How, names_of_shard
from streamrnn_bench.report.results import BenchError
from streamrnn_client.protocol import encode_response, hash_slot, shard_of
from tests.bench.load.fake_server import FakeServer, Refusal, generator_of


def outcome_of(server, **options):
    with generator_of(server, **options) as generator:
        generator.open()
        outcome = generator.run()
        assert generator.close_streams()
    return outcome


def test_a_closed_loop_sends_the_next_step_after_the_answer():
    with FakeServer() as server:
        outcome = outcome_of(server)
    assert outcome.how == How.DONE
    assert not outcome.errors
    # Each stream may have its last answer when it is over.
    assert 0 <= outcome.latency.number - outcome.num_done <= 4
    assert server.calls["step"] == sum(server.last.values()) == outcome.latency.number
    assert len(server.last) == 4
    assert not server.open
    assert outcome.latency.counts.tolist() == outcome.response.counts.tolist()


def test_an_open_loop_sends_every_step_that_is_due():
    with FakeServer() as server:
        outcome = outcome_of(server, rate=(50.0, 50.0), arrivals="fixed", duration_s=0.4)
    assert outcome.how == How.DONE
    assert outcome.latency.number == server.calls["step"] == 4 * 20


def test_a_wait_of_the_server_shows_in_all_steps_that_were_due_meanwhile():
    # A closed loop's four streams see one wait each. With 100 steps/s a stream, 40 steps of four
    # streams are due in 0.1 s, and have waited for 50 ms on average.
    options = {"rate": (100.0, 100.0), "arrivals": "fixed", "in_flight": 1, "duration_s": 0.5}
    with FakeServer(stall_after_s=0.15, stalled_for_s=0.1) as server:
        outcome = outcome_of(server, **options)
    assert outcome.latency.number == 200
    waited = sum(outcome.latency.percentile_ns(p) > 20e6 for p in range(1, 101)) / 100
    assert waited > 0.12  # 32 of 200 steps have waited for more than 20 ms
    assert outcome.latency.max_ns >= 90e6
    # From when they were sent, which a stream may only when it has room, four have waited.
    assert outcome.response.percentile_ns(97) < outcome.latency.percentile_ns(88)


def test_steps_that_are_never_answered_count_with_their_wait():
    numbers = itertools.count()

    def answer(method, params, result, msgid):
        return None if method == "step" and next(numbers) >= 20 else result

    with (
        FakeServer(answer) as server,
        generator_of(server, rate=(100.0, 100.0), arrivals="fixed", in_flight=2) as generator,
    ):
        generator.open()
        outcome = generator.run()
    assert outcome.how == How.UNFINISHED
    assert outcome.num_unanswered == 8
    # 80 steps were due; what could not be sent is told, and nothing is left out.
    assert outcome.num_unsent == 80 - 20 - 8
    assert outcome.latency.number == 80
    assert outcome.latency.percentile_ns(50) > 0.9e9
    assert "no reply for 1 s" in outcome.first_error


def test_after_an_early_end_nothing_counts_that_was_not_due():
    numbers = itertools.count()

    def answer(method, params, result, msgid):
        return b"" if method == "step" and next(numbers) == 20 else result

    options = {"rate": (100.0, 100.0), "arrivals": "fixed", "duration_s": 60.0}
    with FakeServer(answer) as server, generator_of(server, **options) as generator:
        generator.open()
        outcome = generator.run()
    assert outcome.how == How.BAD_REPLY
    assert 20 < outcome.latency.number < 200  # of 24,000


def test_a_busy_server_gets_the_same_step_again():
    numbers = itertools.count()

    def answer(method, params, result, msgid):
        return Refusal("busy") if method == "step" and next(numbers) % 5 == 0 else result

    with FakeServer(answer) as server:
        outcome = outcome_of(server, streams=2, in_flight=1)
    assert outcome.how == How.DONE
    assert outcome.errors["busy"] == next(numbers) - outcome.latency.number > 0
    assert server.calls["open"] == 2
    assert outcome.first_error == "busy: a test wants it"


def test_a_stream_that_is_refused_for_good_makes_way_for_a_new_one():
    numbers = itertools.count()

    def answer(method, params, result, msgid):
        return Refusal("unknown") if method == "step" and next(numbers) == 5 else result

    with FakeServer(answer) as server:
        outcome = outcome_of(server, streams=2, in_flight=4)
    assert outcome.how == How.DONE
    assert outcome.errors == {"unknown": 1}
    assert server.calls["open"] == 3
    assert len(server.last) == 3


def test_streams_live_as_long_as_they_are_told_to():
    with FakeServer() as server:
        outcome = outcome_of(server, life=3, streams=2)
    assert outcome.how == How.DONE
    assert outcome.num_opened == len(server.last) > 4
    assert 0 <= outcome.num_opened - outcome.num_closed <= 2  # those that live at the end
    assert set(list(server.last.values())[:-2]) <= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("options", [{"chunk": 3}, {"batch": 2}, {"arrivals": "bursts"}])
def test_every_form_of_message_is_answered_in_order(options):
    with FakeServer() as server:
        outcome = outcome_of(server, rate=(30.0, 60.0), **options)
    assert outcome.how == How.DONE
    assert not outcome.errors
    steps = sum(server.last.values())
    assert outcome.latency.number == steps // (options.get("chunk", 1) * options.get("batch", 1))
    assert steps > 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, msgid: encode_response(msgid, [r[0] + 1, *r[1:]]), "another step"),
        (lambda r, msgid: encode_response(msgid, [*r[:2], r[2] + b"1234"]), "another step"),
        (lambda r, msgid: encode_response(msgid + 1, r), "another step"),
        (lambda r, msgid: encode_response(5, r), "another step"),
        (lambda r, msgid: b"\x94\x01", "2 bytes that begin with 94 01"),
        (lambda r, msgid: b"", "0 bytes that begin with nothing"),
        (lambda r, msgid: encode_response(msgid, r) + b"x", "bytes that begin with"),
        (lambda r, msgid: bytes(5_000_000), "5,000,000 bytes that begin with 00 00"),
    ],
)
def test_a_reply_to_nothing_that_was_asked_ends_it(change, words):
    def answer(method, params, result, msgid):
        return change(result, msgid) if method == "step" else result

    with FakeServer(answer) as server, generator_of(server, streams=1) as generator:
        generator.open()
        outcome = generator.run()
    assert outcome.how == How.BAD_REPLY
    assert words in outcome.first_error


def test_streams_that_cannot_be_opened_are_told_with_the_reason():
    def answer(method, params, result, msgid):
        return [[["busy", "full", None], None]] if method == "open" else result

    with FakeServer(answer) as server, generator_of(server, timeout_s=0.2) as generator:
        threading.Timer(0.3, setattr, (server, "answer", lambda *_: None)).start()
        words = r"0 of 4 streams could be opened: no reply for 0\.2 s; .* busy: full"
        with pytest.raises(BenchError, match=words):
            generator.open()


def test_names_that_somebody_else_has_are_left_alone():
    taken: list[str] = []

    def answer(method, params, result, msgid):
        if method == "open" and not taken:
            taken.append(params[0][0])
            return [[None, [17, 0, params[2]]]]
        return result

    with FakeServer(answer) as server:
        outcome = outcome_of(server, streams=2)
    assert outcome.how == How.DONE
    assert taken[0] in server.open  # never closed
    assert server.last[taken[0]] == 0  # never stepped


def test_a_server_that_is_not_there_is_told():
    with FakeServer() as server:
        pass
    with (
        pytest.raises(BenchError, match=r"did not answer within 0\.2 s: is a server there"),
        generator_of(server, timeout_s=0.2),
    ):
        pass


def test_after_an_interrupt_what_was_measured_is_returned(monkeypatch):
    with FakeServer() as server, generator_of(server, duration_s=60.0) as generator:
        generator.open()

        def interrupt(*_):
            raise KeyboardInterrupt

        began = time.monotonic()
        outcome = generator.run(interrupt)
    assert outcome.how == How.DONE
    assert 0.9 < outcome.measured_s < 30 > time.monotonic() - began
    assert outcome.latency.number == server.calls["step"] > 0


def test_enough_is_measured_when_the_caller_says_so():
    seen = []

    def at_interval(steps_per_s, latency):
        seen.append((steps_per_s, latency.number))
        return True

    with FakeServer() as server, generator_of(server, duration_s=60.0) as generator:
        generator.open()
        outcome = generator.run(at_interval)
    assert len(seen) == 1
    assert seen[0][0] > 0
    assert 0.9 < outcome.measured_s < 30


def test_names_are_those_of_a_shard_as_the_protocol_says():
    parts = [names_of_shard("loadabc", 5, 100, shard, 3) for shard in range(3)]
    for shard, names in enumerate(parts):
        assert len(names) == 100
        for name in names:
            assert shard_of(hash_slot(f"loadabc{name:08d}"), 3) == shard
    everything = np.sort(np.concatenate(parts))
    first = everything[:200]  # later on a part may have ended
    np.testing.assert_array_equal(first, np.arange(5, 205))


def test_streams_of_a_server_with_shards_come_back_under_their_names():
    with (
        FakeServer() as one,
        FakeServer() as other,
        generator_of(one, others=[other], life=2, streams=6) as generator,
    ):
        generator.open()
        outcome = generator.run()
    assert outcome.how == How.DONE
    assert outcome.num_opened > 6
    assert len(one.last) == len(other.last) == 3
    for shard, server in enumerate((one, other)):
        assert {shard_of(hash_slot(name), 2) for name in server.last} == {shard}
