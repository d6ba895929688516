"""The client over a network that loses, repeats and reorders messages."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn_client import errors
from streamrnn_client._session import batch as batching
from tests.simulation.client import Cancelled, Simulation, Weather

ROUGH = Weather(lost=0.25, twice=0.2, slowest_s=0.3)


def open_one(sim, stream="a", window=8, numbered=True):
    operation = batching.open_streams(sim.session, sim.exchange, [stream], "sum", window, numbered)
    return sim.run(operation)[0][0]


def until_it_works(make, sim, tries=20):
    """Call again, as a user would, after a timeout; the numbers make that safe."""
    for _ in range(tries):
        try:
            return sim.run(make())
        except (errors.RequestTimeout, errors.PartialFailure) as error:
            failures = getattr(error, "errors", {None: error}).values()
            if any(type(failure) is not errors.RequestTimeout for failure in failures):
                raise
    raise AssertionError(f"{tries} calls got no answer")


def steps_until_they_work(sim, state, x):
    outputs = np.empty_like(x)
    done = 0
    while done < len(x):
        try:
            outputs[done:] = sim.run(sim.session.steps(sim.exchange, state, x[done:], None))
            return outputs
        except errors.RequestTimeout as error:
            outputs[done : done + len(error.completed)] = error.completed
            done += len(error.completed)
    return outputs


def batch_until_it_works(sim, rows, x):
    """Repeat for those streams only that got no answer."""
    done: dict[str | int, np.ndarray] = {}
    left = dict(zip(rows.ids, x, strict=True))
    while left:
        try:
            if len(left) == len(rows):
                y = sim.run(batching.step_rows(sim.session, sim.exchange, rows, x))
                done.update(zip(left, y, strict=True))
            else:
                done.update(sim.run(batching.step_many(sim.session, sim.exchange, left, "sum")))
            left = {}
        except errors.RequestTimeout:
            continue
        except errors.PartialFailure as failure:
            if {type(e) for e in failure.errors.values()} - {errors.RequestTimeout, errors.Busy}:
                raise
            done.update(failure.results)
            left = {stream: left[stream] for stream in failure.errors}
    return np.array([done[stream] for stream in rows.ids])


actions = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 100)),
        st.tuples(st.just("steps"), st.integers(1, 40)),
        st.tuples(st.just("batch"), st.integers(1, 100)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("busy"), st.integers(1, 3)),
        st.tuples(st.just("resync"), st.just(0)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_shards=st.integers(1, 3),
    window=st.sampled_from([1, 2, 8, 16]),
    actions=actions,
)
def test_every_numbered_step_has_one_effect(seed, num_shards, window, actions):
    sim = Simulation(seed, num_shards, replace(ROUGH))
    ids: list[str | int] = ["a", 7, "b"]
    states = until_it_works(
        lambda: batching.open_streams(sim.session, sim.exchange, ids, "sum", window, True), sim
    )[0]
    rows = batching.Rows(states, states[0].model)
    totals = np.zeros((3, 2), np.float32)
    num_applied = 0
    ex, session = sim.exchange, sim.session
    for action, amount in actions:
        x = np.arange(2 * amount, dtype=np.float32).reshape(amount, 2)
        if action == "step":
            y = until_it_works(lambda x=x: session.step(ex, states[0], x[-1], None), sim)
            totals[0] += x[-1]
            num_applied += 1
            assert y.tolist() == totals[0].tolist()
        elif action == "steps":
            y = steps_until_they_work(sim, states[1], x)
            expected = totals[1] + np.cumsum(x, axis=0, dtype=np.float32)
            totals[1] = expected[-1]
            num_applied += amount
            assert y.tolist() == expected.tolist()
        elif action == "batch":
            x = np.full((3, 2), amount, np.float32)
            y = batch_until_it_works(sim, rows, x)
            totals += x
            num_applied += 3
            assert y.tolist() == totals.tolist()
        elif action == "reset":
            until_it_works(lambda: session.reset(ex, states[2]), sim)
            totals[2] = 0
            num_applied += 1
        elif action == "resync":
            before = states[0].last_seq
            assert until_it_works(lambda: session.resync(ex, states[0]), sim) == before
        else:
            sim.server.busy_for = amount
    assert sim.server.num_applied == num_applied
    assert not any(state.turn for state in states)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_shards=st.integers(1, 3),
    window=st.sampled_from([1, 2, 8, 16]),
    name=st.sampled_from(["step", "steps", "batch", "reset"]),
    num_rows=st.integers(1, 60),
    is_at_rest=st.booleans(),
    events=st.lists(st.integers(0, 60) | st.sampled_from(["crash", "checkpoint"]), max_size=8),
)
def test_cancelled_calls_that_are_made_again_have_one_effect(
    seed, num_shards, window, name, num_rows, is_at_rest, events
):
    """A number: a call that is cancelled after so many events of the network, if it takes them."""
    weather = Weather(lost=0.02, twice=0.2, slowest_s=0.05)
    sim = Simulation(seed, num_shards, weather, durability="checkpoint")
    ids: list[str | int] = ["a", 7, "b"]
    open_them = batching.open_streams(sim.session, sim.exchange, ids, "sum", window, True)
    states = sim.run(open_them)[0]
    rows = batching.Rows(states, states[0].model)
    x = np.ones((num_rows, 2), np.float32)
    if not is_at_rest:
        x = np.random.default_rng(seed).integers(0, 9, (num_rows, 2)).astype(np.float32)
    batch = np.resize(x, (3, 2))
    session, ex = sim.session, sim.exchange
    make = {
        "step": lambda: session.step(ex, states[0], x[0], None),
        "steps": lambda: session.steps(ex, states[0], x, None),
        "batch": lambda: batching.step_rows(session, ex, rows, batch),
        "reset": lambda: session.reset(ex, states[0]),
    }[name]
    num_calls = 0
    for event in [*events, None]:
        if event == "crash":
            sim.server.crash(f"crash {len(sim.server.requests)}")
        elif event == "checkpoint":
            sim.server.end_checkpoint(sim.server.begin_checkpoint())
        else:
            sim.cancel_in = event
            try:
                y = sim.run(make())
            except Cancelled:
                continue
            sim.cancel_in = None
            num_calls += 1
            if name == "steps":
                expected = (num_calls - 1) * x.sum(axis=0) + np.cumsum(x, axis=0)
                assert y.tolist() == expected.tolist()
            elif name != "reset":
                assert y.tolist() == (num_calls * (batch if name == "batch" else x[0])).tolist()
            assert states[0].last_seq == num_calls * (num_rows if name == "steps" else 1)
    assert sim.server.streams[b"sa"].last_seq == states[0].last_seq
    assert not any(state.turn for state in states)


def loses_its_state(feed):
    try:
        feed()
    except errors.StateLost:
        return True
    return False


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    restart_after=st.integers(0, 30),
    numbered=st.booleans(),
    rough=st.booleans(),
)
def test_a_restart_is_never_silent(seed, restart_after, numbered, rough):
    """Either every output is that of one unbroken sequence, or StateLost names the stream."""
    sim = Simulation(seed, weather=replace(ROUGH) if numbered and rough else Weather())
    state = until_it_works(
        lambda: batching.open_streams(sim.session, sim.exchange, ["a"], "sum", 4, numbered), sim
    )[0][0]
    total = 0.0
    handle = sim.server.handle
    num_handled = acknowledged = 0

    def handle_and_restart(payload, shard=0):
        nonlocal num_handled, acknowledged
        num_handled += 1
        if num_handled == restart_after:
            acknowledged = state.last_seq
            sim.server.restart("second")
        return handle(payload, shard)

    sim.server.handle = handle_and_restart

    def feed():
        nonlocal total
        for k in range(1, 25):
            x = np.array([k, 0], np.float32)
            y = until_it_works(lambda x=x: sim.session.step(sim.exchange, state, x, None), sim)
            total += k
            assert y[0] == total

    # While no step is acknowledged there is nothing to lose, and a numbered stream just goes on.
    # (Where messages come twice, late ones may even bring a lost state back, step by step.)
    if not loses_its_state(feed):
        assert total == sum(range(1, 25))
        assert acknowledged == 0 or rough
        assert numbered or num_handled < restart_after or restart_after == 0
        return
    assert num_handled >= restart_after > 0
    with pytest.raises(errors.StateLost) as caught:
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    lost = caught.value
    assert lost.stream == "a"
    assert lost.last_seq == state.last_seq
    assert lost.last_seq > 0 or not numbered
    assert "instance first before, second now" in str(lost) or "answer hello" in str(lost)


def test_an_unnumbered_step_is_never_sent_twice():
    sim = Simulation(1)
    state = open_one(sim, numbered=False)
    sim.weather.lost = 1.0
    sim.num_sends = 0
    with pytest.raises(errors.RequestTimeout, match="once only"):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    assert sim.num_sends == 1


def test_an_unnumbered_batch_is_never_sent_twice():
    sim = Simulation(1)
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a", "b"], "sum", None, False))
    sim.weather.lost = 1.0
    sim.num_sends = 0
    with pytest.raises(errors.RequestTimeout, match="once only"):
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.ones((2, 2), np.float32)))
    assert sim.num_sends == 1


@pytest.mark.parametrize("seed", range(5))
def test_unnumbered_steps_do_not_overtake_each_other(seed):
    sim = Simulation(seed, weather=Weather(slowest_s=0.3))
    state = open_one(sim, window=8, numbered=False)
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    sim.server.busy_for = 2
    y = sim.run(sim.session.steps(sim.exchange, state, x, None))
    assert y.tolist() == np.cumsum(x, axis=0).tolist()


def test_a_numbered_step_is_sent_again_until_the_deadline():
    sim = Simulation(1)
    state = open_one(sim)
    sim.weather.lost = 1.0
    sim.num_sends = 0
    before = sim.now
    with pytest.raises(errors.RequestTimeout, match="same input is safe"):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    assert sim.now - before == pytest.approx(5.0)
    assert sim.num_sends == 6  # at 0, 0.1, 0.3, 0.7, 1.5 and 3.1 s


def test_going_on_with_other_input_after_a_timeout_says_what_to_do():
    sim = Simulation(1)
    state = open_one(sim)
    handle = sim.server.handle
    sim.server.handle = lambda payload, shard: handle(payload, shard) and b"\xc1"
    with pytest.raises(errors.RequestTimeout, match="another service"):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    sim.server.handle = handle
    with pytest.raises(errors.Conflict, match="resync"):
        sim.run(sim.session.step(sim.exchange, state, [3, 4], None))
    assert sim.run(sim.session.step(sim.exchange, state, [1, 2], None)).tolist() == [1, 2]
    assert sim.run(sim.session.resync(sim.exchange, state)) == 1


def test_steps_keep_to_the_window_and_keep_two_chunks_under_way():
    sim = Simulation(1)
    state = open_one(sim, window=8)
    sizes, handle = [], sim.server.handle
    unanswered = most = 0

    def count(payload, shard):
        nonlocal unanswered, most
        unanswered = max(len(sim.exchange._pending), unanswered)
        most = max(most, len(sim.exchange._pending))
        sizes.append(len(payload))
        return handle(payload, shard)

    sim.server.handle = count
    y = sim.run(sim.session.steps(sim.exchange, state, np.ones((20, 2), np.float32), None))
    assert y[:, 0].tolist() == list(range(1, 21))
    assert len(sizes) >= 5  # chunks of half the window
    assert most == 2
    assert state.last_seq == 20


def test_a_bad_step_in_a_long_call_keeps_what_was_done():
    sim = Simulation(1)
    state = open_one(sim, window=8)
    x = np.ones((20, 2), np.float32)
    x[13, 1] = np.nan
    with pytest.raises(errors.BadValue, match=r"'b'.*of step 13") as caught:
        sim.run(sim.session.steps(sim.exchange, state, x, None))
    assert caught.value.completed[:, 0].tolist() == list(range(1, 13))
    assert caught.value.detail["step"] == 13
    assert state.last_seq == 12
    x[13, 1] = 1
    y = sim.run(sim.session.steps(sim.exchange, state, x[12:], None))
    assert y[:, 0].tolist() == list(range(13, 21))


def test_numbers_of_the_users_own():
    sim = Simulation(1)
    state = open_one(sim, window=4)
    run, ex = sim.run, sim.exchange
    assert run(sim.session.steps(ex, state, np.ones((3, 2), np.float32), 1))[:, 0].tolist() == [
        1,
        2,
        3,
    ]
    assert run(sim.session.step(ex, state, [1, 1], 2)).tolist() == [2, 2]  # once more
    assert state.last_seq == 3
    with pytest.raises(errors.Conflict):
        run(sim.session.step(ex, state, [9, 9], 2))
    with pytest.raises(errors.Gap) as caught:
        run(sim.session.step(ex, state, [1, 1], 9))
    assert caught.value.detail["expected"] == 4
    run(sim.session.steps(ex, state, np.ones((4, 2), np.float32), 4))
    with pytest.raises(errors.Stale):
        run(sim.session.step(ex, state, [1, 1], 1))
    with pytest.raises(errors.BadParams):
        run(sim.session.step(ex, state, [1, 1], 0))


def test_a_failed_item_of_a_batch_leaves_the_others_their_results():
    sim = Simulation(1, num_shards=3)
    ids = [f"s{k}" for k in range(30)]
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ids, "sum", None, True))
    x = np.ones((30, 2), np.float32)
    sim.run(batching.step_rows(sim.session, sim.exchange, rows, x))
    x[4] = np.inf
    del sim.server.streams[b"ss9"]
    with pytest.raises(errors.PartialFailure, match="2 of 30") as caught:
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, x))
    assert set(caught.value.errors) == {"s4", "s9"}
    assert isinstance(caught.value.errors["s4"], errors.BadValue)
    lost = caught.value.errors["s9"]
    assert isinstance(lost, errors.StateLost)
    assert (lost.stream, lost.last_seq) == ("s9", 1)
    assert "not started again" in str(lost)
    assert {tuple(y) for y in caught.value.results.values()} == {(2.0, 2.0)}
    assert len(caught.value.results) == 28
    # What was rejected took no number; what is lost stays lost, without a word to the server.
    x[4] = 1
    with pytest.raises(errors.PartialFailure) as caught:
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, x))
    assert set(caught.value.errors) == {"s9"}
    assert caught.value.results["s4"].tolist() == [2, 2]


def test_a_stream_that_was_never_stepped_is_opened_again():
    sim = Simulation(1)
    ids = ["a", "b"]
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ids, "sum", None, True))
    sim.server.restart("second")
    y = sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.ones((2, 2), np.float32)))
    assert y.tolist() == [[1, 1], [1, 1]]


def test_opening_anew_after_a_loss_is_explicit():
    sim = Simulation(1)
    many = {"a": [1, 2], "b": [3, 4]}
    sim.run(batching.step_many(sim.session, sim.exchange, many, "sum"))
    sim.server.restart("second")
    for _ in range(2):
        with pytest.raises(errors.PartialFailure, match=r"2 StateLost.*first before, second now"):
            sim.run(batching.step_many(sim.session, sim.exchange, many, "sum"))
    assert open_one(sim, "a").last_seq == 0
    assert open_one(sim, "b").last_seq == 0
    result = sim.run(batching.step_many(sim.session, sim.exchange, many, "sum"))
    assert result["b"].tolist() == [3, 4]


def test_opening_a_stream_that_went_back_is_a_loss():
    sim = Simulation(1)
    state = open_one(sim, "a")
    sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    sim.server.restart("second")
    with pytest.raises(errors.StateLost, match="0 steps"):
        open_one(sim, "a")
    assert open_one(sim, "a").last_seq == 0


def test_a_stream_reopened_by_another_client_after_a_restart_is_still_lost():
    sim = Simulation(1)
    state = open_one(sim, "a")
    rows = batching.Rows([state], state.model)
    sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    sim.server.restart("second")
    sim.server._open_one("a", "sum", 16, 0)
    with pytest.raises(errors.StateLost, match=r"expects step 1 next.*first before, second"):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    with pytest.raises(errors.StateLost):
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.ones((1, 2), np.float32)))


def test_rows_know_which_of_their_streams_was_closed():
    sim = Simulation(1)
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a", "b"], "sum", None, True))
    sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.ones((2, 2), np.float32)))
    assert sim.run(sim.session.close(sim.exchange, sim.session.streams["a"]))
    with pytest.raises(errors.PartialFailure, match="closed by this client") as caught:
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.ones((2, 2), np.float32)))
    assert caught.value.results["b"].tolist() == [2, 2]


def test_a_stale_map_is_corrected_by_moved():
    sim = Simulation(3, num_shards=3)
    session, ids = sim.session, list(range(20))
    rows = sim.run(batching.open_rows(session, sim.exchange, ids, "sum", None, True))
    state = open_one(sim, "another")
    assert session.info is not None
    session.info = replace(session.info, endpoints=(*sim.endpoints[1:], sim.endpoints[0]))
    session.map_version += 1
    for total in (1, 2):
        sim.server.requests.clear()
        y = sim.run(batching.step_rows(session, sim.exchange, rows, np.ones((20, 2), np.float32)))
        assert y.tolist() == [[total, total]] * 20
    assert sim.server.requests == ["batch"] * 3  # what was learned is kept
    session._moved = {}
    sim.run(session.reset(sim.exchange, state))
    session._moved = {}
    y = sim.run(session.steps(sim.exchange, state, np.ones((50, 2)), None))
    assert y[-1].tolist() == [50, 50]


def test_streams_are_opened_where_shards_are_left():
    sim = Simulation(3, num_shards=3)
    ids = list(range(20))
    sim.run(batching.open_streams(sim.session, sim.exchange, ids, "sum", None, True))
    handle = sim.server.handle
    sim.server.endpoints = sim.endpoints[:1]
    sim.server.handle = lambda payload, shard: handle(payload, shard) if shard == 0 else None
    more = [f"s{k}" for k in ids]
    states = sim.run(batching.open_streams(sim.session, sim.exchange, more, "sum", None, True))[0]
    assert [state.is_open for state in states] == [True] * 20


def test_an_endless_move_ends():
    sim = Simulation(3, num_shards=2)
    state = open_one(sim, "a")
    wrong = {0: 1, 1: 0}
    handle = sim.server.handle
    sim.server.handle = lambda payload, shard: handle(payload, wrong[shard])
    sim.server.endpoints = sim.endpoints
    with pytest.raises(errors.Moved):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None))


def test_busy_beyond_the_deadline_is_an_error_and_changes_nothing():
    sim = Simulation(1)
    state = open_one(sim, numbered=False)
    sim.server.busy_for = 10**9
    with pytest.raises(errors.Busy):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None))
    sim.server.busy_for = 3
    assert sim.run(sim.session.step(sim.exchange, state, [1, 2], None)).tolist() == [1, 2]


def test_a_large_batch_is_split_by_the_servers_limits():
    sim = Simulation(1, max_batch=7, max_message_bytes=3000)
    ids = list(range(40))
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ids, "sum", None, True))
    y = sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.ones((40, 2), np.float32)))
    assert y.tolist() == [[1, 1]] * 40
    assert sim.server.requests.count("batch") == 6


def test_no_more_requests_under_way_than_the_server_allows():
    sim = Simulation(1)
    states = sim.run(
        batching.open_streams(sim.session, sim.exchange, list(range(20)), "sum", None, True)
    )[0]
    sim.exchange.max_in_flight = 3
    calls = [
        sim.session._submit(sim.exchange, state, 1, np.ones(2, np.float32)) for state in states
    ]
    assert len(sim.exchange.outbox) == 3
    sim.exchange.abandon(calls[10])
    for call in calls:
        sim._wait(call)
        assert len(sim.exchange.outbox) <= 3
    assert sim.server.num_applied == 19


def sends_of_steps(sim):
    """Return when each step is sent, and the last four bytes of it, as it happens."""
    sends = []
    ship = sim._ship

    def note(kind, what):
        if kind == "request" and b"step" in what[1][:16]:
            sends.append((sim.now, int.from_bytes(what[1][-4:], "big")))
        ship(kind, what)

    sim._ship = note
    return sends


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    retry_ms=st.integers(1, 900),
    num_busy=st.integers(1, 6),
    is_batch=st.booleans(),
)
def test_who_is_busy_is_asked_again_when_he_says_and_not_by_all_at_once(
    seed, retry_ms, num_busy, is_batch
):
    """Never before the time that was named, later by a random part, within the timeout."""
    sim = Simulation(seed, weather=Weather(slowest_s=0.0011))
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a"], "sum", None, True))
    sim.server.busy_for, sim.server.busy_detail = num_busy, {"retry_after_ms": retry_ms}
    sends = sends_of_steps(sim)
    before, state = sim.now, rows._states[0]

    def call():
        if is_batch:
            return sim.run(batching.step_rows(sim.session, sim.exchange, rows, [[1, 2]]))[0]
        return sim.run(sim.session.step(sim.exchange, state, [1, 2], None))

    y: list[list[float]] = []
    error = None
    try:
        y.append(call().tolist())
    except errors.Busy as busy:
        error = busy
    if error is not None:
        assert error.detail["retry_after_ms"] == retry_ms
        assert num_busy * retry_ms > 500  # or there was time for them all
    else:
        assert y == [[1, 2]]
        assert sim.now - before >= num_busy * retry_ms / 1e3
    assert sim.now - before <= 5.0
    waits = np.diff([at for at, _ in sends])
    assert (waits >= retry_ms / 1e3).all()
    assert (waits <= retry_ms / 1e3 + 1.01).all()


def test_clients_told_the_same_time_spread_and_spread_further_each_time():
    delays = np.array(
        [
            [
                Simulation(seed).exchange.busy_delay({"retry_after_ms": 10}, k, None, np.inf)
                for k in range(8)
            ]
            for seed in range(200)
        ]
    )
    assert len(np.unique(delays[:, 0])) == 200
    assert (delays >= 0.01).all()
    assert (delays <= 0.01 + np.minimum(0.01 * 2.0 ** np.arange(8), 1.0)).all()
    assert (np.diff(delays.mean(0)) > 0).all()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, 0.01),
        (-1, 0.01),
        (float("nan"), 0.01),
        (True, 0.01),
        ("1", 0.01),
        ([], 0.01),
        (0, 0.001),
        (float("inf"), None),
        (10**400, None),
        (2**63, None),
        (2.5, 0.0025),
    ],
)
def test_a_time_to_wait_that_is_none_counts_as_the_usual_one(told, expected):
    exchange = Simulation(1).exchange
    delay = exchange.busy_delay({"retry_after_ms": told}, 0, 5.0, np.inf)
    if expected is None or delay is None:
        assert delay is expected
    else:
        assert expected <= delay <= 2 * expected
    for detail in (None, 7, "", [1]):
        usual = exchange.busy_delay(detail, 0, 5.0, np.inf)
        assert usual is not None
        assert 0.01 <= usual <= 0.02


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    window=st.sampled_from([1, 2, 8]),
    calls=st.lists(
        st.tuples(st.integers(1, 20), st.one_of(st.none(), st.floats(0.0005, 1.0))),
        min_size=1,
        max_size=8,
    ),
)
def test_what_is_late_was_not_applied_and_its_numbers_are_free(seed, window, calls):
    """Over a rough network: outputs are those of the steps that were answered, in order."""
    sim = Simulation(seed, weather=ROUGH)
    state = until_it_works(lambda: open_operation(sim, window), sim)[0][0]
    total = np.zeros(2)
    for k, (num_rows, within_s) in enumerate(calls):
        x = np.arange(2 * num_rows, dtype=np.float32).reshape(-1, 2) + 100 * k
        begun = sim.now
        try:
            y = sim.run(sim.session.steps(sim.exchange, state, x, None, within_s))
        except errors.Late as error:
            assert within_s is not None
            assert sim.now - begun >= within_s - 0.001
            y = error.completed
        except errors.RequestTimeout as error:
            left = x[len(error.completed) :]
            y = np.vstack([error.completed, steps_until_they_work(sim, state, left)])
        except errors.Conflict:
            assert state.in_doubt  # a sending from before that was late came after all
            return
        assert y.tolist() == (total + np.cumsum(x, axis=0))[: len(y)].tolist()
        total = total + x[: len(y)].sum(axis=0)
        assert state.last_seq == sim.server.num_applied or state.in_doubt


@pytest.mark.parametrize("num_lost", [0, 1])
@pytest.mark.parametrize("is_batch", [False, True])
def test_after_late_an_earlier_sending_may_still_arrive(is_batch, num_lost):
    """Then the steps' fate is in doubt, in a batch as in a single step."""
    sim = Simulation(1, weather=Weather(slowest_s=0.0011))
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a", "b"], "sum", None, True))
    states, answer, num_left = rows._states, sim.server.handle, [num_lost]

    def handle(payload, shard):
        if num_left[0]:
            num_left[0] -= 1
            return None
        return answer(payload[:-4] + bytes(4), shard)  # it may wait no longer

    sim.server.handle = handle
    x = np.ones((2, 2), np.float32)
    call = (
        batching.step_rows(sim.session, sim.exchange, rows, x, 3.0)
        if is_batch
        else sim.session.step(sim.exchange, states[0], x[0], None, 3.0)
    )
    with pytest.raises(errors.PartialFailure if is_batch else errors.Late):
        sim.run(call)
    assert [each.in_doubt for each in states] == [num_lost > 0, is_batch and num_lost > 0]


