"""What a crash has left of a server of the release before: this one goes on with it, to the bit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.kernels.cpu.program import Program
from streamrnn.state.journal import JOURNAL_DIRECTORY, read_journal, segment_paths
from streamrnn.state.record import decode_record
from streamrnn.state.store import STREAMS as RECORDS
from streamrnn.state.store import StateStore
from streamrnn_client import Client
from streamrnn_client.errors import Conflict, Mismatch
from streamrnn_server.testing import serving
from tests.server.storage.make_release_2 import (
    DIRECTORY,
    INPUTS,
    MODELS,
    NUM_RECORDED,
    NUM_STEPS,
    STREAMS,
)


def arithmetics():
    found = {name: Program(model).arithmetic for name, model in MODELS.items()}
    heads = {segment.head.arithmetic for segment in read_journal(DIRECTORY / JOURNAL_DIRECTORY)}
    return set(found.values()), heads


@pytest.fixture(scope="module", autouse=True)
def same_arithmetic():
    here, there = arithmetics()
    if here != there:
        pytest.skip(f"the files are of another arithmetic: {there}, not {here}")


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(DIRECTORY, tmp_path / "state")


@pytest.fixture(scope="module")
def expected():
    return {name: Engine(model).steps("s", INPUTS) for name, model in MODELS.items()}


def test_its_records_lack_what_is_in_its_journal(directory):
    store = StateStore(directory, read_only=True)
    records = {key: decode_record(data) for key, data in store.items(RECORDS)}
    store.close()
    assert {key: each.last_seq for key, each in records.items()} == {
        b"swide": NUM_RECORDED,
        b"snarrow": NUM_STEPS,  # another one of its shard was closed
        b"u" + (7).to_bytes(8, "big"): NUM_RECORDED,
        b"sunnumbered": 0,
    }
    assert len(segment_paths(directory / JOURNAL_DIRECTORY)) >= 2


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_its_streams_go_on_to_the_bit(directory, expected, durability, num_shards):
    options = {"state_dir": directory, "durability": durability, "num_shards": num_shards}
    with serving(MODELS, **options) as server, Client(server.endpoints[0]) as client:
        for name, (model, window) in STREAMS.items():
            stream, wanted = client.stream(name, model), expected[model]
            assert (stream.last_seq, stream.window) == (NUM_STEPS, window)
            again = stream.step(INPUTS[NUM_STEPS - 1], seq=NUM_STEPS)
            np.testing.assert_array_equal(again, wanted[NUM_STEPS - 1])
            with pytest.raises(Conflict):
                stream.step(INPUTS[0], seq=NUM_STEPS)
            y = stream.steps(INPUTS[NUM_STEPS : 2 * NUM_STEPS])
            np.testing.assert_array_equal(y, wanted[NUM_STEPS : 2 * NUM_STEPS])
        late = client.stream("late", "gru")
        assert late.last_seq == NUM_STEPS
        np.testing.assert_array_equal(late.steps(INPUTS[NUM_STEPS:]), expected["gru"][NUM_STEPS:])
        unnumbered = client.stream("unnumbered", "lstm", numbered=False)
        y = unnumbered.steps(INPUTS[NUM_STEPS:])
        np.testing.assert_array_equal(y, expected["lstm"][NUM_STEPS:])
        assert client.stream("closed", "lstm").last_seq == 0
        wide = client.stream("wide", "lstm")
        wide.rollback("here")
        np.testing.assert_array_equal(
            wide.step(INPUTS[NUM_RECORDED]), expected["lstm"][NUM_RECORDED]
        )


def test_another_arithmetic_is_told_and_nothing_of_its_streams_is_lost(directory, expected):
    """As after an upgrade that has changed the bits: here the weights are stored otherwise."""
    options = {"state_dir": directory, "durability": "checkpoint"}
    with (
        serving(MODELS, **options, precision="bfloat16") as server,
        Client(server.endpoints[0]) as client,
    ):
        for name, (model, _) in STREAMS.items():
            with pytest.raises(Mismatch) as told:
                client.stream(name, model)
            detail = told.value.detail
            assert detail["stored_arithmetic"] != detail["arithmetic"]
            assert "bfloat16" in detail["arithmetic"]
        client.stream("new", "lstm").step(INPUTS[0])
    with serving(MODELS, **options) as server, Client(server.endpoints[0]) as client:
        for name, (model, _) in STREAMS.items():
            stream = client.stream(name, model)
            assert stream.last_seq == NUM_STEPS
            y = stream.step(INPUTS[NUM_STEPS])
            np.testing.assert_array_equal(y, expected[model][NUM_STEPS])
