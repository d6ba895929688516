"""Every field of a description has its type and its bounds, whoever made it."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.errors import ModelError, SpecError
from streamrnn.kernels.row_layout import RowLayout, check_offsets
from streamrnn.model.checks import MAX_SIZE
from streamrnn.model.parameters import canonical_spec
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec

# The only nested parts are lists of dicts, and the head.
GOOD: dict[str, Any] = {
    "inputs": [
        {"name": "a", "unit": "m", "difference": True, "center": 1.0, "scale": 2.0, "fill": 0.5},
        {"name": "b", "missing": "hold"},
        {"name": "c", "kind": "categorical", "categories": ["x", "y"], "num_categories": 2,
         "embedding_size": 3},
    ],
    "layers": [
        {"cell": "lstm", "hidden_size": 4, "projection_size": 3, "layer_norm": True,
         "norm_epsilon": 1e-3},
        {"cell": "gru", "hidden_size": 5, "reset_after": False, "gate_activation": "sigmoid"},
    ],
    "outputs": [{"name": "a", "unit": "m", "scale": 2.0, "center": 0.5, "difference_of": "a"}],
    "head": {"activation": "identity"},
    "warmup_steps": 7,
    "training": {"seed": 3, "nested": [1, {"x": None}]},
}  # fmt: skip
SURROGATE = "\ud800"
NO_SIZES = [True, -1, 1.0, 2**16 + 1, 2**64, -(2**70), "2", None, [2]]
NO_FLAGS = [0, 1, 96, -1, 2**40, 1.0, "yes", None, [True], {}]
NO_NAMES = ["", 7, None, ["a"], {"a": 1}, SURROGATE, "n" * 70_000]
NO_NUMBERS: list[Any] = [
    True,
    None,
    "1",
    [1],
    {},
    float("nan"),
    float("inf"),
    1e39,
    2**64 * 2**64,
    10**400,
]
WRONG: dict[tuple[str, int, str], list[Any]] = {
    ("inputs", 0, "name"): NO_NAMES,
    ("inputs", 0, "unit"): NO_NAMES[1:],
    ("inputs", 0, "kind"): [*NO_NAMES, "Numeric"],
    ("inputs", 0, "missing"): [*NO_NAMES, "Hold", True],
    ("inputs", 0, "difference"): NO_FLAGS,
    ("inputs", 0, "center"): NO_NUMBERS,
    ("inputs", 0, "scale"): [*NO_NUMBERS, 0, -1.0, 1e-50, 1e-45, 1e-38],
    ("inputs", 0, "fill"): NO_NUMBERS,
    ("inputs", 0, "num_categories"): [*NO_SIZES, 2],
    ("inputs", 0, "embedding_size"): [*NO_SIZES, 2],
    ("inputs", 2, "num_categories"): [*NO_SIZES, 0, 1, 3],
    ("inputs", 2, "embedding_size"): NO_SIZES,
    ("inputs", 2, "categories"): ["xy", [1, 2], ["x", "x"], ["x", SURROGATE], {"x": 1}, 3, None],
    ("layers", 0, "cell"): [*NO_NAMES, "LSTM"],
    ("layers", 0, "hidden_size"): [*NO_SIZES, 0],
    ("layers", 0, "projection_size"): NO_SIZES,
    ("layers", 0, "peepholes"): [*NO_FLAGS, True],
    ("layers", 0, "layer_norm"): NO_FLAGS,
    ("layers", 0, "norm_epsilon"): [*NO_NUMBERS, 0.0, 1, 2.0, 1e-13],
    ("layers", 0, "gate_activation"): [*NO_NAMES, "tanh"],
    ("layers", 1, "reset_after"): NO_FLAGS,
    ("outputs", 0, "name"): NO_NAMES,
    ("outputs", 0, "unit"): NO_NAMES[1:],
    ("outputs", 0, "center"): NO_NUMBERS,
    ("outputs", 0, "scale"): [*NO_NUMBERS, 0, -1.0, 1e-45, 1e-38],
    ("outputs", 0, "difference_of"): ["", 7, ["a"], {}, "b", SURROGATE],
}


def changed(part: str, index: int, key: str, value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(GOOD)
    spec[part][index][key] = value
    return spec


def test_the_description_that_is_changed_here_is_a_good_one():
    spec = ModelSpec.from_dict(GOOD)
    assert json.loads(canonical_spec(spec))["inputs"][0]["name"] == "a"
    assert RowLayout(spec).row_bytes % 64 == 0


@pytest.mark.parametrize("place", WRONG, ids=lambda place: f"{place[0]}{place[1]}.{place[2]}")
def test_a_value_of_another_type_or_beyond_its_bounds_is_refused(place):
    part, index, key = place
    for value in WRONG[place]:
        with pytest.raises(SpecError) as caught:
            ModelSpec.from_dict(changed(part, index, key, value))
        assert len(str(caught.value)) < 500
        str(caught.value).encode()  # an error can be sent and written


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("warmup_steps", [-1, True, 1.0, 2**53 + 1, 2**64, "1", None]),
        ("training", [None, [1], "x", 3]),
        ("head", [[], "identity", 3, {"activation": 3}, {"activation": ["tanh"]}, {"a": 1}]),
        ("inputs", [None, [], "a", {"name": "a"}, [None], [3], [["name"]], [{}]]),
        ("layers", [None, [], "a", [{"cell": "gru"}], GOOD["layers"] * 300]),
        ("outputs", [None, [], "a", {"name": "a"}, GOOD["outputs"] * 2]),
        ("colour", [1]),
    ],
)
def test_a_part_of_another_shape_is_refused(key, values):
    for value in values:
        with pytest.raises(SpecError):
            ModelSpec.from_dict({**GOOD, key: value})


def nested(depth: int, is_list: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if is_list else {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        *(2**64, -(2**63) - 1, 10**5000, [2**70], SURROGATE, {SURROGATE: 1}, ["x", SURROGATE]),
        *(nested(64, False), nested(300, True), nested(5000, False), float("nan"), {1: 2}, b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_training_that_another_codec_cannot_take_is_refused(value):
    spec = ModelSpec.from_dict({**GOOD, "training": {"value": value}})
    with pytest.raises(ModelError, match="training may hold only") as caught:
        canonical_spec(spec)
    str(caught.value).encode()


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**66), 2**66),
        st.integers(0, 5),
        st.floats(),
        st.text(st.characters(), max_size=5),
        st.sampled_from(["a", "numeric", "token", "categorical", "hold", "gru", "rnn_relu"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(WRONG)), JSON), min_size=1, max_size=3), JSON)
def test_whatever_is_accepted_can_be_written_sent_and_laid_out(changes, training):
    data = {**copy.deepcopy(GOOD), "training": {"x": training}}
    for (part, index, key), value in changes:
        data[part][index][key] = value
    try:
        spec = ModelSpec.from_dict(data)
        text = canonical_spec(spec)
    except ModelError:
        return
    assert ModelSpec.from_dict(json.loads(text)) == spec
    msgpack.packb(spec.to_dict())
    layout = RowLayout(spec)
    assert 0 < layout.row_bytes <= 4 * 16 * (2 * 2**16 + 32)


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        *(("memory", k, value) for k in (0, 1) for value in (-2, -4, 8, 61, 64, 2**40, -(2**40))),
        *(("feature", 2, value) for value in (-1, 3, 2**40)),
        *(("h", k, value) for k in (0, 1) for value in (-64, 2**40)),
        ("h", 1, 196),
        ("level", 0, -2),
        ("level", 0, 8),
    ],
)
def test_a_plan_with_a_place_outside_of_its_row_is_refused(name, index, value):
    """What the checks let through does not reach the kernels either."""
    spec = ModelSpec.from_dict(GOOD)
    layout = RowLayout(spec)
    inputs, levels, h_offsets = layout.inputs, layout.output_levels, list(layout.h_offsets)
    assert layout.row_bytes == 256
    check_offsets(spec, inputs, h_offsets, levels, layout.row_bytes)
    if name == "h":
        h_offsets[index] = value
    elif name == "level":
        levels[index] = value
    else:
        inputs[name][index] = value
    with pytest.raises(ModelError, match="outside"):
        check_offsets(spec, inputs, h_offsets, levels, layout.row_bytes)


def test_the_most_inputs_and_outputs_are_laid_out_and_a_name_that_comes_twice_is_found():
    """Work that grows with their square would take minutes."""
    inputs = [InputSpec(f"x{k}", difference=True) for k in range(MAX_SIZE)]
    outputs = [OutputSpec(f"y{k}", difference_of=f"x{k}") for k in range(MAX_SIZE)]
    rest: dict[str, Any] = {"layers": (LayerSpec("gru", 4),), "head": HeadSpec()}
    layout = RowLayout(ModelSpec(tuple(inputs), outputs=tuple(outputs), **rest))
    np.testing.assert_array_equal(layout.output_levels, layout.inputs["memory"])
    with pytest.raises(SpecError, match="two outputs are named 'y0'"):
        ModelSpec(tuple(inputs), outputs=(*outputs[:-1], outputs[0]), **rest)


def test_numbers_of_numpy_are_taken():
    numbers: dict[str, Any] = {"center": np.float32(0.1), "scale": np.int64(3)}
    item = InputSpec("a", **numbers)
    assert (item.center, item.scale) == (float(np.float32(0.1)), 3.0)
