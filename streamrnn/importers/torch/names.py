"""Names of a PyTorch state dict: wrappers, tied tensors, weights made of others."""

from __future__ import annotations

import re
from dataclasses import replace

from streamrnn.errors import ModelFileError, listed
from streamrnn.model.tensor_file import StoredTensor, TensorFile

__all__ = ["WRAPPERS", "refuse_parametrized", "unwrapped", "with_tied"]

# Parts of names that DataParallel and torch.compile put in.
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")
_PARAMETRIZED = re.compile(r"(?P<name>.*?)\.?parametrizations\.(?P<leaf>.+)\.original\d?")
_OLD_NORM = re.compile(r"(?P<name>.*weight\w*)_(?:g|v|orig|u)")


def unwrapped(file: TensorFile) -> TensorFile:
    """Take the wrappers' parts out of the names, where no two become the same."""
    plain = {name: WRAPPERS.sub("", name) for name in file.tensors}
    if len(set(plain.values())) < len(plain):
        return file
    tensors = {plain[name]: stored for name, stored in file.tensors.items()}
    metadata = {
        WRAPPERS.sub("", name): WRAPPERS.sub("", other) for name, other in file.metadata.items()
    }
    return replace(file, tensors=tensors, metadata=metadata)


def with_tied(file: TensorFile, notes: list[str]) -> TensorFile:
    """Bring back what ``save_model`` left out: its metadata name the tensor that is the same."""
    tied: dict[str, StoredTensor] = {}
    for name, other in file.metadata.items():
        if name not in file.tensors and other in file.tensors:
            tied[name] = file.tensors[other]
            notes.append(f"{name} is tied to {other}: the same matrix, held twice here")
    return replace(file, tensors=file.tensors | tied)


def refuse_parametrized(file: TensorFile) -> None:
    """Refuse weights that are computed from others, by the name of the cure."""
    new = [name for name in file.tensors if _PARAMETRIZED.fullmatch(name)]
    if new:
        raise ModelFileError(
            f"{file.path} holds weights that a parametrization computes (weight or spectral norm): "
            f"{listed(new)}. Before saving, make plain weights of them: "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight_hh_l0') for each"
        )
    old = [
        name
        for name in file.tensors
        if (match := _OLD_NORM.fullmatch(name)) and match["name"] not in file.tensors
    ]
    if old:
        raise ModelFileError(
            f"{file.path} holds weights in the parts of a weight or spectral norm: {listed(old)}. "
            "Before saving, make plain weights of them: torch.nn.utils.remove_weight_norm(module, "
            "'weight_hh_l0') (or remove_spectral_norm) for each"
        )
