"""Metrics: their values after known traffic, their names, and that reading them costs nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn_client import Client
from streamrnn_server.commands.status import _lines
from streamrnn_server.config import Endpoint
from streamrnn_server.testing import serving
from tests.monitor.scraping import TIMEOUT_S, Scrape, get
from tests.support.models import exploding_model, random_model
from tests.support.peer import RARELY_S, Peer
from tests.support.program import DurableProgram, free_ports

ROOT = Path(__file__).parents[2]
NUM_INPUTS = 3
ANYWHERE = Endpoint("127.0.0.1", 0)


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(7)
    ranges = [{"quantiles": [-9.0, *[0.0] * 7, 9.0], "missing": 0.0}] * NUM_INPUTS
    return {
        "a": random_model(rng, [("lstm", 24)], NUM_INPUTS, training={"inputs": ranges}),
        "b": random_model(rng, [("gru", 8)], NUM_INPUTS),
    }


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(8).standard_normal((3000, NUM_INPUTS)).astype(np.float32)


@pytest.fixture(scope="module")
def everything(models, x, tmp_path_factory):
    """A server of which all metrics have values, and what it says then."""
    state = tmp_path_factory.mktemp("state")
    options = {"state_dir": state, "durability": "always", "metrics": ANYWHERE}
    with serving(models, **options) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "s", "a", 4)
        peer.ok("step", "s", 1, x[0].tobytes())
        peer.error("step", "s", 3, x[0].tobytes())
        peer.ok("diagnostics", "s")
        for k in range(1, 120):
            peer.ok("step", "s", k + 1, x[k].tobytes())
        peer.ok("reset", "s", 121)
        diagnostics = server.control.diagnostics
        assert diagnostics is not None
        diagnostics.stop()
        diagnostics.look()
        peer.ok("sync", None)
        yield server, Scrape(server.metrics_url)
        peer.socket.close()


@pytest.fixture
def server(models):
    with serving(models, metrics=ANYWHERE) as server:
        yield server


@pytest.fixture
def peer(server):
    peer = Peer(server.endpoints[0])
    yield peer
    peer.socket.close()


def test_requests_steps_and_errors_are_counted_by_method_model_and_code(server, peer, x):
    for name, model in (("s", "a"), ("t", "a"), ("u", "b")):
        peer.ok("open", name, model, 8)
    for k in range(5):
        peer.ok("step", "s", k + 1, x[k].tobytes())
    peer.ok("step", "s", 5, x[4].tobytes())  # a duplicate
    peer.ok("step", "u", 1, x[:3].tobytes())
    peer.error("step", "s", 9, x[0].tobytes())
    peer.error("step", "u", 4, b"1234")
    peer.error("step", "nobody", 1, x[0].tobytes())
    results = peer.ok("batch", ["s", "t", "s"], [6, 1, 9], x[:3].tobytes())
    assert [error and error[0] for error, _ in results] == [None, None, "gap"]
    peer.ok("reset", "s", 7)
    peer.ok("close", "t")
    peer.error("open", "s", "b", 8)
    peer.error("open", "v", "c", 8)  # Python's
    peer.error("nothing")
    told = Scrape(server.metrics_url)

    def count(method, model):
        return told("request_duration_seconds_count", method=method, model=model)

    assert (count("open", "a"), count("open", "b")) == (2, 2)
    assert (count("step", "a"), count("step", "b"), count("step", "")) == (7, 2, 1)
    assert (count("batch", "a"), count("batch", "b")) == (1, 0)
    assert (count("reset", "a"), count("close", "a")) == (1, 1)
    errors = {
        ("step", "a", "gap"): 2,  # one of them a batch's
        ("step", "b", "wrong_length"): 1,
        ("step", "", "unknown"): 1,
        ("open", "b", "wrong_model"): 1,
        ("open", "", "unknown_model"): 1,
        ("other", "", "unknown_method"): 1,
    }
    for (method, model, code), number in errors.items():
        assert told("errors_total", method=method, model=model, code=code) == number
    assert told.total("errors_total") == sum(errors.values())
    assert (told("steps_total", model="a"), told("steps_total", model="b")) == (7, 3)
    assert told("duplicate_steps_total") == 1
    assert told("resets_total") == 1
    assert told("streams_closed_total", reason="client") == 1
    assert (told("open_streams", model="a"), told("open_streams", model="b")) == (1, 1)
    assert told("messages_total", shard="0") == 19
    assert told("calls_total", method="open") == 1
    stats = peer.ok("stats")
    assert stats["errors"] == {
        "gap": 2,
        "wrong_length": 1,
        "unknown": 1,
        "wrong_model": 1,
        "unknown_model": 1,
        "unknown_method": 1,
    }
    assert stats["steps"] == {"a": 7, "b": 3}


def test_what_networks_do_is_told_by_model_and_layer(everything):
    server, told = everything
    [result] = server.control.diagnostics.streams()
    assert (result["stream"], result["num_steps"]) == ("s", 119)
    [layer] = result["layers"]
    one = {"model": "a", "layer": "1"}
    assert told("recordings_measured_total", model="a") == 1
    assert told("half_life_steps", **one) == pytest.approx(layer["half_life"]["median"])
    assert told("state_rms", **one, state="c") == pytest.approx(layer["rms"]["c"])
    assert told("dead_units", **one) == layer["num_dead"]
    assert told("inputs_beyond_training_ratio", model="a") == 0
    assert told("warmup_distance_ratio", model="a") == pytest.approx(result["warmup"]["distance"])
    assert told("warmup_distance_ratio", model="a") > 0.05  # it promises to need no steps
    page = "\n".join(_lines(server.control.stats()))
    assert f"half-life {layer['half_life']['median']:.3g} steps" in page
    assert "0.0% of the inputs beyond all of the training" in page
    assert "the warm-up of 0 steps DOES NOT HOLD: new streams need" in page


def test_times_and_batches_are_histograms(server, peer, x):
    names = [f"stream {k}" for k in range(6)]
    peer.ok("open", names, "a", 8)
    for k in range(10):
        peer.ok("batch", names, [k + 1] * 6, x[:6].tobytes())
    told = Scrape(server.metrics_url)
    for name, labels, number in (
        ("request_duration_seconds", {"method": "batch", "model": "a"}, 10),
        ("batch_size", {"model": "a"}, told("batch_size_count", model="a")),
    ):
        bounds, counts = zip(*told.buckets(name, **labels), strict=True)
        assert list(bounds) == sorted(bounds)
        assert list(counts) == sorted(counts)
        assert bounds[-1] == float("inf")
        assert counts[-1] == number == told(f"{name}_count", **labels)
    assert told("batch_size_sum", model="a") == told("steps_total", model="a") == 60
    # Each time is at least the end below its bucket, and at most its bucket's.
    buckets = told.buckets("request_duration_seconds", method="batch", model="a")
    numbers = np.diff([0, *(count for _, count in buckets)])
    ends = np.array([bound for bound, _ in buckets])
    sum_s = told("request_duration_seconds_sum", method="batch", model="a")
    assert numbers[-1] == 0
    assert numbers[1:-1] @ ends[:-2] <= sum_s <= numbers[:-1] @ ends[:-1]


def test_what_is_not_on_disk_has_an_age_until_it_is(models, x, tmp_path):
    options = {"state_dir": tmp_path, "checkpoint_interval_s": RARELY_S, "metrics": ANYWHERE}
    with serving(models, durability="checkpoint", **options) as server:
        peer = Peer(server.endpoints[0])
        told = Scrape(server.metrics_url)
        assert (told("changed_streams"), told("checkpoint_lag_seconds")) == (0, 0)
        peer.ok("open", "s", "a", 4)
        first = Scrape(server.metrics_url)
        peer.ok("step", "s", 1, x[0].tobytes())
        second = Scrape(server.metrics_url)
        assert (first("changed_streams"), second("changed_streams")) == (1, 1)
        assert 0 < first("checkpoint_lag_seconds") < second("checkpoint_lag_seconds")
        peer.ok("sync", None)
        told = Scrape(server.metrics_url)
        assert (told("changed_streams"), told("checkpoint_lag_seconds")) == (0, 0)
        assert told("stored_streams") == told("streams_saved_total") == 1
        assert told("commit_duration_seconds_count") >= 1
        assert told("state_writable") == 1
        assert told("state_size_bytes", part="records") > 0
        assert peer.ok("stats")["num_not_on_disk"] == 0
        peer.socket.close()


def test_the_parts_of_the_memory_are_all_of_it(server, peer, x):
    peer.ok("open", [f"a long name of a stream {k}" for k in range(3000)], "a", 8)
    peer.ok("step", "a long name of a stream 7", 1, x[0].tobytes())
    told = Scrape(server.metrics_url)
    stats = peer.ok("stats")
    assert told.total("memory_used_bytes") == stats["memory_used_bytes"]
    parts = stats["memory_parts_bytes"]
    assert parts["rows"] % 2**21 == parts["blocks"] % 2**20 == 0
    assert parts["slots"] >= 3000 * 64
    assert min(parts.values()) > 0
    assert told("streams", state="resting") == 3000


def test_streams_that_are_frozen_are_counted_while_they_are():
    x = np.ones(1, np.float32).tobytes()
    with serving({"m": exploding_model()}, metrics=ANYWHERE) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", ["a", "b", "c"], None, 8)
        for name in "ab":
            while peer.call("step", name, 0, x)[0] is None:
                pass
        states = {"working": 0, "resting": 1, "quarantined": 2}
        told = Scrape(server.metrics_url)
        assert {state: told("streams", state=state) for state in states} == states
        assert peer.ok("stats")["num_quarantined_now"] == 2
        peer.ok("reset", "a", 0)
        assert peer.ok("stats")["num_quarantined_now"] == 1
        peer.ok("close", "b")
        assert peer.ok("stats")["num_quarantined_now"] == 0
        assert Scrape(server.metrics_url)("streams_quarantined_total") == 2
        peer.socket.close()


def test_times_of_calls_that_python_answers_are_counted_by_method(server, peer):
    for _ in range(3):
        peer.ok("models")
    peer.error("nothing")
    told = Scrape(server.metrics_url)
    assert told("call_duration_seconds_count", method="models") == 3
    assert told("call_duration_seconds_bucket", method="models", le="+Inf") == 3
    assert 0 < told("call_duration_seconds_sum", method="models") < TIMEOUT_S
    assert told("call_duration_seconds_count", method="other") == 1


def test_the_busiest_streams_are_named(server, peer, x):
    names = ["short", "one that does not fit in a header", 7]
    peer.ok("open", names, "a", 64)
    done = dict.fromkeys(names, 0)
    for name, number in zip(names, (100, 20, 1), strict=True):
        for _ in range(number):
            peer.ok("step", name, done[name] + 1, x[:32].tobytes())
            done[name] += 32
    busiest = peer.ok("stats")["busiest"]
    assert [each["stream"] for each in busiest][:2] == names[:2]
    assert busiest[0]["model"] == "a"
    assert busiest[0]["last_seq"] == 3200
    assert 0.7 < busiest[0]["share"] < 0.95
    assert sum(each["share"] for each in busiest) == pytest.approx(1)
    peer.ok("close", "short")
    assert "short" not in [each["stream"] for each in peer.ok("stats")["busiest"]]


def test_counters_begin_anew_after_a_crash(models, x, tmp_path):
    path, port = tmp_path / "a.safetensors", free_ports(1)
    models["a"].save(path)
    with DurableProgram(path, tmp_path / "state", "always") as program:
        program.command += ["--metrics", str(port)]
        program.start()
        url = f"http://127.0.0.1:{port}"
        with Client(program.endpoint) as client:
            stream = client.stream("s")
            stream.steps(x[:20])
            before = Scrape(url)
            program.kill()
            program.start()
            stream.steps(x[20:23])
            after = Scrape(url)
    assert (before("steps_total", model="a"), after("steps_total", model="a")) == (20, 3)
    assert after("streams_restored_total") == 1
    assert after("streams_opened_total") == 0
    start_s = "process_start_time_seconds"
    assert _plain(before, start_s) < _plain(after, start_s)


def _plain(told, name):
    (sample,) = told.families[name].samples
    return sample.value


def test_scrapes_under_load_change_no_output(server, models, x):
    ended = threading.Event()
    scrapes = []

    def scrape():
        while not ended.is_set():
            scrapes.append(Scrape(server.metrics_url)("steps_total", model="a"))

    reader = threading.Thread(target=scrape)
    reader.start()
    try:
        with Client(server.endpoints[0]) as client:
            stream = client.stream("s", model="a")
            outputs = [stream.step(row) for row in x]
    finally:
        ended.set()
        reader.join()
    np.testing.assert_array_equal(outputs, Engine(models["a"]).steps("s", x))
    assert scrapes == sorted(scrapes)
    assert Scrape(server.metrics_url)("steps_total", model="a") == len(x)


def test_both_formats_are_what_they_say(everything):
    server, _ = everything
    status, plain = get(server.metrics_url, "/metrics")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    assert status == 200
    assert not plain.endswith("# EOF\n")
    assert get(server.metrics_url, "/metrics", Accept=accept)[1].endswith("# EOF\n")
    for hostile in ("application/openmetrics-text;version=\xff", ",;,=" * 500):
        assert get(server.metrics_url, "/metrics", Accept=hostile)[0] == 200


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")
def test_promtool_finds_nothing_wrong(everything):
    _, told = everything
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=told.text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_documentation_names_exactly_the_metrics_there_are(everything):
    _, told = everything
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| `(streamrnn_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(documented) == len(rows)
    exposed = {}
    for name, family in told.families.items():
        if not name.startswith("streamrnn_"):
            continue
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exposed[name + "_total" * (family.type == "counter")] = (family.type, labels)
    assert documented == exposed
