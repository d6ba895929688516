"""The memory of server and client while streams open, step, rest and close.

The server runs with a state directory and checkpoints, the client is a process of its own. The
same look at both finds a server out that keeps the outputs of every closed stream. `make test` does
it for some seconds, `make soak` for ten minutes (STREAMRNN_SOAK_S seconds, if that is set).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from streamrnn_bench.child_process import start_child
from streamrnn_bench.server.processes import anonymous_kib
from tests.support.churn import WINDOW
from tests.support.models import random_model

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory"
)

NUM_INPUTS, NUM_OUTPUTS = 3, 64
RING_BYTES = WINDOW * (8 + 4 * NUM_OUTPUTS)  # of each stream; more, rounded up
SHORT_S, LONG_S = 8.0, float(os.environ.get("STREAMRNN_SOAK_S", 600))
NUM_SAMPLES = 100
WARM_UP = 0.4  # of the time; the first checkpoints, spills and the allocator's own pools
# What allocators and buffers go up and down by; Python's own are coarser.
MAX_GROWTH_KIB = {"server": 3 * 1024, "client": 8 * 1024}
# So many that a leak of a ring a stream would be four times what is allowed the server.
MIN_CLOSED = 1024 * 4 * MAX_GROWTH_KIB["server"] / RING_BYTES / (1 - WARM_UP)
READY_WITHIN_S, STOP_WITHIN_S = 900, 60  # a cache of its own: all is compiled


@contextlib.contextmanager
def running(*words, **environment):
    process = start_child(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_WITHIN_S)


@contextlib.contextmanager
def server(directory, module="streamrnn_server", **environment):
    model = random_model(np.random.default_rng(3), [("lstm", 24)], NUM_INPUTS, NUM_OUTPUTS)
    model.save(directory / "m.safetensors")
    words = [module, "serve", str(directory / "m.safetensors"), "--bind", "tcp://127.0.0.1:0"]
    words += ["--state-dir", str(directory / "state"), "--checkpoint-interval", "0.2"]
    words += ["--idle-limit", "1", "--ready-file", str(directory / "ready")]
    with running(*words, **environment) as process:
        give_up_s = time.monotonic() + READY_WITHIN_S
        while not (directory / "ready").exists():
            assert process.poll() is None
            assert time.monotonic() < give_up_s
            time.sleep(0.02)
        told = json.loads((directory / "ready").read_text())
        yield told["endpoints"][0], process.pid


def watch(endpoint, pid, duration_s):
    """Return what the client says at its end, and samples (s, KiB) of server and client."""
    began_s = time.monotonic()
    samples: list[tuple[float, int]] = []
    with running(
        "tests.support.churn", endpoint, str(duration_s), str(round(MIN_CLOSED))
    ) as client:
        while client.poll() is None:
            samples.append((time.monotonic() - began_s, anonymous_kib(pid)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(duration_s / NUM_SAMPLES)
        said, _ = client.communicate()
        assert client.returncode == 0
    found = json.loads(said)
    return found, (samples, found.pop("memory"))


def growth_kib(samples):
    """Return by how much memory grew after the warm-up: two robust estimates.

    The slope is Theil and Sen's, the median of the slopes between all pairs of samples, times the
    time that they span. The other is the median of the last third less that of the first.
    """
    end_s = samples[-1][0]
    time_s, kib = np.array([each for each in samples if each[0] >= WARM_UP * end_s]).T
    first, last = np.triu_indices(len(kib), k=1)
    slope = median((kib[last] - kib[first]) / (time_s[last] - time_s[first]))
    third = len(kib) // 3
    return slope * (time_s[-1] - time_s[0]), median(kib[-third:]) - median(kib[:third])


def look(directory, duration_s, capsys, **options):
    """Return whether the memory of server and client stays flat, by both estimates."""
    with server(directory, **options) as (endpoint, pid):
        found, samples = watch(endpoint, pid, duration_s)
    is_flat = {}
    for name, series in zip(MAX_GROWTH_KIB, samples, strict=True):
        by_slope, by_thirds = growth_kib(series)
        is_flat[name] = max(by_slope, by_thirds) < MAX_GROWTH_KIB[name]
        with capsys.disabled():
            print(
                f"\n{name}: {series[-1][1]} KiB after {series[-1][0]:.0f} s and {found}; grew by "
                f"{by_slope:.0f} KiB (slope), {by_thirds:.0f} KiB (thirds)"
            )
    assert found["num_closed"] >= MIN_CLOSED
    assert found["num_spilled"] > 0
    return is_flat


def leaking(request):
    """Return the options of a server that leaks; its machine code is kept like a test's result."""
    source = Path(__file__).with_name("leaking_server.py").read_bytes()
    name = f"leaking-server-{hashlib.sha256(source).hexdigest()[:16]}"
    directory = request.config.cache.mkdir(name)
    return {"module": "tests.faults.leaking_server", "STREAMRNN_CACHE_DIR": str(directory)}


@pytest.mark.slow
def test_memory_stays_flat(tmp_path, capsys):
    assert look(tmp_path, SHORT_S, capsys) == {"server": True, "client": True}


@pytest.mark.soak
def test_memory_stays_flat_for_long(tmp_path, capsys):
    assert look(tmp_path, LONG_S, capsys) == {"server": True, "client": True}


@pytest.mark.soak
def test_a_leaking_server_is_detected(tmp_path, capsys, request):
    is_flat = look(tmp_path, SHORT_S, capsys, **leaking(request))
    assert is_flat == {"server": False, "client": True}


def test_growth_estimates_ignore_steps_and_spikes():
    rng = np.random.default_rng(2)
    time_s = np.linspace(0, 10, 100)
    flat = 1000 + 50 * (rng.random(100) < 0.1) + rng.normal(0, 1, 100)
    assert max(map(abs, growth_kib(list(zip(time_s, flat, strict=True))))) < 2
    rising = list(zip(time_s, flat + 10 * time_s, strict=True))
    assert growth_kib(rising) == pytest.approx((60, 40), abs=5)
