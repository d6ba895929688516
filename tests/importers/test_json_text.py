"""JSON of others: long lists of numbers become arrays, and no text takes much memory."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.errors import ModelFileError
from streamrnn.importers.json_text import parse_json, read_json_file

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("count", [12, 200_000])
def test_numbers_arrive_as_the_nearest_float32(tmp_path, count):
    numbers = RNG.standard_normal(count) * 10.0 ** RNG.integers(-50, 38, count)
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"a": [numbers.tolist(), [1, -2, 3] * (count // 3)]}, indent=1))
    first, second = read_json_file(path)["a"]
    assert first.dtype == np.float32
    assert np.array_equal(first, numbers.astype(np.float32))
    assert np.array_equal(second, [1, -2, 3] * (count // 3))


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9)))
def test_an_array_does_not_depend_on_how_a_file_is_spaced(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("json") / "m.json"
    text, found = '"[' + "1, " * 50 + "]", []
    for indent in (None, 7, 40):
        path.write_text(json.dumps({"in [1, 2]": rows, "text": text}, indent=indent))
        value = read_json_file(path)
        assert value["text"] == text
        found.append([np.asarray(row, np.float32).tolist() for row in value["in [1, 2]"]])
    assert found[0] == found[1] == found[2] == rows


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ("1, " * 100 + "1,", "byte .*: "),
        ("1, " * 100 + "1.", "byte .*: "),
        ("1, " * 100 + "01", "byte .*: "),
        ("1, " * 100 + "+1", "byte .*: "),
        ("1, " * 100 + "1 2", "byte .*: "),
        ("1, " * 100 + ", 2", "byte .*: "),
        (" " * 100, "a number is missing"),
        ("1," * ((1 << 19) + 1) + " ", "a number is missing"),
        ("1" * (3 << 20), "more than a megabyte"),
        ("1, " * 100 + "NaN", "NaN is no number"),
        ("1, " * 100 + "-Infinity", "nor is Infinity"),
        ("[], " * (2 << 20) + "1", "bytes beside long lists"),
        ('"", ' * (2 << 20) + "1", "bytes beside long lists"),
        ("[" + "0" * 70 + "], 1", "byte .*: "),
    ],
)
def test_a_long_list_that_is_none_is_refused(tmp_path, numbers, reason):
    path = tmp_path / "m.nam"
    path.write_text(f'{{"weights": [{numbers}]}}')
    with pytest.raises(ModelFileError, match=reason):
        read_json_file(path)


def test_lists_are_not_found_within_texts_nor_after_an_open_one(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('{"a": "' + "[" + "1, " * 100 + "1]")
    with pytest.raises(ModelFileError, match="Unterminated string"):
        read_json_file(path)


def test_a_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(ModelFileError, match="is no JSON that can be read"):
        parse_json('{"a": "\udca7"}', "a text")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        b'{"a": [' + b"[]," * (20 << 20),
        b'{"a": "' + b'\\"' * (30 << 20),
        b'{"a": [' + b"[1]," * (16 << 20),
        b'{"a": [[' + b"0.1, " * (12 << 20) + b"0]]}",
        b'{"a": [' + b" " * (60 << 20) + b"]}",
        b'{"a": [' + (b"[" + b"0," * 40 + b"0],") * 700_000 + b"1]}",
        b"[" * (60 << 20),
        b'"' * (60 << 20),
    ],
    ids=["lists", "text", "rows", "numbers", "blanks", "arrays", "depth", "quotes"],
)
def test_hostile_json_of_60_mb_takes_less_than_200_mb_beside_itself(tmp_path, text):
    path = tmp_path / "m.json"
    path.write_bytes(text)
    program = (
        "import resource, sys\n"
        "from streamrnn.errors import ModelError\n"
        "from streamrnn.importers.source import import_file\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try:\n"
        "    import_file(sys.argv[1])\n"
        "except ModelError:\n"
        "    print((peak() - before) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, timeout=60, check=True
    )
    assert int(done.stdout) - len(text) < 200e6
