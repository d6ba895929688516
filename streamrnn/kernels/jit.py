"""The one decorator for compiled functions, and their cache on disk.

Numba's own cache notices an edit in the file that holds a function, but not in the files whose
functions it inlines: it would run old machine code. It also writes beside the sources, which may
be read-only. So the directory is ours, and its name is a hash of every source that compiled
functions are made from, of the versions of the compilers, and of the vector width; numba adds the
processor's name and features to each entry itself.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import event, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.ccallback import CFunc

from streamrnn.kernels import vector_width

__all__ = ["Linked", "cache_directory", "jit"]

_MAX_KEPT_GENERATIONS = 8
_IMPORT = re.compile(rb"^(?:from|import) (streamrnn\w*)\.(\w+)", re.MULTILINE)


def _cache_root() -> Path:
    chosen = os.environ.get("STREAMRNN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "streamrnn"


_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def _is_trusted(directory: Path) -> bool:
    """Tell whether nobody but us and the system's owner can have put machine code somewhere."""
    found = directory.stat()
    # A link counts as whoever made it: he decides where it leads.
    owners = {found.st_uid, directory.lstat().st_uid}
    return owners <= {os.geteuid(), 0} and not found.st_mode & _OTHERS_WRITE


def _private_directory() -> Path:
    """Make a directory for this process alone, never in a place that others share."""
    return Path(tempfile.mkdtemp(prefix="streamrnn-cache-"))


def _warn_of_others(directory: Path) -> None:
    warnings.warn(
        f"{directory} is not used for machine code, for others can write it: set "
        "STREAMRNN_CACHE_DIR to a directory of your own",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.cache
def _writable_root() -> Path:
    """Return the cache's root, or a private directory of this process if it cannot be used.

    What lies in the cache is run, so it is used only if it is ours, and nobody else can write it.
    """
    try:
        root = _cache_root()
        root.mkdir(0o700, parents=True, exist_ok=True)
        found = root.stat()
        # As a umask of 002 made it. One for everybody, such as /tmp, stays so.
        if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
            root.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
        if not _is_trusted(root):
            _warn_of_others(root)
            return _private_directory()
        with tempfile.TemporaryFile(dir=root):
            return root
    except (OSError, RuntimeError):
        return _private_directory()


@functools.cache
def cache_directory(folder: Path) -> Path:
    """Return the directory for the machine code of one folder's compiled functions.

    The folder lies right below a package, such as ``streamrnn/kernels``. The sources in it, and
    those in the folders and modules that they import, make up the directory's name.
    """
    digest = hashlib.sha256()
    digest.update(repr((sys.version, numba.__version__, llvmlite.__version__)).encode())
    digest.update(repr((vector_width.WIDTH, sys.platform)).encode())
    for path in _sources(folder):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    root = _writable_root()
    directory = root / f"{folder.name}-{digest.hexdigest()[:20]}"
    if not directory.exists():
        _forget_old_generations(root, folder.name)
    directory.mkdir(0o700, parents=True, exist_ok=True)
    if not _is_trusted(directory):  # somebody was there first
        _warn_of_others(directory)
        return _private_directory()
    return directory


def _sources(folder: Path) -> list[Path]:
    """Return every source that one folder's compiled functions may be made from, sorted."""
    sources: dict[Path, list[Path]] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        if place in sources:
            continue
        sources[place] = list(place.rglob("*.py")) if place.is_dir() else [place]
        text = b"".join(path.read_bytes() for path in sources[place])
        for package, name in set(_IMPORT.findall(text)):
            spec = find_spec(package.decode())
            for home in (spec and spec.submodule_search_locations) or ():
                imported = Path(home).resolve() / name.decode()
                waiting.append(imported if imported.is_dir() else imported.with_suffix(".py"))
    return sorted(path for paths in sources.values() for path in paths)


def _forget_old_generations(root: Path, name: str) -> None:
    """Delete all but the newest machine code of earlier sources, which nothing can use again."""
    try:
        old = sorted(root.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:  # another process is doing the same
        return
    for path in old[_MAX_KEPT_GENERATIONS - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


class _Locator(_CacheLocator):
    """Tells numba where a function's machine code lies."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self._line = py_func.__code__.co_firstlineno
        source = Path(py_file).resolve()
        folder = source.parents[max(py_func.__module__.count(".") - 2, 0)]
        module = source.relative_to(folder).with_suffix("")
        self._path = cache_directory(folder) / "-".join(module.parts)

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        return "by directory"

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator:
        return cls(py_func, py_file)


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _CacheImpl


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function at module level in nopython mode, without the GIL, cached on disk.

    Divisions follow IEEE 754 instead of raising, as numpy's do. No fast-math, ever: the bits of an
    output are a promise. ``options`` go to `numba.njit`.
    """
    if function is None:
        return functools.partial(jit, **options)
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher._cache = _Cache(function)
    return dispatcher


class Linked(CFunc):
    """A function that is compiled once, for others to call by its address.

    Numba compiles all that a function calls anew into that function: a chain of four would compile
    the tiles four times, eight seconds each. The price is a call that cannot be inlined.

    Parameters
    ----------
    function : callable
        Takes and returns int64 only. Unlike that of `jit` it may be a closure, over plain numbers.
    num_arguments : int
        How many it takes.
    """

    def __init__(self, function: Callable[..., Any], num_arguments: int) -> None:
        arguments = (types.int64,) * num_arguments
        options = {"nopython": True, "error_model": "numpy"}
        super().__init__(function, (arguments, types.int64), locals={}, options=options)
        self._cache = _Cache(function)

    @property
    def py_func(self) -> Callable[..., Any]:
        """What numba's listeners ask a dispatcher for."""
        function: Callable[..., Any] = self.__wrapped__
        return function

    def _compile_uncached(self) -> Any:
        with event.trigger_event("numba:compile", data={"dispatcher": self}):
            return super()._compile_uncached()  # type: ignore[misc]
