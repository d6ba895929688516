"""Backups of a server whose models have changed while it ran, and servers that go on from them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from streamrnn.state.backup import BackupProcess, restore_backup
from streamrnn.state.catalogue import CATALOGUE_FILE, parse_content, read_content
from streamrnn.state.record import decode_record
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_client import Client
from streamrnn_server.cli import main
from streamrnn_server.testing import serving
from tests.live.versions import MODELS, NUM_INPUTS, Run, folder
from tests.support.peer import Peer, served, step

NUM_BACKUPS = 3


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, NUM_INPUTS)).astype(np.float32)


def test_a_restored_server_goes_on_with_models_aliases_shares_and_rules(tmp_path, x):
    backups, models_dir = tmp_path / "backups", folder(tmp_path / "models")
    backups.mkdir()
    options = {"models_dir": models_dir, "backup_dir": backups}
    runs = {"old": Run("m@1"), "new": Run("m@3"), "swapped": Run("m@1")}
    with served(MODELS, tmp_path / "state", ("m@1",), **options) as peer:
        for name in ("m@2", "m@3"):
            peer.ok("model", "load", {"name": name})
        for stream, name in {"old": "m@1", "swapped": "m@1", "new": "m@3"}.items():
            peer.ok("open", stream, name, 8)
            for k in range(5):
                y = step(peer, stream, k + 1, x[k])[2]
                np.testing.assert_array_equal(y, runs[stream].step(x[k]))
        peer.ok("model", "swap", {"name": "m@1", "to": "m@2", "streams": "carry"})
        peer.ok("model", "alias", {"name": "m@3", "share": 0.5})
        runs["swapped"].swap("m@2", "carry")
        np.testing.assert_array_equal(step(peer, "swapped", 6, x[5])[2], runs["swapped"].step(x[5]))
        address = peer.socket.getsockopt_string(32)  # LAST_ENDPOINT
        assert main(["state", "backup", address, "b"]) == 0
        peer.ok("model", "alias", {"name": "m@1"})  # the backup knows nothing of it
        told = [peer.ok("open", f"stream {k}", "m", 8) for k in range(40)]
        assert peer.ok("stats")["models"]["m@1"] == 41
    assert told == [[0, 0, 8]] * 40
    assert main(["state", "restore", str(backups / "b"), str(tmp_path / "new")]) == 0
    with served(MODELS, tmp_path / "new", ("m@1",)) as peer:
        for k in range(40):
            peer.ok("open", f"stream {k}", "m", 8)
        shared = peer.ok("stats")["models"]
        assert shared["m@1"] == 0
        assert 10 < shared["m@3"] < 30
        assert shared["m@2"] == 40 - shared["m@3"]
        runs["old"].swap("m@2", "carry")
        for stream, last in {"old": 5, "new": 5, "swapped": 6}.items():
            for k in range(last, 10):
                y = step(peer, stream, k + 1, x[k])[2]
                np.testing.assert_array_equal(y, runs[stream].step(x[k]))


def test_a_backup_while_models_come_and_go_has_the_model_of_every_stream(tmp_path, x):
    """A version is loaded, its stream is stepped, swapped away and closed, and it is unloaded."""
    models_dir, is_enough = folder(tmp_path / "models"), threading.Event()
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint", "num_shards": 2}
    options |= {"models_dir": models_dir, "checkpoint_interval_s": 0.02, "max_loads": 1024}
    with serving({"m@1": MODELS["m@1"]}, **options) as server:
        assert server._disk is not None
        epoch = server._disk.store.epoch
        num_rounds = [0]

        def change():
            peer = Peer(server.endpoints[0])
            with Client(server.endpoints[0], timeout_s=60) as client:
                while not is_enough.is_set():
                    peer.ok("model", "load", {"name": "m@2"})
                    peer.ok("model", "alias", {"name": "m@2"})
                    streams = client.streams([f"stream {k}" for k in range(4)], "m@2")
                    for each in streams:
                        each.step(x[0])
                    client.sync()
                    back = {"name": "m@2", "to": "m@1", "streams": "carry"}
                    peer.ok("model", "swap", back)
                    for each in streams:
                        each.step(x[1])
                        each.close()
                    peer.ok("model", "unload", {"name": "m@2"})
                    num_rounds[0] += 1
            peer.socket.close()

        changes = threading.Thread(target=change)
        changes.start()
        try:
            for k in range(NUM_BACKUPS):
                source, target = tmp_path / "state", tmp_path / f"b{k}"
                BackupProcess(source, target, "1.0", epoch).wait()
        finally:
            is_enough.set()
            changes.join()
        assert num_rounds[0] > 1
    for k in range(NUM_BACKUPS):
        directory = tmp_path / f"new{k}"
        restore_backup(tmp_path / f"b{k}", directory)
        content = parse_content(read_content(directory), directory / CATALOGUE_FILE)
        known = {each.fingerprint for each in content.models.values()}
        known.add(MODELS["m@1"].fingerprint)
        store = StateStore(directory, read_only=True)
        used = {decode_record(data).fingerprint for _, data in store.items(STREAMS)}
        store.close()
        assert used <= known
