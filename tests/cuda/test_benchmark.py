"""``bench step --device cuda``, in the simulator."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from streamrnn.kernels.cuda import compiler as support
from streamrnn.kernels.cuda import network
from streamrnn.kernels.cuda.tiles import TileShape
from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.commands import bench as command
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.step import cuda as step_cuda
from streamrnn_bench.step.cases import Case
from streamrnn_bench.step.cuda import GpuCase, measure_gpu_steps
from tests.cuda.grid import launch

pytestmark = pytest.mark.skipif(not support.SIMULATED, reason="runs in the simulator")


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr("numba.cuda.simulator.kernel.FakeCUDAKernel.__call__", launch)
    tiling = network.Tiling((TileShape(1, 1, 4, 1, 2), TileShape(1, 1, 1, 1, 3)), 8)
    monkeypatch.setattr(network, "TILING", tiling)


def test_the_benchmark_verifies_and_measures(capsys):
    case = Case("rnn_tanh", 1, 1)
    cases = [GpuCase(case, 2, target=0.6), GpuCase(case, 1, 2, wanted_us=6.0), GpuCase(case, 1)]
    results = list(measure_gpu_steps(cases, num_rounds=1, round_s=0.001))
    assert [(result.case.partition("1->1 ")[2], result.target) for result in results] == [
        ("B=2 T=1 float32 cuda", 0.6),
        ("B=2 T=1 float32 cuda Engine", None),
        ("B=1 T=2 float32 cuda", None),
        ("B=1 T=2 float32 cuda Engine", None),
        ("B=1 T=2 float32 cuda", 1.0),
        ("B=1 T=1 float32 cuda", None),
        ("B=1 T=1 float32 cuda Engine", None),
        ("B=1 T=1 float32 cuda wave", 1.0),
    ]
    assert [r.reference_value for r in results if r.reference == "wanted"] == [6.0, 15.0]
    assert all(result.ratio > 0 for result in results)


def test_the_benchmark_s_file_is_named_by_the_gpu(tmp_path, monkeypatch):
    given = []

    def measure(cases, **rounds):
        given.extend(cases)
        yield Result("step", "a case", 1.0, "us", "wanted", 2.0)

    monkeypatch.setattr(step_cuda, "measure_gpu_steps", measure)
    parser = argparse.ArgumentParser()
    command.configure(parser)
    words = ["step", "--device", "cuda", "--json", str(tmp_path), "--cases", "lstm:2:3"]
    assert command.run(parser.parse_args([*words, "--precision", "tf32"])) == 0
    [line] = (tmp_path / "simulator-step.jsonl").read_text().splitlines()
    assert json.loads(line)["ratio"] == 2.0
    assert [str(case) for case in given] == [
        f"lstm 2->3 B={num_streams} T=1 tf32 cuda" for num_streams in (1, 4096)
    ]


@pytest.mark.parametrize("error", [1e-3, np.nan, np.inf])
def test_wrong_outputs_are_reported_and_the_next_case_is_measured(monkeypatch, tmp_path, error):
    wrong, right = GpuCase(Case("rnn_tanh", 1, 1), 2), GpuCase(Case("rnn_tanh", 2, 1), 2)
    step = ReferenceModel.step

    def step_wrongly(self, state, x):
        y, state = step(self, state, x)
        return (y + error if self.spec.num_inputs == 1 else y), state

    monkeypatch.setattr(ReferenceModel, "step", step_wrongly)
    monkeypatch.setattr(step_cuda, "GPU_CASES", (wrong, right))
    parser = argparse.ArgumentParser()
    command.configure(parser)
    path = tmp_path / "found.jsonl"
    words = ["step", "--device", "cuda", "--json", str(path), "--rounds", "1", "--round-s", "0.001"]
    with pytest.raises(BenchError, match=rf"wrong, and so not timed: {wrong} outputs$"):
        command.run(parser.parse_args(words))
    first, *rest = map(json.loads, path.read_text().splitlines())
    assert (first["case"], first["reference_value"]) == (f"{wrong} outputs", 5e-6)
    assert 0 < first["ratio"] < 1
    assert [each["case"] for each in rest] == [str(right), f"{right} Engine"]
