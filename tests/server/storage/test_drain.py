"""Streams that are handed from server to server: each is on one side, and goes on to the bit."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import threading
import zlib
from typing import Any

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import ServerError
from streamrnn.state.store import ARRIVALS, MOVED, STREAMS, StateStore
from streamrnn_client import Client
from streamrnn_client.errors import (
    BadParams,
    Busy,
    Conflict,
    Moved,
    NotSupported,
    Quarantined,
    UnknownSnapshot,
    UnknownStream,
    from_wire,
)
from streamrnn_client.protocol import canonical_id
from streamrnn_server.cli import main
from streamrnn_server.commands import drain as drain_command
from streamrnn_server.control.messages import Order, command
from streamrnn_server.control.methods.waiting import Waiting
from streamrnn_server.shard.structs import CommandKind
from streamrnn_server.testing import serving
from tests.support.models import exploding_model, random_model
from tests.support.peer import RARELY_S, Peer
from tests.support.program import TIMEOUT_S, DurableProgram, streamrnn, until

NUM_STREAMS, NUM_STEPS, WINDOW = 12, 20_000, 4
PAUSE_S = 0.001
MODEL = random_model(np.random.default_rng(5), [("lstm", 8)], 2, 1)
ROWS = np.random.default_rng(6).standard_normal((NUM_STREAMS, NUM_STEPS, 2)).astype(np.float32)
DURABILITIES = ("checkpoint", "always")
NAMES = ("here", "gone", "closed")


@pytest.fixture(scope="module")
def expected():
    engine = Engine(MODEL)
    return [engine.steps(k, x) for k, x in enumerate(ROWS)]


def serve(directory, durability="always", models=None, **options):
    options = {"checkpoint_interval_s": RARELY_S, "durability": durability, **options}
    return serving(models or {"m": MODEL}, state_dir=directory, **options)


def drain(source, target):
    return main(["drain", source.endpoints[0], "--to", target.endpoints[0]])


class Load(threading.Thread):
    """Steps all streams one after the other, round after round, until it is stopped."""

    def __init__(self, endpoint, expected):
        super().__init__()
        self.endpoint, self.expected = endpoint, expected
        self.acknowledged = 0
        self.error = None
        self._stopped = threading.Event()

    def run(self):
        try:
            with Client(self.endpoint, timeout_s=60) as client:
                streams = client.streams(range(NUM_STREAMS), window=WINDOW)
                while not self._stopped.wait(PAUSE_S):
                    for k, stream in enumerate(streams):
                        y = stream.step(ROWS[k, self.acknowledged])
                        np.testing.assert_array_equal(y, self.expected[k][self.acknowledged])
                    self.acknowledged += 1
        except BaseException as error:
            self.error = error

    def stop(self):
        self._stopped.set()
        self.join()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("durability", DURABILITIES)
def test_streams_move_under_load_and_clients_follow(tmp_path, expected, durability, capsys):
    with (
        serve(tmp_path / "a", durability, num_shards=2) as source,
        serve(tmp_path / "b", durability) as target,
    ):
        with Client(source.endpoints[0]) as client:
            client.stream("kept").step(ROWS[0, 0])
            client.stream("kept").snapshot("here")
            client.stream("kept").step(ROWS[0, 1])
        load = Load(source.endpoints[0], expected)
        load.start()
        try:
            until(lambda: load.acknowledged > 20 or load.error)
            assert drain(source, target) == 0
            reached = load.acknowledged
            until(lambda: load.acknowledged > reached + 20 or load.error)
        finally:
            load.stop()
        assert f"{NUM_STREAMS + 1} streams moved to" in capsys.readouterr().out
        with Client(target.endpoints[0]) as client:
            assert client.stats()["num_streams_on_disk"] == NUM_STREAMS + 1
            for k in range(NUM_STREAMS):
                stream = client.stream(k)
                last = stream.last_seq
                assert last == load.acknowledged
                y = stream.step(ROWS[k, last - 1], seq=last)
                np.testing.assert_array_equal(y, expected[k][last - 1])
                with pytest.raises(Conflict):
                    stream.step(ROWS[k, last], seq=last)
            kept = client.stream("kept")
            kept.rollback("here")
            np.testing.assert_array_equal(kept.step(ROWS[0, 1]), expected[0][1])
        with Client(source.endpoints[0]) as client:
            assert client.stats()["num_streams"] == 0
            assert client.stream(3).last_seq == load.acknowledged  # it follows, to open as well
    # What has gone is gone after a start too, whatever the journal has of it.
    with serve(tmp_path / "a", durability) as source:
        assert source.control.stats()["num_streams_on_disk"] == 0
        with pytest.raises(Moved) as told:
            told_by(source, "open", [3, None, 0])
        assert told.value.detail["server"] is True


def told_by(server, method, params):
    """Return what a server itself says, without trying again or going where it sends clients."""
    peer = Peer(server.endpoints[0])
    error, result = peer.call(method, *params)
    peer.socket.close()
    if error is not None:
        raise from_wire(error)
    return result


def test_a_client_of_many_rows_follows(tmp_path, expected):
    with (
        serve(tmp_path / "a") as source,
        serve(tmp_path / "b", num_shards=3) as target,
        Client(source.endpoints[0], timeout_s=60) as client,
    ):
        rows = client.rows(range(NUM_STREAMS), window=WINDOW)
        for k in range(3):
            client.batch(rows, ROWS[:, k])
        assert drain(source, target) == 0
        for k in range(3, 9):
            y = client.batch(rows, ROWS[:, k])
            np.testing.assert_array_equal(y, [each[k] for each in expected])
        assert client.hello().num_shards == 3  # all are there: so is the client


class Pair:
    """Two directories, of which servers can be started, and copied as a crash would leave them."""

    def __init__(self, path, durability):
        self.path, self.durability, self.number = path, durability, 0
        self.directories = {"a": path / "a", "b": path / "b"}

    def serve(self, name):
        return serve(self.directories[name], self.durability)

    def crash(self, name):
        """Let the next server of this name find what is on disk now, in the midst of all."""
        self.number += 1
        copy = self.path / f"{name}{self.number}"
        shutil.copytree(self.directories[name], copy)
        self.directories[name] = copy


def ask(server, what, items) -> list[Any]:
    """Ask for a part of a drain until it is done."""
    answers: list[Any] = []

    def is_done():
        nonlocal answers
        answers = told_by(server, "drain", [what, items])
        return all(error is not None or value for error, value in answers)

    until(is_done)
    return answers


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("victims", ["a", "b", "ab"])
@pytest.mark.parametrize("num_done", range(5))
def test_a_crash_between_any_two_parts_leaves_a_stream_on_one_side(
    tmp_path, expected, durability, victims, num_done, monkeypatch
):
    """The parts are done by hand; then one side or both begin with what was on disk then."""
    pair = Pair(tmp_path, durability)
    with pair.serve("a") as source, pair.serve("b") as target:
        with Client(source.endpoints[0]) as client:
            y = client.stream(0, window=WINDOW).steps(ROWS[0, :5])
            np.testing.assert_array_equal(y, expected[0][:5])
            assert client.sync()
        found: Any = None
        if num_done > 0:
            ((_, found),) = ask(source, "leave", [0])
        if num_done > 1:
            assert ask(target, "arrive", [found]) == [[None, True]]
        if num_done > 2:
            mark = [0, zlib.crc32(found[0]), target.endpoints[0]]
            assert ask(source, "moved", [mark]) == [[None, True]]
        if num_done > 3:
            assert ask(target, "activate", [0]) == [[None, True]]
        survivor = {"a": source, "b": target}
        for victim in victims:
            pair.crash(victim)
            bury(survivor[victim], monkeypatch)
        check_and_finish(pair, victims, survivor, num_done, expected)


def bury(server, monkeypatch):
    """Let no drain reach a server that counts as crashed."""
    before = vars(drain_command)["connected"]

    def connected_to_others(address, *args):
        if address in server.endpoints:
            raise ServerError(f"no connection to {address}")
        return before(address, *args)

    monkeypatch.setattr(drain_command, "connected", connected_to_others)


def check_and_finish(pair, victims, survivor, num_done, expected):
    """See that the stream is on one side alone; drain again, and see that it goes on there."""
    with contextlib.ExitStack() as started:
        source, target = (
            started.enter_context(pair.serve(name)) if name in victims else survivor[name]
            for name in "ab"
        )
        is_gone = num_done > 2
        if is_gone:
            with pytest.raises(Moved):
                told_by(source, "open", [0, None, 0])
        elif "a" in victims:  # it goes on here, and nobody holds it
            assert told_by(source, "open", [0, None, 0])[0] == 5
            assert told_by(source, "step", [0, 6, ROWS[0, 5].tobytes()])[0] == 6
        if num_done in (2, 3):  # nobody is served from there, nor can begin such a stream anew
            with pytest.raises(Busy):
                told_by(target, "open", [0, None, 0])
            with pytest.raises(Busy):
                told_by(target, "close", [0])
        elif not is_gone:
            with pytest.raises(UnknownStream):
                told_by(target, "step", [0, 6, ROWS[0, 5].tobytes()])
        assert drain(source, target) == 0
        with pytest.raises(Moved):
            told_by(source, "open", [0, None, 0])
        with Client(target.endpoints[0]) as client:
            stream = client.stream(0)
            last = stream.last_seq
            assert last == (6 if not is_gone and "a" in victims else 5)
            y = stream.steps(ROWS[0, last:20])
            np.testing.assert_array_equal(y, expected[0][last:20])


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_stream_that_comes_back_goes_on_whatever_the_journals_have(
    tmp_path, expected, durability
):
    pair = Pair(tmp_path, durability)
    with pair.serve("a") as first, pair.serve("b") as second:
        with Client(first.endpoints[0]) as client:
            client.stream(0, window=WINDOW).steps(ROWS[0, :5])
        for k, (source, target) in enumerate([(first, second), (second, first)] * 2):
            assert drain(source, target) == 0
            with Client(target.endpoints[0]) as client:
                stream = client.stream(0)
                assert stream.last_seq == 5 + k
                y = stream.step(ROWS[0, 5 + k])
                np.testing.assert_array_equal(y, expected[0][5 + k])
                assert client.sync()
        pair.crash("a")
        pair.crash("b")
    with pair.serve("a") as first, pair.serve("b") as second:
        assert told_by(first, "open", [0, None, 0])[0] == 9
        with pytest.raises(Moved):
            told_by(second, "open", [0, None, 0])


def test_a_stream_that_nobody_moves_on_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("streamrnn_server.control.methods.waiting.HOLD_S", 0.3)
    with serve(tmp_path / "a") as source:
        with Client(source.endpoints[0]) as client:
            client.stream("s").step(ROWS[0, 0])
            assert client.sync()
        ((_, (record, _)),) = ask(source, "leave", ["s"])
        with pytest.raises(Busy, match="on its way from one server to another") as caught:
            told_by(source, "step", ["s", 2, ROWS[0, 1].tobytes()])
        assert caught.value.detail["limit"] == "moving"
        assert told_by(source, "stats", [])["num_records_refused"] == 0
        with Client(source.endpoints[0], timeout_s=TIMEOUT_S) as client:
            assert client.stream("s").step(ROWS[0, 1]) is not None
        mark = ["s", zlib.crc32(record), "tcp://127.0.0.1:1"]
        ((error, _),) = told_by(source, "drain", ["moved", [mark]])
        assert error[0] == "busy"
        assert told_by(source, "open", ["s", None, 0])[0] == 2


def test_a_stream_whose_request_was_lost_on_its_way_to_the_shard_is_asked_for_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("streamrnn_server.control.methods.waiting.HOLD_S", 0.2)
    with serve(tmp_path / "a") as source:
        with Client(source.endpoints[0]) as client:
            client.stream("s").step(ROWS[0, 0])
            assert client.sync()
        methods = source.control._state_methods
        let_go = methods.let_go
        lost: list[Order] = []

        def lose_the_first(*args):
            token, order = let_go(*args)
            if not lost:
                lost.append(order)
                order = Order(0, command(CommandKind.PING, {"seq": 0}))
            return token, order

        monkeypatch.setattr(methods, "let_go", lose_the_first)
        ((_, found),) = ask(source, "leave", ["s"])
        assert found[0] == told_record(source, "s")
        assert lost


def told_record(server, name):
    return server._disk.store.get(STREAMS, canonical_id(name))


def test_what_a_drain_left_there_is_dropped_when_its_server_goes_on_with_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("streamrnn_server.control.methods.waiting.HOLD_S", 0.2)
    with serve(tmp_path / "a") as source, serve(tmp_path / "b") as target:
        with Client(source.endpoints[0]) as client:
            for name in NAMES:
                client.stream(name).step(ROWS[0, 0])
                client.stream(name).snapshot("kept")
        found = dict(zip(NAMES, ask(source, "leave", [*NAMES]), strict=True))
        ask(target, "arrive", [value for _, value in found.values()])
        mark = ["gone", zlib.crc32(found["gone"][1][0]), target.endpoints[0]]
        assert ask(source, "moved", [mark]) == [[None, True]]
        ask(source, "stay", [*NAMES])
        told_by(source, "close", ["closed"])
        with pytest.raises(Busy):
            told_by(target, "open", ["here", None, 0])
        command = ["drain", source.endpoints[0], "--to", target.endpoints[0], "--drop"]
        assert main(command) == 1
        out = capsys.readouterr().out.splitlines()
        assert out[0] == f"1 arrival dropped at {target.endpoints[0]}"
        assert out[1].startswith("left there: 1 stream, 'closed': ")
        assert told_by(target, "open", ["here", None, 0])[0] == 0  # a new one
        assert told_by(target, "open", ["gone", None, 0])[0] == 1
        with pytest.raises(UnknownSnapshot):
            told_by(target, "rollback", ["here", 1, "kept"])
        assert told_by(source, "open", ["here", None, 0])[0] == 1
        assert target._disk is not None
        store = target._disk.store
        assert [key for key, _ in store.items(ARRIVALS, b"")] == [canonical_id("closed")]


def held(source):
    """Bring a stream of one step as far as to be held; return its record."""
    with Client(source.endpoints[0]) as client:
        client.stream("s").step(ROWS[0, 0])
        assert client.sync()
    ((_, (record, _)),) = ask(source, "leave", ["s"])
    return record


def test_nobody_else_makes_a_stream_while_its_arrival_becomes_it(tmp_path):
    with serve(tmp_path / "a") as source, serve(tmp_path / "b") as target:
        record = held(source)
        ask(target, "arrive", [[record, []]])
        with Client(target.endpoints[0]) as client:
            client.stream("other").step(ROWS[0, 5])
        other = told_by(target, "export", ["other"])
        # Its activation has begun, and what a client asks for comes to the shard first.
        activating = target.control._administration._drain._arriving._activating
        activating[canonical_id("s")] = Waiting()
        for method, params in (
            ("import", ["s", other, None]),
            ("open", ["s", None, 4, other]),
            ("fork", ["other", "s"]),
        ):
            with pytest.raises(Busy):
                told_by(target, method, params)
        activating.clear()
        ask(source, "moved", [["s", zlib.crc32(record), target.endpoints[0]]])
        ((_, (_, incarnation, num_changes)),) = ask(source, "where", ["s"])
        ((error, _),) = ask(target, "activate", [["s", incarnation, num_changes + 1]])
        assert error[0] == "mismatch"
        ask(target, "activate", [["s", incarnation, num_changes]])
        told = told_by(target, "step", ["s", 1, ROWS[0, 0].tobytes()])
        assert told[2] == Engine(MODEL).steps("s", ROWS[0, :1]).tobytes()


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_stream_in_memory_there_that_is_not_on_disk_yet_takes_no_arrival(tmp_path, durability):
    with (
        serve(tmp_path / "a", durability) as source,
        serve(tmp_path / "b", durability) as target,
    ):
        record = held(source)
        told_by(target, "open", ["s", None, 0])
        for row in ROWS[0, 7:9]:
            told_by(target, "step", ["s", 0, row.tobytes()])
        ((error, _),) = ask(target, "arrive", [[record, []]])
        assert error is not None
        assert error[0] == "exists"
        ask(source, "stay", ["s"])
        assert told_by(source, "open", ["s", None, 0])[0] == 1
        y = told_by(target, "step", ["s", 0, ROWS[0, 9].tobytes()])[2]
        assert y == Engine(MODEL).steps("s", ROWS[0, 7:10])[-1].tobytes()
        told_by(target, "sync", [None])
        assert told_by(target, "drain", ["arrivals", None, 9]) == [[], None]


@pytest.mark.parametrize("name", [b"", b"n" * 600])
def test_a_snapshot_whose_name_cannot_be_one_leaves_the_disk_writable(tmp_path, name):
    with serve(tmp_path / "a") as source, serve(tmp_path / "b") as target:
        record = held(source)
        for _ in range(2):
            ((error, _),) = told_by(target, "drain", ["arrive", [[record, [[name, record]]]]])
            assert error is not None
            assert error[0] == "bad_params"
        assert told_by(target, "hello", [])["read_only"] is None


def test_a_snapshot_taken_between_two_drains_of_one_record_moves_too(tmp_path, expected):
    with serve(tmp_path / "a") as source, serve(tmp_path / "b") as target:
        with Client(source.endpoints[0]) as client:
            client.stream("s").step(ROWS[0, 0])
            assert client.sync()
            ((_, found),) = ask(source, "leave", ["s"])
            assert ask(target, "arrive", [found]) == [[None, True]]
            assert ask(source, "stay", ["s"]) == [[None, True]]
            client.stream("s").snapshot("here")
        ((_, again),) = ask(source, "leave", ["s"])
        assert again[0] == found[0]  # or this shows nothing
        assert ask(source, "stay", ["s"]) == [[None, True]]
        assert drain(source, target) == 0
        with Client(target.endpoints[0]) as client:
            stream = client.stream("s")
            stream.step(ROWS[0, 7])
            stream.rollback("here")
            np.testing.assert_array_equal(stream.step(ROWS[0, 1]), expected[0][1])


def test_what_cannot_move_stays_and_is_told(tmp_path, capsys):
    models = {"m": MODEL, "n": exploding_model()}
    other = {"m": random_model(np.random.default_rng(8), [("lstm", 8)], 2, 1), "n": models["n"]}
    with (
        serve(tmp_path / "a", models=models) as source,
        serve(tmp_path / "b", models=other) as target,
    ):
        with Client(source.endpoints[0]) as client:
            client.stream("of another model", "m").step(ROWS[0, 0])
            frozen = client.stream("frozen", "n")
            with pytest.raises(Quarantined):
                frozen.steps([[1.0]] * 1000)
            client.stream("taken", "n").step([1.0])
            client.stream("moves", "n").step([1.0])
        with Client(target.endpoints[0]) as client:
            client.stream("taken", "n").step([0.5])
            assert client.sync()
        assert drain(source, target) == 1
        told = capsys.readouterr().out
        assert "1 stream moved to" in told
        for name, code in (("of another model", "mismatch"), ("frozen", "quarantined")):
            assert f"staying: 1 stream, {name!r}: {code}" in told
        assert "staying: 1 stream, 'taken': exists" in told
        assert told_by(source, "open", ["of another model", "m", 0])[0] == 1
        assert told_by(source, "open", ["taken", "n", 0])[0] == 1
        assert told_by(target, "open", ["taken", "n", 0])[0] == 1


@pytest.mark.parametrize(
    "params",
    [
        *([], ["leave"], ["nothing", []], [7, []], ["leave", "s"], ["leave", ["s"] * 1025]),
        *(["streams", None, 0], ["streams", "a", 5], ["arrivals", None, True], ["where", {}]),
    ],
)
def test_parameters_that_make_no_sense_are_refused(tmp_path, params):
    with serve(tmp_path / "a") as server, pytest.raises(BadParams):
        told_by(server, "drain", params)


def test_items_that_make_no_sense_fail_alone(tmp_path):
    with serve(tmp_path / "a") as server:
        with Client(server.endpoints[0]) as client:
            client.stream("s").step(ROWS[0, 0])
            assert client.sync()
        items: dict[str, list[Any]] = {
            "leave": [True, "", None, "nobody"],
            "arrive": [None, [b"", []], [b"x" * 99, []], [7, []], [b"", [b""]]],
            "moved": [None, ["s", 0, "tcp://a:1"], ["s", 0, "no"], ["s", "", "tcp://a:1"], []],
            "activate": [None, 1.5],
        }
        for what, each in items.items():
            answers = told_by(server, "drain", [what, each])
            assert len(answers) == len(each)
            assert all(error is not None for error, _ in answers), answers
        assert told_by(server, "drain", ["where", ["s", "nobody"]]) == [[None, None]] * 2
        assert told_by(server, "step", ["s", 2, ROWS[0, 1].tobytes()])[0] == 2


def test_a_server_without_a_disk_hands_nothing_over(tmp_path, capsys):
    with serving({"m": MODEL}) as server, serve(tmp_path / "a") as other:
        with pytest.raises(NotSupported):
            told_by(server, "drain", ["streams", None, 1])
        for both in ((server, other), (other, server)):
            assert drain(*both) == 1
            assert "keeps nothing on disk" in capsys.readouterr().err
        assert drain(other, other) == 1
        assert "the same server" in capsys.readouterr().err


# ---- kill -9 ------------------------------------------------------------------------------------


def sides(source, target, num_streams):
    """Look, while nobody runs, on which side each stream is; see that it is one."""
    tables = {}
    for name, directory in (("a", source), ("b", target)):
        store = StateStore(directory, read_only=True)
        for table in (STREAMS, MOVED, ARRIVALS):
            tables[name, table] = {key for key, _ in store.items(table)}
        store.close()
    for k in range(num_streams):
        key = canonical_id(k)
        is_here = key in tables["a", STREAMS]
        is_there = key in tables["b", STREAMS] or key in tables["b", ARRIVALS]
        assert is_here != (key in tables["a", MOVED]), k
        assert is_here or is_there, k
        assert not (is_here and key in tables["b", STREAMS]), k
    return len(tables["a", STREAMS])


@pytest.mark.slow
@pytest.mark.parametrize("durability", DURABILITIES)
def test_kill_9_of_either_side_or_of_who_drains_leaves_every_stream_on_one_side(
    tmp_path, durability
):
    num_streams, num_rounds = 600, 6
    draw = random.Random(7)
    path = tmp_path / "m.safetensors"
    MODEL.save(path)
    expected = Engine(MODEL).steps("s", ROWS[0, :20])
    with (
        DurableProgram(path, tmp_path / "a", durability) as source,
        DurableProgram(path, tmp_path / "b", durability) as target,
    ):
        source.start()
        target.start()
        with Client(source.endpoint, timeout_s=60) as client:
            for stream in client.streams(range(num_streams), window=2):
                stream.steps(ROWS[0, :3])
            assert client.sync()
        command = streamrnn("drain", source.endpoint, "--to", target.endpoint)
        for _ in range(num_rounds):
            mover = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            threading.Event().wait(draw.uniform(0.3, 1.5))
            victim = draw.choice(["a", "b", "mover"])
            if victim == "mover":
                mover.send_signal(signal.SIGKILL)
            (source if victim != "b" else target).kill()
            (target if victim != "b" else source).kill()
            mover.kill()
            mover.communicate(timeout=TIMEOUT_S)
            num_left = sides(tmp_path / "a", tmp_path / "b", num_streams)
            source.start()
            target.start()
            if num_left == 0:
                break
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        with Client(target.endpoint, timeout_s=60) as client:
            for stream in client.streams(range(num_streams)):
                assert stream.last_seq == 3
                np.testing.assert_array_equal(stream.steps(ROWS[0, 3:20]), expected[3:20])
        source.kill()
        target.kill()
    assert sides(tmp_path / "a", tmp_path / "b", num_streams) == 0
