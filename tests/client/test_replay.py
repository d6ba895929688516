"""Replay of steps that a restarted server has lost, in the simulated network."""

import numpy as np
import pytest

from streamrnn_client import errors, protocol
from streamrnn_client._session import batch as batching
from streamrnn_client._session import transfer as moving
from tests.simulation.client import TIMEOUT_S, Simulation, Weather


def simulate(seed=1, **options):
    return Simulation(seed, durability=options.pop("durability", "checkpoint"), **options)


def open_one(sim, stream="a", window=8, numbered=True):
    operation = batching.open_streams(sim.session, sim.exchange, [stream], "sum", window, numbered)
    return sim.run(operation)[0][0]


def step(sim, state, x, seq=None):
    return sim.run(sim.session.step(sim.exchange, state, x, seq)).tolist()


def steps(sim, state, x):
    return sim.run(sim.session.steps(sim.exchange, state, np.array(x, np.float32), None)).tolist()


def checkpoint(sim):
    sim.server.end_checkpoint(sim.server.begin_checkpoint())


def another_client(sim, **options):
    other = Simulation(7, num_shards=len(sim.endpoints), **options)
    other.server = sim.server
    return other


def draw(*shape):
    return np.random.default_rng(3).integers(0, 100, (*shape, 2)).astype(np.float32)


@pytest.mark.parametrize("num_durable", [0, 1, 5, 9, 10])
@pytest.mark.parametrize("window", [1, 4, 64])
@pytest.mark.parametrize("has_details", [True, False])
def test_a_crash_changes_nothing_that_a_user_can_see(num_durable, window, has_details):
    sim = simulate()
    sim.server.has_details = has_details
    state = open_one(sim, window=window)
    x = draw(30)
    expected = np.cumsum(x, axis=0).tolist()
    assert [step(sim, state, row) for row in x[:num_durable]] == expected[:num_durable]
    checkpoint(sim)
    assert [step(sim, state, row) for row in x[num_durable:10]] == expected[num_durable:10]
    sim.server.crash("second")
    assert step(sim, state, x[10]) == expected[10]
    sim.server.crash("third")
    assert steps(sim, state, x[11:]) == expected[11:]
    assert state.last_seq == sim.server.streams[b"sa"].last_seq == 30


def test_a_crash_changes_nothing_for_a_batch_either_when_errors_come_without_details():
    sim = simulate()
    sim.server.has_details = False
    open_rows = batching.open_rows(sim.session, sim.exchange, ["a", "b"], "sum", 8, True)
    rows = sim.run(open_rows)
    x = draw(6)
    expected = np.cumsum(x, axis=0)
    for k, row in enumerate(x):
        if k in (2, 4):
            sim.server.crash(f"after {k}")
        if k == 3:
            checkpoint(sim)
        y = sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.stack([row, row])))
        np.testing.assert_array_equal(y, np.stack([expected[k], expected[k]]))


def test_what_is_on_disk_is_not_kept_and_what_is_not_is():
    sim = simulate()
    state = open_one(sim)
    for _ in range(3):
        steps(sim, state, draw(20))
        assert state.replay_log.num_steps == 20
        checkpoint(sim)
        step(sim, state, [1, 2])
        assert state.replay_log.num_steps == 1
        checkpoint(sim)
        step(sim, state, [1, 2], seq=state.last_seq)  # an old step once more is not kept twice
        assert state.replay_log.num_steps == 0


def test_always_keeps_nothing_and_none_has_nothing_to_keep():
    sim = simulate(durability="always")
    state = open_one(sim)
    steps(sim, state, draw(20))
    assert state.replay_log.num_steps == 0
    sim.server.crash("second")
    total = sim.server.disk[b"sa"].total
    assert step(sim, state, [1, 2]) == [total[0] + 1, total[1] + 2]
    sim = simulate(durability="none")
    assert open_one(sim).replay_log is None
    assert open_one(simulate(), numbered=False).replay_log is None


def test_resets_are_replayed_in_order():
    sim = simulate()
    state = open_one(sim)
    for x in ([1, 1], None, [2, 2], [3, 3], None, [4, 4]):
        if x is None:
            sim.run(sim.session.reset(sim.exchange, state))
        else:
            step(sim, state, x)
    sim.server.crash("second")
    sim.run(sim.session.reset(sim.exchange, state))
    assert step(sim, state, [5, 5]) == [5, 5]
    sim.server.crash("third")
    assert step(sim, state, [5, 5]) == [10, 10]
    assert state.last_seq == 9
    assert sim.server.requests.count("reset") == 3 + 2 + 3 + 1  # twice refused, seven times applied


