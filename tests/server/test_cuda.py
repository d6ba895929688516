"""The server with a GPU, in numba's simulator."""

from __future__ import annotations

import io
import threading
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from streamrnn import Engine
from streamrnn.errors import DeviceError, StartError
from streamrnn.kernels.cuda import compiler as support
from streamrnn.kernels.cuda import network, transfer
from streamrnn.kernels.cuda.tensor_cores import TensorShape
from streamrnn.kernels.cuda.tiles import TileShape
from streamrnn.model.spec import InputSpec
from streamrnn_client import Client
from streamrnn_server.config import Endpoint, ServerConfig
from streamrnn_server.event_log import EventLog
from streamrnn_server.server import Server
from streamrnn_server.shard.gpu import loop as gpu
from streamrnn_server.startup import device as choosing
from streamrnn_server.testing import serving
from tests.cuda.fake import compile_and_check, make_driver
from tests.cuda.grid import launch
from tests.cuda.host_path import CHECKS
from tests.support.models import random_inputs, random_model
from tests.support.peer import RARELY_S, Peer, step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not support.SIMULATED, reason="runs in the simulator"),
]


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr("numba.cuda.simulator.kernel.FakeCUDAKernel.__call__", launch)
    tiling = network.Tiling((TileShape(1, 1, 4, 1, 2), TileShape(1, 1, 1, 1, 3)), 8)
    monkeypatch.setattr(network, "TILING", tiling)
    tensor_tiling = network.Tiling((TensorShape(1, 1, 1, 4),), 8)
    monkeypatch.setattr(network, "TENSOR_TILING", tensor_tiling)


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(11)
    return {
        "lstm": random_model(
            rng, [("lstm", 3)], inputs=[InputSpec("a", difference=True), InputSpec("b")], outputs=2
        ),
        "gru": random_model(rng, [("gru", 2)], inputs=1, outputs=3, head="softmax"),
    }


@contextmanager
def served(models, **options):
    with serving(models, device="cuda", max_streams=6, **options) as server:
        peer = Peer(server.endpoints[0])
        try:
            yield peer
        finally:
            peer.socket.close()


def expected_of(model, x):
    return Engine(model, device="cuda", max_streams=1).steps("a", x)


def test_a_client_s_steps_are_the_engine_s_to_the_bit(models, rng):
    x = random_inputs(rng, models["lstm"].spec, 3, 4)
    z = random_inputs(rng, models["gru"].spec, 2, 1)
    expected = [expected_of(models["lstm"], each) for each in x]
    words = [expected_of(models["gru"], each) for each in z]
    with (
        serving(models, device="cuda", max_streams=6) as server,
        Client(server.endpoints[0]) as client,
    ):
        hello = client.hello()
        assert hello.arithmetic == support.arithmetic("float32")
        a = client.stream("a", model="lstm")
        np.testing.assert_array_equal(a.step(x[0, 0]), expected[0][0])
        np.testing.assert_array_equal(a.steps(x[0, 1:]), expected[0][1:])
        for t in range(2):
            ys = client.step_many({"b": x[1, t], "c": x[2, t]}, model="lstm")
            np.testing.assert_array_equal(ys["b"], expected[1][t])
            np.testing.assert_array_equal(ys["c"], expected[2][t])
        ys = client.step_many({"d": z[0, 0], "e": z[1, 0]}, model="gru")
        np.testing.assert_array_equal([ys["d"], ys["e"]], [each[0] for each in words])


def test_a_server_on_tensor_cores_names_its_arithmetic(models, rng):
    x = random_inputs(rng, models["gru"].spec, 1, 2)[0]
    engine = Engine(models["gru"], device="cuda", max_streams=1, precision="bfloat16")
    options: dict[str, Any] = {"device": "cuda", "max_streams": 2, "precision": "bfloat16"}
    with (
        serving({"gru": models["gru"]}, **options) as server,
        Client(server.endpoints[0]) as client,
    ):
        assert client.hello().arithmetic == support.arithmetic("bfloat16")
        y = client.stream("a").steps(x)
    np.testing.assert_array_equal(y, engine.steps("a", x))


