"""Neural Amp Modeler (``.nam``): an architecture, its configuration, and one list of numbers."""

from __future__ import annotations

from streamrnn.importers.nam.file import import_nam, is_nam

__all__ = ["import_nam", "is_nam"]
