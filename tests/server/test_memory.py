"""The memory budget: accounting and eviction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn import Engine
from streamrnn.errors import StartError
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, store_i64
from streamrnn.kernels.virtual_memory import HUGE_PAGE_BYTES
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.config import ServerConfig, format_bytes, parse_bytes
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.arena import PAGE_BYTES
from streamrnn_server.shard.memory.slab import header_of, model_of, row_of
from streamrnn_server.shard.setup import ShardMemory
from streamrnn_server.shard.streams.allocate import allocate_slot
from streamrnn_server.shard.streams.eviction import NUM_SAMPLED, SLOT_BYTES, allocate_ring
from streamrnn_server.shard.streams.slots import evict_stream
from streamrnn_server.shard.structs import shard_at
from streamrnn_server.testing import serving
from tests.server.budget import budget_of, fixed_bytes
from tests.support.models import random_model
from tests.support.peer import Peer, served, step_or_busy, until

NUM_INPUTS = 3

BUSY = ErrorCode.BUSY.wire

# ---------------------------------------------------------------------------------------------
# The option
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1000000", 10**6), ("2G", 2**31), ("512m", 2**29), ("1.5K", 1536), ("1T", 2**40)],
)
def test_bytes_have_suffixes(text, num_bytes):
    assert parse_bytes(text, "--memory-budget") == num_bytes


@pytest.mark.parametrize("text", ["", "0", "G", "2 G", "2GB", "-1", "1e9", "0.1", "much"])
def test_an_invalid_number_of_bytes_is_refused(text):
    with pytest.raises(StartError, match=r"--memory-budget .* like 2G"):
        parse_bytes(text, "--memory-budget")


def test_bytes_are_written_for_people():
    assert [format_bytes(n) for n in (12, 1536, 2**21, 2**31)] == [
        "12 bytes",
        "1.5 KiB",
        "2 MiB",
        "2 GiB",
    ]


def test_a_budget_too_small_to_start_is_refused_with_the_least_that_works():
    model = random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS, 2)
    with (
        pytest.raises(StartError, match=r"--memory-budget is 3 MiB.* need .*MiB before the first"),
        serving({"m": model}, memory_budget_bytes=3 * 2**20),
    ):
        pass


# ---------------------------------------------------------------------------------------------
# The rules, without a loop: what is taken, given back and kept
# ---------------------------------------------------------------------------------------------

ROW_BYTES = (320 * 1024, 96 * 1024)  # of two models; neither divides a unit of 2 MiB
Y_BYTES = 4096
WINDOW_LOG2 = 5
MAX_STREAMS = 60
CLEAN, AT_WORK = h.IS_OPEN, h.IS_OPEN | h.IS_READY


@jit
def begin(address, index, mark, used_s):
    shard = shard_at(address)
    slot = allocate_slot(shard, index, 0)
    if slot < 0:
        return -1
    header, model = header_of(shard, slot), model_of(shard, index)
    header.flags = h.IS_OPEN | h.IS_READY
    header.window_log2 = WINDOW_LOG2
    header.last_used_s = used_s
    row = row_of(model, slot)
    store_i64(row, mark)
    store_i64(row + model.row_bytes - 8, mark)
    return slot


@jit
def ring_of(address, slot):
    shard = shard_at(address)
    header = header_of(shard, slot)
    flags = header.flags
    header.flags = flags | h.IS_READY
    found = allocate_ring(shard, header, Y_BYTES)
    header.flags = flags
    return found


@jit
def set_flags(address, slot, flags):
    header_of(shard_at(address), slot).flags = flags


@jit
def flags_of(address, slot):
    return header_of(shard_at(address), slot).flags


@jit
def marks(address, index, slot):
    model = model_of(shard_at(address), index)
    row = row_of(model, slot)
    return load_i64(row), load_i64(row + model.row_bytes - 8)


@jit
def end(address, slot):
    shard = shard_at(address)
    evict_stream(shard, header_of(shard, slot))


class Shard:
    """A shard's memory without its loop, and a record of its streams."""

    def __init__(self, num_free_bytes, has_disk=True):
        programs: Any = {
            f"m{k}": SimpleNamespace(
                row_bytes=row_bytes,
                plan_address=0,
                initial_row=np.zeros(row_bytes // 4, np.float32),
                spec=SimpleNamespace(num_inputs=1, output_size=Y_BYTES // 4, is_token=False),
            )
            for k, row_bytes in enumerate(ROW_BYTES)
        }
        self.context = zmq.Context()
        sockets = [self.context.socket(zmq.PAIR) for _ in range(3)]
        disk = sockets[2] if has_disk else None

        def make(num_bytes):
            config = ServerConfig(
                max_streams=MAX_STREAMS, memory_budget_bytes=num_bytes, diagnostics_streams=0
            )
            return ShardMemory(config, 0, programs, sockets[0], sockets[1], disk, ["there"])

        probe = make(2**30)
        least = fixed_bytes(probe.struct)
        probe.close()
        self.memory = make(budget_of(least + num_free_bytes))
        self.has_disk = has_disk
        self.address = self.memory.address
        self.streams: dict[int, tuple[int, int]] = {}  # slot -> (model, what its row holds)
        self.at_work: set[int] = set()
        for socket in sockets:
            socket.close(0)

    def close(self):
        self.memory.close()
        self.context.term()

    def counter(self, name):
        return int(self.memory.struct["counters"][name])

    def num_spilled(self):
        return self.counter("num_spilled_for_memory") + self.counter("num_spilled_for_room")

    def check(self):
        budget = self.memory.struct["budget"]
        assert budget["used_bytes"] <= budget["max_bytes"]
        for slot, (index, mark) in self.streams.items():
            assert marks(self.address, index, slot) == (mark, mark)


@pytest.fixture
def shards():
    made: list[Shard] = []

    def make(*args):
        made.append(Shard(*args))
        return made[-1]

    yield make
    for shard in made:
        shard.close()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["begin 0", "begin 1", "begin 0", "begin 1", "ring", "rest", "work", "end"]
        ),
        st.integers(0, 10**6),
        st.integers(1, 12),
    ),
    max_size=60,
)