def test_inputs_are_kept_as_they_were_when_they_were_applied():
    sim = simulate()
    state = open_one(sim)
    x = draw(20)
    expected = np.cumsum(x, axis=0).tolist()
    steps_of_x = sim.run(sim.session.steps(sim.exchange, state, x, None)).tolist()
    assert steps_of_x == expected
    x[:] = 0
    sim.server.crash("second")
    assert step(sim, state, [1, 1]) == [expected[-1][0] + 1, expected[-1][1] + 1]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_batch_is_replayed_stream_by_stream(num_shards):
    sim = simulate(num_shards=num_shards)
    ids = [f"s{k}" for k in range(40)]
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ids, "sum", None, True))
    x = draw(6, 40)
    expected = np.cumsum(x, axis=0)
    for k in range(6):
        if k in (2, 5):
            sim.server.crash(f"instance {k}")
        y = sim.run(batching.step_rows(sim.session, sim.exchange, rows, x[k]))
        assert y.tolist() == expected[k].tolist()
        if k == 3:
            checkpoint(sim)
    assert {known.last_seq for known in sim.server.streams.values()} == {6}


def test_a_step_keeps_its_number_whatever_a_late_copy_of_it_does():
    sim = simulate()
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a", "b"], "sum", None, True))
    handle = sim.server.handle
    copies: list[bytes] = []

    def crash_and_apply_late(payload, shard):
        if sim.server.requests[-1] == "batch" or copies:
            return handle(payload, shard)
        sim.server.crash("second")
        reply = handle(payload, shard)
        if sim.server.requests[-1] == "batch":
            copies.append(payload)
            sim.server._open_one("a", "sum", 16, 0)
            handle(payload, shard)
        return reply

    sim.server.handle = crash_and_apply_late
    x = draw(2)
    assert sim.run(batching.step_rows(sim.session, sim.exchange, rows, x)).tolist() == x.tolist()
    assert copies
    assert rows.last_seqs == (1, 1)


def test_step_many_is_replayed_and_a_loss_fails_itself_only():
    sim = simulate()
    for _ in range(3):
        sim.run(batching.step_many(sim.session, sim.exchange, {"a": [1, 2], "b": [3, 4]}, "sum"))
    sim.server.crash("second")
    sim.session.streams["a"].replay_log.drop_durable(1)
    with pytest.raises(errors.PartialFailure, match="1 of 2") as caught:
        sim.run(batching.step_many(sim.session, sim.exchange, {"a": [1, 2], "b": [3, 4]}, "sum"))
    assert caught.value.results["b"].tolist() == [12, 16]
    assert isinstance(caught.value.errors["a"], errors.StateLost)


def test_a_loss_names_the_steps_that_are_missing_and_makes_no_new_stream():
    sim = simulate()
    state = open_one(sim)
    steps(sim, state, draw(20))
    state.replay_log.drop_durable(12)
    sim.server.crash("second")
    with pytest.raises(errors.StateLost, match=r"steps 1 to 12 cannot be sent again.*second now"):
        step(sim, state, [1, 2])
    assert not sim.server.streams
    with pytest.raises(errors.StateLost):
        step(sim, state, [1, 2])


def test_a_stream_closed_by_another_client_is_not_reopened():
    sim = simulate()
    state = open_one(sim)
    step(sim, state, [1, 2])
    del sim.server.streams[b"sa"]
    with pytest.raises(errors.StateLost, match="not started again, so somebody closed"):
        step(sim, state, [1, 2])
    assert not sim.server.streams


def test_at_the_bound_a_call_waits_for_the_disk():
    sim = simulate()
    sim.session.max_kept_steps = 10
    state = open_one(sim, window=4)
    x = draw(100)
    assert steps(sim, state, x) == np.cumsum(x, axis=0).tolist()
    assert 8 <= sim.server.requests.count("sync") <= 13
    assert state.replay_log.num_steps <= 10
    for _ in range(25):
        step(sim, state, [0, 0])
        assert state.replay_log.num_steps <= 10
    sim.server.crash("second")
    assert step(sim, state, [0, 0]) == x.sum(axis=0).tolist()


def test_the_bound_counts_bytes_too():
    sim = simulate()
    sim.session.max_kept_bytes = 80
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a", "b"], "sum", None, True))
    for _ in range(25):
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, draw(2)))
        assert all(state.replay_log.num_steps <= 10 for state in rows._states)
    assert sim.server.requests.count("sync") == 2


