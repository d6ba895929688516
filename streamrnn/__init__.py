"""StreamRNN: recurrent networks one time step at a time, for many streams at once.

All names are resolved when they are first used: importing this package loads no numba and compiles
nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamrnn.engine.engine import Engine
    from streamrnn.model.model import Model
    from streamrnn.training.api import compare, predict, train

__all__ = ["Engine", "Model", "__version__", "compare", "predict", "train"]

__version__ = "0.1.0"

_HOMES = {
    "Engine": "streamrnn.engine.engine",
    "Model": "streamrnn.model.model",
    "compare": "streamrnn.training.api",
    "predict": "streamrnn.training.api",
    "train": "streamrnn.training.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
