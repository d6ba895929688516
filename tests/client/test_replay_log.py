"""The log of steps kept for a replay: single streams and batches."""

import gc

import numpy as np
import pytest

from streamrnn_client import errors, protocol
from streamrnn_client._session import batch as batching
from streamrnn_client._session import transfer as moving
from streamrnn_client._session.batch_log import BatchLog
from streamrnn_client._session.replay_log import LogEntry, ReplayLog
from streamrnn_client.protocol import ErrorCode
from tests.simulation.client import Simulation

IDS = [f"s{k}" for k in range(12)]


def simulate(**options):
    return Simulation(1, durability=options.pop("durability", "checkpoint"), **options)


def rows_of(sim, ids=IDS, window=None):
    return sim.run(batching.open_rows(sim.session, sim.exchange, ids, "sum", window, True))


def batch(sim, rows, x):
    return sim.run(batching.step_rows(sim.session, sim.exchange, rows, np.asarray(x))).tolist()


def step(sim, state, x):
    return sim.run(sim.session.step(sim.exchange, state, x, None)).tolist()


def checkpoint(sim):
    sim.server.end_checkpoint(sim.server.begin_checkpoint())


def draw(*shape):
    return np.random.default_rng(3).integers(0, 100, (*shape, 2)).astype(np.float32)


def test_the_log_keeps_pieces_of_a_batch():
    kept = ReplayLog(8, 100, 1 << 20)
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    kept.append(1, 4, x[:4], 0)
    kept.append(3, 4, x[2:6], 4)  # the first two once more
    kept.append(7, 1, None, 6)
    kept.append(8, 1, x[6], 7)
    assert kept.num_steps == 8
    assert kept.chunk(2, 3) == LogEntry(2, 4, x[1:4].tobytes())
    assert kept.chunk(2, 99) == LogEntry(2, 6, x[1:6].tobytes())
    assert kept.chunk(7, 99) == LogEntry(7, 7, None)
    assert kept.chunk(8, 99) == LogEntry(8, 8, x[6].tobytes())
    assert kept.missing(1, 8) is None
    assert kept.missing(3, 9) == (9, 9)
    kept.drop_durable(5)
    assert kept.num_steps == 4  # the piece that is on disk in part stays whole
    assert kept.missing(1, 8) == (1, 4)
    kept.append(12, 1, x[7], 11)
    assert kept.missing(5, 12) == (9, 11)


def kept_in(shared, num_streams, row_bytes=8, max_steps=100):
    kept = [ReplayLog(row_bytes, max_steps, 1 << 20) for _ in range(num_streams)]
    for k, each in enumerate(kept):
        each.join(shared, k, 10 * k + 1)
    shared.begin([10 * k + 1 for k in range(num_streams)], 0)
    return kept


def test_batches_are_pieces_of_every_stream():
    x = draw(5, 3)
    shared = BatchLog(3)
    kept = kept_in(shared, 3)
    for k in range(4):
        shared.append(x[k], [10 * i + k + 1 for i in range(3)])
    assert [each.num_steps for each in kept] == [4, 4, 4]
    assert kept[2].chunk(22, 2) == LogEntry(22, 23, x[1:3, 2].tobytes())
    assert kept[1].missing(11, 14) is None
    assert kept[1].missing(11, 15) == (15, 15)
    # A step by itself ends the column, the next batch begins another one.
    kept[1].append(15, 1, x[4, 1], 14)
    assert not shared.is_whole
    for k, each in enumerate(kept):
        each.join(shared, k, [5, 16, 25][k])
    shared.begin([5, 16, 25], max(each.num_older for each in kept))
    shared.append(x[4], [5, 16, 25])
    assert [each.num_steps for each in kept] == [5, 6, 5]
    assert kept[1].chunk(11, 99) == LogEntry(11, 16, x[[0, 1, 2, 3, 4, 4], 1].tobytes())
    # What one stream has not on disk is kept of all.
    shared.drop_durable([5, 11, 25], 5)
    assert shared.first == 0
    kept[1].drop_durable(16)
    shared.drop_durable([3, 16, 25], 0)
    assert [each.num_steps for each in kept] == [2, 0, 2]
    assert kept[0].first_seq(99) == 4
    assert kept[1].first_seq(99) == 99
    assert kept[0].chunk(4, 9) == LogEntry(4, 5, x[3:5, 0].tobytes())


def test_an_old_column_is_counted_as_often_as_it_was_added():
    x = draw(4, 2)
    shared = BatchLog(2)
    kept = kept_in(shared, 2)
    for k in range(3):
        shared.append(x[k], [k + 1, 10 + k + 1])
    shared.drop_durable([1, 12], 0)
    kept[0].append(4, 1, x[3, 0], 3)
    assert kept[0].num_steps == kept[0].num_older == 3
    kept[0].drop_durable(3)
    assert kept[0].num_steps == 1
    kept[0].drop_durable(4)
    assert kept[0].num_steps == 0


