"""Accounts of what waits for each client, and how many values a message announces."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.virtual_memory import address_of, struct_address
from streamrnn_server.shard.memory.clients import (
    Clients,
    ClientsStruct,
    charge_ask,
    find_client,
    forget_marker,
    make_marker,
    may_ask,
    may_reply,
)
from streamrnn_server.shard.wire.values import has_few_values, read_numbers, skip_numbers

MAX_UNREAD, MAX_ASKED = 2**20, 2**16
clients_at = pointer_to(ClientsStruct)


@jit
def find(address, identity, num_bytes):
    return find_client(clients_at(address), identity, num_bytes)


@jit
def ask(address, client, num_bytes):
    clients = clients_at(address)
    return charge_ask(clients, client, num_bytes) if may_ask(clients, client, num_bytes) else 0


@jit
def reply(address, client, data, num_bytes):
    clients = clients_at(address)
    if not may_reply(clients, client, num_bytes):
        return 0
    return make_marker(clients, client, data, num_bytes)


@jit
def forget(block):
    forget_marker(block)


class Accounts:
    """The accounts, called by routing id."""

    def __init__(self):
        self.struct = ClientsStruct.one()
        self.clients = Clients(MAX_UNREAD, MAX_ASKED, self.struct)
        self.address = struct_address(self.struct)

    def number(self, identity):
        data = np.frombuffer(identity + bytes(8), np.uint8)
        return find(self.address, address_of(data), len(identity))


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=2, max_size=40, unique=True))
def test_each_routing_id_has_an_account_of_its_own_while_something_waits_for_it(identities):
    accounts = Accounts()
    numbers = {}
    for identity in identities:
        numbers[identity] = accounts.number(identity)
        assert ask(accounts.address, numbers[identity], 1) > 0
    assert {each: accounts.number(each) for each in identities} == numbers
    # Ids share one only where eight have the same place.
    assert len(set(numbers.values())) >= len(identities) - 1


def test_an_account_for_which_nothing_waits_goes_to_the_next():
    accounts = Accounts()
    for k in range(100_000):
        number = accounts.number(k.to_bytes(16, "little"))
        charge = ask(accounts.address, number, 10)
        accounts.clients.note_answered(number, charge)
    assert accounts.struct["asked_bytes"] == accounts.struct["answered_bytes"] > 100_000


def test_no_client_may_have_more_waiting_than_is_free_for_all():
    accounts = Accounts()
    data = np.zeros(2**16, np.uint8)
    blocks: dict[int, list[int]] = {}
    for client in (0, 8, 16):
        blocks[client] = []
        while block := reply(accounts.address, client, address_of(data), len(data)):
            blocks[client].append(block)
    # Half of it, half of the rest, and so on; the first reply of each in any case.
    counts = [len(each) for each in blocks.values()]
    assert counts == [7, 4, 2]
    for each in blocks.values():
        for block in each:
            forget(block)
    assert accounts.struct["sent_bytes"] == accounts.struct["left_bytes"]
    assert reply(accounts.address, 24, address_of(data), len(data))


def test_what_is_larger_than_the_share_has_its_turn_when_little_else_waits():
    accounts = Accounts()
    charge = ask(accounts.address, 0, 2 * MAX_ASKED)
    assert charge > 2 * MAX_ASKED
    assert ask(accounts.address, 8, 1) == 0
    accounts.clients.note_answered(0, charge)
    assert ask(accounts.address, 8, 1) > 0


OBJECTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary()
    | st.text()
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers(0, 99), inner),
    max_leaves=60,
)


def count(value):
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + sum(1 + count(each) for each in value.values())
    return 1


def has_few(data, max_values):
    memory = np.frombuffer(data, np.uint8)
    return has_few_values(address_of(memory), address_of(memory) + len(data), max_values)


@given(OBJECTS)
def test_the_values_of_a_message_are_counted_as_a_decoder_makes_them(value):
    data, number = msgpack.packb(value), count(value)
    assert has_few(data, number)
    assert not has_few(data, number - 1)


@pytest.mark.parametrize(
    "data",
    [b"\xdd\xff\xff\xff\xff", b"\x91\xdf\x7f\xff\xff\xff\x01", 300 * b"\xdc\x00\xff", 9 * b"\x9f"],
)
def test_values_that_are_only_announced_count(data):
    assert not has_few(data, 100)


@given(
    st.lists(st.integers(-(2**63), 2**64 - 1) | st.floats(width=32) | st.none(), max_size=20),
    st.integers(0, 9),
    st.booleans(),
)
def test_numbers_are_skipped_as_they_are_read(values, cut, single):
    body = msgpack.Packer(use_single_float=single)
    data = b"".join(body.pack(value) for value in values)
    data = data[: max(len(data) - cut, 0)] + b"\xc1"  # never empty; the end stands before it
    memory, target = np.frombuffer(data, np.uint8), np.zeros(20)
    at, end = address_of(memory), address_of(memory) + len(data) - 1
    read = read_numbers(at, end, len(values), address_of(target))
    assert skip_numbers(at, end, len(values)) == read
