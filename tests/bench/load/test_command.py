"""``streamrnn bench load`` against the real server, and its options."""

from __future__ import annotations

import json

import pytest

from streamrnn_bench.load.histogram import Histogram
from streamrnn_bench.load.options import LoadOptions, parse_rate, parse_time_s
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server.processes import serving, temporary_model
from streamrnn_bench.step.cases import Case
from streamrnn_client import Client
from streamrnn_server.cli import main

CASE = Case("gru", 3, 8)
SHORT = ("--warm-up", "0.1s", "--duration", "0.3s", "--streams", "20")


@pytest.fixture(scope="module")
def model():
    with temporary_model(CASE) as path:
        yield path


@pytest.fixture(scope="module")
def endpoint(model):
    with serving(model, "--shards", "2") as address:
        yield address


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--rate", "50", "--arrivals", "fixed", "--threads", "3"),
        ("--rate", "20..200", "--life", "5"),
        ("--rate", "100", "--arrivals", "bursts", "--burst", "3"),
        ("--chunk", "4", "--in-flight", "2"),
        ("--batch", "5", "--rate", "50", "--arrivals", "together"),
    ],
    ids=" ".join,
)
def test_a_server_of_two_shards_gives_outputs_that_are_the_models(
    endpoint, model, options, tmp_path, capsys
):
    path = tmp_path / "found.jsonl"
    given = ("--verify", str(model), "--json", str(path), *SHORT, *options)
    assert main(["bench", "load", endpoint, *given]) == 0
    said = capsys.readouterr().out
    assert "streams are the model's to the bit" in said
    latency, rate = map(json.loads, path.read_text().splitlines())
    assert (latency["benchmark"], latency["unit"], rate["unit"]) == ("load", "us", "steps/s")
    assert latency["case"] == f"{rate['case']} p99"
    assert latency["value"] == latency["details"]["latency_us"]["99"]
    assert not latency["details"]["errors"]
    assert ("breakdown" in latency["details"]) != ("steps were timed" in said)
    histogram = Histogram.from_dict(latency["details"]["histogram"])
    assert histogram.percentiles_us() == latency["details"]["latency_us"]
    with Client(endpoint) as client:
        assert client.stats()["num_streams"] == 0  # all are closed


def test_streams_stay_if_they_are_to(endpoint):
    assert main(["bench", "load", endpoint, *SHORT, "--keep-streams"]) == 0
    with Client(endpoint) as client:
        assert client.stats()["num_streams"] == 20


def test_another_model_is_found_out(endpoint, capsys):
    with temporary_model(Case("lstm", 3, 8)) as other:
        assert main(["bench", "load", endpoint, *SHORT, "--verify", str(other)]) == 1
    assert "outputs are not those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "needs the address of a server"),
        (("tcp://127.0.0.1:1", "--timeout", "0.2s"), "127.0.0.1:1"),
        (("localhost",), "expected is for instance 'tcp://127.0.0.1:7070'"),
        (("tcp://127.0.0.1:1", "--rate", "x"), "'x' is no rate"),
        (("tcp://127.0.0.1:1", "--duration", "soon"), "'soon' is no time"),
        (("tcp://127.0.0.1:1", "--streams", "7", "--batch", "2"), "no whole number of batches"),
        (("tcp://127.0.0.1:1", "--in-flight", "32", "--chunk", "16"), "at most 256 of a stream"),
    ],
)
def test_what_cannot_be_done_is_told(words, message, capsys):
    assert main(["bench", "load", *words]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_model_is_told_with_those_there_are(endpoint, capsys):
    assert main(["bench", "load", endpoint, *SHORT, "--models", "other"]) == 1
    assert "no model 'other' is served; there are model" in capsys.readouterr().err


def test_times_and_rates_are_read():
    assert [parse_time_s(text) for text in ("1ms", "250us", "2.5 s", "3")] == [1e-3, 25e-5, 2.5, 3]
    assert parse_rate("10") == (10, 10)
    assert parse_rate("100..1") == (1, 100)
    for text in ("", "1h", "-1s", "0s", "nan"):
        with pytest.raises(BenchError, match="is no time"):
            parse_time_s(text)
    for text in ("", "0", "1..", "1..2..3", "-5", "nan", "1e9"):
        with pytest.raises(BenchError, match="is no rate"):
            parse_rate(text)


def test_the_mean_rate_of_streams_between_two_is_that_of_their_schedules():
    options = LoadOptions(streams=10, rate=(1.0, 100.0))
    assert options.offered == pytest.approx(10 * 99 / 4.605170)
    assert LoadOptions(streams=10, rate=(2.0, 2.0)).offered == 20
    assert LoadOptions(streams=10).offered is None
