"""Read an HDF5 file of Keras, in a process of its own.

libhdf5 is C, and damaged files crash it: a byte changed at random is enough. So h5py runs in a
child, with limits on its time and memory; it gives back plain arrays, and if it dies the file is
refused. The child is ``python -m streamrnn.importers.keras.hdf5``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError

__all__ = ["Hdf5Contents", "read_hdf5"]

_MAX_LAYERS = 10_000
_MAX_DEPTH = 8  # of models within models
_MAX_CONFIG_BYTES = 16 << 20
_SECONDS = 60  # for the child on a busy machine, and one more for every 10 MB
_CPU_SECONDS = 10  # of it, likewise: a damaged file may keep the library in a ring
_MEMORY_BYTES = 1 << 29  # beside twice the file
_REFUSED = 3  # the child's exit code when its last line on stderr says why


@dataclass
class Hdf5Contents:
    """What a file holds."""

    config: str | None = None  # the attribute model_config
    version: str = ""  # of Keras
    # Arrays of every layer: by its name in the format of Keras 2, by its class and number (lstm,
    # lstm_1, sequential/lstm) in that of Keras 3.
    by_name: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    weight_names: dict[str, list[str]] = field(default_factory=dict)  # of those by name
    by_place: dict[str, list[NDArray[Any]]] = field(default_factory=dict)


def read_hdf5(file: BinaryIO, path: str, *, weights: bool = True) -> Hdf5Contents:
    """Read an open file; ``path`` names it in errors, ``weights=False`` reads its attributes alone.

    Raises `ModelFileError` if the package h5py is not installed, or the file is damaged.
    """
    if importlib.util.find_spec("h5py") is None:
        raise ModelFileError(
            f"{path} is a file of Keras, which the package h5py reads: "
            "pip install 'streamrnn[keras]'"
        )
    num_bytes = os.fstat(file.fileno()).st_size
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryFile() as result:
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, path, str(num_bytes), str(int(weights))],
                stdin=file,
                stdout=result,
                stderr=subprocess.PIPE,
                env=environment,
                timeout=_SECONDS + num_bytes / 1e7,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelFileError(f"{path} is damaged: reading it never ends") from error
        if done.returncode == _REFUSED:
            raise ModelFileError(done.stderr.decode(errors="replace").strip()[-2000:])
        if done.returncode != 0:
            raise ModelFileError(
                f"{path} is damaged: the HDF5 library gave up on it (code {done.returncode})"
            )
        result.seek(0)
        try:
            return _unpacked(result)
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ModelFileError(f"{path} is damaged: {error}") from error


def _packed(contents: Hdf5Contents, file: BinaryIO) -> None:
    """Write contents as arrays, with an index of them in front."""
    arrays: list[NDArray[Any]] = []
    index: dict[str, Any] = {
        "config": contents.config,
        "version": contents.version,
        "weight_names": contents.weight_names,
    }
    for part in ("by_name", "by_place"):
        index[part] = {}
        for name, own in getattr(contents, part).items():
            index[part][name] = list(range(len(arrays), len(arrays) + len(own)))
            arrays += own
    named: dict[str, Any] = {f"a{k}": array for k, array in enumerate(arrays)}
    np.savez(file, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **named)


def _unpacked(file: BinaryIO) -> Hdf5Contents:
    with np.load(file, allow_pickle=False) as arrays:
        index = json.loads(arrays["index"].tobytes())
        parts = {
            part: {name: [arrays[f"a{k}"] for k in own] for name, own in index[part].items()}
            for part in ("by_name", "by_place")
        }
        names = index["weight_names"]
        return Hdf5Contents(index["config"], index["version"], weight_names=names, **parts)


# --- the child ---------------------------------------------------------------------------------


def _main(path: str, num_bytes: int, weights: bool) -> int:
    _limit_itself(num_bytes)
    import h5py

    try:
        # Both are files on disk, so they can be sought.
        with h5py.File(os.fdopen(0, "rb", closefd=False), "r") as root:
            contents = _Reader(path, num_bytes).read(root, weights)
        with os.fdopen(1, "wb", closefd=False) as out:
            _packed(contents, out)
    except ModelFileError as error:
        print(error, file=sys.stderr)
        return _REFUSED
    except Exception as error:  # whatever h5py makes of a damaged file
        print(f"{path} is damaged, or no file of Keras: {error}", file=sys.stderr)
        return _REFUSED
    return 0


def _limit_itself(num_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    memory = _MEMORY_BYTES + 2 * num_bytes
    for limit, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, _CPU_SECONDS + num_bytes // 10_000_000),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (allowed, hard))


class _Reader:
    """Reads arrays, each checked before a byte of it is read."""

    def __init__(self, path: str, num_bytes: int) -> None:
        self.path = path
        self.bytes_left = num_bytes

    def read(self, root: Any, weights: bool) -> Hdf5Contents:
        """Read the configuration and the weights in either format."""
        found = Hdf5Contents(self._config(root))
        top = self._group(root, "model_weights") or root
        found.version = _text(top.attrs.get("keras_version", ""))[:40]
        if not weights:
            return found
        if "layer_names" in top.attrs:
            for name in _texts(top.attrs["layer_names"]):
                layer = self._group(top, name)
                if layer is not None:
                    names = _texts(layer.attrs["weight_names"])
                    found.by_name[name] = [self._array(layer, weight) for weight in names]
                    found.weight_names[name] = names
            return found
        for name in ("layers", "_layer_checkpoint_dependencies"):
            layers = self._group(root, name)
            if layers is not None:
                self._add_places(layers, "", found.by_place)
                return found
        raise ModelFileError(f"{self.path} is an HDF5 file, but none with the layers of Keras")

    def _add_places(
        self, layers: Any, before: str, by_place: dict[str, list[NDArray[Any]]]
    ) -> None:
        """Read the layers of a model, and of models within it."""
        if before.count("/") > _MAX_DEPTH or len(by_place) > _MAX_LAYERS:
            raise ModelFileError(f"{self.path} has models nested too deep, or too many layers")
        for place in list(layers)[:_MAX_LAYERS]:
            layer = self._group(layers, place)
            inner = self._group(layer, "layers") or self._group(layer, "layer/layers")
            if inner is not None:
                self._add_places(inner, f"{before}{place}/", by_place)
            else:
                by_place[before + place] = self._variables(layer)

    def _config(self, root: Any) -> str | None:
        if "model_config" not in root.attrs:
            return None
        value = root.attrs["model_config"]
        if isinstance(value, np.ndarray):  # in pieces, where it was too long for one attribute
            value = b"".join(bytes(piece) for piece in value.reshape(-1))
        if not isinstance(value, bytes | str) or len(value) > _MAX_CONFIG_BYTES:
            raise ModelFileError(f"{self.path}: the attribute model_config is no text")
        return _text(value)

    def _group(self, parent: Any, name: str) -> Any:
        """Return a group, or None if there is none."""
        item = self._item(parent, name)
        return item if hasattr(item, "keys") else None

    def _item(self, parent: Any, name: str) -> Any:
        """Follow a path, by links that stay in the file."""
        import h5py

        item = parent
        for part in filter(None, name.split("/")):
            if not hasattr(item, "keys") or part not in item:
                return None
            if not isinstance(item.get(part, getlink=True), h5py.HardLink):
                raise ModelFileError(f"{self.path}: {name!r} is a link; links are not followed")
            item = item[part]
        return item

    def _array(self, parent: Any, name: str) -> NDArray[Any]:
        """Read one array of numbers whose bytes lie in the file as they are."""
        item = self._item(parent, name)
        where = f"{self.path}: {name!r}"
        if not hasattr(item, "dtype"):
            raise ModelFileError(f"{where} is missing")
        if item.dtype.kind not in "fiu":
            raise ModelFileError(f"{where} holds {item.dtype}; expected numbers")
        if item.external or item.is_virtual or item.chunks or item.compression:
            raise ModelFileError(
                f"{where} is compressed, in chunks or in another file; Keras writes it plainly"
            )
        if item.ndim > 4 or item.nbytes > self.bytes_left:
            raise ModelFileError(
                f"{where} claims {item.nbytes} bytes of the {self.bytes_left} that are left"
            )
        self.bytes_left -= item.nbytes
        return np.asarray(item[()])

    def _variables(self, layer: Any) -> list[NDArray[Any]]:
        """Read a layer's variables: its own, its cell's or those of the layer that it wraps."""
        for path in ("vars", "cell/vars", "layer/vars"):
            group = self._group(layer, path)
            if group is None:
                continue
            numbers = sorted(int(key) for key in group if re.fullmatch(r"\d{1,4}", key))
            if numbers:
                return [self._array(group, str(number)) for number in numbers]
        return []


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in np.asarray(value).reshape(-1)[:_MAX_LAYERS].tolist()]


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"))
