"""The one decorator for compiled functions, and their cache on disk.

Numba's own cache notices an edit in the file that holds a function, but not in the files whose
functions it inlines: it would run old machine code. It also writes beside the sources, which may
be read-only. So the directory is ours, and its name is a hash of every source that compiled
functions are made from, of the versions of the compilers, and of the vector width; numba adds the
processor's name and features to each entry itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import stat
import sys
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
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NO_CACHE = Path(os.devnull) / "streamrnn"  # where nothing can be, nor be made
_refused: list[Path] = []  # directories that others can write
_IMPORT = re.compile(rb"^(?:from|import) (streamrnn\w*)\.(\w+)", re.MULTILINE)


@functools.cache
def _cache_root() -> Path:
    chosen = os.environ.get("STREAMRNN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "streamrnn"
    except RuntimeError:  # a user without a home
        return _NO_CACHE


def _is_trusted(directory: Path) -> bool:
    """Tell whether nobody but us and the system's owner can have put machine code somewhere."""
    found = directory.stat()
    # A link counts as whoever made it: he decides where it leads.
    owners = {found.st_uid, directory.lstat().st_uid}
    return owners <= {os.geteuid(), 0} and not found.st_mode & _OTHERS_WRITE


def _close_to_others(directory: Path) -> None:
    """Let nobody else write a directory of ours, as a umask of 002 made it.

    One for everybody, such as /tmp, stays so.
    """
    found = directory.stat()
    is_open = found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX
    if is_open and found.st_uid == os.geteuid():
        directory.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)


def _is_usable(directory: Path) -> bool:
    """Make a directory, or see that it is there; tell whether what lies in it may be run."""
    with contextlib.suppress(OSError):  # it may be there all the same, and be read
        directory.mkdir(0o700, parents=True, exist_ok=True)
    try:
        if _is_trusted(directory):
            return True
    except OSError:
        return False
    _refused.append(directory)
    warnings.warn(
        f"{directory} is not used for machine code, for others can write it: set "
        "STREAMRNN_CACHE_DIR to a directory of your own",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


@functools.cache
def _usable_root() -> Path | None:
    root = _cache_root()
    with contextlib.suppress(OSError):
        _close_to_others(root)
    return root if _is_usable(root) else None


@functools.cache
def cache_directory(folder: Path) -> Path:
    """Return the directory for the machine code of one folder's compiled functions.

    The folder lies right below a package, such as ``streamrnn/kernels``. The sources in it, and
    those in the folders and modules that they import, make up the directory's name. Where there is
    none that can be used, nothing is kept, and it is compiled anew.
    """
    digest = hashlib.sha256()
    digest.update(repr((sys.version, numba.__version__, llvmlite.__version__)).encode())
    digest.update(repr((vector_width.WIDTH, sys.platform)).encode())
    for path in _sources(folder):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    name = f"{folder.name}-{digest.hexdigest()[:20]}"
    root = _usable_root()
    if root is None:
        return _NO_CACHE / name
    if not os.path.exists(root / name):
        _forget_old_generations(root, folder.name)
    return root / name if _is_usable(root / name) else _NO_CACHE / name


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
    """Numba's, but what cannot be read is compiled, and what cannot be written is not kept."""

    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            if not _refused:  # which has been said
                _warn_of_lost_work()


@functools.cache
def _warn_of_lost_work() -> None:
    """Say once that every start will compile, and what to do about it."""
    warnings.warn(
        f"the machine code that was compiled now cannot be kept in {_cache_root()}, so every start "
        "will compile: set STREAMRNN_CACHE_DIR to a directory that can be written, or fill it once",
        RuntimeWarning,
        stacklevel=2,
    )


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
