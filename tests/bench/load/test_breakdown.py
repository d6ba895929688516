"""Where the time of a step went: the generator's times and the server's, put together."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn_bench.load.breakdown import Breakdown, breakdown_of
from streamrnn_bench.load.generator import Outcome
from streamrnn_bench.load.histogram import Histogram
from streamrnn_bench.load.options import LoadOptions
from streamrnn_bench.load.report import describe
from streamrnn_bench.load.senders import HISTOGRAMS, How, Timed

NUM = 200
# Of the server's clock, from when a message was received, µs: step k takes k µs more in its kernel.
STAMPS = {"decoded": 2, "committed": 40, "reply": 45, "encoded": 46, "sent": 48}


def told_by_server(clock_ns=0, durability="none"):
    k = np.arange(NUM)
    received = clock_ns + 1_000_000 * (k + 1) + 30_000
    columns = {f"{name}_ns": received + 1000 * us for name, us in STAMPS.items()}
    for name in ("committed_ns", "reply_ns", "encoded_ns", "sent_ns"):
        columns[name] = columns[name] + 1000 * k
    columns |= {
        "received_ns": received,
        "gather_ns": np.full(NUM, 3000),
        "kernel_ns": 10_000 + 1000 * k,
        "commit_ns": np.full(NUM, 4000),
        "unread_ns": np.full(NUM, 7000),
        "hash": 100 + k,
        "seq": 1 + k,
        "num_batches": np.ones(NUM, int),
        "num_rows": np.full(NUM, 12),
        "code": np.zeros(NUM, int),
    }
    return {
        "step_times": {name: values.tolist() for name, values in columns.items()},
        "durability": durability,
    }


def seen_by_generator():
    k = np.arange(NUM)
    timed = np.zeros(NUM, Timed.dtype)
    timed["hash"], timed["seq"] = 100 + k, 1 + k
    timed["due_ns"] = 1_000_000 * (k + 1)
    timed["sent_ns"] = timed["due_ns"] + 5000
    timed["answered_ns"] = timed["due_ns"] + 30_000 + 48_000 + 1000 * k + 60_000
    return timed


def split(told, *timed):
    found = breakdown_of(told, timed or [seen_by_generator()])
    assert isinstance(found, Breakdown)
    return found


def test_the_parts_of_every_step_are_together_its_time():
    found = split(told_by_server())
    np.testing.assert_allclose(sum(found.parts_us.values()), found.total_us)
    np.testing.assert_allclose(found.total_us, 138 + np.arange(NUM))
    means = found.details["breakdown_us"]
    assert means.pop("kernel") == pytest.approx(10 + (NUM - 1) / 2)
    assert means == pytest.approx(
        {
            "due, not sent": 5,
            "wire: request": 25,
            "receive": 2,
            "queue": 38 - 17,
            "batch": 7,
            "other work": 5,
            "encode": 1,
            "send": 2,
            "wire: reply": 60,
        }
    )


def test_a_clock_of_another_machine_is_never_compared():
    found = split(told_by_server(clock_ns=10**15, durability="always"))
    assert found.details["breakdown_us"]["wire"] == pytest.approx(85)
    assert found.details["breakdown_us"]["disk"] == pytest.approx(5)
    np.testing.assert_allclose(sum(found.parts_us.values()), found.total_us)


def test_the_slowest_of_a_hundred_are_told_by_themselves():
    found = split(told_by_server())
    details = found.details["breakdown"]
    assert details["num_slowest"] == 2
    assert details["slowest_us"]["kernel"] == 10 + NUM - 1.5
    assert details["p99_us"]["kernel"] == 10 + NUM - 2
    assert details["rows_of_a_batch"] == 12
    lines = str(found).splitlines()
    assert "slowest 2" in lines[0]
    names = [line.split("  ")[0] for line in lines[1:4]]
    assert names == ["due, not sent", "wire: request", "wire: reply"]


def test_what_was_not_computed_for_its_message_is_left_out():
    told, own = told_by_server(), seen_by_generator()
    told["step_times"]["num_batches"][0] = 0
    told["step_times"]["code"][1] = 5
    told["step_times"]["encoded_ns"][2] += 10**9  # longer than its client has waited: of another
    own["seq"][3] += 10**6
    assert len(split(told, own).total_us) == NUM - 4


def test_a_server_that_tells_nothing_and_too_few_steps_are_told():
    own = seen_by_generator()
    for told in ({}, {"step_times": 3}, {"step_times": {"seq": [1]}}, None):
        assert "does not tell" in str(breakdown_of(told, [own]))
    assert "9 steps were timed" in str(breakdown_of(told_by_server(), [own[:9]]))


def outcome(how, num_unanswered=0, num_unsent=0, errors=None, first_error=""):
    histograms = {name: Histogram() for name in HISTOGRAMS}
    histograms["latency"].note([1000] * 100)
    return Outcome(
        how=how,
        is_interrupted=False,
        measured_s=1.0,
        num_done=100,
        num_messages=100,
        num_unanswered=num_unanswered,
        num_unsent=num_unsent,
        num_opened=1,
        num_closed=0,
        errors=errors or {},
        first_error=first_error,
        **histograms,
    )


def test_an_early_end_is_told_as_one():
    options = LoadOptions(rate=(10.0, 10.0))
    lost = "the connection to the server is lost"
    of_end = outcome(How.NOT_SENT, num_unanswered=3, num_unsent=2, first_error=lost)
    said = describe(options, of_end)
    assert "NOT ANSWERED when it ended early: 3 steps that were sent, 2 that were due" in said
    assert f"ENDED EARLY: {lost}" in said
    refused = outcome(How.NOT_SENT, errors={"busy": 4}, first_error=lost)
    said = describe(options, refused)
    assert f"REFUSED (they have no latency): busy 4\nENDED EARLY: {lost}" in said
    said = describe(options, outcome(How.UNFINISHED, num_unanswered=3, first_error="no reply"))
    assert "NOT ANSWERED within 5 s of the end: 3 steps" in said
    assert "EARLY" not in said
