"""The models that a server serves, by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from streamrnn.errors import ModelError, StartError
from streamrnn.model.model import Model

__all__ = ["load_models"]

_MAX_NAME_BYTES = 128
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # controls, bytes that are no UTF-8, ends of lines


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
        if not 1 <= len(name.encode(errors="replace")) <= _MAX_NAME_BYTES:
            raise StartError(f"{argument!r}: a model's name has 1 to {_MAX_NAME_BYTES} bytes")
        if any(unicodedata.category(char) in _NO_TEXT for char in name):
            raise StartError(
                f"{argument!r}: a model's name is one line of text in UTF-8; give one by NAME=PATH"
            )
        if name in models:
            raise StartError(f"two models are named {name!r}; name one by {name}-2={path}")
        try:
            models[name] = Model.load(path)
        except (ModelError, OSError) as error:
            raise StartError(f"cannot load model {name!r}: {error}") from error
    return models
