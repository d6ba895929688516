"""Weight files that are loaded while a server runs: only from the one folder that it was given."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from streamrnn.errors import ModelError
from streamrnn.model.model import Model
from streamrnn.state.catalogue import MAX_NAME_BYTES, name_fault
from streamrnn_client.protocol import ErrorCode, ProtocolError

__all__ = ["new_versions", "read_model"]

_MAX_FILE_BYTES = 2**34
_SUFFIX = ".safetensors"


def read_model(directory: Path, file: str) -> tuple[bytes, Model]:
    """Read a weight file of a folder, all of it once: what is checked is what is kept.

    Raises
    ------
    ProtocolError
        If it is not in the folder itself, or no model.
    """
    if not file or "\0" in file or Path(file).name != file or file in (".", ".."):
        raise _refused(file, f"it must be the name of a file in {directory}, without a folder")
    try:
        descriptor = os.open(directory / file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_FILE_BYTES:
                raise _refused(file, "it is no regular file, or too large")
            data = opened.read()
        with tempfile.NamedTemporaryFile(prefix="streamrnn-", suffix=".safetensors") as copy:
            copy.write(data)
            copy.flush()
            return data, Model.load(copy.name)
    except ModelError as error:
        raise _refused(file, str(error)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _refused(file, reason or str(error)) from error


def new_versions(directory: Path, seen: dict[str, tuple[int, int]]) -> list[tuple[str, str]]:
    """Return files, and their models' names, that have appeared or changed since they were seen.

    One that is being written is seen again when it has grown.
    """
    found = []
    for entry in sorted(os.scandir(directory), key=lambda each: each.name):
        name = entry.name.removesuffix(_SUFFIX)
        if name == entry.name or "@" not in name or name_fault(name) is not None:
            continue
        if not entry.is_file(follow_symlinks=False):
            continue
        status = entry.stat(follow_symlinks=False)
        state = status.st_mtime_ns, status.st_size
        if seen.get(entry.name) != state:
            seen[entry.name] = state
            found.append((entry.name, name))
    return found


def _refused(file: str, why: str) -> ProtocolError:
    text = f"cannot load a model from {file[:MAX_NAME_BYTES]!r}: {why}"
    return ProtocolError(ErrorCode.BAD_PARAMS, text)
