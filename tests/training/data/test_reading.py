"""Text, Parquet and compressed files as tables: every notation right, or an error that helps."""

import bz2
import csv
import gzip
import io
import lzma
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.errors import DataError, TrainingError
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading import csv_file
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.read import read_table

SECONDS_1999 = 946_684_800 - 86_400  # of 1999-12-31


def table_of(tmp_path, text, kinds=None, keep=(), **options):
    path = tmp_path / "data.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, ReadOptions(**options), kinds, keep)


def numbers(table, name):
    return table.usable(name).numbers.tolist()


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ('date,"Temp, min","wind ""10m"""\n1,2,3\n', ["date", "Temp, min", 'wind "10m"']),
        ('"Temp, min";"Temp, max"\n5.0;12.8\n', ["Temp, min", "Temp, max"]),
        ('date,"temp\nmax",wind\n1,2,3\n', ["date", "temp\nmax", "wind"]),
        ("a\tb\n1,5\t2\n", ["a", "b"]),
        ("a|b\n1|2\n", ["a", "b"]),
        ("\n\na;b\n1,5;2,5\n", ["a", "b"]),
        ("a,b\r\n1,2\r\n", ["a", "b"]),
        ("a,b\r1,2\r", ["a", "b"]),
    ],
)
def test_headers_are_read_as_they_were_meant(tmp_path, header, names):
    assert list(table_of(tmp_path, header).columns) == names


def test_a_counting_index_of_pandas_is_left_out_and_one_of_dates_kept(tmp_path):
    table = table_of(tmp_path, ",year,y\n0,1700,5\n1,1701,11\n2,1702,16\n")
    assert list(table.columns) == ["year", "y"]
    table = table_of(tmp_path, ",y\n1999-12-31,5\n2000-01-01,11\n")
    assert list(table.columns) == ["index", "y"]
    assert table.column("index").texts(0, 2) == ["1999-12-31", "2000-01-01"]


@pytest.mark.parametrize(
    ("cells", "options", "expected"),
    [
        (["1.5", " 2 ", "+3e2", ""], {}, [1.5, 2, 300, np.nan]),
        (["NaN", "n/a", "NULL", "-1"], {}, [np.nan] * 3 + [-1]),
        (["1,5", "-,5", "2"], {"decimal": ","}, [1.5, -0.5, 2]),
        (["1,234.5", "12", "-1,000,000"], {"thousands": ","}, [1234.5, 12, -1e6]),
        (["1.234,5", "2.000"], {"decimal": ",", "thousands": "."}, [1234.5, 2000]),
        (["1 234", "2\u00a0000,5"], {"decimal": ",", "thousands": " "}, [1234, 2000.5]),
        (["1", "?", "-999"], {"na": ("?", "-999")}, [1, np.nan, np.nan]),
    ],
)
def test_notations_of_numbers(tmp_path, cells, options, expected):
    table = table_of(tmp_path, "a;b\n" + "".join(f"{cell};0\n" for cell in cells), **options)
    np.testing.assert_array_equal(table.usable("a").numbers, expected)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (".", r"line 4: column 'a' holds numbers, but '\.' is none: .*--na '\.'"),
        ("?", r"--na '\?'; if the column holds names, --categorical 'a'"),
        ("#N/A", "--na '#N/A'"),
        ("1,234.5", r"--thousands ,$"),
        ("3,5", r"--decimal ,"),
        ("1.234.567,8", r"--thousands '.' --decimal ,"),
        ("1'234", r'--thousands "\'"'),
        ("12 %", "take signs and units out of the file"),
        ("1.2.2024", "if it is a date, .*--date-format '%d.%m.%Y'"),
    ],
)
def test_an_odd_cell_among_numbers_names_itself_and_the_option_that_reads_it(tmp_path, cell, words):
    text = f"a;b\n1;0\n2;0\n{cell};0\n3;0\n"
    with pytest.raises(DataError, match=words):
        table_of(tmp_path, text).usable("a")


