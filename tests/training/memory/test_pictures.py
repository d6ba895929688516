"""Loss by history and gradients by lag, drawn."""

from typing import Any

import pytest

from streamrnn.training.memory.pictures import memory_text, write_memory

HISTORY = {
    "shares": {"0": 1.2, "1": 0.9, "2": 0.5, "3": 0.3, "4": 0.1}, "full": 0.1, "uses_steps": 4,
    "tried_steps": 4, "num_rows": 9, "is_of_outputs": False, "has_skill": True,
}  # fmt: skip
GRADIENTS = {
    "num_steps": 5, "num_windows": 9, "truncation_steps": 5, "is_of_outputs": False,
    "layers": [
        {"layer": 0, "reach": 4, "by_h": {"0": 2.0, "1": 1.0, "2": 0.5, "4": 0.1}, "by_c": {}},
        {"layer": 1, "reach": 4, "by_h": {"0": 3.0, "1": 1.0, "2": 0.5, "4": 0.1},
         "by_c": {"0": 1.0, "1": 1.0, "2": 0.5, "4": 0.1}},
    ],
}  # fmt: skip


def test_a_terminal_shows_both_by_powers_of_two():
    pytest.importorskip("plotext")
    text = "\n".join(memory_text({"history": HISTORY, "gradients": GRADIENTS}))
    assert "loss as a share of a constant's, by steps given before a row" in text
    assert "line |dL/dh| of layer 2, dots |dL/dc| of layer 2" in text
    ticks = [line.split() for line in text.splitlines() if line.strip().startswith("0 ")]
    assert ticks == [["0", "1", "2", "4"], ["0", "1", "2", "4"]]


def test_what_is_not_measured_is_not_drawn():
    assert memory_text({"history": None, "gradients": None}) == []


def test_a_picture_has_both(tmp_path):
    pytest.importorskip("matplotlib")
    found: list[dict[str, Any]] = [
        {"history": HISTORY, "gradients": GRADIENTS},
        {"history": HISTORY, "gradients": None},
    ]
    for k, memory in enumerate(found):
        path = tmp_path / f"{k}.png"
        write_memory(memory, path)
        assert path.read_bytes()[:4] == b"\x89PNG"
