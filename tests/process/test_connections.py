"""Open files: a flood of connections takes none that the server needs, and keeps nobody out."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

import numpy as np
import pytest

from streamrnn_bench.child_process import start_child
from streamrnn_client import Client
from tests.fuzz.zmtp import GREETING, RawPeer
from tests.support.models import random_model
from tests.support.program import run_python, streamrnn, until

MAX_FILES = 256
NUM_SILENT = 400
TIMEOUT_S = 30
ROW = np.ones(3, np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.safetensors"
    random_model(np.random.default_rng(3), [("gru", 12)]).save(path)
    return path


@contextlib.contextmanager
def few_files(path, log, *options):
    """A server that may open few files; yields its process and address."""
    limit = ("sh", "-c", f'ulimit -n {MAX_FILES}; exec "$@"', "sh")
    command = [*limit, *streamrnn("serve", path, "--bind", "tcp://127.0.0.1:0", *options)]
    with log.open("w") as errors:
        process = start_child(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            yield process, next(word for word in words if word.startswith("tcp://"))
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
            process.communicate()


def has_ended(one):
    """Tell whether the other side has ended a connection; what it has sent is read away."""
    try:
        while one.recv(4096, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_flood_of_connections_is_cut_before_files_run_out(path, tmp_path):
    log = tmp_path / "log"
    with few_files(path, log) as (process, endpoint), contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(endpoint, timeout_s=60))
        stream = client.stream("a")
        stream.step(ROW)
        most = client.stats()["max_connections"]
        assert most < MAX_FILES
        address = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(NUM_SILENT)]
        # The newest are cut, and who was there is served.
        until(lambda: sum(map(has_ended, silent)) >= NUM_SILENT + 1 - most)
        stream.step(ROW)
        stats = client.stats()
        assert stats["num_connections"] <= most
        assert stats["num_connections_cut"] >= NUM_SILENT + 1 - most
        assert len(os.listdir(f"/proc/{process.pid}/fd")) <= MAX_FILES - 16
        lines = [line for line in log.read_text().splitlines() if "too many connections" in line]
        assert len(lines) == 1  # a minute
        # When others have gone, new ones get in.
        for one in silent:
            one.close()
        with Client(endpoint, timeout_s=60) as new:
            assert new.hello().server
            until(lambda: new.stats()["num_connections"] == 2)


def close_all(peers):
    while peers:
        peers.pop().close()


def anonymous_bytes(process):
    with open(f"/proc/{process.pid}/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["frames", "handshakes"])
def test_who_fills_the_memory_of_libzmq_is_cut_and_others_are_served(path, tmp_path, how):
    log = tmp_path / "log"
    with few_files(path, log, "--memory-budget", "512M") as (process, endpoint):
        port = int(endpoint.rpartition(":")[2])
        with Client(endpoint, timeout_s=60) as client:
            stream = client.stream("a")
            stream.step(ROW)
            first = most = anonymous_bytes(process)
            peers: list[RawPeer] = []
            for k in range(2000):
                try:
                    if how == "frames":  # of one message that does not end
                        peers = peers or [RawPeer(port)]
                        peers[0].send(b"\x01\x00" * 100_000)
                    else:  # a READY that does not come whole
                        peers.append(RawPeer(port, handshake=False))
                        peers[-1].send(GREETING + b"\x06" + (2**23).to_bytes(8, "big"))
                        peers[-1].send(b"\x05READY" + bytes(2**23 - 100))
                except OSError:
                    close_all(peers)
                most = max(most, anonymous_bytes(process))
                stream.step(ROW)
                if client.stats()["num_connections_cut"] > 1 and k > 100:
                    break
            assert client.stats()["num_connections_cut"] > 0
            close_all(peers)
            # 256 MiB, and what comes until it is seen; without the cuts it would be 12 GiB.
            assert most - first < 2**30
        assert "more than there is memory for" in log.read_text()


AFTER_READY = """
import os, sys
import numpy as np
from streamrnn_client import Client
from tests.fuzz.zmtp import GREETING, RawPeer
from streamrnn_server.testing import serving
from tests.support.models import random_model

seen = []
def note(event, args):
    if is_ready and event in ("open", "import", "os.listdir", "os.scandir"):
        seen.append((event, str(args[0])))
is_ready = False
sys.addaudithook(note)
model = random_model(np.random.default_rng(3), [("gru", 12)])
row = np.ones(3, np.float32)
options = {"durability": "checkpoint", "state_dir": __import__("pathlib").Path(sys.argv[1])}
from tests.support.peer import Peer
with serving({"m": model}, **options) as server:
    peer = Peer(server.endpoints[0])
    is_ready = True
    x = row.tobytes()
    for method, *params in (
        ("hello", {}), ("models",), ("stats",), ("open", "a", None, 8), ("step", "a", 1, x),
        ("step", "a", 9, x), ("step", "a", 2, b"1"), ("step", "none", 1, x), ("no such",),
        ("open", ["b", "c"], None, 4), ("batch", ["b", "c", "none"], [1, 1, 1], 3 * x),
        ("sync", "a"), ("sync", None), ("snapshot", "a", "s"), ("step", "a", 2, x),
        ("rollback", "a", "s"), ("fork", "a", "d"), ("reset", "b"), ("close", "c"),
        ("export", "a"), ("export", "d"), ("stats",),
    ):
        error, result = peer.call(method, *params)
        if method == "export" and params == ["a"]:
            record = result
    peer.ok("import", "e", record, None)
    peer.ok("open", "f", "m", 8, record)
    peer.call("import", "g", record[:-1], None)
    is_ready = False
for event, what in seen:
    print(event, what)
print("done")
"""


def test_once_it_is_ready_the_server_needs_no_more_files(tmp_path):
    ran = run_python(AFTER_READY.replace("sys.argv[1]", repr(str(tmp_path / "state"))))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["done"]
