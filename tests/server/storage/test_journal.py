"""The journal of a server that writes inputs before it answers: what a crash leaves is replayed.

A crash is a copy of the directory as it is at a moment: what was answered before is in it.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import StartError
from streamrnn.state import store
from streamrnn.state.journal import JOURNAL_DIRECTORY, segment_paths
from streamrnn.state.record import decode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client import Client
from streamrnn_client.errors import Gap, Quarantined, StreamRNNClientError
from streamrnn_client.protocol import canonical_id
from streamrnn_server.cli import main
from streamrnn_server.config import Endpoint
from streamrnn_server.storage.journal_writer import JournalWriter
from streamrnn_server.testing import serving
from tests.support.models import exploding_model, random_model
from tests.support.peer import RARELY_S, Peer, step
from tests.support.program import free_ports

NUM_INPUTS, NUM_STEPS, WINDOW = 3, 40, 8


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(3), [("lstm", 8)], NUM_INPUTS, 2)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(5).standard_normal((NUM_STEPS, NUM_INPUTS)).astype(np.float32)


@pytest.fixture(scope="module")
def y(model, x):
    return Engine(model).steps("s", x)


class Servers:
    """Servers on one directory, or on copies of it as a crash leaves them."""

    def __init__(self, model, directory):
        self.model, self.directory = model, directory
        self.numbers = itertools.count()

    def serve(self, **options):
        defaults = {"durability": "always", "checkpoint_interval_s": RARELY_S}
        options = {**defaults, "state_dir": self.directory, **options}
        return serving({"m": self.model}, **options)

    def crash(self):
        """Return the servers that begin with what is on disk now."""
        copy = self.directory.with_name(f"crash-{next(self.numbers)}")
        shutil.copytree(self.directory, copy, ignore=shutil.ignore_patterns("reserve"))
        return Servers(self.model, copy)

    def segments(self):
        return segment_paths(self.directory / JOURNAL_DIRECTORY)

    def record(self, stream):
        opened = StateStore(self.directory, read_only=True)
        try:
            data = opened.get(STREAMS, canonical_id(stream))
            return None if data is None else decode_record(data)
        finally:
            opened.close()


@pytest.fixture
def servers(model, tmp_path):
    return Servers(model, tmp_path / "state")


def same(got, expected):
    np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("durability", ["always", "checkpoint"])
def test_what_was_answered_is_replayed_to_the_bit(servers, x, y, durability):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a", window=WINDOW)
        chunk = client.stream("chunk", window=WINDOW)
        narrow = client.stream("narrow", window=1)
        unnumbered = client.stream("unnumbered", numbered=False)
        for k in range(20):
            same(stream.step(x[k]), y[k])
            same(narrow.step(x[k]), y[k])
            same(unnumbered.step(x[k]), y[k])
        same(chunk.steps(x[:20]), y[:20])
        after = servers.crash()
        assert after.record("a") is None
        assert len(after.segments()) == 1
    with (
        after.serve(durability=durability, num_shards=2) as server,
        Client(server.endpoints[0]) as client,
    ):
        assert after.segments() == []
        for name in ("a", "chunk", "narrow"):
            stream = client.stream(name)
            assert stream.last_seq == 20
            same(stream.step(x[19], seq=20), y[19])
            with pytest.raises(StreamRNNClientError):
                stream.step(x[0], seq=20)
            same(stream.steps(x[20:]), y[20:])
        unnumbered = client.stream("unnumbered", numbered=False)
        for k in range(20, NUM_STEPS):
            same(unnumbered.step(x[k]), y[k])
    assert after.segments() == []


def test_a_clean_stop_leaves_the_journal_empty(servers, x, y):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        same(client.stream("a").step(x[0]), y[0])
        assert len(servers.segments()) == 1
    assert servers.segments() == []
    assert servers.record("a").last_seq == 1


def test_a_reset_and_a_closed_stream_are_replayed(servers, x, y):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a")
        stream.steps(x[:5])
        stream.reset()
        same(stream.step(x[0]), y[0])
        closed = client.stream("closed")
        closed.step(x[0])
        closed.close()
        again = client.stream("again")
        again.steps(x[:7])
        again.close()
        client.stream("again").step(x[0])
        after = servers.crash()
    with after.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a")
        assert stream.last_seq == 7
        same(stream.step(x[1]), y[1])
        assert client.stream("closed").last_seq == 0
        again = client.stream("again")
        assert again.last_seq == 1
        same(again.step(x[1]), y[1])


def test_a_second_crash_within_the_replay_changes_nothing(servers, x, y, monkeypatch):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        for name in "abc":
            client.stream(name, numbered=False).steps(x[:16])
        after = servers.crash()
    commit = StateStore.commit

    def commit_and_end(store, changes, *args, **kwargs):
        commit(store, list(changes)[:2], *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "commit", commit_and_end)
        with pytest.raises(KeyboardInterrupt):
            after.serve().__enter__()
    assert len(after.segments()) == 1
    with after.serve() as server, Client(server.endpoints[0]) as client:
        for name in "abc":
            same(client.stream(name, numbered=False).step(x[16]), y[16])


def test_checkpoints_go_on_beside_it_and_segments_are_dropped(servers, x, y):
    with servers.serve(checkpoint_interval_s=0.05) as server:
        with Client(server.endpoints[0]) as client:
            stream = client.stream("a")
            for k in range(NUM_STEPS):
                same(stream.step(x[k]), y[k])
                if k % 4 == 0:
                    stream.sync()
                assert len(servers.segments()) <= 3
            after = servers.crash()
        disk = server._disk
        assert disk.stats()["num_groups"] >= NUM_STEPS
    with after.serve() as server, Client(server.endpoints[0]) as client:
        assert client.stream("a").last_seq == NUM_STEPS


def test_a_rollback_to_nothing_gives_the_last_step(servers, x, y):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a")
        stream.steps(x[:5])
        assert stream.rollback() == 6
        same(stream.step(x[5]), y[5])
        after = servers.crash()
    with after.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a")
        assert stream.last_seq == 7
        same(stream.step(x[6]), y[6])


def test_replies_do_not_come_before_their_group_is_on_disk(servers, x):
    with servers.serve() as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "a", None, WINDOW)
        for seq in range(1, 20):
            step(peer, "a", seq, x[seq])
            with servers.crash().serve() as later:
                other = Peer(later.endpoints[0])
                assert other.ok("open", "a", None, WINDOW)[0] == seq
                other.socket.close()
            if seq > 4:
                break
        peer.socket.close()


@pytest.mark.parametrize("first_seq", [1, 0])
@pytest.mark.parametrize("way_back", ["rollback", "reset", "crash", "checkpoint and crash"])
def test_a_stream_that_turns_nan_is_put_back_to_its_last_good_step(tmp_path, first_seq, way_back):
    servers = Servers(exploding_model(), tmp_path / "state")
    x = np.ones(1, np.float32)
    with servers.serve() as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "a", None, 8)
        seq, outputs, error = 0, [], None
        while error is None:
            seq += first_seq
            error, result = peer.call("step", "a", seq, x.tobytes())
            outputs.append(result and result[2])
        assert error[0] == "quarantined"
        assert len(outputs) > 2
        last_good = seq - first_seq
        if way_back == "rollback":
            following = seq + first_seq
            assert peer.ok("rollback", "a", following, None)[0] == following
            again, _ = peer.call("step", "a", following + first_seq, x.tobytes())
            assert again[0] == "quarantined"  # from the last good state it is but one step
        elif way_back == "reset":
            following = seq + first_seq
            peer.ok("reset", "a", following)
            assert step(peer, "a", following + first_seq, x)[2].tobytes() == outputs[0]
        elif way_back == "checkpoint and crash":
            peer.ok("sync", None)
        after = servers.crash()
        peer.socket.close()
    with after.serve() as server:
        peer = Peer(server.endpoints[0])
        last_seq, durable_seq, _ = peer.ok("open", "a", None, 8)
        assert durable_seq == last_seq
        if way_back == "reset":
            assert last_seq == (following + first_seq)
            assert step(peer, "a", last_seq + first_seq, x)[2].tobytes() == outputs[1]
        else:
            assert last_seq == (last_good if "crash" in way_back else following)
            error, _ = peer.call("step", "a", last_seq + first_seq, x.tobytes())
            assert error[0] == "quarantined"
        if first_seq and "crash" in way_back:
            again = peer.call("step", "a", last_good, x.tobytes())
            assert again[0][0] == "quarantined"
        peer.socket.close()


def until_refused(peer, window, first_seq=1):
    """Step a stream of the exploding model, other inputs each time; return what was answered."""
    peer.ok("open", "a", None, window)
    answered: dict[int, tuple[bytes, bytes]] = {}
    for seq in itertools.count(1):
        x = np.array([1 + 0.25 * seq], np.float32).tobytes()
        error, result = peer.call("step", "a", seq, x)
        if error is not None:
            assert error[0] == "quarantined"
            return answered, seq, x
        answered[seq] = x, result[2]


@pytest.mark.parametrize("is_replayed", [False, True])
@pytest.mark.parametrize("window", [1, 2, 8])
def test_the_number_of_a_step_that_was_put_back_is_no_other_steps(tmp_path, window, is_replayed):
    servers = Servers(exploding_model(), tmp_path / "state")
    with servers.serve() as server:
        peer = Peer(server.endpoints[0])
        answered, refused, x = until_refused(peer, window)
        peer.ok("reset", "a", refused + 1)
        after = servers.crash()
        if not is_replayed:
            after.directory = tmp_path / "other"
        peer.socket.close()
    if not is_replayed:
        after = servers
    with after.serve() as server:
        peer = Peer(server.endpoints[0])
        for each in (x, *(x for x, _ in answered.values())):
            code, _ = peer.error("step", "a", refused, each)
            assert code == ("stale" if window == 1 else "conflict")
        peer.socket.close()


def test_a_chunk_refused_in_its_midst_is_answered_when_the_steps_before_are_on_disk(
    tmp_path, monkeypatch
):
    servers = Servers(exploding_model(), tmp_path / "state")
    gate, write = threading.Event(), JournalWriter._write
    gate.set()

    def write_when_let(*args):
        gate.wait()
        write(*args)

    monkeypatch.setattr(JournalWriter, "_write", write_when_let)
    with servers.serve() as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "a", None, 16)
        gate.clear()
        chunk = peer.send("step", "a", 1, np.ones(16, np.float32).tobytes())
        hello = peer.send("hello", {})
        first, *_ = peer.receive()
        gate.set()
        assert first == hello
        msgid, error, _ = peer.receive()
        assert (msgid, error[0]) == (chunk, "quarantined")
        after = servers.crash()
        peer.socket.close()
    monkeypatch.undo()
    with after.serve() as server:
        peer = Peer(server.endpoints[0])
        assert peer.ok("open", "a", None, 16)[0] == error[2]["expected"] - 2
        peer.socket.close()


@pytest.mark.parametrize(
    ("durability", "way_on"),
    [(durability, way) for durability in ("always", "checkpoint") for way in ("reset", "step")]
    + [("always", "rollback")],
)
def test_a_client_goes_on_when_a_server_was_started_again_after_a_refused_step(
    tmp_path, durability, way_on
):
    bind = Endpoint("127.0.0.1", free_ports(1))
    servers = Servers(exploding_model(), tmp_path / "state")
    options = {"durability": durability, "bind": bind}
    x = np.ones(1, np.float32)
    with Client(str(bind)) as client:
        with servers.serve(**options):
            stream = client.stream("a", window=8)
            last_good = 0
            with contextlib.suppress(Quarantined):
                for last_good in range(99):  # noqa: B007
                    stream.step(x)
            assert stream.last_seq == last_good + 1
        with servers.serve(**options):
            if way_on == "reset":
                stream.reset()
                assert stream.last_seq == last_good + 1
                assert np.isfinite(stream.step(x)).all()
            elif way_on == "rollback":
                assert stream.rollback() == last_good + 1
                with pytest.raises(Quarantined):
                    stream.step(x)
            else:
                with pytest.raises(Gap):
                    stream.step(x)
                with pytest.raises(Quarantined):
                    stream.step(x)


def test_streams_of_another_model_are_held_and_not_deleted(servers, x, y):
    other = random_model(np.random.default_rng(4), [("gru", 8)], NUM_INPUTS, 2)
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        same(client.stream("a").step(x[0]), y[0])
        after = servers.crash()
    with serving({"m": other}, state_dir=after.directory, durability="always") as server:
        peer = Peer(server.endpoints[0])
        code, detail = peer.error("open", "a", None, 8)
        assert code == "mismatch"
        assert detail["stored"] == servers.model.fingerprint
        assert peer.error("close", "a")[0] == "mismatch"
        step_of_another = peer.ok("open", "b", None, 8)
        assert step_of_another[0] == 0
        peer.socket.close()
    assert len(after.segments()) == 1
    with after.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a")
        assert stream.last_seq == 1
        same(stream.step(x[1]), y[1])


def test_a_damaged_journal_is_refused_and_kept(servers, x):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a")
        for k in range(5):
            stream.step(x[k])
        after = servers.crash()
    (path,) = after.segments()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"the journal is damaged.*the group at \d+ is torn or"):
        after.serve().__enter__()
    assert path.read_bytes() == content


def test_a_release_before_refuses_a_directory_with_a_journal(servers, x, monkeypatch):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        client.stream("a").step(x[0])
        after = servers.crash()
    monkeypatch.setattr(store, "_FORMATS", store._FORMATS[:1])
    with pytest.raises(StartError, match="streamrnn state 2"):
        after.serve().__enter__()


def test_commands_show_what_is_in_it(servers, x, tmp_path, capsys):
    with servers.serve() as server, Client(server.endpoints[0]) as client:
        stream = client.stream("a")
        stream.step(x[0])
        stream.sync()
        stream.step(x[1])
        stream.reset()
        client.stream("b", window=4)
        after = servers.crash()
    directory = after.directory
    assert main(["state", "journal", str(directory)]) == 0
    lines = [line.split("\t")[2:4] for line in capsys.readouterr().out.splitlines()]
    assert lines[-3:] == [["a", "step"], ["a", "reset"], ["b", "open"]]
    assert main(["state", "list", str(directory)]) == 0
    assert "2 streams have changes in the journal" in capsys.readouterr().err
    assert main(["state", "show", str(directory), "a"]) == 0
    assert "2 changes more" in capsys.readouterr().out
    assert main(["state", "export", str(directory), "a", str(tmp_path / "a.srnn")]) == 1
    assert "has 2 changes in the journal" in capsys.readouterr().err
    assert not (tmp_path / "a.srnn").exists()
    assert main(["state", "verify", str(directory)]) == 0
    assert "the journal has 3 changes of 2 streams more" in capsys.readouterr().out
    (path, *_) = after.segments()
    path.write_bytes(path.read_bytes().replace(b"SRNG", b"SRNX", 1))
    assert main(["state", "verify", str(directory)]) == 1
    assert "the journal is damaged" in capsys.readouterr().out
