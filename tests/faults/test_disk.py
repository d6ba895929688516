"""Full and failing disks: serving goes on, and nothing is claimed durable or torn.

The fault is a real one: the server is the program that users run, with a library preloaded that
lets its writes fail on command (`faulty_disk.c`), or with a small file system that is full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.state.journal import JOURNAL_DIRECTORY, segment_paths
from streamrnn.state.record import decode_record
from streamrnn.state.store import DATA_FILE, STREAMS, StateStore
from streamrnn_client.protocol import canonical_id
from tests.support.models import random_model
from tests.support.peer import Peer, until
from tests.support.program import DurableProgram

pytestmark = pytest.mark.slow

NUM_INPUTS, WINDOW = 3, 8
FAULTS = [
    ("write", errno.ENOSPC),
    ("torn", errno.ENOSPC),
    ("write", errno.EIO),
    ("sync", errno.EIO),
    ("meta", errno.EIO),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = random_model(np.random.default_rng(3), [("lstm", 24)], NUM_INPUTS, 2)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model.save(path)
    return model, path


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("to let a disk fail on command needs Linux and a C compiler (cc)")
    source = Path(__file__).with_name("faulty_disk.c")
    made = tmp_path_factory.mktemp("library") / "faulty_disk.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return made


class Walk:
    """A stream that is stepped, a request after the other, and whose every output is checked."""

    def __init__(self, model, peer, stream="a"):
        self.peer, self.stream = peer, stream
        self.x = np.random.default_rng(5).standard_normal((200, NUM_INPUTS)).astype(np.float32)
        self.y = Engine(model).steps("s", self.x)
        self.last_seq, self.durable_seq, _ = peer.ok("open", stream, None, WINDOW)

    def send(self):
        seq = self.last_seq + 1
        return self.peer.send("step", self.stream, seq, self.x[seq - 1].tobytes())

    def take(self, error, result):
        assert error is None, error
        self.last_seq, self.durable_seq, y = result
        np.testing.assert_array_equal(np.frombuffer(y, np.float32), self.y[self.last_seq - 1])

    def step(self, num_steps=1):
        for _ in range(num_steps):
            sent = self.send()
            msgid, error, result = self.peer.receive()
            assert msgid == sent
            self.take(error, result)

    def seq_on_disk(self, state, copy):
        """Return what a server would find after a crash now; nothing there may be torn."""
        copy.mkdir(exist_ok=True)
        shutil.copyfile(state / DATA_FILE, copy / DATA_FILE)
        store = StateStore(copy, read_only=True)
        try:
            for _, data in store.items(STREAMS):
                decode_record(data)
            found = store.get(STREAMS, canonical_id(self.stream))
            assert found is not None
            record = decode_record(found)
            if record.last_seq:
                np.testing.assert_array_equal(
                    record.outputs[-1].view(np.float32), self.y[record.last_seq - 1]
                )
            return record.last_seq
        finally:
            store.close()


def is_read_only(peer):
    return (peer.call("hello", {})[1] or {}).get("read_only")


@contextlib.contextmanager
def faulty(path, directory, durability, library, log):
    """A server whose disk fails while the file that is yielded is there."""
    program = DurableProgram(path, directory / "state", durability)
    control = directory / "fault"
    with log.open("wb") as errors:
        program.options = {
            "env": {**os.environ, "LD_PRELOAD": str(library), "FAULTY_DISK": str(control)},
            "stderr": errors,
        }
        with program:
            program.start()
            yield program, control


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "streamrnn-test", str(directory)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("to mount a small file system (tmpfs) needs Linux and root")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def fill(path):
    """Leave no room beside a file."""
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
            file.flush()


def test_a_full_disk_is_reported_and_recovered_from(model, small_disk, tmp_path):
    model, path = model
    state = small_disk / "state"
    with DurableProgram(path, state) as program:
        program.start()
        peer = Peer(program.endpoint)
        walk = Walk(model, peer)
        walk.step(3)
        assert peer.ok("sync", None) is True
        with contextlib.suppress(OSError):
            fill(small_disk / "filler")
        # More than there is room for in what the state directory has; in one commit with "a".
        peer.ok("open", list(range(1000)), None, WINDOW)
        frozen_is_told(walk, state, tmp_path / "copy")
        assert peer.ok("stats")["read_only"] == os.strerror(errno.ENOSPC)
        (small_disk / "filler").unlink()
        until(lambda: is_read_only(peer) is None)
        assert peer.ok("sync", "a") == walk.last_seq
        walk.step()
        program.kill()
        program.start()
        survived = Walk(model, peer)
        assert survived.last_seq >= walk.durable_seq
        survived.step(10)
        assert peer.ok("stats")["num_streams_on_disk"] == 1001
        peer.socket.close()


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_a_failing_disk_is_reported_and_recovered_from(model, library, tmp_path, durability):
    model, path = model
    log = tmp_path / "log"
    with faulty(path, tmp_path, durability, library, log) as (program, control):
        peer = Peer(program.endpoint)
        walk = Walk(model, peer)
        has_said = False  # a process says the same only so often
        for kind, number in FAULTS:
            walk.step(3)
            assert peer.ok("sync", "a") == walk.last_seq
            log.write_bytes(b"")
            control.with_suffix(".new").write_text(f"{kind} {number}")
            control.with_suffix(".new").replace(control)
            waits = durability == "always" and kind != "meta"
            if durability == "checkpoint":
                frozen_is_told(walk, tmp_path / "state", tmp_path / "copy")
            elif waits:
                replies_wait(walk)
            else:  # the journal is enough
                walk.step(5)
                until(lambda: is_read_only(peer))
                walk.step(5)
            failed = peer.ok("stats")
            assert failed["read_only"] == is_read_only(peer) == os.strerror(number)
            assert failed["num_checkpoints_failed"] > 0
            assert has_said or b"cannot be written" in log.read_bytes()
            has_said = True
            control.unlink()
            if waits:
                walk.take(*peer.receive()[1:])
            until(lambda: is_read_only(peer) is None)
            walk.step()
            assert peer.ok("sync", "a") == walk.last_seq
            assert walk.seq_on_disk(tmp_path / "state", tmp_path / "copy") == walk.last_seq
            walk.step()
            if kind in ("torn", "meta"):
                program.kill()
                program.start()
                survived = Walk(model, peer)
                assert survived.last_seq >= walk.durable_seq
                walk, has_said = survived, False
        walk.step(10)
        peer.socket.close()


def test_without_a_journal_replies_wait_for_checkpoints(model, library, tmp_path):
    model, path = model
    log = tmp_path / "log"
    with faulty(path, tmp_path, "always", library, log) as (program, control):
        peer = Peer(program.endpoint)
        walk = Walk(model, peer)
        for kind, number in FAULTS:
            if kind == "meta":
                continue
            walk.step(3)
            log.write_bytes(b"")
            control.with_suffix(".new").write_text(f"{kind} {number} .journal")
            control.with_suffix(".new").replace(control)
            walk.step(5)
            assert is_read_only(peer) == os.strerror(number)
            assert b"the journal cannot be written" in log.read_bytes()
            program.kill()
            program.start()
            survived = Walk(model, peer)
            assert survived.last_seq == walk.last_seq
            walk = survived
            control.unlink()
            until(lambda walk=walk: (walk.step(), is_read_only(peer))[1] is None)
        last_seq = walk.last_seq
        program.kill()
        program.start()
        survived = Walk(model, peer)
        assert survived.last_seq == last_seq
        survived.step(10)
        assert program.end(signal.SIGTERM) == 0
        assert segment_paths(tmp_path / "state" / JOURNAL_DIRECTORY) == []
        peer.socket.close()


def test_a_full_disk_does_not_lock_itself(model, small_disk):
    """Where the journal has no room, checkpoints have it, and what they cover is answered."""
    model, path = model
    with DurableProgram(path, small_disk / "state", "always") as program:
        program.start()
        peer = Peer(program.endpoint)
        walk = Walk(model, peer)
        walk.step(3)
        assert peer.ok("sync", "a") == 3
        with contextlib.suppress(OSError):
            fill(small_disk / "filler")
        walk.step(50)
        program.kill()
        program.start()
        survived = Walk(model, peer)
        assert survived.last_seq == walk.last_seq
        survived.step(50)
        (small_disk / "filler").unlink()
        assert program.end(signal.SIGTERM) == 0
        peer.socket.close()


def frozen_is_told(walk, state, copy):
    """With `checkpoint`, serving goes on, with a durable_seq that stands still."""
    peer, durable = walk.peer, walk.last_seq
    walk.step(5)
    until(lambda: is_read_only(peer))
    walk.step(5)
    assert walk.durable_seq == durable
    assert peer.ok("sync", "a") == durable
    assert peer.ok("sync", None) is False
    assert peer.error("snapshot", "a", "s")[0] == "read_only"
    assert peer.error("close", "a")[0] == "read_only"
    walk.step()
    assert walk.durable_seq == durable
    assert walk.seq_on_disk(state, copy) == durable


def replies_wait(walk):
    """With `always`, what is not on disk is not answered."""
    peer = walk.peer
    walk.send()
    for _ in range(3):  # each answer is to the question, so it is none to the step
        failed = peer.ok("stats")["num_checkpoints_failed"]
        until(lambda failed=failed: peer.ok("stats")["num_checkpoints_failed"] > failed)
