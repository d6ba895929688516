"""Files of Keras, made without it."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(5)
GATES = {"SimpleRNN": "h", "GRU": "zrh", "LSTM": "ifco"}
OURS = {"SimpleRNN": "h", "GRU": "rzh", "LSTM": "ifco"}
SNAKE = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "simple_rnn", "Dense": "dense"}
SNAKE |= {"Embedding": "embedding", "BatchNormalization": "batch_normalization"}
SNAKE |= {"LayerNormalization": "layer_normalization", "Conv1D": "conv1d", "PReLU": "p_re_lu"}
SNAKE |= {"SeparableConv1D": "separable_conv1d", "DepthwiseConv1D": "depthwise_conv1d"}
SNAKE |= {
    "Sequential": "sequential",
    "TimeDistributed": "time_distributed",
    "Normalization": "normalization",
}


def draw(*shape):
    return (RNG.standard_normal(shape) * 0.6).astype(np.float32)


def layer(kind, arrays=(), **config):
    return kind, config, list(arrays)


def recurrent(kind, inputs=3, units=4, *, reset_after=True, bias=True, **config):
    rows = len(GATES[kind]) * units
    arrays = [draw(inputs, rows), draw(units, rows)]
    if bias:
        arrays.append(draw(2, rows) if kind == "GRU" and reset_after else draw(rows))
    config = {"units": units, "use_bias": bias, "return_sequences": True} | config
    if kind == "GRU":
        config["reset_after"] = reset_after
    return layer(kind, arrays, **config)


def dense(inputs=4, units=2, **config):
    return layer("Dense", [draw(inputs, units), draw(units)], units=units, **config)


def conv(inputs=3, filters=4, kernel=3, groups=1, **config):
    arrays = [draw(kernel, inputs // groups, filters), draw(filters)]
    return layer("Conv1D", arrays, filters=filters, kernel_size=[kernel], groups=groups, **config)


def entries(layers):
    """Name the layers as nobody would count them, and list their configurations."""
    return [
        {
            "module": "keras.layers",
            "class_name": kind,
            "config": {"name": f"{SNAKE.get(kind, 'x')}_{40 + k}"} | config,
            "registered_name": None,
        }
        for k, (kind, config, _) in enumerate(layers)
    ]


def nested(layers):
    """Put layers into a Sequential within the model."""
    return "Sequential", {"layers": entries(layers)}, layers


def sequential(layers):
    return {"module": "keras", "class_name": "Sequential", "config": {"layers": entries(layers)}}


def functional(layers, links, outputs=1):
    """Join layers: ``links[k]`` lists what layer k reads."""
    made = entries(layers)
    names = [entry["config"]["name"] for entry in made]

    def tensor(k):
        return {"class_name": "__keras_tensor__", "config": {"keras_history": [names[k], 0, 0]}}

    for k, entry in enumerate(made):
        entry["name"] = names[k]
        entry["inbound_nodes"] = (
            [{"args": [tensor(j) for j in links[k]], "kwargs": {}}] if links[k] else []
        )
    config = {"layers": made, "output_layers": [[name, 0, 0] for name in names[-outputs:]]}
    return {"module": "keras", "class_name": "Functional", "config": config}


def by_place(layers):
    """Name weights as Keras 3 does: by class and number."""
    counts: dict[str, int] = {}
    places = {}
    for kind, _, arrays in layers:
        place = SNAKE.get(kind, kind.lower())
        number = counts[place] = counts.get(place, -1) + 1
        places[place + (f"_{number}" if number else "")] = arrays
    return places


def fill(root, layers, before=""):
    """Write weights as Keras 3 does."""
    for (kind, _, _), (place, arrays) in zip(layers, by_place(layers).items(), strict=True):
        place = f"{before}layers/{place}"
        if kind == "Sequential":
            fill(root, arrays, f"{place}/")
            continue
        inner = "cell/vars" if kind in GATES else "vars"
        if kind == "TimeDistributed" and is_nested(arrays):
            fill(root, arrays, f"{place}/layer/")
            continue
        inner = "layer/vars" if kind == "TimeDistributed" else inner
        root.create_group(f"{place}/vars")
        for k, array in enumerate(arrays):
            root[f"{place}/{inner}/{k}"] = array


def archive(path, layers, config=None, version="3.15.1"):
    weights = io.BytesIO()
    with h5py.File(weights, "w") as root:
        fill(root, layers)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("metadata.json", json.dumps({"keras_version": version}))
        made.writestr("config.json", json.dumps(config or sequential(layers)))
        made.writestr("model.weights.h5", weights.getvalue())
    return path


def _without_modules(described):
    for entry in described["config"].get("layers", []):
        entry.pop("module")
        entry.pop("registered_name")
        _without_modules(entry)


def weights_of(name, arrays):
    """Name the arrays of a layer, or of the layers of a model within."""
    inner = [entry["config"]["name"] for entry in entries(arrays)] if is_nested(arrays) else []
    for inner_name, (_, _, own) in zip(inner, arrays, strict=False):
        yield from weights_of(f"{name}/{inner_name}", own)
    if not inner:
        yield from ((f"{name}/w{k}:0", array) for k, array in enumerate(arrays))


def is_nested(arrays):
    return bool(arrays) and isinstance(arrays[0], tuple)


def legacy(path, layers, version="2.15.0", config=True):
    """Write the HDF5 format of Keras 2."""
    with h5py.File(path, "w") as root:
        described = sequential(layers)
        _without_modules(described)
        top = root
        if config:
            root.attrs["model_config"] = json.dumps(described)
            top = root.create_group("model_weights")
        top.attrs["keras_version"] = version
        names = [entry["config"]["name"] for entry in described["config"]["layers"]]
        top.attrs["layer_names"] = [name.encode() for name in names]
        for name, (_, _, arrays) in zip(names, layers, strict=True):
            group = top.create_group(name)
            own = list(weights_of(name, arrays))
            group.attrs["weight_names"] = [weight.encode() for weight, _ in own]
            for weight, array in own:
                group[weight] = array
    return path
