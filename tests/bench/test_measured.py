"""`streamrnn bench all` writes a page of the machine, whatever becomes of its parts."""

from __future__ import annotations

import json
import sys

import pytest

from streamrnn_bench.commands import bench
from streamrnn_bench.report.measured import PARTS, TOTAL_S, Part, file_stem, measure_all
from streamrnn_bench.report.results import BenchError, processor
from streamrnn_bench.report.runs import read_runs
from streamrnn_server.cli import main

GIVE_UP_AFTER_S = 60.0
# Stands in for the program: what becomes of it says the benchmark's name.
FAKE = """
import json, sys, time
name, case, path = sys.argv[2], sys.argv[3], sys.argv[-1]
if name == "absent":
    sys.exit("a line before\\nstreamrnn: error: No module named 'torch'")
unit = "off" if name == "wrong" else "us"
found = {"benchmark": name, "case": case, "value": 12.5, "unit": unit, "reference": "echo",
    "reference_value": 25, "ratio": 2, "machine": "EPYC | Zen 9", "cores": 2,
    "commit": "abc", "began": "2026-11-28", "target": 1.5}
with open(path, "w") as file:
    file.write(json.dumps(found) + "\\n")
    if name == "endless":
        file.write('{"benchmark": "end')
        file.flush()
        time.sleep(1000)
"""
GOOD = Part("Good things", "good 'lstm 64->128'", GIVE_UP_AFTER_S)
ENDLESS = Part("Long things", "endless a|b", 3)
ABSENT = Part("Absent things", "absent x", GIVE_UP_AFTER_S)


def measured(directory, *parts, total_s=TOTAL_S):
    return measure_all(directory, parts, total_s, (sys.executable, "-c", FAKE))


def test_the_page_names_machine_command_and_figures(tmp_path):
    page = measured(tmp_path / "new", GOOD)
    assert page == tmp_path / "new" / f"{file_stem(processor())}.md"
    text = page.read_text()
    assert text.startswith(f"# {processor()}\n")
    assert "streamrnn bench good 'lstm 64->128'\n" in text
    assert "EPYC | Zen 9, 2 cores; commit abc; 2026-11-28; " in text
    assert "| case | measured | reference | of | ratio | wanted |\n" in text
    assert "| lstm 64->128 | 12.5 us | 25.0 us | echo | 2.00 | 1.50 |\n" in text
    assert "Not whole" not in text
    assert [key[0] for key in read_runs(page.with_suffix(".jsonl")).results] == ["good"]


def test_a_part_that_does_not_end_or_fails_costs_the_others_nothing(tmp_path):
    page = measured(tmp_path, ENDLESS, ABSENT, GOOD)
    text = page.read_text()
    assert "**Not whole**: cut off after 3 s.\n" in text
    assert "| a\\|b | 12.5 us |" in text  # what it had measured by then
    assert "**Not whole**: failed: streamrnn: error: No module named 'torch'.\n" in text
    assert "| lstm 64->128 | 12.5 us |" in text
    lines = page.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line)["benchmark"] for line in lines] == ["endless", "good"]


def test_a_page_is_replaced_by_the_next_and_kept_if_nothing_is_measured(tmp_path):
    first = measured(tmp_path, GOOD, ENDLESS)
    second = measured(tmp_path, GOOD)
    assert first == second
    text = second.read_text()
    assert "Long things" not in text
    assert text.count("## Good things") == 1
    with pytest.raises(BenchError, match=r"nothing could be measured: failed: .*'torch'"):
        measured(tmp_path, ABSENT)
    assert second.read_text() == text
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".jsonl"}


def test_no_part_begins_when_the_time_is_over(tmp_path):
    text = measured(tmp_path, ENDLESS, GOOD, total_s=4.0).read_text()
    assert "**Not whole**: cut off after 3 s.\n" in text
    assert text.endswith("\n**Not whole**: no time was left.\n")
    with pytest.raises(BenchError, match="no time was left"):
        measured(tmp_path, GOOD, total_s=1.0)


def test_wrong_outputs_are_an_error_after_the_page_is_written(tmp_path):
    with pytest.raises(BenchError, match="wrong, and so not timed: c"):
        measured(tmp_path, Part("Wrong things", "wrong c", GIVE_UP_AFTER_S), GOOD)
    assert [path for path in tmp_path.iterdir() if path.suffix == ".md"]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
def test_every_part_is_a_command_of_the_program(part, monkeypatch):
    given = []

    def measure(args, cases):
        given.append((args.name, cases))
        return iter(())

    for names in (bench.BENCHMARKS, bench.NAMED):
        for name in names:
            monkeypatch.setitem(names, name, measure)
    assert main(["bench", *part.arguments]) == 0
    assert given[0][0] == part.command.split()[0]
    assert len(given[0][1]) == part.command.count("->")


def test_bench_all_takes_a_directory(tmp_path, monkeypatch, capsys):
    given = []

    def measure(path):
        given.append(path)
        return path / "page.md"

    monkeypatch.setattr(bench, "measure_all", measure)
    assert main(["bench", "all"]) == 0
    assert main(["bench", "all", str(tmp_path)]) == 0
    assert given == [bench.MEASURED, tmp_path]
    assert main(["bench", "all", "a", "b"]) == 1
    assert "one directory" in capsys.readouterr().err
