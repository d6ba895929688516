"""Room on disk that is given up when a checkpoint has none: then the journal can be emptied."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["DiskReserve"]

_FILE = "reserve"
_MAX_BYTES = 32 * 2**20  # a checkpoint's commit takes 16 MiB, and some more of LMDB's pages
_MIN_BYTES = 2**16
_PART = 8  # of what is free
_BLOCK_BYTES = 512  # POSIX leaves it open; Linux and macOS count so


class DiskReserve:
    """A file of zeros in the journal's directory, made when there is room."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE
        self._is_held = False
        with contextlib.suppress(OSError):  # of a server that has crashed, perhaps as it made it
            self._is_held = self._path.stat().st_blocks * _BLOCK_BYTES >= _MIN_BYTES

    def hold(self) -> None:
        """Take a part of what is free; without it things go on too."""
        if self._is_held:
            return
        with contextlib.suppress(OSError):
            room = os.statvfs(self._path.parent)
            num_bytes = min(room.f_bavail * room.f_frsize // _PART, _MAX_BYTES)
            if num_bytes < _MIN_BYTES:
                return
            try:
                with open(self._path, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
                self._is_held = True
            except OSError:
                self._path.unlink(missing_ok=True)

    def release(self) -> bool:
        """Give the room up; tell whether there was any."""
        was_held, self._is_held = self._is_held, False
        with contextlib.suppress(OSError):
            self._path.unlink()
            return was_held
        return False