def test_a_disk_that_cannot_be_written_drops_nothing_and_is_loud_at_the_bound():
    sim = simulate()
    sim.session.max_kept_steps = 10
    state = open_one(sim, window=4)
    sim.server.is_read_only = True
    for _ in range(10):
        step(sim, state, [1, 1])
    with pytest.raises(errors.ReadOnly, match="durable_seq of stream 'a' stands at 0"):
        step(sim, state, [1, 1])
    with pytest.raises(errors.ReadOnly) as caught:
        steps(sim, state, draw(4))
    assert len(caught.value.completed) == 0
    with pytest.raises(errors.ReadOnly):
        sim.run(batching.step_many(sim.session, sim.exchange, {"a": [1, 1]}, "sum"))
    assert state.last_seq == 10
    sim.server.crash("second")
    with pytest.raises(errors.ReadOnly):
        step(sim, state, [1, 1])
    assert sim.server.streams[b"sa"].last_seq == 10  # replayed while it waited
    sim.server.is_read_only = False
    assert step(sim, state, [1, 1]) == [11, 11]


def test_a_client_that_was_started_again_goes_on_and_can_survive_a_crash():
    sim = simulate()
    steps(sim, open_one(sim), np.ones((20, 2)))
    other = another_client(sim)
    state = open_one(other)
    assert (state.last_seq, state.durable_seq) == (20, 20)  # it could not replay those: on disk now
    assert step(other, state, [1, 1]) == [21, 21]
    sim.server.crash("second")
    assert step(other, state, [1, 1]) == [22, 22]


def test_what_another_client_made_is_never_mixed_with_a_replay():
    sim = simulate()
    state = open_one(sim)
    steps(sim, state, np.ones((20, 2)))
    sim.server.crash("second")
    other = another_client(sim)
    theirs = open_one(other)
    assert theirs.last_seq == 0
    for _ in range(3):
        step(other, theirs, [9, 9])
    with pytest.raises(errors.Conflict):
        step(sim, state, [1, 1])
    steps(other, theirs, np.full((30, 2), 9.0))
    with pytest.raises((errors.Conflict, errors.Stale)):
        step(sim, state, [1, 1])
    assert sim.server.streams[b"sa"].total.tolist() == [9 * 33, 9 * 33]


def test_the_same_inputs_by_two_clients_are_no_conflict():
    sim = simulate()
    state = open_one(sim)
    steps(sim, state, np.ones((20, 2)))
    sim.server.crash("second")
    other = another_client(sim)
    steps(other, open_one(other), np.ones((25, 2)))
    assert step(sim, state, [1, 1]) == [21, 21]


def test_a_step_in_doubt_is_applied_once():
    sim = simulate()
    state = open_one(sim)
    step(sim, state, [1, 1])
    handle = sim.server.handle
    sim.server.handle = lambda payload, shard: handle(payload, shard) and b"\xc1"
    with pytest.raises(errors.RequestTimeout):
        step(sim, state, [2, 2])
    sim.server.handle = handle
    sim.server.crash("second")
    assert step(sim, state, [2, 2]) == [3, 3]
    sim.server.handle = lambda payload, shard: handle(payload, shard) and b"\xc1"
    with pytest.raises(errors.RequestTimeout):
        step(sim, state, [4, 4])
    sim.server.handle = handle
    assert sim.run(sim.session.resync(sim.exchange, state)) == 3
    assert state.durable_seq == 3  # its input is not kept
    sim.server.crash("third")
    assert step(sim, state, [5, 5]) == [12, 12]


def test_a_crash_during_the_replay():
    sim = simulate(window := 1)
    state = open_one(sim, window=window)
    steps(sim, state, np.ones((20, 2)))
    handle, num_handled = sim.server.handle, 0

    def crash_sometimes(payload, shard):
        nonlocal num_handled
        num_handled += 1
        if num_handled in (1, 8, 25, 26, 27):
            sim.server.crash(f"after {num_handled}")
        return handle(payload, shard)

    sim.server.handle = crash_sometimes
    assert step(sim, state, [1, 1]) == [21, 21]
    assert num_handled > 40


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
def test_the_number_of_shards_may_change(before, after):
    sim = simulate(num_shards=3)
    endpoints = sim.endpoints
    handle = sim.server.handle
    sim.server.endpoints = endpoints[:before]
    ids = list(range(30))
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ids, "sum", None, True))
    state = open_one(sim, "another")
    x = draw(30)
    sim.run(batching.step_rows(sim.session, sim.exchange, rows, x))
    step(sim, state, [1, 1])
    sim.server.crash("second")
    sim.server.endpoints = endpoints[:after]
    sim.server.handle = lambda payload, shard: handle(payload, shard) if shard < after else None
    assert step(sim, state, [1, 1]) == [2, 2]
    y = sim.run(batching.step_rows(sim.session, sim.exchange, rows, x))
    assert y.tolist() == (2 * x).tolist()


