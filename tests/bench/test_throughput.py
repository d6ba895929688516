"""The benchmark of throughput: load generator, echo and server as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from streamrnn.engine.engine import Engine
from streamrnn_bench.child_process import start_child
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server import throughput as messages
from streamrnn_bench.server.echo import fixed_reply
from streamrnn_bench.server.load import FIRST_MSGID, make_traffic, stream_names, streams_of_shard
from streamrnn_bench.server.processes import echo, load, serving, temporary_model
from streamrnn_bench.step.cases import Case
from streamrnn_client.protocol import decode_request, decode_response, hash_slot, shard_of

CASE = Case("gru", 3, 8)
GIVE_UP_AFTER_S = 240


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def what_the_engine_says(num_steps, num_streams):
    """Outputs [T, N, O], one stream at a time, with the inputs that `Traffic` promises."""
    x = make_traffic(0, 1, CASE.input_size, CASE.hidden_size).x
    engine = Engine(CASE.model())
    outputs = np.empty((num_steps, num_streams, CASE.hidden_size), dtype=np.float32)
    for stream in range(num_streams):
        for seq in range(1, num_steps + 1):
            outputs[seq - 1, stream] = engine.step({stream: x[(stream + 7 * seq) % len(x)]})[stream]
    return outputs


def test_right_outputs_pass():
    messages.verify_outputs(CASE, what_the_engine_says(3, 70))


def test_one_wrong_bit_is_found():
    outputs = what_the_engine_says(3, 5)
    outputs.view(np.int32)[1, 4, 7] ^= 1
    with pytest.raises(BenchError, match=r"step 2 of stream 4 \(and of 0 more\)"):
        messages.verify_outputs(CASE, outputs)


def test_requests_begin_as_the_protocol_says():
    traffic = make_traffic(0, 3, 2, 4)
    seq, x = b"\x07", b"\xc4\x08" + bytes(8)
    request = decode_request(traffic.heads[2].tobytes() + seq + x + b"\x06")
    assert (request.msgid, request.method) == (FIRST_MSGID + 2, "step")
    assert tuple(request.call) == (stream_names(3)[2], 7, bytes(8), 6, None)


def test_each_stream_is_driven_at_its_own_shard():
    parts = [streams_of_shard(100, shard, 3) for shard in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(100))
    traffic = make_traffic(0, len(parts[1]), 2, 4, numbers=parts[1])
    for k, head in enumerate(traffic.heads):
        request = decode_request(head.tobytes() + b"\x07\xc4\x08" + bytes(8) + b"\x06")
        assert request.msgid == FIRST_MSGID + k
        [name, *_] = request.call
        assert isinstance(name, str)
        assert shard_of(hash_slot(name), 3) == 1
    with pytest.raises(BenchError, match=r"none of 1 streams belongs to shard . of 2"):
        [streams_of_shard(1, shard, 2) for shard in range(2)]


def test_an_echo_is_a_good_reply_with_the_msgid_in_its_place(tmp_path):
    with (
        echo(CASE, tmp_path) as endpoint,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.linger = 0
        dealer.connect(endpoint)
        dealer.send(make_traffic(0, 3, 2, 4).heads[2].tobytes())
        assert dealer.poll(1_000 * GIVE_UP_AFTER_S)
        reply = dealer.recv()
    assert len(reply) == len(fixed_reply(4 * CASE.hidden_size))
    response = decode_response(reply)
    assert response.msgid == FIRST_MSGID + 2
    assert response.error is None
    assert len(response.result[2]) == 4 * CASE.hidden_size


@pytest.mark.slow
def test_verification_rejects_a_server_that_computes_nothing(tmp_path):
    # An echo's replies have the right form, and are checked as the server's are.
    with (
        echo(CASE, tmp_path) as endpoint,
        load(endpoint, CASE, 3, is_echo=True) as generator,
        pytest.raises(BenchError, match="to the bit"),
    ):
        messages.verify_server(generator, CASE, tmp_path)


def test_replies_of_another_length_are_refused(tmp_path):
    with (
        echo(Case("gru", 3, 9), tmp_path) as endpoint,
        load(endpoint, CASE, 3, is_echo=True) as generator,
        pytest.raises(BenchError, match="another step number or length"),
    ):
        generator.ask(drive_s=0.01)


def test_a_step_that_is_refused_is_told():
    with (
        temporary_model(CASE) as model,
        serving(model) as endpoint,
        load(endpoint, Case("gru", 5, 8), 3) as generator,
        pytest.raises(BenchError, match="a step was refused"),
    ):
        generator.ask(drive_s=0.01)


@pytest.mark.slow
def test_throughput_and_roundtrip_with_the_real_server():
    results = [
        *messages.measure_throughput(
            [CASE], num_rounds=2, round_s=0.02, num_streams=20, shards=(1, 2)
        ),
        *messages.measure_roundtrips([CASE], num_rounds=2, round_s=0.02),
    ]
    assert [(each.benchmark, each.case, each.unit, each.reference) for each in results] == [
        ("throughput", "gru 3->8 20 streams float32 cpu", "messages/s", "libzmq_echo"),
        ("throughput", "gru 3->8 20 streams float32 cpu, 2 shards", "messages/s", "libzmq_echo"),
        ("roundtrip", "gru 3->8 p50 float32 cpu", "us", "libzmq_echo"),
        ("roundtrip", "gru 3->8 p99 float32 cpu", "us", "libzmq_echo"),
        ("roundtrip", "gru 3->8 p50 Python client float32 cpu", "us", "libzmq_echo"),
        ("roundtrip", "gru 3->8 receive to send p50 float32 cpu", "us", "step_in_loop"),
    ]
    assert all(each.value > 0 and each.reference_value > 0 for each in results)


def test_a_server_that_does_not_start_says_why(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a model")
    words = r"ended with code .* streamrnn_server said: .*broken"
    with pytest.raises(BenchError, match=words), serving(broken):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_a_stopped_benchmark_leaves_no_process_behind():
    words = ("bench", "throughput", "--cases", "gru:3:8", "--rounds", "100000", "--streams", "5")
    command = [sys.executable, "-m", "streamrnn_server", *words]
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with start_child(command, **pipes) as bench:
        try:
            give_up_at_s = time.monotonic() + GIVE_UP_AFTER_S
            while len(started := children(bench.pid)) < 4 and time.monotonic() < give_up_at_s:
                assert bench.poll() is None
                time.sleep(0.02)
            assert len(started) == 4  # server, echo, two generators
            bench.send_signal(signal.SIGTERM)  # `test_demo` sends the others
            _, said = bench.communicate(timeout=GIVE_UP_AFTER_S)
        finally:
            bench.kill()
    assert bench.returncode == 130, said
    assert said == ""
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
