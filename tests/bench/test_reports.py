"""Comparison of runs with their noise; tables, CSV and the page that show them."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_bench.load.generator import Outcome
from streamrnn_bench.load.histogram import Histogram
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.load.report import results_of
from streamrnn_bench.load.senders import How
from streamrnn_bench.report.charts import NUM_COLORS, bar_chart, line_chart
from streamrnn_bench.report.compare import compare_runs, comparison_table
from streamrnn_bench.report.noise import MAX_SAMPLES, shift_between
from streamrnn_bench.report.page import html_page
from streamrnn_bench.report.results import BenchError, Result, write_json
from streamrnn_bench.report.runs import read_runs, runs_of
from streamrnn_bench.report.side_by_side import runs_table
from streamrnn_server.cli import main


def a_result(ours, theirs, case="lstm 64->128 1000 streams", unit="messages/s", **more):
    return Result(
        "throughput",
        case,
        float(np.median(ours)),
        unit,
        "libzmq_echo",
        float(np.median(theirs)),
        samples=tuple(ours),
        reference_samples=tuple(theirs),
        **more,
    )


def rounds(rng, level, noise, num_rounds=12):
    return level * np.exp(noise * rng.standard_normal(num_rounds))


def verdicts(a, b, run_noise=0.03):
    return [each.verdict for each in compare_runs(runs_of(a), runs_of(b), run_noise)]


def test_interval_of_a_shift_is_that_of_the_tables():
    # Five and five: P(U <= 2) is 4 of 252, below 2.5 %, P(U <= 3) is 7: so the third of the
    # ordered differences from either end.
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0], [11.0, 12.5, 13.1, 14.7, 15.2]
    differences = sorted(y - x for x, y in itertools.product(a, b))
    shift = shift_between(a, b, 0.95)
    assert shift is not None
    assert (shift.low, shift.high) == (differences[2], differences[-3])
    assert shift.middle == pytest.approx(np.median(differences))


@pytest.mark.parametrize(("num_samples", "has_interval"), [(0, False), (3, False), (4, True)])
def test_few_samples_have_no_interval(num_samples, has_interval):
    samples = list(range(num_samples))
    assert (shift_between(samples, samples, 0.95) is not None) == has_interval


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=9),
    st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=9),
)
def test_a_shift_turns_its_sign_with_the_sides(a, b):
    there, back = shift_between(a, b, 0.95), shift_between(b, a, 0.95)
    assert there is not None
    assert back is not None
    assert there == pytest.approx((-back.middle, -back.high, -back.low))
    assert there.low <= there.middle <= there.high


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    num_held = 0
    for _ in range(400):
        a, b = rng.exponential(size=8), rng.exponential(size=11) + 0.5
        shift = shift_between(a, b, 0.9)
        assert shift is not None
        num_held += shift.low <= 0.5 <= shift.high
    assert 0.87 <= num_held / 400 <= 0.96


def test_many_samples_are_thinned_out():
    many = np.arange(50 * MAX_SAMPLES, dtype=float)
    shift = shift_between(many, many + 7, 0.95)
    assert shift is not None
    assert shift.middle == pytest.approx(7)


def test_a_slower_machine_is_not_a_slower_program():
    rng = np.random.default_rng(0)
    clock = rounds(rng, 1.0, 0.3, 40)
    a = [a_result(500e3 * clock[:20], 1e6 * clock[:20])]
    b = [a_result(400e3 * clock[20:], 0.8e6 * clock[20:])]
    assert verdicts(a, b) == ["same"]


def test_without_a_common_reference_values_are_compared():
    rng = np.random.default_rng(0)
    a = [a_result(rounds(rng, 500e3, 0.01), rounds(rng, 1e6, 0.01))]
    b = [a_result(rounds(rng, 400e3, 0.01), rounds(rng, 0.8e6, 0.01))]
    b = [dataclasses.replace(b[0], reference="another")]
    assert verdicts(a, b) == ["worse"]


@pytest.mark.parametrize(
    ("factor", "unit", "expected"),
    [
        (1.10, "messages/s", "better"),
        (0.90, "messages/s", "worse"),
        (1.10, "us", "worse"),
        (0.90, "us", "better"),
        (1.001, "messages/s", "same"),
        (1.02, "messages/s", "same"),  # rounds agree, but two runs of one program differ so much
    ],
)
def test_verdict_of_one_run_a_side(factor, unit, expected):
    rng = np.random.default_rng(1)
    a = [a_result(rounds(rng, 100.0, 0.003), np.full(12, 200.0), unit=unit)]
    b = [a_result(rounds(rng, 100.0 * factor, 0.003), np.full(12, 200.0), unit=unit)]
    assert verdicts(a, b) == [expected]


def test_noise_that_hides_a_difference_is_told():
    rng = np.random.default_rng(2)
    a = [a_result(rounds(rng, 100.0, 0.3), np.full(12, 200.0))]
    b = [a_result(rounds(rng, 105.0, 0.3), np.full(12, 200.0))]
    assert verdicts(a, b) == ["cannot tell"]
    (found,) = compare_runs(runs_of(a), runs_of(b))
    assert found.shift is not None
    assert found.shift.low < 0 < found.shift.high
    assert "cannot tell" in comparison_table([found])


def test_too_few_rounds_are_told():
    found = verdicts([a_result([1.0], [2.0])], [a_result([9.0], [2.0])])
    assert found == ["cannot tell: 1 and 1 samples are too few"]


def test_of_several_runs_the_runs_count_and_not_their_rounds():
    # Rounds of a run agree within 0.1 %, runs differ by 10 %: one run a side would be believed.
    rng = np.random.default_rng(4)

    def side():
        levels = rounds(rng, 100.0, 0.1, 6)
        return [a_result(rounds(rng, level, 0.001), np.full(12, 200.0)) for level in levels]

    a, b = side(), side()
    assert verdicts(a, b) == ["cannot tell"]
    (found,) = compare_runs(runs_of(a), runs_of(b))
    assert found.num_samples == (6, 6)
    assert verdicts(a[:1], [dataclasses.replace(b[0], samples=tuple(np.full(12, 150.0)))]) == [
        "better"
    ]


def test_false_alarms_of_a_whole_table_are_rare():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(40):
        sides = [
            [
                a_result(rounds(rng, 100.0, 0.05), rounds(rng, 200.0, 0.05), case=f"case {k}")
                for k in range(12)
            ]
            for _ in range(2)
        ]
        found = verdicts(sides[0], sides[1], run_noise=0.0)
        alarms += "better" in found or "worse" in found
    assert alarms <= 6  # 5 % of 40 are 2


def test_nothing_in_common_is_an_error():
    a, b = runs_of([a_result([1.0], [2.0], case="a")]), runs_of([a_result([1.0], [2.0], case="b")])
    with pytest.raises(BenchError, match="no measurement in common"):
        compare_runs(a, b)


def write(path, results):
    with path.open("w") as file:
        write_json(results, file)
    return path


def test_what_is_written_is_read_again(tmp_path):
    result = a_result(
        [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], target=0.5, note="n", details={"streams": 7}
    )
    runs = read_runs(write(tmp_path / "a.jsonl", [result]))
    ((read,),) = runs.results.values()
    assert dataclasses.asdict(read) == dataclasses.asdict(result)
    assert (runs.name, runs.machine) == ("a", runs_of([result]).machine)


def test_a_directory_is_several_runs(tmp_path):
    for k in range(3):
        write(tmp_path / f"{k}.jsonl", [a_result([1.0 + k], [2.0])])
    (results,) = read_runs(tmp_path).results.values()
    assert [result.value for result in results] == [1.0, 2.0, 3.0]


GOOD = json.dumps(a_result([1.0], [2.0]).to_dict())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected an object"),
        (GOOD.replace('"throughput"', "3"), "'benchmark' is 3, expected a text"),
        (GOOD.replace('"value": 1.0', '"value": 0'), "'value' is 0, expected a number above 0"),
        (GOOD.replace('"value": 1.0', '"value": NaN'), "'value' is nan"),
        (GOOD.replace('"value": 1.0', '"value": true'), "'value' is True"),
        (GOOD.replace('"samples": [1.0]', '"samples": ["x"]', 1), "'samples' is no list"),
        (GOOD.replace('"samples": [1.0]', '"details": 3', 1), "'details' is no object"),
    ],
)
def test_a_line_that_is_no_result_is_named(tmp_path, line, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(BenchError, match=r"bad\.jsonl, line 2: ") as caught:
        read_runs(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_results_is_an_error(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"holds no result|cannot be read"):
        read_runs(path)


def test_a_directory_without_results_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="no file"):
        read_runs(tmp_path)


def test_runs_of_several_machines_stand_side_by_side(tmp_path):
    for name, value in (("zen4", 100.0), ("zen5", 150.0)):
        result = a_result([value], [200.0])
        line = json.dumps({**result.to_dict(), "machine": name})
        (tmp_path / f"{name}.jsonl").write_text(line + "\n")
    sides = [read_runs(tmp_path / f"{name}.jsonl") for name in ("zen4", "zen5")]
    only_one = runs_of([a_result([1.0], [2.0], case="another")])
    lines = runs_table([*sides, only_one]).splitlines()
    assert lines[0].split() == [
        *("case", "zen4", "ratio", "zen5", "ratio", "this", "run", "ratio", "reference")
    ]
    assert "100 messages/s   0.50  150 messages/s   0.75" in lines[1]
    assert "1.00 messages/s   0.50" in lines[2]


class Tags(html.parser.HTMLParser):
    """Names of a page's elements, and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def results_for_a_page(name="ours"):
    latency = {"50": 20.0, "99": 40.0, "99.9": 90.0}
    parts = {"wire": 10.0, "queue": 5.0, "kernel": 5.0}
    yield a_result(
        [20.0], [25.0], f"{name} p50", "us", details={"latency_us": latency, "breakdown_us": parts}
    )
    for streams in (1, 64, 1000):
        details = {"series": name, "streams": streams}
        yield a_result([1e3 * streams], [2e3], f"{name} {streams} streams", details=details)