@pytest.mark.parametrize("is_hello_silent", [False, True])
@pytest.mark.parametrize("what", ["step", "batch", "open"])
def test_silent_endpoints_cost_little_more_than_the_timeout(what, is_hello_silent):
    """A silent one may be the wrong one: the server is asked, and the right one is tried."""
    sim = simulate(num_shards=3)
    session, ex, handle = sim.session, sim.exchange, sim.server.handle
    rows = sim.run(batching.open_rows(session, ex, list(range(30)), "sum", None, True))
    state = next(state for state in rows._states if session.endpoint(state) == "sim://2")
    sim.server.endpoints = sim.endpoints[:2]
    sim.server.handle = lambda payload, shard: (
        handle(payload, shard) if b"hello" in payload and not is_hello_silent else None
    )
    calls = {
        "step": lambda: step(sim, state, [1, 1]),
        "batch": lambda: sim.run(batching.step_rows(session, ex, rows, draw(30))),
        "open": lambda: sim.run(batching.open_rows(session, ex, ["a", "b", "c"], None, None, True)),
    }
    began = sim.now
    with pytest.raises((errors.RequestTimeout, errors.PartialFailure)):
        calls[what]()
    assert sim.now - began <= 1.25 * TIMEOUT_S
    sim.server.handle = handle
    assert step(sim, state, [1, 1]) == [1, 1]


def test_a_server_restarted_without_its_disk_raises_state_lost():
    sim = simulate()
    young, old = open_one(sim, "young"), open_one(sim, "old")
    step(sim, old, [1, 1])
    checkpoint(sim)
    step(sim, old, [1, 1])
    step(sim, young, [1, 1])
    sim.server.disk.clear()
    sim.server.crash("second")
    sim.server.durability = "none"
    with pytest.raises(errors.StateLost, match="steps 1 to 1"):
        step(sim, old, [1, 1])
    sim.session.max_kept_steps = 1
    for total in (2, 3, 4):
        assert step(sim, young, [1, 1]) == [total, total]


def test_sync_says_what_is_on_disk():
    sim = simulate()
    state, other = open_one(sim, "a"), open_one(sim, "b")
    steps(sim, state, draw(20))
    assert sim.run(sim.session.sync(sim.exchange, state)) == 20
    step(sim, other, [1, 2])
    step(sim, state, [1, 2])
    sim.server.crash("second")  # what it lost is replayed, and then written
    assert sim.run(moving.sync_all(sim.session, sim.exchange)) is True
    assert sim.server.disk[b"sa"].last_seq == state.durable_seq == 21
    assert sim.server.disk[b"sb"].last_seq == other.durable_seq == 1
    sim.server.is_read_only = True
    assert sim.run(moving.sync_all(sim.session, sim.exchange)) is True
    step(sim, state, [1, 2])
    assert sim.run(moving.sync_all(sim.session, sim.exchange)) is False
    assert sim.run(sim.session.sync(sim.exchange, state)) == 21
    sim = simulate(durability="none")
    state = open_one(sim)
    with pytest.raises(errors.NotSupported):
        sim.run(sim.session.sync(sim.exchange, state))


