"""``streamrnn top``: rates and quantiles between two answers, and the picture of them."""

from __future__ import annotations

import io
import subprocess
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from streamrnn.errors import ServerError
from streamrnn_client import Client
from streamrnn_server.commands import top
from streamrnn_server.commands.top import Change, picture
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.program import TIMEOUT_S, streamrnn

HOSTILE = "\x1b[2J[red]é"


@pytest.fixture(scope="module")
def answers():
    """What a server told before and after 300 steps of one stream and one error."""
    model = random_model(np.random.default_rng(7), [("gru", 8)], 2)
    with serving({HOSTILE: model}, num_shards=2) as server, Client(server.endpoints[0]) as client:
        stream = client.stream(HOSTILE)
        stream.step(np.ones(2))
        before = client.stats()
        for _ in range(300):
            stream.step(np.ones(2))
        yield before, client.stats(), server.endpoints[0]


def shown(change):
    stream = io.StringIO()
    Console(file=stream, width=120).print(picture(change))
    return stream.getvalue()


def test_rates_are_what_has_come_since_the_answer_before(answers):
    before, now, _ = answers
    change = Change(before, now, 2.0)
    assert change.rate("num_steps") == 150
    assert change.rates("steps") == {HOSTILE: 150}
    assert sum(change.shard_rate(k, "num_steps") for k in range(2)) == 150
    p50, p99 = change.quantile_us(0.5), change.quantile_us(0.99)
    assert p50 is not None
    assert p99 is not None
    assert 0 < p50 <= p99 <= now["latency_us"]["max"]


def test_quantiles_are_of_what_is_new_alone():
    before = {"instance": "i", "times_us": [[1.0, 1000], [8.0, 5]]}
    now = {"instance": "i", "times_us": [[1.0, 1000], [2.0, 90], [8.0, 15]]}
    change = Change(before, now, 1.0)
    assert [change.quantile_us(share) for share in (0.5, 0.9, 0.91, 1.0)] == [2, 2, 8, 8]
    assert Change(now, now, 1.0).quantile_us(0.5) is None


def test_after_a_restart_all_is_new(answers):
    before, now, _ = answers
    change = Change({**before, "instance": "another"}, {**now, "uptime_s": 10.0}, 2.0)
    assert change.rate("num_steps") == 30.1


def test_the_picture_names_models_shards_and_busiest_streams(answers):
    before, now, _ = answers
    text = shown(Change(before, now, 2.0))
    assert "\x1b[2J" not in text
    lines = text.splitlines()
    (steps,) = [line for line in lines if line.startswith("steps ")]
    assert "150 a second, in batches of 1.0" in steps
    named = [line for line in lines if line.strip().startswith("\\x1b[2J[red]é ")]
    model, busiest = (line.split() for line in named)
    assert model[1:] == ["1", "150"]
    assert busiest[1:] == ["\\x1b[2J[red]é", "301", "150"]
    assert any(line.split() == ["errors", "none"] for line in lines)


def test_the_picture_of_an_answer_of_before_is_whole(answers):
    """An older server tells less."""
    _, now, _ = answers
    new = ("times_us", "errors", "steps", "busiest", "memory_parts_bytes", "num_ready")
    old = {name: value for name, value in now.items() if name not in new}
    assert "p50 -" in shown(Change(old, old, 1.0))


def test_where_nobody_steps_that_is_said(answers):
    now = {**answers[1], "busiest": []}
    text = shown(Change(now, now, 1.0))
    assert "none has made a step in this time" in text
    assert "about steps/s" not in text


def test_the_command_prints_one_picture_into_a_pipe(answers):
    *_, address = answers
    command = streamrnn("top", address, "--interval", 0.05)
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("busiest streams") == 1


def test_who_is_no_administrator_is_told_so():
    told: dict[str, Any] = {"server": "1", "instance": "i", "durability": "none", "user": "alice"}
    told |= {"uptime_s": 1.0, "num_streams": 0, "max_streams": 1}

    class Asked:
        def call(self, method):
            return told

    with pytest.raises(ServerError, match="'alice' is none"):
        top._ask(Asked(), "tcp://there")  # type: ignore[arg-type]
