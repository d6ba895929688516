"""Inputs by name: what the client takes, the engine takes too."""

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import InputError
from streamrnn.model.spec import InputSpec
from tests.support.models import random_model
from tests.support.named import Series, Table

DAYS = ("mon", "tue", "wed")


@pytest.fixture
def model(rng):
    days = InputSpec("day", kind="categorical", categories=DAYS, num_categories=3)
    return random_model(rng, layers=[("gru", 4)], inputs=[InputSpec("a"), InputSpec("b"), days])


def test_columns_are_taken_by_name_and_categories_too(model):
    one, other, day = [item.name for item in model.spec.inputs]
    days, a, b = ["wed", "mon", "tue"], [1.0, 2.0, 3.0], [5.0, 6.0, 7.0]
    expected = Engine(model).steps("s", np.column_stack([a, b, [2, 0, 1]]))
    engine = Engine(model)
    for k, named in enumerate(
        (Table(**{day: days, other: b, one: a}), {other: b, day: days, one: a})
    ):
        assert np.array_equal(engine.steps(k, named), expected)
    rows = engine.rows(["x", "y", "z"])
    assert np.array_equal(
        engine.batch(rows, Table(**{day: days, other: b, one: a}))[0], expected[0]
    )
    for k in range(3):
        row = np.array([days[k], b[k], a[k]], object)
        singles = {
            "mapping": {day: days[k], one: a[k], other: b[k]},
            "row": Series(row, [day, other, one]),
            "table": Table(**{day: days[k : k + 1], other: b[k : k + 1], one: a[k : k + 1]}),
            "array": [a[k], b[k], DAYS.index(days[k])],
        }
        for y in engine.step(singles).values():
            assert np.array_equal(y, expected[k])


def test_names_that_do_not_fit_are_refused_and_nothing_is_stepped(model):
    one, other, day = [item.name for item in model.spec.inputs]
    engine = Engine(model)
    for x, words in (
        ({one: [1], day: ["mon"]}, f"the input {other!r} of the model is absent"),
        ({one: [1], other: [1], day: ["mon"], "more": [1]}, "has no input 'more'"),
        ({one: [1], other: [1], day: ["mond"]}, "has no category 'mond'; did you mean 'mon'"),
        ({one: [1], other: [1, 2], day: ["mon"]}, "different shapes"),
        ({one: ["a"], other: [1], day: ["mon"]}, f"input {one!r} has dtype <U1"),
        (Table(a=[1], b=[2], c=[0]).renamed(0, 1, 2), "named .0, 1, 2.; name them as the inputs"),
    ):
        with pytest.raises(InputError, match=words):
            engine.steps("s", x)
    assert "s" not in engine
