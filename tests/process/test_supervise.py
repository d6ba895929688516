"""``serve --supervise``: a server that has crashed is started again, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn_bench.child_process import start_child
from streamrnn_client import Client
from tests.support.models import random_model
from tests.support.program import ROOT, TIMEOUT_S, streamrnn, until

NUM_STEPS = 60
SUPERVISE = """
import sys
sys.path[:0] = {paths!r}
from streamrnn_server.event_log import EventLog
from streamrnn_server.supervisor import Supervisor
log = EventLog()
supervisor = Supervisor(
    log, 0, [sys.executable, "-c", {child!r}, {file!r}], min_pause_s={least}, max_pause_s={least}
)
print(supervisor.run(), supervisor.num_restarts, flush=True)
"""


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(3), [("gru", 12)])


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    model.save(path)
    return path


def supervisor(child, file, least=0.001):
    """Start a supervisor of a Python program, whose only argument is a file."""
    code = SUPERVISE.format(paths=sys.path, child=child, file=str(file), least=least)
    pipe = subprocess.PIPE
    return start_child([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)


def outcome(child, file):
    """Return the exit code that it passes on and the number of restarts, and its log."""
    with supervisor(child, file) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    code, num_restarts = map(int, out.split())
    return (code, num_restarts), err


# Each run takes a word off the file: how to end this time.
END_AS_TOLD = """
import os, sys
words = open(sys.argv[1]).read().split()
open(sys.argv[1], "w").write(" ".join(words[1:]))
if words[0].startswith("-"):
    os.kill(os.getpid(), int(words[0][1:]))
os._exit(int(words[0]))
"""
TAKE_SIGNALS = """
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
"""


@pytest.mark.parametrize("code", [0, 2, 3])
def test_an_end_of_its_own_accord_is_passed_on(tmp_path, code):
    file = tmp_path / "words"
    file.write_text(f"{code} 1")
    assert outcome(END_AS_TOLD, file) == ((code, 0), "")


def test_crashes_are_counted_and_named_in_the_log(tmp_path):
    file = tmp_path / "words"
    file.write_text(f"-{int(signal.SIGABRT)} 1 -{int(signal.SIGKILL)} -{int(signal.SIGSEGV)} 0")
    code, log = outcome(END_AS_TOLD, file)
    assert code == (0, 4)
    lines = log.splitlines()
    assert len(lines) == 4
    for line, how in zip(lines, ["SIGABRT", '"exit code 1"', "SIGKILL", "SIGSEGV"], strict=True):
        assert f"how={how}" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_child_that_somebody_stopped_is_not_started_again(tmp_path, number):
    file = tmp_path / "words"
    file.write_text(f"-{int(number)} 0")
    assert outcome(TAKE_SIGNALS + END_AS_TOLD, file) == ((128 + number, 0), "")


WAIT_FOR_SIGNAL = """
import signal, sys
from streamrnn_server.supervisor import STOP_SIGNALS, supervised
from streamrnn_server.config import ServerConfig
def end(number, frame):
    open(sys.argv[1], "a").write(f"{number} ")
    sys.exit(0)
for number in STOP_SIGNALS:
    signal.signal(number, end)
supervised(ServerConfig())
open(sys.argv[1], "a").write("ready ")
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_forwarded(tmp_path, number):
    file = tmp_path / "said"
    child = f"import sys; sys.path[:0] = {sys.path!r}\n" + WAIT_FOR_SIGNAL
    with supervisor(child, file) as process:
        until(lambda: file.exists() and "ready" in file.read_text())
        process.send_signal(number)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    assert out.split() == ["0", "0"]
    assert file.read_text().split() == ["ready", str(int(number))]


def test_a_signal_ends_the_pause_before_a_restart(tmp_path):
    file = tmp_path / "words"
    file.write_text("1 1 1")
    with supervisor(END_AS_TOLD, file, least=3600) as process:
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    assert out.split()[0] == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_the_child_ends_with_a_supervisor_that_is_killed(tmp_path):
    file = tmp_path / "said"
    child = f"import sys; sys.path[:0] = {sys.path!r}\n" + WAIT_FOR_SIGNAL
    with supervisor(child, file) as process:
        until(lambda: file.exists() and "ready" in file.read_text())
        process.kill()
        process.wait()
        until(lambda: len(file.read_text().split()) == 2)
    assert file.read_text().split()[1] == str(int(signal.SIGTERM))


class Supervised:
    """``streamrnn serve --supervise``, where and who the serving process is."""

    def __init__(self, path, directory, *arguments):
        self.ready = directory / "ready.json"
        command = streamrnn(
            *("serve", path, "--supervise", "--bind", "tcp://127.0.0.1:0"),
            *("--ready-file", self.ready, *arguments),
        )
        self.log = (directory / "log").open("w")
        options = {"stdout": subprocess.DEVNULL, "stderr": self.log, "cwd": ROOT}
        self.process = start_child(command, **options)
        self.serving = self.next_start(None)

    def next_start(self, before):
        """Return what the ready file says after another start."""

        def has_started():
            assert self.process.poll() is None
            if not self.ready.exists():
                return False
            return json.loads(self.ready.read_text()) != before

        until(has_started)
        return json.loads(self.ready.read_text())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        finally:
            self.process.kill()
            self.log.close()


@pytest.mark.parametrize("num_shards", [1, 2])
def test_after_a_crash_clients_go_on_and_nothing_is_lost(model, path, tmp_path, num_shards):
    x = np.random.default_rng(5).standard_normal((NUM_STEPS, 3)).astype(np.float32)
    expected = Engine(model).steps("s", x)
    arguments = ("--state-dir", tmp_path / "state", "--shards", num_shards)
    with Supervised(path, tmp_path, *arguments) as server:
        first = server.serving
        with Client(first["endpoints"][0], timeout_s=60) as client:
            streams = [client.stream(f"s{k}") for k in range(4)]
            for t in range(NUM_STEPS):
                if t in (20, 40):
                    os.kill(server.serving["pid"], signal.SIGABRT)
                for stream in streams:
                    np.testing.assert_array_equal(stream.step(x[t]), expected[t])
                if t in (20, 40):
                    server.serving = server.next_start(server.serving)
            assert server.serving["endpoints"] == first["endpoints"]
            assert client.stats()["num_restarts"] == 2
            status = streamrnn("status", first["endpoints"][0])
            told = subprocess.run(status, capture_output=True, text=True, timeout=TIMEOUT_S)
            assert told.returncode == 0
            assert "restarted 2 times after a crash" in told.stdout
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT_S) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(server.serving["pid"], 0)


def test_what_cannot_start_is_not_tried_again(path, tmp_path):
    arguments = ["--supervise", "--bind", "tcp://127.0.0.1:0", "--ready-file", "/dev/null/ready"]
    command = streamrnn("serve", path, *arguments)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 3
    assert "--ready-file" in ended.stderr
    assert "crashed" not in ended.stderr