@settings(max_examples=100)
@given(actions=ACTIONS, num_free_mib=st.integers(0, 4), has_disk=st.booleans())
def test_after_any_actions_the_budget_holds_and_states_are_kept(actions, num_free_mib, has_disk):
    shard = Shard(num_free_mib * 2**20, has_disk)
    try:
        for number, (action, first, how_many) in enumerate(actions, 1):
            for k in range(how_many):
                act(shard, action, first + k, number)
                shard.check()
        if not has_disk:
            assert shard.counter("num_spilled_for_memory") == 0
        for slot in shard.streams:
            end(shard.address, slot)
        assert shard.memory.struct["arena"]["used_bytes"] == 0
    finally:
        shard.close()


def act(shard, action, choice, now_s):
    """Let one thing happen, and see who has made way for it."""
    slots = sorted(shard.streams)
    num_spilled = shard.num_spilled()
    if action.startswith("begin"):
        index = int(action[-1])
        # A search looks at so many slots; a request that comes again goes on with the rest.
        for _ in range(1 + MAX_STREAMS // NUM_SAMPLED):
            slot = begin(shard.address, index, len(shard.streams) + 1, now_s)
            if slot >= 0:
                break
        gone = {s for s in slots if flags_of(shard.address, s) == 0} | ({slot} & set(slots))
        assert len(gone) == shard.num_spilled() - num_spilled
        if slot < 0:
            own = {s for s in shard.streams if shard.streams[s][0] == index}
            assert own <= shard.at_work or not shard.has_disk
            assert shard.counter("num_refused_for_room") > 0
        assert not gone & shard.at_work
        mark = len(shard.streams) + 1
        for each in gone:
            del shard.streams[each]
        if slot >= 0:
            shard.streams[slot] = index, mark
            shard.at_work.add(slot)
        return
    if not slots:
        return
    slot = slots[choice % len(slots)]
    if action == "ring":
        ring_of(shard.address, slot)
        gone = {s for s in slots if flags_of(shard.address, s) == 0}
        assert len(gone) == shard.num_spilled() - num_spilled
        assert not gone & (shard.at_work | {slot})
        for each in gone:
            del shard.streams[each]
    elif action == "rest":
        set_flags(shard.address, slot, CLEAN)
        shard.at_work.discard(slot)
    elif action == "work":
        set_flags(shard.address, slot, AT_WORK)
        shard.at_work.add(slot)
    else:
        end(shard.address, slot)
        shard.at_work.discard(slot)
        del shard.streams[slot]


def test_a_search_reaches_every_slot_however_many_other_searches_come_between(shards):
    shard = shards(14 * 2**20)
    begin(shard.address, 1, 1, 1)
    slots = []
    while (slot := begin(shard.address, 0, 2, 1)) >= 0:
        slots.append(slot)
    assert len(slots) > NUM_SAMPLED
    num_attempts = 1 + len(slots) // NUM_SAMPLED
    for idle in slots:
        set_flags(shard.address, idle, CLEAN)
        found = [begin(shard.address, 0, 2, 1) for _ in range(num_attempts)]
        assert set(found) <= {idle, -1}
        assert idle in found


def test_a_row_counts_once_and_for_as_long_as_it_has_memory(shards):
    shard = shards(8 * 2**20)
    budget = shard.memory.struct["budget"]
    used = int(budget["used_bytes"])
    first = begin(shard.address, 0, 1, 1)
    assert budget["used_bytes"] == used + SLOT_BYTES  # its unit was there from the start
    end(shard.address, first)
    assert begin(shard.address, 0, 2, 1) == first
    assert shard.memory.struct["budget"]["used_bytes"] == used + SLOT_BYTES
    for k in range(6):
        begin(shard.address, 0, 3 + k, 1)
    assert shard.memory.struct["budget"]["used_bytes"] == used + 7 * SLOT_BYTES + HUGE_PAGE_BYTES


def test_a_model_without_memory_gets_that_of_streams_unused_for_longer(shards):
    shard = shards(6 * 2**20 + 2**14)
    slots = []
    while (slot := begin(shard.address, 0, 1, 10)) >= 0:
        slots.append(slot)
    assert len(slots) > 20
    others = []
    while (slot := begin(shard.address, 1, 2, 20)) >= 0:
        others.append(slot)  # as many as lie in the unit that each model has
    assert len(others) == HUGE_PAGE_BYTES // ROW_BYTES[1]
    for slot in slots:
        set_flags(shard.address, slot, CLEAN)
    assert begin(shard.address, 1, 3, 30) >= 0
    assert shard.counter("num_spilled_for_memory") > 1
    assert any(flags_of(shard.address, slot) == CLEAN for slot in slots)  # and no more than that


def test_closed_streams_of_another_model_leave_their_memory_to_others(shards):
    shard = shards(6 * 2**20 + 2**14, False)
    slots = []
    while (slot := begin(shard.address, 0, 1, 10)) >= 0:
        slots.append(slot)
    for slot in slots:
        end(shard.address, slot)
    num_others = 0
    while begin(shard.address, 1, 2, 20) >= 0:
        num_others += 1
    assert num_others > 2 * (HUGE_PAGE_BYTES // ROW_BYTES[1])
    assert shard.counter("num_spilled_for_memory") == 0


def test_a_ring_is_taken_from_the_least_recently_used_stream(shards):
    shard = shards(PAGE_BYTES + 2**14)
    slots: list[int] = []
    while True:
        slot = begin(shard.address, 1, 1, 100 - len(slots))
        assert slot >= 0
        if not ring_of(shard.address, slot):
            break
        slots.append(slot)
    assert len(slots) == 3 * 6  # three pages of 1 MiB, blocks of 160 KiB
    for slot in slots:
        set_flags(shard.address, slot, CLEAN)
    slot = begin(shard.address, 1, 1, 200)
    assert ring_of(shard.address, slot)
    assert [s for s in slots if flags_of(shard.address, s) == 0] == [slots[-1]]
    assert slot not in slots


# ---------------------------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(7)
    return {
        "m": random_model(rng, [("lstm", 24)], NUM_INPUTS, 2),
        "other": random_model(rng, [("gru", 40)], NUM_INPUTS, 2),
    }


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, NUM_INPUTS)).astype(np.float32)