def test_the_page_draws_all_that_was_measured_and_needs_no_other_file():
    page = html_page([runs_of(results_for_a_page())])
    tags = Tags()
    tags.feed(page)
    assert tags.names.count("svg") == 3
    assert tags.names.count("polyline") == 2
    assert not {"script", "link", "img", "iframe"} & set(tags.names)
    assert not {"src", "href", "onload"} & set(tags.attributes)
    for words in ("p99.9", "Throughput against streams: messages/s", "kernel", "1,000"):
        assert words in page


def test_text_from_files_cannot_become_markup():
    evil = "<script>alert(1)</script>"
    results = [
        dataclasses.replace(r, note=evil, reference=evil, benchmark=evil)
        for r in results_for_a_page(evil)
    ]
    results.append(a_result([1.0], [2.0], details={"latency_us": {evil: 1.0, "50": evil}}))
    results.append(a_result([1.0], [2.0], details={"streams": 3, "series": [evil]}))
    results.append(a_result([1.0], [2.0], details={"breakdown_us": {evil: 2.0, "b": math.nan}}))
    page = html_page([runs_of(results).renamed(evil)] * 2)
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.names
    assert "&lt;script&gt;" in page


def test_what_several_results_share_is_drawn_once():
    of = {"series": "ours", "latency_us": {"50": 20.0, "99": 40.0}}
    results = [
        a_result(
            [20.0],
            [25.0],
            f"p50, {peer}",
            "us",
            details={**of, "reference_series": peer, "reference_latency_us": {"50": 25, "99": 60}},
        )
        for peer in ("pyzmq", "gRPC")
    ]
    page = html_page([runs_of(results)])
    assert page.count("<polyline") == 3
    assert html_page([runs_of(results), runs_of(results).renamed("b")]).count("<polyline") == 6


