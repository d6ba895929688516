"""Which architecture a ``.nam`` file has."""

from __future__ import annotations

from typing import Any

from streamrnn.errors import ModelFileError
from streamrnn.importers.build.model import build_model
from streamrnn.importers.nam.convnet import read_convnet
from streamrnn.importers.nam.lstm import read_lstm
from streamrnn.importers.nam.wavenet import read_wavenet
from streamrnn.importers.nam.weights import Weights, plain_config
from streamrnn.importers.network import FrameLayer, ImportedModel, Names, Network
from streamrnn.model.layers.memory import TimeConvSpec

__all__ = ["import_nam", "is_nam"]

_READERS = {"LSTM": read_lstm, "WaveNet": read_wavenet, "ConvNet": read_convnet}


def is_nam(value: dict[str, Any]) -> bool:
    """Whether a JSON object has the form of one."""
    return {"architecture", "config", "weights"} <= set(value)


def import_nam(
    path: str, value: dict[str, Any], names: Names, *, zero_state: bool = False
) -> ImportedModel:
    """Make a model of a parsed file.

    Parameters
    ----------
    path : str
        For messages.
    value : dict
        The file's JSON.
    names : Names
        Names for inputs and outputs.
    zero_state : bool
        Whether the first state that every LSTM has is left out.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelFileError
        If it is another architecture, or its numbers are not as many as it asks for.
    """
    notes: list[str] = []
    if str(value["architecture"]) == "SlimmableContainer":
        value = _largest(path, value, notes)
    architecture, config = value["architecture"], value["config"]
    if not isinstance(architecture, str) or architecture not in _READERS:
        raise ModelFileError(
            f"{path} is a NAM model of architecture {str(architecture)[:60]!r}; read are "
            f"{', '.join(_READERS)}"
        )
    if not isinstance(config, dict):
        raise ModelFileError(f"{path}: its config is no object")
    config = plain_config(config, path)
    version = str(value.get("version", ""))[:20]
    network = Network(path, f"Neural Amp Modeler {version}".strip(), notes=notes)
    weights = Weights(path, value["weights"])
    if architecture == "LSTM":
        read_lstm(network, config, weights, zero_state=zero_state)
    else:
        _READERS[architecture](network, config, weights)
    if not network.problems:
        weights.finish()
        network.notes.append(_prewarm(network))
    return build_model(network, names)


def _largest(path: str, value: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the last model of a container: they are of growing size."""
    config = value["config"]
    models = config.get("submodels") if isinstance(config, dict) else None
    if not isinstance(models, list) or not models:
        raise ModelFileError(f"{path} is a container without submodels")
    model = models[-1].get("model") if isinstance(models[-1], dict) else None
    if not isinstance(model, dict) or not is_nam(model):
        raise ModelFileError(f"{path}: its last submodel is no NAM model")
    notes.append(f"took the largest of {len(models)} submodels, the last")
    return model


def _prewarm(network: Network) -> str:
    """Say what players do first, and how a stream comes to the same state."""
    kept = [
        layer.spec.num_kept
        for layer in network.layers
        if isinstance(layer, FrameLayer) and isinstance(layer.spec, TimeConvSpec)
    ]
    how = f": {sum(kept) + 1} steps of zeros before the first sound do it here" if kept else ""
    return f"players of NAM run silence through a network first{how}"