def test_an_idle_stream_does_not_keep_inputs_that_others_have_released():
    x = draw(3, 8)
    shared = BatchLog(8)
    kept = kept_in(shared, 8)
    for k in range(3):
        shared.append(x[k].copy(), [10 * i + k + 1 for i in range(8)])
    for i, each in enumerate(kept[:7]):
        each.append(10 * i + 4, 1, x[0, 0], 10 * i + 3)
        each.drop_durable(10 * i + 3)
    assert shared.is_compacted
    assert kept[7].chunk(71, 99) == LogEntry(71, 73, x[:, 7].tobytes())
    places, arrays = shared._part
    assert list(places) == [7] or len(places) < 4
    assert sum(array.nbytes for array in arrays) <= 3 * 3 * 8


@pytest.mark.parametrize("num_shards", [1, 3])
def test_batches_single_steps_and_crashes_in_any_order(num_shards):
    rng = np.random.default_rng(5)
    sim = simulate(num_shards=num_shards)
    rows, others = rows_of(sim), rows_of(sim, IDS[3:9])
    total = {name: np.zeros(2, np.float32) for name in IDS}
    num_shared = 0
    for k in range(400):
        kind = rng.choice(["rows", "rows", "rows", "others", "many", "one", "reset", "disk", "off"])
        x = draw(k + 1, len(IDS))[k]
        if kind in ("rows", "others"):
            these = rows if kind == "rows" else others
            for name, row in zip(these.ids, x, strict=False):
                total[name] = total[name] + row
            y = batch(sim, these, x[: len(these)])
            assert y == [total[name].tolist() for name in these.ids]
            num_shared += all(shared.is_whole for shared in these._logs.values())
        elif kind == "many":
            inputs = dict(zip(rng.permutation(IDS)[:5].tolist(), x, strict=False))
            y = sim.run(batching.step_many(sim.session, sim.exchange, inputs, "sum"))
            for name, row in inputs.items():
                total[name] = total[name] + row
                assert y[name].tolist() == total[name].tolist()
        elif kind == "one":
            name = str(rng.choice(IDS))
            total[name] = total[name] + x[0]
            assert step(sim, sim.session.streams[name], x[0]) == total[name].tolist()
        elif kind == "reset":
            name = str(rng.choice(IDS))
            sim.run(sim.session.reset(sim.exchange, sim.session.streams[name]))
            total[name][:] = 0
        elif kind == "disk":
            checkpoint(sim)
        else:
            sim.server.crash(f"instance {k}")
    assert num_shared > 50


def test_step_many_of_the_same_streams_shares_too():
    sim = simulate()
    inputs = dict(zip(IDS, draw(len(IDS)), strict=True))
    for _ in range(3):
        sim.run(batching.step_many(sim.session, sim.exchange, inputs, "sum"))
    (shared,) = sim.session.last_rows._logs.values()
    assert shared.end == 3
    del inputs["s0"]
    sim.run(batching.step_many(sim.session, sim.exchange, inputs, "sum"))
    assert "s0" not in sim.session.last_rows.ids


def test_the_bound_holds_for_each_stream_of_a_batch():
    sim = simulate()
    sim.session.max_kept_steps = 5
    rows = rows_of(sim)
    state = sim.session.streams["s1"]
    for k in range(30):
        batch(sim, rows, draw(len(IDS)))
        if k % 7 == 0:
            step(sim, state, [1, 1])
        assert all(state.replay_log.num_steps <= 5 for state in rows._states)


def test_what_is_kept_goes_with_the_streams():
    sim = simulate()
    rows = rows_of(sim)
    for _ in range(3):
        batch(sim, rows, draw(len(IDS)))
    checkpoint(sim)
    batch(sim, rows, draw(len(IDS)))
    (shared,) = rows._logs.values()
    assert len(shared._part[1]) == 1
    del rows
    for name in IDS:
        sim.run(sim.session.close(sim.exchange, sim.session.streams[name]))
    gc.collect()
    assert not any(shared._num_columns)


def test_inputs_of_a_batch_are_kept_as_they_were_when_they_were_applied():
    sim = simulate()
    rows, x = rows_of(sim), draw(len(IDS))
    for _ in range(2):
        batch(sim, rows, x)
    expected = 2 * x
    x[:] = 0
    sim.server.crash("second")
    assert batch(sim, rows, x) == expected.tolist()


