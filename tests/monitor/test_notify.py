"""What a service manager is told, and the units and images that start a server."""

from __future__ import annotations

import argparse
import io
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from streamrnn.errors import StartError
from streamrnn_server.event_log import EventLog
from streamrnn_server.monitor.notify import Notifier, Watchdog
from streamrnn_server.options import add_options, settings_of
from streamrnn_server.options.options import OPTIONS, PROGRAM_OPTIONS
from tests.support.models import random_model
from tests.support.program import TIMEOUT_S, Program, run_python, streamrnn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def manager(tmp_path):
    """A socket as systemd has one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        manager.bind(str(tmp_path / "notify"))
        yield manager


class Health:
    """Names threads that are stuck; each time is a turn of the watchdog's."""

    def __init__(self):
        self.names: list[str] = []
        self.asked = threading.Semaphore(0)

    async def stuck(self):
        self.asked.release()
        return self.names


def test_a_server_tells_that_it_is_ready_moves_and_stops(manager, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    random_model(np.random.default_rng(3), [("gru", 8)]).save(path)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "150000")
    with Program(path) as program:
        ready = manager.recv(4096).decode().split("\n")
        assert ready == ["READY=1", f"STATUS=serving m at {program.endpoint}"]
        assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        program.process.send_signal(signal.SIGTERM)
        while (told := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert told == b"STOPPING=1"
        program.process.communicate(timeout=TIMEOUT_S)
        assert program.process.returncode == 0


def test_while_a_thread_is_stuck_nothing_is_told_but_the_log():
    health, stream = Health(), io.StringIO()
    health.names = ["shard-0"]
    told: queue.Queue[tuple[str, ...]] = queue.Queue()
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3000"})
    notifier.tell = lambda *lines: told.put(lines)  # type: ignore[method-assign]
    watchdog = Watchdog(notifier, health, EventLog(stream=stream))  # type: ignore[arg-type]
    watchdog.start()
    for _ in range(3):
        assert health.asked.acquire(timeout=TIMEOUT_S)
    assert told.empty()
    assert "threads do not move threads=shard-0" in stream.getvalue()
    health.names = []
    assert told.get(timeout=TIMEOUT_S) == ("WATCHDOG=1",)
    watchdog.stop()


def test_without_a_manager_nothing_is_told_and_nothing_fails(tmp_path):
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "none")}, {"NOTIFY_SOCKET": "wrong"}):
        notifier = Notifier(environ)
        notifier.tell("READY=1")
        assert notifier.watchdog_s is None


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket_is_reached():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT_S)
        name = f"streamrnn-test-{os.getpid()}"
        manager.bind("\0" + name)
        Notifier({"NOTIFY_SOCKET": "@" + name}).tell("A=1", "B=2")
        assert manager.recv(100) == b"A=1\nB=2"


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # another process is meant
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "1"}, 0.003),  # no core is kept busy
        ({"WATCHDOG_USEC": str(2**64 - 1)}, 1e6),  # threads can wait for it
        ({"WATCHDOG_USEC": "9" * 400}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_as_the_manager_says(environ, watchdog_s):
    assert Notifier({"NOTIFY_SOCKET": "/n", **environ}).watchdog_s == watchdog_s


def variables_of_options():
    options = [*OPTIONS.values(), *PROGRAM_OPTIONS.values()]
    return {"STREAMRNN_SERVE_" + each.name.upper().replace("-", "_") for each in options}


@pytest.mark.parametrize("name", ["streamrnn.service", "Containerfile"])
def test_what_is_deployed_sets_options_that_there_are(name):
    text = (ROOT / "deploy" / name).read_text()
    named = set(re.findall(r"\bSTREAMRNN_SERVE_\w+", text))
    assert named
    assert named <= variables_of_options()


def test_the_image_s_machine_code_can_be_read_but_not_written_by_who_serves(tmp_path):
    text = (ROOT / "deploy" / "Containerfile").read_text()
    after = re.search(r"^RUN \S+/streamrnn compile(.*)$", text, re.MULTILINE)
    code = tmp_path / "cache" / "engine" / "code"
    code.parent.mkdir(parents=True)
    code.touch(0o600)
    for directory in code.parent, code.parent.parent:
        directory.chmod(0o700)  # as the cache is made
    assert after is not None
    script = f"true{after[1]}".replace("/opt/streamrnn", str(tmp_path))
    subprocess.run(["sh", "-c", script], check=True, timeout=TIMEOUT_S)
    modes = [each.stat().st_mode & 0o777 for each in (code.parent.parent, code.parent, code)]
    assert modes == [0o755, 0o755, 0o644]


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (ROOT / "deploy" / "streamrnn.service").read_text()
    unit = tmp_path / "streamrnn.service"
    unit.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={sys.executable}", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_path_may_be_a_credential_of_the_unit_s(tmp_path, monkeypatch):
    text = (ROOT / "deploy" / "streamrnn.service").read_text()
    found = re.search(r"^# serve.toml has: (.*)$", text, re.MULTILINE)
    assert found is not None
    file = tmp_path / "serve.toml"
    file.write_text(f'{found[1]}\ncurve-clients = "users"\n')
    parser = argparse.ArgumentParser()
    add_options(parser)
    args = parser.parse_args(["m.safetensors", "--config", str(file)])
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(StartError, match=r"curve-secret-key in .*LoadCredential="):
        settings_of(args, {})
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/streamrnn.service")
    path = settings_of(args, {}).config.curve_secret_key
    assert str(path) == "/run/credentials/streamrnn.service/server.key_secret"
    assert re.search(r"^#LoadCredential=server.key_secret:/", text, re.MULTILINE)


def test_compile_says_where_the_machine_code_is():
    done = subprocess.run(streamrnn("compile"), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ready to serve float32 \(\d+\.\d s\): \S+\n", done.stdout)


def test_compile_fails_before_it_begins_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    code = "import sys; from streamrnn_server.cli import main; sys.exit(main(['compile']))"
    for name in ("file", "open"):
        done = run_python(code, STREAMRNN_CACHE_DIR=str(tmp_path / name))
        assert done.returncode == 1
        assert "set STREAMRNN_CACHE_DIR to a directory" in done.stderr
        assert "compiling" not in done.stderr
