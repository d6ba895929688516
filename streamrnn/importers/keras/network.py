"""Import a file of Keras: follow the layers from the input to the output."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError
from streamrnn.importers.build.model import build_model
from streamrnn.importers.json_text import MAX_REST_BYTES, parse_json
from streamrnn.importers.keras.files import KerasFile, read_keras_file
from streamrnn.importers.keras.layers import RECURRENT, make_layers
from streamrnn.importers.network import Dense, ImportedModel, Names, Network, Recurrent, Scale

__all__ = ["import_keras"]

_MAX_LAYERS = 1_000
_MAX_DEPTH = 32  # of a reference within a configuration
_MAX_MODELS = 8  # one within the other
_MODELS = ("Functional", "Model", "Sequential")
Entry = tuple[str, dict[str, Any]]  # class and configuration of a layer


def import_keras(
    path: str | os.PathLike[str], names: Names, config: str | os.PathLike[str] | None = None
) -> ImportedModel:
    """Read a model of Keras 2 or 3.

    Parameters
    ----------
    path : str or path
        ``.keras``, ``.h5`` or ``.weights.h5``.
    names : Names
        Names for inputs and outputs.
    config : str, path or None
        For weights alone: the file that holds the configuration, ``.keras``, ``.h5`` or JSON.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If the file is damaged, or the network holds what a model cannot: all of that is listed.
    """
    file = read_keras_file(path)
    if config is not None:
        other = _read_config(config)
        file.config, file.version = other.config, file.version or other.version
    if file.config is None:
        raise ModelFileError(
            f"{file.path} holds weights alone: give the file that has the configuration with "
            "--config (the .keras or .h5 of the same model, or model.to_json() in a file)"
        )
    version = f" {file.version}" if file.version else ""
    network = Network(file.path, f"Keras{version}")
    try:
        chain = _chain(file.config, network)
        _spread(file, chain)
        _add_layers(network, chain, file)
    except ModelFileError as error:
        raise ModelFileError(f"{file.path}: {error}") from error
    return build_model(network, names)


def _read_config(path: str | os.PathLike[str]) -> KerasFile:
    with open(path, "rb") as opened:
        start = opened.read(MAX_REST_BYTES + 1)
    if start[:64].lstrip()[:1] == b"{":
        config = parse_json(start, os.fspath(path))
        if not isinstance(config, dict):
            raise ModelFileError(f"{os.fspath(path)} is no JSON object")
        return KerasFile(os.fspath(path), config, str(config.get("keras_version", ""))[:40])
    return read_keras_file(path, weights=False)


def _chain(
    config: dict[str, Any], network: Network, place: str = "", outermost: str = ""
) -> list[Entry]:
    """List the layers in the order of the data, those of models within the model too.

    Of these ``_place`` and ``_within`` say where the weights lie: before the layer's place in files
    of Keras 3, and under which layer's name in those of Keras 2.
    """
    kind, inner = config.get("class_name"), config.get("config")
    # The configuration of a very old Sequential is the list itself.
    layers = inner if isinstance(inner, list) else None
    if isinstance(inner, dict):
        layers = inner.get("layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= _MAX_LAYERS:
        raise ModelFileError(f"the configuration ({str(kind)[:60]}) has no list of layers")
    entries = {}
    order: list[str] = []
    for item in layers:
        if not isinstance(item, dict) or not isinstance(item.get("config"), dict):
            raise ModelFileError("an entry of the configuration's layers is no layer")
        name = item["config"].get("name", item.get("name"))
        name = name if isinstance(name, str) else f"layer {len(order)}"
        if name in entries:
            raise ModelFileError(f"two layers are named {name[:60]!r}")
        entries[name] = item
        order.append(name)
    if kind not in _MODELS:
        raise ModelFileError(
            f"the network is a {str(kind)[:60]!r}, a class of its own, whose graph the file does "
            "not hold; known are Sequential and Functional"
        )
    if kind != "Sequential":
        assert isinstance(inner, dict)
        order = _followed(inner, entries, network)
    chain: list[Entry] = []
    counts: Counter[str] = Counter()
    for name in order:
        kind, own = _entry(entries[name], network)
        if kind not in _MODELS:
            chain.append((kind, own | {"_place": place, "_within": outermost}))
            continue
        if place.count("/") >= _MAX_MODELS:
            raise ModelFileError(f"the configuration has models nested deeper than {_MAX_MODELS}")
        inside = f"{place}{_place(kind, counts)}/"
        chain += _chain(entries[name], network, inside, outermost or name)
    return chain


def _entry(item: dict[str, Any], network: Network) -> Entry:
    kind = str(item.get("class_name"))[:60]
    module = item.get("module")
    is_own = kind in _MODELS and item.get("registered_name") == kind
    if (item.get("registered_name") and not is_own) or (
        isinstance(module, str) and not re.match(r"(tf_)?keras(\.|$)|tensorflow", module)
    ):
        network.problems.append(f"layer class {kind!r} is not one of Keras ({str(module)[:60]})")
    config = item["config"]
    if kind == "TimeDistributed" and isinstance(config.get("layer"), dict):
        inner = config["layer"]
        if isinstance(inner.get("config"), dict) and inner.get("class_name") == "Dense":
            # Weights are kept under the name of the wrapper.
            return "Dense", inner["config"] | {"name": config.get("name", "dense"), "_as": kind}
    return kind, config


def _followed(
    config: dict[str, Any], entries: dict[str, dict[str, Any]], network: Network
) -> list[str]:
    """Follow a functional model back from its output; every layer must have one input."""
    outputs = _references(config.get("output_layers"))
    if len(outputs) != 1:
        network.problems.append(
            f"the network has {len(outputs)} outputs ({', '.join(outputs)[:200]}); a model has one"
        )
        return []
    chain: list[str] = []
    name = outputs[0]
    while True:
        if name not in entries or name in chain:
            raise ModelFileError(f"the layers make no chain: {name[:60]!r} is missing or in a ring")
        chain.append(name)
        nodes = entries[name].get("inbound_nodes") or []
        if not isinstance(nodes, list) or len(nodes) > 1:
            network.problems.append(f"layer {name!r} is used more than once")
            break
        before = _references(nodes)
        if not before:
            break
        if len(set(before)) > 1 or len(before) > 1:
            kind = str(entries[name].get("class_name"))[:60]
            network.problems.append(
                f"layer {name!r} ({kind}) joins several results of the network "
                f"({', '.join(before)[:200]}), which no model does"
            )
            break
        name = before[0]
    unused = [key for key in entries if key not in chain]
    if unused and not network.problems:
        network.problems.append(f"layers do not lie on the way to the output: {unused[:20]}")
    return chain[::-1]


def _references(value: Any, depth: int = _MAX_DEPTH) -> list[str]:
    """Collect the layers that a part of a configuration refers to.

    Keras 3 writes ``{"keras_history": [layer, node, tensor]}``, Keras 2 ``[layer, node, tensor]``.
    """
    if depth == 0:
        raise ModelFileError("the configuration is nested too deep")
    if isinstance(value, dict):
        history = value.get("keras_history")
        if isinstance(history, list):
            return _references(history, depth - 1)
        return [name for item in value.values() for name in _references(item, depth - 1)]
    if not isinstance(value, list):
        return []
    if len(value) >= 3 and isinstance(value[0], str) and type(value[1]) is int:
        return [value[0]]
    return [name for item in value for name in _references(item, depth - 1)]


def _spread(file: KerasFile, chain: list[Entry]) -> None:
    """Give the layers of models within the model their own arrays, which Keras 2 keeps together.

    The last part of a weight's name that is a layer's says whose it is.
    """
    leaves: dict[str, set[str]] = {}
    for kind, config in chain:
        if config["_within"]:
            leaves.setdefault(config["_within"], set()).add(str(config.get("name", kind)))
    by_name = file.weights.by_name
    for model, names in leaves.items():
        rest: list[NDArray[Any]] = []
        weight_names = file.weights.weight_names.get(model, [])
        for weight, array in zip(weight_names, by_name.pop(model, []), strict=True):
            owner = next((part for part in weight.split("/")[-2::-1] if part in names), None)
            own = rest if owner is None else by_name.setdefault(f"{model}/{owner}", [])
            own.append(array)
        if rest:
            by_name[model] = rest  # nobody's, which is refused


def _add_layers(network: Network, chain: list[Entry], file: KerasFile) -> None:
    counts: Counter[str] = Counter()
    used: list[int] = []
    is_last = ""
    for kind, config in chain:
        name = str(config.get("name", kind))
        arrays = _arrays_of(file, kind, config, counts)
        used.append(id(arrays))
        if is_last and kind in RECURRENT:
            network.problems.append(f"layer {name!r} runs on the last step of {is_last!r} alone")
        if kind in RECURRENT and not config.get("return_sequences", False):
            is_last = name
        network.layers += make_layers(kind, config, arrays, file.version, network)
    _widen_scales(network)
    stored = file.weights.by_place or file.weights.by_name
    unused = [place for place, arrays in stored.items() if arrays and id(arrays) not in used]
    if unused and not network.problems:
        network.problems.append(
            f"weights of layers that the configuration does not have: {unused[:20]}"
        )
    if is_last:
        network.gives_last_step = True
        network.notes.append(
            f"the file gives the last step alone (return_sequences of {is_last!r}); the model "
            "gives every step, and the last one is the file's"
        )


def _arrays_of(
    file: KerasFile, kind: str, config: dict[str, Any], counts: Counter[str]
) -> list[NDArray[Any]]:
    """Find a layer's arrays.

    Keras 3 counts the layers of a class and ignores their names, Keras 2 goes by names.
    """
    weights = file.weights
    place = _place(str(config.get("_as", kind)), counts, config["_place"])
    if weights.by_place:
        return weights.by_place.get(place, [])
    name, within = str(config.get("name", kind)), config["_within"]
    return weights.by_name.get(f"{within}/{name}" if within else name, [])


def _place(kind: str, counts: Counter[str], before: str = "") -> str:
    """Return where Keras 3 keeps the next layer of a class."""
    snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    snake = before + re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
    place = snake if not counts[snake] else f"{snake}_{counts[snake]}"
    counts[snake] += 1
    return place


def _widen_scales(network: Network) -> None:
    """Give a scale of one number for all as many as the layer after it takes."""
    for k, layer in enumerate(network.layers):
        if not isinstance(layer, Scale) or layer.gain.size != 1:
            continue
        after = next(
            (other for other in network.layers[k + 1 :] if isinstance(other, Dense | Recurrent)),
            None,
        )
        if after is None:
            before = network.layers[k - 1] if k else None
            size = before.weight.shape[0] if isinstance(before, Dense) else 1
        else:
            size = (after.weight if isinstance(after, Dense) else after.weight_ih).shape[1]
        network.layers[k] = replace(
            layer, gain=np.repeat(layer.gain, size), shift=np.repeat(layer.shift, size)
        )
