"""Inputs by name, category and shape: arrays, and errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn_client.errors import BadName, BadValue, NotSupported, WrongLength
from streamrnn_client.inputs import ModelInfo
from tests.support.named import Series, Table


def info(*inputs):
    spec = ModelSpec(
        inputs=inputs,
        layers=(LayerSpec("gru", 4),),
        outputs=(OutputSpec("y"),),
        head=HeadSpec(),
    )
    return ModelInfo({"name": "m", "fingerprint": "f", "spec": spec.to_dict(), "row_bytes": 64})


WEEKDAYS = ("mon", "tue", "wed")
MIXED = info(
    InputSpec("co2", unit="ppm"),
    InputSpec("day", kind="categorical", categories=WEEKDAYS, num_categories=3),
)
ONE = info(InputSpec("co2"))
TOKENS = info(
    InputSpec("word", kind="token", categories=WEEKDAYS, num_categories=3, embedding_size=2)
)


def test_what_fits_is_not_copied():
    x = np.array([1, 2], np.float32)
    assert MIXED.step_array(x) is x or MIXED.step_array(x).base is x
    many = np.ones((5, 2), np.float32)
    assert np.shares_memory(MIXED.steps_array(many), many)


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(code) for code in ("f8", "f4", "f2", "i8", "u1", ">f4")]),
        st.tuples(st.integers(0, 4), st.just(2)),
        elements=st.integers(0, 100),
    )
)
def test_any_layout_becomes_contiguous_float32(x):
    for given_x in (x, np.asfortranarray(x), x[::-1], x.tolist() if len(x) else x):
        array = MIXED.steps_array(given_x)
        assert array.dtype == np.dtype("<f4")
        assert array.flags.c_contiguous
        assert array.tolist() == np.asarray(given_x, np.float64).reshape(-1, 2).tolist()


@given(
    st.lists(
        st.floats() | st.integers(-(2**70), 2**70) | st.sampled_from([True, None, "1", 1j]),
        min_size=1,
        max_size=3,
    )
)
def test_a_list_becomes_the_array_that_numpy_makes_of_it(x):
    """Short lists of floats are converted in another way, to the same bits."""

    def outcome(convert):
        try:
            return convert().tobytes()
        except (BadValue, WrongLength) as error:
            return type(error)

    def general():
        array = MIXED._to_floats(x, "x")
        if array.shape != (2,):
            raise WrongLength("")
        return array

    assert outcome(lambda: MIXED.step_array(x)) == outcome(general)


def test_names_and_categories_become_places_and_indices():
    assert MIXED.step_array({"day": "tue", "co2": 400}).tolist() == [400, 1]
    assert MIXED.step_array({"day": 2, "co2": 400}).tolist() == [400, 2]
    assert MIXED.step_array({"day": np.str_("wed"), "co2": np.float64(4)}).tolist() == [4, 2]
    x = {"day": ["mon", 1, "wed"], "co2": np.arange(3)}
    assert MIXED.steps_array(x).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert TOKENS.step_array({"word": "wed"}).tolist() == [2]
    assert TOKENS.steps_array([0, 1, 2]).dtype == np.dtype("<u4")
    assert np.isnan(MIXED.step_array({"day": 0, "co2": float("nan")})[0])


def test_a_table_is_taken_by_the_names_of_its_columns():
    table = Table(day=["mon", "wed"], co2=[400, 401])
    assert MIXED.steps_array(table).tolist() == [[400, 0], [401, 2]]
    assert MIXED.step_array(Table(day=["tue"], co2=[400])).tolist() == [400, 1]
    assert ONE.steps_array(Table(co2=[1, 2])).tolist() == [[1], [2]]
    numbers_as_objects = Table(day=[1], co2=np.array([400.5], object))
    assert MIXED.step_array(numbers_as_objects).tolist() == [400.5, 1]
    rows = {"a": Series(np.array(["tue", 4], object), ["day", "co2"]), "b": [5, 2]}
    assert MIXED.row_arrays(rows).tolist() == [[4, 1], [5, 2]]
    # Labels of another kind are places or times, and the values those of the only input.
    assert ONE.steps_array(Series([1, 2], range(2))).tolist() == [[1], [2]]
    assert ONE.steps_array(Series([1, 2], ["monday", "tuesday"])).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (Table(day=[1], c02=[1]), "no input 'c02'; did you mean 'co2'"),
        (Table(day=[1], co2=[1], more=[1]), "no input 'more'"),
        (Table(co2=[1]), "'day' of model 'm' is absent"),
        (Table(a=[1], b=[1]).renamed(0, 1), r"named \[0, 1\]; name them .* \[co2, day\]"),
        (Series([1, 2], ["x", "y"]), "no input 'x'"),
        (Series([1, 2], ["co2", "co2"]), "'co2' is there twice"),
    ],
)
def test_a_table_of_other_columns_is_refused_never_taken_by_position(table, words):
    for take in (MIXED.step_array, MIXED.steps_array):
        with pytest.raises(BadName, match=words):
            take(table)


def test_tables_of_pandas_and_polars_are_taken_by_name():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"day": ["mon", "wed"], "co2": [400.0, 401.5]})
    expected = [[400, 0], [401.5, 2]]
    assert MIXED.steps_array(frame).tolist() == expected
    assert (
        MIXED.steps_array(frame.astype({"day": "category", "co2": "Float64"})).tolist() == expected
    )
    assert MIXED.step_array(frame.iloc[1]).tolist() == expected[1]
    assert MIXED.step_array(frame.iloc[1:]).tolist() == expected[1]
    assert ONE.steps_array(frame["co2"]).tolist() == [[400], [401.5]]
    twice = pandas.DataFrame([[1, 2, 3]], columns=["co2", "co2", "day"])
    with pytest.raises(BadName, match="'co2' is there twice"):
        MIXED.steps_array(twice)
    with pytest.raises(BadName, match=r"named \[0, 1\]"):
        MIXED.steps_array(pandas.DataFrame([[1, 2]]))
    polars = pytest.importorskip("polars")
    assert MIXED.steps_array(polars.DataFrame(frame.to_dict("list"))).tolist() == expected


def test_a_model_of_one_input_takes_plain_numbers():
    assert ONE.step_array(3).tolist() == [3]
    assert ONE.step_array([3]).tolist() == [3]
    assert ONE.steps_array([1, 2, 3]).tolist() == [[1], [2], [3]]
    assert ONE.steps_array({"co2": [1, 2]}).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ({"c02": 1, "day": 0}, BadName, "no input 'c02'; did you mean 'co2'"),
        ({"co2": 1}, BadName, "'day' of model 'm' is absent"),
        ({"co2": 1, "day": "thu"}, BadName, "no category 'thu'; did you mean 'tue'"),
        ({"co2": [1, 2], "day": 0}, WrongLength, "different shapes"),
        ([1, 2, 3], WrongLength, r"shape \(3,\).*takes \(2,\)"),
        ([[1, 2], [3, 4]], WrongLength, "one step"),
        (1, WrongLength, r"shape \(\)"),
        (["a", "b"], BadValue, "by name"),
        (None, BadValue, "no array of numbers"),
        ([1, 2j], BadValue, "complex"),
        ([[1], [1, 2]], BadValue, "no array of numbers"),
        ({"co2": None, "day": 0}, BadValue, "'co2' is no array"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(x, error, words):
    with pytest.raises(error, match=words):
        MIXED.step_array(x)


@pytest.mark.parametrize("x", [-1, 2**32, 1.5, "mon", [0.0]])
def test_tokens_are_whole_numbers(x):
    with pytest.raises(BadValue, match="token ids"):
        TOKENS.step_array(x)


def test_an_error_among_many_streams_names_the_stream():
    assert MIXED.row_arrays({"a": [1, 2], "b": {"co2": 3, "day": "mon"}}).tolist() == [
        [1, 2],
        [3, 0],
    ]
    with pytest.raises(WrongLength, match="stream 'b'"):
        MIXED.row_arrays({"a": [1, 2], "b": [1]})


def test_too_large_for_float32_is_left_to_the_server():
    assert MIXED.step_array([1e300, 1]).tolist() == [np.inf, 1]


def test_outputs_are_the_callers_own():
    y = ONE.outputs(np.array([1.5], "<f4").tobytes())
    y[0] = 2
    assert y.dtype == np.float32
    with pytest.raises(NotSupported):
        ONE.outputs(b"abc")
    with pytest.raises(NotSupported):
        ModelInfo({"name": "m"})
