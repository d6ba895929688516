"""How much memory the cgroups of this process allow it: those of a service or of a container."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["cgroup_limits"]

# Where the kernel's version of cgroups keeps limits. One without a limit says "max", or is huge.
_FILES = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}
_ESCAPED = re.compile(r"\\([0-7]{3})")
_OPTIONAL_FIELDS_AT = 6  # of a line of mountinfo; they end with "-"


class _Mount(NamedTuple):
    """A hierarchy of cgroups in the file system."""

    kind: str  # a key of `_FILES`
    root: str  # which cgroup lies at the mount point
    point: str


def cgroup_limits(root: Path = Path("/")) -> list[int]:
    """Return the limits of the process's own cgroup and of all around it, in bytes.

    Each holds, so the least one counts. ``root`` is where `/proc` and the mounts are.
    """
    limits: list[int] = []
    with contextlib.suppress(OSError, ValueError):  # another system, or /proc is not there
        mounts = list(_mounts(root))
        for kind, cgroup in _own_cgroups(root):
            for mount in mounts:
                if mount.kind == kind:
                    limits += _limits_from(mount, cgroup, root)
    return limits


def _own_cgroups(root: Path) -> Iterator[tuple[str, str]]:
    """Yield kind and path of the cgroups of this process that limit memory."""
    for line in (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield "cgroup2", path
        elif "memory" in controllers.split(","):
            yield "cgroup", path


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in (root / "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        kind, _, options = fields[fields.index("-", _OPTIONAL_FIELDS_AT) + 1 :][:3]
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            yield _Mount(kind, _unescaped(fields[3]), _unescaped(fields[4]))


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def _limits_from(mount: _Mount, cgroup: str, root: Path) -> Iterator[int]:
    """Yield the limits of a cgroup and of those around it, up to the mount's root."""
    try:
        below = PurePosixPath(cgroup).relative_to(mount.root).parts
    except ValueError:  # seen from another namespace: what is mounted is all that can be known
        below = ()
    if ".." in below:
        below = ()
    point = root / mount.point.lstrip("/")
    for depth in range(len(below), -1, -1):
        for name in _FILES[mount.kind]:
            # A part of the path may not be there for us, and "max" is no number.
            with contextlib.suppress(OSError, ValueError):
                limit = int(point.joinpath(*below[:depth], name).read_text())
                if limit > 0:
                    yield limit
