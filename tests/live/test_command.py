"""``streamrnn model`` against a running server."""

from __future__ import annotations

import json

import pytest

from streamrnn_client import Client
from streamrnn_server.cli import main
from streamrnn_server.testing import serving
from tests.live.versions import MODELS, folder


@pytest.fixture
def address(tmp_path):
    options = {"state_dir": tmp_path / "state", "durability": "checkpoint"}
    models_dir = folder(tmp_path / "models")
    with serving({"m@1": MODELS["m@1"]}, models_dir=models_dir, **options) as server:
        yield server.endpoints[0]


def test_a_version_comes_is_swapped_to_and_the_old_one_goes(address, capsys):
    def say(*words):
        assert main(["model", words[0], address, *words[1:]]) == 0
        return capsys.readouterr().out

    with Client(address) as client:
        stream = client.stream("a")
        stream.step([1.0, 2.0, 3.0])
        say("load", "m@2")
        assert "share" not in say("alias", "m@1")
        assert "10.00%" in say("alias", "m@2", "--share", "0.1")
        assert say("swap", "m@1", "m@2", "--streams", "carry") == "new streams of m get m@2\n"
        stream.step([1.0, 2.0, 3.0])
        assert client.models()["m"].about["version"] == "m@2"
        listed = json.loads(say("list", "--json"))
        open_streams = {each["name"]: each["streams"] for each in listed}
        assert open_streams == {"m@1": 0, "m@2": 1, "m": None}
        assert "go on as m@2 (carry)" in say("list")
        say("unload", "m@1")
        stream.step([1.0, 2.0, 3.0])
        assert client.stream("b", model="m").model.fingerprint == MODELS["m@2"].fingerprint
        assert client.stream("c").model.fingerprint == MODELS["m@2"].fingerprint


def test_what_cannot_be_done_is_one_line(address, capsys):
    assert main(["model", "unload", address, "m@1"]) == 1
    assert "let another version be it first" in capsys.readouterr().err
    assert main(["model", "load", address, "m@9"]) == 1
    assert "m@9.safetensors" in capsys.readouterr().err
