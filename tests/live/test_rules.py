"""Of what a catalogue says, a start takes over what fits the models that it serves."""

import functools
import io
import itertools

import numpy as np
import pytest

from streamrnn.kernels.cpu.program import Program
from streamrnn.state.catalogue import Content, SwapRule
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.rules import apply_content
from streamrnn_server.live.table import ModelTable
from tests.live.versions import MODELS
from tests.support.models import random_model

WIDE = random_model(np.random.default_rng(4), [("lstm", 24)], 3, 5)
MORE_INPUTS = random_model(np.random.default_rng(5), [("lstm", 24)], 4, 2)
SERVED = MODELS | {"m@4": WIDE, "m@5": MORE_INPUTS, "other@1": MODELS["m@1"]}


@functools.cache
def programs():
    return {name: Program(model) for name, model in SERVED.items()}


def rules_of(*rules):
    """Return the rules that are left of a catalogue's, and what was logged."""
    arithmetics = {name: program.arithmetic for name, program in programs().items()}
    table = ModelTable(SERVED, programs(), arithmetics, len(SERVED), lambda name: 8)
    said, log = {name: SwapRule(to, policy) for name, to, policy in rules}, io.StringIO()
    apply_content(table, Content(swaps=said), EventLog(stream=log))
    return set(table.swaps), log.getvalue()


@pytest.mark.parametrize(
    ("name", "to", "policy"),
    [
        ("m@1", "m@3", "carry"),  # a row of another length
        *itertools.product(["m@1"], ["m@4", "m@5"], ["carry", "reset", "replay"]),
        ("m@1", "other@1", "carry"),  # which may keep another number of inputs
        ("m@1", "m@1", "reset"),
    ],
)
def test_a_rule_whose_versions_have_become_others_is_dropped(name, to, policy):
    left, log = rules_of((name, to, policy), ("m@2", "m@3", "reset"))
    assert left == {"m@2"}
    assert log.count("\n") == 1
    assert name in log
    assert to in log


@pytest.mark.parametrize("policy", ["carry", "replay"])
def test_rules_that_fit_stand(policy):
    rules = ("m@1", "m@2", policy), ("m@2", "m@3", "reset"), ("m@9", "m@1", "reset")
    assert rules_of(*rules) == ({"m@1", "m@2"}, "")


def test_rules_that_lead_back_leave_one_out():
    left, log = rules_of(("m@1", "m@2", "carry"), ("m@2", "m@3", "reset"), ("m@3", "m@1", "reset"))
    assert left == {"m@1", "m@2"}
    assert "m@3" in log
