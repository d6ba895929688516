"""Tables, columns, transforms and the split into parts."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from streamrnn.errors import DataError, TrainingError
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data import columns
from streamrnn.training.data.columns import drifts, fill_forward
from streamrnn.training.data.dataset import encode, make_dataset
from streamrnn.training.data.reading.cells import parse_time
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.network.network import Chunk, Network
from tests.support.models import EVERY_KIND_OF_INPUT, random_inputs, random_model
from tests.tolerances import REFERENCE_FLOAT32


def write(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def dataset_of(path, **options):
    return make_dataset(TrainingConfig(path=path, **options), read_table(path))


def series(tmp_path, values, name="y"):
    return write(tmp_path, "\n".join([name, *("" if v != v else repr(float(v)) for v in values)]))


def test_csv_columns_are_numbers_or_text(tmp_path):
    table = read_table(write(tmp_path, "\ufeffa, b ,c\n1,x,NA\n\n2.5,,3e2\nnan,y,\n"))
    assert list(table.columns) == ["a", "b", "c"]
    assert table.num_rows == 3
    np.testing.assert_array_equal(table.column("a").numbers, [1, 2.5, np.nan])
    np.testing.assert_array_equal(table.column("c").numbers, [np.nan, 300, np.nan])
    assert table.column("b").numbers is None
    assert table.column("b").categories() == ("x", "y")
    np.testing.assert_array_equal(table.column("b").codes(("x", "y")), [0, np.nan, 1])


def test_semicolons_and_quotes(tmp_path):
    table = read_table(write(tmp_path, 'a;b\n1;"x;1"\n2;"y"\n'))
    assert table.column("b").texts(0, 2) == ["x;1", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", "line 3: 1 cell, but the header names 2"),
        ("a,a\n1,2\n", "two columns are named 'a'"),
        ("a,\n1,2\n", "column 2 has no name"),
        ("1,2\n3,4\n", "only numbers"),
        ("a\n1\ninf\n", "line 3: column 'a' holds inf; of numbers beyond 1e\\+30"),
        ("a\n1e300\n", "line 2: column 'a' holds 1e\\+300"),
    ],
)
def test_bad_csv_says_what_and_where(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, text)).usable("a")


@pytest.mark.parametrize(
    ("column", "row", "value", "options", "words"),
    [
        ("y", 70, 1e29, {}, r"'y' holds 1e\+29; in its training part it is 0\.\S+ \+- "),
        ("x", 70, -1e29, {}, r"'x' holds -1e\+29; in its training part it is"),
        ("x", 95, 1e29, {"difference": ("x",)}, "'x' holds .* training part, as changes, it is"),
        ("x", 10, 1e35, {}, r"line 12: column 'x' holds 1e\+35; of numbers beyond 1e\+30"),
    ],
)
def test_a_value_that_leaves_float32_is_told(tmp_path, column, row, value, options, words):
    values = np.random.default_rng(0).standard_normal((100, 2))
    values[row, "xy".index(column)] = value
    lines = [f"{x!r},{y!r}" for x, y in values.tolist()]
    path = write(tmp_path, "\n".join(["x,y", *lines]))
    config = TrainingConfig(path=str(path), predict=("y",), inputs=("x",), **options)
    with pytest.raises(DataError, match=words):
        make_dataset(config, read_table(path))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_table(path)
    with pytest.raises(DataError, match="cannot be opened"):
        read_table(tmp_path / "absent.csv")


def test_what_is_no_regular_file_is_refused(tmp_path):
    for path in ("/dev/zero", str(tmp_path)):
        with pytest.raises(DataError, match="no regular file"):
            read_table(path)
    for path in ("a\0b", "a\ud800"):
        with pytest.raises(DataError, match="no path of a file"):
            read_table(path)


def test_a_table_of_very_many_columns_is_no_trouble_and_errors_stay_short(tmp_path, monkeypatch):
    """Quadratic work took minutes; the test's time limit would tell."""
    monkeypatch.setattr(columns, "MAX_SIZE", 8192)
    names = [f"c{k}" for k in range(8193)]
    path = write(tmp_path, "\n".join([",".join(names), ",".join(["1"] * len(names))]))
    table = read_table(path)
    assert list(table.columns) == names
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "which column"),
        ({"predict": ("d",)}, "has no column 'd'"),
        ({"predict": ("c0",), "inputs": ("c0",), "missing": {"d": "hold"}}, "which is no input"),
        ({"predict": ("c0",)}, "8193 columns are inputs; a model has at most 8192"),
        ({"predict": ("c0",), "inputs": (*names[:-1],)}, "the train part .* holds 0 targets"),
    ]
    for options, message in cases:
        with pytest.raises((DataError, TrainingError), match=message) as caught:
            make_dataset(TrainingConfig(path=path, **options), table)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["a,b\n" + "9" * 5000 + ",2\n", "t,a\n" + "x" * 9000 + ",1\n"])