def test_a_column_of_decimal_commas_alone_is_no_column_of_names(tmp_path):
    words = r"line 2: column 'a' .*'1,5' \(and 2 more\).*--decimal ,"
    with pytest.raises(DataError, match=words):
        table_of(tmp_path, "a;b\n1,5;x\n2,5;y\n3,25;x\n").usable("a")


@pytest.mark.parametrize(
    ("dates", "form"),
    [
        (("01/02/2024", "01/13/2024"), "%m/%d/%Y"),
        (("01/02/2024", "13/02/2024"), "%d/%m/%Y"),
        (("1 Jan 2024", "2 Feb 2024"), "%d %b %Y"),
        (("Jan 1, 2024", "May 2, 2024"), "%b %d, %Y"),
        (("2024-01", "2024-02"), "%Y-%m"),
        (("2024/01/02 10:30", "2024/01/02 11:30"), "%Y/%m/%d %H:%M"),
        (("1/2/2024 1:30 PM", "1/31/2024 1:30 AM"), "%m/%d/%Y %I:%M %p"),
        (("31.12.2024", "1.1.2025"), "%d.%m.%Y"),
    ],
)
def test_dates_in_another_form_are_no_names(tmp_path, dates, form):
    """A name a row teaches nothing, and the next file has none of them."""
    text = "day;y\n" + "".join(f"{day};1\n" for day in dates)
    with pytest.raises(DataError, match=f"column 'day' .*--date-format '{form}'"):
        table_of(tmp_path, text).usable("day")
    assert table_of(tmp_path, text, date_format=form).usable("day").times is not None
    named = table_of(tmp_path, text, kinds={"day": "text"})
    assert named.usable("day").labels == dates


def test_a_separator_at_the_end_of_each_line_makes_no_column(tmp_path):
    table = table_of(tmp_path, "a,b,\n1,2,\n3,4,\n")
    assert list(table.columns) == ["a", "b"]
    assert numbers(table, "b") == [2, 4]


