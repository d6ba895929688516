"""Backups of a running server's streams, and servers that go on from what is restored."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import StartError
from streamrnn.state.backup import ABOUT_FILE, BackupProcess, restore_backup
from streamrnn_client import Client
from streamrnn_client.errors import BadParams, Conflict, NotSupported
from streamrnn_server.cli import main
from streamrnn_server.config import ServerConfig
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.peer import RARELY_S, Peer
from tests.support.program import until

NUM_STREAMS, NUM_STEPS, WINDOW = 12, 20_000, 4
_PAUSE_S = 0.001  # between rounds: so the inputs last longer than any backup
MODEL = random_model(np.random.default_rng(5), [("lstm", 8)], 2, 1)
ROWS = np.random.default_rng(6).standard_normal((NUM_STREAMS, NUM_STEPS, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def expected():
    engine = Engine(MODEL)
    return [engine.steps(k, x) for k, x in enumerate(ROWS)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups"


class Load(threading.Thread):
    """Steps all streams one after the other, round after round, until it is stopped."""

    def __init__(self, endpoint, expected):
        super().__init__()
        self.endpoint, self.expected = endpoint, expected
        self.acknowledged = 0
        self.is_right = True
        self._stopped = threading.Event()

    def run(self):
        with Client(self.endpoint, timeout_s=60) as client:
            rows = client.rows(range(NUM_STREAMS), window=WINDOW)
            while not self._stopped.wait(_PAUSE_S):
                y = client.batch(rows, ROWS[:, self.acknowledged])
                wanted = [each[self.acknowledged] for each in self.expected]
                self.is_right &= bool(np.array_equal(y, wanted))
                self.acknowledged += 1

    def stop(self):
        self._stopped.set()
        self.join()


def go_on(directory, expected, least, most, num_shards):
    """Serve a restored directory, and see that each stream goes on to the bit, each step once."""
    options = {"state_dir": directory, "durability": "always", "num_shards": num_shards}
    with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
        for k in range(NUM_STREAMS):
            stream = client.stream(k)
            last = stream.last_seq
            assert least <= last <= most
            again = stream.step(ROWS[k, last - 1], seq=last)
            np.testing.assert_array_equal(again, expected[k][last - 1])
            with pytest.raises(Conflict):
                stream.step(ROWS[k, last], seq=last)
            y = stream.steps(ROWS[k, last : last + 20])
            np.testing.assert_array_equal(y, expected[k][last : last + 20])


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_a_backup_under_load_restores_to_streams_that_go_on_to_the_bit(
    tmp_path, folder, expected, durability, capsys
):
    # Checkpoints come rarely: what a backup holds is what it has asked to be written.
    options = {"state_dir": tmp_path / "state", "durability": durability, "backup_dir": folder}
    options |= {"checkpoint_interval_s": RARELY_S, "num_shards": 2}
    with serving({"m": MODEL}, **options) as server:
        load = Load(server.endpoints[0], expected)
        load.start()
        until(lambda: load.acknowledged > 20)
        least = load.acknowledged
        try:
            assert main(["state", "backup", server.endpoints[0], "b"]) == 0
            most = load.acknowledged + 1  # the one that is under way
            until(lambda: load.acknowledged > most + 20)
        finally:
            load.stop()
        assert load.is_right
    assert (
        f"{NUM_STREAMS} streams and 0 snapshots copied to {folder / 'b'}" in capsys.readouterr().out
    )
    restore_backup(folder / "b", tmp_path / "restored")
    go_on(tmp_path / "restored", expected, least, most, num_shards=3)
    go_on(tmp_path / "state", expected, load.acknowledged, load.acknowledged, num_shards=1)


def test_a_crashed_servers_directory_is_copied_with_its_journal(tmp_path, expected):
    options = {"state_dir": tmp_path / "state", "durability": "always"}
    options["checkpoint_interval_s"] = RARELY_S
    with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
        for k in range(NUM_STREAMS):
            y = client.stream(k, window=WINDOW).steps(ROWS[k, :9])
            np.testing.assert_array_equal(y, expected[k][:9])
        # As a crash would leave it: what the records lack is in the journal.
        BackupProcess(tmp_path / "state", tmp_path / "b", "1.0").wait()
    assert [path.name for path in (tmp_path / "b" / "journal").iterdir()] != []
    restore_backup(tmp_path / "b", tmp_path / "restored")
    go_on(tmp_path / "restored", expected, 9, 9, num_shards=2)


def test_the_same_request_tells_of_the_same_backup(tmp_path, folder):
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint", "backup_dir": folder}
    with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
        client.stream("a").step(ROWS[0, 0])
        assert client.sync()
        assert client.call("backup", ["b", "one"])["state"] == "running"
        peer = Peer(server.endpoints[0])
        assert peer.error("backup", "c", "one")[0] == "busy"
        peer.socket.close()
        until(lambda: client.call("backup", ["b", "one"])["state"] == "done")
        found = client.call("backup", ["b", "one"])
        assert (found["num_streams"], found["num_damages"]) == (1, 0)
        with pytest.raises(BadParams, match="is there already"):
            client.call("backup", ["b", "two"])
        until(lambda: client.call("backup", ["c", "three"])["state"] == "done")
    assert (folder / "b" / ABOUT_FILE).exists()
    assert (folder / "c" / ABOUT_FILE).exists()


def test_a_backup_that_fails_is_told_and_can_be_made_again(tmp_path, folder, monkeypatch):
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint", "backup_dir": folder}
    with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
        (folder / ".b.part").write_text("no folder can be made here")
        until(lambda: client.call("backup", ["b", "one"])["state"] == "failed")
        assert "File exists" in client.call("backup", ["b", "one"])["reason"]
        (folder / ".b.part").unlink(missing_ok=True)
        until(lambda: client.call("backup", ["b", "two"])["state"] == "done")


@pytest.mark.parametrize(
    "params",
    [
        *(["../b", "t"], ["", "t"], [".b", "t"], ["b/c", "t"], ["b" * 101, "t"], [b"b", "t"]),
        *(["b\0", "t"], ["b", ""], ["b", 7], ["b"], [], ["b", "t", "u"], ["b\n", "t"]),
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, folder, params):
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint", "backup_dir": folder}
    with (
        serving({"m": MODEL}, **options) as server,
        Client(server.endpoints[0]) as client,
        pytest.raises(BadParams),
    ):
        client.call("backup", params)
    assert os.listdir(folder) == []


def test_there_are_backups_only_where_a_folder_is_configured(tmp_path, folder):
    for options in ({}, {"state_dir": tmp_path / "state", "durability": "checkpoint"}):
        with (
            serving({"m": MODEL}, **options) as server,
            Client(server.endpoints[0]) as client,
            pytest.raises(NotSupported),
        ):
            client.call("backup", ["b", "t"])
    for options in (
        {"backup_dir": folder},
        {"backup_dir": folder / "none", "state_dir": tmp_path, "durability": "checkpoint"},
    ):
        with pytest.raises(StartError, match="--backup-dir"):
            ServerConfig(**options)


def test_a_server_that_stops_leaves_no_part_of_a_backup(tmp_path, folder):
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint", "backup_dir": folder}
    with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
        assert client.call("backup", ["b", "one"])["state"] == "running"
    assert os.listdir(folder) in ([], ["b"])
    if os.listdir(folder):
        restore_backup(folder / "b", tmp_path / "restored")
