"""The serving process and its surroundings: files it was started with, signals, its cache."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess

import numpy as np
import pytest

from streamrnn_bench.child_process import start_child
from streamrnn_client import Client
from tests.support.models import random_model
from tests.support.peer import Peer
from tests.support.program import TIMEOUT_S, streamrnn, until

NUM_STEPS = 20
ROW = np.ones(3, np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    random_model(np.random.default_rng(3), [("gru", 12)]).save(path)
    return path


class Serving:
    """``streamrnn serve`` with a state directory and rare checkpoints, as a child with options."""

    def __init__(self, path, state, *arguments, **options):
        ready = f"{state}-ready"
        command = streamrnn(
            *("serve", path, "--bind", "tcp://127.0.0.1:0", "--ready-file", ready),
            *("--state-dir", state, "--checkpoint-interval", 3600, *arguments),
        )
        self.process = start_child(command, **{"stdout": subprocess.DEVNULL, **options})
        until(lambda: os.path.exists(ready) or self.process.poll() is not None)
        assert self.process.poll() is None, "the server has not started"
        with open(ready) as file:
            self.told = json.load(file)
        os.unlink(ready)
        self.endpoint = self.told["endpoints"][0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


def make_steps(endpoint):
    with Client(endpoint) as client:
        stream = client.stream("a")
        for _ in range(NUM_STEPS):
            stream.step(ROW)


def num_steps_on_disk(path, state):
    with Serving(path, state) as server, Client(server.endpoint) as client:
        return client.stream("a").last_seq


def gone_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def lazy_reader():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"-" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    return writer, reader


@pytest.mark.parametrize("what", ["a full disk", "a reader that has gone", "a full pipe"])
def test_a_log_that_cannot_be_written_neither_stops_the_server_nor_its_checkpoint(
    path, tmp_path, what
):
    kept = []
    if what == "a full disk":
        kept = [os.open("/dev/full", os.O_WRONLY)]
    elif what == "a full pipe":
        kept = list(lazy_reader())
    else:
        kept = [gone_reader()]
    try:
        files = {"stdout": kept[0], "stderr": kept[0]}
        with Serving(path, tmp_path / "state", **files) as server:
            make_steps(server.endpoint)
            peer = Peer(server.endpoint)
            peer.socket.send(b"\xc1junk")
            until(lambda: peer.ok("stats")["num_too_broken_to_answer"] == 1)
            assert peer.ok("stats")["num_dropped_log_lines"] > 0
            peer.socket.close()
            assert server.end() == 0
    finally:
        for file in kept:
            os.close(file)
    assert num_steps_on_disk(path, tmp_path / "state") == NUM_STEPS


def test_files_that_were_closed_at_the_start_are_not_taken_by_others(path, tmp_path):
    """What is printed must not end up in the state's file, which would have got number 2."""
    close = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"]
    command = streamrnn("serve", path, "--state-dir", tmp_path / "state", "--ready-file")
    process = start_child([*close, *command, tmp_path / "ready", "--bind", "tcp://127.0.0.1:0"])
    try:
        until_exists(tmp_path / "ready", process)
        for number in range(3):
            assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()


def until_exists(path, process):
    until(lambda: path.exists() or process.poll() is not None)
    assert process.poll() is None, f"it has ended with {process.returncode}"


@pytest.mark.parametrize(("arguments", "code"), [(["--shards", "0"], 3), (["--shards", "x"], 2)])
def test_an_exit_code_is_right_where_nothing_can_be_said(path, arguments, code):
    with open("/dev/full", "w") as full:
        command = streamrnn("serve", path, *arguments)
        assert subprocess.run(command, stdout=full, stderr=full).returncode == code


def refused(path, ready, **options):
    """Return what a server says that cannot write its ready file."""
    command = streamrnn("serve", path, "--bind", "tcp://127.0.0.1:0", "--ready-file", ready)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, **options)
    assert ended.returncode == 3
    assert "cannot write --ready-file" in ended.stderr.splitlines()[-1]
    return ended.stderr.splitlines()[:-1]


def test_a_ready_file_that_cannot_be_is_found_before_anything_is_compiled(path, tmp_path):
    environment = {**os.environ, "STREAMRNN_CACHE_DIR": str(tmp_path / "empty")}
    ready = tmp_path / "ready"
    for place in (tmp_path, "/dev/null/ready", tmp_path / "none" / "ready"):
        assert refused(path, place, env=environment) == []
    assert refused(path, ready, env=environment, preexec_fn=lambda: limit_files(0)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_whose_ready_file_fails_in_the_end_stops_in_order(path, tmp_path):
    told = refused(path, tmp_path / "ready", preexec_fn=lambda: limit_files(100))
    assert "stopping" in told[-1]
    assert list(tmp_path.iterdir()) == []


def limit_files(num_bytes):
    """Let no file of this process become larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def test_a_log_and_a_disk_that_cannot_be_written_are_written_again_when_they_can(path, tmp_path):
    """The thread that writes the disk logs that it failed, into a log that fails too."""
    with (tmp_path / "log").open("wb", buffering=0) as log:
        log.write(b"-" * 65_535 + b"\n")
        arguments = ("--checkpoint-interval", 0.05)
        with Serving(path, tmp_path / "state", *arguments, stderr=log) as server:
            until(lambda: os.stat(log.fileno()).st_size > 65_536)  # that it is ready
            size = os.stat(log.fileno()).st_size
            pid = server.process.pid
            with Client(server.endpoint) as client:
                streams = client.rows(range(2000))
                client.batch(streams, np.ones((2000, 3), np.float32))
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
                client.batch(streams, np.ones((2000, 3), np.float32))
                until(lambda: client.stats()["read_only"] is not None)
                until(lambda: client.stats()["num_dropped_log_lines"] > 0)
                assert os.stat(log.fileno()).st_size == size
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (-1, -1))
                assert client.sync()
                assert client.stats()["read_only"] is None
            assert server.end() == 0


def test_sighup_is_a_clean_stop(path, tmp_path):
    with Serving(path, tmp_path / "state", stderr=subprocess.DEVNULL) as server:
        make_steps(server.endpoint)
        assert server.end(signal.SIGHUP) == 0
    assert num_steps_on_disk(path, tmp_path / "state") == NUM_STEPS


def test_sighup_that_was_ignored_at_the_start_stays_so(path, tmp_path):
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = Serving(path, tmp_path / "state", stderr=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGHUP, before)
    with server:
        server.process.send_signal(signal.SIGHUP)
        make_steps(server.endpoint)
        assert server.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_start_that_compiles(path, tmp_path, number):
    environment = {**os.environ, "STREAMRNN_CACHE_DIR": str(tmp_path / "empty")}
    command = streamrnn("serve", path, "--bind", "tcp://127.0.0.1:0")
    process = start_child(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert "compiling" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == -number
        process.stderr.close()
    finally:
        process.kill()
        process.wait()
