"""Attacks on a live server, short ones; ``make fuzz`` sends ten million messages."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.campaign import SCENARIOS, attack
from tests.fuzz.messages import Messages, mutate_record

NUM_MESSAGES, LIMIT_S = 8_000, 10.0
NUM_IN_SOAK, SOAK_LIMIT_S = 10_000_000, 120.0 / len(SCENARIOS)
SEED = 20_261_127


@pytest.mark.slow
def test_a_server_under_attack_serves_its_victim_to_the_bit(tmp_path):
    (scenario,) = (each for each in SCENARIOS if each.name == "state")
    found = attack(scenario, tmp_path, NUM_MESSAGES, SEED, LIMIT_S)
    assert found.faults == []
    assert found.num_messages > 0
    assert found.victim["outputs"] > 0


@pytest.mark.soak
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_two_minutes_of_attacks(scenario, tmp_path, capsys):
    found = attack(scenario, tmp_path, NUM_IN_SOAK, SEED, SOAK_LIMIT_S)
    with capsys.disabled():
        print("\n" + found.line)
    assert found.faults == []


def test_equal_seeds_give_equal_messages():
    one, two, other = Messages(1), Messages(1), Messages(2)
    sent = [one.next() for _ in range(2_000)]
    assert sent == [two.next() for _ in range(2_000)]
    assert sent != [other.next() for _ in range(2_000)]


def test_no_message_names_a_stream_of_the_victim():
    messages = Messages(3)
    assert not any(b"victim" in messages.next() for _ in range(50_000))


def test_mutated_records_differ_and_fit_their_checksums():
    rng = random.Random(4)
    record = bytes(200) + b"\0\0\0\0"
    assert len({mutate_record(rng, record) for _ in range(200)}) > 100
