"""Every vector width gives the same bits: of steps, of other forms of cells, of gradients.

A process for each width, but for this one's own: each compiles all of it, so there is one test.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.kernels import vector_width
from streamrnn.model.spec import CELLS
from tests.support.forms import FORMS, form_of
from tests.support.models import random_inputs, random_model
from tests.support.program import run_python
from tests.training.network.drawn import gradient_of, make_network


def digests():
    """Return one digest of the outputs of plain cells, one of other forms, one of gradients."""
    plain, forms, gradients = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for seed, cell in enumerate(sorted(CELLS)):
        model = random_model(
            np.random.default_rng(seed),
            layers=[(cell, 37), (cell, 20)],
            inputs=5,
            head="softmax",
            outputs=9,
        )
        add_outputs(plain, model, seed)
    for seed, name in enumerate(FORMS):
        layers = [form_of(name, 37), form_of(name, 20)]
        model = random_model(np.random.default_rng(seed), layers, inputs=5, outputs=9)
        add_outputs(forms, model, seed)
    for dtype in (np.float32, np.float64):
        for cell in sorted(CELLS):
            network, chunk, target = make_network([cell, cell], (37, 29, 6, 5, 9), dtype)
            loss, gradient = gradient_of(network, chunk, target)
            gradients.update(np.float64(loss).tobytes() + gradient.tobytes())
    return [digest.hexdigest() for digest in (plain, forms, gradients)]


def add_outputs(digest, model, seed):
    engine = Engine(model, max_streams=32)
    x = random_inputs(np.random.default_rng(100 + seed), model.spec, 29, 20)
    for t in range(20):
        digest.update(engine.batch(engine.rows(range(29)), x[:, t]).tobytes())


@pytest.mark.slow
def test_every_vector_width_gives_the_same_bits():
    wanted = digests()
    assert len(set(wanted)) == 3
    code = "from tests.kernels.test_vector_widths import digests; print(*digests())"
    for name, width in vector_width.WIDTHS.items():
        if name not in vector_width._available() or width == vector_width.WIDTH:
            continue
        ran = run_python(code, STREAMRNN_SIMD=name)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == wanted, name
