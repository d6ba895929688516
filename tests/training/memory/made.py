"""Networks with weights that anybody can compute, and a table for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from streamrnn.model.model import Model
from streamrnn.model.parameters import parameter_shapes
from streamrnn.training import TrainingConfig
from streamrnn.training.data.dataset import Dataset, make_dataset
from streamrnn.training.data.reading.read import read_table
from tests.support.tables import write_csv

__all__ = ["CASES", "delay", "made"]

# Layers and target: a number, or one of three classes.
CASES = {
    "lstm": (("lstm:4", "lstm:3"), "y"),
    "gru": (("gru:4", "gru:3"), "kind"),
    "mixed": (("rnn_tanh:3", "lstm:4"), "kind"),
}


def made(name: str, directory: str | Path) -> tuple[Dataset, Model]:
    """Return a table as a dataset, and a network of sines as weights for it."""
    t = np.arange(240.0)
    columns = {
        "x": np.sin(t / 3) + 0.3 * np.cos(t * t),
        "y": np.cos(t / 5),
        "kind": [("a", "b", "c")[int(k * k) % 3] for k in t],
    }
    path = Path(directory) / f"{name}.csv"
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(f"{x:.6f},{y:.6f},{kind}" for x, y, kind in rows)]
    path.write_text("\n".join(lines))
    layers, target = CASES[name]
    config = TrainingConfig(
        path=str(path),
        predict=(target,),
        inputs=("x", "y"),
        layers=layers,
        difference=(),
        truncation_steps=12,
    )
    dataset = make_dataset(config, read_table(str(path)))
    parameters, start = {}, 0
    for key, shape in parameter_shapes(dataset.spec).items():
        size = int(np.prod(shape))
        parameters[key] = np.sin(1.7 * np.arange(start, start + size)).reshape(shape)
        start += size
    parameters = {key: value.astype(np.float32) for key, value in parameters.items()}
    return dataset, Model(dataset.spec, parameters)


def delay(directory: Path, lag: int) -> tuple[Dataset, Model]:
    """Return data whose target is the input `lag` rows before, and a network that passes it on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=1500)
    y = np.concatenate([np.zeros(lag), x[:-lag]])
    path = write_csv(directory, x=x, y=y)
    config = TrainingConfig(
        path=path, predict=("y",), inputs=("x",), horizon=(0,), loss="mse", difference=(),
        layers=(f"rnn_relu:{lag + 1}",),
    )  # fmt: skip
    dataset = make_dataset(config, read_table(path))
    size = lag + 1
    shift = np.eye(size, k=-1, dtype=np.float32)
    first = np.zeros((size, 1), np.float32)
    first[0] = 1.0
    bias = np.zeros(size, np.float32)
    bias[0] = 8.0  # so that a relu never cuts; the steps of a new stream are 0 for it
    last = np.zeros((1, size), np.float32)
    last[0, -1] = 1.0
    parameters: dict[str, Any] = {
        "weight_ih_l0": first, "weight_hh_l0": shift, "bias_ih_l0": bias,
        "bias_hh_l0": np.zeros(size, np.float32), "head.weight": last,
        "head.bias": np.full(1, -8.0, np.float32),
    }  # fmt: skip
    return dataset, Model(dataset.spec, parameters)
