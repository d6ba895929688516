"""Turn what an importer has read into a model, or say all that a model cannot hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.importers.build.assemble import assemble
from streamrnn.importers.build.folding import fold, join_activations
from streamrnn.importers.network import ImportedModel, Names, Network
from streamrnn.model.model import Model
from streamrnn.model.spec import MAX_LAYERS

__all__ = ["build_model", "refuse"]


@np.errstate(all="ignore")  # the model refuses what overflows, by name
def build_model(network: Network, names: Names) -> ImportedModel:
    """Make a model of a network.

    Raises `ModelFileError` with everything that a model cannot hold, `ModelError` if the names do
    not fit.
    """
    path = network.path
    if not network.layers and not network.problems:
        network.problems.append("it holds no layer")
    if network.problems:
        raise refuse(path, network.problems)
    layers = join_activations(network.layers)
    if not any(layer.reads for layer in layers):
        layers = fold(layers, network.notes)
    if len(layers) > MAX_LAYERS:
        raise refuse(path, [f"it needs {len(layers)} layers; a model has at most {MAX_LAYERS}"])
    try:
        spec, parameters, became = assemble(layers, network, names)
        spec = replace(
            spec,
            training={"imported_from": network.source, "tensors": became, "notes": network.notes},
        )
        model = Model(spec, parameters)
    except ModelFileError:
        raise
    except ModelError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return ImportedModel(model, network.notes, became, network.source, network.holds_graph)


def refuse(path: str, problems: Iterable[str]) -> ModelFileError:
    """Word one refusal that lists everything."""
    listed = list(dict.fromkeys(problems))
    if len(listed) == 1:
        return ModelFileError(f"{path}: {listed[0]}")
    return ModelFileError(
        f"{path} cannot be imported:" + "".join(f"\n  - {problem}" for problem in listed)
    )
