"""`streamrnn inspect`, as text and as JSON."""

from __future__ import annotations

import json
import math

import pytest

from streamrnn.commands.inspect import state_bytes
from streamrnn.engine.precision import measure_precisions
from streamrnn.errors import InputError
from streamrnn.model.spec import InputSpec, ModelSpec, OutputSpec
from streamrnn_server.cli import main
from tests.support.models import EVERY_KIND_OF_INPUT, random_model


@pytest.fixture
def saved(rng, tmp_path):
    model = random_model(
        rng,
        [("lstm", 5), ("gru", 4)],
        [
            InputSpec("co2", unit="ppm", difference=True, center=0.5, scale=2.0),
            *EVERY_KIND_OF_INPUT[2:-1],
        ],
        [OutputSpec("next", unit="ppm", scale=2.0, center=0.5, difference_of="co2")],
        warmup_steps=60,
        training={"errors": {"rmse": 0.39, "persistence": 0.51}, "seed": 3},
    )
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


def test_state_counts_states_and_memories(saved):
    assert state_bytes(saved[0].spec) == 4 * (5 + 5 + 4 + 5)


def test_people_see_names_units_sizes_and_errors(saved, capsys):
    model, path = saved
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        f"fingerprint  {model.fingerprint}",
        f"parameters   {model.num_parameters:,}  ({4 * model.num_parameters:,} bytes)",
        "state        76 bytes a stream",
        "warm-up      60 steps",
        "inputs       9",
        "  co2 [ppm]  numeric  difference  center 0.5, scale 2",
        "  held  numeric  center -0.5, scale 1.5  missing: hold (fill 0.25)",
        "  late_change  numeric  difference (from the first known value)  missing: hold (fill 2)",
        "  colour  categorical  3 categories: red, green, blue  one-hot",
        "  place  categorical  7 categories  embedding 4",
        "  lstm  16 -> 5",
        "  gru  5 -> 4",
        "  linear  4 -> 1  identity",
        "  next [ppm]  center 0.5, scale 2  added to the level of co2",
        "  errors",
        "    rmse: 0.39",
        "  seed: 3",
    ):
        assert line in lines


def test_programs_get_one_json_object(saved, capsys):
    model, path = saved
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert ModelSpec.from_dict(facts.pop("spec")) == model.spec
    assert facts == {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "fingerprint": model.fingerprint,
        "num_parameters": model.num_parameters,
        "parameter_bytes": 4 * model.num_parameters,
        "state_bytes": 76,
    }


def test_long_lists_are_shortened(rng, tmp_path, capsys):
    random_model(rng, [("gru", 100)], 1, head=None).save(tmp_path / "m")
    assert main(["inspect", str(tmp_path / "m")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  ... and 76 more (--json shows all)" in lines
    assert "  y23" in lines
    assert "  y24" not in lines


def test_a_damaged_file_is_reported_in_one_line(saved, capsys):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["inspect", str(path)]) == 1
    words = capsys.readouterr().err
    assert words.startswith(f"streamrnn: error: {path} is truncated")
    assert words.count("\n") == 1


def test_the_cost_of_each_precision_is_shown(rng, tmp_path, capsys):
    model = random_model(rng, [("lstm", 12)], 2, 2, training={"sample": [[0.5, None], [1, 2]]})
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="nan"):  # this model takes no missing values
        measure_precisions(model)
    inputs = [InputSpec("a"), InputSpec("b", missing="hold")]
    model = random_model(rng, [("lstm", 12)], inputs, 2, training={"sample": [[0.5, None], [1, 2]]})
    model.save(path)
    assert main(["inspect", str(path), "--precision", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["precision"]
    assert (facts["num_steps"], facts["is_own_sample"]) == (2, True)
    worst = {
        name: max(output["largest"] for output in outputs.values())
        for name, outputs in facts["errors"].items()
    }
    assert worst["float32"] < 1e-6 < worst["bfloat16"] < worst["int8"] < 0.1
    assert facts["step_us"].keys() == worst.keys()
    assert all(0 < each < math.inf for each in facts["step_us"].values())
    assert main(["inspect", str(path), "--precision"]) == 0
    assert "over 2 steps of the model's own sample" in capsys.readouterr().out


@pytest.mark.parametrize(("int8_us", "is_told"), [(3.5, False), (3.9, True), (6.44, True)])
def test_bfloat16_is_recommended_where_int8_is_no_faster(
    rng, tmp_path, capsys, monkeypatch, int8_us, is_told
):
    path = tmp_path / "model.safetensors"
    random_model(rng, [("gru", 5)], 1, 1).save(path)
    times_us = {"float32": 7.13, "bfloat16": 4.0, "int8": int8_us}
    monkeypatch.setattr("streamrnn.engine.precision.time_precisions", lambda model: times_us)
    assert main(["inspect", str(path), "--precision"]) == 0
    said = capsys.readouterr().out
    assert f"{7.13:>12}{4:>12}{int8_us:>12.3g}  us a step and its call\n" in said
    assert ("bfloat16 is the better choice" in said) == is_told


def test_without_a_sample_inputs_are_made_up(rng):
    model = random_model(rng, [("gru", 5)], EVERY_KIND_OF_INPUT, 1)
    errors, num_steps, is_own = measure_precisions(model)
    assert not is_own
    assert num_steps == 256
    assert [error.precision for error in errors] == ["float32", "bfloat16", "int8"]
