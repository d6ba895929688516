"""The models that a server serves, by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from streamrnn.errors import ModelError, StartError
from streamrnn.model.model import Model
from streamrnn.state.catalogue import name_fault

__all__ = ["load_models"]


def load_models(arguments: Iterable[str]) -> dict[str, Model]:
    """Load the models that a command line names.

    Returns
    -------
    dict of str to Model
        In the order of the arguments.

    Raises
    ------
    StartError
        If a file cannot be read or is no model, or two have the same name.
    """
    models: dict[str, Model] = {}
    for argument in arguments:
        before, separator, after = argument.partition("=")
        # A path may hold "=" itself: then the whole of it is there, or give it a name.
        named = bool(separator) and not Path(argument).exists()
        name, path = (before, Path(after)) if named else (Path(argument).stem, Path(argument))
        fault = name_fault(name)
        if fault is not None:
            raise StartError(f"{argument!r}: {fault}; give one by NAME=PATH")
        if name in models:
            raise StartError(f"two models are named {name!r}; name one by {name}-2={path}")
        try:
            models[name] = Model.load(path)
        except (ModelError, OSError) as error:
            raise StartError(f"cannot load model {name!r}: {error}") from error
    return models
