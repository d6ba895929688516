"""Our server beside others: who is compared, checks before timing, a whole small run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import zmq

from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.peers import measure
from streamrnn_bench.peers.contenders import CONTENDERS, OURS, Place, peers_python, peers_versions
from streamrnn_bench.peers.measure import check_steps, chosen, measure_served_peers
from streamrnn_bench.peers.servers.engines import Numpy
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server.load import NUM_X, make_traffic
from streamrnn_bench.server.processes import temporary_model
from streamrnn_bench.step.cases import Case
from streamrnn_client.protocol import decode_response, encode_request
from streamrnn_server.cli import main

CASE = Case("lstm", 5, 8)
GIVE_UP_AFTER_MS = 60_000
THIS_PYTHON = Path(sys.executable)
ALL_PACKAGES = dict.fromkeys(("torch", "onnx", "onnxruntime", "pyzmq", "msgpack", "grpcio"), "1")
ALL_PACKAGES["nvidia-pytriton"] = "1"


def right_outputs(num_steps=4, num_streams=3):
    """Outputs [T, N, H] of the float64 reference, with the inputs that `Traffic` promises."""
    reference = ReferenceModel(CASE.model())
    x = make_traffic(0, 1, CASE.input_size, CASE.hidden_size).x
    state = reference.initial_state(num_streams)
    outputs = []
    for seq in range(1, num_steps + 1):
        y, state = reference.step(state, x[(np.arange(num_streams) + 7 * seq) % NUM_X])
        outputs.append(y)
    return np.array(outputs, np.float32)


def test_right_steps_pass_and_their_error_is_told():
    assert 0 < check_steps("peer", CASE.model(), right_outputs()) < 1e-6


def test_a_state_that_is_not_carried_is_found():
    outputs = right_outputs()
    x = make_traffic(0, 1, CASE.input_size, CASE.hidden_size).x
    reference = ReferenceModel(CASE.model())
    outputs[2], _ = reference.step(reference.initial_state(3), x[(np.arange(3) + 21) % NUM_X])
    with pytest.raises(BenchError, match="peer: step 3 of 3 streams is off by"):
        check_steps("peer", CASE.model(), outputs)


def test_an_output_that_is_no_number_is_found():
    outputs = right_outputs()
    outputs[1, 2, 3] = np.nan
    with pytest.raises(BenchError, match="step 2 of 3 streams is off by nan"):
        check_steps("peer", CASE.model(), outputs)


@pytest.fixture
def place(tmp_path):
    with temporary_model(CASE) as model:
        found = Place(CASE, model, THIS_PYTHON, 40)
        found.write_weights(CASE.model())
        yield found


def test_engine_of_the_small_server_is_right_alone_and_in_batches(place):
    x = make_traffic(0, 1, CASE.input_size, CASE.hidden_size).x
    for in_batches in (True, False):
        engine = Numpy(str(place.weights), 3)
        outputs = []
        for seq in range(1, 5):
            inputs = [x[(stream + 7 * seq) % NUM_X].tobytes() for stream in range(3)]
            if in_batches:
                outputs.append(engine.steps(range(3), inputs))
            else:
                outputs.append([engine.step(k, each) for k, each in enumerate(inputs)])
        found = np.array([[np.frombuffer(y, np.float32) for y in of_step] for of_step in outputs])
        np.testing.assert_allclose(found, right_outputs(), atol=1e-6)


def contender(name):
    (found,) = [each for each in CONTENDERS if each.name == name]
    return found


@pytest.mark.parametrize("name", ["pyzmq + numpy", "pyzmq + numpy, batches"])
def test_steps_of_one_stream_are_taken_in_order_however_many_wait(place, name):
    # All at once: of a batch that takes what waits, only the first step may be the stream's.
    x = make_traffic(0, 1, CASE.input_size, CASE.hidden_size).x
    with (
        contender(name).start(place) as endpoint,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.linger = 0
        dealer.connect(endpoint)
        dealer.send(encode_request(0, "open", [["a", "b", "c"], None, 16]))
        assert dealer.poll(GIVE_UP_AFTER_MS)
        assert decode_response(dealer.recv()).result == [[None, [0, 0]]] * 3
        for seq in range(1, 5):
            for stream, of in enumerate("abc"):
                value = x[(stream + 7 * seq) % NUM_X].tobytes()
                dealer.send(encode_request(10 * seq + stream, "step", [of, seq, value, 0]))
        found = np.zeros((4, 3, CASE.hidden_size), np.float32)
        for _ in range(12):
            assert dealer.poll(GIVE_UP_AFTER_MS)
            response = decode_response(dealer.recv())
            seq, stream = divmod(response.msgid, 10)
            assert response.result[0] == seq
            found[seq - 1, stream] = np.frombuffer(response.result[2], np.float32)
    np.testing.assert_allclose(found, right_outputs(), atol=1e-6)


def test_a_whole_run_checks_and_compares(monkeypatch):
    monkeypatch.setattr(measure, "_WARM_UP_S", 0.01)
    results = list(measure_served_peers(CASE, ["pyzmq + numpy"], (1, 6), 2, 0.05, THIS_PYTHON))
    assert [result.case for result in results] == [
        "lstm 5->8 p50, pyzmq + numpy",
        "lstm 5->8 p50, pyzmq + numpy, batches",
        "lstm 5->8 6 streams, pyzmq + numpy",
        "lstm 5->8 6 streams, pyzmq + numpy, batches",
    ]
    for result in results:
        assert result.ratio > 0
        assert result.unit == ("us" if "p50" in result.case else "steps/s")
        assert 0 < result.details["error"] < 1e-6
        assert 0 < result.details["reference_error"] < 1e-6
        assert result.details["client_us"] > 0


def test_a_server_that_computes_nothing_is_not_timed(monkeypatch):
    lying = [contender("pyzmq + nothing")]
    object.__setattr__(lying[0], "computes", True)
    monkeypatch.setattr(measure, "CONTENDERS", lying)
    try:
        with pytest.raises(BenchError, match="a wrong result is not timed"):
            list(measure_served_peers(CASE, (), (2,), 1, 0.05, THIS_PYTHON))
    finally:
        object.__setattr__(lying[0], "computes", False)


def test_a_peer_is_chosen_by_the_beginning_of_its_name():
    names = [each.name for each in chosen(["pyzmq + pytorch"], ALL_PACKAGES)]
    assert names == ["pyzmq + pytorch", "pyzmq + pytorch, batches"]
    everybody = {each.name for each in chosen([], ALL_PACKAGES)}
    assert everybody == {each.name for each in CONTENDERS if "numpy" not in each.name}
    assert OURS.name not in everybody


def test_peers_that_are_not_installed_are_left_out_but_not_if_asked_for():
    without_torch = {name: "1" for name in ALL_PACKAGES if name != "torch"}
    assert not any("pytorch" in each.name for each in chosen([], without_torch))
    with pytest.raises(BenchError, match="not installed: torch; `make peers` installs them"):
        chosen(["pyzmq + pytorch"], without_torch)
    with pytest.raises(BenchError, match="not installed"):
        chosen([], {})
    with pytest.raises(BenchError, match="there is no peer 'tensorflow'; peers are 'pyzmq"):
        chosen(["tensorflow"], ALL_PACKAGES)


def test_versions_are_those_of_the_other_python():
    assert peers_versions(THIS_PYTHON)["numpy"] == np.__version__


def test_a_python_that_is_not_there_is_one_clear_line(capsys):
    assert main(["bench", "peers", "--peers-python", "/nowhere/python"]) == 1
    assert "there is no /nowhere/python; `make peers` makes one" in capsys.readouterr().err
    with pytest.raises(BenchError, match="compared for lstm only"):
        list(measure_served_peers(Case("gru", 2, 3)))
    assert peers_python(THIS_PYTHON) == THIS_PYTHON.absolute()
