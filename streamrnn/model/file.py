"""Weight file: a model as one safetensors file in which no flipped bit passes.

The metadata holds one entry, ``streamrnn``, a JSON text in canonical form (sorted, compact)::

    {"format": 1,                     version of this layout
     "sha256": "...",                 the model's fingerprint, which covers all that follows
     "spec": {...},                   ModelSpec without the fields that have their default
     "tensors": {"head.bias": "..."}, SHA-256 of every tensor's bytes: says which one is damaged
     "proof": {"facts": ..., "sha256": "..."}} with which outputs it was compared, if it was

The proof has a digest of its own: a model is the same, proved or not, and so are its streams.

This module knows specifications and tensors; `streamrnn.model.model` makes models of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from numpy.typing import NDArray

from streamrnn.errors import ModelError, ModelFileError, SpecError
from streamrnn.model.checks import check_json
from streamrnn.model.parameters import (
    FORMAT_VERSION,
    Parameters,
    TensorEntries,
    canonical_spec,
    fingerprint_of,
    tensor_digest,
    tensor_entries,
)
from streamrnn.model.spec import ModelSpec
from streamrnn.model.tensor_file import TensorFile, read_tensor_file, write_tensor_file

__all__ = ["METADATA_KEY", "read_model_file", "write_model_file"]

METADATA_KEY = "streamrnn"
_PARTS = {"format", "sha256", "spec", "tensors"}


def write_model_file(
    path: str | os.PathLike[str], spec: ModelSpec, parameters: Parameters, proof: Any = None
) -> None:
    """Write a weight file, all or nothing; the same model always makes the same bytes.

    Raises `ModelFileError` if the file cannot be written, `SpecError` if the proof is not plain.
    """
    check_json(proof, "the proof")
    spec_text = canonical_spec(spec)
    entries = tensor_entries(parameters)
    description = {
        "format": FORMAT_VERSION,
        "sha256": fingerprint_of(spec_text, entries),
        "spec": json.loads(spec_text),
        "tensors": {name: digest for name, (_, _, digest) in entries.items()},
    }
    if proof is not None:
        description["proof"] = {"facts": proof, "sha256": _digest(proof)}
    write_tensor_file(path, parameters, {METADATA_KEY: _canonical(description)})


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def read_model_file(
    path: str | os.PathLike[str],
) -> tuple[ModelSpec, dict[str, NDArray[Any]], Any]:
    """Read the description, the tensors and the proof (None for none) of a weight file.

    Whether the tensors are those that the description asks for is not checked here. Raises
    `ModelFileError` if the file is damaged, of another kind, or its description is not valid.
    """
    file = read_tensor_file(path)
    description = _read_description(file)
    proof = _checked_proof(file, description)
    entries = _check_digests(file, description)
    try:
        spec = ModelSpec.from_dict(description["spec"])
        fingerprint = fingerprint_of(canonical_spec(spec), entries)
    except ModelError as error:
        raise ModelFileError(f"{file.path}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{file.path}: the description cannot be read: {error}") from error
    if fingerprint != description["sha256"]:
        raise ModelFileError(
            f"{file.path}: the description is not in the form that this version writes "
            f"(fingerprint {fingerprint}, the file says {description['sha256']})"
        )
    return spec, {name: stored.array() for name, stored in file.tensors.items()}, proof


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read_description(file: TensorFile) -> dict[str, Any]:
    """Parse our entry of the metadata and check its form, not yet its contents."""
    text = file.metadata.get(METADATA_KEY)
    header = f"the header (bytes 8 to {8 + file.header_bytes})"
    if text is None:
        raise ModelFileError(
            f"{file.path} is a safetensors file, but holds no model of StreamRNN ({header} has no "
            f"{METADATA_KEY!r} in its __metadata__); if it is a PyTorch state dict, run "
            f"`streamrnn import {file.path} -o MODEL`"
        )
    if len(file.metadata) != 1:
        raise ModelFileError(f"{file.path}: unknown metadata {sorted(file.metadata)} in {header}")
    try:
        description = json.loads(text)
        json.dumps(description, ensure_ascii=False).encode()  # a lone surrogate is no character
        same = _canonical(description) == text
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{file.path}: the model's description in {header} is damaged: {error}"
        ) from error
    if not isinstance(description, dict) or "format" not in description:
        raise ModelFileError(
            f"{file.path}: the model's description in {header} is damaged: it has no format version"
        )
    if description["format"] != FORMAT_VERSION:
        raise ModelFileError(
            f"{file.path} has format version {description['format']!r}; this StreamRNN reads "
            f"version {FORMAT_VERSION}. Update StreamRNN, or write the file again with this version"
        )
    if not (file.is_compact and same) or set(description) - {"proof"} != _PARTS:
        raise ModelFileError(
            f"{file.path}: the model's description in {header} is damaged or was edited: it is "
            "not in the form that StreamRNN writes"
        )
    return description


def _checked_proof(file: TensorFile, description: dict[str, Any]) -> Any:
    proof = description.get("proof", {"facts": None, "sha256": _digest(None)})
    try:
        if set(proof) == {"facts", "sha256"} and proof["sha256"] == _digest(proof["facts"]):
            check_json(proof["facts"], "the proof")
            return proof["facts"]
    except (TypeError, SpecError):
        pass
    raise ModelFileError(
        f"{file.path}: the proof in the header (bytes 8 to {8 + file.header_bytes}) is damaged or "
        "was edited; copy the file again"
    )


def _check_digests(file: TensorFile, description: dict[str, Any]) -> TensorEntries:
    """Compare every byte with its digest; list the tensors for `fingerprint_of`."""
    digests = description["tensors"]
    if not isinstance(digests, dict):
        raise ModelFileError(f"{file.path}: the list of tensors in the header is damaged")
    for name in digests:
        if name not in file.tensors:
            raise ModelFileError(f"{file.path}: tensor {name!r} is missing; copy the file again")
    for name, stored in file.tensors.items():
        if name not in digests:
            raise ModelFileError(
                f"{file.path}: tensor {name!r} ({stored.place}) does not belong to the model"
            )
        digest = tensor_digest(stored.array())
        if digest != digests[name]:
            raise ModelFileError(
                f"{file.path}: tensor {name!r} ({stored.place}) or its digest is damaged: "
                f"its SHA-256 is {digest}, expected {digests[name]}; copy the file again"
            )
    entries = {name: (t.dtype, t.shape, digests[name]) for name, t in file.tensors.items()}
    fingerprint = fingerprint_of(_canonical(description["spec"]), entries)
    if fingerprint != description["sha256"]:
        raise ModelFileError(
            f"{file.path}: the header (bytes 8 to {8 + file.header_bytes}) is damaged or was "
            f"edited: its SHA-256 is {fingerprint}, expected {description['sha256']}; copy the "
            "file again"
        )
    return entries
