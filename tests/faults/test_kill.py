"""kill -9 of servers and of clients of `streamrnn_client`."""

import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from streamrnn_bench.child_process import start_child
from streamrnn_client import Client, errors
from tests.support.endless import (
    RESEND_S,
    ROUND,
    TIMEOUT_S,
    Cycle,
    read,
    walk,
    walk_many,
    walk_tasks,
)
from tests.support.models import random_model
from tests.support.peer import RARELY_S
from tests.support.program import DurableProgram

pytestmark = pytest.mark.slow

NUM_INPUTS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = random_model(np.random.default_rng(4), [("lstm", 16), ("gru", 8)], NUM_INPUTS, 2)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    model.save(path)
    return model, path


def kill_the_server(model, directory, num_kills, seed):
    """Kill it while threads and tasks step, chunk, batch and reset; all outputs are checked."""
    model, path = model
    rng = random.Random(seed)
    stop = threading.Event()
    cycles = [Cycle(k, NUM_INPUTS, model) for k in range(16)]

    def walk_one(k: int) -> int:
        with Client(server.endpoint, timeout_s=TIMEOUT_S, resend_s=RESEND_S) as client:
            # With window 1 the server has nothing but the state; few kept steps means waiting.
            stream = client.stream(f"one-{k}", window=(1, 32)[k])
            return walk(stream, cycles[k], lambda: not stop.is_set())

    with DurableProgram(path, directory / "state") as server, ThreadPoolExecutor(4) as pool:
        try:
            server.start(2)
            goes_on = lambda: not stop.is_set()  # noqa: E731
            walkers = [pool.submit(walk_one, 0), pool.submit(walk_one, 1)]
            walkers.append(pool.submit(walk_many, server.endpoint, cycles[:16], goes_on))
            walkers.append(pool.submit(walk_tasks, server.endpoint, cycles[:4], goes_on))
            for _ in range(num_kills):
                stop.wait(rng.uniform(0, 0.4))
                server.kill()
                server.start(2)
                assert not any(walker.done() for walker in walkers), [w.result() for w in walkers]
        finally:
            stop.set()
        last_seqs = [walker.result(TIMEOUT_S) for walker in walkers]
    return last_seqs


def kill_clients(model, directory, num_kills, seed):
    """Kill clients, which remember only what they wrote; then look at what they wrote."""
    model, path = model
    rng = random.Random(seed)
    names = ["killed-1", "killed-2"]
    clients: dict[str, subprocess.Popen[bytes]] = {}
    stop = threading.Event()
    with DurableProgram(path, directory / "state") as server:
        server.start()

        def start(name: str) -> None:
            words = ["tests.support.endless", server.endpoint, str(directory / name), name]
            clients[name] = start_child([sys.executable, "-m", *words])

        try:
            for name in names:
                start(name)
            for _ in range(num_kills):
                stop.wait(rng.uniform(0.2, 1.2))
                name = rng.choice(names)
                if rng.random() < 0.3:  # both at once: nobody is left who could replay
                    server.kill()
                    clients[name].kill()
                    server.start()
                clients[name].kill()
                assert clients[name].wait() == -signal.SIGKILL, "it ended by itself"
                start(name)
            for name in names:
                (directory / name).with_suffix(".stop").touch()
            for client in clients.values():
                assert client.wait(TIMEOUT_S) == 0
        finally:
            for client in clients.values():
                client.kill()
                client.wait()
    return [read(directory / name, model.spec.output_size) for name in names]


def check_outputs(model, written):
    for k, outputs in enumerate(written):
        cycle = Cycle(k + 1, NUM_INPUTS, model[0])
        assert set(outputs) == {seq for seq in range(1, max(outputs) + 1) if seq % ROUND}
        assert len(outputs) > 200
        for seq, y in outputs.items():
            cycle.check(seq, np.frombuffer(y, np.float32)[np.newaxis])


def test_a_kill_of_the_server_changes_no_output(model, tmp_path):
    last_seqs = kill_the_server(model, tmp_path, 3, seed=1)
    assert min(last_seqs) > 0, last_seqs  # how far each got on is the machine's business


def test_a_killed_client_goes_on_where_it_was(model, tmp_path):
    check_outputs(model, kill_clients(model, tmp_path, 6, seed=2))


@pytest.mark.soak
def test_a_thousand_kills(model, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    (tmp_path / "server").mkdir()
    kill_the_server(model, tmp_path / "server", 500, seed)
    (tmp_path / "clients").mkdir()
    check_outputs(model, kill_clients(model, tmp_path / "clients", 500, seed))


def test_two_clients_on_one_stream_are_told(model, tmp_path):
    _, path = model
    x = [Cycle(k, NUM_INPUTS).x for k in range(2)]
    with DurableProgram(path, tmp_path / "state", interval_s=RARELY_S) as server:
        server.start()
        with Client(server.endpoint) as one, Client(server.endpoint) as two:
            mine, theirs = one.stream("s", window=4), two.stream("s", window=4)
            mine.step(x[0][0])
            with pytest.raises(errors.Conflict):
                theirs.step(x[1][0])
            mine.steps(x[0][1:20])
            with pytest.raises(errors.Stale):
                theirs.step(x[1][0])
            # The one's steps are lost and the other is first to make new ones: no mixture of both.
            server.kill()
            server.start()
            with Client(server.endpoint) as three:
                fresh = three.stream("s")
                assert fresh.last_seq == 0
                fresh.steps(x[1][:19])
                with pytest.raises(errors.Conflict):
                    mine.step(x[0][20])
                fresh.steps(x[1][19:30])
                with pytest.raises((errors.Conflict, errors.Stale)):
                    mine.step(x[0][20])


@pytest.mark.parametrize("numbers", [(1, 3), (3, 1)])
def test_the_number_of_shards_may_change(model, tmp_path, numbers):
    model, path = model
    cycles = [Cycle(k, NUM_INPUTS, model) for k in range(20)]
    # That an endpoint is gone for good is found out when the time of a request is up.
    with (
        DurableProgram(path, tmp_path / "state") as server,
        Client(server.endpoint, timeout_s=4.0, resend_s=RESEND_S) as client,
    ):
        server.start(numbers[0])
        rows = client.rows(list(range(20)))
        stream = client.stream("another")
        for num_shards in numbers:
            if client.hello().num_shards != num_shards:
                server.kill()
                server.start(num_shards)
            for _ in range(3):
                seq = stream.last_seq + 1
                cycles[0].check(seq, stream.step(cycles[0].x[seq - 1])[np.newaxis])
                x = np.array([cycle.x[seq - 1] for cycle in cycles])
                for cycle, y in zip(cycles, client.batch(rows, x), strict=True):
                    cycle.check(seq, y[np.newaxis])
        assert client.hello().num_shards == numbers[-1]
        assert rows.last_seqs == (6,) * 20
