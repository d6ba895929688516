"""Versions and aliases of models, loaded while a server runs."""

from __future__ import annotations

import os

import numpy as np
import pytest

from streamrnn.errors import StartError
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.testing import serving
from tests.live.versions import MODELS, NUM_INPUTS, Run, folder
from tests.support.peer import Peer, served, step, until


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, NUM_INPUTS)).astype(np.float32)


@pytest.fixture
def models_dir(tmp_path):
    return folder(tmp_path / "models")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def named(peer):
    return {each["name"]: each for each in peer.ok("models")}


def answers_as(peer, stream, name, x, first_seq=1):
    run = Run(name)
    for k, row in enumerate(x):
        np.testing.assert_array_equal(step(peer, stream, first_seq + k, row)[2], run.step(row))


def test_new_streams_get_the_version_that_the_alias_means_then(models_dir, x):
    with serving({"m@1": MODELS["m@1"]}, models_dir=models_dir) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "a", "m", 8)
        assert peer.ok("model", "load", {"name": "m@2"})["name"] == "m@2"
        peer.ok("open", "b", "m", 8)
        told = {"alias": "m", "model": "m@2"}
        assert peer.ok("model", "alias", {"name": "m@2"}) == told
        peer.ok("open", "c", None, 8)
        for stream, name in {"a": "m@1", "b": "m@1", "c": "m@2"}.items():
            answers_as(peer, stream, name, x[:3])
            assert peer.ok("open", stream, "m", 8)[0] == 3
            assert peer.ok("open", stream, name, 8)[0] == 3
        assert peer.error("open", "c", "m@1", 8)[1]["has"] == "m@2"
        peer.ok("model", "alias", {"name": "m@1"})  # and back
        peer.ok("open", "d", "m", 8)
        answers_as(peer, "d", "m@1", x[:3])
        peer.socket.close()


def test_what_was_loaded_comes_back_after_a_restart_without_the_folder(models_dir, state, x):
    options = {"models_dir": models_dir}
    with served(MODELS, state, ("m@1",), **options) as peer:
        peer.ok("model", "load", {"name": "m@3"})
        peer.ok("model", "load", {"name": "new@1", "file": "m@2.safetensors"})
        peer.ok("model", "alias", {"name": "m@3"})
        peer.ok("open", "a", "m", 8)
        answers_as(peer, "a", "m@3", x[:5])
    for path in models_dir.iterdir():
        path.unlink()
    with served(MODELS, state, ("m@1",)) as peer:
        assert peer.ok("open", "a", "m", 8) == [5, 5, 8]
        run = Run("m@3")
        for row in x[:5]:
            run.step(row)
        np.testing.assert_array_equal(step(peer, "a", 6, x[5])[2], run.step(x[5]))
        peer.ok("open", "b", "new", 8)
        told = named(peer)
        assert told["m"]["version"] == "m@3"
        assert told["m@3"]["is_current"]
        assert not told["m@1"]["is_current"]
        assert told["new@1"]["fingerprint"] == MODELS["m@2"].fingerprint
        stats = peer.ok("stats")
        assert stats["aliases"] == {"new": "new@1", "m": "m@3"}
        assert stats["models"] == {"m@1": 0, "m@3": 1, "new@1": 1}


def test_a_model_whose_copy_was_changed_starts_no_server(models_dir, state):
    with served(MODELS, state, ("m@1",), models_dir=models_dir) as peer:
        peer.ok("model", "load", {"name": "m@2"})
    (path,) = (state / "models").iterdir()
    path.write_bytes((models_dir / "m@3.safetensors").read_bytes())
    with pytest.raises(StartError, match="m@2"), served(MODELS, state, ("m@1",)):
        pass


def test_what_a_crash_has_left_of_a_load_is_deleted_at_the_next_start(models_dir, state):
    with served(MODELS, state, ("m@1",), models_dir=models_dir) as peer:
        peer.ok("model", "load", {"name": "m@2"})
    (copy,) = (state / "models").iterdir()
    for name in (f".{copy.name}-half", "0" * 64 + ".safetensors"):  # of no model that is known
        (state / "models" / name).write_bytes(b"half")
    (state / ".models.json-half").write_bytes(b"half")
    before = set(state.iterdir()) - {state / ".models.json-half"}
    with served(MODELS, state, ("m@1",)) as peer:
        assert list(named(peer)) == ["m@2", "m@1", "m"]
    assert list((state / "models").iterdir()) == [copy]
    assert set(state.iterdir()) == before