def load_of(streams, times_ns, **options):
    latency, none = Histogram(), Histogram()
    latency.note(times_ns)
    done = len(times_ns)
    outcome = Outcome(
        How.DONE, False, 1.0, done, done, 0, 0, 0, 0, {}, "", latency, latency, none, none, none
    )
    return results_of(LoadOptions(streams=streams, **options), outcome)


def test_loads_of_one_file_are_all_drawn_each_under_a_name_of_its_own(tmp_path, capsys):
    file, page = tmp_path / "load.jsonl", tmp_path / "load.html"
    results = [
        *load_of(1000, [100_000, 200_000], rate=(10.0, 10.0)),
        *load_of(5000, [300_000, 900_000, 900_000], rate=(10.0, 10.0)),
        *load_of(1000, [50_000] * 4, chunk=4),
    ]
    with file.open("w") as output:
        write_json(results, output)
    assert main(["bench", "report", str(file), "--html", str(page)]) == 0
    assert "5000 streams, 10 steps/s each, poisson p99" in capsys.readouterr().out
    latency, throughput = page.read_text().split("<h2>")[1:3]
    assert latency.count("<polyline") == 3
    for streams in (1000, 5000):
        case = f"{streams} streams, 10 steps/s each, poisson p99"
        assert f"10 steps/s each, poisson ({case})" in latency
    # Two loads of one series are a line of two points; the other series is a point.
    assert throughput.count("<i></i>") == 2
    assert "10 steps/s each, poisson" in throughput
    assert "closed loop, 1 in flight, chunks of 4" in throughput