def least_bytes(models, **options):
    with serving(models, **options) as server:
        return fixed_bytes(server.control.shards[0].struct)


def test_more_rings_than_memory_are_evicted_in_turn(models, tmp_path, x):
    options = {"max_streams": 8000, "checkpoint_interval_s": 0.01}
    models = {"m": models["m"]}
    disk = {"state_dir": tmp_path, "durability": "checkpoint"}
    budget = budget_of(least_bytes(models, **disk, **options) + 2**20)
    expected = Engine(models["m"]).steps("s", x)
    names = [f"s{k}" for k in range(1200)]  # each keeps 256 outputs: 4 KiB
    with served(models, tmp_path, memory_budget_bytes=budget, **options) as peer:
        for seq in (1, 2):
            for name in names:
                if seq == 1:
                    until(lambda name=name: peer.call("open", name, None, 256)[0] is None)
                until(lambda name=name, seq=seq: step_or_busy(peer, name, seq, x, expected))
        stats: dict[str, int] = {}
        until(lambda: stats.update(peer.call("stats")[1] or {}) or stats)
        assert stats["num_spilled_for_memory"] > 400
        assert stats["num_spilled_for_room"] == 0
        assert stats["memory_used_bytes"] <= stats["memory_budget_bytes"] == budget


def test_without_evictable_streams_open_is_busy(models, x):
    models = {"m": models["m"]}
    least = least_bytes(models, max_streams=40_000)
    budget = budget_of(least + 2**21 + 30_000 * SLOT_BYTES)
    with serving(models, max_streams=40_000, memory_budget_bytes=budget) as server:
        peer = Peer(server.endpoints[0])
        codes = []
        for first in range(0, 28_000, 4000):
            results = peer.ok("open", list(range(first, first + 4000)), None, 1)
            codes += [error and error[0] for error, _ in results]
        row_bytes = peer.ok("models")[0]["row_bytes"]
        # One unit was there from the start, one was the arena's.
        assert codes.count(None) == 3 * (2**21 // row_bytes)
        assert set(codes) == {None, BUSY}
        code, detail = peer.error("open", "one more", None, 1)
        assert (code, detail["retry_after_ms"] > 0) == (BUSY, True)
        stats = peer.ok("stats")
        assert stats["num_refused_for_room"] >= codes.count(BUSY)
        assert peer.ok("close", 0) is True
        assert peer.ok("open", "one more", None, 1) == [0, 0, 1]
        peer.socket.close()