def test_a_catalogue_that_the_server_before_changes_at_its_end_is_not_lost(models_dir, state):
    with served(MODELS, state, ("m@1",), models_dir=models_dir) as peer:
        catalogue = Catalogue(state)  # of a server that has begun to start
        peer.ok("model", "load", {"name": "m@2"})
    with pytest.raises(StartError, match="start it again"):
        catalogue.take_over()
    assert len(list((state / "models").iterdir())) == 1


def test_another_model_of_a_name_that_was_loaded_starts_no_server(models_dir, state):
    with served(MODELS, state, ("m@1",), models_dir=models_dir) as peer:
        peer.ok("model", "load", {"name": "m@2"})
    with (
        pytest.raises(StartError, match="another version"),
        served({"m@2": MODELS["m@3"]}, state, ("m@2",)),
    ):
        pass


@pytest.mark.parametrize(
    "file",
    ["../m@2.safetensors", "/etc/passwd", ".", "..", "", "sub/m.safetensors", "a\0b", "link"],
)
def test_only_files_of_the_folder_itself_are_loaded(models_dir, tmp_path, file):
    MODELS["m@2"].save(tmp_path / "m@2.safetensors")
    (models_dir / "link").symlink_to(tmp_path / "m@2.safetensors")
    with serving({"m@1": MODELS["m@1"]}, models_dir=models_dir) as server:
        peer = Peer(server.endpoints[0])
        assert peer.error("model", "load", {"name": "m@2", "file": file})[0] == "bad_params"
        assert list(named(peer)) == ["m@1", "m"]
        peer.socket.close()


def test_what_appears_in_a_watched_folder_is_loaded(models_dir, x):
    (models_dir / "broken@1.safetensors").write_bytes(b"half")
    (models_dir / "m@2.safetensors").rename(models_dir / "later")
    options = {"models_dir": models_dir, "watch_models": True}
    with serving({"m@1": MODELS["m@1"]}, **options) as server:
        peer = Peer(server.endpoints[0])
        until(lambda: "m@3" in named(peer))
        assert "broken@1" not in named(peer)
        assert "m@2" not in named(peer)
        (models_dir / "later").rename(models_dir / "m@2.safetensors")
        until(lambda: "m@2" in named(peer))
        assert named(peer)["m"]["version"] == "m@1"
        peer.ok("open", "a", "m@2", 8)
        answers_as(peer, "a", "m@2", x[:3])
        peer.socket.close()


def test_a_server_without_a_folder_loads_nothing():
    with serving({"m@1": MODELS["m@1"]}) as server:
        peer = Peer(server.endpoints[0])
        assert peer.error("model", "load", {"name": "m@2"})[0] == "not_supported"
        peer.socket.close()


def test_no_more_models_are_loaded_than_there_is_space_for(models_dir):
    with serving({"m@1": MODELS["m@1"]}, models_dir=models_dir, max_loads=1) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("model", "load", {"name": "m@2"})
        assert peer.ok("model", "unload", {"name": "m@2"}) == {"name": "m@2"}
        assert peer.error("model", "load", {"name": "m@3"})[0] == "not_supported"
        peer.socket.close()


def test_the_same_file_may_be_loaded_again_and_another_may_not(models_dir):
    with serving({"m@1": MODELS["m@1"]}, models_dir=models_dir) as server:
        peer = Peer(server.endpoints[0])
        for _ in range(2):
            peer.ok("model", "load", {"name": "m@2"})
        refusal = peer.error("model", "load", {"name": "m@2", "file": "m@3.safetensors"})
        assert refusal[0] == "exists"
        peer.socket.close()


@pytest.mark.parametrize(
    "params",
    [
        [],
        ["load"],
        ["load", {}],
        ["load", {"name": 7}],
        ["load", {"name": "x" * 129}],
        ["load", {"name": "a\nb"}],
        *(["load", {"name": name, "file": "m@3.safetensors"}] for name in ("@", "@1", "m@")),
        ["load", {"name": "m@2", "more": 1}],
        ["fly", {"name": "m@2"}],
        [7, {}],
        ["alias", {"name": "m@1", "share": 2}],
        ["alias", {"name": "m@1", "share": float("nan")}],
        ["swap", {"name": "m@1", "to": "m@1"}],
        ["swap", {"name": "m@1", "to": "m@2", "streams": "burn"}],
    ],
)
def test_bad_parameters_change_nothing(models_dir, params):
    with serving({"m@1": MODELS["m@1"], "m@2": MODELS["m@2"]}, models_dir=models_dir) as server:
        peer = Peer(server.endpoints[0])
        before = peer.ok("models")
        assert peer.error("model", *params)[0] == "bad_params"
        assert peer.ok("models") == before
        peer.socket.close()


