"""Files that are not part of the project: models and cases of others, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["SHARED", "shared_files"]

# Beside the project, or where the environment says.
SHARED = Path(os.environ.get("STREAMRNN_SHARED", Path(__file__).parents[3] / "shared"))


def shared_files(folder: str, pattern: str = "*") -> list[Path]:
    """List files below a folder; nothing where there is none."""
    return sorted(path for path in (SHARED / folder).glob(pattern) if path.is_file())