def test_forks_exports_and_snapshots_are_of_the_last_step_even_after_a_crash():
    sim = simulate()
    run, session, ex = sim.run, sim.session, sim.exchange
    state = open_one(sim)
    steps(sim, state, np.ones((20, 2)))
    sim.server.crash("second")
    branch = run(moving.fork(session, ex, state, "branch"))
    assert (branch.last_seq, branch.durable_seq) == (20, 20)
    assert step(sim, branch, [9, 9]) == [29, 29]
    assert step(sim, state, [1, 1]) == [21, 21]
    sim.server.crash("third")
    record = run(moving.export_stream(session, ex, state))
    copied = run(moving.import_stream(session, ex, "copied", record, "sum", True))
    assert step(sim, copied, [1, 1]) == [22, 22]
    assert copied.last_seq == 22
    anew = run(moving.open_with_state(session, ex, "anew", record, "sum", 4, True))
    assert step(sim, anew, [1, 1]) == [22, 22]
    assert (anew.last_seq, anew.window) == (1, 4)
    sim.server.crash("fourth")
    assert run(moving.snapshot(session, ex, state, "best")) == 21
    assert steps(sim, state, [[5, 5]] * 3)[-1] == [36, 36]
    sim.server.crash("fifth")
    assert run(moving.rollback(session, ex, state, "best")) == 25
    assert step(sim, state, [1, 1]) == [22, 22]
    sim.server.crash("sixth")
    assert step(sim, state, [1, 1]) == [23, 23]
    run(session.sync(ex, state))
    step(sim, state, [1, 1])
    run(moving.rollback(session, ex, state, None))
    assert step(sim, state, [1, 1]) == [24, 24]


def test_refused_forks_imports_and_exports_raise_their_errors():
    sim = simulate()
    run, session, ex = sim.run, sim.session, sim.exchange
    state = open_one(sim)
    step(sim, state, [1, 1])
    record = run(moving.export_stream(session, ex, state))
    with pytest.raises(errors.Exists):
        run(moving.fork(session, ex, state, "a"))
    step(sim, state, [1, 1])
    with pytest.raises(errors.Exists):
        run(moving.import_stream(session, ex, "a", record, "sum", True))
    with pytest.raises(errors.Damaged):
        run(moving.import_stream(session, ex, "b", record[:-9], "sum", True))
    with pytest.raises(errors.Mismatch):
        run(moving.import_stream(session, ex, "b", record, "sum3", True))
    with pytest.raises(errors.BadParams):
        run(moving.import_stream(session, ex, "b", 7, "sum", True))  # type: ignore[arg-type]
    with pytest.raises(errors.UnknownSnapshot):
        run(moving.rollback(session, ex, state, "none"))
    assert step(sim, state, [1, 1]) == [3, 3]
    sim.server.is_read_only = True
    with pytest.raises(errors.ReadOnly, match="older state"):
        run(moving.fork(session, ex, state, "c"))
    assert set(sim.session.streams) == {"a"}


def lose_answers(sim, num_answers, and_then=lambda: None):
    handle = sim.server.handle
    answers = iter([b"\xc1"] * num_answers)

    def lossy(payload, shard):
        reply = handle(payload, shard)
        if (lost := next(answers, None)) is None:
            return reply
        and_then()
        return lost

    sim.server.handle = lossy


@pytest.mark.parametrize("num_lost", [1, 2])
def test_fork_and_import_are_retried_when_the_reply_was_lost(num_lost):
    sim = simulate(weather=Weather(slowest_s=0.002))
    run, session, ex = sim.run, sim.session, sim.exchange
    state = open_one(sim)
    step(sim, state, [1, 1])
    run(session.sync(ex, state))
    lose_answers(sim, num_lost)
    branch = run(moving.fork(session, ex, state, "b"))
    assert (branch.last_seq, branch.window) == (1, 8)
    record = run(moving.export_stream(session, ex, state))
    lose_answers(sim, num_lost)
    copied = run(moving.import_stream(session, ex, "c", record, "sum", True))
    lose_answers(sim, num_lost)
    anew = run(moving.open_with_state(session, ex, "d", record, "sum", 4, True))
    assert (copied.last_seq, anew.last_seq, anew.window) == (1, 0, 4)
    for each in (state, branch, copied, anew):
        assert step(sim, each, [1, 1]) == [2, 2]
    assert sim.server.requests.count("fork") == 1 + num_lost


def test_a_fork_stepped_meanwhile_raises_exists_and_says_it_may_be_the_own():
    sim = simulate(weather=Weather(slowest_s=0.002))
    state = open_one(sim)
    sim.run(sim.session.sync(sim.exchange, state))
    lose_answers(sim, 1, lambda: step_elsewhere(sim, "b"))
    with pytest.raises(errors.Exists, match="this call's own") as caught:
        sim.run(moving.fork(sim.session, sim.exchange, state, "b"))
    assert caught.value.detail["num_sends"] == 2


def step_elsewhere(sim, stream):
    x = np.ones(2, "<f4").tobytes()
    reply = sim.server.answer(protocol.encode_request(9, "step", [stream, 1, x]))
    assert protocol.decode_response(reply).error is None
