"""``streamrnn status``: what it says of the disk, and its exit code for health checks."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from typing import Any

import numpy as np
import pytest

from streamrnn_client import Client
from streamrnn_server.commands import status
from streamrnn_server.monitor.health import trouble
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.program import TIMEOUT_S, DurableProgram, streamrnn

ROWS = np.ones((2000, 3), np.float32)


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(3), [("gru", 12)])


def ask(address, *options, **environment):
    command = streamrnn("status", address, *options)
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, env=env)


def test_a_disk_that_cannot_be_written_is_named_and_is_exit_code_1(model, tmp_path):
    path = tmp_path / "small.safetensors"
    model.save(path)
    with DurableProgram(path, tmp_path / "state") as program:
        program.start()
        assert program.process is not None
        with Client(program.endpoint) as client:
            batch = client.rows(range(2000))
            well = ask(program.endpoint)
            assert well.returncode == 0
            assert b"\ndisk        can be written, " in well.stdout
            limit = (4096, resource.RLIM_INFINITY)
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, limit)
            client.batch(batch, ROWS)
            for _ in range(100_000):
                if client.stats()["read_only"]:
                    break
            ill = ask(program.endpoint)
            assert ill.returncode == 1
            assert b"\ndisk        CANNOT BE WRITTEN (File too large), " in ill.stdout
            assert b"the disk cannot be written: File too large" in ill.stdout.splitlines()[-1]
            assert b"last commit in " in ill.stdout
            told = ask(program.endpoint, "--json")
            assert told.returncode == 1
            assert json.loads(told.stdout)["num_not_on_disk"] > 0
            resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
            for _ in range(100_000):
                if not client.stats()["read_only"]:
                    break
            assert ask(program.endpoint).returncode == 0


def test_a_server_without_a_disk_has_no_line_of_it(model):
    with serving({"m": model}) as server:
        told = ask(server.endpoints[0])
        assert told.returncode == 0
        assert b"\ndisk" not in told.stdout


def test_a_server_that_does_not_answer_is_exit_code_1():
    assert ask("tcp://127.0.0.1:1").returncode == 1


def test_an_ascii_terminal_and_a_name_that_moves_the_cursor_are_no_trouble(model):
    with serving({"é\x1b[2J": model}) as server:
        with Client(server.endpoints[0]) as client:
            client.stream("a").step(ROWS[0])  # so that there are latencies
        told = ask(server.endpoints[0], PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert (told.returncode, told.stderr) == (0, b"")
        assert b"\nmodels      \\xe9\\x1b[2J (1 open)" in told.stdout
        assert b"\nlatency \\xb5s  " in told.stdout


@pytest.mark.parametrize(
    ("stats", "wrong"),
    [
        ({}, []),
        ({"read_only": None, "commit_under_way_s": None}, []),
        ({"read_only": None, "commit_under_way_s": 9.0}, []),
        ({"read_only": None, "commit_under_way_s": 31.4}, ["the disk has not answered for 31 s"]),
        ({"read_only": "full"}, ["the disk cannot be written: full"]),
    ],
)
def test_what_counts_as_wrong(stats, wrong):
    assert trouble(stats) == wrong


def test_the_line_of_the_disk_tells_the_last_commit_and_what_is_not_on_it():
    stats: dict[str, Any] = {"read_only": None, "num_streams_on_disk": 1200, "num_commits": 3}
    stats |= {"last_commit_us": 2500, "since_last_commit_s": 7.25, "num_not_on_disk": 4000}
    line = (
        "can be written, 1,200 streams on it; last commit in 2.5 ms, 7.2 s ago; changes that are "
    )
    assert status._disk(stats) == line + "not on it: 4,000"
