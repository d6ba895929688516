"""Gates of one unit, drawn."""

import numpy as np
import pytest

from streamrnn.reference.gates import LayerGates
from streamrnn.training.memory.trace import trace_of, trace_text, write_trace

ONES = np.ones((2, 6, 3))


def found(cell="lstm"):
    steps = np.arange(6.0)[None, :, None] / 10 * ONES
    if cell == "lstm":
        return LayerGates(
            0, "lstm", {"i": ONES - steps, "f": steps, "o": ONES}, {"h": ONES, "c": 10 * steps}
        )
    return LayerGates(0, cell, {}, {"h": steps})


def test_the_gate_that_keeps_the_state_comes_first_and_steps_are_cut():
    trace = trace_of(found(), 1, slice(2, 5), "unit 1")
    assert list(trace.gates) == ["forget gate", "input gate", "output gate"]
    np.testing.assert_allclose(trace.gates["forget gate"], [0.2, 0.3, 0.4])
    np.testing.assert_allclose(trace.gates["input gate"], [0.8, 0.7, 0.6])
    np.testing.assert_allclose(trace.state, [2, 3, 4])
    assert (trace.state_name, trace.first) == ("cell state", 2)


def test_a_terminal_shows_gates_state_and_labels():
    pytest.importorskip("plotext")
    labels = ("a", "bb", "ccc", "d", "e", "f")
    text = trace_text(trace_of(found(), 0, slice(0, 6), "unit 0 of x", labels))
    assert text.startswith("unit 0 of x\n")
    assert "line forget gate, dots input gate" in text
    assert "cell state" in text
    assert "ccc" in text
    assert all(len(line) <= 88 for line in text.splitlines())
    plain = trace_text(trace_of(found("rnn_tanh"), 0, slice(0, 6), "unit 0"))
    assert "gate" not in plain
    assert "output" in plain


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    for k, cell in enumerate(("lstm", "rnn_tanh")):
        path = tmp_path / f"{k}.png"
        write_trace(trace_of(found(cell), 0, slice(0, 6), "unit 0", tuple("abcdef")), path)
        assert path.read_bytes()[:4] == b"\x89PNG"
