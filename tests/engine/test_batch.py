"""`Engine.batch`: results, and refused arguments."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import InputError, StreamError
from tests.support.models import random_inputs, random_model

NUM_STREAMS, NUM_INPUTS = 6, 5


@pytest.fixture
def model(rng):
    return random_model(rng, layers=[("lstm", 20)], inputs=NUM_INPUTS)


@pytest.fixture
def x(rng, model):
    found = random_inputs(rng, model.spec, NUM_STREAMS, 1)[:, 0]
    return np.ascontiguousarray(found, dtype=np.float32)


@pytest.fixture
def expected(model, x):
    engine = Engine(model, max_streams=NUM_STREAMS)
    return engine.batch(engine.rows(range(NUM_STREAMS)), x)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def every_second(array):
    wide = np.zeros((2 * len(array), *array.shape[1:]), array.dtype)
    wide[::2] = array
    return wide[::2]


FORMS = {
    "list": lambda array: array.tolist(),
    "read-only": read_only,
    "strided": every_second,
    "reversed": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "other bytes": lambda array: array.astype(array.dtype.newbyteorder()),
    "subclass": lambda array: array.view(type("Other", (np.ndarray,), {})),
}
X_FORMS = FORMS | {
    "columns": np.asfortranarray,
    "float64": lambda array: array.astype(np.float64),
    "slice": lambda array: np.concatenate([array, array], axis=1)[:, :NUM_INPUTS],
}
ROW_FORMS = FORMS | {"uint64": lambda array: array.astype(np.uint64)}


@pytest.mark.parametrize("form", X_FORMS)
def test_any_form_of_x_gives_the_same_bits(model, x, expected, form):
    engine = Engine(model, max_streams=NUM_STREAMS)
    y = engine.batch(engine.rows(range(NUM_STREAMS)), X_FORMS[form](x))
    np.testing.assert_array_equal(y, expected)


def test_one_x_with_gaps_gives_the_same_bits(model, x, expected):
    engine = Engine(model, max_streams=NUM_STREAMS)
    y = engine.batch(engine.rows([0]), np.repeat(x[:1], 2, axis=1)[:, ::2])
    np.testing.assert_array_equal(y, expected[:1])


@pytest.mark.parametrize("form", ROW_FORMS)
def test_any_form_of_rows_gives_the_same_bits(model, x, expected, form):
    engine = Engine(model, max_streams=NUM_STREAMS)
    y = engine.batch(ROW_FORMS[form](engine.rows(range(NUM_STREAMS))), x)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows, x: (rows[:-1], x), "5 rows but 6 inputs"),
        (lambda rows, x: (rows, x[:-1]), "6 rows but 5 inputs"),
        (lambda rows, x: (rows[:0], x), "0 rows but 6 inputs"),
        (lambda rows, x: (rows, x[:, 1:]), r"shape \(6, 4\)"),
        (lambda rows, x: (rows, np.ascontiguousarray(x[:, 1:])), r"shape \(6, 4\)"),
        (lambda rows, x: (rows, np.concatenate([x, x], axis=1)), r"shape \(6, 10\)"),
        (lambda rows, x: (rows, x[0]), r"shape \(5,\)"),
        (lambda rows, x: (rows[:, None], x), r"rows have shape \(6, 1\)"),
        (lambda rows, x: (rows.astype(np.float64), x), "dtype float64"),
        (lambda rows, x: (rows[[0, 1, 2, 3, 4, 0]], x), "row 5 stands for a stream"),
        (lambda rows, x: (rows, np.where(x == x[3, 2], np.inf, x)), "index 3 of x is inf"),
    ],
)
def test_misfitting_input_is_refused_and_changes_nothing(model, x, expected, change, words):
    engine = Engine(model, max_streams=NUM_STREAMS)
    rows = engine.rows(range(NUM_STREAMS))
    with pytest.raises(InputError, match=words):
        engine.batch(*change(rows, x))
    np.testing.assert_array_equal(engine.batch(rows, x), expected)


@pytest.mark.parametrize(
    "number", [-1, 0, 1, 1 << 32 | NUM_STREAMS, 2 << 32, 3 << 32, -(1 << 63), (1 << 63) - 1]
)
def test_an_invalid_row_number_is_refused(model, x, number):
    engine = Engine(model, max_streams=NUM_STREAMS)
    rows = engine.rows(range(NUM_STREAMS))
    rows[4] = number
    with pytest.raises(StreamError, match=r"row 4 .* belongs to no stream"):
        engine.batch(rows, x)


@pytest.mark.timeout(60)
def test_a_call_in_the_midst_of_another_one_works(model, x, expected):
    """As a signal handler makes it, or a finalizer; here the iterable of the outer call does."""
    engine = Engine(model, max_streams=NUM_STREAMS)
    engine.rows(["old"])

    def ids():
        yield 0
        engine.close("old")
        yield from range(1, NUM_STREAMS)

    np.testing.assert_array_equal(engine.batch(engine.rows(ids()), x), expected)
    assert "old" not in engine


def test_an_empty_batch_is_accepted(model):
    engine = Engine(model, max_streams=NUM_STREAMS)
    assert engine.batch(engine.rows([]), np.empty((0, NUM_INPUTS))).shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 255, 256, 257, 511, 700])
def test_one_bad_number_in_many_is_found(rng, bad, place):
    model = random_model(rng, layers=[("gru", 3)], inputs=1)
    x = rng.standard_normal(701).astype(np.float32)
    x[-1] = x[place] = bad
    with pytest.raises(InputError, match=f"index {place} of x is {bad}"):
        Engine(model).steps("a", x)


def test_threads_take_turns(model, x):
    """Each thread steps its own stream; together they end where each alone would."""
    num_threads, num_calls = 4, 300
    engine, alone = (Engine(model, max_streams=num_threads) for _ in range(2))
    last = {}

    def step(number):
        rows = engine.rows([number])
        for _ in range(num_calls):
            last[number] = engine.batch(rows, x[number : number + 1])

    threads = [threading.Thread(target=step, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(num_threads):
        expected = alone.steps(number, np.repeat(x[number : number + 1], num_calls, axis=0))[-1]
        np.testing.assert_array_equal(last[number][0], expected)


def test_a_batch_with_too_many_new_streams_starts_none(model, x, expected):
    engine = Engine(model, max_streams=NUM_STREAMS)
    engine.rows(["a", "b"])
    with pytest.raises(StreamError, match=f"'new 4': all {NUM_STREAMS} streams"):
        engine.rows(["a", *(f"new {k}" for k in range(5)), "b"])
    assert len(engine) == 2
    rows = engine.rows(["new 3", "a", "new 2", "b", "new 1", "new 0"])
    np.testing.assert_array_equal(engine.batch(rows, x), expected)
