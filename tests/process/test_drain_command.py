"""``streamrnn drain`` between two servers that say what they like."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from streamrnn.errors import ServerError, StateError
from streamrnn_server.commands import drain
from streamrnn_server.commands.drain import Mover, Side

RECORD = [b"record", [[b"name", b"snapshot"]]]


class Server:
    """Has some streams; ``says`` holds what it answers to parts of a drain."""

    def __init__(self, name, has=(), aside=(), **says):
        self.name, self.says = name, says
        self.has, self.aside = list(has), list(aside)
        self.asked: list[str] = []
        self.tick: Any = None  # lets a second pass

    def hello(self):
        return SimpleNamespace(
            durability="checkpoint",
            num_shards=1,
            endpoints=(f"tcp://{self.name}",),
            instance=self.name,
        )

    def call(self, method, params=()):
        if method == "sync":
            return True
        what = params[0]
        self.asked.append(what)
        if what in self.says:
            said = self.says[what]
            return said(params) if callable(said) else said
        if what in ("streams", "arrivals"):
            return [self.has if what == "streams" else self.aside, None]
        if what == "moved":
            gone = [item[0] for item in params[1]]
            self.has = [name for name in self.has if name not in gone]
        value = {"leave": RECORD, "where": None}.get(what, True)
        return [[None, value] for _ in params[1]]


@pytest.fixture
def move(monkeypatch):
    """Return what moves streams from one to the other, with a clock that runs fast."""
    now = [0.0]

    def sleep(wait_s):
        now[0] += wait_s + 1.0

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(drain, "time", clock)
    monkeypatch.setattr(drain.Mover, "_have_written", lambda self: None)

    def mover(source, target):
        target.tick = lambda: sleep(0)
        return Mover(*(Side(each, f"tcp://{each.name}", {}) for each in (source, target)))

    return mover


def test_one_stream_is_told_in_the_singular(move, capsys):
    source, target = Server("a", ["s"]), Server("b")
    assert move(source, target).run() == 0
    assert capsys.readouterr().out == "1 stream moved to tcp://b\n"
    source, target = Server("a", ["s", "t"]), Server("b")
    assert move(source, target).run() == 0
    assert capsys.readouterr().out == "2 streams moved to tcp://b\n"


GARBAGE: list[Any] = [
    None,
    7,
    [],
    [None],
    [[None]],
    [[None, True], [None, True]],
    [[7, True]],
    [[["busy"], None]],
    [[None, "yes"]],
    [[None, [b"", 7]]],
    "text",
    {},
]


@pytest.mark.parametrize("what", ["arrive", "activate", "arrivals"])
@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_garbage_from_the_target_is_told_and_streams_stay(move, what, garbage):
    source = Server("a", ["s"])
    with pytest.raises(ServerError, match="is not what a server of this version answers"):
        move(source, Server("b", **{what: garbage})).run()
    if what == "arrive":
        assert source.has == ["s"]
        assert source.asked[-1] == "stay"


@pytest.mark.parametrize("what", ["leave", "moved", "where", "streams"])
@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_garbage_from_the_source_is_told(move, what, garbage):
    source = Server("a", ["s"], **{what: garbage})
    with pytest.raises(ServerError, match="is not what a server of this version answers"):
        move(source, Server("b", aside=["t"])).run()


def test_a_list_that_goes_back_or_has_no_end_comes_to_one(move):
    target = Server("b", arrivals=lambda params: [["t"], b"same"])
    with pytest.raises(ServerError, match="is not what a server"):
        move(Server("a", ["s"]), target).run()

    def endless(params):
        target.tick()
        return [["t"], (params[1] or b"") + b"x"]

    target = Server("b", arrivals=endless)
    with pytest.raises(StateError, match="has not come to an end with drain arrivals"):
        move(Server("a", ["s"]), target).run()


@pytest.mark.parametrize(
    ("what", "never"), [("arrive", [[None, False]]), ("activate", [[None, False]])]
)
def test_a_target_that_never_comes_to_an_end_is_given_up(move, what, never):
    source = Server("a", ["s"])
    with pytest.raises(StateError, match=f"drain {what} of 1 stream for 180 s.* run it again"):
        move(source, Server("b", **{what: never})).run()
    assert source.asked[-1] == "stay"


@pytest.mark.parametrize("what", ["leave", "moved"])
def test_a_source_that_never_comes_to_an_end_is_given_up(move, what):
    with pytest.raises(StateError, match=f"drain {what} of 1 stream for 180 s"):
        move(Server("a", ["s"], **{what: [[None, None]]}), Server("b")).run()


def test_streams_that_are_busy_for_ever_stay_and_are_named(move, capsys):
    source = Server("a", ["s"], leave=[[["busy", "there is no room", {}], None]])
    assert move(source, Server("b")).run() == 1
    out = capsys.readouterr().out
    assert out == "0 streams moved to tcp://b\nstaying: 1 stream, 's': busy: there is no room\n"


@pytest.mark.parametrize("answers", [True, False])
def test_an_arrival_that_has_gone_to_a_third_server_is_not_served_here(
    move, monkeypatch, capsys, answers
):
    @contextlib.contextmanager
    def third(address, keys):
        assert address == "tcp://third"
        if not answers:
            raise ServerError(f"no connection to {address}")
        yield Server("third")

    monkeypatch.setattr(drain, "connected", third)
    source, target = Server("a", where=[[None, ["tcp://third", 5, 7]]]), Server("b", aside=["s"])
    items: list[Any] = []

    def activate(params):
        items.extend(params[1])
        return [[None, True]]

    target.says["activate"] = activate
    assert move(source, target).run() == answers
    if answers:
        assert items == []
        assert "to another server, at tcp://third" in capsys.readouterr().out
    else:  # that may be where the target was: what has left is compared with what has arrived
        assert items == [["s", 5, 7]]
