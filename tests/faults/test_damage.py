"""Flipped bits and truncation in a state directory's file."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from streamrnn_client.protocol import encode_request
from streamrnn_server.cli import main
from tests.faults.read_damaged_state import KEYS, NUM_CASES
from tests.support.models import random_model
from tests.support.peer import Peer
from tests.support.program import TIMEOUT_S, DurableProgram

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    directory = tmp_path_factory.mktemp("damaged")
    command = [sys.executable, "-m", "tests.faults.read_damaged_state", str(directory)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return directory, json.loads(run.stdout)


def test_damage_is_refused_or_told_and_nothing_is_half_used(damaged):
    outcomes = damaged[1]
    assert sum(outcomes.values()) == NUM_CASES
    assert not [words for words in outcomes if words.startswith("WRONG")], outcomes
    assert "ended by SIGALRM" not in outcomes  # it would have read without an end
    # It is a test only if all of it happens.
    for words in ("refused at the start", "as it was", "records refused", "streams missing, told"):
        assert outcomes[words] > 10


def test_verify_survives_files_that_crash_the_reader(damaged, capsys):
    directory, outcomes = damaged
    assert sum(number for words, number in outcomes.items() if words.startswith("ended")) > 0
    assert main(["state", "verify", str(directory / "fatal")]) == 1
    assert "data.mdb is damaged: who read it was ended by SIG" in capsys.readouterr().out


def test_a_server_that_is_ended_by_damage_says_where(damaged, tmp_path):
    path, log = tmp_path / "m.safetensors", tmp_path / "log"
    random_model(np.random.default_rng(3)).save(path)
    state = damaged[0] / "fatal"
    before = (state / "data.mdb").read_bytes()
    with log.open("wb") as errors, DurableProgram(path, state, stderr=errors) as program:
        program.start()
        peer = Peer(program.endpoint)
        for number, key in enumerate(KEYS):
            peer.socket.send(encode_request(number, "sync", [key[1:].decode()]))
        assert program.process is not None
        assert program.process.wait(TIMEOUT_S) < 0
        peer.socket.close()
    assert "store.py" in log.read_text()
    assert (state / "data.mdb").read_bytes() == before  # nothing was made worse