def test_a_version_that_streams_use_stays(models_dir, state, x):
    with served(MODELS, state, ("m@1", "m@2"), models_dir=models_dir) as peer:
        assert peer.error("model", "unload", {"name": "m@2"})[0] == "exists"  # new streams get it
        peer.ok("open", "a", "m@1", 8)
        answers_as(peer, "a", "m@1", x[:3])
        assert peer.error("model", "unload", {"name": "m@1"})[0] == "exists"
        run = Run("m@1")
        for row in x[:3]:
            run.step(row)
        np.testing.assert_array_equal(step(peer, "a", 4, x[3])[2], run.step(x[3]))
        peer.ok("close", "a")
        assert peer.ok("model", "unload", {"name": "m@1"}) == {"name": "m@1"}
        assert peer.error("open", "a", "m@1", 8)[0] == "unknown_model"
        assert list(named(peer)) == ["m@2", "m"]
        peer.ok("open", "a", "m", 8)
        answers_as(peer, "a", "m@2", x[:3])


def test_a_stream_on_disk_of_a_version_unloaded_goes_on_when_it_is_loaded_again(
    models_dir, state, x
):
    with served(MODELS, state, ("m@2",), models_dir=models_dir) as peer:
        peer.ok("model", "load", {"name": "m@1"})
        peer.ok("open", "a", "m@1", 8)
        answers_as(peer, "a", "m@1", x[:3])
    with served(MODELS, state, ("m@2",), models_dir=models_dir) as peer:
        peer.ok("model", "unload", {"name": "m@1"})
        assert os.listdir(state / "models") == []
        assert peer.error("step", "a", 4, x[3].tobytes())[0] == "mismatch"
        peer.ok("model", "load", {"name": "m@1"})
        run = Run("m@1")
        for row in x[:3]:
            run.step(row)
        np.testing.assert_array_equal(step(peer, "a", 4, x[3])[2], run.step(x[3]))


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_models_that_come_after_one_has_gone_are_as_durable(models_dir, state, x, durability):
    options = {"models_dir": models_dir, "durability": durability}
    run = Run("m@3")
    with served(MODELS, state, ("m@1",), **options) as peer:
        peer.ok("open", "old", "m@1", 8)
        answers_as(peer, "old", "m@1", x[:3])
        peer.ok("model", "load", {"name": "m@2"})
        peer.ok("open", "gone", "m@2", 8)
        answers_as(peer, "gone", "m@2", x[:3])
        peer.ok("close", "gone")
        peer.ok("model", "unload", {"name": "m@2"})
        peer.ok("model", "load", {"name": "m@3"})
        peer.ok("open", "a", "m@3", 8)
        for k in range(5):
            np.testing.assert_array_equal(step(peer, "a", k + 1, x[k])[2], run.step(x[k]))
    with served(MODELS, state, ("m@1",), **options) as peer:
        np.testing.assert_array_equal(step(peer, "a", 6, x[5])[2], run.step(x[5]))
        assert step(peer, "old", 4, x[3])[0] == 4
        assert peer.error("step", "gone", 4, x[3].tobytes())[0] == "unknown"


def test_a_share_of_new_streams_is_chosen_by_their_ids(models_dir, x):
    num_streams = 2000
    ids = [f"stream {k}" for k in range(num_streams)]
    with serving({"m@2": MODELS["m@2"], "m@1": MODELS["m@1"]}, models_dir=models_dir) as server:
        peer = Peer(server.endpoints[0])
        told = peer.ok("model", "alias", {"name": "m@2", "share": 0.1})
        assert told == {"alias": "m", "model": "m@1", "share": 0.1, "share_of": "m@2"}
        peer.ok("open", ids, "m", 8)
        first = peer.ok("stats")["models"]
        assert 0.07 < first["m@2"] / num_streams < 0.13
        for stream in ids:
            peer.ok("close", stream)
        for stream in ids[::2]:
            peer.ok("open", stream, "m", 8)
        peer.ok("open", ids[1::2], "m", 8)
        assert peer.ok("stats")["models"] == first
        peer.ok("model", "alias", {"name": "m@1"})
        peer.ok("open", [f"other {k}" for k in range(100)], "m", 8)
        assert peer.ok("stats")["models"]["m@2"] == first["m@2"]
        peer.socket.close()
