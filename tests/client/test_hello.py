"""What a server says of itself and its models, when it is none of ours."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_client import Client, errors
from streamrnn_client.inputs import ModelInfo
from streamrnn_client.server_info import ServerInfo
from tests.support.fake_server import FakeServer, SocketServer

ADDRESS = "tcp://127.0.0.1:7070"
HELLO: dict[str, Any] = {
    "protocol": 1,
    "server": "1.0",
    "instance": "first",
    "durability": "none",
    "arithmetic": "fake",
    "endpoints": [ADDRESS],
    "num_shards": 1,
    "default_window": 16,
    "max_window": 256,
    "max_message_bytes": 8 * 2**20,
    "max_in_flight": 1000,
    "max_batch": 4096,
    "models": ["sum"],
    "features": ["batch_columns"],
}
MODEL: dict[str, Any] = {
    "name": "m",
    "fingerprint": "f",
    "row_bytes": 64,
    "spec": {"inputs": [{"name": "a", "kind": "numeric"}], "outputs": [{"name": "y"}]},
}
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.just(0)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NO_TEXTS: list[Any] = [None, 7, 1.5, True, b"x", ["x"], {"x": 1}]
NO_NUMBERS: list[Any] = [None, 0, -1, 1.0, True, "1", b"1", [1], {}]
NO_LISTS: list[Any] = [
    None,
    7,
    1.5,
    True,
    "tcp://127.0.0.1:7070",
    b"x",
    {"x": 1},
    [1],
    ["x", None],
    [["x"]],
]
KINDS: dict[type, list[Any]] = {str: NO_TEXTS, int: NO_NUMBERS, list: NO_LISTS}


def deep(levels):
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_the_hello_that_is_changed_here_is_read_and_is_all_that_a_client_knows():
    info = ServerInfo.from_map({**HELLO, "new": 1}, ADDRESS)
    assert set(ServerInfo.__dataclass_fields__) == set(HELLO) - {"protocol"}
    for name, value in info.__dict__.items():
        assert value == (tuple(HELLO[name]) if isinstance(value, tuple) else HELLO[name])


@pytest.mark.parametrize("name", sorted(set(HELLO) - {"protocol"}))
def test_a_field_of_another_type_is_named(name):
    for value in (*KINDS[type(HELLO[name])], deep(900)):
        with pytest.raises(
            errors.NotSupported, match=f"{name} in hello is .*expected was"
        ) as caught:
            ServerInfo.from_map({**HELLO, name: value}, ADDRESS)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("version", [None, 2, True, 1.0, "1", [1]])
def test_another_version_of_the_protocol_is_named(version):
    with pytest.raises(errors.NotSupported, match="speaks protocol"):
        ServerInfo.from_map({**HELLO, "protocol": version}, ADDRESS)


@given(st.dictionaries(st.sampled_from(sorted(HELLO)), VALUES, max_size=3), VALUES)
def test_any_hello_is_read_or_refused(changes, other):
    for reply in ({**HELLO, **changes}, other):
        try:
            info = ServerInfo.from_map(reply, ADDRESS)
        except errors.NotSupported:
            continue
        assert len(info.endpoints) == info.num_shards


@given(st.dictionaries(st.sampled_from(sorted(MODEL)), VALUES), VALUES, VALUES)
def test_any_description_of_a_model_is_read_or_refused(changes, other, inner):
    spec = {"inputs": inner, "outputs": [{"name": "y"}]}
    for entry in ({**MODEL, **changes}, other, {**MODEL, "spec": spec}):
        try:
            ModelInfo(entry)
        except errors.NotSupported:
            continue


@pytest.mark.parametrize("reply", [7, "models", {"name": "m"}, [7], [None], [{"name": ["m"]}]])
def test_models_that_cannot_be_read_are_an_error_of_the_protocol(monkeypatch, reply):
    monkeypatch.setattr(FakeServer, "_models", lambda self, call, shard: reply)
    with (
        SocketServer() as server,
        Client(server.address) as client,
        pytest.raises(errors.NotSupported),
    ):
        client.models()
