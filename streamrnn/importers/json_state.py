"""PyTorch state dicts in JSON: GuitarML (NeuralSeed, Proteus), CoreAudioML, and plain ones.

Source: ``CoreAudioML/networks.py`` of https://github.com/Alec-Wright/CoreAudioML, class
``SimpleRNN``: ``lin(rec(x))``, and with ``skip`` the first channels of x are added.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from streamrnn.errors import ModelFileError
from streamrnn.importers.build.model import refuse
from streamrnn.importers.json_text import array_of, whole
from streamrnn.importers.network import ImportedModel
from streamrnn.importers.torch import TorchOptions, import_state_dict
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.spec import LayerSpec
from streamrnn.model.tensor_file import StoredTensor, TensorFile

__all__ = ["import_guitarml", "import_json_state_dict", "is_guitarml", "is_state_dict"]

_MAX_TENSORS = 10_000
_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}


def is_guitarml(value: dict[str, Any]) -> bool:
    """Whether a JSON object has the form of one."""
    return isinstance(value.get("state_dict"), dict) and isinstance(value.get("model_data"), dict)


def is_state_dict(value: dict[str, Any]) -> bool:
    """Whether a JSON object is a state dict."""
    return bool(value) and all(isinstance(item, list | np.ndarray) for item in value.values())


def import_json_state_dict(
    path: str, value: dict[str, Any], options: TorchOptions
) -> ImportedModel:
    """Import a plain state dict; see `streamrnn.importers.torch.import_torch`."""
    return import_state_dict(_as_tensors(path, value), options, "PyTorch state dict in JSON")


def import_guitarml(path: str, value: dict[str, Any], options: TorchOptions) -> ImportedModel:
    """Import a state dict whose class the file names.

    Parameters
    ----------
    path : str
        For messages.
    value : dict
        The file's JSON.
    options : TorchOptions
        Names for inputs and outputs; the rest the file says.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If it is another class, contradicts itself, or adds inputs to another number of outputs.
    """
    data = value["model_data"]
    kind, cell = data.get("model", "SimpleRNN"), data.get("unit_type")
    problems = []
    if str(kind) != "SimpleRNN" or str(cell) not in _CELLS:
        problems.append(
            f"its class is {str(kind)[:40]!r} with units {str(cell)[:40]!r}; known is SimpleRNN "
            f"with {', '.join(_CELLS)}"
        )
    skip = whole(data.get("skip", 0), f"{path}: skip", 0, 65_536)
    outputs = str(data.get("output_size", 1))
    if skip and str(skip) != outputs:
        problems.append(
            f"the first {skip} inputs are added (skip) to {outputs[:20]} outputs; there must be as "
            "many"
        )
    if problems:
        raise refuse(path, problems)
    options = replace(options, skip=1.0 if skip else None)
    found = import_state_dict(_as_tensors(path, value["state_dict"]), options, "GuitarML")
    spec = found.model.spec
    has_linear = spec.head is not None or any(isinstance(each, DenseSpec) for each in spec.layers)
    recurrent = [layer for layer in spec.layers if isinstance(layer, LayerSpec)]
    said = {
        "hidden_size": {layer.hidden_size for layer in recurrent},
        "num_layers": {len(recurrent)},
        "input_size": {spec.num_inputs},
        "output_size": {spec.output_size},
    }
    for key, values in said.items():
        if key in data and (type(data[key]) is not int or values != {data[key]}):
            raise ModelFileError(
                f"{path} says {key} {str(data[key])[:40]}; its tensors say {sorted(values)}"
            )
    if any(layer.cell != _CELLS[str(cell)] for layer in recurrent) or not has_linear:
        raise ModelFileError(f"{path} says {cell} with a linear layer; its tensors are another")
    # The class is known, and so is the graph.
    return replace(found, holds_graph=True)


def _as_tensors(path: str, value: dict[str, Any]) -> TensorFile:
    if len(value) > _MAX_TENSORS:
        raise ModelFileError(f"{path} has {len(value)} tensors; at most {_MAX_TENSORS} are read")
    tensors = {}
    for name, item in value.items():
        array = array_of(item, f"{path}: tensor {name[:100]!r}")
        data = memoryview(array.tobytes())
        tensors[name] = StoredTensor("F32", array.shape, 0, data)
    return TensorFile(path, 0, {}, tensors, is_compact=False)