def test_a_number_that_was_taken_by_no_step_ends_a_column():
    sim = simulate()
    rows, x = rows_of(sim), draw(5, len(IDS))
    state = sim.session.streams["s1"]
    batch(sim, rows, x[0])
    checkpoint(sim)
    batch(sim, rows, x[1])
    assert sim.run(moving.rollback(sim.session, sim.exchange, state, None)) == 3
    batch(sim, rows, x[2])
    assert batch(sim, rows, x[3])[1] == (x[0] + x[2] + x[3])[1].tolist()
    sim.server.crash("second")
    y = batch(sim, rows, x[4])
    assert y[1] == (x[0] + x[2] + x[3] + x[4])[1].tolist()
    assert y[0] == x.sum(axis=0)[0].tolist()


# ---- what answers by items, and what in columns ------------------------------------------------


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_server_that_knows_no_columns_answers_by_items(num_shards):
    sim = simulate(num_shards=num_shards)
    sim.server.is_old = True
    rows, x = rows_of(sim), draw(3, len(IDS))
    for k in range(3):
        assert batch(sim, rows, x[k]) == x[: k + 1].sum(axis=0).tolist()
    assert not sim.session.has_columns
    x[0, 4, 1] = np.inf
    with pytest.raises(errors.PartialFailure) as caught:
        batch(sim, rows, x[0])
    assert set(caught.value.errors) == {"s4"}
    assert rows.last_seqs == (4, 4, 4, 4, 3, 4, 4, 4, 4, 4, 4, 4)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_server_that_is_replaced_by_an_older_one_is_asked_by_items(num_shards):
    sim = simulate(num_shards=num_shards)
    rows, x = rows_of(sim), draw(5, len(IDS))
    batch(sim, rows, x[0])
    assert sim.session.has_columns
    checkpoint(sim)
    batch(sim, rows, x[1])
    sim.server.crash("older")
    sim.server.is_old = True
    assert batch(sim, rows, x[2]) == x[:3].sum(axis=0).tolist()
    before = sim.server.num_refused
    assert before == num_shards
    assert batch(sim, rows, x[3]) == x[:4].sum(axis=0).tolist()
    assert sim.server.num_refused == before  # which is remembered
    sim.server.crash("newer")
    sim.server.is_old = False
    assert batch(sim, rows, x[4]) == x.sum(axis=0).tolist()
    assert sim.session.has_columns


def test_bad_params_of_a_server_that_knows_columns_are_the_callers():
    sim = simulate()
    rows = rows_of(sim)
    handle = sim.server.handle
    sim.server.handle = lambda payload, shard: (
        protocol.encode_error(
            protocol.decode_request(payload).msgid, protocol.error_reply(ErrorCode.BAD_PARAMS)
        )
        if b"batch" in payload
        else handle(payload, shard)
    )
    with pytest.raises(errors.BadParams):
        batch(sim, rows, draw(len(IDS)))


@pytest.mark.parametrize(
    "columns",
    [
        [{}, bytes(96), bytes(96), bytes(95)],
        [{}, bytes(95), bytes(96), bytes(96)],
        [{}, bytes(96), bytes(96), bytes(96)],  # other numbers than those of the steps
        [{12: ["gap", "", None]}, bytes(96), bytes(96), bytes(96)],
        [{0: "gap"}, bytes(96), bytes(96), bytes(96)],
        [[], bytes(96), bytes(96), bytes(96)],
        [],
        None,
    ],
)
def test_columns_that_do_not_fit_the_batch_are_refused_and_change_nothing(columns):
    sim = simulate()
    rows = rows_of(sim)
    handle = sim.server.handle
    sim.server.handle = lambda payload, shard: protocol.encode_response(
        protocol.decode_request(payload).msgid, columns
    )
    with pytest.raises(errors.NotSupported):
        batch(sim, rows, draw(len(IDS)))
    assert set(rows.last_seqs) == {0}
    sim.server.handle = handle
    assert batch(sim, rows, draw(len(IDS))) == draw(len(IDS)).tolist()


@pytest.mark.parametrize("durability", ["none", "checkpoint"])
def test_a_batch_allocates_no_container_a_stream(durability):
    """The collector looks at all that PyTorch has loaded, if a batch makes it run."""
    ids, num_batches = [f"s{k}" for k in range(1000)], 8
    x = draw(num_batches, len(ids))
    replies: list[bytes | None] = []

    def collections_of(handle):
        sim = simulate(durability=durability)
        sim.server.handle = handle(sim.server.handle)
        rows = rows_of(sim, ids)
        batch(sim, rows, x[0])
        gc.collect()
        began = [each["collections"] for each in gc.get_stats()]
        for each in x[1:]:
            sim.run(batching.step_rows(sim.session, sim.exchange, rows, each))
        return [
            each["collections"] - first for each, first in zip(gc.get_stats(), began, strict=True)
        ]

    def recording(handle):
        def answer(payload, shard):
            replies.append(handle(payload, shard))
            return replies[-1]

        return answer

    collections_of(recording)
    again = iter(replies)
    assert collections_of(lambda _: lambda payload, shard: next(again)) == [0, 0, 0]
