"""Read a safetensors file strictly, and write one all or nothing.

The layout is small (https://huggingface.co/docs/safetensors): 8 bytes N, little-endian; N bytes
of JSON that give every tensor's dtype, shape and offsets, padded with spaces; the tensors' bytes.
The package ``safetensors`` writes our files but does not read them: it takes a header that names a
tensor twice (the last entry wins), or has further keys in an entry, and its refusals do not say
where the damage is; closing that takes the header's parse and checks, which are most of this reader
(docs/decisions.md).
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError

__all__ = [
    "MAX_HEADER_BYTES",
    "StoredTensor",
    "TensorFile",
    "read_tensor_file",
    "replace_file",
    "write_tensor_file",
]

MAX_HEADER_BYTES = 16 << 20  # names of 100,000 categories fit; no header of ours comes near it

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

# Files of other kinds, by their first bytes.
_SAVE_AS_SAFETENSORS = (
    "it can run code when it is read, so it never is. Save the tensors where the model was made: "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
_OTHER_KINDS = (
    (
        b"PK\x03\x04",
        f"is a zip archive, probably a PyTorch pickle (.pt, .pth): {_SAVE_AS_SAFETENSORS}",
    ),
    (b"\x80", f"is a Python pickle: {_SAVE_AS_SAFETENSORS}"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 (Keras) file; StreamRNN reads safetensors"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file; run `git lfs pull`"),
    (b"\x1f\x8b", "is compressed with gzip; uncompress it first"),
    (b"\x93NUMPY", "is a NumPy array, not a model"),
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in a file."""

    dtype: str  # safetensors' name of it: F32, BF16, ...
    shape: tuple[int, ...]
    offset_bytes: int  # from the start of the file
    data: memoryview  # read-only

    @property
    def place(self) -> str:
        """Position in the file, for error messages."""
        return f"bytes {self.offset_bytes} to {self.offset_bytes + len(self.data)}"

    def array(self) -> NDArray[Any]:
        """Return a read-only view on the file's bytes; bfloat16 comes as a float32 copy."""
        raw: NDArray[Any] = np.frombuffer(self.data, dtype=_DTYPES[self.dtype])
        if self.dtype == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.reshape(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """Contents of a safetensors file."""

    path: str  # for error messages
    header_bytes: int  # of the JSON, padding included; it begins at byte 8
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]  # in the order of the header
    # Whether the header's JSON is in the one form that safetensors' own writer produces. If not,
    # another program wrote it, or a bit flipped in a blank.
    is_compact: bool


