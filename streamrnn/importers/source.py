"""Recognise a file by its content, and import it."""

from __future__ import annotations

import os

from streamrnn.importers.network import ImportedModel
from streamrnn.importers.torch import TorchOptions, import_torch

__all__ = ["import_file"]


def import_file(path: str | os.PathLike[str], options: TorchOptions | None = None) -> ImportedModel:
    """Import a file of any source.

    Parameters
    ----------
    path : str or path
        The file; its name says nothing.
    options : TorchOptions or None
        What the file cannot tell; None for the defaults.

    Returns
    -------
    ImportedModel

    Raises
    ------
    ModelError
        If the file is damaged, of no known kind, or holds what a model cannot.
    """
    return import_torch(path, options)
