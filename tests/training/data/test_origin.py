"""Large numbers with small changes: a counter at 1e9 is one from 0, all the way to the client."""

from dataclasses import replace

import numpy as np
import pytest

from streamrnn import Engine, Model
from streamrnn.engine.precision import measure_precisions, sample_of
from streamrnn.errors import ModelError, SpecError
from streamrnn.exporters.onnx.model import export_onnx
from streamrnn.exporters.torch.model import export_torch
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.data.columns import origin_of
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.predict import predict_table
from streamrnn_client.errors import BadValue, NotSupported
from streamrnn_client.inputs import ModelInfo
from tests.support.models import random_model
from tests.support.tables import write_csv

AT = 1_000_000_000


def counter(num_rows=300):
    t = np.arange(num_rows)
    steps = 100 + 30 * np.sin(t / 4) + np.random.default_rng(0).normal(0, 8, num_rows)
    return np.cumsum(np.round(steps)).astype(np.int64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same counter from 0 and from `AT`, trained alike."""
    found = []
    for start in (0, AT):
        directory = tmp_path_factory.mktemp("counter")
        path = write_csv(directory, total=start + counter())
        config = TrainingConfig(path=path, predict=("total",), epochs=4, layers=("gru:6",))
        found.append((path, train_to_file(config, directory / "m.safetensors")))
    return found


def test_a_counter_trains_far_from_zero_as_it_does_from_zero(trained):
    near, far = (result.report for _, result in trained)
    item, output = trained[1][1].model.spec.inputs[0], trained[1][1].model.spec.outputs[0]
    assert item.difference
    assert item.origin == output.origin == AT + np.median(counter()[:180])
    assert trained[0][1].model.spec.inputs[0].origin == 0
    for part in ("train", "validation", "test"):
        own, other = (r["errors"][part]["total+1"]["rmse"] for r in (far, near))
        assert own == pytest.approx(other, rel=1e-3)
    for name, errors in far["baselines"].items():
        expected = near["baselines"][name]["total+1"]["rmse"]
        assert errors["total+1"]["rmse"] == pytest.approx(expected, rel=1e-6)


def test_engine_reference_and_predict_speak_the_users_numbers(trained):
    path, result = trained[1]
    values = (AT + counter()).astype(np.float64)
    y = Engine(result.model).steps("a", values)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, ReferenceModel(result.model).steps(values[:, None]), rtol=1e-12)
    # The change to the next row is told, not the nearest multiple of 64.
    assert np.abs(y[50:-1, 0] - values[51:]).max() < 100
    predicted, _ = predict_table(result.model, read_table(path))
    np.testing.assert_array_equal(predicted, y)
    one_by_one = Engine(result.model)
    stepped = [one_by_one.step({"b": {"total": int(v)}})["b"] for v in values]
    np.testing.assert_array_equal(np.array(stepped), y)
    rows = one_by_one.rows(["c"])
    np.testing.assert_array_equal(one_by_one.batch(rows, values[:1, None]), y[:1])


def test_the_client_takes_and_gives_the_users_numbers(trained):
    model = Model.load(trained[1][1].config.path.replace("data.csv", "m.safetensors"))
    entry = {"name": "m", "fingerprint": "f", "row_bytes": 64, "spec": model.spec.to_dict()}
    info = ModelInfo(entry)
    origin = model.spec.inputs[0].origin
    exact = np.float32(float(AT + 7) - origin)
    for given in (AT + 7, [AT + 7], [float(AT + 7)], {"total": AT + 7}, np.array([AT + 7])):
        x = info.step_array(given)
        assert x.dtype == np.dtype("<f4")
        assert x.tolist() == [exact]
    many = np.array([AT + 7, AT + 8])
    np.testing.assert_array_equal(info.steps_array(many)[:, 0], (many - origin).astype("<f4"))
    rows = info.row_arrays({"a": [AT + 7], "b": AT + 8})
    np.testing.assert_array_equal(info.steps_array(rows, "B")[:, 0], (many - origin).astype("<f4"))
    y = info.outputs(np.array([1.5, 2.5], "<f4").tobytes())
    assert y.dtype == info.output_dtype == np.float64
    np.testing.assert_array_equal(y, [origin + 1.5, origin + 2.5])
    with pytest.raises(BadValue, match="no array of numbers"):
        info.step_array(["x"])


@pytest.mark.parametrize(
    ("values", "has_origin"),
    [
        (370 + np.sin(np.arange(100)), False),
        (AT + np.arange(100.0) ** 1.5, True),
        (52.52 + 1e-5 * np.random.default_rng(0).normal(size=100), True),
        (np.full(100, 1e9), False),
        (1e9 * np.random.default_rng(0).normal(size=100), False),
        (np.array([np.nan]), False),
    ],
)
def test_what_float32_would_blur_has_an_origin(values, has_origin):
    assert bool(origin_of([values])) == has_origin


def test_models_with_an_origin_are_not_exported_and_others_keep_their_fingerprint(rng):
    inputs = [InputSpec("a", origin=1e9)]
    model = random_model(rng, [("gru", 3)], inputs, [OutputSpec("y", origin=5.0)], "identity")
    for export in (export_onnx, export_torch):
        with pytest.raises(ModelError, match="origin"):
            export(model)
    plain = random_model(np.random.default_rng(1), [("gru", 3)])
    assert "origin" not in plain.spec.to_dict()["inputs"][0] or plain.spec.inputs[0].origin == 0
    with pytest.raises(SpecError, match="an input with an origin is numeric"):
        InputSpec("a", kind="categorical", num_categories=2, origin=1.0)
    with pytest.raises(SpecError, match="finite number"):
        InputSpec("a", origin=float("inf"))


def test_a_sample_is_tried_in_the_users_numbers(trained):
    model = trained[1][1].model
    for own in (model, Model(replace(model.spec, training={}), model.parameters)):
        x, is_own = sample_of(own)
        assert is_own == (own is model)
        assert len(np.unique(x)) > 10  # not rounded to multiples of 64
        assert np.abs(x - model.spec.inputs[0].origin).max() < 1e5
        errors, _, _ = measure_precisions(own)
        assert errors[0].largest.max() < 0.1


@pytest.mark.parametrize("origin", ["abc", 10**400, None, float("nan"), float("inf"), [1.0]])
def test_an_origin_that_is_no_number_is_refused_by_the_client(trained, origin):
    spec = trained[1][1].model.spec.to_dict()
    spec["inputs"][0]["origin"] = origin
    with pytest.raises(NotSupported, match="cannot read"):
        ModelInfo({"name": "m", "fingerprint": "f", "row_bytes": 64, "spec": spec})


@pytest.mark.parametrize("inputs", [("x",), ("x", "product")])
def test_names_of_classes_at_a_hundred_million_are_those_of_the_file(tmp_path, inputs):
    rng = np.random.default_rng(2)
    path = write_csv(
        tmp_path, x=rng.normal(size=200), product=AT // 10 + 1 + rng.integers(3, size=200)
    )
    config = TrainingConfig(path=path, predict=("product",), inputs=inputs, loss="cross_entropy")
    spec = make_dataset(config, read_table(path)).spec
    assert [item.name for item in spec.outputs] == ["100000001", "100000002", "100000003"]
    assert not any(item.origin for item in spec.inputs)
    assert not any(item.origin for item in spec.outputs)


def test_changes_near_the_resolution_of_float64_are_learned(tmp_path):
    """Of an output at 1e9 float64 leaves 1e-7, more than the check of the engine allows else."""
    y = AT + 1e-6 * np.sin(np.arange(60) / 3)
    path = write_csv(tmp_path, y=[f"{value:.17g}" for value in y])
    config = TrainingConfig(path=path, predict=("y",), layers=("gru:2",), updates=3)
    assert train_to_file(config, tmp_path / "m.safetensors").model.spec.outputs[0].origin
