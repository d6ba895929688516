"""What a client says that its caller has: never more, and soon all of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn_client import errors, protocol
from streamrnn_client._session import batch as batching
from tests.simulation.client import Cancelled, Simulation

WINDOW = 8
X = np.arange(1, 201, dtype=np.float32).reshape(100, 2)
Y = np.cumsum(X, axis=0)


def simulate(**options):
    return Simulation(1, durability=options.pop("durability", "checkpoint"), **options)


def open_one(sim, window=WINDOW, numbered=True):
    operation = batching.open_streams(sim.session, sim.exchange, ["a"], "sum", window, numbered)
    return sim.run(operation)[0][0]


def step(sim, state, seq=None):
    k = state.last_seq if seq is None else seq - 1
    y = sim.run(sim.session.step(sim.exchange, state, X[k], seq))
    assert y.tolist() == Y[k].tolist()


def known(sim):
    return sim.server.streams[b"sa"]


def test_a_step_tells_that_those_before_it_have_come():
    sim = simulate()
    state = open_one(sim)
    for k in range(1, 12):
        step(sim, state)
        assert known(sim).received == k - 1
    sim.run(sim.session.steps(sim.exchange, state, X[11:40], None))
    assert known(sim).received == 11  # until the call has ended, its caller has nothing of it
    sim.run(sim.session.reset(sim.exchange, state))
    assert known(sim).received == 40


def test_a_batch_tells_it_for_each_stream():
    sim = simulate()
    rows = sim.run(batching.open_rows(sim.session, sim.exchange, ["a", "b"], "sum", WINDOW, True))
    sim.run(sim.session.step(sim.exchange, rows._states[1], X[0], None))
    for k in range(3):
        sim.run(batching.step_rows(sim.session, sim.exchange, rows, X[:2]))
        assert [sim.server.streams[key].received for key in (b"sa", b"sb")] == [k, k + 1]


def test_nothing_is_told_where_nothing_follows_from_it():
    sim = simulate()
    state = open_one(sim, window=1)
    for _ in range(3):
        step(sim, state)
    assert known(sim).received == 0
    sim = simulate()
    state = open_one(sim, numbered=False)
    for _ in range(3):
        sim.run(sim.session.step(sim.exchange, state, X[0], None))
    assert known(sim).received == 0


def test_who_numbers_his_steps_may_ask_for_all_of_the_window_again():
    sim = simulate()
    state = open_one(sim)
    for seq in range(1, 21):
        step(sim, state, seq)
    assert known(sim).received == 0
    for seq in range(13, 21):
        step(sim, state, seq)


def test_outputs_of_before_this_client_are_not_told_as_received():
    """Their caller may still ask for them: he was started again, or is somebody else."""
    sim = simulate()
    state = open_one(sim)
    for _ in range(20):
        step(sim, state)
    told = known(sim).received
    sim.session = other = Simulation(2, durability="checkpoint").session
    other.address = sim.endpoints[0]
    again = open_one(sim)
    assert again.last_seq == 20
    for k in range(WINDOW):
        step(sim, again)
        assert known(sim).received == told, k
    step(sim, again)
    assert known(sim).received == again.last_seq - 1


@pytest.mark.parametrize("is_of_another", [False, True])
def test_a_numbered_call_beyond_the_next_step_tells_nothing_of_those_between(is_of_another):
    sim = simulate()
    state = open_one(sim)
    first = sim.session
    for _ in range(3):
        step(sim, state)
    for sim.cancel_in in range(1, 6):
        with pytest.raises(Cancelled):
            step(sim, state)
        if known(sim).last_seq == 4:
            break
    sim.cancel_in = None
    last = state
    if is_of_another:
        sim.session = Simulation(2, durability="checkpoint").session
        sim.session.address = sim.endpoints[0]
        last = open_one(sim)
        last.last_seq = last.unread_seq = 3  # as it was opened before that step
    step(sim, last, 5)
    step(sim, last)
    assert known(sim).received <= 3
    sim.session = first
    step(sim, state, 4)


@pytest.mark.parametrize("is_numbered", [False, True])
def test_a_replay_never_joins_two_histories(is_numbered):
    """One client's last steps of before a crash, and another's of after it, are alike."""
    sim = simulate()
    a = open_one(sim)
    first = sim.session
    for _ in range(3):
        step(sim, a)
    sim.server.end_checkpoint(sim.server.begin_checkpoint())
    sim.session = Simulation(2, durability="checkpoint").session
    sim.session.address = sim.endpoints[0]
    b = open_one(sim)
    for _ in range(6):
        step(sim, b)
    second = sim.session
    sim.server.crash("second")
    sim.session = first
    for k in (50, 51, 52, 6):
        seq = a.last_seq + 1 if is_numbered else None
        sim.run(sim.session.step(sim.exchange, a, X[k], seq))
    assert known(sim).received == (2 if is_numbered else 6)
    sim.session = second
    with pytest.raises(errors.Conflict):
        step(sim, b)


@pytest.mark.parametrize("num_events", range(4))
def test_a_step_whose_answer_did_not_come_is_not_told_as_received(num_events):
    sim = simulate()
    state = open_one(sim)
    for _ in range(3):
        step(sim, state)
    sim.cancel_in = num_events
    with pytest.raises(Cancelled):
        sim.run(sim.session.steps(sim.exchange, state, X[3:60], None))
    sim.cancel_in = None
    sim.run(sim.session.resync(sim.exchange, state))
    step(sim, state)
    assert known(sim).received == 3
    for seq in range(max(4, state.last_seq + 1 - WINDOW), state.last_seq):
        step(sim, state, seq)


@pytest.mark.parametrize("num_received", [0, 3, 9])
def test_a_replay_goes_on_over_outputs_that_are_not_kept(num_received):
    sim = simulate()
    state = open_one(sim, window=64)
    for seq in range(1, 11):
        step(sim, state, seq)
    known(sim).received = num_received
    copies = sim.server.begin_checkpoint()
    step(sim, state, 11)
    sim.server.end_checkpoint(copies)
    sim.server.crash("second")
    replayed = []
    handle = sim.server.handle

    def note(payload, shard):
        call = protocol.decode_request(payload).call
        if isinstance(call, protocol.StepRequest):
            replayed.append(call.first_seq)
        return handle(payload, shard)

    sim.server.handle = note
    step(sim, state, 12)
    assert min(replayed) == 1  # digests of all are compared
    assert not num_received or num_received + 1 in replayed
    assert known(sim).last_seq == 12


def test_a_server_that_is_replaced_by_an_older_one_is_told_nothing():
    sim = simulate()
    state = open_one(sim)
    for _ in range(3):
        step(sim, state)
    assert sim.session.has_received
    sim.server.end_checkpoint(sim.server.begin_checkpoint())
    step(sim, state)
    sim.server.crash("older")
    sim.server.is_old = True
    step(sim, state)
    assert not sim.session.has_received
    refused = sim.server.num_refused
    assert refused == 1
    sim.run(sim.session.reset(sim.exchange, state))
    assert sim.server.num_refused == refused
    sim.server.crash("newer")
    sim.server.is_old = False
    sim.run(sim.session.reset(sim.exchange, state))
    sim.server.is_old = True
    sim.server.instance = "older again"
    sim.run(sim.session.reset(sim.exchange, state))
    assert state.last_seq == known(sim).last_seq == 8


def test_bad_params_of_a_server_that_knows_it_are_the_callers():
    sim = simulate()
    state = open_one(sim)
    step(sim, state)
    handle = sim.server.handle

    def refuse(payload, shard):
        request = protocol.decode_request(payload)
        if request.method != "step":
            return handle(payload, shard)
        error = protocol.error_reply(protocol.ErrorCode.BAD_PARAMS)
        return protocol.encode_error(request.msgid, error)

    sim.server.handle = refuse
    with pytest.raises(errors.BadParams):
        step(sim, state)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.just(1)),
        st.tuples(st.just("steps"), st.integers(1, 12)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("checkpoint"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), window=st.sampled_from([2, 8]), actions=actions,
       interruptions=st.lists(st.integers(0, 12), max_size=4))  # fmt: skip
def test_what_a_caller_lacks_can_always_be_asked_for_again(seed, window, actions, interruptions):
    """An interrupted caller repeats his call, whatever was told meanwhile."""
    sim = Simulation(seed, durability="checkpoint")
    state = open_one(sim, window)
    left = list(interruptions)
    for number, (action, amount) in enumerate(actions):
        if action == "checkpoint":
            sim.server.end_checkpoint(sim.server.begin_checkpoint())
        elif action == "crash":
            sim.server.crash(f"instance {number}")
        elif action == "reopen":
            state = open_one(sim, window)
        else:
            first = state.last_seq
            if first + amount > len(X):
                break
            while True:
                sim.cancel_in = left.pop() if left else None
                try:
                    if action == "step":
                        y = sim.run(sim.session.step(sim.exchange, state, X[first], None))
                    else:
                        x = X[first : first + amount]
                        y = sim.run(sim.session.steps(sim.exchange, state, x, None))
                    break
                except Cancelled:
                    continue
            sim.cancel_in = None
            assert np.asarray(y).reshape(-1, 2).tolist() == Y[first : first + amount].tolist()
