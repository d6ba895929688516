"""Commands that ask a server: whatever is wrong with it, one line says so."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from streamrnn_client import Client
from streamrnn_client.protocol import decode_request, encode_response
from streamrnn_server.cli import main
from streamrnn_server.commands import connection
from tests.support.fake_server import SocketServer

DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
GARBAGE: list[Any] = [
    None,
    7,
    2**63,
    float("nan"),
    "text",
    b"bin",
    [],
    {},
    [[]],
    [None, None],
    [[None, 7]],
    [["a"], b"a"],
    {"server": "1"},
    {7: 7},
    {b"a": b"b"},
    {"state": "done"},
    {"state": ["running"], "alias": 7},
    {"user": "alice", "uptime_s": "long"},
    {"name": 7, "fingerprint": None},
    [{"name": "m"}],
    DEEP,
]
COMMANDS: list[tuple[str, ...]] = [
    ("status", "ADDRESS"),
    ("status", "ADDRESS", "--json"),
    ("top", "ADDRESS", "--interval", "0.01"),
    ("model", "list", "ADDRESS"),
    ("model", "load", "ADDRESS", "m@2"),
    ("model", "load", "ADDRESS", "m@2", "--json"),
    ("model", "unload", "ADDRESS", "m@2"),
    ("model", "shadow", "ADDRESS", "m@1", "m@2"),
    ("state", "backup", "ADDRESS", "b"),
    ("drain", "ADDRESS", "--to", "OTHER"),
    ("drain", "OTHER", "--to", "ADDRESS"),
    ("drain", "OTHER", "--to", "ADDRESS", "--drop"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Let no client wait for long."""

    def impatient_client(address, timeout_s, **keys):
        return Client(address, timeout_s=min(timeout_s, 0.3), resend_s=0.1, **keys)

    monkeypatch.setattr(connection, "Client", impatient_client)


@pytest.fixture(scope="module")
def servers():
    both = [SocketServer(durability="checkpoint", instance=name) for name in ("first", "other")]
    yield both
    for each in both:
        each.stop()


def complaint(capsys, *words):
    """Run a command that fails; return its one line."""
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("streamrnn: error: ")
    assert error.count("\n") == 1
    return error


def handled(server, answers, payload, shard):
    """Answer some methods with what stands in ``answers``, and others as always."""
    request = decode_request(payload)
    if request.method in answers:
        return encode_response(request.msgid, answers[request.method])
    return server.answer(payload, shard)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("knows_hello", [True, False])
def test_a_server_that_answers_garbage_is_told_in_a_line(servers, capsys, words, knows_hello):
    strange, other = servers
    for value in GARBAGE:
        methods = ("stats", "models", "model", "sync", "backup", "drain")
        answers = dict.fromkeys(methods if knows_hello else (*methods, "hello"), value)
        if words[0] == "state" and answers["sync"] is None:
            answers["sync"] = True
        strange.server.handle = functools.partial(handled, strange.server, answers)
        others = {"sync": True, "drain": [[], None]}
        other.server.handle = functools.partial(handled, other.server, others)
        addresses = {"ADDRESS": strange.address, "OTHER": other.address}
        named = [addresses.get(word, word) for word in words]
        if words[0] == "model" and words[1] != "shadow" and isinstance(value, dict):
            main(named)  # whatever a server tells of a version can be read
            capsys.readouterr()
        else:
            complaint(capsys, *named)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "address", ["localhost", "", "tcp://", "tcp://:", "x://y", "tcp://\udcff:1"]
)
def test_an_odd_address_is_told_in_a_line(servers, capsys, words, address):
    if words[0] == "state" and not address.startswith("tcp://"):
        return  # it is a folder's name
    _, other = servers
    for each in servers:
        each.server.handle = each.server.answer
    addresses = {"ADDRESS": address, "OTHER": other.address}
    complaint(capsys, *(addresses.get(word, word) for word in words))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_who_cannot_be_reached_or_wants_other_keys_is_told_in_a_line(
    servers, capsys, tmp_path, words
):
    _, other = servers
    addresses = {"ADDRESS": "tcp://127.0.0.1:1", "OTHER": other.address}
    named = [addresses.get(word, word) for word in words]
    other.server.handle = functools.partial(
        handled, other.server, {"sync": True, "drain": [[], None]}
    )
    assert "no connection" in complaint(capsys, *named)
    empty = tmp_path / "a.key"
    empty.write_bytes(b"\xff\0")
    for keys in (
        ("--curve-key", tmp_path / "none"),
        ("--curve-key", tmp_path / "none", "--server-key", tmp_path / "none"),
        ("--curve-key", empty, "--server-key", empty),
        ("--curve-key", tmp_path, "--server-key", tmp_path),
    ):
        complaint(capsys, *named, *map(str, keys))


def test_who_answers_no_method_is_told_in_a_line(servers, capsys):
    strange, _ = servers
    for reply in (b"", b"\xc1", b"HTTP/1.1 200 OK", b"\x93\x01\x00", bytes(100)):
        strange.server.handle = lambda payload, shard, reply=reply: reply
        assert "is it another service" in complaint(capsys, "status", strange.address)