def read_tensor_file(path: str | os.PathLike[str]) -> TensorFile:
    """Read a safetensors file.

    Raises `ModelFileError` if it cannot be read, is no regular file or no safetensors file, or
    departs from the layout.
    """
    name = os.fspath(path)
    try:
        status = os.stat(name)
        if stat.S_ISDIR(status.st_mode):
            raise ModelFileError(f"{name} is a directory; give the file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{name} is not a regular file")
        with open(name, "rb") as file:
            return _read(name, file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise ModelFileError(f"{name}: there is no such file") from error
    except OSError as error:
        raise ModelFileError(f"{name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL character
        raise ModelFileError(f"{name!r} cannot be read: {error}") from error


def _read(name: str, file: BinaryIO, file_bytes: int) -> TensorFile:
    if file_bytes == 0:
        raise ModelFileError(f"{name} is empty")
    start = file.read(32)
    if start[8:9] != b"{":
        # Only now: the length of a header may begin with any byte, also with a pickle's.
        for magic, text in _OTHER_KINDS:
            if start.startswith(magic):
                raise ModelFileError(f"{name} {text}")
        raise ModelFileError(
            f"{name} is not a safetensors file, or has lost its beginning: byte 8 is "
            f"{start[8:9]!r}, where the header's '{{' belongs"
        )
    header_bytes = int.from_bytes(start[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{name}: the first 8 bytes announce a header of {header_bytes} bytes; at most "
            f"{MAX_HEADER_BYTES} are read. The file is damaged, or no safetensors file"
        )
    if 8 + header_bytes > file_bytes:
        raise ModelFileError(
            f"{name} is truncated: the header ends at byte {8 + header_bytes}, the file at byte "
            f"{file_bytes}; copy it again"
        )
    file.seek(8)
    header, is_compact = _parse_header(name, file.read(header_bytes))
    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise ModelFileError(f"{name}: __metadata__ in the header is not a map of strings")
    places = {tensor: _place(name, tensor, entry) for tensor, entry in header.items()}
    end_bytes = 8 + header_bytes + _check_tiling(name, places)
    if end_bytes != file_bytes:
        damage = "is truncated" if end_bytes > file_bytes else "has bytes after its last tensor"
        raise ModelFileError(
            f"{name} {damage}: the tensors end at byte {end_bytes}, the file at byte "
            f"{file_bytes}; copy it again"
        )
    data = memoryview(file.read(end_bytes - 8 - header_bytes))
    if len(data) != end_bytes - 8 - header_bytes:
        raise ModelFileError(f"{name} became shorter while it was read; try again")
    tensors = {
        tensor: StoredTensor(dtype, shape, 8 + header_bytes + begin, data[begin:end])
        for tensor, (dtype, shape, begin, end) in places.items()
    }
    return TensorFile(name, header_bytes, metadata, tensors, is_compact)


def _parse_header(name: str, raw: bytes) -> tuple[dict[str, Any], bool]:
    """Parse the header's JSON; also return whether it is as compact as ours."""
    try:
        text = raw.rstrip(b" ").decode()
        header = json.loads(text, object_pairs_hook=_without_duplicates, parse_int=_parse_int)
        compact = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        compact.encode()  # a lone surrogate is no character
        is_compact = compact == text
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{name}: the header (bytes 8 to {8 + len(raw)}) is damaged: {error}"
        ) from error
    if not isinstance(header, dict):
        raise ModelFileError(f"{name}: the header (bytes 8 to {8 + len(raw)}) is no JSON object")
    return header, is_compact


def _parse_int(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is no size")
    return int(text)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is there twice")
    return result


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _place(name: str, tensor: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Check one tensor's entry in the header: (dtype, shape, begin, end)."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(
            f"{name}: the header's entry of tensor {tensor!r} does not consist of dtype, shape "
            "and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ModelFileError(
            f"{name}: tensor {tensor!r} has dtype {dtype!r}; known are {', '.join(_DTYPES)}"
        )
    is_shape = isinstance(shape, list) and len(shape) <= 32 and all(_is_size(n) for n in shape)
    # An axis of 0 hides the others in the product, but NumPy multiplies them all the same.
    if not is_shape or not _is_size(math.prod(n or 1 for n in shape)):
        raise ModelFileError(f"{name}: tensor {tensor!r} has the impossible shape {shape}")
    sizes = isinstance(offsets, list) and len(offsets) == 2 and all(_is_size(n) for n in offsets)
    if not sizes or offsets[0] > offsets[1]:
        raise ModelFileError(f"{name}: tensor {tensor!r} has impossible offsets {offsets}")
    begin, end = offsets
    num_bytes = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != num_bytes:
        raise ModelFileError(
            f"{name}: tensor {tensor!r} has {end - begin} bytes; {dtype} {shape} needs {num_bytes}"
        )
    return dtype, tuple(shape), begin, end


def _check_tiling(name: str, places: Mapping[str, tuple[str, tuple[int, ...], int, int]]) -> int:
    """Check that tensors follow one another with no gap; return the end of the last."""
    expected = 0
    for tensor, (_, _, begin, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != expected:
            raise ModelFileError(
                f"{name}: tensor {tensor!r} begins at data offset {begin}; expected {expected}"
            )
        expected = end
    return expected


def write_tensor_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file atomically.

    Afterwards there is all of it or the old file; a symbolic link is followed. Tensors must be in C
    order. Raises `ModelFileError` if the header would be too large to be read back, or the file
    cannot be written.
    """
    data = safetensors.numpy.save(dict(tensors), metadata=dict(metadata))
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{os.fspath(path)}: the description takes {header_bytes} bytes; at most "
            f"{MAX_HEADER_BYTES} are allowed, keep large things out of training"
        )
    replace_file(path, data)


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically: afterwards there is all of it or the old one.

    A symbolic link is followed. Raises `ModelFileError` if it cannot be written.
    """
    target = Path(os.path.realpath(path))
    # Beside the target: a rename is atomic within one file system only.
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.partial")
    try:
        try:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ModelFileError(
            f"{os.fspath(path)} cannot be written: {error.strerror or error}"
        ) from error
