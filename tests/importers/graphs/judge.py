"""What onnx's own evaluator makes of a graph, beside what becomes of its file."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.importers.source import import_file
from streamrnn.reference.model import ReferenceModel
from tests.importers.files.onnx import graph_file

onnx = pytest.importorskip("onnx")

RELATIVE = 1e-5  # of the outputs' range: the evaluator computes in float32
STEPS = 23

__all__ = ["RELATIVE", "STEPS", "check_sequence", "check_steps", "evaluator"]


def evaluator(path):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path))


def close(found, wanted):
    wanted = np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= RELATIVE * max(np.ptp(wanted), 1e-3)


def check_sequence(tmp_path, nodes, tensors, x, *, first=False, output="Y", fixed=False, seed=0):
    """Import a graph over a sequence [T, F] and compare all its steps, or its last one.

    ``first`` says that its input is [1, F, T], else it is [1, T, F]. Returns the model.
    """
    given = (x.T if first else x)[None].astype(np.float32)
    shape = list(given.shape)
    if not fixed:
        shape[2 if first else 1] = "steps"
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, {"X": shape}, (output,))
    answer = evaluator(path).run([output], {"X": given})[0]
    model = import_file(path).model
    found = ReferenceModel(model).steps(x)
    if answer.ndim == 3:
        close(found, answer[0].T if answer.shape[2] == len(x) != answer.shape[1] else answer[0])
    else:
        close(found[-1:], answer)
    return model


def check_steps(
    tmp_path, nodes, tensors, x, states, *, shape=None, output="Y", outputs=None, options=None
):
    """Import a graph of one step and compare step by step; states are names to outputs' names.

    ``states`` maps an input to its output's name and its shape; ``outputs`` are all, in another
    order, or with their shapes. Returns the model.
    """
    shape = shape or [1, x.shape[1]]
    inputs = {"X": shape} | {name: list(size) for name, (_, size) in states.items()}
    outputs = outputs or (output, *(name for name, _ in states.values()))
    path = graph_file(tmp_path / "m.onnx", nodes, tensors, inputs, outputs)
    session = evaluator(path)
    kept = {name: np.zeros(size, np.float32) for name, (_, size) in states.items()}
    answers = []
    for row in x.astype(np.float32):
        made = session.run(list(outputs), {"X": row.reshape(shape)} | kept)
        given = dict(zip(outputs, made, strict=True))
        kept = {name: given[other] for name, (other, _) in states.items()}
        answers.append(given[output].reshape(-1))
    model = import_file(path, graph=options).model
    close(ReferenceModel(model).steps(x), np.stack(answers))
    return model
