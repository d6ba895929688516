"""TOML files of the operator's: read whole, or refused with the reason."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from streamrnn.errors import StartError

__all__ = ["read_toml"]


def read_toml(path: Path, what: str, max_mib: int) -> dict[str, Any]:
    """Return what a file says; raise a `StartError` if it is too long or cannot be read.

    ``what`` names its contents in errors: "options".
    """
    try:
        with path.open("rb") as file:
            data = file.read((max_mib << 20) + 1)
        if len(data) > max_mib << 20:
            raise StartError(f"{path} is no file of {what}: it has more than {max_mib} MiB")
        return tomllib.loads(data.decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(f"cannot read the {what} in {path}: {reason}") from error