def open_operation(sim, window):
    return batching.open_streams(sim.session, sim.exchange, ["a"], "sum", window, True)


def test_the_time_left_is_sent_and_less_with_every_repetition():
    sim = Simulation(1)
    state = open_one(sim)
    sim.weather.lost = 1.0
    told = sends_of_steps(sim)
    begun = sim.now
    with pytest.raises(errors.RequestTimeout):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None, 0.25))
    assert len(told) > 3
    for at, left_ms in told:
        assert left_ms == max(0, np.ceil(1e3 * (begun + 0.25 - at)))


@pytest.mark.parametrize("within_s", [0, -1, float("nan"), float("inf"), 1e6, True, "1"])
def test_a_time_within_which_steps_are_of_use_must_be_one(within_s):
    sim = Simulation(1)
    state = open_one(sim)
    with pytest.raises(errors.BadParams, match="number of seconds above 0"):
        sim.run(sim.session.step(sim.exchange, state, [1, 2], None, within_s))
    assert sim.server.requests.count("step") == 0


def test_a_server_that_knows_no_waits_is_not_sent_any():
    sim = Simulation(1)
    sim.server.features.remove("max_wait")
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a"], "sum", None, True))
    with pytest.raises(errors.NotSupported, match="leave within_s out"):
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, [[1, 2]], 1.0))
