"""The detector's file, wherever it is: a wheel, a folder, or the file itself."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

from streamrnn.errors import StartError
from streamrnn.importers.network import GraphOptions, ImportedModel
from streamrnn.importers.source import import_file
from streamrnn_bench.demo.vad.audio import FRAME, RATE_HZ

__all__ = ["CONTEXT", "bring", "find"]

CONTEXT = 64  # samples of the frame before that the network sees again
_NAME = "silero_vad_16k_op15.onnx"
_MEMBER = f"silero_vad/data/{_NAME}"
_HOW = (
    "download it with `pip download --no-deps --dest build/silero silero-vad`, and say "
    "`--silero build/silero`"
)
_MAX_BYTES = 64 << 20


def find(path: Path | None, scratch: Path) -> Path:
    """Return the ONNX file; one inside a wheel is unpacked to ``scratch``.

    Raises `StartError` if it is nowhere.
    """
    if path is None:
        spec = importlib.util.find_spec("silero_vad")
        if spec is None or not spec.submodule_search_locations:
            raise StartError(f"the package silero-vad is not installed; {_HOW}")
        path = Path(next(iter(spec.submodule_search_locations)))
    if path.is_dir():
        files = [*path.rglob(_NAME), *sorted(path.glob("silero_vad-*.whl"))]
        if not files:
            raise StartError(f"{path} holds neither {_NAME} nor a wheel of silero-vad; {_HOW}")
        path = files[0]
    if not path.exists():
        raise StartError(f"{path} does not exist; {_HOW}")
    if path.suffix != ".whl":
        return path
    try:
        with zipfile.ZipFile(path) as wheel:
            if wheel.getinfo(_MEMBER).file_size > _MAX_BYTES:
                raise StartError(f"{_MEMBER} in {path} is larger than {_MAX_BYTES:,} bytes")
            unpacked = scratch / _NAME
            unpacked.write_bytes(wheel.read(_MEMBER))
    except (zipfile.BadZipFile, KeyError) as error:
        raise StartError(f"{path} is no wheel that holds {_MEMBER}: {error}; {_HOW}") from error
    return unpacked


def bring(path: Path) -> ImportedModel:
    """Import the file: a frame a step, 16 kHz, the context kept by the stream."""
    fixed = {"sr": float(RATE_HZ), "sequence": float(FRAME + CONTEXT)}
    return import_file(path, graph=GraphOptions(fixed, CONTEXT))