def test_an_error_shows_the_beginning_of_a_long_cell(tmp_path, text):
    with pytest.raises(DataError) as caught:
        dataset_of(write(tmp_path, text), predict=("a",), time="t")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_times_sort():
    order = ["1999-12-31", "2000-01-01", "2000-01-01T00:00:01", "2000-01-01T02:00:00+01:00"]
    times = [parse_time(cell) for cell in order]
    assert times == sorted(times)
    assert times[1] - times[0] == 86_400
    assert times[3] - times[1] == 3_600
    assert parse_time("17.5") == 17.5
    with pytest.raises(DataError, match="neither a number nor an ISO date"):
        parse_time("31.12.1999")


def test_unknown_columns_get_the_nearest_name(tmp_path):
    path = write(tmp_path, "Date,CO2\n" + "\n".join(f"2000-01-{d:02},{d}" for d in range(1, 29)))
    with pytest.raises(DataError, match=r"no column 'co2' \(did you mean 'CO2'\?\); its"):
        dataset_of(path, predict=("co2",))
    with pytest.raises(DataError, match=r"which column .* shall be predicted"):
        dataset_of(path)


def test_the_target_is_the_next_row_and_parts_are_in_time_order(tmp_path):
    values = np.arange(20.0) ** 2
    dataset = dataset_of(series(tmp_path, values), predict=("y",), difference=())
    stream, output = dataset.streams[0], dataset.spec.outputs[0]
    assert output.name == "y+1"
    assert output.difference_of is None
    assert stream.stops == (11, 15, 19)
    target = stream.target[:, 0].astype(float) * output.scale + output.center
    np.testing.assert_allclose(target[:-1], values[1:], rtol=1e-5, atol=1e-4)
    assert np.isnan(target[-1])
    # Rows whose targets lie in the first 60 % of the values, and only those, make the scale.
    assert output.center == pytest.approx(values[1:12].mean(), rel=1e-6)
    item = dataset.spec.inputs[0]
    assert item.center == pytest.approx(values[:12].mean(), rel=1e-6)
    assert item.scale == pytest.approx(values[:12].std(), rel=1e-6)


def test_later_values_do_not_change_what_is_measured(tmp_path):
    values = np.random.default_rng(1).normal(size=100)
    before = dataset_of(series(tmp_path, values), predict=("y",))
    values[60:] = 1e6
    after = dataset_of(series(tmp_path, values), predict=("y",))
    assert before.spec == after.spec


def test_differences_speak_the_users_units(tmp_path):
    values = np.arange(40.0) * 2 + np.sin(np.arange(40.0))
    values[10] = np.nan
    dataset = dataset_of(series(tmp_path, values), predict=("y",))
    stream, output = dataset.streams[0], dataset.spec.outputs[0]
    assert dataset.config.difference == ("y",)
    assert dataset.config.missing == {"y": "hold"}
    assert output.difference_of == "y"
    target = stream.target[:, 0] * output.scale + output.center + stream.level[:, 0]
    np.testing.assert_allclose(target[:-1], values[1:], rtol=1e-6)
    assert np.isnan(target[9])
    assert stream.level[10, 0] == np.float32(values[9])


def test_a_gap_at_the_beginning_is_no_change(tmp_path):
    rng = np.random.default_rng(0)
    values = 100 + np.cumsum(rng.normal(3, 2, 60))
    values[:25] = np.nan
    dataset = dataset_of(series(tmp_path, values), predict=("y",), difference=("y",))
    # Changes between known values whose targets lie in the training part, and no other.
    changes = np.diff(values[25:36].astype(np.float32))
    item, output = dataset.spec.inputs[0], dataset.spec.outputs[0]
    assert item.center == pytest.approx(changes.mean(), rel=1e-4)
    assert item.scale == pytest.approx(changes.std(), rel=1e-4)
    assert output.center == pytest.approx(changes.mean(), rel=1e-4)
    assert output.scale == pytest.approx(changes.std(), rel=1e-4)
    assert np.isnan(dataset.streams[0].target[:25]).all()
    assert not np.isnan(dataset.streams[0].target[25:-1]).any()


def test_missing_values_that_are_not_allowed_are_refused(tmp_path):
    path = series(tmp_path, [1, 2, np.nan, *range(30)])
    with pytest.raises(DataError, match="line 4: column 'y' is missing"):
        dataset_of(path, predict=("y",), missing={"y": "error"})