def test_a_text_without_tokens_is_told_from_a_table(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("the cat sat on the mat")
    with pytest.raises(DataError, match="has a header but no rows; if it is a text, --tokens char"):
        read_table(str(path))


def test_a_row_of_units_is_left_out_by_its_line(tmp_path):
    text = "when,temp\n-,°C\n1,20.5\n2,21\n"
    with pytest.raises(DataError, match=r"line 2: .*'°C' is none: if that line holds units.*LINE"):
        table_of(tmp_path, text).usable("temp")
    assert numbers(table_of(tmp_path, text, skip_rows=("2",)), "temp") == [20.5, 21]
    text = "made by\nsome logger\n" + text
    assert numbers(table_of(tmp_path, text, skip_rows=("1-2", "4")), "temp") == [20.5, 21]


def test_a_column_of_names_with_some_numbers_stays_names(tmp_path):
    table = table_of(tmp_path, "a,b\nred,1\n12,1\nblue,2\nred,2\n")
    assert table.usable("a").labels == ("red", "12", "blue")
    table = table_of(tmp_path, "a,b\n12,1\n12A,1\n13,2\n", kinds={"a": "text"})
    assert table.usable("a").labels == ("12", "12A", "13")


def test_names_that_are_numbers_stay_apart(tmp_path):
    ids = ["7", "07", "007", "7.0", "+7", "8901260221234567890", "8901260221234567891"]
    table = table_of(tmp_path, "id,y\n" + "".join(f"{k},1\n" for k in ids), kinds={"id": "text"})
    assert table.column("id").labels == tuple(ids)


def test_quoted_blanks_and_newlines_are_characters_and_empty_cells_are_missing(tmp_path):
    table = table_of(tmp_path, 'c,b\n"a",1\n" ",1\n"\n",1\n,1\n  ,1\n"b",1\n')
    column = table.usable("c")
    assert column.labels == ("a", " ", "\n", "b")
    np.testing.assert_array_equal(column.indices, [0, 1, 2, -1, -1, 3])


def test_dates_of_every_notation(tmp_path):
    day = SECONDS_1999
    cases = [
        (["1999-12-31", "1999-12-31T00:00:01Z"], {}, [day, day + 1]),
        (["1999-12-31T02:00:00+02:00", ""], {}, [day, np.nan]),
        (
            ["1999-12-31 00:00:00.5", "1999-12-31T00:00:00.123456789"],
            {},
            [day + 0.5, day + 0.123456],
        ),
        (["31.12.1999", "01.01.2000"], {"date_format": "%d.%m.%Y"}, [day, day + 86_400]),
    ]
    for cells, options, expected in cases:
        text = "t,b\n" + "".join(f"{cell},1\n" for cell in cells)
        np.testing.assert_array_equal(
            table_of(tmp_path, text, **options).usable("t").times, expected, err_msg=str(cells)
        )
    with pytest.raises(DataError, match="line 3: column 't' holds dates, but 'soon' is none"):
        table_of(tmp_path, "t,b\n1999-12-31,1\nsoon,2\n", kinds={"t": "times"}).usable("t")


def test_two_columns_of_dates_are_asked_about(tmp_path):
    rows = "".join(f"2000-01-{d:02},2001-01-{d:02},{d % 7}\n" for d in range(1, 29))
    path = tmp_path / "data.csv"
    path.write_text("sent,received,y\n" + rows)
    table = read_table(path)
    config = TrainingConfig(path=str(path), predict=("y",))
    with pytest.raises(DataError, match=r"2 columns of dates, sent, received:.*--time 'sent'"):
        make_dataset(config, table)
    for time in ("sent", "received", ""):
        dataset = make_dataset(config.replace(time=time), table)
        assert [item.name for item in dataset.spec.inputs] == ["y"]


def test_names_with_commas_are_put_together_again(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('"Temp, min",wind\n' + "".join(f"{k % 5},{k % 3}\n" for k in range(40)))
    for names in (("Temp", " min"), ("Temp, min",)):
        config = TrainingConfig(path=str(path), predict=names)
        assert make_dataset(config, read_table(path)).config.predict == ("Temp, min",)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_read_whatever_they_are_called(tmp_path, compress):
    table = table_of(tmp_path, compress(b"a,b\n1,2\n3,4\n"))
    assert numbers(table, "b") == [2, 4]
    damaged = compress(b"a,b\n" + b"1,2\n" * 9999)[:-9]
    with pytest.raises(DataError, match="damaged"):
        table_of(tmp_path, damaged)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig"])
def test_encodings(tmp_path, encoding):
    text = (
        "größe,ort\n1.5,Köln\n2,Çeşme\n" if encoding.startswith("utf") else "größe,ort\n1.5,Köln\n"
    )
    option = {} if encoding.startswith("utf") else {"encoding": encoding}
    table = table_of(tmp_path, text.encode(encoding), **option)
    assert list(table.columns) == ["größe", "ort"]
    assert table.column("ort").labels[0] == "Köln"


def test_bytes_that_are_no_text_name_the_line_and_the_option(tmp_path):
    with pytest.raises(DataError, match=r"line 3: .*UTF-8.*--encoding latin-1"):
        table_of(tmp_path, "ort,a\nBonn,1\nKöln,2\n".encode("latin-1"))
    late = ("ort,a\n" + "Bonn,1\n" * 400_000).encode() + b"K\xf6ln,2\n"
    with pytest.raises(DataError, match=r"line 400002: "):
        table_of(tmp_path, late)


@pytest.mark.parametrize("text", ["1,2\n3\n4,5\n", "1,2\n3,4,5\n", '1,2\n"3\n4",5\n\n6\n'])
def test_a_row_of_another_length_is_named_by_its_line(tmp_path, text):
    line = 3 if not text.startswith('1,2\n"') else 6
    with pytest.raises(DataError, match=f"line {line}: [13] cells?, but the header names 2"):
        table_of(tmp_path, "a,b\n" + text)


def test_a_row_is_named_by_its_line_only_where_rows_are_lines(tmp_path):
    assert table_of(tmp_path, "a,b\n1,2\n3,4").place(1) == "line 3"
    for text in ("a,b\n\n1,2\n3,4\n", 'a,b\n1,"2\n"\n3,4\n'):
        assert table_of(tmp_path, text).place(1) == "row 2"


def test_a_pipe_and_standard_input_are_read_once(tmp_path, monkeypatch):
    data = b"a,b\n" + b"1,2\n" * 300_000
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    table = read_table(pipe)
    writer.join()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    again = read_table("-")
    assert table.num_rows == again.num_rows == 300_000
    assert table.sha256 == again.sha256 == read_table_sha256(tmp_path, data)


def read_table_sha256(tmp_path, data):
    return table_of(tmp_path, data).sha256


@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(",;\t|"),
)
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_as_the_standard_library_wrote_it(tmp_path_factory, rows, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["a", "b"], *rows])
    table = table_of(
        tmp_path_factory.mktemp("t"),
        text.getvalue(),
        kinds={"a": "text", "b": "text"},
        keep=("a", "b"),
        delimiter=delimiter,
    )
    assert table.num_rows == len(rows)
    for k, name in enumerate("ab"):
        assert table.column(name).texts(0, len(rows)) == [row[k] for row in rows]