def test_a_chunk_is_one_launch_while_no_other_stream_is_ready(models, rng, monkeypatch):
    x = random_inputs(rng, models["lstm"].spec, 2, 40)
    expected = [expected_of(models["lstm"], each) for each in x]
    batches = []
    begin = transfer.Transfer.begin

    def noting(self, num_rows, num_steps, overlaps):
        batches.append((num_rows, num_steps))
        begin(self, num_rows, num_steps, overlaps)

    with served({"lstm": models["lstm"]}) as peer:
        for stream in "ab":
            peer.ok("open", stream, None, 64)
        monkeypatch.setattr(transfer.Transfer, "begin", noting)
        last, _, y = peer.ok("step", "a", 1, x[0].tobytes())
        assert (last, y) == (40, expected[0].tobytes())
        assert batches == [(1, 32), (1, 8)]
        # Each of the forty is remembered under its number.
        assert peer.ok("step", "a", 39, x[0, 38].tobytes())[2] == expected[0][38].tobytes()
        assert peer.ok("step", "a", 2, x[0, 1:4].tobytes())[2] == expected[0][1:4].tobytes()
        assert len(batches) == 2
        assert peer.ok("step", "b", 1, x[1, :1].tobytes())[2] == expected[1][:1].tobytes()
        assert batches[2:] == [(1, 1)]


def test_a_nan_within_a_chunk_ends_it_there(models, rng, monkeypatch):
    x = random_inputs(rng, models["gru"].spec, 1, 5)[0]
    expected = expected_of(models["gru"], x)
    end = transfer.Transfer.end
    poison = [False]

    def ending(self):
        end(self)
        if poison[0]:
            self.y[2 * 3] = np.nan  # the third step's first output

    with served({"gru": models["gru"]}) as peer:
        peer.ok("open", "a", None, 8)
        monkeypatch.setattr(transfer.Transfer, "end", ending)
        poison[0] = True
        assert peer.error("step", "a", 1, x.tobytes())[0] == "quarantined"
        poison[0] = False
        assert peer.ok("reset", "a", 4) == [4, 0]
        assert peer.ok("step", "a", 5, x[0].tobytes())[2] == expected[0].tobytes()


def test_rows_of_closed_streams_are_reused(models, rng):
    """Reset, close, a slot used again, a duplicate, a fork, an export and an import."""
    model = models["lstm"]
    x = random_inputs(rng, model.spec, 1, 4)[0]
    expected = expected_of(model, x)
    with served({"lstm": model}) as peer:
        assert peer.ok("hello", {})["device"] == "cuda"

        def y(stream, seq, t):
            return step(peer, stream, seq, x[t])[2].tolist()

        # With window 1 an output would be computed again from the row.
        assert peer.ok("open", "a", None, 1) == [0, 0, 2]
        for t in range(2):
            assert y("a", t + 1, t) == expected[t].tolist()
        assert y("a", 2, 1) == expected[1].tolist()
        assert peer.ok("fork", "a", "b")[0] == 2
        record = peer.ok("export", "a")
        assert y("a", 3, 2) == expected[2].tolist()
        assert y("b", 3, 2) == expected[2].tolist()
        assert peer.ok("import", "c", record, None)[0] == 2
        assert peer.ok("open", "d", None, 1, record) == [0, 0, 2]
        assert y("c", 3, 2) == expected[2].tolist()
        assert y("d", 1, 2) == expected[2].tolist()
        assert peer.ok("reset", "a", 4) == [4, 0]
        assert y("a", 5, 0) == expected[0].tolist()
        assert peer.ok("close", "b") is True
        assert peer.ok("open", "b", None, 4) == [0, 0, 4]
        assert y("b", 1, 0) == expected[0].tolist()


@pytest.mark.parametrize("durability", ["checkpoint", "always"])
def test_streams_go_on_after_a_restart(models, rng, tmp_path, durability):
    x = random_inputs(rng, models["lstm"].spec, 2, 3)
    expected = [expected_of(models["lstm"], each) for each in x]
    options = {
        "state_dir": tmp_path,
        "durability": durability,
        "checkpoint_interval_s": RARELY_S,
    }
    with served(models, **options) as peer:
        for k, stream in enumerate("ab"):
            peer.ok("open", stream, "lstm", 4)
            for t in range(2):
                _, durable, y = peer.ok("step", stream, t + 1, x[k, t].tobytes())
                assert durable == (t + 1 if durability == "always" else 0)
                assert y == expected[k][t].tobytes()
        assert peer.ok("snapshot", "a", "here")
    with served(models, **options) as peer:
        for k, stream in enumerate("ab"):
            y = peer.ok("step", stream, 3, x[k, 2].tobytes())[2]
            assert y == expected[k][2].tobytes()
        assert peer.ok("rollback", "a", 4, "here")[0] == 4
        assert peer.ok("step", "a", 5, x[0, 2].tobytes())[2] == expected[0][2].tobytes()


def test_two_shards_share_a_gpu(models, rng):
    x = random_inputs(rng, models["gru"].spec, 1, 1)[0]
    expected = expected_of(models["gru"], x)[0]
    options: dict[str, Any] = {"device": "cuda", "max_streams": 8, "num_shards": 2}
    with (
        serving({"gru": models["gru"]}, **options) as server,
        Client(server.endpoints[0]) as client,
    ):
        # One after the other: the simulator is for one thread at a time.
        for stream in range(4):
            np.testing.assert_array_equal(client.stream(stream).step(x[0]), expected)