def test_the_horizon_shifts_the_target(tmp_path):
    values = np.random.default_rng(2).normal(size=50)
    dataset = dataset_of(series(tmp_path, values), predict=("y",), horizon=3)
    output = dataset.spec.outputs[0]
    target = dataset.streams[0].target[:, 0] * output.scale + output.center
    np.testing.assert_allclose(target[:-3], values[3:], rtol=1e-5, atol=1e-6)
    assert output.name == "y+3"
    with pytest.raises(TrainingError, match="nothing to learn from"):
        dataset_of(series(tmp_path, values), predict=("y",), horizon=0, inputs=("y",))


def test_groups_become_streams_in_time_order(tmp_path):
    rows = [(d, g, 10 * g + d) for d in range(1, 21) for g in (2, 1)]
    np.random.default_rng(3).shuffle(rows)
    lines = "\n".join(f"2000-01-{d:02},{g},{v}" for d, g, v in rows)
    path = write(tmp_path, "day,g,y\n" + lines)
    dataset = dataset_of(path, predict=("y",), group="g")
    assert dataset.config.time == "day"
    assert [stream.name for stream in dataset.streams] == ["1", "2"]
    for stream, level in zip(dataset.streams, (10, 20), strict=True):
        np.testing.assert_array_equal(stream.x[:, 0], level + np.arange(1, 21))
    assert [item.name for item in dataset.spec.inputs] == ["y"]


def test_text_columns_become_categories(tmp_path):
    rng = np.random.default_rng(4)
    lines = [f"{rng.normal()},{rng.choice(['red', 'blue'])},{k % 12},{k % 2}" for k in range(60)]
    path = write(tmp_path, "y,colour,month,flag\n" + "\n".join(lines))
    dataset = dataset_of(path, predict=("colour",), categorical=("month",))
    colour, month = dataset.spec.inputs[1], dataset.spec.inputs[2]
    assert (colour.categories, colour.embedding_size) == (("blue", "red"), 0)
    assert month.categories == tuple(str(k) for k in range(12))
    assert month.embedding_size > 0
    assert dataset.loss == "cross_entropy"
    assert [item.name for item in dataset.spec.outputs] == ["blue", "red"]
    stream = dataset.streams[0]
    np.testing.assert_array_equal(stream.target[:-1, 0], stream.x[1:, 1])
    np.testing.assert_array_equal(stream.chunk.codes["month"][:, 0], np.arange(60) % 12)
    assert dataset_of(path, predict=("flag",)).loss == "binary_cross_entropy"
    with pytest.raises(TrainingError, match="holds names"):
        dataset_of(path, predict=("colour",), loss="mse")
    with pytest.raises(TrainingError, match="0 and 1"):
        dataset_of(path, predict=("y",), loss="binary_cross_entropy")


def test_too_little_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="the train part"):
        dataset_of(series(tmp_path, range(6)), predict=("y",))


def test_npz_with_targets_lengths_and_names(tmp_path):
    rng = np.random.default_rng(5)
    path = str(tmp_path / "data.npz")
    x, y = rng.normal(size=(3, 20, 2)), rng.integers(0, 4, (3, 20))
    np.savez(path, X=x, y=y, names=np.array(["a", "b"]), lengths=np.array([20, 15, 20]))
    dataset = dataset_of(path)
    assert [item.name for item in dataset.spec.inputs] == ["a", "b"]
    assert dataset.loss == "cross_entropy"
    assert dataset.config.horizon == (0,)
    assert [len(stream.x) for stream in dataset.streams] == [20, 15, 20]
    np.testing.assert_array_equal(dataset.streams[1].target[:, 0], y[1, :15])
    np.testing.assert_array_equal(dataset.streams[2].x, x[2].astype(np.float32))


