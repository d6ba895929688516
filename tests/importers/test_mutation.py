"""Damaged files of every format: the project's errors alone, no hang, little memory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from streamrnn.model.layers.frame import DenseSpec, MixSpec, NormSpec, SliceSpec
from streamrnn.model.spec import LayerSpec
from tests.importers.mutation import (
    Format,
    as_json,
    campaign,
    in_archive,
    in_header,
    in_json,
    in_onnx,
)
from tests.importers.shared import shared_files
from tests.support.models import random_graph, random_model

SECONDS = float(os.environ.get("STREAMRNN_SOAK_S", "600"))
KNOWN = {"ImportedModel", "ModelError", "ModelFileError", "SpecError"}
FEW_FILES = {"keras": 10, "h5": 10, "weights.h5": 10}  # a process each
HDF5 = list(FEW_FILES)


def shared(pattern, largest=40_000):
    paths = shared_files("models", pattern)
    return [path.read_bytes() for path in paths if path.stat().st_size <= largest]


def make_safetensors(tmp_path):
    from tests.importers.files.state_dicts import linear, recurrent

    tensors = recurrent() | linear()
    embedded = {"emb.weight": np.ones((7, 3), np.float16)} | tensors
    two = recurrent("a.") | recurrent("b.", 3, 5) | linear()
    good = [safetensors.numpy.save(item) for item in (tensors, embedded, two)]
    return Format("safetensors", good, [in_header, in_header])


def make_onnx(tmp_path):
    pytest.importorskip("onnx")
    from streamrnn.exporters.onnx.model import export_onnx
    from tests.importers.files.onnx import graph_file, state_graph

    rng = np.random.default_rng(0)
    path = tmp_path / "good"
    nodes, tensors, inputs = state_graph()
    good = [graph_file(path, nodes, tensors, inputs, ("Y", "S1")).read_bytes()]
    good.append(export_onnx(random_model(rng, [("lstm", 4), ("gru", 3)])).data)
    joins = [
        LayerSpec("gru", 3, name="a"),
        MixSpec((1.0, 0.5), reads=("a", "input"), name="b"),
        MixSpec(is_product=True, reads=("a", "b"), name="c"),
        LayerSpec("lstm", 2, reads=("c", "input")),
    ]
    frames = [DenseSpec(4, "gelu"), NormSpec(), SliceSpec(channels=(1, 3)), LayerSpec("gru", 2)]
    good += [export_onnx(random_graph(layers)).data for layers in (joins, frames)]
    good += [
        graph_file(path, made, numbers, of, names).read_bytes()
        for made, numbers, of, names in _graphs_over_time()
    ]
    return Format("onnx", [*good, *shared("*.onnx")], [in_onnx, in_onnx])


def _graphs_over_time():
    from tests.importers.files.onnx import draw
    from tests.importers.graphs.made import (
        NEW,
        WRITTEN,
        between,
        chomped,
        conv_cache,
        gru_cell,
        plane,
    )

    yield *plane(draw(4, 2, 2, 3), draw(4), before=1), {"X": [1, "t", 10]}, ("Y",)
    yield *chomped(3, 2), {"X": [1, 3, "t"]}, ("Y",)
    for name in ("softplus of twice", "rms norm", "power"):
        yield *between(WRITTEN[name]), {"X": [1, "t", 3]}, ("Y",)
    for new in NEW.values():
        nodes, tensors, _ = conv_cache(new)
        tensors["sizes"] = np.array([1, 2])
        yield nodes, tensors, {"X": [1, 3], "S": [1, 3, 2]}, ("Y", "S_out")
    nodes, tensors = gru_cell([])
    nodes[-1].output[0] = "Y"
    nodes.append(type(nodes[-1])(op_type="Tanh", input=["Y"], output=["S_out"]))
    yield nodes, tensors, {"X": [1, 3], "S": [1, 4]}, ("Y", "S_out")


def make_keras(tmp_path):
    pytest.importorskip("h5py")
    from tests.importers.files.keras import archive, dense, recurrent

    path = tmp_path / "good"
    good = [archive(path, [recurrent(kind), dense()]).read_bytes() for kind in ("LSTM", "GRU")]
    return Format("keras", [*good, *shared("*.keras")], [in_archive, in_archive, in_archive])


def make_h5(tmp_path):
    pytest.importorskip("h5py")
    from tests.importers.files.keras import dense, legacy, recurrent

    path = tmp_path / "good"
    good = [legacy(path, [recurrent("GRU"), dense()]).read_bytes()]
    files = shared("*.h5")
    return Format("h5", [*good, *[data for data in files if b"model_config" in data]], [in_json])


def make_weights_h5(tmp_path):
    pytest.importorskip("h5py")
    from tests.importers.files.keras import dense, legacy, recurrent, sequential

    layers = [recurrent("GRU"), dense()]
    good = [legacy(tmp_path / "good", layers, config=False).read_bytes()]
    return Format("weights.h5", good, config=as_json(sequential(layers)))


def make_rtneural(tmp_path):
    from tests.importers.files.json import plain, rtneural

    good = [as_json(plain(rtneural())), as_json(plain(rtneural(in_gain=3.0, out_gain=-1.0)))]
    return Format("rtneural", [*good, *shared("rtneural*.json")], [in_json, in_json])


def make_nam(tmp_path):
    from tests.importers.files.json import convnet, nam, plain, wavenet

    good = [as_json(plain(value)) for value in (nam()[0], wavenet(), convnet())]
    return Format("nam", [*good, *shared("*.nam")], [in_json, in_json])


def make_guitarml(tmp_path):
    from tests.importers.files.json import guitarml, plain

    good = [as_json(plain(guitarml())), as_json(plain(guitarml()["state_dict"]))]
    return Format("guitarml", [*good, *shared("guitarml*.json")], [in_json, in_json])


FORMATS = {
    "safetensors": make_safetensors,
    "onnx": make_onnx,
    "keras": make_keras,
    "h5": make_h5,
    "weights.h5": make_weights_h5,
    "rtneural": make_rtneural,
    "nam": make_nam,
    "guitarml": make_guitarml,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HDF5)) for name in FORMATS]
)
def test_damaged_files_raise_nothing_else(name, tmp_path):
    outcomes = campaign(FORMATS[name](tmp_path), tmp_path, 1, num_files=FEW_FILES.get(name, 250))
    assert set(outcomes) <= KNOWN
    assert outcomes["ModelFileError"] > 0


@pytest.mark.soak
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_raise_nothing_else_for_long(name, tmp_path, capsys):
    seed = int(os.environ.get("STREAMRNN_SEED") or secrets.randbits(32))
    with capsys.disabled():
        print(f"\n{name}: seed {seed}, {SECONDS:g} s")
    outcomes = campaign(FORMATS[name](tmp_path), Path(tmp_path), seed, seconds=SECONDS)
    with capsys.disabled():
        print(f"{name}: {dict(outcomes)}")
    assert set(outcomes) <= KNOWN