def test_a_failed_gpu_ends_the_server_as_a_crash_does(models, rng, tmp_path, monkeypatch):
    """What was durable is in the next server, to the bit; the step that failed comes again."""
    x = random_inputs(rng, models["gru"].spec, 1, 3)[0]
    expected = expected_of(models["gru"], x)
    options: dict[str, Any] = {"state_dir": tmp_path, "durability": "always"}
    config = ServerConfig(bind=Endpoint("127.0.0.1", 0), device="cuda", max_streams=2, **options)
    server = Server({"gru": models["gru"]}, config, EventLog(stream=io.StringIO()))
    failures = []

    def run():
        try:
            server.run()
        except DeviceError as error:
            failures.append(error)

    kind: Any = support.gpu_errors()[0]

    def fail(*_):
        raise kind("CUDA_ERROR_ILLEGAL_ADDRESS")

    thread = threading.Thread(target=run)
    thread.start()
    peer = Peer(server.endpoints[0])
    peer.ok("open", "a", None, 4)
    assert peer.ok("step", "a", 1, x[:2].tobytes())[:2] == [2, 2]
    with monkeypatch.context() as broken:
        broken.setattr(transfer.Transfer, "begin", fail)
        peer.send("step", "a", 3, x[2].tobytes())
        thread.join(timeout=60)
    assert not thread.is_alive()
    peer.socket.close()
    assert server._disk is not None
    server._disk.close()
    server.close()
    assert "ILLEGAL_ADDRESS" in str(failures[0])
    with served({"gru": models["gru"]}, **options) as again:
        assert again.ok("open", "a", None, 4) == [2, 2, 4]
        assert again.ok("step", "a", 3, x[2].tobytes())[2] == expected[2].tobytes()


# ---------------------------------------------------------------------------------------------
# Which device
# ---------------------------------------------------------------------------------------------


def start(models, **options):
    log = io.StringIO()
    config = ServerConfig(bind=Endpoint("127.0.0.1", 0), **options)
    return choosing.choose_device(models, config, EventLog(stream=log)), log.getvalue()


def test_auto_takes_the_faster_one_and_says_why(models, monkeypatch):
    rates = {"cpu": 1000.0, "cuda": 1500.0}
    monkeypatch.setattr(choosing, "steps_per_s", lambda model, device, num_streams: rates[device])
    device, log = start(models, device="auto")
    assert device == "cuda"
    assert "1,000 on 1 CPU threads, 1,500 on the GPU" in log
    assert start(models, device="auto", num_shards=2)[0] == "cpu"
    device, log = start(models, device="auto", precision="int8")
    assert device == "cpu"
    assert "int8" in log
    assert start(models, device="auto", precision="bfloat16")[0] == "cpu"
    assert start(models, device="auto", precision="tf32")[0] == "cuda"


def test_auto_measures(models):
    """A simulated GPU is never faster."""
    device, log = start({"gru": models["gru"]}, device="auto", max_streams=2)
    assert device == "cpu"
    assert "2 streams together" in log


def test_auto_does_without_a_gpu(models, monkeypatch):
    from numba import cuda

    monkeypatch.setattr(cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "cuda_error", lambda: "CUDA driver library cannot be found")
    device, log = start(models, device="auto", max_streams=2)
    assert device == "cpu"
    assert "driver library cannot be found" in log
    with pytest.raises(StartError, match="driver library cannot be found"):
        start(models, device="cuda")


def test_a_gpu_without_room_says_how_many_streams_would_fit(models, monkeypatch):
    from numba.cuda.simulator.cudadrv import devices

    monkeypatch.setattr(
        devices.FakeCUDAContext,
        "get_memory_info",
        lambda self: devices._MemoryInfo(free=1 << 30, total=1 << 30),
    )
    with pytest.raises(StartError, match=r"model 'lstm' with --max-streams 90000000 .* would fit"):
        gpu.make_devices(models, 90_000_000)


def test_unknown_devices_and_precisions_are_refused():
    with pytest.raises(StartError, match=r"'int4'; with --device cuda .* float32, tf32, bfloat16"):
        ServerConfig(device="cuda", precision="int4")
    with pytest.raises(StartError, match=r"'tf32'; with --device cpu .* float32, bfloat16, int8"):
        ServerConfig(precision="tf32")
    with pytest.raises(StartError, match=r"--device is 'tpu'; it must be one of cpu, cuda, auto"):
        ServerConfig(device="tpu")


def test_a_server_runs_on_the_fake_driver(tmp_path):
    checks = compile_and_check(make_driver(tmp_path), "server")["checks"]
    assert list(checks) == list(CHECKS["server"])
    assert not any(checks.values()), checks
