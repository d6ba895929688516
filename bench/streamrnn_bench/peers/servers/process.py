"""What the programs have in common: how they say that they are ready."""

from __future__ import annotations

import os

__all__ = ["tell_ready"]


def tell_ready(path: str, words: str) -> None:
    """Write a ready file that is whole from the moment on that it is there."""
    with open(path + ".tmp", "w") as file:
        file.write(words)
    os.replace(path + ".tmp", path)
