"""The twenty series of `streamrnn bench training`: which they are, and how they are made."""

import gzip
import hashlib
import zipfile
from dataclasses import replace

import pytest

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.training.fetch import fetch, table
from streamrnn_bench.training.prepare import columns, dated, meters, typical_year
from streamrnn_bench.training.task import Task
from streamrnn_bench.training.tasks import TASKS, tasks_named, tasks_of

# Frozen before anything was trained: one of each pair, by the SHA-256 of its name.
JUDGED = [
    "electricity", "wind-power", "bike-sharing", "greensboro-temperature", "four-meters",
    "nasdaq", "glucose", "sunspots", "beijing-wind", "walking",
]  # fmt: skip
# Of what is asked and of which data; a change here makes another benchmark.
QUESTIONS = "2b2f3b92fcdcd7628a835b5e737dbfaada5757a60aca97082a53c21b4ff6b391"


def test_which_series_judge_is_frozen():
    assert [task.name for task in tasks_of("judged")] == JUDGED
    tuning = [task.name for task in tasks_of("tuning")]
    assert len(tuning) == 10
    assert set(tuning) | set(JUDGED) == {task.name for task in TASKS}


def test_what_is_asked_of_them_is_frozen():
    questions = [
        (t.name, t.package, t.files, t.sha256, t.predict, t.horizon, t.time, t.group, t.split)
        for t in TASKS
    ]
    assert hashlib.sha256(repr(questions).encode()).hexdigest() == QUESTIONS


def test_an_unknown_series_is_an_error_that_lists_all():
    with pytest.raises(BenchError, match=r"no series 'windpower'; known are electricity, .*"):
        tasks_named(["windpower"])
    assert [task.name for task in tasks_named(["wind-power"])] == ["wind-power"]


def test_columns_drops_later_duplicates_and_rows_without_the_last_column():
    data = b"a,b,c\n1,x,5\n1,y,6\n2,NA,7\n3,z,.\n4,z,\n5,w,8\n"
    prepare = columns(("a", "b", "c"), key=("a",), renamed={"NA": ""})
    assert prepare([data]) == [["a", "b", "c"], ["1", "x", "5"], ["2", "", "7"], ["5", "w", "8"]]
    last = columns(("c",), last_rows=2)([gzip.compress(b"\xef\xbb\xbf" + data)])
    assert last == [["c"], ["7"], ["8"]]


def test_columns_turns_dates_into_iso_dates():
    prepare = columns(("d", "v"), date_format="%m/%d/%Y")
    assert prepare([b"v,d\n1,12/3/1999\n"]) == [["d", "v"], ["1999-12-03", "1"]]


def test_dated_joins_the_parts_of_a_date():
    data = b"year,month,day,hour,v\n2010,1,2,3,NA\n2010,1,2,4,9\n"
    rows = dated(("v",), last_rows=2)([data])
    assert rows == [["time", "v"], ["2010-01-02 03:00", ""], ["2010-01-02 04:00", "9"]]


def test_meters_are_joined_with_the_temperature_of_their_hour():
    one, two = b"start,value\n0,1\n1,2\n2,3\n", b"start,value\n1,5\n2,6\n"
    warmth = b"dt,tempF\n2,22\n1,21\n0,20\n"
    assert meters(("a", "b"), last_rows=2)([one, two, warmth]) == [
        ["meter", "time", "temperature", "energy"],
        ["a", "1", "21", "2"],
        ["a", "2", "22", "3"],
        ["b", "1", "21", "5"],
        ["b", "2", "22", "6"],
    ]


def test_a_typical_year_is_dated_as_one():
    names = (
        "Date (MM/DD/YYYY),Time (HH:MM),GHI (W/m^2),TotCld (tenths),Dew-point (C),RHum (%),"
        "Pressure (mbar),Wdir (degrees),Wspd (m/s),Dry-bulb (C)"
    )
    data = f"a place\n{names}\n01/31/1988,24:00,1,2,3,4,5,6,7,8\n02/01/1979,01:00,0,2,3,4,5,6,7,9\n"
    rows = typical_year([data.encode()])
    assert [row[0] for row in rows[1:]] == ["2001-01-31 23:00", "2001-02-01 00:00"]
    assert rows[0][-1] == "temperature"
    assert [row[-1] for row in rows[1:]] == ["8", "9"]


@pytest.fixture
def task(tmp_path):
    """A task of a made package, whose wheel lies where pip would put it."""
    data = b"t,y\n1,2\n2,3\n"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "made_data-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("made/y.csv", data)
    digest = hashlib.sha256(data).hexdigest()
    files = (("made/y.csv", digest),)
    return Task("made", "made", "made-data==1.0", files, columns(("t", "y")), digest, predict="y")


def test_a_table_is_made_of_its_wheel_once(task, tmp_path):
    path = fetch(task, tmp_path)
    assert path.read_bytes() == b"t,y\n1,2\n2,3\n"
    (tmp_path / "wheels" / "made_data-1.0-py3-none-any.whl").unlink()
    assert fetch(task, tmp_path) == path


def test_a_table_that_was_edited_is_made_again(task, tmp_path):
    (tmp_path / "made.csv").write_bytes(b"t,y\n1,9\n")
    assert fetch(task, tmp_path).read_bytes() == b"t,y\n1,2\n2,3\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": (("made/y.csv", "0" * 64),)}, r"made/y.csv in made_data.*but 0+ is known"),
        ({"files": (("made/z.csv", "0" * 64),)}, r"holds no file made/z.csv"),
        ({"sha256": "0" * 64}, r"the table made has the SHA-256"),
        ({"prepare": columns(("y",))}, r"the table made has the SHA-256"),
    ],
)
def test_what_is_not_what_it_was_is_refused(task, tmp_path, changed, message):
    with pytest.raises(BenchError, match=message):
        table(replace(task, **changed), tmp_path / "wheels" / "made_data-1.0-py3-none-any.whl")


def test_a_package_that_cannot_be_had_is_an_error_with_pips_words(task, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    absent = replace(task, package="absent-data==1.0")
    with pytest.raises(BenchError, match="pip could not download"):
        fetch(absent, tmp_path)
