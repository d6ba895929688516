"""``streamrnn serve`` and ``streamrnn status``, as the programs that users run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from streamrnn import Engine
from streamrnn_client.protocol import encode_request
from tests.support.models import random_model
from tests.support.program import TIMEOUT_S, Program, streamrnn

ROW = np.ones(3, np.float32)


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(3), [("gru", 12)])


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    model.save(path)
    return path


def dealer(endpoint):
    peer: Any = zmq.Context.instance().socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, 0)
    peer.connect(endpoint)
    return peer


def reply_to(peer):
    assert peer.poll(1000 * TIMEOUT_S)
    return msgpack.unpackb(peer.recv())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_reports_ready_and_answers_pending_steps_when_stopped(model, path, tmp_path, number):
    ready_file = tmp_path / "ready.json"
    with Program(f"climate={path}", "--ready-file", ready_file, "--shards", 2) as program:
        assert program.endpoint is not None, program.process.stderr.read()
        assert "climate" in program.ready_line
        assert "(durability none, float32 on cpu, " in program.ready_line
        told = json.loads(ready_file.read_text())
        assert told["precision"] == "float32"
        assert told["pid"] == program.process.pid
        assert told["endpoints"][0] == program.endpoint
        assert len(told["endpoints"]) == 2
        peer = dealer(program.endpoint)
        peer.send(encode_request(0, "open", ["a", None, 256]))
        opened = reply_to(peer)
        if opened[2] is not None:  # the stream's home is the other shard
            assert opened[2][0] == "moved"
            peer.close()
            peer = dealer(opened[2][2]["endpoint"])
            peer.send(encode_request(0, "open", ["a", None, 256]))
            assert reply_to(peer)[3] == [0, 0, 256]
        for seq in range(1, 201):
            peer.send(encode_request(seq, "step", ["a", seq, ROW.tobytes()]))
        # The first reply shows that the messages are on their way.
        replies = [reply_to(peer)]
        code, out, err = program.end(number)
        replies += [reply_to(peer) for _ in range(199)]
        peer.close()
    expected = Engine(model).steps(0, np.tile(ROW, (200, 1)))
    for seq, (_, msgid, error, result) in enumerate(replies, 1):
        assert (msgid, error) == (seq, None)
        assert result == [seq, 0, expected[seq - 1].tobytes()]
    assert (code, out) == (0, "")
    assert "stopped" in err


def test_logs_can_be_json(path):
    with Program(path, "--log-format", "json") as program:
        assert program.endpoint is not None
        code, _, err = program.end()
    assert code == 0
    events = [json.loads(line) for line in err.splitlines()]
    assert {"ready", "stopped"} <= {event["event"] for event in events}


def test_status_tells_how_a_server_is(path):
    with Program(path, "--memory-budget", "1G") as program:
        status = streamrnn("status", program.endpoint)
        text = subprocess.run(status, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        assert "small (0 open)" in text.stdout
        assert "of at most 1 GiB for streams; made way: none" in text.stdout
        assert "trouble     none" in text.stdout
        whole = subprocess.run([*status, "--json"], capture_output=True, timeout=TIMEOUT_S)
        assert json.loads(whole.stdout)["num_streams"] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--bind", "tcp://0.0.0.0:0"], "--insecure"),
        (["--bind", "tcp://*:0"], "--insecure"),
        (["--bind", "nowhere"], "--bind"),
        (["--shards", "0"], "--shards"),
        (["--max-streams", "0"], "--max-streams"),
        (["--idle-limit", "-1"], "--idle-limit"),
        (["--memory-budget", "much"], "--memory-budget"),
        (["--memory-budget", "1M"], "allow more memory or fewer streams"),
        (["--bind", "tcp://127.0.0.1:65535", "--shards", "2"], "shard 1"),
    ],
)
def test_serve_says_why_it_cannot_start(path, arguments, told):
    ended = subprocess.run(
        streamrnn("serve", path, *arguments), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 3
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_models_that_cannot_be_served(path, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-5])
    for models in ([tmp_path / "none.safetensors"], [damaged], [path, path]):
        ended = subprocess.run(
            streamrnn("serve", *models), capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert ended.returncode == 3
        assert len(ended.stderr.splitlines()) == 1


def test_a_taken_address_is_named(path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        ended = subprocess.run(
            streamrnn("serve", path, "--bind", address),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert ended.returncode == 3
    assert address in ended.stderr
    assert "another server" in ended.stderr
