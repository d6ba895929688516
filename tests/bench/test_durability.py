"""The benchmark of durability."""

from __future__ import annotations

import re

import pytest

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server import durability
from streamrnn_bench.step.cases import Case

CASE = Case("gru", 3, 8)


@pytest.mark.slow
def test_durability_is_measured_in_all_three_modes(tmp_path):
    measure = durability.measure_durability(
        [CASE], num_rounds=1, round_s=0.3, num_streams=20, windows=(4,), directory=tmp_path
    )
    results = list(measure)
    case = "gru 3->8 20 streams window 4"
    assert [(each.case, each.unit, each.reference) for each in results] == [
        (f"{case} checkpoint float32 cpu", "messages/s", "none"),
        (f"{case} checkpoint p50 float32 cpu", "us", "none"),
        (f"{case} checkpoint p99.9 float32 cpu", "us", "none"),
        (f"{case} always float32 cpu", "messages/s", "none"),
        (f"{case} always p50 float32 cpu", "us", "none"),
        (f"{case} always p99.9 float32 cpu", "us", "none"),
        (f"{case} always p50 and disk float32 cpu", "us", "3_fdatasync_and_none"),
        ("gru 3->8 500 steps to replay: start until ready float32 cpu", "s", "nothing_to_replay"),
    ]
    # An entry of 32 bytes, an id of 14, x of 12, each padded; a record now and then.
    assert results[3].note.split()[1:4] == ["bytes", "a", "step;"]
    assert float(results[3].note.split()[0].replace(",", "")) >= 64
    assert re.search(r"of [\d,]+ kB, a group of [\d,]+ steps: [\d,]+ us", results[6].note)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_does_not_keep_up_is_not_timed():
    durability._check_writing({"num_saved": 60}, num_streams=20, round_s=3.0)
    with pytest.raises(BenchError, match="59 records were written, not 60"):
        durability._check_writing({"num_saved": 59}, num_streams=20, round_s=3.0)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BenchError, match="nowhere"):
        list(durability.measure_durability([CASE], directory=tmp_path / "nowhere"))


def test_fsyncs_are_timed_and_leave_nothing(tmp_path):
    times_us = durability.fsync_us(tmp_path, 5_000)
    assert min(times_us) > 0
    assert not list(tmp_path.iterdir())