def test_a_page_of_ratios_alone_has_no_charts():
    assert "<svg" not in html_page([runs_of([a_result([1.0], [2.0])])])


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=5),
        st.lists(st.tuples(st.floats(1e-9, 1e12), st.floats(1e-9, 1e12)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_a_chart_is_well_formed_and_inside_its_frame(series):
    svg = line_chart(series, "streams", "steps/s").partition("<p class")[0]
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width
        assert 0 <= float(circle.attrib["cy"]) <= height


def test_of_more_lines_than_colours_no_two_look_alike():
    svg = line_chart({str(k): [(1.0, 1.0)] for k in range(2 * NUM_COLORS)}, "x", "y")
    looks = re.findall('<g class="(.*?)">', svg)
    assert len(set(looks)) == len(looks) == 2 * NUM_COLORS


def test_bars_are_as_long_as_their_parts():
    svg = bar_chart({"a": {"x": 30.0, "y": 10.0}, "b": {"x": 10.0, "y": 10.0}}, "us")
    root = ElementTree.fromstring(svg.partition("<p class")[0])
    widths = [float(r.attrib["width"]) for r in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert [w / widths[1] for w in widths] == pytest.approx([3, 1, 1, 1], rel=1e-2)


def test_csv_has_a_row_a_result_and_a_column_a_figure(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", list(results_for_a_page()))
    out, page = tmp_path / "a.csv", tmp_path / "a.html"
    assert main(["bench", "report", str(path), "--csv", str(out), "--html", str(page)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["case"] for row in rows] == [r.case for r in results_for_a_page()]
    assert rows[0]["latency_us.99"] == "40.0"
    assert rows[1]["streams"] == "1"
    assert page.read_text().startswith("<!doctype html>")
    assert "ours 64 streams" in capsys.readouterr().out


def test_compare_names_both_sides_and_other_machines(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", [a_result(np.linspace(1, 1.01, 9), np.full(9, 2.0))])
    b = write(tmp_path / "b.jsonl", [a_result(np.linspace(2, 2.01, 9), np.full(9, 2.0))])
    assert main(["bench", "compare", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "better" in shown
    assert "+99" in shown
    assert "Not one machine" not in shown
    b.write_text(json.dumps({**json.loads(b.read_text()), "machine": "another"}))
    assert main(["bench", "compare", str(a), str(b)]) == 0
    assert "Not one machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["compare"], "needs two files or directories, got 0"),
        (["report"], "needs files"),
        (["step", "x.jsonl"], "takes no file"),
        (["report", "missing.jsonl"], "cannot be read"),
    ],
)
def test_wrong_files_are_one_clear_line(words, error, capsys):
    assert main(["bench", *words]) == 1
    assert error in capsys.readouterr().err
