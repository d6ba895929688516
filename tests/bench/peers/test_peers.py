"""The comparison with other engines: ratios, and refusal of wrong outputs."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.step import other_engines as peers
from streamrnn_bench.step import peers as step_peers
from streamrnn_bench.step import variants as step_forms
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.peers import Cell, EngineCalls, against_fastest, check_outputs
from streamrnn_server.cli import main
from tests.support.program import run_python

MISSING = peers.missing_packages()
needs_peers = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (the extra peers)"
)
# Their own warnings are not ours to answer for.
ignores_warnings = pytest.mark.filterwarnings("ignore")

CASES = [Case("lstm", 5, 19), Case("gru", 5, 19)]
SIZES = [(1, 1), (3, 1), (1, 7)]  # streams, steps


def test_the_fastest_peer_is_the_reference():
    cell = Cell(Case("gru", 8, 16), num_streams=192)
    result = against_fastest(cell, 2e-6, {"slow": 9e-6, "fast": 3e-6, "middle": 4e-6}, 0.25)
    assert (result.reference, result.target) == ("fast", 1.15)
    assert result.ratio == pytest.approx(1.5)
    assert result.note == "slow 9.0, fast 3.0, middle 4.0; others 25%"
    assert result.case == "gru 8->16 B=192 float32 cpu Engine.batch"


@pytest.mark.parametrize(
    ("cell", "target"),
    [
        (Cell(Case("lstm", 64, 128)), 3.0),
        (Cell(Case("lstm", 128, 256)), 1.0),
        (Cell(Case("lstm", 64, 128), num_streams=4), 1.0),
        (Cell(Case("lstm", 64, 128), num_steps=100), 1.0),
        (Cell(Case("gru", 128, 256), num_streams=192), 1.15),
    ],
)
def test_targets(cell, target):
    assert cell.target == target


def test_a_chunk_says_what_was_called():
    cell = Cell(Case("lstm", 8, 16), num_steps=100)
    assert str(cell) == "lstm 8->16 T=100 float32 cpu Engine.steps"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("num_streams", "num_steps"), SIZES)
def test_the_engine_passes_its_check(case, num_streams, num_steps):
    cell, model = Cell(case, num_streams, num_steps), case.model()
    check_outputs(cell, model, {"ours": EngineCalls(model, num_streams, num_steps).outputs})


def forgetting(case):
    """Return what answers every call as if it were the first."""

    def outputs(x):
        model = case.model()
        reference = ReferenceModel(model)
        return reference.step(reference.initial_state(x.shape[1]), x[0])[0][None]

    return outputs


def test_a_peer_that_forgets_its_state_is_not_timed():
    cell = Cell(CASES[0], num_streams=3)
    with pytest.raises(BenchError, match=r"forgetful is off by .*not timed"):
        check_outputs(cell, CASES[0].model(), {"forgetful": forgetting(CASES[0])})


@pytest.mark.parametrize("wrong", [np.full((1, 3, 19), np.nan), np.zeros((3, 19))])
def test_nan_and_a_wrong_shape_are_not_timed(wrong):
    cell = Cell(CASES[0], num_streams=3)
    with pytest.raises(BenchError, match="not timed"):
        check_outputs(cell, CASES[0].model(), {"broken": lambda x: wrong})


# Freed in the order in which they were made.
SIGNAL_AFTER_PEERS = """
import signal
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.other_engines import PEERS

model = Case("gru", 5, 19).model()
for name, peer in PEERS.items():
    made = [peer(model, 1, 1) for _ in range(2)]
    while made:
        del made[0]
signal.signal(signal.SIGTERM, lambda number, frame: print("a signal came"))
signal.raise_signal(signal.SIGTERM)
"""


@needs_peers
def test_a_signal_after_the_peers_ends_nothing():
    done = run_python(SIGNAL_AFTER_PEERS, PYTHONFAULTHANDLER="1", PYTHONWARNINGS="ignore")
    assert (done.returncode, done.stdout) == (0, "a signal came\n"), done.stderr


def test_other_cells_are_refused(monkeypatch):
    monkeypatch.setattr(step_peers, "require_peers", lambda: None)
    with pytest.raises(BenchError, match=r"rnn_tanh 2->3.*lstm and gru only"):
        next(step_peers.measure_peers([Case("rnn_tanh", 2, 3)]))


def test_absent_peers_are_one_clear_line(monkeypatch, capsys):
    monkeypatch.setattr(peers, "missing_packages", lambda: ["onnx", "openvino"])
    assert main(["bench", "step", "--peers"]) == 1
    error = capsys.readouterr().err
    assert "not installed: onnx, openvino" in error
    assert "pip install 'streamrnn[peers]'" in error
    assert error.count("\n") == 1


def test_the_gpu_has_its_own_comparison(capsys):
    assert main(["bench", "step", "--peers", "--device", "cuda"]) == 1
    assert "leave --device out" in capsys.readouterr().err


def test_precisions_stand_beside_float32():
    case = Case("gru", 3, 20)
    found = list(step_forms.measure_precisions([case], num_rounds=1, round_s=1e-4))
    assert [(each.case, each.reference, each.target) for each in found] == [
        ("gru 3->20 B=1 bfloat16 cpu", "float32", None),
        ("gru 3->20 B=1 int8 cpu", "float32", 1.8),
    ]
    assert found[0].reference_value == found[1].reference_value


def test_odd_sizes_stand_beside_the_next_multiple_of_16():
    (found,) = step_forms.measure_odd_sizes([Case("lstm", 3, 17)], [2], num_rounds=1, round_s=1e-4)
    assert (found.case, found.reference) == ("lstm 3->17 B=2 float32 cpu", "32_units")
    assert found.target == pytest.approx(0.8)


@needs_peers
@ignores_warnings
@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("num_streams", "num_steps"), SIZES)
def test_every_peer_gives_the_references_outputs(name, case, num_streams, num_steps):
    cell, model = Cell(case, num_streams, num_steps), case.model()
    peer = peers.PEERS[name](model, num_streams, num_steps)
    check_outputs(cell, model, {name: peer.outputs})


@needs_peers
@ignores_warnings
@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.parametrize("num_steps", [1, 7])
def test_what_is_timed_advances_the_state(name, num_steps):
    """``run`` does the work of as many calls: three of them, and the next output is the fifth's."""
    case = CASES[0]
    model = case.model()
    peer = peers.PEERS[name](model, 2, num_steps)
    x = np.random.default_rng(0).standard_normal((num_steps, 2, 5)).astype(np.float32)
    peer.outputs(x)
    peer.run(3)
    found = peer.outputs(x)
    reference = ReferenceModel(model)
    state = reference.initial_state(2)
    for x_t in np.tile(x, (5, 1, 1)):
        expected, state = reference.step(state, x_t)
    np.testing.assert_allclose(found[-1], expected, atol=step_peers.TOLERANCE)


@needs_peers
@ignores_warnings
def test_the_table_has_a_row_for_every_cell(capsys):
    words = ["--cases", "gru:3:5", "--batch-sizes", "1", "2", "--rounds", "1", "--round-s", "1e-4"]
    assert main(["bench", "step", "--peers", *words]) == 0
    shown = capsys.readouterr().out
    for case in ("B=1", "B=2", "T=100"):
        assert f"gru 3->5 {case} float32 cpu" in shown
    assert "torch" in shown
