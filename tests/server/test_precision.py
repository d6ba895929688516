"""A server with weights in bfloat16 and int8."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.errors import StartError
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.precisions import PRECISION_NAMES, PRECISIONS
from streamrnn_server.config import ServerConfig
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.peer import Peer

NUM_INPUTS = 3


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(5), [("lstm", 24), ("gru", 7)], inputs=NUM_INPUTS)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_steps_are_the_engine_s_to_the_bit(model, rng, precision):
    x = rng.normal(size=(20, NUM_INPUTS)).astype(np.float32)
    expected = Engine(model, precision=precision).steps("a", x)
    assert np.any(expected != Engine(model).steps("a", x))
    with serving({"m": model}, precision=precision, max_streams=10) as server:
        peer = Peer(server.endpoints[0])
        hello = peer.ok("hello", {})
        assert hello["precision"] == precision
        assert hello["arithmetic"] == Program(model, precision).arithmetic
        assert peer.ok("models")[0]["precision"] == precision
        for stream, window in (("a", 16), ("only the newest", 1)):
            assert peer.ok("open", stream, None, window)[2] == window
            for k in range(4):
                y = peer.ok("step", stream, k + 1, x[k].tobytes())[2]
                assert y == expected[k].tobytes()
                # The same number again: from the ring, or from the state where there is none.
                assert peer.ok("step", stream, k + 1, x[k].tobytes())[2] == y
        assert peer.ok("step", "a", 5, x[4:20].tobytes())[2] == expected[4:20].tobytes()
        peer.socket.close()


def test_a_stream_does_not_go_on_in_another_precision(model, rng, tmp_path):
    x = rng.normal(size=NUM_INPUTS).astype(np.float32).tobytes()
    options = {"state_dir": tmp_path, "durability": "always"}
    with serving({"m": model}, precision="int8", **options) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", "a", None, 4)
        assert peer.ok("step", "a", 1, x)[:2] == [1, 1]
        peer.socket.close()
    with serving({"m": model}, **options) as server:
        peer = Peer(server.endpoints[0])
        code, detail = peer.error("step", "a", 2, x)
        assert code == "mismatch"
        assert "-int8-" in detail["stored_arithmetic"]
        assert "-float32-" in detail["arithmetic"]
        peer.socket.close()


def test_an_unknown_precision_is_refused():
    assert list(PRECISION_NAMES) == list(PRECISIONS)
    with pytest.raises(StartError, match=r"--precision is 'int4'; .* float32, bfloat16, int8"):
        ServerConfig(precision="int4")