def test_npz_tokens_predict_the_next_token(tmp_path):
    path = str(tmp_path / "data.npz")
    tokens = np.random.default_rng(6).integers(0, 9, 80).astype(np.uint32)
    np.savez(path, X=tokens)
    dataset = dataset_of(path)
    assert dataset.spec.is_token
    assert dataset.spec.inputs[0].num_categories == 9
    assert dataset.spec.output_size == 9
    np.testing.assert_array_equal(dataset.streams[0].target[:-1, 0], tokens[1:])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, r"unknown key 'x' \(did you mean 'X'\?\)"),
        ({"y": np.zeros(3)}, "no key 'X'"),
        ({"X": np.zeros(3)}, r"X is float64 \[3\]"),
        ({"X": np.zeros((5, 2)), "y": np.zeros(4)}, r"y is float64 \[4\]"),
        ({"X": np.zeros((5, 2)), "names": np.array(["a"])}, "1 name "),
        ({"X": np.zeros((2, 5, 1)), "lengths": np.array([5, 6])}, "lengths"),
        ({"X": np.full((5, 1), np.inf)}, "column 'x0' holds inf; of numbers beyond 1e\\+30"),
        ({"X": np.zeros((5, 2)), "names": np.array(["a", "a"])}, "two columns are named 'a'"),
        (
            {"X": np.zeros((2, 1)), "y": np.array([0, -1])},
            "class -1; classes are 0, 1, 2, .*: number them so",
        ),
        # As many tokens or classes as the largest says would be allocated.
        ({"X": np.array([0, 2**63], np.uint64)}, f"token {2**63}; the largest .* is 65535"),
        ({"X": np.array([0, 2**16], np.uint32)}, "token 65536; the largest .* is 65535"),
        ({"X": np.zeros((2, 1)), "y": np.array([0, 2**62])}, f"class {2**62}; the largest"),
    ],
)
def test_bad_npz_says_what_is_wrong(tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        read_table(path).usable("x0")


def test_an_npz_whose_compressed_data_are_damaged_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, X=np.random.default_rng(1).standard_normal((100, 2)))
    whole = path.read_bytes()
    for at in range(60, 1000, 50):
        path.write_bytes(whole[:at] + bytes(20) + whole[at + 20 :])
        with pytest.raises(DataError, match=r"cannot be read as \.npz"):
            read_table(path)


def test_npz_never_unpickles(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, X=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        read_table(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        read_table(path)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((2**31, 2**20), b"", "do not fit into memory|cannot be read"),
        ((2**62, 4), b"", "cannot be read"),
        ((-1, 4), b"", "cannot be read"),
        ((4, 2), bytes(8), "cannot be read"),
        (None, b"not of that format", "'X' is no array in NumPy's format"),
    ],
)
def test_an_npz_member_that_is_not_what_it_says_is_refused(tmp_path, shape, data, message):
    path = tmp_path / "data.npz"
    head = io.BytesIO()
    if shape is not None:
        said = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, said)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("X.npy", head.getvalue() + data)
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_fill_forward_repeats_the_last_value():
    values = np.array([np.nan, 1, np.nan, np.nan, 2], np.float32)
    np.testing.assert_array_equal(fill_forward(values, 7.0), [7, 1, 1, 1, 2])


def test_drift_is_a_trend_or_a_walk_but_no_season():
    rng = np.random.default_rng(7)
    t = np.arange(600)
    season = np.sin(t / 25).astype(np.float32)
    noise = rng.normal(size=600).astype(np.float32)
    assert not drifts([season])
    assert not drifts([noise])
    assert not drifts([season + 0.1 * noise])
    assert drifts([(season + t / 50).astype(np.float32)])
    assert drifts([(5 * season + t / 10 + noise).astype(np.float32)])
    # It leaves its past, but its last value says nothing of the next one.
    assert not drifts([(noise * np.where(t < 400, 1, 5)).astype(np.float32)])
    assert not drifts([np.full(600, 3.0, np.float32)])
    assert not drifts([noise[:2]])


@pytest.mark.parametrize("head", ["identity", "softmax", None])
def test_the_trainer_computes_what_the_reference_computes(rng, head):
    """Encoding, network and output transforms, for every kind of input, against the reference."""
    outputs = (
        [OutputSpec("plain", center=0.5, scale=3.0), OutputSpec("level", difference_of="change")]
        if head == "identity"
        else 2
    )
    layers = [("gru", 7), ("lstm", 6), ("rnn_tanh", 5), ("rnn_relu", 4)]
    model = random_model(rng, layers, EVERY_KIND_OF_INPUT, outputs, head)
    x = random_inputs(rng, model.spec, 1, 60)[0]
    chunk = encode(model.spec, x)
    network = Network(model.spec, model.parameters, np.float64)
    state = network.initial_state(1)
    y, _ = network.outputs(Chunk(chunk.features.astype(np.float64), chunk.codes), state)
    scaled = y[:, 0] * [o.scale for o in model.spec.outputs]
    scaled += [o.center for o in model.spec.outputs]
    if head == "identity":
        scaled[:, 1] += fill_forward(x[:, 1], 0.0)
    np.testing.assert_allclose(scaled, ReferenceModel(model).steps(x), atol=REFERENCE_FLOAT32 * 3)


def test_tokens_against_the_reference(rng):
    token = InputSpec("t", kind="token", num_categories=5, embedding_size=3)
    model: Model = random_model(rng, [("gru", 6)], [token], 5, "softmax")
    x = random_inputs(rng, model.spec, 1, 30)[0]
    network = Network(model.spec, model.parameters, np.float64)
    y, _ = network.outputs(encode(model.spec, x), network.initial_state(1))
    np.testing.assert_allclose(y[:, 0], ReferenceModel(model).steps(x), atol=1e-12)
