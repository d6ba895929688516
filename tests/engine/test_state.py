"""Export and import of a stream's state between engines and servers."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import InputError, RecordError, StreamError
from streamrnn.model.spec import InputSpec
from streamrnn_server.testing import serving
from tests.support.models import random_inputs, random_model
from tests.support.peer import Peer


@pytest.fixture
def model(rng):
    inputs = [InputSpec("a", difference=True), InputSpec("b")]
    return random_model(rng, [("lstm", 5), ("gru", 3)], inputs=inputs)


def test_a_stream_goes_on_in_another_engine_to_the_bit(model, rng):
    x = random_inputs(rng, model.spec, 1, 6)[0]
    expected = Engine(model).steps("a", x)
    one, other = Engine(model, max_streams=2), Engine(model, max_streams=2)
    one.steps("a", x[:3])
    other.rows(["somebody"])
    other.import_state("b", one.export_state("a"))
    np.testing.assert_array_equal(other.steps("b", x[3:]), expected[3:])
    np.testing.assert_array_equal(one.steps("a", x[3:]), expected[3:])


def test_a_stream_goes_to_a_server_and_back(model, rng):
    x = random_inputs(rng, model.spec, 1, 9)[0]
    expected = Engine(model).steps(7, x)
    engine = Engine(model)
    engine.steps(7, x[:3])
    with serving({"m": model}, max_streams=4) as server:
        peer = Peer(server.endpoints[0])
        assert peer.ok("import", 7, engine.export_state(7), None) == [0, 0, 16]
        for t in range(3, 6):
            assert peer.ok("step", 7, t - 2, x[t].tobytes())[2] == expected[t].tobytes()
        record = peer.ok("export", 7)
        peer.socket.close()
    engine.import_state("again", record)
    np.testing.assert_array_equal(engine.steps("again", x[6:]), expected[6:])


def test_a_record_that_does_not_fit_is_refused(model, rng):
    x = random_inputs(rng, model.spec, 1, 2)[0]
    engine = Engine(model)
    engine.steps("a", x)
    record = engine.export_state("a")
    with pytest.raises(StreamError, match="'a' exists"):
        engine.import_state("a", record)
    with pytest.raises(RecordError, match="checksum"):
        engine.import_state("b", record[:-1] + bytes([record[-1] ^ 1]))
    with pytest.raises(RecordError, match="of the model"):
        Engine(random_model(rng, [("gru", 3)])).import_state("b", record)
    rough = Engine(model, precision="int8")
    with pytest.raises(RecordError, match=r"computed by 'cpu-.*-float32-.*any_arithmetic=True"):
        rough.import_state("b", record)
    assert "b" not in rough
    rough.import_state("b", record, any_arithmetic=True)
    assert rough.export_state("b") != record  # which names its own arithmetic
    with pytest.raises(StreamError, match="unknown"):
        engine.export_state("nobody")
    with pytest.raises(InputError, match=r"\(1, 2\)"):
        engine.export_state((1, 2))  # type: ignore[arg-type]
