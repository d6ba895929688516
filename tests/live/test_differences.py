"""How far outputs differ, told of models of many kinds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from streamrnn.model.layers.frame import ActivationSpec
from streamrnn.model.spec import OutputSpec
from streamrnn_server.live.differences import MAX_TOLD, Differences
from tests.support.models import random_graph, random_model


def spec_of(outputs=2, head="identity"):
    return random_model(np.random.default_rng(1), [("gru", 6)], 1, outputs, head).spec


def test_what_is_added_in_parts_is_what_is_there_at_once(rng):
    spec = spec_of(3)
    old = (1e6 + rng.standard_normal((50, 3))).astype(np.float32)  # far from 0
    new = old + rng.standard_normal((50, 3)).astype(np.float32)
    new[7, 1], old[9, 0] = np.nan, np.inf
    parts = Differences(spec, spec)
    for first in range(0, 50, 8):
        parts.add(old[first : first + 8], new[first : first + 8])
    parts.add(old[:0], new[:0])
    facts = parts.facts()
    assert (facts["num_steps"], facts["same_class"], facts["num_outputs"]) == (48, None, 3)
    assert facts["num_not_finite"] == {"old": 1, "new": 1}
    left = np.setdiff1d(np.arange(50), [7, 9])
    y = old[left].astype(np.float64)
    error = new[left] - y
    for k, output in enumerate(facts["outputs"]):
        assert output["name"] == f"y{k}"
        assert output["max"] == np.abs(error[:, k]).max()
        assert output["mean"] == pytest.approx(np.abs(error[:, k]).mean())
        assert output["shift"] == pytest.approx(error[:, k].mean())
        assert output["spread"] == pytest.approx(y[:, k].std())
        assert output["mean_by_spread"] == pytest.approx(output["mean"] / output["spread"])
        assert "same_side" not in output


def test_nothing_to_compare_is_no_number():
    spec = spec_of()
    nothing = Differences(spec, spec)
    nothing.add(np.full((3, 2), np.nan, np.float32), np.zeros((3, 2), np.float32))
    facts = nothing.facts()
    assert (facts["num_steps"], facts["outputs"], facts["same_class"]) == (0, [], None)


def test_outputs_that_stand_still_have_no_spread():
    spec = spec_of(1)
    found = Differences(spec, spec)
    found.add(np.full((5, 1), 0.1, np.float32), np.full((5, 1), 0.3, np.float32))
    [output] = found.facts()["outputs"]
    assert (output["spread"], output["mean_by_spread"], output["max_by_spread"]) == (0, None, None)


def test_classes_are_compared_by_the_most_likely_one(rng):
    old, new = rng.random((2, 40, 5)).astype(np.float32)
    right = (old.argmax(axis=1) == new.argmax(axis=1)).mean()
    for spec in (
        spec_of(5, "softmax"),
        random_graph((ActivationSpec("log_softmax"),)).spec,
    ):
        size = spec.output_size
        found = Differences(spec, spec)
        found.add(old[:, :size], new[:, :size])
        if size == 5:
            assert found.facts()["same_class"] == right
        else:
            same = old[:, :size].argmax(axis=1) == new[:, :size].argmax(axis=1)
            assert found.facts()["same_class"] == same.mean()
    mixed = Differences(spec_of(5, "softmax"), spec_of(5))
    mixed.add(old, new)
    assert mixed.facts()["same_class"] is None


def test_a_sigmoid_says_yes_or_no(rng):
    spec = spec_of(2, "sigmoid")
    old, new = rng.random((2, 40, 2)).astype(np.float32)
    found = Differences(spec, spec)
    found.add(old, new)
    right = ((old > 0.5) == (new > 0.5)).mean(axis=0)
    assert [each["same_side"] for each in found.facts()["outputs"]] == right.tolist()


def test_of_many_outputs_those_are_told_that_differ_most(rng):
    spec = spec_of(200)
    old = rng.standard_normal((30, 200)).astype(np.float32)
    old[:, 150] = 1.0  # stands still, and does no more
    new = old + np.linspace(0, 1, 200, dtype=np.float32)
    found = Differences(spec, spec)
    found.add(old, new)
    facts = found.facts()
    assert (facts["num_outputs"], len(facts["outputs"])) == (200, MAX_TOLD)
    assert facts["outputs"][0]["name"] == "y150"
    shares = [each["mean_by_spread"] for each in facts["outputs"][1:]]
    assert shares == sorted(shares, reverse=True)


def test_an_array_is_one_output_and_origins_count(rng):
    model = random_model(np.random.default_rng(1), [("gru", 6)], 1, head=None)
    old_spec = dataclasses.replace(
        model.spec, outputs=(OutputSpec("a", shape=(4,)), OutputSpec("b", shape=(2,)))
    )
    outputs = (OutputSpec("a", shape=(4,)), OutputSpec("b", shape=(2,), origin=0.5))
    new_spec = dataclasses.replace(model.spec, outputs=outputs)
    old, new = rng.standard_normal((2, 20, 6)).astype(np.float32)
    found = Differences(old_spec, new_spec)
    found.add(old, new)
    a, b = found.facts()["outputs"]
    error = new.astype(np.float64) - old
    assert a["mean"] == pytest.approx(np.abs(error[:, :4]).mean())
    assert a["max"] == np.abs(error[:, :4]).max()
    assert b["mean"] == pytest.approx(np.abs(error[:, 4:] + 0.5).mean())
    spread = math.sqrt(old[:, :4].astype(np.float64).var(axis=0).mean())
    assert a["spread"] == pytest.approx(spread)
