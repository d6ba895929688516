"""Who is cut when more memory is held than is accounted for."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from streamrnn_server.connections.memory_watch import AnonymousMemory, MemoryWatch, received_bytes

MAX_EXCESS = 1000


class Held(AnonymousMemory):
    """The process's memory, as a test wants it."""

    def __init__(self, amount):
        self.amount = amount

    def num_bytes(self):
        return self.amount

    def close(self):
        pass


class Case:
    """A watch over memory, a budget and connections that a test sets."""

    def __init__(self):
        self.held, self.accounted, self.now_s = Held(500), 0, 0.0
        self.counts: dict[int, int] = {}
        self.watch = MemoryWatch(MAX_EXCESS, lambda: self.accounted, self.held)

    def look(self, pass_s=0.1):
        self.now_s += pass_s
        return self.watch.look(self.now_s, lambda: self.counts)


def test_what_is_accounted_for_or_was_there_at_first_is_no_excess():
    case = Case()
    case.counts = {7: 10**9}
    case.held.amount, case.accounted = 500 + 10_000 + MAX_EXCESS, 10_000
    assert case.look() == []
    case.held.amount += 1
    case.counts = {7: 10**9 + 1}
    assert case.look() == [7]


def test_who_brought_most_since_all_was_well_is_cut():
    case = Case()
    case.counts = {3: 10**9, 4: 50, 5: 0}
    assert case.look() == []
    case.held.amount += 2 * MAX_EXCESS
    case.counts = {3: 10**9 + 10, 4: 2000, 5: 0, 6: 3000}
    assert case.look() == [4, 6]


def test_a_number_that_another_connection_has_now_counts_from_its_begin():
    case = Case()
    case.counts = {3: 10**9, 4: 0}
    case.look()
    case.held.amount += 2 * MAX_EXCESS
    case.counts = {3: 900, 4: 10}
    assert case.look() == [3]


def test_after_a_cut_memory_has_time_to_come_back_and_what_stays_is_not_held_against_others():
    case = Case()
    case.held.amount += 3 * MAX_EXCESS
    case.counts = {3: 900}
    assert case.look() == [3]
    case.counts = {4: 10}
    assert case.look() == []
    case.held.amount += MAX_EXCESS // 4  # meanwhile it is looked at more closely
    assert case.look() == []
    case.held.amount += 1
    assert case.look() == [4]
    case.held.amount -= MAX_EXCESS
    assert case.look(pass_s=2) == []  # fragments: no cut gives them back
    case.held.amount += MAX_EXCESS
    assert case.look() == []
    case.held.amount += 1
    case.counts = {5: 20}
    assert case.look() == [5]


@given(st.dictionaries(st.integers(3, 99), st.integers(0, 2**50)))
def test_somebody_is_cut_if_anybody_has_brought_anything(counts):
    case = Case()
    case.held.amount += 2 * MAX_EXCESS
    case.counts = counts
    cut = case.look()
    assert bool(cut) == any(counts.values())
    if cut:
        assert max(counts.values()) in {counts[each] for each in cut}


def test_the_memory_of_this_process_grows_with_what_it_takes():
    memory = AnonymousMemory()
    before = memory.num_bytes()
    block = bytearray(b"\1") * 2**26  # more than malloc keeps
    assert 2**25 < memory.num_bytes() - before < 2**27
    del block
    memory.close()


def test_what_a_connection_has_brought_is_counted():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        one.sendall(bytes(10_000))
        received = b""
        while len(received) < 10_000:
            received += other.recv(10_000)
        assert received_bytes(other) == 10_000
        assert received_bytes(one) == 0
