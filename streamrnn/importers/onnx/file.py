"""Read an ONNX file: the protobuf message, and tensors with every length checked."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelFileError

__all__ = ["OnnxFile", "check_texts", "looks_like_onnx", "read_onnx_file"]

_MAX_BYTES = 2 << 30  # of a protobuf message
# onnx.TensorProto.DataType: our dtype of it. bfloat16 (16) is widened by hand.
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    16: np.dtype("<u2"),
}
_BFLOAT16 = 16
_EXTERNAL = 1  # onnx.TensorProto.DataLocation


@dataclass
class OnnxFile:
    """A parsed file, and where tensors outside it lie."""

    path: str
    model: Any  # onnx.ModelProto

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        versions = [o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")]
        return max(versions, default=1)

    @property
    def is_one_step(self) -> bool:
        """Whether it says that it is one step: no axis is time, the second one has channels."""
        return any(item.key == "steps" and item.value == "1" for item in self.model.metadata_props)

    def is_whole(self, name: str) -> bool:
        """Whether an input of the graph is of whole numbers."""
        return any(
            item.name == name and item.type.tensor_type.elem_type in (6, 7)
            for item in self.model.graph.input
        )

    def array(self, tensor: Any) -> NDArray[Any]:
        """Decode a tensor; bfloat16 comes as float32.

        Raises `ModelFileError` if its bytes are not those that its shape asks for, or lie where
        none of the model's may.
        """
        name = tensor.name or "(no name)"
        shape = tuple(tensor.dims)
        dtype = _DTYPES.get(tensor.data_type)
        if dtype is None:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} has data type {tensor.data_type}; known are float, "
                "double, float16, bfloat16, int32, int64 and bool (quantised models cannot be "
                "imported)"
            )
        if len(shape) > 16 or any(not 0 <= axis < 1 << 40 for axis in shape):
            raise ModelFileError(f"{self.path}: tensor {name!r} has the impossible shape {shape}")
        num_bytes = math.prod(shape) * dtype.itemsize
        if tensor.data_location == _EXTERNAL:
            raw: Any = self._external(tensor, name, num_bytes)
        elif tensor.HasField("raw_data"):
            raw = tensor.raw_data
        else:
            return self._listed(tensor, name, shape, dtype)
        if len(raw) != num_bytes:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} has {len(raw)} bytes; its shape {list(shape)} asks "
                f"for {num_bytes}"
            )
        return _widened(np.frombuffer(raw, dtype), tensor.data_type).reshape(shape)

    def _listed(
        self, tensor: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        """Decode a tensor whose elements stand one by one in a field of its type."""
        fields = {1: "float_data", 7: "int64_data", 11: "double_data"}
        values = getattr(tensor, fields.get(tensor.data_type, "int32_data"))
        if len(values) != math.prod(shape):
            raise ModelFileError(
                f"{self.path}: tensor {name!r} has {len(values)} elements; its shape {list(shape)} "
                f"asks for {math.prod(shape)}"
            )
        if tensor.data_type in (10, _BFLOAT16):  # the bits of a half in an int32
            bits = (np.array(values, np.int64) & 0xFFFF).astype(np.uint16)
            return _widened(bits.view(dtype), tensor.data_type).reshape(shape)
        return np.array(values, dtype).reshape(shape)

    def _external(self, tensor: Any, name: str, num_bytes: int) -> bytes:
        """Read a tensor from a file beside the model, and from nowhere else."""
        entries = {entry.key: str(entry.value) for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            offset = int(entries.get("offset", "0") or 0)
            length = int(entries.get("length", str(num_bytes)) or num_bytes)
        except ValueError as error:
            raise ModelFileError(
                f"{self.path}: the place of tensor {name!r} is no number: {error}"
            ) from error
        parts = Path(location).parts
        if not parts or Path(location).is_absolute() or ".." in parts or "\\" in location:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} lies in {location!r}; it must be a file beside the "
                "model"
            )
        folder = Path(os.path.realpath(self.path)).parent
        try:
            place = Path(os.path.realpath(folder / location))
            if not place.is_relative_to(folder):
                raise ModelFileError(
                    f"{self.path}: tensor {name!r} lies in {location!r}, which leads out of the "
                    "model's folder"
                )
            with open(place, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ModelFileError(f"{place} is not a regular file")
                end = offset + length
                if offset < 0 or length != num_bytes or end > status.st_size:
                    raise ModelFileError(
                        f"{self.path}: tensor {name!r} needs {num_bytes} bytes, and its place is "
                        f"bytes {offset} to {end} of {location!r}, which has {status.st_size}"
                    )
                file.seek(offset)
                return file.read(length)
        except (OSError, ValueError) as error:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} lies in {location!r}, which cannot be read: {error}"
            ) from error


def _widened(values: NDArray[Any], data_type: int) -> NDArray[Any]:
    """Widen bfloat16, the upper half of a float32."""
    if data_type != _BFLOAT16:
        return values
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def check_texts(path: str, graph: Any) -> None:
    """Raise `ModelFileError` if a name in a graph is no text: protobuf gives bytes then."""
    texts = [item.name for item in (*graph.input, *graph.output, *graph.initializer)]
    texts += [axis.dim_param for item in graph.input for axis in item.type.tensor_type.shape.dim]
    for node in graph.node:
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [item.name for item in node.attribute]
    broken = next((text for text in texts if not isinstance(text, str)), None)
    if broken is not None:
        raise ModelFileError(f"{path} is damaged: the name {broken!r} is no text")


def looks_like_onnx(start: bytes) -> bool:
    """Whether bytes begin as the fields of an ``onnx.ModelProto`` do."""
    # ir_version, producer name and version, domain, model version, text, graph, opset.
    return start[:1] in (b"\x08", b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")


def read_onnx_file(path: str | os.PathLike[str]) -> OnnxFile:
    """Parse an ONNX file.

    Raises `ModelFileError` if the package ``onnx`` is not installed, or the file is none of ONNX.
    """
    name = os.fspath(path)
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ModelFileError(
            f"{name} seems to be an ONNX file, which the package onnx reads: "
            "pip install 'streamrnn[onnx]'"
        ) from error
    try:
        if os.path.getsize(name) > _MAX_BYTES:
            raise ModelFileError(f"{name} is larger than a protobuf message can be (2 GB)")
        data = Path(name).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{name} cannot be read: {error.strerror or error}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelFileError(
            f"{name} is neither safetensors, HDF5 nor JSON, and damaged if it is ONNX: {error}"
        ) from error
    if not model.graph.node:
        raise ModelFileError(f"{name} is no ONNX model, or one with an empty graph")
    return OnnxFile(name, model)
