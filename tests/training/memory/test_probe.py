"""What is measured while a network is trained: right, in words, and without a trace in its bits."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from streamrnn.reference.gates import run_gates
from streamrnn.training import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.loop import fit
from streamrnn.training.fit.trainer import Evaluation, Trainer
from streamrnn.training.memory.fading import Fading, LayerFading, measure_fading
from streamrnn.training.memory.probe import NUM_WINDOWS, SETTLED, Probe, probe_words
from streamrnn.training.memory.rows import choose_rows, windows_before
from streamrnn.training.memory.targets import TargetsOf
from streamrnn.training.network.network import Network
from streamrnn.training.run.progress import TrainingProgress
from streamrnn_server.cli import main
from tests.support.tables import noisy_sine, write_csv
from tests.training.memory.made import CASES, made


@pytest.mark.parametrize("name", CASES)
def test_a_probe_measures_what_the_reference_does(tmp_path, monkeypatch, name):
    """The reference is the one that agrees with PyTorch (`test_fading`)."""
    monkeypatch.setattr("streamrnn.training.memory.fading.MAX_WINDOWS", NUM_WINDOWS)
    dataset, model = made(name, tmp_path)
    network = Network(dataset.spec, model.parameters, np.float64)
    probe: Any = Probe(network, dataset, 12)
    found, reference = probe(0.5, 0.0, 1), measure_fading(model, dataset, "train", 12)
    assert reference is not None
    right = reference.to_dict()
    for own, wanted in zip(found["layers"], right["layers"], strict=True):
        assert own["reach"] == wanted["reach"]
        for by in ("by_h", "by_c"):
            assert list(own[by]) == list(wanted[by])
            np.testing.assert_allclose(list(own[by].values()), list(wanted[by].values()), 1e-4)
    assert {key: found[key] for key in ("num_steps", "num_windows", "truncation_steps")} == {
        key: right[key] for key in ("num_steps", "num_windows", "truncation_steps")
    }


@pytest.mark.parametrize("name", CASES)
def test_the_gates_that_the_trainer_keeps_are_those_of_the_reference(tmp_path, name):
    dataset, model = made(name, tmp_path)
    network = Network(dataset.spec, model.parameters, np.float64)
    probe = Probe(network, dataset, 12)
    probe(0.5, 0.0, 1)
    rows = choose_rows(dataset, "train", NUM_WINDOWS, 11)
    _, right = run_gates(model, windows_before(dataset, rows))
    nodes: list[Any] = network.nodes[:-1]
    for node, wanted in zip(nodes, right, strict=True):
        gates, states = node.kept()
        assert set(gates) == set(wanted.gates)
        for own, given in ((gates, wanted.gates), (states, wanted.states)):
            for key in own:
                np.testing.assert_allclose(own[key], given[key], atol=1e-5)


def dataset_of(directory, y, **settings):
    path = write_csv(directory, y=y)
    own: dict[str, Any] = {"layers": ("lstm:4",), "batch_size": 3, "truncation_steps": 16}
    config = TrainingConfig(path=path, predict=("y",), **own | settings)
    return make_dataset(config, read_table(path))


def memories(dataset: Any) -> list[Any]:
    return [each.memory for each in fit(dataset).history]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("probe"), noisy_sine(300), epochs=8, dropout=0.2)


def test_no_bit_of_a_training_depends_on_its_probes(dataset, monkeypatch):
    probed = fit(dataset)
    assert [each.memory is not None for each in probed.history] == [
        True, True, False, True, False, False, False, True,
    ]  # fmt: skip
    monkeypatch.setattr(Probe, "is_due", lambda *_: False)
    alone = fit(dataset)
    assert alone.network.flat.tobytes() == probed.network.flat.tobytes()
    assert alone.history == [replace(each, memory=None) for each in probed.history]


def test_a_probe_is_made_whenever_it_costs_little(dataset):
    probe = Trainer(dataset).probe
    due = [probe.is_due(3, num_updates, 3) for num_updates in range(2000)]
    assert not any(due[:100])
    assert all(due[1000:])
    assert all(probe.is_due(1 << k, 1, 3) for k in range(9))


def test_of_what_is_no_plain_stack_units_alone_are_counted(tmp_path):
    layers = ("gru:3", "gru:2")
    dataset = dataset_of(tmp_path, noisy_sine(300), feedback=("layer2",), layers=layers, epochs=1)
    [memory] = memories(dataset)
    assert memory["layers"] == []
    assert [each["num_units"] for each in memory["units"]] == [3, 2]
    assert "reach" not in memory["says"]


@pytest.mark.parametrize("loss", [np.inf, np.nan])
def test_a_validation_loss_that_is_not_finite_is_no_share_of_a_constant(dataset, loss):
    found: Any = Trainer(dataset).probe(loss, 0.0, 1)
    assert found["share_of_constant"] is None
    json.dumps(found, allow_nan=False)


def test_a_constant_whose_loss_is_not_finite_is_not_known(tmp_path):
    dataset = dataset_of(tmp_path, noisy_sine(300))
    dataset.streams[0].target[200] = np.inf
    found: Any = Trainer(dataset).probe(0.5, 0.0, 1)
    assert found["share_of_constant"] is None


def test_the_share_of_a_constant_is_that_of_the_validation_part(dataset):
    probe: Any = Trainer(dataset).probe
    rows = choose_rows(dataset, "validation", 10**6, 0)
    constant = TargetsOf(dataset, rows).of_constant()
    assert probe(0.25 * constant, 0.0, 1)["share_of_constant"] == pytest.approx(0.25)
    assert "skill" not in probe(0.25 * constant, 0.0, 1)["says"]
    assert probe(constant, 0.0, 1)["says"].startswith("no skill yet: memory figures mean")


def test_weights_that_are_not_finite_are_not_measured(dataset):
    trainer = Trainer(dataset)
    trainer.network.flat[:] = np.nan
    assert trainer.probe(np.nan, 0.0, 1) is None


def words(by_h, truncation_steps=64, clipped=0.0, stuck=0, dead=0, share=0.5, updates=SETTLED):
    layer = LayerFading(0, tuple(by_h), ())
    memory = Fading((layer,), len(by_h), 8, truncation_steps).to_dict()
    units = [{"layer": 0, "cell": "gru", "num_units": 4, "stuck": {"z": stuck}, "dead": dead}]
    return probe_words(memory | {"units": units, "share_of_constant": share}, clipped, updates)


def test_words_say_what_is_wrong():
    faded = 0.7 ** np.arange(64.0)
    assert words(faded) == "gradients reach 13 of 64 steps"
    assert words(faded[:12], 12) == "gradients reach 12 of 12 steps, cut by the truncation"
    assert words(np.zeros(8)) == "gradients reach no layer"
    assert words(faded, share=None) == "gradients reach 13 of 64 steps"
    assert words(faded, clipped=0.89) == "gradients reach 13 of 64 steps"
    told = words(faded, clipped=1.0, stuck=1, dead=2, share=1.0)
    assert told == (
        "no skill yet: memory figures mean nothing; gradients reach 13 of 64 steps; "
        "clipped in 100% of the updates: lower the rate; 1 gate stuck; 2 of 4 units dead"
    )
    assert "3 gates stuck" in words(faded, stuck=3)
    early = words(faded, clipped=1.0, updates=SETTLED - 1)
    assert early == "gradients reach 13 of 64 steps; clipped in 100% of the updates"


def test_every_update_is_said_to_be_clipped(tmp_path):
    dataset = dataset_of(tmp_path, noisy_sine(300), epochs=2, clip_norm=1e-6)
    assert [each.clipped for each in fit(dataset).history] == [1.0, 1.0]
    for memory in memories(dataset):
        assert "clipped in 100% of the updates" in memory["says"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_the_words(terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    memory = {"says": "gradients reach 12 of 64 steps"}
    with TrainingProgress(console) as progress:
        for k in range(1, 21):
            probed = memory if k == 2 else None
            progress(Evaluation(k, 20, 0.5, 0.25, 0.125, memory=probed))
    lines = [line for line in text.getvalue().splitlines() if memory["says"] in line]
    assert len(lines) == 1  # it was heard once


def test_log_and_json_hold_the_probes(tmp_path, capsys):
    data, log, model = write_csv(tmp_path, y=noisy_sine(200)), tmp_path / "log", tmp_path / "m"
    command = ["train", data, "--predict", "y", "--layers", "gru:3", "--epochs", "2", "--json"]
    assert main([*command, "--log", str(log), "-o", str(model)]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["memory"]["says"] for row in rows] == [
        each["memory"]["says"] for each in facts["history"]
    ]
    assert rows[0]["memory"]["layers"][0]["by_h"]["0"] > 0.0
    assert 0.0 <= rows[0]["clipped"] <= 1.0