def test_parquet_keeps_its_types(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "data.parquet"
    when = np.array(["1999-12-31", "2000-01-01"], "datetime64[ms]")
    columns = {
        "t": pa.array(when),
        "id": pa.array(["07", "7"]),
        "n": pa.array([1, None], pa.int32()),
        "f": pa.array([True, False]),
        "c": pa.array(["x", "y"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), path)
    table = read_table(path)
    np.testing.assert_array_equal(table.column("t").times, SECONDS_1999 + 86_400 * np.arange(2))
    assert table.column("id").labels == ("07", "7")
    np.testing.assert_array_equal(table.column("n").numbers, [1, np.nan])
    np.testing.assert_array_equal(table.column("f").numbers, [1, 0])
    assert table.column("c").labels == ("x", "y")
    path.write_bytes(path.read_bytes()[:-20] + b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(path)
    pq.write_table(pa.table({"a": pa.array([[1, 2]])}), path)
    with pytest.raises(DataError, match="column 'a' is of type list"):
        read_table(path)


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": "ab"},
        {"delimiter": '"'},
        {"encoding": "zip"},
        {"encoding": "klingon"},
        {"decimal": ";"},
        {"decimal": ",", "thousands": ","},
        {"thousands": "x"},
        {"skip_rows": ("0",)},
        {"skip_rows": ("3-2",)},
        {"skip_rows": ("1-99999",)},
        {"delimiter": ",", "decimal": ","},
        {"date_format": "%d.%m.%Y %H:%m"},
        {"date_format": "%Q"},
        {"date_format": "%d %"},
    ],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(TrainingError, match="|".join(options)):
        ReadOptions(**options)


@pytest.mark.parametrize("word", ["", "NA", "nan", "?"])
def test_blocks_of_missing_words_before_the_first_value_keep_every_row_in_its_place(
    tmp_path, monkeypatch, word
):
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 64)
    cells = [word] * 100 + [str(k) for k in range(100, 200)]
    table = table_of(tmp_path, "a,b\n" + "".join(f"{c},1\n" for c in cells), na=("?",))
    column = table.usable("a")
    assert column.num_rows == table.num_rows == 200
    assert column.is_missing.tolist() == [True] * 100 + [False] * 100
    np.testing.assert_array_equal(column.numbers[100:], np.arange(100, 200))


def test_a_short_row_is_found_in_the_encoding_that_was_told(tmp_path):
    with pytest.raises(DataError, match="line 3: 1 cell, but the header names 2"):
        table_of(tmp_path, "ort,a\nKöln,1\nBonn\n".encode("latin-1"), encoding="latin-1")


def test_names_with_commas_that_tell_streams_apart_are_read_as_text():
    assert TrainingConfig(path="x", group=("Id", " site")).kinds()["Id, site"] == "text"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# made by hand\na,b\n1,2\n", r"begins with #: if it is a comment.*--skip-rows 1\)"),
        ("a,b\n1,2\n# the rest is of May\n3,4\n", r"if it is a comment.*--skip-rows 3\)"),
    ],
)
def test_a_comment_is_said_to_be_left_out_by_its_line(tmp_path, text, words):
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_table(str(path))
