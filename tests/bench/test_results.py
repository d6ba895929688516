"""Results of benchmarks: ratios, JSON, tables, names of cases."""

from __future__ import annotations

import io
import json

import pytest

from streamrnn_bench.commands import bench as command
from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import (
    BenchError,
    Result,
    commit,
    environment,
    header,
    table,
    write_json,
)
from streamrnn_bench.step.cases import Case, parse_case
from streamrnn_server.cli import main

KEYS = ["benchmark", "case", "value", "unit", "reference", "reference_value", "ratio", "commit"]


def a_result(value, reference_value, unit):
    return Result("step", "lstm 64->128 B=48 float32 cpu", value, unit, "fma_peak", reference_value)


@pytest.mark.parametrize(
    ("value", "reference_value", "unit", "ratio"),
    [
        (150.0, 200.0, "GFLOP/s", 0.75),
        (200.0, 100.0, "messages/s", 2.0),
        (50.0, 40.0, "us", 0.8),
        (1.0, 3.0, "s", 3.0),
    ],
)
def test_ratio_says_how_many_times_better(value, reference_value, unit, ratio):
    assert a_result(value, reference_value, unit).ratio == pytest.approx(ratio)


def test_json_is_one_object_a_line():
    file = io.StringIO()
    write_json([a_result(1.0, 2.0, "us"), a_result(3.0, 4.0, "GB/s")], file)
    objects = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [list(each) for each in objects] == 2 * [[*KEYS, *environment()]]
    assert objects[0] == {
        "benchmark": "step",
        "case": "lstm 64->128 B=48 float32 cpu",
        "value": 1.0,
        "unit": "us",
        "reference": "fma_peak",
        "reference_value": 2.0,
        "ratio": 2.0,
        "commit": commit(),
        **environment(),
    }


def test_table_shows_ratio_target_and_note():
    lines = table(
        [
            a_result(150.0, 200.0, "GFLOP/s"),
            Result("roundtrip", "x", 41234.0, "us", "libzmq_echo", 1.0, target=0.87, note="noisy"),
        ]
    ).splitlines()
    assert len(lines) == 3
    assert "0.75" in lines[1]
    assert "fma_peak" in lines[1]
    assert "41,234 us" in lines[2]
    assert ">= 0.87" in lines[2]
    assert lines[2].endswith("noisy")


def test_header_names_machine_and_sources():
    assert commit() in header()
    assert "float32" in header()


@pytest.mark.parametrize("text", ["lstm 64->128", "lstm:64:128", "  lstm  64 -> 128 "])
def test_a_case_can_be_written_for_people_and_for_shells(text):
    assert parse_case(text) == Case("lstm", 64, 128)
    assert parse_case(str(parse_case(text))) == Case("lstm", 64, 128)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lstm", "not of the form"),
        ("lstm 64", "not of the form"),
        ("lstm 64->128->3", "not of the form"),
        ("mamba 64->128", "no cell 'mamba'"),
        ("gru 0->3", "sizes begin at 1"),
    ],
)
def test_a_malformed_case_is_refused(text, words):
    with pytest.raises(BenchError, match=words):
        parse_case(text)


def test_flops_count_multiplications_and_additions():
    assert Case("lstm", 64, 128).flops == 2 * (4 * 128) * (64 + 128)
    assert Case("gru", 16, 32).flops == 2 * (3 * 32) * (16 + 32)


def test_the_quieter_half_counts():
    rounds = [(0.5, "loud"), (0.0, "quiet"), (0.2, "fair"), (0.9, "louder")]
    assert quieter_half(rounds) == (0.2, ["quiet", "fair"])
    assert quieter_half([(0.7, "only")]) == (0.7, ["only"])


def test_machine_load_is_a_share():
    machine_load = MachineLoad()
    alone = machine_load.share()
    assert 0.0 <= alone <= 1.0


def test_the_command_writes_the_file_and_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        command.BENCHMARKS, "step", lambda args, cases: iter([a_result(150.0, 200.0, "GFLOP/s")])
    )
    path = tmp_path / "found.json"
    assert main(["bench", "step", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert header().split(";")[0] in shown
    assert "0.75" in shown
    assert json.loads(path.read_text())["ratio"] == 0.75


def test_without_a_name_all_are_run(capsys, monkeypatch):
    for name in command.BENCHMARKS:
        monkeypatch.setitem(command.BENCHMARKS, name, lambda args, cases: iter([]))
    assert main(["bench"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in command.BENCHMARKS if f"\n{name}\n" in shown] == [
        "step",
        "roundtrip",
        "throughput",
        "client",
        "scale",
        "durability",
    ]


@pytest.mark.parametrize(
    "words", [["walk"], ["step", "--rounds", "0"], ["step", "--batch-sizes", "x"]]
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    assert caught.value.code == 2


def test_a_wrong_case_is_one_clear_line(capsys):
    assert main(["bench", "step", "--cases", "mamba:1:2"]) == 1
    assert "no cell 'mamba'" in capsys.readouterr().err
